"""Mixing weights as a picture for the loggers; the page has tables that its reader can move through the epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from src.architectures.architecture import Answer
from src.reports.drawing import INK, MUTED, canvas, settings, text_width
from src.reports.names import answers_of, edge_name, words

_LABEL_COLOURS = ("white", INK)


def heat_figure(
    keys: Sequence[str], weights: Mapping[str, Mapping[str, float]], choices: Mapping[str, Answer], title: str
) -> Figure:
    """Draw mixing weights as a table: a row for each choice, a column for each candidate, the answers framed.

    Args:
        keys: the choices; all must have the same candidates.
        weights: choice -> candidate -> mixing weight.
        choices: the architecture that the weights give.
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
            kept = answers_of(choices, key)
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


def _two_lines(text: str) -> list[str]:
    """Break a text at the space that makes its longer line shortest."""
    parts = text.split(" ")
    breaks = [[" ".join(parts[:i]), " ".join(parts[i:])] for i in range(1, len(parts))]
    return min(breaks, key=lambda lines: max(map(len, lines)), default=[text])


def _blue(share: float) -> tuple[float, float, float]:
    """Return a shade from nearly white to the dark blue of the palette."""
    low, high = (0.953, 0.965, 0.976), (0.122, 0.373, 0.659)
    return tuple(a + share * (b - a) for a, b in zip(low, high, strict=True))  # pyright: ignore[reportReturnType]
