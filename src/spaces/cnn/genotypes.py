"""Cells as the paper writes them, the keys of their choices, and genotypes that were published.

A genotype is the readable view of an architecture of the CNN cell space: for every node of a cell, the edges that were
kept. `Architecture` (src/architectures/architecture.py) is the general form, which files hold; each converts into the
other. Whatever has to know the keys of cells imports it from here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from src.architectures.architecture import Answer, Architecture, InputSpec, LayerSpec, Spec, options_in
from src.common.errors import ConfigError, shorten
from src.spaces.cnn.operations import CANDIDATES, OPERATIONS

KINDS = ("normal", "reduce")
EDGES_PER_NODE = 2
MAX_NODES = 32

_KIND = "|".join(KINDS)
_EDGE = re.compile(rf"({_KIND})_n([0-9]{{1,3}})_p([0-9]{{1,3}})")
_SWITCH = re.compile(rf"({_KIND})_n([0-9]{{1,3}})_switch")


class EdgePlace(NamedTuple):
    """Where an edge is: in which cell, and from which state it leads into which node."""

    kind: str
    node: int
    state: int


def edge_key(kind: str, node: int, state: int) -> str:
    """Return the key of the LayerChoice on the edge from `state` to `node`; nodes count as states from 2."""
    return f"{kind}_n{node}_p{state}"


def switch_key(kind: str, node: int) -> str:
    """Return the key of the InputChoice that keeps two of a node's edges."""
    return f"{kind}_n{node}_switch"


def may_be_empty(node: int) -> bool:
    """Return whether a node may have no edge at all: any but the first one, without which a cell could pass on nothing."""
    return node > 2


def edge_of(key: str) -> EdgePlace | None:
    """Return the edge that a key stands for, or None if it is not the key of an edge."""
    match = _EDGE.fullmatch(key)
    if match is None:
        return None
    place = EdgePlace(match[1], int(match[2]), int(match[3]))
    return place if place.state < place.node and key == edge_key(*place) else None


def split_keys(keys: Iterable[str]) -> tuple[dict[str, dict[tuple[int, int], str]], list[str]]:
    """Sort keys into the edges of cells, as {kind: {(node, state): key}}, and the keys of any other choice."""
    cells: dict[str, dict[tuple[int, int], str]] = {}
    others = []
    for key in keys:
        place = edge_of(key)
        if place is None:
            others.append(key)
        else:
            cells.setdefault(place.kind, {})[place.node, place.state] = key
    return {kind: cells[kind] for kind in KINDS if kind in cells}, others


def cell_spec(nodes: int, candidates: tuple[str, ...] = CANDIDATES) -> Spec:
    """Return the choices of normal and reduction cells of `nodes` nodes: 36 keys for the paper's four."""
    operations = LayerSpec(tuple(name for name in candidates if name != "none"))
    spec: dict[str, LayerSpec | InputSpec] = {}
    for kind in KINDS:
        for node in range(2, 2 + nodes):
            edges = tuple(edge_key(kind, node, state) for state in range(node))
            spec.update(dict.fromkeys(edges, operations))
            spec[switch_key(kind, node)] = InputSpec(edges, EDGES_PER_NODE, may_be_empty(node))
    return spec


class Edge(NamedTuple):
    """An operation applied to a state: 0 and 1 are the outputs of cells k-2 and k-1, 2 and up the cell's nodes."""

    operation: str
    state: int


NodeEdges = tuple[Edge, ...]


def live(nodes: Sequence[NodeEdges]) -> tuple[NodeEdges, ...]:
    """Return the edges of each node that carry something: those from an input of the cell, or from a node that has any."""
    carrying, result = {0, 1}, []
    for index, node in enumerate(nodes, start=2):
        result.append(tuple(edge for edge in node if edge.state in carrying))
        if result[-1]:
            carrying.add(index)
    return tuple(result)


