"""Augmentation of whole batches on the device, drawn for each image on its own.

The order is that of the paper's code: crop and flip of the raw pixels, normalisation, cutout. All random numbers come
from a generator on the CPU, so runs on a GPU and on the CPU see the same images. Copies to a GPU are non_blocking: the host
does not wait for the step before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad images (N, C, H, W) with zeros and cut H x W out of each, at one of (2 padding + 1)^2 places.

    Where pixels are padded, the padding is black, as in torchvision's `RandomCrop`.
    """
    count, _, height, width = images.shape
    top, left = torch.randint(2 * padding + 1, (2, count), generator=generator).to(images.device, non_blocking=True)
    padded = F.pad(images, (padding, padding, padding, padding))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (N, C, top, left, H, W)
    return windows[torch.arange(count, device=images.device), :, top, left]


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each of the images (N, C, H, W) left to right with probability one half."""
    count = len(images)
    flipped = torch.randint(2, (count,), generator=generator)
    chosen = (torch.arange(count) + count * flipped).to(images.device, non_blocking=True)
    # index_select copies whole images, which torch.where does not.
    return torch.cat([images, images.flip(3)]).index_select(0, chosen)


def cutout(images: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Set a square of each of the images (N, C, H, W) to zero. Implements section 3.1 of arXiv 1708.04552.

    As in the paper's code, the centre is any pixel, so the square may reach over the border and be clipped. It spans
    `length // 2` pixels to either side: an odd length cuts the same square as the even one below it.
    """
    count, _, height, width = images.shape
    inside = []
    for size in (height, width):
        centre = torch.randint(size, (count, 1), generator=generator)
        place = torch.arange(size)
        inside.append(
            ((place >= centre - length // 2) & (place < centre + length // 2)).to(images.device, non_blocking=True)
        )
    rows, columns = inside
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def normalize(inputs: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
    """Return inputs (N, C, ...) as a network is to see them.

    Images of type uint8 (N, C, H, W) are divided by 255. These and floating inputs become float32, less `mean`, divided
    by `std` (both (C,), or both None: neither). All others stay as they are.
    """
    images = inputs.dtype == torch.uint8 and inputs.dim() == 4
    if not images and not inputs.is_floating_point():
        return inputs
    values = inputs.clone() if inputs.dtype == torch.float32 else inputs.float()
    if images:
        values.div_(255)
    if mean is None or std is None:
        return values
    mean, std = (
        statistic.to(inputs.device, non_blocking=True).view(-1, *[1] * (inputs.dim() - 2)) for statistic in (mean, std)
    )
    return values.sub_(mean).div_(std)


@dataclass(frozen=True, eq=False)
class Augmentation:
    """From raw inputs to those of a network. All but images (N, C, H, W) can be normalised only.

    Attributes:
        mean: of each channel or feature (of pixels / 255), float32 (C,); None is no standardisation.
        std: likewise.
        padding: of the random crop; 0 is no crop.
        flip: whether images are mirrored at random.
        cutout: side of the square that is cut out; 0 is none.
    """

    mean: Tensor | None
    std: Tensor | None
    padding: int = 0
    flip: bool = False
    cutout: int = 0

    def __call__(self, inputs: Tensor, *, seed: int) -> Tensor:
        """Return augmented inputs of the same shape, (N, C, ...); a function of `seed`."""
        generator = torch.Generator().manual_seed(seed)
        if self.padding:
            inputs = random_crop(inputs, self.padding, generator)
        if self.flip:
            inputs = random_flip(inputs, generator)
        inputs = self.normalize(inputs)
        return cutout(inputs, self.cutout, generator) if self.cutout else inputs

    def normalize(self, inputs: Tensor) -> Tensor:
        """Return inputs that are only normalised, as for evaluation."""
        return normalize(inputs, self.mean, self.std)
