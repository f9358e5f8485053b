"""All arms of a study on one axis, with the distribution of random architectures, as plain geometry.

The picture is laid out by the page, whatever its width: places are in percent of the width, heights in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from src.reports.numbers import share
from src.reports.plots import Tick, ticks

DOT = 4.5
"""Radius of a dot, in pixels."""
ROW = 46
"""Height of a row: dots above, their mean below."""
_SWARM = 15.0  # where the dots are in a row
_MARGIN = 2.0
_WIDTH = 640.0  # pixels that a swarm of dots reckons with; a page may be narrower
_SQUARE_ROOT_FROM = 6.0  # times the median of random architectures
_APART = 6.5  # percent between labelled ticks
_DENSITY_WIDTH = 1.5


class Dot(NamedTuple):
    """One seed."""

    x: float
    y: float
    text: str


class ArmRow(NamedTuple):
    """A row: an arm with all its seeds."""

    name: str
    colour: str  # a class of the palette
    n: int
    value: str
    """Mean and interval in words."""
    verdict: str
    """How the arm compares with random architectures; nothing where that is not known."""
    dots: list[Dot]
    mean: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Picture:
    """Rows of arms, below each other, with lines across all of them where random architectures are."""

    what: str
    """Whose means are said beside the rows."""
    axis: str
    """What is drawn, its unit, and how the axis goes."""
    ticks: list[Tick]
    rows: list[ArmRow]
    random: str
    """Whose distribution is drawn above the rows; nothing where it is not known."""
    density: str
    marks: list[Tick]
    """Such as the middle one of the random architectures, with labels."""
    worse_half: float
    """From the left end to here are those architectures that half of the random ones exceed."""
    note: str

    @property
    def summary(self) -> str:
        """What the picture shows, for those who cannot see it."""
        return f"{self.axis}; mean and 95 % interval. " + "; ".join(f"{row.name}: {row.value}" for row in self.rows)


@dataclass(frozen=True)
class Axis:
    """Values to places in percent; the better a value, the further right."""

    worst: float
    best: float
    is_root: bool = False

    def at(self, value: float) -> float:
        """Return the place of a value; one that is worse than the axis goes is at its left end."""
        away = min(1.0, max(0.0, (value - self.best) / (self.worst - self.best)))
        return round(100 - _MARGIN - (100 - 2 * _MARGIN) * (math.sqrt(away) if self.is_root else away), 2)

    def ticks(self) -> list[Tick]:
        """Return round values with their places, far enough from each other to be read on a phone."""
        low, high = sorted((self.worst, self.best))
        found: list[Tick] = []
        for mark in _rounded(high) if self.is_root else ticks(low, high):
            tick = Tick(self.at(mark), f"{mark:g}")
            if low <= mark <= high and all(abs(tick.at - other.at) >= _APART for other in found):
                found.append(tick)
        return sorted(found)


class Drawn(NamedTuple):
    """An arm to be drawn.

    Attributes:
        name: of the arm.
        colour: a class of the palette.
        summary: of regrets or scores: n, mean, interval, values.
        texts: of the seeds, one for each value.
        value: mean and interval, in words.
        verdict: how it compares with random architectures, in words.
    """

    name: str
    colour: str
    summary: Mapping[str, Any]
    texts: Sequence[str]
    value: str
    verdict: str = ""


def picture_of_regrets(
    arms: Sequence[Drawn],
    random: Sequence[float],
    marks: Sequence[tuple[str, float]],
    scaled: Callable[[float], float],
    *,
    title: str,
    who: str,
) -> Picture:
    """Return a picture of the regrets of arms, best on the right.

    Args:
        arms: with their regrets.
        random: regrets of random architectures, all equally likely, as they are written.
        marks: what to label, the middle one of the random architectures first, as they are written.
        scaled: a regret, as it is written.
        title: of the axis.
        who: the random architectures are.
    """
    axis = axis_of_regret([scaled(value) for arm in arms for value in arm.summary["values"]], random)
    left = beyond(axis, random)
    return Picture(
        what="regret",
        axis=f"{title} (square-root scale)" if axis.is_root else title,
        ticks=axis.ticks(),
        rows=_rows(arms, axis, scaled),
        random=who,
        density=density(axis, random),
        marks=_marks(marks, axis),
        worse_half=axis.at(marks[0][1]),
        note=f"{share(left)} of the random architectures lie further left than the axis goes." if left >= 0.005 else "",
    )


def picture_of_scores(
    arms: Sequence[Drawn],
    marks: Sequence[tuple[str, float]],
    scaled: Callable[[float], float],
    *,
    higher_is_better: bool,
    what: str,
    title: str,
) -> Picture:
    """Return a picture of the scores of arms, best on the right.

    Args:
        arms: with their scores; random architectures can be one of them.
        marks: as in `picture_of_regrets`.
        scaled: a score, as it is written.
        higher_is_better: whether a larger score is a better one.
        what: a score is.
        title: of the axis.
    """
    drawn = [scaled(value) for arm in arms for value in arm.summary["values"]]
    axis = axis_of_scores(drawn, higher_is_better=higher_is_better)
    return Picture(
        what=what,
        axis=title,
        ticks=axis.ticks(),
        rows=_rows(arms, axis, scaled),
        random="",
        density="",
        marks=_marks(marks, axis),
        worse_half=axis.at(marks[0][1]) if marks else 0.0,
        note="",
    )


def _marks(marks: Sequence[tuple[str, float]], axis: Axis) -> list[Tick]:
    return [Tick(axis.at(value), text) for text, value in marks]


def _rows(arms: Sequence[Drawn], axis: Axis, scaled: Callable[[float], float]) -> list[ArmRow]:
    rows = []
    for arm in arms:
        summary = arm.summary
        ends = sorted(axis.at(scaled(end)) for end in summary["interval"] or ())
        rows.append(
            ArmRow(
                name=arm.name,
                colour=arm.colour,
                n=summary["n"],
                value=arm.value,
                verdict=arm.verdict,
                dots=swarm([axis.at(scaled(value)) for value in summary["values"]], arm.texts),
                mean=axis.at(scaled(summary["mean"])),
                interval=(ends[0], ends[1]) if ends else None,
            )
        )
    return rows


def axis_of_regret(regrets: Sequence[float], random: Sequence[float]) -> Axis:
    """Return an axis that ends at no regret, on the right, and begins at the largest regret of an arm's seeds.

    It shows nine of ten random architectures. Where the largest regret is many times that of the middle one of them,
    the axis goes by the square root, which leaves room where good architectures are.

    Args:
        regrets: of all seeds.
        random: of random architectures, all equally likely.
    """
    worst = max([*regrets, float(np.quantile(random, 0.9))]) or 1.0
    return Axis(worst, 0.0, is_root=0 < float(np.median(random)) * _SQUARE_ROOT_FROM < worst)


def axis_of_scores(scores: Sequence[float], *, higher_is_better: bool = True) -> Axis:
    """Return an axis over scores, of all seeds and of random architectures."""
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    room = 0.04 * (high - low) or 0.01 * abs(high) or 1.0
    return Axis(low - room, high + room) if higher_is_better else Axis(high + room, low - room)


def swarm(places: Sequence[float], texts: Sequence[str]) -> list[Dot]:
    """Return a dot for each place in percent; those that would cover each other lie above and below."""
    apart, step = 100 * 2 * DOT / _WIDTH, 1.2 * DOT
    levels = [0.0, *(sign * step * level for level in (1, 2) for sign in (-1, 1))]
    taken: list[tuple[float, float]] = []
    dots: dict[int, Dot] = {}
    for place in sorted(range(len(places)), key=lambda place: places[place]):
        x = places[place]
        near = [level for at, level in taken if abs(at - x) < apart]
        level = next((level for level in levels if level not in near), levels[len(near) % len(levels)])
        taken.append((x, level))
        dots[place] = Dot(x, round(_SWARM + level, 1), texts[place])
    return [dots[place] for place in range(len(places))]


def density(axis: Axis, values: Sequence[float]) -> str:
    """Return the SVG path of an area, 100 wide and 100 high, over an axis: where random architectures lie.

    Those beyond the left end are left out.
    """
    shown = [value for value in values if abs(value - axis.best) <= abs(axis.worst - axis.best)]
    if not shown:
        return ""
    places = np.array([axis.at(value) for value in shown])
    grid = np.linspace(0.0, 100.0, 101)
    heights = np.exp(-0.5 * ((grid[:, None] - places[None, :]) / _DENSITY_WIDTH) ** 2).sum(axis=1)
    heights *= 96 / heights.max()
    line = " ".join(f"{x:g} {100 - height:.1f}" for x, height in zip(grid, heights, strict=True))
    return f"M0 100L{line}L100 100Z"


def beyond(axis: Axis, values: Sequence[float]) -> float:
    """Return the share of random architectures that lie beyond the left end of an axis."""
    return float(np.mean([abs(value - axis.best) > abs(axis.worst - axis.best) for value in values])) if values else 0.0


def _rounded(high: float) -> list[float]:
    """Return 0 and the powers of ten up to `high`, then their fivefold and twofold: the roundest first."""
    powers = [10.0**power for power in range(math.floor(math.log10(high)) - 2, math.floor(math.log10(high)) + 1)]
    return [0.0, *(digit * power for digit in (1, 5, 2) for power in reversed(powers))]
