from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from src.common.errors import ConfigError
from src.methods.perturbations import RandomSmoothing, project
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