@dataclass(frozen=True)
class Genotype:
    """The nodes of the normal and the reduction cell; node i is state i + 2, and a cell's output joins all nodes."""

    normal: tuple[NodeEdges, ...]
    reduce: tuple[NodeEdges, ...]

    @classmethod
    def from_architecture(cls, architecture: Architecture) -> Genotype:
        """Return the cells that an architecture of the CNN cell space describes, edges in the order of their states."""

        def node(kind: str, index: int) -> NodeEdges:
            kept = ((state, architecture.choices[edge_key(kind, index, state)]) for state in range(index))
            return tuple(Edge(operation, state) for state, operation in kept if isinstance(operation, str))

        switches = [_SWITCH.fullmatch(key) for key in architecture.choices]
        count = sum(match is not None and match[1] == KINDS[0] for match in switches)
        normal, reduce = (tuple(node(kind, index) for index in range(2, 2 + count)) for kind in KINDS)
        return cls(normal, reduce)

    def to_architecture(self) -> Architecture:
        """Return the architecture these cells are the readable form of."""
        choices: dict[str, Answer] = {}
        for kind, cell in zip(KINDS, (self.normal, self.reduce), strict=True):
            for index, node in enumerate(cell, start=2):
                operations = {edge.state: edge.operation for edge in node}
                for state in range(index):
                    choices[edge_key(kind, index, state)] = operations.get(state)
                choices[switch_key(kind, index)] = tuple(edge_key(kind, index, state) for state in sorted(operations))
        return Architecture(choices)

    @property
    def is_regular(self) -> bool:
        """Whether every node has two edges."""
        return all(len(node) == EDGES_PER_NODE for node in (*self.normal, *self.reduce))

    def flat(self, kind: str) -> list[tuple[str | int, ...]]:
        """Return the edges of a cell as (operation, state) or, unless every node has two, as (operation, node, state)."""
        numbered = enumerate(self.normal if kind == KINDS[0] else self.reduce, start=2)
        if self.is_regular:
            return [tuple(edge) for _, node in numbered for edge in node]
        return [(edge.operation, number, edge.state) for number, node in numbered for edge in node]

    def __str__(self) -> str:
        """Return the form that the official code prints: operations and states, two edges a node.

        Where a node has fewer, it is the form of FairDARTS' code: operations, nodes and states.
        """
        concat = f"range(2, {2 + len(self.normal)})"
        normal, reduce = (self.flat(kind) for kind in KINDS)
        return f"Genotype(normal={normal}, normal_concat={concat}, reduce={reduce}, reduce_concat={concat})"


def _cell(*edges: tuple[str, int]) -> tuple[NodeEdges, ...]:
    pairs = [Edge(*edge) for edge in edges]
    return tuple((pairs[i], pairs[i + 1]) for i in range(0, len(pairs), EDGES_PER_NODE))


_MAX, _AVG, _SKIP = "max_pool_3x3", "avg_pool_3x3", "skip_connect"
_SEP3, _SEP5, _DIL3, _DIL5 = "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"

