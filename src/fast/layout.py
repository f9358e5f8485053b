"""A cell by its source states: what forms that compute several edges at once start from.

Both fast forms read a cell through `Layout`, and take it only as src/spaces/cnn/cells.py makes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.fast import kernels
from src.fast.known import Known, is_unedited, known
from src.methods.mixed_ops import PartialChoice
from src.spaces.choices import InputChoice, LayerChoice
from src.spaces.cnn.cells import Node
from src.spaces.cnn.modules import Zero


class PlainFormNeededError(Exception):
    """Raised in a forward pass that a fast form cannot compute as the plain form does."""


_plain = False


@contextmanager
def plain_form() -> Iterator[None]:
    """Make all networks compute in their plain form within the block: to count its operators, to call its choices."""
    global _plain  # noqa: PLW0603
    _plain = True
    try:
        with kernels.disabled():
            yield
    finally:
        _plain = False


def plain_form_is_wanted() -> bool:
    """Return whether this is within a block of `plain_form`."""
    return _plain


class Edge(NamedTuple):
    """An edge, its node's choice of edges, and its place among them.

    `skip` is the place of the candidate that computes what the edge's auxiliary does; None where the edge has no
    auxiliary, or one with a column of its own. `k` is that of partial channels: the candidates see 1 / k of them.
    """

    edge: LayerChoice
    switch: InputChoice
    place: int
    skip: int | None = None
    k: int = 1

    @classmethod
    def of(cls, module: LayerChoice | PartialChoice, switch: InputChoice, place: int) -> Edge:
        """Return an edge; its auxiliary needs no column if it and its candidate are nn.Identity."""
        edge, k = (module.choice, module.k) if isinstance(module, PartialChoice) else (module, 1)
        skip = None
        if edge.auxiliary is not None and edge.auxiliary_of in edge.candidates:
            pair = known(edge.auxiliary), known(edge.candidates[edge.auxiliary_of])
            if all(what is not None and what.kind is nn.Identity for what in pair):
                skip = list(edge.candidates).index(edge.auxiliary_of)
        return cls(edge, switch, place, skip, k)

    @property
    def column(self) -> list[nn.Module]:
        """The auxiliary, where it has a column of its own."""
        return [] if self.edge.auxiliary is None or self.skip is not None else [self.edge.auxiliary]

    def mixing_weights(self, device: torch.device, *, sampled: bool = False) -> Tensor | None:
        """Return the weights of the outputs of all columns in the node; None where the edge is not their sum.

        Of an edge with partial channels, that of the channels that go past the candidates comes last. `sampled` edges are
        those of which one candidate runs; of others there are None then.
        """
        weights, edge_weights = self._weights(device), self.switch.weights
        if weights is None or self.edge._answer or self.switch._answer or (self.edge.path is not None) != sampled:
            return None
        if self.k > 1:
            weights = torch.cat([weights, weights.new_ones(1)])
        if edge_weights is None:
            return weights if self.switch.over_edges else None
        return (
            weights * edge_weights[self.place]
            if _is_vector(edge_weights, len(self.switch.spec.inputs), device)
            else None
        )

    def _weights(self, device: torch.device) -> Tensor | None:
        """Return the weights of the candidates, with that of the auxiliary in its place; None where there is no such sum."""
        weights, beta = self.edge.weights, self.edge.auxiliary_weight
        if not _is_vector(weights, len(self.edge.candidates), device):
            return None
        if self.edge.auxiliary is None:
            return weights
        if beta is None:
            return None if self.column else weights
        if self.skip is None:
            return torch.cat([weights, beta[None]])
        return weights + F.pad(beta[None], (self.skip, len(weights) - 1 - self.skip))


def _is_vector(weights: object, length: int, device: torch.device) -> TypeGuard[Tensor]:
    return (
        isinstance(weights, Tensor)
        and weights.device == device
        and weights.is_floating_point()
        and weights.shape == (length,)
    )


class Column(NamedTuple):
    """One candidate, or the auxiliaries, on all edges that leave a state."""

    operations: list[nn.Module]
    known: list[Known | None]

    @property
    def zero(self) -> int | None:
        """The stride of `none`, or None for any other candidate."""
        first = self.known[0]
        if first is None or first.kind is not Zero or any(other != first for other in self.known):
            return None
        return cast(int, first.arguments[0])


class Layout:
    """What a cell is made of. It is made anew when one of its modules was edited.

    Attributes:
        inputs: the two preprocessing modules, each with what is known of it.
        nodes: their number.
        states: of each state with edges, the edges that leave it, to the last nodes.
        columns: of each state with edges, the candidates, and perhaps the auxiliaries.
        k: the candidates see the first 1 / k of a state's channels; the others go past them.
        groups: states that are complete at once; each of a group has edges to the same nodes.
        is_usable: whether the cell is as src/spaces/ makes it: nothing edited, hooked, shared or without operations.
    """

    def __init__(self, cell: nn.Module) -> None:
        inputs = [cast(nn.Module, module) for module in (cell.preprocess0, cell.preprocess1)]
        self.inputs = [(module, known(module)) for module in inputs]
        nodes = cast(Sequence[Node], cell.nodes)
        self.nodes = len(nodes)
        self.states: list[list[Edge]] = []
        self.columns: list[list[Column]] = []
        self.k = 1
        self.groups = [[0, 1], *([state] for state in range(2, 1 + self.nodes))]
        self.is_usable = self.nodes > 0 and all(map(self._is_plain, nodes, range(2, 2 + self.nodes)))
        if not self.is_usable:
            return
        for state in range(1 + self.nodes):
            edges = [
                Edge.of(cast(LayerChoice | PartialChoice, node.edges[state]), node.switch, state)
                for node in nodes[max(0, state - 1) :]
            ]
            names = list(edges[0].edge.candidates)
            self.k = self.k if self.states else edges[0].k
            self.is_usable &= all(edge.k == self.k for edge in edges)
            self.is_usable &= all(list(edge.edge.candidates) == names for edge in edges)
            self.is_usable &= len({len(edge.column) for edge in edges}) == 1
            if not self.is_usable:
                return
            columns = [[edge.edge.candidates[name] for edge in edges] for name in names]
            columns += [[*column] for column in zip(*(edge.column for edge in edges), strict=True)]
            self.states.append(edges)
            self.columns.append([Column(column, [*map(known, column)]) for column in columns])
            self.is_usable &= any(column.zero is None for column in self.columns[-1])
        # The order in which two edges call one module is part of the result.
        modules = [
            module
            for operation in (
                *inputs,
                *(o for columns in self.columns for column in columns for o in column.operations),
            )
            for module in operation.modules()
        ]
        self.is_usable &= len(modules) == len({id(module) for module in modules})

    @staticmethod
    def _is_plain(node: nn.Module, states: int) -> bool:
        """Return whether a node, its choices of candidates and of edges are what src/spaces/ makes them, unedited."""
        return (
            is_unedited(node, Node)
            and is_unedited(cast(Node, node).switch, InputChoice)
            and len(cast(Node, node).edges) == states
            and all(map(_is_plain_edge, cast(Node, node).edges))
        )


def _is_plain_edge(edge: nn.Module) -> bool:
    if isinstance(edge, PartialChoice):
        return is_unedited(edge, PartialChoice) and is_unedited(edge.choice, LayerChoice)
    return is_unedited(edge, LayerChoice)


class Before:
    """The random numbers and buffers before operations are called, so that the plain form can call them again."""

    def __init__(self, operations: Sequence[nn.Module], device: torch.device) -> None:
        self._random: list[Tensor] = []
        self._device = device if device.type == "cuda" else None
        if operations:
            self._random = self._states()
        self._buffers = [
            (module, name, buffer, buffer.clone())
            for operation in operations
            for module in operation.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def random_numbers_were_drawn(self) -> bool:
        """Return whether a generator of torch moved."""
        return any(not torch.equal(a, b) for a, b in zip(self._random, self._states(), strict=False))

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        if self._random:
            torch.set_rng_state(self._random[0])
        if len(self._random) > 1:
            torch.cuda.set_rng_state(self._random[1], cast(torch.device, self._device))
        for module, name, buffer, value in self._buffers:
            module._buffers[name] = buffer.copy_(value)

    def _states(self) -> list[Tensor]:
        """Return the states of torch's generators, of the CPU and of the device."""
        states = [torch.get_rng_state()]
        if self._device is not None:
            states.append(torch.cuda.get_rng_state(self._device))
        return states
