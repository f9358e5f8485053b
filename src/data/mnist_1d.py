"""MNIST-1D (arXiv 2011.14439): signals to classify, made on the spot.

The ten templates and the settings are those of the package mnist1d 0.0.2 (github.com/greydanus/mnist1d), which is under the
Apache licence 2.0. The generator is written from its description; it draws its random numbers in another order, so the
signals are not the published ones but others like them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from src.common.errors import must_be
from src.common.seeding import derive_seed
from src.data.samples import Samples
from src.data.sources import InMemory
from src.data.tasks import Classification

LENGTH = 40
# A signal of each digit as one draws it with one stroke from top to bottom: how far to the right the pen is.
TEMPLATES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
_POINTS = len(TEMPLATES[0])
_SHORTEST, _LONGEST = 36, 60  # zeros after a template: the more, the narrower the digit
_TRANSLATIONS = 48
_SCALE = 0.4
_SHEAR = 0.75
_SMOOTHING = 2.0  # of the correlated noise, in points

Signals = NDArray[np.float64]


class Mnist1d(InMemory):
    """Signals of 40 values in ten classes, equally many of each: a digit's template, dilated, moved, sheared, in noise.

    Args:
        train_samples: signals of the train split.
        test_samples: signals of the test split, which are the same whatever the train split is.
        correlated_noise: size of the smooth noise that stands where the digit does not.
        noise: standard deviation of the independent noise of all values.
        seed: of the signals. It is not the run's: all runs have the same signals.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        train_samples: int = 4000,
        test_samples: int = 1000,
        correlated_noise: float = 0.25,
        noise: float = 0.02,
        seed: int = 42,
    ) -> None:
        for name, samples in (("train_samples", train_samples), ("test_samples", test_samples)):
            if samples < len(TEMPLATES) or samples % len(TEMPLATES):
                raise must_be(name, f"a multiple of {len(TEMPLATES)}, the number of classes", samples)
        for name, size in (("correlated_noise", correlated_noise), ("noise", noise)):
            if not 0 <= size < math.inf:
                raise must_be(name, "0 or more", size)
        task = Classification([str(digit) for digit in range(len(TEMPLATES))])
        splits = []
        for split, samples in (("train", train_samples), ("test", test_samples)):
            labels = torch.arange(samples) % len(TEMPLATES)
            generator = torch.Generator().manual_seed(derive_seed("mnist_1d", split, seed))
            signals = draw(labels, generator, correlated_noise=correlated_noise, noise=noise)
            splits.append(Samples(signals[:, None], labels, task))
        super().__init__(*splits, name="mnist_1d")


def draw(labels: Tensor, generator: torch.Generator, *, correlated_noise: float, noise: float) -> Tensor:
    """Return a random signal for each of the digits `labels`, int64 (N,): float32 (N, 40)."""
    count, points = len(labels), _POINTS + _LONGEST

    def uniform() -> Signals:
        return torch.rand(count, 1, generator=generator, dtype=torch.float64).numpy()

    def normal() -> Signals:
        return torch.randn(count, points, generator=generator, dtype=torch.float64).numpy()

    zeros = _SHORTEST + (uniform() * (_LONGEST - _SHORTEST + 1)).astype(np.int64)
    places = np.linspace(0, 1, points) * (_POINTS + zeros - 1)
    padded = np.pad(templates()[labels.numpy()], ((0, 0), (0, _LONGEST)))
    signals = _interpolated(padded, places) * (1 + _SCALE * (uniform() - 0.5))
    moved = (np.arange(points) - (uniform() * _TRANSLATIONS).astype(np.int64)) % points  # in a circle
    signals, places = (np.take_along_axis(values, moved, axis=1) for values in (signals, places))
    smooth = gaussian_filter1d(correlated_noise * normal(), _SMOOTHING, axis=1)
    signals = np.where(places < _POINTS, signals, smooth) + noise * normal()
    signals = signals - _SHEAR * (uniform() - 0.5) * np.linspace(-0.5, 0.5, points)
    subsampled = _interpolated(signals, np.broadcast_to(np.linspace(0, points - 1, LENGTH), (count, LENGTH)))
    return torch.from_numpy(subsampled).float()


def templates() -> Signals:
    """Return the templates, (10, 12): with a standard deviation of 1/6, and with 0 at both ends."""
    raw = np.array(TEMPLATES)
    scaled = (raw - raw.mean(axis=1, keepdims=True)) / raw.std(axis=1, keepdims=True)
    return (scaled - scaled[:, :1]) / 6


def _interpolated(signals: Signals, places: Signals) -> Signals:
    """Return the values of signals (N, points) at `places` (N, M) between their points, on straight lines."""
    before = np.clip(np.floor(places).astype(np.int64), 0, signals.shape[1] - 2)
    low, high = (np.take_along_axis(signals, before + step, axis=1) for step in (0, 1))
    return low + (places - before) * (high - low)
