"""The numbers of the diagnostics, against others' ways to compute them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from src.bilevel.hypergradient import Bilevel
from src.bilevel.unroll import Tensors, VirtualStep
from src.callbacks.diagnostics import one_hot, top_eigenvalue


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
    assert top_eigenvalue(problem(hessian)) == pytest.approx(2.0, rel=0.02)
    assert str(np.random.get_state()) == state  # noqa: NPY002


def test_one_hot_mixing_weights_of_an_architecture() -> None:
    candidates = {"edge": ("none", "conv"), "dropped": ("none", "conv"), "inputs": ("a", "b", "c")}
    like = {key: torch.zeros(len(names)) for key, names in candidates.items()}
    found = one_hot({"edge": "conv", "dropped": None, "inputs": ("a", "c")}, candidates, like)
    assert {key: row.tolist() for key, row in found.items()} == {
        "edge": [0.0, 1.0],
        "dropped": [0.0, 0.0],
        "inputs": [1.0, 0.0, 1.0],
    }
