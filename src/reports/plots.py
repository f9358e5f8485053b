"""Line charts as plain geometry, from which a template makes SVG. Axes begin at 0, so that no difference looks large
because of where its axis begins."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from src.reports.names import DARK, LIGHT, colours, drawable, visible

WIDTH, HEIGHT = 340.0, 170.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 8.0, 8.0, 20.0

_SERIES = {
    "train": ("training", "#1f5fa8"),
    "arch": ("alphas' batches", "#f0a458"),
    "val": ("validation", "#b9540a"),
    "test": ("test", "#19754a"),
    "table": ("trained architecture, from the table", "#7a4fa3"),
}
_TITLES = {
    "alpha_entropy": ("Entropy of the mixing weights", "nats, mean over the choices; 0 is decided"),
    "hypergradient_norm": ("Norm of the alphas' gradient", "length of the hypergradient"),
    "correction_ratio": ("Second-order correction", "its size over that of the first-order gradient"),
    "frozen_operations": ("Frozen operations", "whose weights are trained no further"),
    "cell_cosine": ("Agreement of the cells", "mean cosine between their gradients by the mixing weights"),
    "argmax_flips": ("Changed choices", "whose heaviest candidate is another than an epoch before"),
    "skip_count": ("Skip connections", "choices of the architecture that one answers"),
    "exact_cosine": ("Gradient of the alphas against the exact one", "cosine, mean over the measured steps"),
    "finite_difference_cosine": (
        "Second-order correction against the exact one",
        "cosine, mean over the measured steps",
    ),
    "alpha_eigenvalue": ("Top eigenvalue", "of the Hessian of the loss by the alphas; a rise warns of a collapse"),
    "ranking_tau": ("Ranking of the supernet", "Kendall's tau against the table"),
    "ranking_tau_top": ("Ranking of the best fifth", "Kendall's tau against the table"),
    "lr": ("Learning rate", "of the weights, set by the schedule"),
    "table_percentile": ("Rank of the architecture", "% of all architectures that are worse"),
    "table_regret": ("Regret", "% of accuracy that the best architecture has more"),
}
_SHARES = {"table_percentile", "table_regret"}
_INK = "#5d6770"
# Lines of groups of runs.
GROUP_COLOURS = ("#1f5fa8", "#b9540a", "#19754a", "#c2185b", "#7a4fa3", "#8d6e3f", "#0f8b8d", "#5d6770")


class Palette:
    """The colours of a page, each a CSS class with a shade for a light and one for a dark background."""

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}

    def of(self, colour: str) -> str:
        """Return the class of a `#rrggbb` colour."""
        return self._classes.setdefault(colour, f"k{len(self._classes)}")

    def rules(self) -> list[tuple[str, str, str]]:
        """Return (class, shade on light, shade on dark) of the colours asked for so far."""
        return [(name, visible(colour, LIGHT), visible(colour, DARK)) for colour, name in self._classes.items()]


@dataclass(frozen=True)
class Chart:
    """A group of columns of metrics.csv that share an axis."""

    title: str
    subtitle: str
    columns: dict[str, str] = field(default_factory=dict)
    """Column -> its name in the legend."""
    percent: bool = False


class Line(NamedTuple):
    """One line of a plot."""

    name: str
    colour: str  # a class of the palette
    path: str
    dots: list[tuple[float, float]]  # values without neighbours, which a path does not show
    values: list[float]
    width: float = 1.8
    band: str = ""
    """SVG path of an area around the line, such as its interval."""


class Tick(NamedTuple):
    """A labelled place on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Plot:
    """A line chart: all places are in the units of its view box."""

    title: str
    subtitle: str
    lines: list[Line]
    x: list[float]
    """The place of each epoch."""
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    epochs: list[int]
    guide: Tick | None = None
    """A dashed line with a label, such as the entropy of equal weights."""
    marks: list[Tick] = field(default_factory=list)
    """Dashed lines across, at epochs, with labels."""
    percent: bool = False
    width: float = WIDTH
    height: float = HEIGHT
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM

    @property
    def summary(self) -> str:
        """What the plot shows, for those who cannot see it: the first and the last value of each line."""
        parts = []
        for line in self.lines:
            known = [value for value in line.values if math.isfinite(value)]
            if known:
                ends = " to ".join(short(value, percent=self.percent) for value in dict.fromkeys((known[0], known[-1])))
                parts.append(f"{line.name} {ends}" if line.name else ends)
        return f"{self.title}, {len(self.epochs)} epochs: {'; '.join(parts) or 'no values'}"


