"""Numbers as reports write them."""

from __future__ import annotations

from typing import NamedTuple

UNKNOWN = "-"


def duration(seconds: float | None) -> str:
    """Return a time in the two largest units that it has, or "-" where it is not known."""
    if seconds is None:
        return UNKNOWN
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def millions(number: float | None) -> str:
    """Return a count in millions, or "-" where it is not known."""
    return UNKNOWN if number is None else f"{number / 1e6:.2f}" if number >= 1e5 else f"{number / 1e6:.4f}"


class Unit(NamedTuple):
    """How scores are written.

    Attributes:
        is_share: whether they are shares of all samples, which are written in percent.
    """

    is_share: bool

    @classmethod
    def of(cls, metric: str) -> Unit:
        """Return how scores of a metric are written."""
        return cls(metric == "accuracy")

    @property
    def points(self) -> str:
        """What differences are counted in; nothing where scores have no unit."""
        return "percentage points" if self.is_share else ""

    def scaled(self, value: float) -> float:
        """Return a score, or a difference of scores, as it is written: in percent, or percentage points."""
        return 100 * value if self.is_share else value

    def score(self, value: float | None) -> str:
        """Return a score with its unit."""
        return UNKNOWN if value is None else f"{self._digits(value)} %" if self.is_share else self._digits(value)

    def difference(self, value: float | None, *, signed: bool = False) -> str:
        """Return a difference of scores without its unit, in percentage points where scores are shares."""
        if value is None:
            return UNKNOWN
        text = self._digits(abs(value))
        if value < 0 and float(text):
            return f"-{text}"
        return f"+{text}" if signed and float(text) else text

    def _digits(self, value: float) -> str:
        return f"{100 * value:.2f}" if self.is_share else f"{value:.4g}"


def share(value: float | None) -> str:
    """Return a share in whole percent, with a digit more next to 0 and 100, of which it says only what it is."""
    if value is None:
        return UNKNOWN
    if 0 < value < 0.0005 or 0.9995 < value < 1:
        return "< 0.1 %" if value < 0.5 else "> 99.9 %"
    return f"{100 * value:.1f} %" if 0.99 <= value < 1 or 0 < value <= 0.01 else f"{100 * value:.0f} %"


def chance(p: float | None, level: float = 0.05) -> str:
    """Return a p-value with two digits, or `< 0.001`; one next to the level of a test has more, and is not rounded to it."""
    if p is None:
        return UNKNOWN
    if p < 0.001:
        return "< 0.001"
    digits = next((digits for digits in (2, 3, 4) if p == level or float(f"{p:.{digits}g}") != level), 5)
    return f"{p:.{digits}g}"


def p_value(p: float | None, level: float = 0.05) -> str:
    """Return a p-value for a sentence: `p = 0.031`, or `p < 0.001`."""
    text = chance(p, level)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def count(value: float | None) -> str:
    """Return how many of something, with a digit after the point where that is small and not whole."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value >= 10 or value == round(value) else f"{value:.1f}"
