"""Optimisers that a method brings for its alphas. Without one, a method's alphas are stepped by the run's `optimizer.alphas`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, overload

import torch
from torch import nn

from src.common.errors import must_be
from src.spaces.relaxed import by_size


class AlphaOptimizer(Protocol):
    """What a method asks of an optimiser of its own. `fits` are the kinds of relaxations whose alphas it can step."""

    fits: ClassVar[frozenset[str]]

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimiser of the alphas, and of the edges' weights where the method has them."""
        ...


@dataclass(frozen=True)
class ExponentiatedGradient:
    """Exponentiated gradient descent on the simplex: GAEA (algorithm 1 of arXiv 2004.07802).

    It has neither momentum nor weight decay; the penalty `RelativeEntropy` is what weight decay is on the simplex.

    Attributes:
        lr: the learning rate; 0.1 in the configs of the official code.
        floor: the least weight of a candidate, from which it can still grow; that of the official code is 1e-5.
    """

    lr: float = 0.1
    floor: float = 1e-5
    fits: ClassVar[frozenset[str]] = frozenset({"simplex"})

    def __post_init__(self) -> None:
        if not 0 < self.lr < float("inf"):
            raise must_be("lr", "above 0", self.lr)
        if not 0 < self.floor < 0.1:
            raise must_be("floor", "above 0 and below 0.1", self.floor)

    def __call__(self, parameters: Iterable[nn.Parameter]) -> ExponentiatedGradientOptimizer:
        """Return the optimiser."""
        return ExponentiatedGradientOptimizer(parameters, lr=self.lr, floor=self.floor)


class ExponentiatedGradientOptimizer(torch.optim.Optimizer):
    """Steps vectors on the simplex: p <- p exp(-lr g) / sum, then p <- max(p, floor) / sum.

    Adding a number to all of g changes nothing, and no gradient overflows. The official code
    (cnn/architect/architect_edarts.py) applies the floor before it divides by the sum, so that there a constant in g
    moves the floor; and it has none for the weights of edges, which then may become 0 for good. Both differ from here
    only for weights at the floor.

    Args:
        params: vectors of positive numbers with the sum 1.
        lr: the learning rate.
        floor: the least entry, up to the last division.
    """

    def __init__(self, params: Iterable[nn.Parameter], *, lr: float = 0.1, floor: float = 1e-5) -> None:
        super().__init__(params, {"lr": lr, "floor": floor})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all vectors that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            vectors = {str(place): p for place, p in enumerate(group["params"]) if p.grad is not None}
            for keys in by_size(vectors):
                rows = torch.stack([vectors[key] for key in keys])
                gradients = torch.stack([vectors[key].grad for key in keys])
                # softmax(log p - lr g) is p exp(-lr g) / sum, without an overflow.
                rows = (rows.log() - group["lr"] * gradients).softmax(dim=1).clamp_min(group["floor"])
                rows /= rows.sum(dim=1, keepdim=True)
                for key, row in zip(keys, rows.unbind(), strict=True):
                    vectors[key].copy_(row)
        return loss