def charts(columns: Iterable[str]) -> list[Chart]:
    """Group the columns of metrics.csv: losses together, accuracies together, every other column on its own."""
    groups = {
        "loss": Chart("Loss", "mean over the epoch"),
        "accuracy": Chart("Accuracy", "% of the samples", percent=True),
    }
    alone = []
    for column in columns:
        prefix, _, suffix = column.rpartition("_")
        if suffix in groups and prefix:
            groups[suffix].columns[column] = prefix
        elif column != "epoch":
            title, subtitle = _TITLES.get(column, (drawable(column.replace("_", " "), 36).capitalize(), ""))
            alone.append(Chart(title, subtitle, {column: ""}, percent=column in _SHARES))
    return [chart for chart in groups.values() if chart.columns] + alone


def chart_plot(
    chart: Chart,
    epochs: Sequence[int],
    values: Mapping[str, Sequence[float]],
    palette: Palette,
    *,
    uniform: float | None = None,
) -> Plot:
    """Return the plot of one chart of learning curves; a value that is missing (nan) leaves a gap.

    Args:
        chart: what to draw together.
        epochs: the x of every value.
        values: for each of the chart's columns a value an epoch; accuracies are fractions.
        palette: of the page.
        uniform: the value of equal mixing weights: the axis ends there, with a dashed line.
    """
    spare = colours([name for name in chart.columns.values() if name and name not in _SERIES])
    looks = {
        column: _SERIES.get(name, (drawable(name.replace("_", " "), 32), spare.get(name, _INK)))
        for column, name in chart.columns.items()
    }
    series = [(name, colour, list(values[column])) for column, (name, colour) in looks.items()]
    return plot(chart.title, chart.subtitle, epochs, series, palette, percent=chart.percent, uniform=uniform)


def plot(
    title: str,
    subtitle: str,
    epochs: Sequence[int],
    series: Sequence[tuple[str, str, Sequence[float]]],
    palette: Palette,
    *,
    percent: bool = False,
    uniform: float | None = None,
    width: float = 1.8,
    bands: Sequence[tuple[Sequence[float], Sequence[float]] | None] = (),
) -> Plot:
    """Return a plot of (name, colour, values) lines over the epochs. Accuracies (`percent`) have an axis to 100 %.

    Positive values that span more than two decades have a logarithmic axis, all others one that begins at 0.

    Args:
        title: of the plot.
        subtitle: the unit, and what the lines are.
        epochs: the x of every value.
        series: the lines; a value that is missing (nan) leaves a gap.
        palette: of the page.
        percent: whether the values are accuracies, as fractions.
        uniform: the value of equal mixing weights: the axis ends there, with a dashed line.
        width: of the lines.
        bands: for each line the lower and upper ends of an area around it, or None.
    """
    around = [bands[place] if place < len(bands) else None for place in range(len(series))]
    drawn = [value for _, _, values in series for value in values if math.isfinite(value)]
    ends = [value for band in around if band for end in band for value in end if math.isfinite(value)]
    low, high = min([0.0, *drawn, *ends]), max([0.0, *drawn, *ends])
    if percent:
        high = max(high, 1.0)
    if uniform is not None:
        high = max(high, uniform)
    is_log = not percent and uniform is None and bool(drawn) and 0 < 100 * min(drawn) < max(drawn)
    if is_log:
        low, high = 10 ** math.floor(math.log10(min(drawn))), 10 ** math.ceil(math.log10(max([*drawn, *ends])))
        marks = [10.0**power for power in range(round(math.log10(low)), round(math.log10(high)) + 1)]
    else:
        marks = ticks(low, high)
        low, high = min(low, marks[0]), max(high, marks[-1] if uniform is None else high)

    def at(value: float) -> float:
        share = (
            math.log(max(value, low) / low) / math.log(high / low) if is_log else (value - low) / (high - low or 1.0)
        )
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)

    places = positions(epochs, _LEFT, WIDTH - _RIGHT)
    lines = []
    for (name, colour, values), band in zip(series, around, strict=True):
        path, dots = trace(places, [at(value) if math.isfinite(value) else math.nan for value in values])
        area = (
            ""
            if band is None
            else _area(places, *([at(value) if math.isfinite(value) else math.nan for value in end] for end in band))
        )
        lines.append(Line(name, palette.of(colour), path, dots, list(values), width, area))
    steps = ticks(min(epochs), max(epochs), whole=True)
    by_epoch = dict(zip(map(float, epochs), places, strict=True))
    return Plot(
        title=title,
        subtitle=subtitle,
        lines=lines,
        x=places,
        x_ticks=[Tick(by_epoch[step], f"{step:g}") for step in steps if step in by_epoch],
        y_ticks=[Tick(at(mark), f"{100 * mark:g}" if percent else f"{mark:g}") for mark in marks],
        epochs=list(epochs),
        guide=None if uniform is None else Tick(at(uniform), f"all equal: {uniform:.2f}"),
        percent=percent,
    )


