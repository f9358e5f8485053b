"""The numbers of the diagnostics, against others' ways to compute them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from callbacks.small_search import BATCHES, fit
from commands import read_csv
from methods.plain import CLASSES, SHAPE, search_module
from torch import Tensor

from src.bilevel.hypergradient import Bilevel, FiniteDifference, FirstOrder
from src.bilevel.unroll import Tensors, VirtualStep
from src.callbacks.diagnostics import Diagnostics
from src.callbacks.measured import PRODUCTS, one_hot, top_eigenvalue
from src.callbacks.record import EpochMetrics
from src.fast import kernels
from src.fast.fused import FusedSupernet
from src.methods.method import Method
from src.training.search import SearchModule


def problem(hessian: Tensor) -> Bilevel:
    """A loss of two vectors of alphas whose Hessian is known."""
    size = len(hessian) // 2

    def loss(weights: Tensors, alphas: Tensors) -> Tensor:
        flat = torch.cat(list(alphas.values()))
        return 0.5 * flat @ hessian.to(flat.dtype) @ flat + weights["w"].sum() * flat.sum()

    alphas = {"one": torch.zeros(size), "other": torch.zeros(len(hessian) - size)}
    return Bilevel(loss, loss, {"w": torch.ones(3)}, alphas, VirtualStep(lr=0.0))


@pytest.mark.parametrize("size", [4, 40])
def test_top_eigenvalue_is_the_largest_not_the_largest_in_size(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    directions = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    values = torch.linspace(-5.0, 2.0, size, dtype=torch.float64)
    hessian = directions @ torch.diag(values) @ directions.T
    state = str(np.random.get_state())  # noqa: NPY002
    assert top_eigenvalue(problem(hessian), products=size) == pytest.approx(2.0, rel=1e-5)
    assert str(np.random.get_state()) == state  # noqa: NPY002


def full_hessian(problem: Bilevel) -> Tensor:
    """The Hessian of the arch loss with respect to the alphas, by double backward in float64."""
    problem = problem.in_float64()
    alphas = {name: alpha.detach().requires_grad_() for name, alpha in problem.alphas.items()}
    leaves = list(alphas.values())
    gradients = torch.autograd.grad(problem.arch_loss(problem.weights, alphas), leaves, create_graph=True)
    rows = [
        torch.cat([part.reshape(-1) for part in torch.autograd.grad(entry, leaves, retain_graph=True)])
        for gradient in gradients
        for entry in gradient
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fused_form_has_the_top_eigenvalue_of_the_full_hessian(dtype: torch.dtype) -> None:
    """By default at most 10 products: less than one for each alpha. In float32 ReLUs that switch would triple it."""
    search = search_module(Method(), space=FusedSupernet).to(dtype)
    images, labels = (
        torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype),
        torch.arange(8) % CLASSES,
    )
    at = search.problem({"weights": (images, labels), "arch": (images, labels)}, None)
    before = {name: tensor.clone() for name, tensor in search.state_dict().items()}
    found = top_eigenvalue(at)
    with kernels.disabled():
        expected = torch.linalg.eigvalsh(full_hessian(at))
    assert len(expected) > PRODUCTS
    assert found == pytest.approx(float(expected[-1]), rel=0.02)
    assert top_eigenvalue(at, products=len(expected)) == pytest.approx(float(expected[-1]), rel=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in search.state_dict().items())


class Reference(L.Callback):
    """The cosine of the alphas' gradient and that of order 2, by a difference in float64 so small that no ReLU switches."""

    def __init__(self) -> None:
        self.cosines: list[float] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SearchModule)
        problem = pl_module.problem(batch, trainer.optimizers[0])
        difference = FiniteDifference(epsilon=1e-7, in_float64=True)
        first, second = (torch.cat(list(h(problem).total.values())) for h in (FirstOrder(), difference))
        self.cosines.append(float(first @ second / (first.norm() * second.norm())))


def test_the_cosine_to_the_exact_gradient_is_the_mean_over_an_epoch(tmp_path: Path) -> None:
    """Also without loggers; and an epoch that was cut in two has the mean over both parts."""
    reference, diagnostics = Reference(), Diagnostics(orders_every_n_steps=None, exact_every_n_steps=1, gap_batches=0)
    fit(tmp_path, reference, diagnostics, EpochMetrics(tmp_path))
    assert len(reference.cosines) == 2 * BATCHES
    rows = read_csv(tmp_path / "metrics.csv")
    for row, cosines in zip(rows, (reference.cosines[:BATCHES], reference.cosines[BATCHES:]), strict=True):
        assert float(row["exact_cosine"]) == pytest.approx(sum(cosines) / BATCHES, rel=1e-4)
    assert min(reference.cosines) < 0.9999, "orders differ"
    assert diagnostics.state_dict() == {"of_epoch": {}}
    resumed = Diagnostics(orders_every_n_steps=None, exact_every_n_steps=1, gap_batches=0)
    resumed.load_state_dict({"of_epoch": {"exact_cosine": [0.5] * BATCHES}})
    trainer, _ = fit(tmp_path, resumed, epochs=1)
    mean = (sum(reference.cosines[:BATCHES]) / BATCHES + 0.5) / 2
    assert float(trainer.callback_metrics["exact_cosine"]) == pytest.approx(mean, rel=1e-4)


def test_one_hot_mixing_weights_of_an_architecture() -> None:
    candidates = {"edge": ("none", "conv"), "dropped": ("none", "conv"), "inputs": ("a", "b", "c")}
    like = {key: torch.zeros(len(names)) for key, names in candidates.items()}
    found = one_hot({"edge": "conv", "dropped": None, "inputs": ("a", "c")}, candidates, like)
    assert {key: row.tolist() for key, row in found.items()} == {
        "edge": [0.0, 1.0],
        "dropped": [0.0, 0.0],
        "inputs": [1.0, 0.0, 1.0],
    }
