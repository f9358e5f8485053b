"""Mixed operations: modules that replace a LayerChoice during a search. DARTS keeps the choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.common.errors import ConfigError, must_be
from src.spaces.choices import LayerChoice

MixedOp = Callable[[LayerChoice], nn.Module]


@dataclass(frozen=True)
class PartialChannels:
    """The candidates see only 1 / k of the channels: PC-DARTS.

    Implements section 3.2 of arXiv 1907.05737. It needs choices made by `LayerChoice.of_width`, since it rebuilds their
    candidates with fewer channels.

    Attributes:
        k: 4 in the paper; 1 is DARTS.
    """

    k: int = 4

    def __post_init__(self) -> None:
        if self.k < 1:
            raise must_be("k", "1 or more", self.k)

    def __call__(self, choice: LayerChoice) -> nn.Module:
        """Return the module that replaces `choice`; the choice itself if its candidates see all channels.

        Raises:
            ConfigError: the choice has no width, or one that k does not divide.
        """
        if self.k == 1:
            return choice
        if choice.width is None:
            raise ConfigError(
                f"{type(self).__name__} needs choices made by LayerChoice.of_width, {choice.key!r} has a fixed width"
            )
        if choice.width % self.k:
            raise ConfigError(
                f"{type(self).__name__} needs a number of channels that k={self.k} divides, {choice.key!r} has {choice.width}"
            )
        return PartialChoice(choice.with_width(choice.width // self.k), self.k)


class PartialChoice(nn.Module):
    """The first 1 / k of the channels pass through a choice, the others bypass it, and all are shuffled."""

    def __init__(self, choice: LayerChoice, k: int) -> None:
        super().__init__()
        self.choice = choice
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *) to (N, C, *'); where the candidates halve the size, a max pool of size 2 halves the bypass."""
        channels = x.shape[1] // self.k
        mixed = self.choice(x[:, :channels])
        others = x[:, channels:]
        if mixed.shape[2:] != x.shape[2:]:
            # ceil_mode: on odd sides, stride 2 rounds up; on even sides it is the official code.
            pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[x.dim() - 2]
            others = pool(others, 2, ceil_mode=True)
        return shuffled(torch.cat([mixed, others], dim=1), self.k)


def shuffled(x: Tensor, k: int) -> Tensor:
    """Return x (N, C, *) with its channels taken as k groups, and the first of each group first.

    So the next operation sees channels of all groups.
    """
    return x.unflatten(1, (k, -1)).transpose(1, 2).flatten(1, 2)
