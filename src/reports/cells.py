"""A cell of the paper, drawn so that it reads from left to right without any knowledge of DARTS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path

from src.reports.drawing import (
    INK,
    MUTED,
    canvas,
    legend,
    settings,
    text_width,
    to_array,
    to_png,
    to_svg,
)
from src.reports.names import STATE_NAMES, colours, drawable, in_order, words
from src.spaces.cnn.genotypes import EDGES_PER_NODE, Edge, NodeEdges, live
from src.spaces.cnn.operations import OPERATIONS

# Whoever draws a cell also wants it out of the figure.
__all__ = ["cell_figure", "to_array", "to_png", "to_svg"]

INPUTS = (("output of the", "cell before last", STATE_NAMES[0]), ("output of the", "last cell", STATE_NAMES[1]))
_JOINT, _PALE = "#9aa4ad", "#f1f3f5"

# Points.
_MARGIN, _TITLE = 14.0, 36.0
_LANE, _ROW_GAP = 25.0, 16.0
_LABEL_HEIGHT, _LABEL_SIZE = 18.0, 8.5
_INPUT_WIDTH, _INPUT_HEIGHT = 98.0, 48.0
_NODE_WIDTH, _NODE_HEIGHT = 50.0, 30.0
_FUNNEL = 26.0  # from an operation to its node
_CONCAT_WIDTH = 50.0
_TRACK = 7.0  # between two edges that go down side by side
_BEND = 12.0


class _Row(NamedTuple):
    """A node, its edges from top to bottom, where they run, and whether it is part of the cell's output."""

    edges: list[Edge]
    lanes: list[float]
    middle: float
    joins: bool


def cell_figure(nodes: Sequence[NodeEdges], title: str, *, among: Sequence[str] = (), steady: bool = False) -> Figure:
    """Draw a cell: its two inputs at the left, a row for each node, its output at the right.

    A node stands in the column after those of the states that it takes. An edge goes down in the free channel to the
    right of its state's column, then straight to its operation. So no label covers another label, a node or an edge,
    whatever the cell.

    Args:
        nodes: the edges of each node, as in `Genotype.normal`; node i is state i + 2. A node that carries nothing is pale,
            and no line joins it to the output.
        title: the line above the drawing.
        among: the operations of all pictures that share one set of colours; by default those of this cell.
        steady: give every node a column of its own, and every part the largest width that it can need. All cells with
            as many nodes and edges, and operations from `among`, then have pictures of one size, in which each node
            keeps its place: the frames of a slider.
    """
    with settings():
        rows = _rows(nodes, EDGES_PER_NODE if steady else 1)
        columns = [0, 0, *range(1, len(rows) + 1)] if steady else _columns(rows)
        channels = _channels(rows, columns)
        tracks = [len(channel) for channel in channels]
        if steady:  # any edge may come from an input, and one of each later node from a node
            tracks = [max(sum(tracks), EDGES_PER_NODE * len(rows)), *reversed(range(len(rows)))]
        operations = [edge.operation for node in nodes for edge in node]
        colour_of = colours([*among, *operations])
        labels = [*among, *operations] if steady else operations
        label_width = 16 + max((text_width(words(name), _LABEL_SIZE) for name in labels), default=0.0)

        # The right end of each column, then the left end of the next one: between them lies the channel.
        rights = [_MARGIN + _INPUT_WIDTH]
        lefts = [_MARGIN]
        for count in tracks[:-1]:
            lefts.append(rights[-1] + _TRACK * count + 20)
            rights.append(lefts[-1] + label_width + _FUNNEL + _NODE_WIDTH)
        concat_left = rights[-1] + 30
        width = concat_left + _CONCAT_WIDTH + 80 + _MARGIN
        height = rows[-1].middle + _LANE * max(len(rows[-1].edges), EDGES_PER_NODE if steady else 1) / 2 + 44

        figure, axes = canvas(width, height, drawable(title, 120))
        axes.text(_MARGIN, 18, drawable(title, 120), size=12, weight="bold", color=INK, va="center_baseline")
        first = (rows[0].lanes or [rows[0].middle])[0]
        input_middles = (first, first + _INPUT_HEIGHT + 10)
        for state, middle in enumerate([*input_middles, *(row.middle for row in rows)]):
            right = rights[columns[state]]
            joins = state >= 2 and rows[state - 2].joins
            lines = [([(right, middle), (concat_left - 5, middle)], _JOINT)] if joins else []
            for track, (source, index, lane) in enumerate(channels[columns[state]], start=1):
                if source == state:
                    turn, end = right + 6 + _TRACK * track, (lefts[columns[index + 2]], rows[index].lanes[lane])
                    corners = [(right, middle), (turn, middle), (turn, end[1]), end]
                    lines.append((corners, colour_of[rows[index].edges[lane].operation]))
            _draw_lines(axes, lines)
        for index, row in enumerate(rows):
            _draw_node(axes, row, index, lefts[columns[index + 2]], label_width, colour_of)
        for text, middle in zip(INPUTS, input_middles, strict=True):
            _box(axes, _MARGIN, middle - _INPUT_HEIGHT / 2, _INPUT_WIDTH, _INPUT_HEIGHT, face=_PALE, edge=_JOINT)
            _lines_of_text(axes, _MARGIN + _INPUT_WIDTH / 2, middle, text)
        _draw_output(axes, rows, concat_left)
        families = {_family(name): colour_of[name] for name in reversed(in_order(operations))}
        entries = [(colour, family) for family, colour in reversed(families.items())]
        legend(axes, [*entries, (_JOINT, "joined into the output")], left=_MARGIN, top=height - 26, width=width)
    return figure


