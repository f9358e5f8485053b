from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from itertools import combinations, pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text

from src.reports.cells import cell_figure
from src.reports.drawing import to_array, to_png, to_svg
from src.reports.names import words
from src.spaces.cnn.genotypes import CANDIDATES, NAMED_GENOTYPES, Edge, NodeEdges

PUBLISHED = [cell for genotype in NAMED_GENOTYPES.values() for cell in (genotype.normal, genotype.reduce)]


def random_cell(nodes: int, seed: int) -> tuple[NodeEdges, ...]:
    draw = random.Random(seed)
    return tuple(
        tuple(Edge(draw.choice(CANDIDATES[1:]), state) for state in draw.sample(range(index), 2))
        for index in range(2, 2 + nodes)
    )


CHAIN = tuple((Edge("sep_conv_5x5", index - 1), Edge("avg_pool_3x3", index - 2)) for index in range(2, 6))
# As FairDARTS leaves nodes: with an edge, with none, and with one from a node that has none.
SPARSE = (
    (Edge("sep_conv_3x3", 0), Edge("skip_connect", 1)),
    (),
    (Edge("dil_conv_5x5", 3),),
    (Edge("max_pool_3x3", 0), Edge("sep_conv_3x3", 2)),
)
CELLS = [*PUBLISHED, CHAIN, SPARSE, *(random_cell(nodes, seed=nodes) for nodes in range(1, 7))]


def texts(svg: str) -> list[str]:
    return [
        "".join(element.itertext()).strip() for element in ET.fromstring(svg).iter() if element.tag.endswith("text")
    ]


def boxes(figure: Figure) -> list[tuple[float, float, float, float]]:
    """Return (left, top, right, bottom) of all frames, in points."""
    frames = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch)]
    return [(b.get_x(), b.get_y(), b.get_x() + b.get_width(), b.get_y() + b.get_height()) for b in frames]


@pytest.mark.parametrize("cell", CELLS)
def test_every_operation_is_named_as_often_as_the_cell_has_it(cell: tuple[NodeEdges, ...]) -> None:
    drawn = texts(to_svg(cell_figure(cell, "A cell")))
    operations = [words(edge.operation) for node in cell for edge in node]
    assert {name: drawn.count(name) for name in operations} == {name: operations.count(name) for name in operations}
    assert [text for text in drawn if text.startswith("node ")] == [f"node {i + 2}" for i in range(len(cell))]
    assert {"concat", "cₖ₋₂", "cₖ₋₁", "A cell"} <= set(drawn)


