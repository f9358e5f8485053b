"""The paper's cells and supernet, written to be read: the reference that faster forms are held against.

Implements section 2.1 and appendix A.1.1 of arXiv 1806.09055.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from src.common.errors import ConfigError, unknown
from src.spaces.choices import InputChoice, LayerChoice
from src.spaces.cnn.genotypes import CANDIDATES, EDGES_PER_NODE, MAX_NODES, edge_key, switch_key
from src.spaces.cnn.operations import OPERATIONS, FactorizedReduce, ReLUConvBN, import_operations


@dataclass(frozen=True)
class CellPlan:
    """Where a cell stands in the stack: its kind, its channels, and what comes in."""

    kind: str
    channels: int
    channels_before_last: int
    channels_last: int
    reduction_last: bool

    @property
    def reduction(self) -> bool:
        """Whether the cell halves height and width."""
        return self.kind == "reduce"


def plan_cells(*, cells: int, channels: int, stem_multiplier: int, nodes: int) -> list[CellPlan]:
    """Return the plan of each cell: reduction cells at 1/3 and 2/3 of the depth, each doubling the channels.

    The stem has `stem_multiplier` * channels channels, a cell's output `nodes` * channels.

    Raises:
        ConfigError: a number is out of range.
    """
    ranges = {
        "cells": (cells, 3),
        "channels": (channels, 1),
        "nodes": (nodes, 1),
        "stem_multiplier": (stem_multiplier, 1),
    }
    for name, (value, lowest) in ranges.items():
        if value < lowest:
            raise ConfigError(f"space.{name}={value}, allowed are {lowest} and more")
    if nodes > MAX_NODES:
        raise ConfigError(f"space.nodes={nodes}, allowed are 1 to {MAX_NODES}")
    before_last = last = stem_multiplier * channels
    reduction_last = False
    plans = []
    for index in range(cells):
        reduction = index in (cells // 3, 2 * cells // 3)
        channels *= 2 if reduction else 1
        plans.append(CellPlan("reduce" if reduction else "normal", channels, before_last, last, reduction_last))
        before_last, last, reduction_last = last, nodes * channels, reduction
    return plans


def preprocess(plan: CellPlan, *, affine: bool) -> tuple[nn.Module, nn.Module]:
    """Return the modules that bring the outputs of cells k-2 and k-1 to this cell's channels and its input's size."""
    if plan.reduction_last:
        first: nn.Module = FactorizedReduce(plan.channels_before_last, plan.channels, affine=affine)
    else:
        first = ReLUConvBN(plan.channels_before_last, plan.channels, 1, affine=affine)
    return first, ReLUConvBN(plan.channels_last, plan.channels, 1, affine=affine)


def stem(channels_in: int, channels_out: int) -> nn.Module:
    """Return the first convolution; its BatchNorm has parameters in search too, since no alpha weighs it."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
    )


def searched_operations(candidates: Sequence[str], stride: int, channels: int) -> dict[str, nn.Module]:
    """Return the candidates of an edge, in the form in which they are searched."""
    return {name: OPERATIONS[name](channels, stride, True) for name in candidates}


class Node(nn.Module):
    """A node of a cell: an edge from every earlier state, of which two are kept in the end."""

    def __init__(self, index: int, plan: CellPlan, candidates: Sequence[str]) -> None:
        super().__init__()
        keys = [edge_key(plan.kind, index, state) for state in range(index)]
        self.edges = nn.ModuleList()
        for state, key in enumerate(keys):
            stride = 2 if plan.reduction and state < 2 else 1
            build = partial(searched_operations, candidates, stride)
            self.edges.append(LayerChoice.of_width(build, plan.channels, key=key))
        self.switch = InputChoice(keys, n_chosen=EDGES_PER_NODE, key=switch_key(plan.kind, index))

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """Return the sum of all edges, each applied to its state."""
        return self.switch([edge(state) for edge, state in zip(self.edges, states, strict=True)])


class Cell(nn.Module):
    """A cell of the supernet: a directed acyclic graph of all candidate operations."""

    def __init__(self, plan: CellPlan, *, nodes: int, candidates: Sequence[str]) -> None:
        super().__init__()
        self.preprocess0, self.preprocess1 = preprocess(plan, affine=False)
        self.nodes = nn.ModuleList(Node(index, plan, candidates) for index in range(2, 2 + nodes))

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        """Map the outputs of cells k-2 and k-1 to this cell's output (N, nodes * channels, H, W)."""
        states = [self.preprocess0(before_last), self.preprocess1(last)]
        for node in self.nodes:
            states.append(node(states))
        return torch.cat(states[2:], dim=1)


class Supernet(nn.Module):
    """The network that holds every architecture of the CNN cell space; defaults are the paper's search on CIFAR-10.

    `operations` names modules that register operations of your own, which `candidates` can then list.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int],
        num_classes: int,
        channels: int = 16,
        cells: int = 8,
        nodes: int = 4,
        stem_multiplier: int = 3,
        candidates: Sequence[str] = CANDIDATES,
        operations: Sequence[str] = (),
    ) -> None:
        super().__init__()
        import_operations(operations)
        check_candidates(candidates)
        plans = plan_cells(cells=cells, channels=channels, stem_multiplier=stem_multiplier, nodes=nodes)
        self.stem = stem(input_shape[0], stem_multiplier * channels)
        self.cells = nn.ModuleList(self.cell(plan, nodes=nodes, candidates=candidates) for plan in plans)
        self.classifier = nn.Linear(nodes * plans[-1].channels, num_classes)

    def cell(self, plan: CellPlan, *, nodes: int, candidates: Sequence[str]) -> nn.Module:
        """Return the cell for a place in the stack."""
        return Cell(plan, nodes=nodes, candidates=candidates)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        before_last = last = self.stem(images)
        for cell in self.cells:
            before_last, last = last, cell(before_last, last)
        return self.classifier(last.mean(dim=(2, 3)))


def check_candidates(candidates: Sequence[str]) -> None:
    """Raise a `ConfigError` unless `candidates` are distinct names of operations with one besides `none`."""
    for name in candidates:
        if name not in OPERATIONS:
            raise unknown("operation in space.candidates:", name, OPERATIONS)
    if len(set(candidates)) != len(candidates) or not set(candidates) - {"none"}:
        raise ConfigError(
            f"space.candidates={list(candidates)}, allowed are distinct operations, one at least not none"
        )
