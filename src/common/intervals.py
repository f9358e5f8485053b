"""How far a measured value could be from the true one."""

from __future__ import annotations

import math
from statistics import NormalDist

_Z = NormalDist().inv_cdf(0.975)  # two-sided, 95 %


def interval_of_share(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `count` independent samples, by Wilson's score.

    It covers the chance in the choice of the samples: how far another test set of the same size could differ. It says
    nothing about other seeds.
    """
    centre = (share + _Z * _Z / (2 * count)) / (1 + _Z * _Z / count)
    half = _Z / (1 + _Z * _Z / count) * math.sqrt(share * (1 - share) / count + _Z * _Z / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)
