"""Signals of MNIST-1D: as the paper describes them, the same from one seed, learnable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from src.common.errors import ConfigError
from src.data.mnist_1d import Mnist1d, draw, templates


def test_its_splits_hold_equally_many_signals_of_each_class() -> None:
    source = Mnist1d()
    for samples, count in ((source.train(), 4000), (source.test(), 1000)):
        assert samples.inputs.shape == (count, 1, 40)
        assert samples.inputs.dtype == torch.float32
        assert samples.targets.bincount().tolist() == [count // 10] * 10
    assert source.validation() is None


def test_signals_are_a_function_of_the_seed() -> None:
    one, same, other = (Mnist1d(100, 50, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.train().inputs, same.train().inputs)
    assert not torch.equal(one.train().inputs, other.train().inputs)
    assert not torch.equal(one.train().inputs[:50], one.test().inputs)
    assert torch.equal(one.test().inputs, Mnist1d(10, 50, seed=1).test().inputs)


def test_they_stay_the_same_from_release_to_release() -> None:
    """The table in src/benchmarks was made with them."""
    first = Mnist1d().train().inputs[0, 0, ::8]
    torch.testing.assert_close(
        first, torch.tensor([-0.1610133, 0.0492065, 0.3101578, 0.1009942, 0.0148023]), rtol=0, atol=1e-6
    )


def test_without_noise_a_signal_is_its_template_dilated_and_moved() -> None:
    """Shear taken off, half of it is 0, and the peaks of the rest are those of the template, scaled."""
    labels = torch.arange(10).repeat(20)
    signals = draw(labels, torch.Generator().manual_seed(0), correlated_noise=0, noise=0).double().numpy()
    for signal, label in zip(signals, labels.tolist(), strict=True):
        slope = np.median(np.diff(signal))  # most of it is flat, that is, sheared zeros
        flat = signal - slope * (np.arange(40) - 19.5)
        assert (np.abs(flat) < 1e-5).sum() >= 20
        template = templates()[label]
        for peak, value in ((flat.max(), template.max()), (flat.min(), template.min())):
            assert 0.4 * value - 1e-5 <= abs(peak) <= 1.2 * abs(value) + 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_samples": 25}, "train_samples must be a multiple of 10, the number of classes, got 25"),
        ({"test_samples": 0}, "test_samples must be a multiple of 10, the number of classes, got 0"),
        ({"noise": -1.0}, "noise must be 0 or more, got -1.0"),
        ({"correlated_noise": float("nan")}, "correlated_noise must be 0 or more, got nan"),
    ],
)
def test_values_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Mnist1d(**arguments)
