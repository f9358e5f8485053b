"""Rules that pick an epoch without a table, on rows whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from src.callbacks.rules import Rise
from src.common.errors import ConfigError
from src.studies.stopping import (
    RULES,
    Rows,
    before_overfitting,
    before_rise,
    before_skips,
    highest,
    last,
    lowest,
    settled,
)

MISSING = math.nan


def rows(column: str, values: Sequence[float]) -> Rows:
    """Rows of metrics.csv with one column; a value that is missing is absent."""
    return [
        {"epoch": float(epoch), "lr": 0.1} | ({} if math.isnan(value) else {column: value})
        for epoch, value in enumerate(values)
    ]


def test_the_last_epoch() -> None:
    assert last(rows("val_loss", [3.0, 2.0, 1.0])) == 2


def test_the_extreme_of_a_column_is_that_of_its_first_epoch() -> None:
    values = [MISSING, 3.0, 1.0, math.inf, 1.0, 2.0]
    assert lowest("val_loss", rows("val_loss", values)) == 2
    assert highest("val_accuracy", rows("val_accuracy", [0.1, 0.4, 0.2, 0.4, MISSING])) == 1


def test_the_eigenvalue_returns_to_where_the_guard_would() -> None:
    rule = Rise(window=1, delta=2, ratio=1.3)
    risen = rows("alpha_eigenvalue", [1.0, 1.0, 1.0, 1.0, 1.4, 1.4, 9.0])
    assert before_rise(risen, rule=rule, earliest=1) == 2, "1.4 is more than 1.3 times what was two epochs before"
    assert before_rise(risen, rule=rule, earliest=4) == 4, "no epoch before 4 is returned to: 9 is the next to break it"
    assert before_rise(rows("alpha_eigenvalue", [1.0] * 7), rule=rule, earliest=1) == 6
    assert before_rise(rows("guard/eigenvalue", [1.0, 1.0, 1.0, 1.4, 1.0]), rule=rule, earliest=0) == 1
    every_second = [1.0, MISSING, 1.0, MISSING, 1.0, MISSING, 2.0, MISSING]
    assert before_rise(rows("alpha_eigenvalue", every_second), rule=rule, earliest=0) == 2
    early = rows("alpha_eigenvalue", [1.0] * 12 + [8.0] * 8)
    assert before_rise(early) == 10, "with the defaults of the paper: the first reading of 8 is judged in epoch 16"


def test_skips() -> None:
    assert before_skips(rows("skip_count", [0, 1, 2, 2, 3, 1])) == 3
    assert before_skips(rows("skip_count", [0, 1, 2, 2, 3, 1]), most=1) == 1
    assert before_skips(rows("skip_count", [0, 1, 2])) == 2
    assert before_skips(rows("skip_count", [4, 5])) == 0


def test_settled() -> None:
    assert settled(rows("argmax_flips", [2, 0, 0, 1, 0, 0, 0, 0]), epochs=3) == 6
    assert settled(rows("argmax_flips", [2, 0, 0, 1, 0, 0]), epochs=3) == 5, "never: the last"
    with pytest.raises(ConfigError, match="epochs must be 1 or more, got 0"):
        settled([], epochs=0)


def test_patience_does_not_look_ahead() -> None:
    losses = rows("val_loss", [3.0, 2.0, 2.5, 2.2, 2.1, 1.0])
    assert before_overfitting(losses, patience=3) == 1
    assert before_overfitting(losses, patience=4) == 5
    assert lowest("val_loss", losses) == 5
    with pytest.raises(ConfigError, match="patience must be 1 or more, got 0"):
        before_overfitting([], patience=0)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_without_what_it_looks_at_picks_nothing(name: str) -> None:
    rule = RULES[name]
    assert rule([]) is None
    assert rule(rows("another", [1.0, 2.0])) == (1 if name == "last" else None)
    assert rule.words.startswith("the ")


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.looks_back])
def test_a_rule_that_looks_back_would_have_ended_the_search(name: str) -> None:
    """Once it has picked an epoch before the last, what comes later does not matter."""
    columns = {
        "val_loss": [2.0, 1.0] + [1.5] * 28,
        "alpha_eigenvalue": [1.0] * 15 + [3.0] * 15,
        "skip_count": [0.0] * 5 + [4.0] * 25,
        "argmax_flips": [1.0] * 3 + [0.0] * 27,
    }
    made = [{"epoch": float(e)} | {name: column[e] for name, column in columns.items()} for e in range(30)]
    picked = RULES[name](made)
    assert picked is not None
    assert picked < 28
    worse = [row | {"val_loss": 0.1, "alpha_eigenvalue": 0.1, "skip_count": 0.0} for row in made[25:]]
    assert RULES[name]([*made[:25], *worse]) == picked
