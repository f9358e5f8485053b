"""Pictures of what happened over a run's epochs: learning curves, the weights of the choices, what was derived."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from src.architectures.architecture import Answer
from src.reports.cells import state_name
from src.reports.drawing import (
    FAINT,
    INK,
    MUTED,
    canvas,
    colours,
    drawable,
    legend,
    legend_height,
    panel,
    settings,
    text_width,
    words,
)
from src.spaces.cnn.genotypes import edge_of

Weights = Mapping[str, Mapping[str, Sequence[float]]]
"""Softmax weights: key of a choice -> candidate -> one value an epoch."""

CELL_NAMES = {"normal": "Normal cell", "reduce": "Reduction cell"}

_SERIES = {
    "train": ("training", "#1f5fa8"),
    "arch": ("alphas' batches", "#f0a458"),
    "val": ("validation", "#b9540a"),
    "test": ("test", "#19754a"),
}
_TITLES = {
    "alpha_entropy": ("Entropy of the alphas", "nats; falls as the choices become decided"),
    "hypergradient_norm": ("Norm of the alphas' gradient", "length of the hypergradient"),
    "correction_ratio": ("Second-order correction", "its size over that of the first-order gradient"),
    "lr": ("Learning rate", "of the weights, set by the schedule"),
}
_LABEL_COLOURS = ("white", INK)


@dataclass(frozen=True)
class Chart:
    """A group of columns of metrics.csv that share an axis."""

    title: str
    subtitle: str
    columns: dict[str, str] = field(default_factory=dict)
    """Column -> its name in the legend."""
    percent: bool = False


def charts(columns: Iterable[str]) -> list[Chart]:
    """Group the columns of metrics.csv: losses together, accuracies together, every other column on its own."""
    groups = {
        "loss": Chart("Loss", "cross-entropy, mean over the epoch"),
        "accuracy": Chart("Accuracy", "% of images", percent=True),
    }
    alone = []
    for column in columns:
        prefix, _, suffix = column.rpartition("_")
        if suffix in groups and prefix:
            groups[suffix].columns[column] = prefix
        elif column != "epoch":
            title, subtitle = _TITLES.get(column, (drawable(column.replace("_", " "), 32).capitalize(), ""))
            alone.append(Chart(title, subtitle, {column: ""}))
    return [chart for chart in groups.values() if chart.columns] + alone


def chart_figure(chart: Chart, epochs: Sequence[float], values: Mapping[str, Sequence[float]]) -> Figure:
    """Draw one chart of learning curves; a value that is missing (nan) leaves a gap.

    Args:
        chart: what to draw together.
        epochs: the x of every value.
        values: for each of the chart's columns a value an epoch; accuracies are fractions.
    """
    with settings():
        width, height, left, bottom = 360.0, 220.0, 46.0, 26.0
        figure, page = canvas(width, height, chart.title)
        page.text(10, 16, chart.title, size=10.5, weight="bold", color=INK, va="center_baseline")
        page.text(10, 31, chart.subtitle, size=8.5, color=MUTED, va="center_baseline")
        spare = colours([name for name in chart.columns.values() if name not in _SERIES])
        looks = {
            column: _SERIES.get(name, (drawable(name.replace("_", " "), 32), spare.get(name, INK)))
            for column, name in chart.columns.items()
        }
        entries = [(colour, name) for name, colour in looks.values()] if len(looks) > 1 else []
        legend(page, entries, left=10, top=39, width=width - 20)
        top = 46 + legend_height([name for _, name in entries], width - 20)
        axes = panel(figure, left, top, width - left - 14, height - top - bottom)
        for column, (_, colour) in looks.items():
            line = [100 * value if chart.percent else value for value in values[column]]
            _line(axes, epochs, line, colour, 1.8)
        _epoch_axis(axes, epochs)
        axes.set_xlabel("epoch", size=8, color=MUTED, labelpad=2)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.ticklabel_format(axis="y", useOffset=False)
        drawn = [value for column in looks for value in values[column] if math.isfinite(value)]
        if not chart.percent and drawn and min(drawn) > 0 and max(drawn) > 100 * min(drawn) and "lr" not in looks:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
    return figure


def edge_name(key: str) -> str:
    """Return how pictures name a choice: an edge of a cell as "state → node", any other by its key."""
    place = edge_of(key)
    return f"{state_name(place.state)} → node {place.node}" if place else drawable(key, 28)


def weights_figure(
    edges: Mapping[tuple[int, int], str],
    weights: Weights,
    epochs: Sequence[int],
    choices: Mapping[str, Answer],
    title: str,
) -> Figure:
    """Draw the weights on a cell's edges over the epochs: a row of panels for each node, a column for each state.

    Args:
        edges: (node, state) -> key.
        weights: what alphas.csv holds.
        epochs: the x of every weight.
        choices: the answers that were derived; their edges are framed.
        title: the line above the panels.
    """
    nodes = sorted({node for node, _ in edges})
    states = sorted({state for _, state in edges})
    places = {key: (nodes.index(node), states.index(state)) for (node, state), key in edges.items()}
    heads = [f"from {state_name(state)}" for state in states]
    sides = [f"into node {node}" for node in nodes]
    return _panels(places, weights, epochs, choices, title, heads=heads, sides=sides)


def choices_figure(
    keys: Sequence[str], weights: Weights, epochs: Sequence[int], choices: Mapping[str, Answer], title: str
) -> Figure:
    """Draw the weights of choices that are not edges of a cell: a panel for each key. Arguments as `weights_figure`."""
    places = {key: divmod(index, 4) for index, key in enumerate(keys)}
    return _panels(places, weights, epochs, choices, title, heads=[], sides=[])


def _panels(
    places: Mapping[str, tuple[int, int]],
    weights: Weights,
    epochs: Sequence[int],
    choices: Mapping[str, Answer],
    title: str,
    *,
    heads: Sequence[str],
    sides: Sequence[str],
) -> Figure:
    """Draw a panel for each key, at its (row, column)."""
    panel_width, panel_height, gap_x, gap_y = 132.0, 72.0, 34.0, 34.0
    with settings():
        candidates = list(dict.fromkeys(name for key in places for name in weights[key]))
        colour_of = colours(candidates)
        columns = 1 + max(column for _, column in places.values())
        rows = 1 + max(row for row, _ in places.values())
        left = 82.0 if sides else 40.0
        width = max(left + columns * (panel_width + gap_x), 420.0)
        entries = [(colour_of[name], words(name)) for name in candidates]
        top = 30 + legend_height([text for _, text in entries], width - 24) + (26 if heads else 2)
        height = top + rows * (panel_height + gap_y) + 6
        figure, page = canvas(width, height, title)
        page.text(12, 16, title, size=10.5, weight="bold", color=INK, va="center_baseline")
        legend(page, entries, left=12, top=28, width=width - 24)
        for column, text in enumerate(heads):
            x = left + column * (panel_width + gap_x)
            page.text(x, top - 8, text, size=9, weight="bold", color=MUTED, va="center_baseline")
        drawn = (value for key in places for line in weights[key].values() for value in line if math.isfinite(value))
        highest = max(drawn, default=1.0)
        for row, text in enumerate(sides):
            y = top + row * (panel_height + gap_y) + gap_y / 2 + panel_height / 2
            page.text(12, y, text, size=9, weight="bold", color=MUTED, va="center_baseline")
        for key, (row, column) in places.items():
            x = left + column * (panel_width + gap_x)
            y = top + row * (panel_height + gap_y) + gap_y - 12
            kept = _answers(choices, key)
            name = "" if heads else f"{drawable(key, 14 if kept else 26)}: " if kept else drawable(key, 26)
            text = name + (", ".join(words(answer) for answer in kept) if kept else "dropped" if heads else "")
            colour = INK if kept or not heads else MUTED
            page.text(x, y - 8, drawable(text, 34), size=8, color=colour, va="center_baseline")
            axes = panel(figure, x, y, panel_width, panel_height)
            if kept:
                for spine in axes.spines.values():
                    spine.set_visible(True)
                    spine.set_color(INK)
                    spine.set_linewidth(1.3)
            for candidate, line in weights[key].items():
                chosen = candidate in kept
                _line(axes, epochs, line, colour_of[candidate], 2.4 if chosen else 1.2)
            _epoch_axis(axes, epochs)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.set_ylim(0, 1.06 * highest)
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.tick_params(labelsize=7, labelbottom=row == rows - 1 or (row + 1, column) not in places.values())
    return figure


def heat_figure(
    keys: Sequence[str], weights: Mapping[str, Mapping[str, float]], choices: Mapping[str, Answer], title: str
) -> Figure:
    """Draw the final weights as a table, a row for each key and a column for each candidate; answers are framed.

    Args:
        keys: the rows; all must have the same candidates.
        weights: key -> candidate -> final softmax weight.
        choices: the answers that were derived.
        title: the line above the table.
    """
    with settings():
        candidates = list(weights[keys[0]])
        names = [edge_name(key) for key in keys]
        cell_width, cell_height = 62.0, 19.0
        left = 24 + max(text_width(name, 8.5) for name in names)
        top = 62.0
        width = max(left + cell_width * len(candidates) + 14, 300.0)
        figure, axes = canvas(width, top + cell_height * len(keys) + 12, title)
        axes.text(12, 16, title, size=10.5, weight="bold", color=INK, va="center_baseline")
        for column, candidate in enumerate(candidates):
            x = left + cell_width * (column + 0.5)
            for number, line in enumerate(_two_lines(words(candidate))):
                axes.text(x, 38 + 11.5 * number, line, size=8, color=MUTED, ha="center", va="center_baseline")
        highest = max(
            (weight for key in keys for weight in weights[key].values() if math.isfinite(weight)), default=1.0
        )
        frames = []
        for row, (key, name) in enumerate(zip(keys, names, strict=True)):
            y = top + cell_height * row
            kept = _answers(choices, key)
            axes.text(
                left - 8,
                y + cell_height / 2,
                name,
                size=8.5,
                color=INK if kept else MUTED,
                ha="right",
                va="center_baseline",
            )
            for column, candidate in enumerate(candidates):
                x = left + cell_width * column
                weight = weights[key][candidate]
                share = weight / highest if math.isfinite(weight) and highest > 0 else 0.0
                axes.add_patch(Rectangle((x, y), cell_width, cell_height, facecolor=_blue(share), edgecolor="white"))
                axes.text(
                    x + cell_width / 2,
                    y + cell_height / 2,
                    f"{weight:.3f}",
                    size=8,
                    color=_LABEL_COLOURS[share < 0.6],
                    ha="center",
                    va="center_baseline",
                    weight="bold" if candidate in kept else "normal",
                )
                if candidate in kept:
                    frames.append((x, y))
        for x, y in frames:
            axes.add_patch(
                Rectangle(
                    (x + 1, y + 1), cell_width - 2, cell_height - 2, facecolor="none", edgecolor="#c2185b", linewidth=2
                )
            )
    return figure


def history_figure(
    history: Mapping[int, Mapping[str, Answer]], candidates: Mapping[str, Iterable[str]], title: str
) -> Figure:
    """Draw which operation each epoch's architecture has on each edge; an edge that was dropped stays empty.

    Args:
        history: epoch -> answers, as the files `checkpoints/epoch_{N}.json` hold them.
        candidates: key -> its candidates; the keys are the rows.
        title: the line above the drawing.
    """
    with settings():
        keys = list(candidates)
        epochs = sorted(history)
        names = [edge_name(key) for key in keys]
        answers = {answer for epoch in epochs for key in keys for answer in _answers(history[epoch], key)}
        known = dict.fromkeys(name for key in keys for name in candidates[key])
        colour_of = {name: colour for name, colour in colours([*known, *sorted(answers)]).items() if name in answers}
        left = 24 + max(text_width(name, 8.5) for name in names)
        line = 15.0
        inner = min(max(14.0 * len(epochs), 280.0), 620.0)
        step = inner / len(epochs)
        entries = [(colour_of[name], words(name)) for name in sorted(colour_of, key=words)]
        width = left + inner + 14
        top = 34 + legend_height([text for _, text in entries], width - 24)
        figure, axes = canvas(width, top + line * len(keys) + 34, title)
        axes.text(12, 16, title, size=10.5, weight="bold", color=INK, va="center_baseline")
        legend(axes, entries, left=12, top=26, width=width - 24)
        for row, (key, name) in enumerate(zip(keys, names, strict=True)):
            y = top + line * row
            axes.text(left - 8, y + line / 2, name, size=8.5, color=INK, ha="right", va="center_baseline")
            axes.plot([left, left + inner], [y + line / 2] * 2, color=FAINT, linewidth=0.6, zorder=0)
            kept = [_answers(history[epoch], key) for epoch in epochs]
            ends = [place for place in range(1, len(kept) + 1) if place == len(kept) or kept[place] != kept[place - 1]]
            for start, end in zip([0, *ends], ends, strict=False):
                for place, answer in enumerate(kept[start]):
                    height = (line - 3) / len(kept[start])
                    corner, size = (left + step * start, y + 1.5 + height * place), (step * (end - start) - 0.7, height)
                    axes.add_patch(Rectangle(corner, *size, facecolor=colour_of[answer], edgecolor="none"))
        every = max(1, math.ceil(len(epochs) * 24 / inner))
        for place in range(0, len(epochs), every):
            x = left + step * (place + 0.5)
            axes.text(x, top + line * len(keys) + 8, str(epochs[place]), size=8, color=MUTED, ha="center", va="center")
        axes.text(left + inner / 2, top + line * len(keys) + 23, "epoch", size=8, color=MUTED, ha="center", va="center")
    return figure


def _line(axes: Axes, epochs: Sequence[float], values: Sequence[float], colour: str, width: float) -> None:
    marker = "o" if sum(map(math.isfinite, values)) <= 3 else ""
    axes.plot(epochs, values, color=colour, linewidth=width, marker=marker, markersize=3.5)


def _epoch_axis(axes: Axes, epochs: Sequence[float]) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    first, last = min(epochs), max(epochs)
    pad = max(0.02 * (last - first), 0.15)
    axes.set_xlim(first - pad, last + pad)


def _answers(choices: Mapping[str, Answer], key: str) -> tuple[str, ...]:
    answer = choices.get(key)
    return (answer,) if isinstance(answer, str) else tuple(answer or ())


def _two_lines(text: str) -> list[str]:
    """Break a text at the space that makes its longer line shortest."""
    parts = text.split(" ")
    breaks = [[" ".join(parts[:i]), " ".join(parts[i:])] for i in range(1, len(parts))]
    return min(breaks, key=lambda lines: max(map(len, lines)), default=[text])


def _blue(share: float) -> tuple[float, float, float]:
    """Return a shade from nearly white to the dark blue of the palette."""
    low, high = (0.953, 0.965, 0.976), (0.122, 0.373, 0.659)
    return tuple(a + share * (b - a) for a, b in zip(low, high, strict=True))  # pyright: ignore[reportReturnType]
