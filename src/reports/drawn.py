"""An architecture as a notebook shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

from src.architectures.architecture import Architecture
from src.reports.cells import cell_figure
from src.reports.drawing import to_svg
from src.reports.names import CELL_NAMES, answers_of, words
from src.reports.page import cells_of, operations_in


@dataclass(frozen=True)
class Drawing:
    """Pictures or a table of an architecture; the last line of a notebook's cell shows it.

    Attributes:
        svgs: the pictures, SVG by name: `normal` and `reduce` for cells, none for other spaces.
        answers: (choice, answer) for other spaces.
    """

    svgs: Mapping[str, str] = field(repr=False)
    answers: tuple[tuple[str, str], ...] = ()

    def _repr_html_(self) -> str:
        if self.svgs:
            return "".join(f'<div style="max-width: 100%; overflow-x: auto">{svg}</div>' for svg in self.svgs.values())
        rows = "".join(f"<tr><td>{escape(key)}</td><td>{escape(answer)}</td></tr>" for key, answer in self.answers)
        return f"<table><thead><tr><th>choice</th><th>answer</th></tr></thead><tbody>{rows}</tbody></table>"


def draw(architecture: Architecture) -> Drawing:
    """Return the drawing of an architecture of any space."""
    cells = cells_of(architecture.choices)
    if cells:
        used = operations_in(cells)
        return Drawing(
            {kind: to_svg(cell_figure(nodes, CELL_NAMES[kind], among=used)) for kind, nodes in cells.items()}
        )
    choices = architecture.choices
    return Drawing({}, tuple((key, ", ".join(map(words, answers_of(choices, key))) or "none") for key in choices))
