"""Augmentation of whole batches on the device, drawn for each image on its own.

The order is that of the paper's code: crop and flip of the raw pixels, normalisation, cutout. All random numbers come
from a generator on the CPU, so a run on a GPU and one on the CPU see the same images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad images (N, C, H, W) with zeros and cut H x W out of each, at one of (2 padding + 1)^2 places.

    With pixels as input the padding is black, as in torchvision's `RandomCrop`.
    """
    count, _, height, width = images.shape
    top, left = torch.randint(2 * padding + 1, (2, count), generator=generator).to(images.device)
    padded = F.pad(images, (padding, padding, padding, padding))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (N, C, top, left, H, W)
    return windows[torch.arange(count, device=images.device), :, top, left]


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each of the images (N, C, H, W) left to right with probability one half."""
    count = len(images)
    flipped = torch.randint(2, (count,), generator=generator)
    chosen = (torch.arange(count) + count * flipped).to(images.device)
    # index_select copies whole images, which torch.where does not.
    return torch.cat([images, images.flip(3)]).index_select(0, chosen)


def cutout(images: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Set a square of each of the images (N, C, H, W) to zero. Implements section 3.1 of arXiv 1708.04552.

    As in the paper's code the centre is any pixel, so the square may reach over the border and be clipped, and it
    spans `length // 2` pixels to either side: an odd length cuts as the even one below it.
    """
    count, _, height, width = images.shape
    inside = []
    for size in (height, width):
        centre = torch.randint(size, (count, 1), generator=generator)
        place = torch.arange(size)
        inside.append(((place >= centre - length // 2) & (place < centre + length // 2)).to(images.device))
    rows, columns = inside
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def normalize(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Map pixels, uint8 (N, C, H, W), to float32: divided by 255, less `mean`, divided by `std` (both (C,))."""
    mean, std = (statistic.to(pixels.device)[:, None, None] for statistic in (mean, std))
    return pixels.float().div_(255).sub_(mean).div_(std)


@dataclass(frozen=True, eq=False)
class Augmentation:
    """From raw pixels to a network's input.

    Attributes:
        mean: of pixels / 255 per channel, float32 (C,).
        std: likewise.
        padding: of the random crop; 0 is no crop.
        flip: whether images are mirrored at random.
        cutout: side of the square that is cut out; 0 is none.
    """

    mean: Tensor
    std: Tensor
    padding: int = 0
    flip: bool = False
    cutout: int = 0

    def __call__(self, pixels: Tensor, *, seed: int) -> Tensor:
        """Return augmented images, float32 (N, C, H, W), of pixels, uint8 of that shape; a function of `seed`."""
        generator = torch.Generator().manual_seed(seed)
        if self.padding:
            pixels = random_crop(pixels, self.padding, generator)
        if self.flip:
            pixels = random_flip(pixels, generator)
        images = self.normalize(pixels)
        return cutout(images, self.cutout, generator) if self.cutout else images

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return pixels, uint8 (N, C, H, W), as float32 images that are only normalised, as for evaluation."""
        return normalize(pixels, self.mean, self.std)
