"""What all pictures share: how operations look, text that is safe to draw, and the ways out of a figure.

Pictures are made with matplotlib's objects, never pyplot, so that drawing one changes no global state. One drawing
serves the report (SVG) and the loggers (PNG or array).
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

PNG_DPI = 144
FONT = "DejaVu Sans"  # comes with matplotlib
INK, MUTED, FAINT = "#1f2429", "#66707a", "#d5dade"

_SETTINGS: dict[Any, Any] = {
    "font.family": FONT,
    "svg.fonttype": "none",
    "svg.hashsalt": "darts",
    "text.parse_math": False,  # a `$` in somebody's key is a dollar sign
    "axes.unicode_minus": False,
}


@lru_cache(maxsize=1024)
def text_width(text: str, size: float) -> float:
    """Return the width in points of one line of text."""
    with quiet(), settings():
        path = TextPath((0, 0), text, size=size, prop=FontProperties(family=FONT))
        return float(path.get_extents().width) if len(path.vertices) else 0.0


def canvas(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """Return a figure of `width` x `height` points and axes over all of it: x to the right, y down, both in points.

    `title` names the picture to those who cannot see it.
    """
    figure = Figure(figsize=(width / 72, height / 72), dpi=PNG_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.set_label(title)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return figure, axes


def legend(
    axes: Axes, entries: Sequence[tuple[str, str]], *, left: float, top: float, width: float, size: float = 8.5
) -> None:
    """Draw (colour, text) entries side by side, in lines that wrap at `width` points."""
    for (colour, text), (dx, dy) in zip(entries, _flow([text for _, text in entries], width, size), strict=True):
        x, y = left + dx, top + dy + (size + 6) / 2
        axes.plot([x, x + 13], [y, y], color=colour, linewidth=3, solid_capstyle="round")
        axes.text(x + 18, y, text, size=size, color=INK, va="center_baseline")


def _flow(texts: Sequence[str], width: float, size: float) -> list[tuple[float, float]]:
    """Return where each entry of a legend starts, from the legend's top left corner."""
    places = []
    x = y = 0.0
    for text in texts:
        needed = 18 + text_width(text, size)
        if x > 0 and x + needed > width:
            x, y = 0.0, y + size + 6
        places.append((x, y))
        x += needed + 18
    return places


@contextmanager
def settings() -> Iterator[None]:
    """Draw with this project's matplotlib settings, whatever the user's own are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Do not warn of characters that the font lacks: the browser has others, and a PNG shows a box."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield


def to_svg(figure: Figure) -> str:
    """Return a figure as an SVG element to put into a page; the same figure always gives the same text."""
    buffer = io.StringIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with quiet(), settings():
        figure.savefig(buffer, format="svg", metadata={**metadata, "Title": figure.get_label() or None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' d="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), svg)
    svg = svg.replace(f"'{FONT}'", f"'{FONT}', Verdana, sans-serif")
    # A page holds many figures, and ids must be unique within it.
    prefix = "f" + hashlib.sha256(svg.encode("utf-8", "replace")).hexdigest()[:10]
    svg = re.sub(r'\b(id="|url\(#|xlink:href="#)', rf"\g<1>{prefix}-", svg)
    return svg.replace("<svg ", '<svg role="img" ', 1)


def to_png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file, at 144 dots per inch."""
    buffer = io.BytesIO()
    with quiet(), settings():
        figure.savefig(buffer, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return buffer.getvalue()


def to_array(figure: Figure) -> np.ndarray:
    """Return a figure as a uint8 array of shape (height, width, 3), at 144 dots per inch."""
    with quiet(), settings():
        drawing = FigureCanvasAgg(figure)
        drawing.draw()
    return np.asarray(drawing.buffer_rgba())[..., :3].copy()
