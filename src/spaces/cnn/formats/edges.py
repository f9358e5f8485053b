"""The official code's genotypes as fields: lists of (operation, state), and the states that the output joins.

Here are the JSON of these fields, and the step from fields to answers that formats of such lists share. Fields are
`normal`, `reduce`, `normal_concat` and `reduce_concat`; a list is flat with two edges for each node, or has a list for
each node, or has triples (operation, node, state), as FairDARTS' code has them for nodes with fewer edges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from src.architectures.architecture import Architecture, json_object, kind_of
from src.architectures.formats import Format
from src.common.errors import ConfigError, shorten, unknown
from src.spaces.cnn.genotypes import EDGES_PER_NODE, KINDS, MAX_NODES, Edge, Genotype, NodeEdges

FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")
_NAMES = {"normal": "normal cell", "reduce": "reduction cell"}


def answers_of(fields: Mapping[str, object]) -> dict[str, object]:
    """Return the answers by key that the fields of an official genotype stand for; a concat may be missing.

    Raises:
        ConfigError: a field is missing or unknown, or says what cells here cannot express.
    """
    for name in fields:
        if name not in FIELDS:
            raise unknown("field of a genotype", name, FIELDS)
    for kind in KINDS:
        if kind not in fields:
            raise ConfigError(f"the genotype has no field {kind!r}")
    count = max(_nodes_named(fields[kind], fields.get(f"{kind}_concat")) for kind in KINDS)
    cells = {kind: _cell(kind, fields[kind], count) for kind in KINDS}
    normal, reduce = (len(cells[kind]) for kind in KINDS)
    if normal != reduce:
        raise ConfigError(f"the cells must have equally many nodes, got {normal} (normal) and {reduce} (reduction)")
    for kind in KINDS:
        concat, states = fields.get(f"{kind}_concat"), list(range(2, 2 + normal))
        if concat is not None and not (isinstance(concat, list) and _sorted(concat) == states):
            raise ConfigError(
                f"{kind}_concat must be all nodes, {states}, since a cell here joins all of them; got {shorten(concat)}"
            )
    return {**Genotype(**cells).to_architecture().to_plain()}


def _are_triples(rows: object) -> bool:
    return isinstance(rows, list) and any(
        isinstance(row, list) and len(row) == 3 and isinstance(row[1], int) for row in rows
    )


def _nodes_named(rows: object, concat: object) -> int:
    """Return how many nodes a cell in triples names, in its edges or as those that its output joins; else 0."""
    if not _are_triples(rows):
        return 0
    named = [row[1] for row in rows if isinstance(row, list) and len(row) == 3]  # pyright: ignore[reportGeneralTypeIssues]
    named += concat if isinstance(concat, list) else []
    return max((node - 1 for node in named if isinstance(node, int)), default=0)


def _cell(kind: str, rows: object, count: int) -> tuple[NodeEdges, ...]:
    """Return the nodes that a list describes; of triples, `count` nodes."""
    if not isinstance(rows, list):
        raise ConfigError(f"{kind} must be a list of edges, got {kind_of(rows)}")
    if _are_triples(rows):
        if not 1 <= count <= MAX_NODES:
            raise ConfigError(f"{kind} must have 1 to {MAX_NODES} nodes, got {count}")
        by_node: list[list[Any]] = [[] for _ in range(count)]
        for row in rows:
            if not isinstance(row, list) or len(row) != 3 or type(row[1]) is not int or not 2 <= row[1] < 2 + count:
                raise ConfigError(
                    f"an edge of {kind} must be a triple (operation, node, state) like the others, got {shorten(row)}"
                )
            by_node[row[1] - 2].append([row[0], row[2]])
        return tuple(_node(kind, index, row, fewest=0) for index, row in enumerate(by_node, start=2))
    if rows and all(isinstance(row, list) and all(isinstance(item, list) for item in row) for row in rows):
        nested: list[list[Any]] = rows
    else:
        if len(rows) % EDGES_PER_NODE:
            raise ConfigError(f"{kind} must have {EDGES_PER_NODE} edges for each node, got {len(rows)} edges")
        nested = [rows[start : start + EDGES_PER_NODE] for start in range(0, len(rows), EDGES_PER_NODE)]
    if not 1 <= len(nested) <= MAX_NODES:
        raise ConfigError(f"{kind} must have 1 to {MAX_NODES} nodes, got {len(nested)}")
    return tuple(_node(kind, index, row) for index, row in enumerate(nested, start=2))


def _node(kind: str, index: int, row: list[Any], fewest: int = EDGES_PER_NODE) -> NodeEdges:
    where = f"node {index} of the {_NAMES[kind]}"
    if not fewest <= len(row) <= EDGES_PER_NODE:
        raise ConfigError(f"{where} must have {EDGES_PER_NODE} edges, got {len(row)}")
    edges = []
    for item in row:
        operation, state = item if isinstance(item, list) and len(item) == 2 else (None, None)
        if not isinstance(operation, str) or not isinstance(state, int) or isinstance(state, bool):
            raise ConfigError(f"an edge of {where} must be a pair (operation, state), got {shorten(item)}")
        if not 0 <= state < index:
            raise ConfigError(f"{where} must take states from 0 to {index - 1}, got {shorten(state)}")
        edges.append(Edge(operation, state))
    if len({edge.state for edge in edges}) < len(edges):
        raise ConfigError(f"{where} takes state {edges[0].state} twice, but a node here takes each state at most once")
    return tuple(edges)


def regular(architecture: Architecture, whose: str) -> Genotype:
    """Return the genotype of an architecture for a format that can only express two edges into each node.

    Raises:
        ConfigError: a node has fewer; `whose` names the format.
    """
    genotype = Genotype.from_architecture(architecture)
    for kind in KINDS:
        for index, node in enumerate(getattr(genotype, kind), start=2):
            if len(node) != EDGES_PER_NODE:
                raise ConfigError(
                    f"{whose} needs {EDGES_PER_NODE} edges into each node, but node {index} of the {_NAMES[kind]} has "
                    f"{len(node) or 'none'}; the formats genotype, edges and json take it"
                )
    return genotype


def _sorted(states: list[Any]) -> list[Any]:
    return sorted(states) if all(type(state) is int for state in states) else []


def _write(architecture: Architecture) -> str:
    genotype = Genotype.from_architecture(architecture)
    concat = list(range(2, 2 + len(genotype.normal)))
    fields = {}
    for kind in KINDS:
        fields[kind] = [list(edge) for edge in genotype.flat(kind)]
        fields[f"{kind}_concat"] = concat
    return json.dumps(fields) + "\n"


FORMAT = Format(
    name="edges",
    looks_like="JSON of normal and reduce",
    reads=lambda text: text.lstrip()[:1] == "{" and re.search(r'"(normal|reduce)(_concat)?"\s*:', text) is not None,
    parse=lambda text: answers_of(json_object(text)),
    write=_write,
)
