"""The numbers of the diagnostics, against others' ways to compute them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from methods.plain import CLASSES, SHAPE, search_module
from torch import Tensor

from src.bilevel.hypergradient import Bilevel
from src.bilevel.unroll import Tensors, VirtualStep
from src.callbacks.measured import PRODUCTS, one_hot, top_eigenvalue
from src.fast import kernels
from src.fast.fused import FusedSupernet
from src.methods.method import Method


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


def test_one_hot_mixing_weights_of_an_architecture() -> None:
    candidates = {"edge": ("none", "conv"), "dropped": ("none", "conv"), "inputs": ("a", "b", "c")}
    like = {key: torch.zeros(len(names)) for key, names in candidates.items()}
    found = one_hot({"edge": "conv", "dropped": None, "inputs": ("a", "c")}, candidates, like)
    assert {key: row.tolist() for key, row in found.items()} == {
        "edge": [0.0, 1.0],
        "dropped": [0.0, 0.0],
        "inputs": [1.0, 0.0, 1.0],
    }
