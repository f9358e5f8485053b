"""Mixed operations: modules that stand in the place of a LayerChoice while searching. DARTS has the choice itself."""

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
    """Only 1 / k of the channels goes through the candidates: PC-DARTS.

    Implements section 3.2 of arXiv 1907.05737. It needs choices that were made by `LayerChoice.of_width`, since their
    candidates are made anew, for fewer channels.

    Attributes:
        k: 4 in the paper; 1 is DARTS.
    """

    k: int = 4

    def __post_init__(self) -> None:
        if self.k < 1:
            raise must_be("k", "1 or more", self.k)

    def __call__(self, choice: LayerChoice) -> nn.Module:
        """Return the module for the place of `choice`; the choice itself if all channels go through it.

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
    """The first 1 / k of the channels through a choice, the others past it, then all shuffled."""

    def __init__(self, choice: LayerChoice, k: int) -> None:
        super().__init__()
        self.choice = choice
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *) to (N, C, *'); where the candidates halve the size, a max pool of size 2 does so to the others.

        The shuffle takes the channels as k groups and puts the first of each group first, so that the next operation's
        share holds channels of all groups.
        """
        channels = x.shape[1] // self.k
        mixed = self.choice(x[:, :channels])
        others = x[:, channels:]
        if mixed.shape[2:] != x.shape[2:]:
            # As many pixels as stride 2 leaves of an odd side; on even sides the same as in the official code.
            pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[x.dim() - 2]
            others = pool(others, 2, ceil_mode=True)
        joined = torch.cat([mixed, others], dim=1)
        return joined.unflatten(1, (self.k, channels)).transpose(1, 2).flatten(1, 2)
