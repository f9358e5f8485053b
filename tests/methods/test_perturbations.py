from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from src.common.errors import ConfigError
from src.methods.perturbations import AdversarialSmoothing, RandomSmoothing, project
from src.methods.schedules import Progress

FIRST = Progress(0, 1)
ROW = torch.tensor([1 / 6, 1 / 3, 1 / 2], dtype=torch.float64)


def unused(mixing: object) -> Tensor:
    raise AssertionError


def smoothed(rows: dict[str, Tensor], radius: float, seed: int = 0) -> dict[str, Tensor]:
    return RandomSmoothing(radius=radius)(rows, unused, FIRST, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("noise", "expected"),
    [
        ([0.0, 0.0, 0.0], [1 / 6, 1 / 3, 1 / 2]),
        ([-0.3, 0.0, 0.3], [0.0, 5 / 17, 12 / 17]),
        ([-1.0, -1.0, -1.0], [0.0, 0.0, 1.0]),  # all are clipped to 0: one-hot at the largest
        ([-1.0, -0.5, -1.0], [0.0, 1.0, 0.0]),
        ([2.0, 0.0, 2.0], [3 / 7, 1 / 7, 3 / 7]),
    ],
)
def test_the_projection_by_hand(noise: list[float], expected: list[float]) -> None:
    other = torch.tensor([0.5, 0.5], dtype=torch.float64)
    rows = project({"edge": ROW + torch.tensor(noise, dtype=torch.float64), "other": other})
    torch.testing.assert_close(rows["edge"], torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(rows["other"], other)


def test_noise_is_uniform_within_the_radius() -> None:
    """Rows of which nothing is clipped: noise moves a weight by at most the radius before the division."""
    wide = torch.full((100,), 0.01, dtype=torch.float64)
    row = smoothed({"edge": wide}, 0.005)["edge"]
    uniform = torch.rand(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noisy = wide + 0.005 * (2 * uniform - 1)
    torch.testing.assert_close(row, noisy / noisy.sum())


@given(
    st.lists(st.lists(st.floats(-6, 6), min_size=1, max_size=6), min_size=1, max_size=4),
    st.floats(0, 3),
    st.integers(0, 2**32),
)
def test_results_are_mixing_weights(alphas: list[list[float]], radius: float, seed: int) -> None:
    rows = {str(index): torch.tensor(row, dtype=torch.float64).softmax(0) for index, row in enumerate(alphas)}
    before = {key: row.clone() for key, row in rows.items()}
    result = smoothed(rows, radius, seed)
    assert list(result) == list(rows) or set(result) == set(rows)
    for key, row in result.items():
        assert row.shape == rows[key].shape
        assert row.dtype == rows[key].dtype
        assert bool((row >= 0).all())
        assert math.isclose(float(row.sum()), 1.0, rel_tol=1e-12)
        assert torch.equal(rows[key], before[key])
    assert all(torch.equal(row, smoothed(rows, radius, seed)[key]) for key, row in result.items())
    if radius == 0:
        torch.testing.assert_close(result, rows)


def test_the_default_radius_is_the_papers() -> None:
    wide = torch.full((100,), 0.5, dtype=torch.float64)
    uniform = torch.rand(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for epoch, radius in ((0, 0.03), (25, 0.165), (49, 0.03 + 0.27 * 49 / 50)):
        generator = torch.Generator().manual_seed(0)
        row = RandomSmoothing()({"edge": wide}, unused, Progress(epoch, 50), generator)["edge"]
        noisy = wide + radius * (2 * uniform - 1)
        torch.testing.assert_close(row, noisy / noisy.sum())


@pytest.mark.parametrize("radius", [-0.1, math.nan])
def test_radii_are_not_negative(radius: float) -> None:
    with pytest.raises(ConfigError, match=r"^radius must be 0 or more in every epoch, got \S+ in epoch 0$"):
        smoothed({"edge": ROW}, radius)


def ascended(
    rows: dict[str, Tensor], loss: Any, radius: float = 0.1, steps: int = 7, seed: int = 0
) -> dict[str, Tensor]:
    ascent = AdversarialSmoothing(radius=radius, steps=steps)
    return ascent(rows, loss, FIRST, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("row", "slopes", "radius", "corner"),
    [
        ([0.3, 0.7], [2.0, -1.0], 0.1, [0.4, 0.6]),
        ([0.3, 0.7], [-0.5, 3.0], 0.1, [0.2, 0.8]),
        ([0.1, 0.9], [-1.0, 1.0], 0.3, [0.0, 1.0]),  # -0.2 and 1.2 are clipped
    ],
)
def test_the_ascent_of_a_linear_loss_ends_in_the_corner(
    row: list[float], slopes: list[float], radius: float, corner: list[float], seed: int
) -> None:
    """Two candidates whose slopes differ in sign keep their sum, so that they end a radius away, wherever they start."""
    rows = {"edge": torch.tensor(row, dtype=torch.float64), "still": ROW}
    found = ascended(rows, lambda given: (torch.tensor(slopes).double() * given["edge"]).sum(), radius, seed=seed)
    torch.testing.assert_close(found["edge"], torch.tensor(corner, dtype=torch.float64), rtol=1e-12, atol=1e-15)


@given(st.integers(0, 2**32), st.floats(0.01, 1), st.floats(0, 40))
def test_the_ascent_never_lowers_the_loss(seed: int, radius: float, frequency: float) -> None:
    """Of losses that go up and down within the radius, too."""
    rows = {"one": ROW, "two": ROW.flip(0)}

    def loss(given: Any) -> Tensor:
        return (frequency * (given["one"] - 2 * given["two"])).sin().sum()

    found = ascended(rows, loss, radius, seed=seed)
    assert float(loss(found)) >= float(loss(rows))
    for row in found.values():
        assert bool((row >= 0).all())
        assert math.isclose(float(row.sum()), 1.0, rel_tol=1e-12)


def test_without_a_rise_the_mixing_weights_stay() -> None:
    """A maximum: each step away from it lowers the loss."""
    rows = {"edge": ROW}
    found = ascended(rows, lambda given: -(given["edge"] - ROW).square().sum())
    assert torch.equal(found["edge"], ROW)


def test_passes_of_the_ascent() -> None:
    """Seven with a gradient and two without; the loss need not see every key."""
    graded: list[bool] = []

    def loss(given: Any) -> Tensor:
        graded.append(torch.is_grad_enabled())
        return given["edge"][0]

    ascended({"edge": ROW, "unseen": ROW}, loss)
    assert graded == [True] * 7 + [False] * 2


def test_steps_are_one_or_more() -> None:
    with pytest.raises(ConfigError, match=r"^steps must be 1 or more, got 0$"):
        AdversarialSmoothing(steps=0)
