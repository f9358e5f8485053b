"""How far a search has decided: plain functions of mixing weights and of architectures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from src.architectures.architecture import Answer

Rows = Mapping[str, Sequence[float]]
"""Mixing weights: key of a choice -> one weight for each candidate."""


def margin(rows: Rows) -> float:
    """Return the mean over keys of the lead of the strongest candidate over the second, a share of the weight."""
    return _mean([top[0] - top[1] for row in rows.values() if len(top := sorted(row, reverse=True)) > 1])


def flips(rows: Rows, before: Rows) -> int:
    """Return for how many keys another candidate is the strongest than was before."""
    return sum(_strongest(row) != _strongest(before[key]) for key, row in rows.items() if key in before)


def skips(choices: Mapping[str, Answer]) -> int:
    """Return how many choices an architecture answers with `skip_connect`."""
    return sum(answer == "skip_connect" for answer in choices.values())


def _strongest(row: Sequence[float]) -> int:
    return max(range(len(row)), key=row.__getitem__)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
