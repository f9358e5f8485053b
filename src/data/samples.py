"""Samples in memory: inputs of any shape and type, and what is to be predicted of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from src.data.tasks import Task

CHUNK = 1 << 24  # values counted at a time, so that statistics need little memory beside the samples


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs with their targets.

    What is done with the inputs follows from their type and shape:

    - uint8 (N, C, H, W) are images, with pixels from 0 to 255. They are divided by 255 and standardised per channel.
    - Floating inputs, (N, F) or (N, C, ...), are standardised per feature or channel, and become float32.
    - All others, such as tokens, int64 (N, L), reach the network as they are.

    uint8 and floating inputs of shape (N, C, H, W) can be augmented. Floating targets become float32.

    Attributes:
        inputs: (N, ...), with at least one dimension beside N.
        targets: (N, ...), as the task asks for.
        task: the loss and the metrics.

    Raises:
        ValueError: the tensors do not fit each other, or the targets do not fit the task.
    """

    inputs: Tensor
    targets: Tensor
    task: Task

    def __post_init__(self) -> None:
        if self.inputs.dim() < 2:
            raise ValueError(f"inputs must have the shape (N, ...), got {tuple(self.inputs.shape)}")
        if self.targets.shape[:1] != self.inputs.shape[:1]:
            shapes = f"{tuple(self.targets.shape)} for inputs {tuple(self.inputs.shape)}"
            raise ValueError(f"targets must be as many as inputs, got {shapes}")
        self.task.check(self.targets)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input: (C, H, W) for an image."""
        return tuple(self.inputs.shape[1:])

    @property
    def are_images(self) -> bool:
        """Whether inputs are images, (N, C, H, W), which can be augmented."""
        return self.inputs.dim() == 4 and (self.inputs.dtype == torch.uint8 or self.inputs.is_floating_point())

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies of the inputs and targets at `indices`, int64 (M,), in that order."""
        # index_select copies whole samples, which indexing does not.
        return self.inputs.index_select(0, indices), self.targets[indices]

    def select(self, indices: Tensor) -> Samples:
        """Return copies of the samples at `indices`, int64 (M,), in that order."""
        return Samples(*self.take(indices), self.task)

    def strata(self) -> Tensor:
        """Return the stratum (for a classification, the class) of each sample, int64 (N,)."""
        return self.task.strata(self.targets)

    def statistics(self) -> tuple[Tensor, Tensor] | None:
        """Return mean and standard deviation per channel or feature, float32 (C,) each; None for inputs without.

        Those of images of type uint8 are of pixels / 255; on CIFAR-10's train split they are the constants that are
        usually copied. Dividing by a deviation is safe: for pixels, one below one grey level counts as one; for
        floating inputs, a constant channel has 1.
        """
        if self.inputs.dtype == torch.uint8 and self.are_images:
            return self._pixel_statistics()
        return self._moments() if self.inputs.is_floating_point() else None

    def _pixel_statistics(self) -> tuple[Tensor, Tensor]:
        channels = self.inputs.shape[1]
        counts = torch.zeros(channels, 256, dtype=torch.int64)
        for chunk in self._chunks():
            for channel in range(channels):
                counts[channel] += torch.bincount(chunk[:, channel].flatten(), minlength=256)
        share = counts.double() / counts.sum(dim=1, keepdim=True)
        value = torch.arange(256, dtype=torch.float64) / 255
        mean = share @ value
        std = (share * (value - mean[:, None]) ** 2).sum(dim=1).sqrt().clamp(min=1 / 255)
        return mean.float(), std.float()

    def _moments(self) -> tuple[Tensor, Tensor]:
        channels = self.inputs.shape[1]
        values = self.inputs.numel() // channels
        mean = sum(_by_channel(chunk).sum(1) for chunk in self._chunks()) / values
        assert isinstance(mean, Tensor)
        variance = sum(((_by_channel(chunk) - mean[:, None]) ** 2).sum(1) for chunk in self._chunks()) / values
        assert isinstance(variance, Tensor)
        std = variance.sqrt()
        # What float32 cannot tell from the mean is rounding: the channel is constant.
        std = torch.where(std > mean.abs() * torch.finfo(torch.float32).eps, std, 1.0)
        return mean.float(), std.float()

    def _chunks(self) -> Iterator[Tensor]:
        yield from self.inputs.split(max(1, CHUNK // self.inputs[0].numel()))


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the samples. Nothing is copied until a batch is taken.

    Attributes:
        samples: all.
        indices: int64 (M,), of those in this part.
    """

    samples: Samples
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies of the inputs and targets at `indices` within this part, int64 (K,), in that order."""
        return self.samples.take(self.indices[indices])

    def strata(self) -> Tensor:
        """Return the stratum of each sample of this part, int64 (M,)."""
        return self.samples.strata()[self.indices]


def _by_channel(inputs: Tensor) -> Tensor:
    """Return inputs (N, C, ...) as float64 (C, values)."""
    return inputs.double().transpose(0, 1).flatten(1)
