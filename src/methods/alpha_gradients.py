"""Alpha gradients: what a method makes of the run's hypergradient. DARTS takes it as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from src.bilevel.hypergradient import AlphaGradient, Bilevel, Hypergradient
from src.common.errors import must_be

Tensors = dict[str, Tensor]


class AlphaGradientRule(Protocol):
    """What a method asks of it. `fits` are the kinds of relaxations that it makes sense with."""

    fits: ClassVar[frozenset[str]]

    def __call__(self, hypergradient: Hypergradient, problem: Bilevel) -> AlphaGradient:
        """Return the alphas' gradient at one point of the search, made of that of `hypergradient` here and nearby."""
        ...


@dataclass(frozen=True)
class FlatMinimum:
    """The gradient of the loss after a step uphill, L(a + rho g(a)) with g = grad L: A2M, which looks for flat minima.

    With g' = g(a + rho g(a)), that gradient is (I + rho H) g', and H g' is taken as a central difference:
    g' + rho [g(a + epsilon g') - g(a - epsilon g')] / (2 epsilon). No gradient is normalised. Implements the official code
    of A2M (AI-Tech-Research-Lab/AsquaredM, optimizers/darts/architect.py), where g is of order 1. Here g is the
    hypergradient of the run, of either order. A penalty of the alphas is no part of g, while that code differentiates
    Beta-DARTS' penalty along with the loss.

    Its `direct` and `correction` are those of g' with their own differences, so that they add up to the total. `arch_loss`
    is that at the alphas of the step. It costs three times the passes of the hypergradient in addition.

    The alphas must be free to move by rho g: mixing weights that are the alphas themselves leave the simplex. And g must
    be differentiable in the alphas, which that of a sampled path is not.

    Attributes:
        rho: length of the step uphill, in gradients; 0 leaves the hypergradient as it is.
        epsilon: of the difference, in gradients.
    """

    rho: float = 1e-2
    epsilon: float = 1e-2
    fits: ClassVar[frozenset[str]] = frozenset({"softmax", "sigmoid", "dirichlet", "gumbel_soft"})

    def __post_init__(self) -> None:
        if not 0 <= self.rho < float("inf"):
            raise must_be("rho", "a number of 0 or more", self.rho)
        if not 0 < self.epsilon < float("inf"):
            raise must_be("epsilon", "a number above 0", self.epsilon)

    def __call__(self, hypergradient: Hypergradient, problem: Bilevel) -> AlphaGradient:
        """Return G."""

        def at(direction: Mapping[str, Tensor], distance: float) -> AlphaGradient:
            names = list(problem.alphas)
            start = [problem.alphas[name].detach() for name in names]
            moved = torch._foreach_add(start, [direction[name] for name in names], alpha=distance)
            return hypergradient(replace(problem, alphas=dict(zip(names, moved, strict=True))))

        here = hypergradient(problem)
        uphill = at(here.total, self.rho)
        with problem.full_precision():
            ahead, behind = at(uphill.total, self.epsilon), at(uphill.total, -self.epsilon)

        def combine(there: Tensors, one: Tensors, other: Tensors) -> Tensors:
            return {
                name: term + self.rho * (one[name] - other[name]) / (2 * self.epsilon) for name, term in there.items()
            }

        return replace(
            here,
            total=combine(uphill.total, ahead.total, behind.total),
            direct=combine(uphill.direct, ahead.direct, behind.direct),
            correction=combine(uphill.correction, ahead.correction, behind.correction),
        )
