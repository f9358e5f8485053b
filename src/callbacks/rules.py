"""What a signal of a search may do: rules over the values that were measured after its epochs.

A rule is a pure function of the values so far, so that a resumed run judges as the straight one did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from src.common.errors import must_be


class Reading(NamedTuple):
    """A value, and the epoch after which it was measured."""

    epoch: int
    value: float


class Verdict(NamedTuple):
    """What a rule says after a reading.

    Attributes:
        judged: what is compared with the limit: the reading, or a mean.
        limit: that it must not pass.
        broken: whether it has passed it.
        epoch: the one whose state is to be returned to if the rule is broken; None if there is none.
    """

    judged: float
    limit: float
    broken: bool
    epoch: int | None


class Rule(Protocol):
    """What a guard asks of a rule. `earliest` is the first epoch that may be returned to."""

    def judge(self, series: Sequence[Reading], earliest: int) -> Verdict | None:
        """Return the verdict after the last reading; None while there is not enough to judge."""
        ...

    def may_return(self, series: Sequence[Reading]) -> list[int]:
        """Return the epochs that the next verdict may return to."""
        ...

    def first_epoch(self, earliest: int, every: int) -> int:
        """Return the first epoch after which the rule can be broken, with a reading every so many epochs from 0 on."""
        ...

    def in_words(self, what: str) -> str:
        """Return when the rule is broken, of what is read, such as `the top eigenvalue`."""
        ...

    def reason(self, what: str, verdict: Verdict) -> str:
        """Return in words why the rule is broken."""
        ...


@dataclass(frozen=True)
class Rise:
    """Broken where the mean of the last `window` readings is more than `ratio` times that of `delta` readings before.

    The early stopping of RobustDARTS (arXiv 1909.09656, section 4.3): m_t / m_(t-4) > 1.3 with m_t the mean of the last 5
    eigenvalues. With a reading every f epochs, the state returned to is that of epoch t - f (window // 2 + delta): of
    the middle of the older window. By default that is t - 6f. No epoch before `earliest` is returned to, so nothing is
    judged before. That is what the official code does (automl/RobustDARTS: src/utils.py, `EVLocalAvg`), but for the means
    of fewer readings that it begins with: here windows are whole.

    Attributes:
        window: readings in a mean.
        delta: readings between the two means.
        ratio: of the later mean to the earlier one.
    """

    window: int = 5
    delta: int = 4
    ratio: float = 1.3

    def __post_init__(self) -> None:
        for name, value in (("window", self.window), ("delta", self.delta)):
            if value < 1:
                raise must_be(name, "1 or more", value)
        if not 1 <= self.ratio < float("inf"):
            raise must_be("ratio", "1 or more", self.ratio)

    @property
    def back(self) -> int:
        """How many readings the state returned to lies before the last one."""
        return self.window // 2 + self.delta

    def judge(self, series: Sequence[Reading], earliest: int) -> Verdict | None:
        """Compare the two means; one of them that is not above 0 has no ratio, and breaks nothing."""
        if len(series) < self.window + self.delta or series[-1 - self.back].epoch < earliest:
            return None
        values = [reading.value for reading in series]
        now = _mean(values[-self.window :])
        limit = self.ratio * _mean(values[-self.window - self.delta : -self.delta])
        return Verdict(now, limit, 0 < limit < now, series[-1 - self.back].epoch)

    def may_return(self, series: Sequence[Reading]) -> list[int]:
        """Return the epochs of the readings that the next one makes the `back`-th before it, and those after them."""
        return [reading.epoch for reading in series[-self.back :]]

    def first_epoch(self, earliest: int, every: int) -> int:
        """Return the first epoch with a verdict."""
        readings = max(self.window + self.delta - 1, self.back - (-earliest // every))
        return readings * every

    def in_words(self, what: str) -> str:
        """Return the condition."""
        return (
            f"the mean of {_readings(self.window)} of {what} exceeds {self.ratio:g} times that of {self.delta} before"
        )

    def reason(self, what: str, verdict: Verdict) -> str:
        """Return the two sides of the comparison."""
        return (
            f"the mean of the last {_readings(self.window)} of {what} is {verdict.judged:.4g}, more than {self.ratio:g} "
            f"times that of {_readings(self.delta)} before, {verdict.limit / self.ratio:.4g}"
        )


@dataclass(frozen=True)
class Limit:
    """Broken where a reading is above a threshold, or below it. The state returned to is the last that obeyed.

    Attributes:
        threshold: that the reading may reach.
        above: whether readings above the threshold break the rule; otherwise those below do.
    """

    threshold: float
    above: bool = True

    def judge(self, series: Sequence[Reading], earliest: int) -> Verdict | None:
        """Compare the last reading."""
        if not series:
            return None
        obeyed = [reading.epoch for reading in series if not self._breaks(reading) and reading.epoch >= earliest]
        last = series[-1]
        return Verdict(last.value, self.threshold, self._breaks(last), obeyed[-1] if obeyed else None)

    def may_return(self, series: Sequence[Reading]) -> list[int]:
        """Return the last epoch that obeyed."""
        return [reading.epoch for reading in series if not self._breaks(reading)][-1:]

    def first_epoch(self, earliest: int, every: int) -> int:
        """Return the first epoch after one that may be returned to."""
        return (1 - (-earliest // every)) * every

    def in_words(self, what: str) -> str:
        """Return the condition."""
        return f"{what} {'exceeds' if self.above else 'falls below'} {self.threshold:g}"

    def reason(self, what: str, verdict: Verdict) -> str:
        """Return the two sides of the comparison."""
        return f"{what} is {verdict.judged:.4g}, {'above' if self.above else 'below'} {verdict.limit:g}"

    def _breaks(self, reading: Reading) -> bool:
        return reading.value > self.threshold if self.above else reading.value < self.threshold


def _readings(count: int) -> str:
    return f"{count} reading{'s' if count > 1 else ''}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