# Edges stand in the order in which the official code prints them.
NAMED_GENOTYPES: Mapping[str, Genotype] = {
    # DARTS on CIFAR-10, first and second order (arXiv 1806.09055).
    "DARTS_V1": Genotype(
        normal=_cell((_SEP3, 1), (_SEP3, 0), (_SKIP, 0), (_SEP3, 1), (_SKIP, 0), (_SEP3, 1), (_SEP3, 0), (_SKIP, 2)),
        reduce=_cell((_MAX, 0), (_MAX, 1), (_SKIP, 2), (_MAX, 0), (_MAX, 0), (_SKIP, 2), (_SKIP, 2), (_AVG, 0)),
    ),
    "DARTS_V2": Genotype(
        normal=_cell((_SEP3, 0), (_SEP3, 1), (_SEP3, 0), (_SEP3, 1), (_SEP3, 1), (_SKIP, 0), (_SKIP, 0), (_DIL3, 2)),
        reduce=_cell((_MAX, 0), (_MAX, 1), (_SKIP, 2), (_MAX, 1), (_MAX, 0), (_SKIP, 2), (_SKIP, 2), (_MAX, 1)),
    ),
    # PC-DARTS on CIFAR-10 and on ImageNet (arXiv 1907.05737); its code calls them PC_DARTS_cifar and PC_DARTS_image.
    "PC_DARTS": Genotype(
        normal=_cell((_SEP3, 1), (_SKIP, 0), (_SEP3, 0), (_DIL3, 1), (_SEP5, 0), (_SEP3, 1), (_AVG, 0), (_DIL3, 1)),
        reduce=_cell((_SEP5, 1), (_MAX, 0), (_SEP5, 1), (_SEP5, 2), (_SEP3, 0), (_SEP3, 3), (_SEP3, 1), (_SEP3, 2)),
    ),
    "PC_DARTS_IMAGENET": Genotype(
        normal=_cell((_SKIP, 1), (_SEP3, 0), (_SEP3, 0), (_SKIP, 1), (_SEP3, 1), (_SEP3, 3), (_SEP3, 1), (_DIL5, 4)),
        reduce=_cell((_SEP3, 0), (_SKIP, 1), (_DIL5, 2), (_MAX, 1), (_SEP3, 2), (_SEP3, 1), (_SEP5, 0), (_SEP3, 3)),
    ),
}


def parse_cells(raw: Mapping[str, object], *, also: Iterable[str] = ()) -> Architecture:
    """Check answers by key and return the architecture, with as many nodes as the keys name.

    An edge may name any registered operation but `none`; an index, or a multi-hot list, counts those of `CANDIDATES`. An
    edge that its node's switch drops may be missing, and so may a switch if exactly two edges into its node are given.

    Args:
        raw: {key: answer}, with the forms of answers that `Architecture.parse` takes.
        also: names of operations to take although no module is registered for them, such as those in a run to report on.

    Raises:
        ConfigError: it is not an architecture of the CNN cell space.
    """
    nodes = 0
    for key in raw:
        match = _EDGE.fullmatch(key) or _SWITCH.fullmatch(key)
        if match is None:
            raise ConfigError(
                f"{shorten(key)!r} is not a choice of the CNN cell space, whose keys are "
                f"{{{_KIND}}}_n{{node}}_p{{state}} and {{{_KIND}}}_n{{node}}_switch"
            )
        nodes = max(nodes, int(match[2]) - 1)
    if not 1 <= nodes <= MAX_NODES:
        raise ConfigError(f"the architecture must have 1 to {MAX_NODES} nodes in a cell, got {nodes}")
    names = LayerSpec(tuple(name for name in {**OPERATIONS, **dict.fromkeys(also)} if name != "none"))
    numbered = LayerSpec(tuple(name for name in CANDIDATES if name != "none"))
    complete = dict(raw)
    spec: dict[str, LayerSpec | InputSpec] = {}
    for key, rule in cell_spec(nodes).items():
        if isinstance(rule, InputSpec):
            _complete_node(complete, key, rule)
            spec[key] = rule
        else:
            items = raw.get(key)
            by_name = isinstance(items[0] if isinstance(items, list) and items else items, str)
            spec[key] = names if by_name else numbered
    return Architecture.parse(complete, spec)


def _complete_node(raw: dict[str, object], switch: str, rule: InputSpec) -> None:
    """Add the answers of a node that follow from those in `raw`."""
    given = [key for key in rule.inputs if raw.get(key, []) != []]
    if switch not in raw and len(given) == rule.n_chosen:
        raw[switch] = given
    if switch in raw:
        kept = options_in(switch, raw[switch], rule.inputs)
        for key in rule.inputs:
            if key not in kept:
                raw.setdefault(key, [])


def is_cell_architecture(architecture: Architecture) -> bool:
    """Return whether every key is one of the CNN cell space."""
    return all(_EDGE.fullmatch(key) or _SWITCH.fullmatch(key) for key in architecture.choices)
