"""Perturbations of the mixing weights in the weights' step, so that the weights do not rely on one exact mixture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from src.common.errors import must_be
from src.methods.schedules import Linear, Progress, Schedule, not_negative_at
from src.spaces.relaxed import by_row

Tensors = dict[str, Tensor]


class Perturbation(Protocol):
    """What a method asks of a perturbation. `fits` are the kinds of relaxations that it makes sense with."""

    fits: ClassVar[frozenset[str]]

    def __call__(
        self,
        mixing: Mapping[str, Tensor],
        loss: Callable[[Mapping[str, Tensor]], Tensor],
        progress: Progress,
        generator: torch.Generator,
    ) -> Tensors:
        """Return the mixing weights {key: (candidates,)} of the weights' step.

        `loss` is the loss of that step's batch as a function of the mixing weights, at the present weights, of the
        network in eval mode: BatchNorms take their running statistics. Its value and its gradient are means over all
        processes, and `generator` is in the same state on all of them.
        """
        ...


@dataclass(frozen=True)
class RandomSmoothing:
    """Uniform noise on the mixing weights: SDARTS-RS.

    Adds U(-e, e) to each weight, clips to [0, 1] and divides each key's weights by their sum; a key whose weights all
    become 0 gets the one-hot vector of its largest. Implements equation 6 of arXiv 2002.05283, with the projection of
    the official code.

    Attributes:
        radius: e; from 0.03 towards 0.3 over the epochs.
    """

    radius: Schedule = Linear(0.03, 0.3, reaches_last=False)
    fits: ClassVar[frozenset[str]] = frozenset({"softmax", "simplex"})

    def __call__(
        self,
        mixing: Mapping[str, Tensor],
        loss: Callable[[Mapping[str, Tensor]], Tensor],
        progress: Progress,
        generator: torch.Generator,
    ) -> Tensors:
        """Return mixing weights with noise; `loss` is not evaluated.

        Raises:
            ConfigError: the radius is negative in this epoch.
        """
        return _smoothed(mixing, not_negative_at("radius", self.radius, progress), generator)


@dataclass(frozen=True)
class AdversarialSmoothing:
    """The worst mixing weights nearby: SDARTS-ADV.

    Ascends the loss within e of each mixing weight, from a random point: `steps` times 2 e / `steps` along the sign of
    the gradient, each followed by the projections to the distance e and to mixing weights. The result is taken if its loss
    is higher than that of the mixing weights before, else those are. Implements equation 7 of arXiv 2002.05283 as the
    official code does (attacker/perturb.py): in eval mode, which the paper does not say. With the running statistics of
    BatchNorms the loss is the same function on all processes, and what is perturbed is the mixture alone.

    It costs `steps` passes for the mixing weights and two forward passes.

    Attributes:
        radius: e; from 0.03 towards 0.3 over the epochs.
        steps: 7 in the official code.
    """

    radius: Schedule = Linear(0.03, 0.3, reaches_last=False)
    steps: int = 7
    fits: ClassVar[frozenset[str]] = frozenset({"softmax", "simplex"})

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise must_be("steps", "1 or more", self.steps)

    def __call__(
        self,
        mixing: Mapping[str, Tensor],
        loss: Callable[[Mapping[str, Tensor]], Tensor],
        progress: Progress,
        generator: torch.Generator,
    ) -> Tensors:
        """Return mixing weights whose loss is not lower than that of `mixing`.

        Raises:
            ConfigError: the radius is negative in this epoch.
        """
        radius = not_negative_at("radius", self.radius, progress)
        before = {key: row.detach() for key, row in mixing.items()}
        found = _smoothed(before, radius, generator)
        for _ in range(self.steps):
            rows = {key: row.requires_grad_() for key, row in found.items()}
            gradients = torch.autograd.grad(loss(rows), list(rows.values()), allow_unused=True, materialize_grads=True)
            moved = {
                key: row.detach() + 2 * radius / self.steps * gradient.sign()
                for (key, row), gradient in zip(rows.items(), gradients, strict=True)
            }
            found = project({key: row.clamp(before[key] - radius, before[key] + radius) for key, row in moved.items()})
        with torch.no_grad():
            rises = loss(found) > loss(before)
        return {key: torch.where(rises, row, before[key]) for key, row in found.items()}


def _smoothed(mixing: Mapping[str, Tensor], radius: float, generator: torch.Generator) -> Tensors:
    """Return mixing weights with uniform noise, drawn on the CPU, so that every device sees the same."""
    return project(
        {
            key: row.detach()
            + radius * (2 * torch.rand(row.shape, dtype=torch.float64, generator=generator).to(row) - 1)
            for key, row in mixing.items()
        }
    )


def project(rows: Mapping[str, Tensor]) -> Tensors:
    """Return mixing weights of sum 1: clipped to [0, 1] and divided by their sum, or one-hot where all are clipped to 0."""

    def onto_simplex(row: Tensor) -> Tensor:
        clipped = row.clamp(0, 1)
        total = clipped.sum(dim=1, keepdim=True)
        one_hot = torch.zeros_like(row).scatter_(1, row.argmax(dim=1, keepdim=True), 1.0)
        return torch.where(total > 0, clipped / total, one_hot)

    return by_row(onto_simplex, rows)