def data_of_plots(plots: Iterable[Plot]) -> dict[str, Any]:
    """Return what the script needs on a page that compares runs: plots whose lines have names, and nothing by epochs."""
    return {
        "epochs": [],
        "plots": [{**plot_data(plot), "names": [line.name for line in plot.lines]} for plot in plots],
        "cells": [],
        "alphaEpochs": [],
        "tables": [],
    }


def plot_data(plot: Plot) -> dict[str, Any]:
    """Return what the script of a page needs to show the values of a plot, as plain lists."""
    return {
        "x": plot.x,
        "epochs": plot.epochs,
        "percent": plot.percent,
        "lines": [
            [float(f"{value:.5g}") if math.isfinite(value) else None for value in line.values] for line in plot.lines
        ],
    }


def positions(epochs: Sequence[int], left: float, right: float) -> list[float]:
    """Return the x of each epoch between two edges; a single one is in the middle."""
    first, last = min(epochs), max(epochs)
    if first == last:
        return [round((left + right) / 2, 1)] * len(epochs)
    return [round(left + (epoch - first) / (last - first) * (right - left), 1) for epoch in epochs]


def trace(xs: Sequence[float], ys: Sequence[float]) -> tuple[str, list[tuple[float, float]]]:
    """Return the SVG path through points, with a gap where y is nan, and the points that have no neighbour."""
    path, dots, run = [], [], []
    for x, y in [*zip(xs, ys, strict=True), (0.0, math.nan)]:
        if math.isfinite(y):
            run.append((x, y))
            continue
        if len(run) == 1:
            dots.append(run[0])
        elif run:
            path.append("M" + " ".join(f"{a:g} {b:g}" for a, b in run))
        run = []
    return "".join(path), dots


def _area(xs: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> str:
    """Return the SVG path between two lines, where both are known."""
    path, run = [], []
    for x, low, high in [*zip(xs, lows, highs, strict=True), (0.0, math.nan, math.nan)]:
        if math.isfinite(low) and math.isfinite(high):
            run.append((x, low, high))
            continue
        if len(run) > 1:
            there = [f"{x:g} {high:g}" for x, _, high in run]
            back = [f"{x:g} {low:g}" for x, low, _ in reversed(run)]
            path.append("M" + " ".join([*there, *back]) + "Z")
        run = []
    return "".join(path)


def ticks(low: float, high: float, *, whole: bool = False, count: int = 5) -> list[float]:
    """Return about `count` round numbers from `low` to `high` or a little above, whole ones on demand."""
    if high <= low:
        return [low] if whole else [low, low + 1.0]
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    if whole:
        step = max(1, math.ceil(step))
    first, last = math.floor(low / step), math.floor(high / step) if whole else math.ceil(high / step - 1e-9)
    return [round(step * place, 12) for place in range(first, last + 1)]


def short(value: float, *, percent: bool = False) -> str:
    """Return a value with the digits that a reader needs."""
    return f"{100 * value:.2f} %" if percent else f"{value:.4g}"
