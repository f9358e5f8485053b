"""What the supernet and the evaluation network of the CNN cell space share: the plan of the stack, and what is not searched.

Implements section 3.1 of arXiv 1806.09055, with the official code's stem for ImageNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from src.common.errors import must_be, unknown
from src.spaces.cnn.genotypes import KINDS, MAX_NODES
from src.spaces.cnn.modules import FactorizedReduce, ReLUConvBN

# By how many halvings each stem shrinks an image before the first cell, and its default `stem_multiplier`.
STEMS = {"cifar": 0, "imagenet": 3}
_MULTIPLIERS = {"cifar": 3, "imagenet": 1}


@dataclass(frozen=True)
class CellPlan:
    """Where a cell stands in the stack: its kind, its channels, what comes in, and how many nodes go out."""

    kind: str
    channels: int
    channels_before_last: int
    channels_last: int
    reduction_last: bool
    joined: int

    @property
    def channels_out(self) -> int:
        """The channels of the cell's output, which joins `joined` nodes."""
        return self.joined * self.channels

    @property
    def reduction(self) -> bool:
        """Whether the cell halves height and width."""
        return self.kind == "reduce"


@dataclass(frozen=True)
class Stack:
    """The plan of a whole network.

    Attributes:
        stem: its kind, one of `STEMS`.
        stem_channels: of the stem's output.
        cells: the plan of each cell.
    """

    stem: str
    stem_channels: int
    cells: list[CellPlan]

    @property
    def halvings(self) -> int:
        """By how many halvings the image has shrunk after the last reduction cell."""
        return STEMS[self.stem] + sum(plan.reduction for plan in self.cells)


def plan_stack(
    *, cells: int, channels: int, nodes: int | Mapping[str, int], stem: str, stem_multiplier: int | None
) -> Stack:
    """Return the plan of a network: reduction cells at 1/3 and 2/3 of the depth, each doubling the channels.

    Args:
        cells: their number.
        channels: of the first cell's nodes.
        nodes: that each cell's output joins, so that it has `nodes` times the cell's channels; by kind if they differ.
        stem: `cifar` (one convolution) or `imagenet` (three, each halving height and width).
        stem_multiplier: the stem has `stem_multiplier` * channels channels; None is 3 for cifar, 1 for imagenet.

    Raises:
        ConfigError: an argument is out of its range.
    """
    if stem not in STEMS:
        raise unknown("stem", stem, STEMS)
    multiplier = _MULTIPLIERS[stem] if stem_multiplier is None else stem_multiplier
    ranges = {"cells": (cells, 3), "channels": (channels, 1), "stem_multiplier": (multiplier, 1)}
    for name, (value, lowest) in ranges.items():
        if value < lowest:
            raise must_be(name, f"{lowest} or more", value)
    joined = dict.fromkeys(KINDS, nodes) if isinstance(nodes, int) else nodes
    for count in joined.values():
        if not 1 <= count <= MAX_NODES:
            raise must_be("nodes", f"1 to {MAX_NODES}", count)
    if stem == "imagenet" and multiplier * channels < 2:
        raise must_be("channels", "2 or more for the imagenet stem, whose first half has half as many", channels)
    stem_channels = before_last = last = multiplier * channels
    reduction_last = stem == "imagenet"  # the stem's second output is half as large as its first
    plans = []
    for index in range(cells):
        reduction = index in (cells // 3, 2 * cells // 3)
        channels *= 2 if reduction else 1
        kind = "reduce" if reduction else "normal"
        plan = CellPlan(kind, channels, before_last, last, reduction_last, joined[kind])
        plans.append(plan)
        before_last, last, reduction_last = last, plan.channels_out, reduction
    return Stack(stem, stem_channels, plans)


def stems(stack: Stack, channels_in: int) -> tuple[nn.Module, nn.Module]:
    """Return the module from the images to the first cell's first input, and the one from there to its second.

    Their BatchNorms have parameters in a search too, since no mixing weight scales them.
    """
    channels = stack.stem_channels
    if stack.stem == "cifar":
        first = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        return first, nn.Identity()
    first = nn.Sequential(
        nn.Conv2d(channels_in, channels // 2, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels // 2),
        nn.ReLU(),
        nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels),
    )
    return first, ReLUConvBN(channels, channels, 3, stride=2, affine=True)


def preprocess(plan: CellPlan, *, affine: bool) -> tuple[nn.Module, nn.Module]:
    """Return the modules that bring the outputs of cells k-2 and k-1 to this cell's channels and its input's size."""
    if plan.reduction_last:
        first: nn.Module = FactorizedReduce(plan.channels_before_last, plan.channels, affine=affine)
    else:
        first = ReLUConvBN(plan.channels_before_last, plan.channels, 1, affine=affine)
    return first, ReLUConvBN(plan.channels_last, plan.channels, 1, affine=affine)
