from __future__ import annotations

import pytest

from src.methods.schedules import Linear, Progress, value_at


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Linear(10.0, 0.1), [10.0, 10 - 9.9 * 25 / 50, 0.1]),
        (Linear(0.03, 0.3, reaches_last=False), [0.03, 0.03 + 0.27 * 25 / 51, 0.03 + 0.27 * 50 / 51]),
        (0.5, [0.5, 0.5, 0.5]),
        (lambda progress: progress.epoch / progress.epochs, [0.0, 25 / 51, 50 / 51]),
    ],
)
def test_first_middle_and_last_epoch(schedule: object, values: list[float]) -> None:
    found = [value_at(schedule, Progress(epoch, 51)) for epoch in (0, 25, 50)]  # pyright: ignore[reportArgumentType]
    assert found == pytest.approx(values, rel=1e-14)


@pytest.mark.parametrize("reaches_last", [True, False])
def test_a_search_of_one_epoch_has_the_first_value(reaches_last: bool) -> None:
    assert value_at(Linear(2.0, 8.0, reaches_last=reaches_last), Progress(0, 1)) == 2.0