def _rows(nodes: Sequence[NodeEdges], least: int) -> list[_Row]:
    """Lay the nodes out from top to bottom, each with room for `least` edges.

    Edges of a node stand so that as few as possible cross: the later their state, the higher, inputs below.
    """
    rows = []
    top = _TITLE + 12
    for node, joins in zip(nodes, map(bool, live(nodes)), strict=True):
        edges = sorted(node, key=lambda edge: (edge.state < 2, edge.state if edge.state < 2 else -edge.state))
        count = max(len(edges), least)
        lanes = [top + _LANE * (lane + 0.5 + (count - len(edges)) / 2) for lane in range(len(edges))]
        rows.append(_Row(edges, lanes, top + _LANE * count / 2, joins))
        top += _LANE * count + _ROW_GAP
    return rows


def _columns(rows: Sequence[_Row]) -> list[int]:
    """Return for each state its column: 0 for the inputs, for a node one more than the last of those it takes."""
    columns = [0, 0]
    for row in rows:
        columns.append(1 + max((columns[edge.state] for edge in row.edges), default=0))
    return columns


def _channels(rows: Sequence[_Row], columns: Sequence[int]) -> list[list[tuple[int, int, int]]]:
    """Return for each column the edges that leave it as (state, row, place in the row), from left to right.

    Edges of a lower state, and of one state the lowest edge, turn down first, so that few cross.
    """
    channels: list[list[tuple[int, int, int]]] = [[] for _ in range(max(columns) + 1)]
    for index, row in enumerate(rows):
        for lane, edge in enumerate(row.edges):
            channels[columns[edge.state]].append((edge.state, index, lane))
    return [sorted(channel, reverse=True) for channel in channels]


def _draw_lines(axes: Axes, lines: Sequence[tuple[list[tuple[float, float]], str]]) -> None:
    """Draw lines with rounded corners; where they cross what is there, a white rim shows which one is on top."""
    paths = [(_rounded(points), colour) for points, colour in lines]
    for path, _ in paths:
        axes.add_patch(PathPatch(path, facecolor="none", edgecolor="white", linewidth=5, capstyle="butt"))
    for path, colour in paths:
        axes.add_patch(PathPatch(path, facecolor="none", edgecolor=colour, linewidth=1.8, capstyle="butt"))


