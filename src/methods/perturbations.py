"""Perturbations of the mixing weights in the weights' step, so that the weights do not rely on one exact mixture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from src.common.errors import must_be
from src.methods.schedules import Linear, Progress, Schedule, value_at
from src.spaces.relaxed import by_size

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

        `loss` is the loss of that step's batch as a function of the mixing weights, at the present weights. `generator`
        is in the same state on all processes.
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
        radius = value_at(self.radius, progress)
        if not radius >= 0:
            raise must_be("radius", "0 or more in every epoch", f"{radius:g} in epoch {progress.epoch}")
        noisy = {
            key: row.detach()
            + radius * (2 * torch.rand(row.shape, dtype=torch.float64, generator=generator).to(row) - 1)
            for key, row in mixing.items()
        }
        return project(noisy)


def project(rows: Mapping[str, Tensor]) -> Tensors:
    """Return mixing weights of sum 1: clipped to [0, 1] and divided by their sum, or one-hot where all are clipped to 0."""
    result: Tensors = {}
    for keys in by_size(rows):
        row = torch.stack([rows[key] for key in keys])
        clipped = row.clamp(0, 1)
        total = clipped.sum(dim=1, keepdim=True)
        one_hot = torch.zeros_like(row).scatter_(1, row.argmax(dim=1, keepdim=True), 1.0)
        result.update(zip(keys, torch.where(total > 0, clipped / total, one_hot).unbind(), strict=True))
    return result
