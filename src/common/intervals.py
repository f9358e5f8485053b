"""How far a measured value could be from the true one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from statistics import NormalDist

_QUANTILE = 0.975  # two-sided, 95 %
_Z = NormalDist().inv_cdf(_QUANTILE)


def interval_of_share(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `count` independent samples, by Wilson's score.

    It covers the chance in the choice of the samples: how far another test set of the same size could differ. It says
    nothing about other seeds.
    """
    centre = (share + _Z * _Z / (2 * count)) / (1 + _Z * _Z / count)
    half = _Z / (1 + _Z * _Z / count) * math.sqrt(share * (1 - share) / count + _Z * _Z / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def interval_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of two or more values, by Student's t.

    It covers the chance between runs, such as that of the seed.

    Raises:
        statistics.StatisticsError: there are fewer than two.
    """
    from scipy.special import stdtrit  # noqa: PLC0415 (a report of single runs does without SciPy)

    mean, deviation = statistics.mean(values), statistics.stdev(values)
    half = float(stdtrit(len(values) - 1, _QUANTILE)) * deviation / math.sqrt(len(values))
    return mean - half, mean + half
