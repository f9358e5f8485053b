"""A cell as rails: each state is a line from top to bottom, each edge a line across, from its state to its node.

Where an edge begins is all that differs between two cells of as many nodes, so the same drawing can show every epoch of a
search. It is as narrow as a phone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from src.reports.names import STATE_NAMES
from src.spaces.cnn.genotypes import NodeEdges

WIDTH = 360.0
_LANE, _ROW, _GAP, _TOP, _LEFT = 26.0, 28.0, 10.0, 34.0, 20.0
_NODE = 22.0  # width of a node's box


class Row(NamedTuple):
    """An edge: where it runs, and what it does."""

    y: float
    state: int
    start: float
    end: float
    operation: str

    @property
    def path(self) -> str:
        """The line from the state to the arrow's head."""
        return f"M{self.start:g} {self.y:g}H{self.end:g}"


class Node(NamedTuple):
    """A node: its box, the band behind its edges, and the edges."""

    number: int
    x: float
    top: float
    height: float
    rows: list[Row]

    @property
    def middle(self) -> float:
        """The y of its number."""
        return self.top + self.height / 2


class Rails(NamedTuple):
    """A cell, in the units of a view box of `width` x `height`."""

    nodes: list[Node]
    lanes: list[float]
    """The x of each state."""
    rails: list[tuple[float, float, float]]
    """(x, top, bottom) of each state's line; the nodes' lines end in the output."""
    heads: list[tuple[float, str]]
    """(x, name) of the two inputs."""
    labels: float
    """The left end of the operations' names."""
    output: float
    """The y of the output."""
    width: float
    height: float


def rails_of(nodes: Sequence[NodeEdges]) -> Rails:
    """Return the drawing of a cell; node i of `nodes` is state i + 2."""
    lane = min(_LANE, 150.0 / (len(nodes) + 1))
    lanes = [_LEFT + lane * state for state in range(len(nodes) + 2)]
    drawn: list[Node] = []
    y = _TOP
    for number, edges in enumerate(nodes, start=2):
        x = lanes[number]
        rows = [
            Row(y + _ROW * (place + 0.5), edge.state, lanes[edge.state], x - _NODE / 2 - 1, edge.operation)
            for place, edge in enumerate(sorted(edges, key=lambda edge: edge.state))
        ]
        drawn.append(Node(number, x, y, _ROW * max(1, len(rows)), rows))
        y += drawn[-1].height + _GAP
    output = y + 8
    rails = [(lanes[0], _TOP - 12, y - _GAP), (lanes[1], _TOP - 12, y - _GAP)]
    rails += [(node.x, node.top + node.height - 3, output) for node in drawn]
    heads = [(lanes[state], name) for state, name in enumerate(STATE_NAMES)]
    return Rails(drawn, lanes, rails, heads, lanes[-1] + _NODE / 2 + 8, output, WIDTH, output + 24)
