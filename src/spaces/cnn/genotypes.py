"""Cells as the paper writes them, and the two genotypes it published.

A genotype is the readable view of an architecture of the CNN cell space: for every node of a cell, the edges that were
kept. `Architecture` (src/architectures/architecture.py) is the general form that files hold; the two convert into each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from src.architectures.architecture import Answer, Architecture, InputSpec, LayerSpec, Spec, load_json
from src.common.errors import ConfigError, shorten, unknown

KINDS = ("normal", "reduce")
EDGES_PER_NODE = 2
MAX_NODES = 32

# The paper's candidates in the order of its alphas; `none` is searched but never derived.
CANDIDATES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


def edge_key(kind: str, node: int, state: int) -> str:
    """Return the key of the LayerChoice on the edge from `state` to `node`; nodes count as states from 2."""
    return f"{kind}_n{node}_p{state}"


def switch_key(kind: str, node: int) -> str:
    """Return the key of the InputChoice that keeps two of a node's edges."""
    return f"{kind}_n{node}_switch"


def cell_spec(nodes: int, candidates: tuple[str, ...] = CANDIDATES) -> Spec:
    """Return the choices of normal and reduction cells of `nodes` nodes: 36 keys for the paper's four."""
    operations = LayerSpec(tuple(name for name in candidates if name != "none"))
    spec: dict[str, LayerSpec | InputSpec] = {}
    for kind in KINDS:
        for node in range(2, 2 + nodes):
            edges = tuple(edge_key(kind, node, state) for state in range(node))
            spec.update(dict.fromkeys(edges, operations))
            spec[switch_key(kind, node)] = InputSpec(edges, EDGES_PER_NODE)
    return spec


class Edge(NamedTuple):
    """An operation applied to a state: 0 and 1 are the outputs of cells k-2 and k-1, 2 and up the cell's nodes."""

    operation: str
    state: int


Node = tuple[Edge, ...]


@dataclass(frozen=True)
class Genotype:
    """The nodes of the normal and the reduction cell; node i is state i + 2, and a cell's output joins all nodes."""

    normal: tuple[Node, ...]
    reduce: tuple[Node, ...]

    @classmethod
    def from_architecture(cls, architecture: Architecture) -> Genotype:
        """Return the cells that an architecture of the CNN cell space describes, edges in the order of their states."""

        def node(kind: str, index: int) -> Node:
            kept = ((state, architecture.choices[edge_key(kind, index, state)]) for state in range(index))
            return tuple(Edge(operation, state) for state, operation in kept if isinstance(operation, str))

        count = sum(key.startswith("normal") and key.endswith("_switch") for key in architecture.choices)
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

    def __str__(self) -> str:
        """Return the form that the official code prints: operations and states, two edges a node."""
        concat = f"range(2, {2 + len(self.normal)})"
        normal, reduce = ([tuple(edge) for node in cell for edge in node] for cell in (self.normal, self.reduce))
        return f"Genotype(normal={normal}, normal_concat={concat}, reduce={reduce}, reduce_concat={concat})"


def _cell(*edges: tuple[str, int]) -> tuple[Node, ...]:
    pairs = [Edge(*edge) for edge in edges]
    return tuple((pairs[i], pairs[i + 1]) for i in range(0, len(pairs), EDGES_PER_NODE))


_SEP3, _DIL3, _SKIP, _MAX, _AVG = (
    "sep_conv_3x3",
    "dil_conv_3x3",
    "skip_connect",
    "max_pool_3x3",
    "avg_pool_3x3",
)

# Found by the paper's first and second order search on CIFAR-10; edges stand as its official code prints them.
NAMED_GENOTYPES: Mapping[str, Genotype] = {
    "DARTS_V1": Genotype(
        normal=_cell((_SEP3, 1), (_SEP3, 0), (_SKIP, 0), (_SEP3, 1), (_SKIP, 0), (_SEP3, 1), (_SEP3, 0), (_SKIP, 2)),
        reduce=_cell((_MAX, 0), (_MAX, 1), (_SKIP, 2), (_MAX, 0), (_MAX, 0), (_SKIP, 2), (_SKIP, 2), (_AVG, 0)),
    ),
    "DARTS_V2": Genotype(
        normal=_cell((_SEP3, 0), (_SEP3, 1), (_SEP3, 0), (_SEP3, 1), (_SEP3, 1), (_SKIP, 0), (_SKIP, 0), (_DIL3, 2)),
        reduce=_cell((_MAX, 0), (_MAX, 1), (_SKIP, 2), (_MAX, 1), (_MAX, 0), (_SKIP, 2), (_SKIP, 2), (_MAX, 1)),
    ),
}

_KEY = re.compile(r"(?:normal|reduce)_n([0-9]{1,3})_(?:p[0-9]{1,3}|switch)")


def parse_cells(raw: dict[str, object]) -> Architecture:
    """Check a decoded architecture file of the CNN cell space, of as many nodes as its keys name.

    Raises:
        ConfigError: it is not an architecture of this space.
    """
    nodes = 0
    for key in raw:
        match = _KEY.fullmatch(key)
        if match is None:
            raise ConfigError(
                f"{shorten(key)!r} is not a choice of the CNN cell space, whose keys are "
                "{normal|reduce}_n{node}_p{state} and {normal|reduce}_n{node}_switch"
            )
        nodes = max(nodes, int(match[1]) - 1)
    if not 1 <= nodes <= MAX_NODES:
        raise ConfigError(f"the architecture has {nodes} nodes a cell, allowed are 1 to {MAX_NODES}")
    return Architecture.parse(raw, cell_spec(nodes))


def load_cells(name_or_path: str) -> Architecture:
    """Return a named genotype's architecture, or the one in a file.

    Raises:
        ConfigError: there is no such name or file, or the file is not an architecture of the CNN cell space.
    """
    if name_or_path in NAMED_GENOTYPES:
        return NAMED_GENOTYPES[name_or_path].to_architecture()
    path = Path(name_or_path)
    if not path.suffix and len(path.parts) == 1 and not path.exists():
        raise unknown("genotype", name_or_path, [*NAMED_GENOTYPES, "the path of an architecture file"])
    raw = load_json(path)
    try:
        return parse_cells(raw)
    except ConfigError as error:
        raise ConfigError(f"genotype file {path}: {error}") from None


def is_cell_architecture(architecture: Architecture) -> bool:
    """Return whether every key is one of the CNN cell space."""
    return all(_KEY.fullmatch(key) for key in architecture.choices)