@pytest.mark.parametrize("steady", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_frames_do_not_overlap_and_text_stays_in_the_picture(cell: tuple[NodeEdges, ...], steady: bool) -> None:
    figure = cell_figure(cell, "A cell", steady=steady)
    frames = boxes(figure)
    assert len(frames) == sum(map(len, cell)) + len(cell) + 3  # operations, nodes, two inputs and the output
    for a, b in combinations(frames, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    canvas = FigureCanvasAgg(figure)
    for text in figure.axes[0].findobj(Text):
        assert isinstance(text, Text)
        if text.get_text():
            extent = text.get_window_extent(canvas.get_renderer())
            assert extent.x0 >= 0
            assert extent.x1 <= figure.bbox.x1


@pytest.mark.parametrize("cell", CELLS)
def test_edges_lead_from_their_state_through_their_operation_and_pass_no_frame(cell: tuple[NodeEdges, ...]) -> None:
    figure = cell_figure(cell, "A cell")
    *frames, first_input, second_input, _ = boxes(figure)
    lines = [
        np.asarray(patch.get_path().vertices)
        for patch in figure.axes[0].patches
        if not isinstance(patch, FancyBboxPatch) and to_rgba(patch.get_facecolor())[3] == 0
    ]

    def joined(start: tuple[float, float], left: float, top: float, bottom: float) -> bool:
        ends = [line[-1] for line in lines if np.allclose(line[0], start)]
        return any(left - 8 <= x <= left and top < y < bottom for x, y in ends)

    states = [first_input, second_input]
    rest = iter(frames)  # node by node: the operations from top to bottom, then the node
    for node in cell:
        operations = [next(rest) for _ in node]
        states.append(next(rest))
        for left, top, right, bottom in operations:
            middle = (top + bottom) / 2
            assert joined((right, middle), states[-1][0], states[-1][1], states[-1][3])
            sources = [
                edge.state
                for edge in node
                if joined(
                    (states[edge.state][2], (states[edge.state][1] + states[edge.state][3]) / 2), left, top, bottom
                )
            ]
            assert len(sources) == 1
    for line in lines:
        for (x0, y0), (x1, y1) in pairwise(line):
            for left, top, right, bottom in [*frames, first_input, second_input]:
                apart = max(x0, x1) <= left + 0.1 or min(x0, x1) >= right - 0.1
                assert apart or max(y0, y1) <= top or min(y0, y1) >= bottom


def test_steady_pictures_of_cells_with_as_many_edges_have_one_size() -> None:
    cells = [random_cell(4, seed) for seed in range(6)] + [CHAIN, SPARSE]
    figures = [cell_figure(cell, "A cell", among=CANDIDATES, steady=True) for cell in cells]
    assert len({tuple(figure.get_size_inches()) for figure in figures}) == 1
    nodes = [[box for box in boxes(figure) if box[2] - box[0] == 50 and box[3] - box[1] == 30] for figure in figures]
    assert all(places == nodes[0] for places in nodes), "every node keeps its place"
    assert len(nodes[0]) == 4


def test_nodes_that_carry_nothing_are_pale_and_not_joined() -> None:
    figure = cell_figure(SPARSE, "A cell")
    nodes = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch) and patch.get_width() == 50]
    nodes = [patch for patch in nodes if patch.get_height() == 30]
    pale = [to_rgba(patch.get_facecolor()) == to_rgba("#f1f3f5") for patch in nodes]
    assert pale == [False, True, True, False]
    joint = to_rgba("#9aa4ad")
    joins = [
        patch
        for patch in figure.axes[0].patches
        if to_rgba(patch.get_edgecolor()) == joint and to_rgba(patch.get_facecolor())[3] == 0
    ]
    assert len(joins) == 2


def test_svg_is_the_same_each_time_and_refers_to_nothing_outside() -> None:
    svg, again = (to_svg(cell_figure(PUBLISHED[0], "A cell")) for _ in range(2))
    assert svg == again
    assert svg.startswith("<svg ")
    assert "metadata" not in svg
    root = ET.fromstring(svg)
    links = [value for element in root.iter() for name, value in element.attrib.items() if "href" in name]
    assert all(link.startswith("#") for link in links)
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1999/xlink", "")


def test_ids_of_different_pictures_differ() -> None:
    first, second = (
        {
            element.attrib["id"]
            for element in ET.fromstring(to_svg(cell_figure(cell, "A cell"))).iter()
            if "id" in element.attrib
        }
        for cell in PUBLISHED[:2]
    )
    assert first
    assert not first & second


def test_names_that_are_markup_or_formulas_are_drawn_as_they_are() -> None:
    name = "<script>&$x_{$"
    svg = to_svg(cell_figure(((Edge(name, 0), Edge("\x00\ud800", 1)),), "$\\frac{<b>"))
    assert words(name) in texts(svg)
    assert "$\\frac{<b>" in texts(svg)
    assert "<script" not in svg


def test_png_and_array_are_the_same_picture() -> None:
    figure = cell_figure(PUBLISHED[1], "A cell")
    array = to_array(figure)
    assert to_png(figure).startswith(b"\x89PNG\r\n")
    assert array.dtype == np.uint8
    width, height = figure.get_size_inches() * 144
    assert array.shape[:2] == pytest.approx((height, width), abs=1)
    assert array.shape[2] == 3
    assert array.min() < 60  # the nodes are dark
    assert array.max() == 255
