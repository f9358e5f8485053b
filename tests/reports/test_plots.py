from __future__ import annotations

import math

import pytest

from src.reports.names import DARK, LIGHT, colours, visible
from src.reports.plots import Palette, chart_plot, charts, plot, ticks, trace
from src.spaces.cnn.operations import OPERATIONS

NAN = math.nan


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


def test_an_accuracy_has_an_axis_from_0_to_100_percent() -> None:
    (chart,) = charts(["val_accuracy"])
    drawn = chart_plot(chart, [0, 1, 2], {"val_accuracy": [0.91, 0.92, 0.93]}, Palette())
    assert [tick.text for tick in drawn.y_ticks] == ["0", "20", "40", "60", "80", "100"]
    assert "91.00 % to 93.00 %" in drawn.summary


def test_an_entropy_has_an_axis_from_0_to_that_of_equal_weights() -> None:
    (chart,) = charts(["alpha_entropy"])
    drawn = chart_plot(chart, [0, 1], {"alpha_entropy": [2.07, 2.06]}, Palette(), uniform=math.log(8))
    assert drawn.guide is not None
    assert drawn.guide.text == "all equal: 2.08"
    assert drawn.guide.at == drawn.top  # nothing lies above it
    assert drawn.y_ticks[0].text == "0"
    (line,) = drawn.lines
    assert line.path.startswith(f"M{drawn.left:g} ")


def test_values_are_drawn_where_the_axis_has_them() -> None:
    drawn = plot("A", "", [0, 5, 10], [("a", "#1f5fa8", [0.0, 2.0, 1.0])], Palette())
    by_text = {tick.text: tick.at for tick in drawn.y_ticks}
    assert (
        drawn.lines[0].path
        == f"M{drawn.left:g} {by_text['0']:g} {drawn.x[1]:g} {by_text['2']:g} {drawn.right:g} {by_text['1']:g}"
    )
    assert drawn.x[1] == pytest.approx((drawn.left + drawn.right) / 2, abs=0.1)
    assert drawn.x_ticks[0].text == "0"


def test_values_of_many_decades_have_a_logarithmic_axis() -> None:
    drawn = plot("A", "", [0, 1], [("a", "#1f5fa8", [1.0, 1e-4])], Palette())
    assert [tick.text for tick in drawn.y_ticks] == ["0.0001", "0.001", "0.01", "0.1", "1"]


def test_a_missing_value_leaves_a_gap_and_a_lonely_one_is_a_dot() -> None:
    path, dots = trace([0, 1, 2, 3, 4], [5, 6, NAN, 7, NAN])
    assert path == "M0 5 1 6"
    assert dots == [(3, 7)]
    empty = plot("A", "", [0], [("a", "#1f5fa8", [NAN])], Palette())
    assert empty.lines[0].path == ""
    assert "no values" in empty.summary


@pytest.mark.parametrize(
    ("low", "high", "whole", "marks"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 2.079, False, [0, 0.5, 1, 1.5, 2, 2.5]),
        (-1, 1, False, [-1, -0.5, 0, 0.5, 1]),
        (0, 0, False, [0, 1]),
        (0, 49, True, [0, 10, 20, 30, 40]),
        (0, 3, True, [0, 1, 2, 3]),
        (7, 7, True, [7]),
    ],
)
def test_ticks_are_round(low: float, high: float, whole: bool, marks: list[float]) -> None:
    assert ticks(low, high, whole=whole) == pytest.approx(marks)


def contrast(colour: str, background: str) -> float:
    """Contrast as WCAG 2.1 defines it."""

    def luminance(text: str) -> float:
        parts = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(colour), luminance(background)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("background", [LIGHT, DARK])
def test_every_operation_stands_out_from_a_light_and_a_dark_page(background: str) -> None:
    shades = {name: visible(colour, background) for name, colour in colours(list(OPERATIONS)).items()}
    assert all(contrast(shade, background) >= 2.99 for shade in shades.values())
    assert len(set(shades.values())) == len(shades)
    assert visible("#000000", "#ffffff") == "#000000"


def test_a_band_lies_around_its_line_and_the_axis_has_room_for_it() -> None:
    bands = [([0.5, NAN, 1.0, 1.0], [1.5, NAN, 3.0, 5.0]), None]
    lines = [("a", "#1f5fa8", [1.0, 1.0, 2.0, 2.0]), ("b", "#b9540a", [0.0, 0.0, 0.0, 0.0])]
    drawn = plot("A", "", [0, 1, 2, 3], lines, Palette(), bands=bands)
    at = {tick.text: tick.at for tick in drawn.y_ticks}
    assert drawn.lines[0].band == (
        f"M{drawn.x[2]:g} {at['3']:g} {drawn.x[3]:g} {at['5']:g} {drawn.x[3]:g} {at['1']:g} {drawn.x[2]:g} {at['1']:g}Z"
    )
    assert drawn.lines[1].band == ""


def test_a_band_that_reaches_below_a_logarithmic_axis_ends_at_it() -> None:
    lines = [("a", "#1f5fa8", [1.0, 1e-4])]
    drawn = plot("A", "", [0, 1], lines, Palette(), bands=[([0.0, -1.0], [20.0, 1.0])])
    at = {tick.text: tick.at for tick in drawn.y_ticks}
    assert list(at) == ["0.0001", "0.001", "0.01", "0.1", "1", "10", "100"]
    assert drawn.lines[0].band.endswith(f"{drawn.x[1]:g} {at['0.0001']:g} {drawn.x[0]:g} {at['0.0001']:g}Z")
    wide = plot("A", "", [0, 1], [("a", "#1f5fa8", [1.0, 0.5])], Palette(), bands=[([0.001, 0.001], [1.0, 1.0])])
    assert wide.y_ticks[0].text == "0"  # the lines say whether the axis is logarithmic
