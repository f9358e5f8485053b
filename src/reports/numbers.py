"""Numbers as reports write them, and the intervals that go with them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

UNKNOWN = "-"
_TWO_SIDED = 0.975  # the quantile of an interval that holds 95 %


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


def interval_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of two or more values, by Student's t.

    Raises:
        statistics.StatisticsError: there are fewer than two.
    """
    from scipy.special import stdtrit  # noqa: PLC0415 (a report of single runs does without SciPy)

    mean, deviation = statistics.mean(values), statistics.stdev(values)
    half = float(stdtrit(len(values) - 1, _TWO_SIDED)) * deviation / math.sqrt(len(values))
    return mean - half, mean + half
