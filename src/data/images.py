"""Labelled images in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 4096  # images counted at a time, so that statistics need little memory beside the images


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one size with their labels.

    Attributes:
        pixels: uint8 (N, C, H, W).
        labels: int64 (N,), indices into `classes`.
        classes: the names of the classes.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        assert self.pixels.dtype == torch.uint8
        assert self.pixels.dim() == 4
        assert self.labels.dtype == torch.int64
        assert self.labels.shape == self.pixels.shape[:1]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of one image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def select(self, indices: Tensor) -> Images:
        """Return a copy of the images at `indices`, int64 (M,), in that order."""
        # index_select copies whole images, which indexing does not.
        return Images(self.pixels.index_select(0, indices), self.labels[indices], self.classes)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of pixels / 255 per channel, float32 (C,) each.

        On CIFAR-10's train split these are the constants that are usually copied. A deviation below one grey level
        counts as one, so that dividing by it is safe for a channel that is constant.
        """
        channels = self.pixels.shape[1]
        counts = torch.zeros(channels, 256, dtype=torch.int64)
        for chunk in self.pixels.split(CHUNK):
            for channel in range(channels):
                counts[channel] += torch.bincount(chunk[:, channel].flatten(), minlength=256)
        share = counts.double() / counts.sum(dim=1, keepdim=True)
        value = torch.arange(256, dtype=torch.float64) / 255
        mean = share @ value
        std = (share * (value - mean[:, None]) ** 2).sum(dim=1).sqrt().clamp(min=1 / 255)
        return mean.float(), std.float()
