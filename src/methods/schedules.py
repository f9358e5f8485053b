"""Values that change over a search. A schedule is a pure function of the epoch, so a resumed search is exact.

Wherever a method takes a schedule, it takes a number too: the same value in every epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from src.common.errors import must_be


class Progress(NamedTuple):
    """The position in a search: the epoch, counted from 0, and the number of epochs."""

    epoch: int
    epochs: int


Schedule = Callable[[Progress], float] | float


def value_at(schedule: Schedule, progress: Progress) -> float:
    """Return the value of a schedule in an epoch."""
    return schedule(progress) if callable(schedule) else schedule


def not_negative_at(argument: str, schedule: Schedule, progress: Progress) -> float:
    """Return the value of a schedule, the argument of that name, in an epoch.

    Raises:
        ConfigError: it is below 0.
    """
    value = value_at(schedule, progress)
    if not value >= 0:
        raise must_be(argument, "0 or more in every epoch", f"{value:g} in epoch {progress.epoch}")
    return value


def positive_at(argument: str, schedule: Schedule, progress: Progress) -> float:
    """Return the value of a schedule, the argument of that name, in an epoch.

    Raises:
        ConfigError: it is not above 0.
    """
    value = value_at(schedule, progress)
    if not value > 0:
        raise must_be(argument, "above 0 in every epoch", f"{value:g} in epoch {progress.epoch}")
    return value


@dataclass(frozen=True)
class Linear:
    """A straight line from `first` in epoch 0 to `last`.

    `last` is the value of the last epoch, E - 1, or with `reaches_last=False` that of epoch E, which does not exist.
    Published methods use one or the other.
    """

    first: float
    last: float
    reaches_last: bool = True

    def __call__(self, progress: Progress) -> float:
        """Return the value in an epoch."""
        steps = progress.epochs - 1 if self.reaches_last else progress.epochs
        return self.first + (self.last - self.first) * progress.epoch / max(1, steps)
