"""The rules of the guard, on series of which every verdict is written out by hand."""

from __future__ import annotations

import pytest

from src.callbacks.rules import Limit, Reading, Rise, Rule, Verdict
from src.common.errors import ConfigError


def verdicts(rule: Rule, values: dict[int, float], earliest: int) -> dict[int, Verdict | None]:
    """Return the verdict after each reading."""
    series: list[Reading] = []
    found = {}
    for epoch, value in values.items():
        series.append(Reading(epoch, value))
        found[epoch] = rule.judge(series, earliest)
    return found


def broken(found: dict[int, Verdict | None]) -> dict[int, int | None]:
    """Return epoch -> the epoch returned to, for each broken verdict."""
    return {epoch: verdict.epoch for epoch, verdict in found.items() if verdict is not None and verdict.broken}


def step(at: int, every: int, epochs: int = 50) -> dict[int, float]:
    """A step of the eigenvalue from 1 to 1.4, with a reading every so many epochs."""
    return {epoch: 1.0 if epoch < at else 1.4 for epoch in range(0, epochs, every)}


# With k readings of 1.4 among the last five, the mean is 1 + 0.08 k, and that of four readings before still 1: 1.08, 1.16,
# 1.24, then 1.32 > 1.3. So the fourth reading of 1.4 breaks the rule. The fifth does too: 1.4 / 1.08 < 1.3 does not.
def test_a_step_with_an_eigenvalue_every_epoch() -> None:
    found = verdicts(Rise(), step(20, every=1), earliest=10)
    assert broken(found) == {23: 17}  # 23 - 6 * 1
    before, now = found[22], found[23]
    assert before is not None
    assert now is not None
    assert (before.judged, before.limit, before.epoch) == (pytest.approx(1.24), pytest.approx(1.3), 16)
    assert (now.judged, now.limit, now.epoch) == (pytest.approx(1.32), pytest.approx(1.3), 17)


def test_a_step_with_an_eigenvalue_every_two_epochs() -> None:
    found = verdicts(Rise(), step(30, every=2), earliest=10)
    assert broken(found) == {36: 24}  # 36 - 6 * 2


@pytest.mark.parametrize(("every", "first"), [(1, 16), (2, 22)])
def test_no_epoch_before_the_tenth_is_returned_to(every: int, first: int) -> None:
    early = verdicts(Rise(), step(2 * every, every), earliest=10)
    assert next(epoch for epoch, verdict in early.items() if verdict is not None) == first
    assert broken(early) == {}
    # The fourth reading of 1.4 is the first that is judged.
    assert broken(verdicts(Rise(), step(first - 3 * every, every), earliest=10)) == {first: 10}
    # One epoch earlier there is nobody to judge it.
    assert broken(verdicts(Rise(), step(first - 4 * every, every), earliest=10)) == {}


def test_the_uncorrected_window_would_return_to_another_epoch() -> None:
    """The state is that of the middle of the older window, not of the older window's last reading."""
    assert (Rise().back, Rise(window=1).back, Rise(window=3, delta=2).back) == (6, 4, 3)


def test_a_mean_that_is_not_positive_has_no_ratio() -> None:
    rise = Rise(window=1, delta=1, ratio=2.0)
    assert broken(verdicts(rise, dict(enumerate([-1.0, 3.0, 0.0, 5.0, 5.0])), earliest=0)) == {}
    assert broken(verdicts(rise, dict(enumerate([1.0, 2.0, 5.0])), earliest=0)) == {2: 1}


def test_a_limit_returns_to_the_last_epoch_that_obeyed() -> None:
    values = dict(enumerate([2.0, 5.0, 3.0, 4.0, 6.0, 7.0, 4.0]))
    assert broken(verdicts(Limit(4.0), values, earliest=0)) == {1: 0, 4: 3, 5: 3}
    assert broken(verdicts(Limit(4.0), values, earliest=3)) == {1: None, 4: 3, 5: 3}
    assert broken(verdicts(Limit(4.0, above=False), values, earliest=0)) == {0: None, 2: 1}


@pytest.mark.parametrize("rule", [Rise(), Rise(window=1, delta=1), Rise(window=4, delta=2), Limit(1.2)])
@pytest.mark.parametrize("every", [1, 3])
def test_what_a_verdict_returns_to_was_foretold(rule: Rule, every: int) -> None:
    """A state has to be kept before the verdict that returns to it."""
    series: list[Reading] = []
    for epoch, value in step(20, every).items():
        foretold = rule.may_return(series)
        series.append(Reading(epoch, value))
        verdict = rule.judge(series, 0)
        if verdict is not None and verdict.broken:
            assert verdict.epoch in foretold


@pytest.mark.parametrize("rule", [Rise(), Rise(window=9, delta=1), Limit(1.2)])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("earliest", [0, 10])
def test_the_first_epoch_that_can_break_a_rule(rule: Rule, every: int, earliest: int) -> None:
    rising = {epoch: 2.0**epoch - (epoch == earliest) * 2.0**epoch for epoch in range(0, 60, every)}
    if isinstance(rule, Limit):
        first = next(epoch for epoch in rising if epoch >= earliest)
        rising = {epoch: 1.0 if epoch <= first else 2.0 for epoch in rising}
    assert min(broken(verdicts(rule, rising, earliest))) == rule.first_epoch(earliest, every)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window": 0}, "window must be 1 or more, got 0"),
        ({"delta": 0}, "delta must be 1 or more, got 0"),
        ({"ratio": 0.9}, "ratio must be 1 or more, got 0.9"),
        ({"ratio": float("nan")}, "ratio must be 1 or more, got nan"),
    ],
)
def test_what_a_rise_refuses(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Rise(**wrong)  # pyright: ignore[reportArgumentType]
