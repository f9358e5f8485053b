from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from src.architectures.architecture import Answer
from src.reports.curves import (
    chart_figure,
    charts,
    choices_figure,
    heat_figure,
    history_figure,
    weights_figure,
)
from src.reports.drawing import colours, to_svg
from src.spaces.cnn.genotypes import split_keys

NAN = math.nan
KEYS = ["normal_n2_p0", "normal_n2_p1", "normal_n3_p0", "normal_n3_p1", "normal_n3_p2"]
WEIGHTS = {key: {"none": [0.5, 0.6, 0.2], "skip_connect": [0.5, 0.4, 0.8]} for key in KEYS}
CHOICES: dict[str, Answer] = {**dict.fromkeys(KEYS, "skip_connect"), "normal_n3_p0": None}


def texts(figure: Figure) -> list[str]:
    return [
        "".join(node.itertext()).strip() for node in ET.fromstring(to_svg(figure)).iter() if node.tag.endswith("text")
    ]


def test_losses_share_a_chart_accuracies_another_and_the_rest_have_their_own() -> None:
    columns = ["epoch", "train_loss", "train_accuracy", "arch_loss", "val_loss", "val_accuracy", "lr", "my_count"]
    groups = charts(columns)
    assert [list(chart.columns) for chart in groups] == [
        ["train_loss", "arch_loss", "val_loss"],
        ["train_accuracy", "val_accuracy"],
        ["lr"],
        ["my_count"],
    ]
    assert [chart.title for chart in groups] == ["Loss", "Accuracy", "Learning rate", "My count"]


def test_accuracies_are_drawn_as_percent_with_gaps_for_missing_values() -> None:
    chart = charts(["val_accuracy"])[0]
    axes = chart_figure(chart, [0, 1, 2], {"val_accuracy": [0.5, NAN, 0.75]}).axes[1]
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_ydata(), [50, NAN, 75])
    assert line.get_marker() == "o"  # two lonely points would otherwise not show


def test_a_chart_without_any_value_and_one_of_many_decades_are_drawn() -> None:
    (chart,) = charts(["hypergradient_norm"])
    assert "Norm of the alphas' gradient" in texts(chart_figure(chart, [0], {"hypergradient_norm": [NAN]}))
    figure = chart_figure(chart, [0, 1], {"hypergradient_norm": [1.0, 1e-4]})
    assert figure.axes[1].get_yscale() == "log"
    assert "0.01" in texts(figure)


def test_keys_are_sorted_into_cells_and_others() -> None:
    cells, others = split_keys(["mine", "reduce_n2_p1", *KEYS, "normal_n2_p2"])
    assert list(cells) == ["normal", "reduce"]
    assert cells["reduce"] == {(2, 1): "reduce_n2_p1"}
    assert cells["normal"][3, 2] == "normal_n3_p2"
    assert others == ["mine", "normal_n2_p2"]  # a node cannot take itself


def test_each_edge_has_a_panel_and_kept_edges_are_framed() -> None:
    figure = weights_figure(split_keys(KEYS)[0]["normal"], WEIGHTS, [0, 1, 2], CHOICES, "Normal cell")
    panels = figure.axes[1:]
    assert len(panels) == len(KEYS)
    assert [axes.spines["top"].get_visible() for axes in panels] == [True, True, False, True, True]
    for axes in panels:
        drawn = {line.get_color(): list(np.asarray(line.get_ydata())) for line in axes.lines}
        looks = colours(["none", "skip_connect"])
        assert drawn == {looks["none"]: [0.5, 0.6, 0.2], looks["skip_connect"]: [0.5, 0.4, 0.8]}
    lefts, tops = ([round(getattr(axes.get_position(), side), 6) for axes in panels] for side in ("x0", "y0"))
    assert lefts[0] == lefts[2] < lefts[1] == lefts[3] < lefts[4]  # a column for each state
    assert tops[0] == tops[1] > tops[2] == tops[3] == tops[4]  # a row for each node
    assert texts(figure).count("dropped") == 1


def test_choices_of_any_space_have_a_panel_by_key() -> None:
    weights = {"$kernel_{": {"<3>": [0.5], "5": [0.5]}, "width": {"16": [NAN], "32": [NAN], "64": [NAN]}}
    figure = choices_figure(list(weights), weights, [0], {"width": ("16", "64")}, "Choices")
    assert len(figure.axes) == 3
    assert {"$kernel_{", "width: 16, 64", "<3>"} <= set(texts(figure))


def test_heat_map_writes_every_weight_and_frames_the_answers() -> None:
    last = {key: {name: line[-1] for name, line in WEIGHTS[key].items()} for key in KEYS}
    figure = heat_figure(KEYS, last, CHOICES, "Normal cell")
    drawn = texts(figure)
    assert drawn.count("0.200") == drawn.count("0.800") == len(KEYS)
    framed = [patch for patch in figure.axes[0].patches if to_rgba(patch.get_facecolor())[3] == 0]
    assert len(framed) == 4
    assert "node 2 → node 3" in drawn


def test_history_draws_a_bar_for_each_stretch_of_equal_answers() -> None:
    history: dict[int, dict[str, Answer]] = {
        0: {"a": "x", "b": None},
        1: {"a": "x", "b": ("x", "y")},
        10: {"a": "y", "b": None},
    }
    figure = history_figure(history, {"a": ("x", "y"), "b": ("x", "y")}, "Choices")
    looks = colours(["x", "y"])
    bars = [
        (patch.get_facecolor(), round(patch.get_width(), 1))
        for patch in figure.axes[0].patches
        if isinstance(patch, Rectangle)
    ]
    assert len(bars) == 4  # a: x for two epochs, y for one; b: both for one
    assert bars[0][1] > 1.9 * bars[1][1]
    assert {"0", "1", "10", "x", "y"} <= set(texts(figure))
    assert looks["x"] != looks["y"]