def _rounded(points: Sequence[tuple[float, float]]) -> Path:
    """Return the path through `points`, a horizontal and a vertical piece in turn, with smooth bends."""
    if len(points) == 2 or abs(points[0][1] - points[-1][1]) < 1:
        return Path([points[0], (points[-1][0], points[0][1])])
    (x0, y0), (turn, _), _, (x1, y1) = points
    bend = min(_BEND, abs(y1 - y0) / 2, turn - x0, x1 - turn)
    down = bend if y1 > y0 else -bend
    line, curve = Path.LINETO, Path.CURVE3
    return Path(
        [
            (x0, y0),
            (turn - bend, y0),
            (turn, y0),
            (turn, y0 + down),
            (turn, y1 - down),
            (turn, y1),
            (turn + bend, y1),
            (x1, y1),
        ],
        [Path.MOVETO, line, curve, curve, line, curve, curve, line],
    )


def _draw_node(axes: Axes, row: _Row, index: int, left: float, label_width: float, colour_of: dict[str, str]) -> None:
    node_left = left + label_width + _FUNNEL
    for lane, (edge, y) in enumerate(zip(row.edges, row.lanes, strict=True)):
        colour = colour_of[edge.operation]
        arrival = row.middle + 11 * (lane - (len(row.edges) - 1) / 2) * min(1, 3 / len(row.edges))
        start, tip = left + label_width, node_left - 1
        half = (tip - 5 - start) / 2
        path = Path(
            [(start, y), (start + half, y), (start + half, arrival), (tip - 5, arrival)],
            [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4],
        )
        axes.add_patch(PathPatch(path, facecolor="none", edgecolor=colour, linewidth=1.8))
        _arrow_head(axes, tip, arrival, colour)
        _box(axes, left, y - _LABEL_HEIGHT / 2, label_width, _LABEL_HEIGHT, face="white", edge=colour)
        axes.text(
            left + label_width / 2, y, words(edge.operation), size=_LABEL_SIZE, color=INK, ha="center", va="center"
        )
    face, edge, ink = (INK, INK, "white") if row.joins else (_PALE, _JOINT, MUTED)
    _box(axes, node_left, row.middle - _NODE_HEIGHT / 2, _NODE_WIDTH, _NODE_HEIGHT, face=face, edge=edge)
    axes.text(node_left + _NODE_WIDTH / 2, row.middle, f"node {index + 2}", size=9, color=ink, ha="center", va="center")


def _draw_output(axes: Axes, rows: Sequence[_Row], left: float) -> None:
    top, bottom = rows[0].middle - 22, rows[-1].middle + 22
    middle = (top + bottom) / 2
    _box(axes, left, top, _CONCAT_WIDTH, bottom - top, face=_PALE, edge=_JOINT)
    _lines_of_text(axes, left + _CONCAT_WIDTH / 2, middle, ("concat",))
    axes.plot(
        [left + _CONCAT_WIDTH, left + _CONCAT_WIDTH + 16],
        [middle, middle],
        color=_JOINT,
        linewidth=1.8,
        solid_capstyle="butt",
    )
    _arrow_head(axes, left + _CONCAT_WIDTH + 21, middle, _JOINT)
    _lines_of_text(axes, left + _CONCAT_WIDTH + 54, middle, ("output of", "this cell", "cₖ"))
    for row in rows:
        if row.joins:
            _arrow_head(axes, left - 1, row.middle, _JOINT)


def _arrow_head(axes: Axes, x: float, y: float, colour: str) -> None:
    axes.add_patch(Polygon([(x, y), (x - 6.5, y - 3.4), (x - 6.5, y + 3.4)], closed=True, color=colour, linewidth=0))


def _box(axes: Axes, x: float, y: float, width: float, height: float, *, face: str, edge: str) -> None:
    style = "round,pad=0,rounding_size=5"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=face, edgecolor=edge, linewidth=1.2))


def _lines_of_text(axes: Axes, x: float, middle: float, lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        y = middle + 12.5 * (number - (len(lines) - 1) / 2)
        axes.text(x, y, line, size=8.5, color=INK if len(lines) == 1 else MUTED, ha="center", va="center")


def _family(operation: str) -> str:
    known = OPERATIONS.get(operation)
    return drawable(known.family, 32) if known else words(operation)
