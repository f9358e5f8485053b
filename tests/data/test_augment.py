from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as TF

from src.data.augment import Augmentation, cutout, normalize, random_crop, random_flip

MEAN, STD = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.25, 0.24, 0.26])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_pixels(count: int, height: int = 12, width: int = 9) -> Tensor:
    return torch.randint(256, (count, 3, height, width), generator=seeded(99), dtype=torch.uint8)


def official_cutout(image: Tensor, y: int, x: int, length: int) -> Tensor:
    """`Cutout.__call__` of the paper's code (utils.py), with its centre given."""
    h, w = image.size(1), image.size(2)
    mask = torch.ones(h, w)
    y1 = min(max(y - length // 2, 0), h)
    y2 = min(max(y + length // 2, 0), h)
    x1 = min(max(x - length // 2, 0), w)
    x2 = min(max(x + length // 2, 0), w)
    mask[y1:y2, x1:x2] = 0.0
    return image * mask


@pytest.mark.parametrize(("padding", "flip", "length"), [(4, True, 6), (1, False, 5), (0, True, 0), (3, False, 12)])
def test_each_image_is_what_torchvision_makes_of_it(padding: int, flip: bool, length: int) -> None:
    pixels = random_pixels(40)
    count, _, height, width = pixels.shape
    made = Augmentation(MEAN, STD, padding=padding, flip=flip, cutout=length)(pixels, seed=5)

    generator = seeded(5)
    zeros = torch.zeros(count, dtype=torch.int64)
    top, left = torch.randint(2 * padding + 1, (2, count), generator=generator) if padding else (zeros, zeros)
    flipped = torch.randint(2, (count,), generator=generator) if flip else zeros
    y, x = (torch.randint(size, (count, 1), generator=generator) for size in (height, width))
    for n in range(count):
        image: Any = TF.pad(TF.to_pil_image(pixels[n]), [padding])  # torchvision types PIL's images as tensors
        image = TF.crop(image, int(top[n]), int(left[n]), height, width)
        image = TF.hflip(image) if flipped[n] else image
        expected = TF.normalize(TF.to_tensor(image), MEAN.tolist(), STD.tolist())
        expected = official_cutout(expected, int(y[n]), int(x[n]), length)
        assert torch.equal(made[n], expected)


def test_every_place_of_the_crop_occurs_about_equally_often() -> None:
    image = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5)
    crops, counts = random_crop(image.expand(5000, 1, 5, 5), 2, seeded()).unique(dim=0, return_counts=True)
    assert len(crops) == 25
    assert counts.min() > 140
    assert counts.max() < 260
    assert image[0].tolist() in crops.tolist()


def test_half_of_the_images_are_mirrored() -> None:
    pixels = random_pixels(1, 3, 4).expand(4000, -1, -1, -1)
    mirrored = (random_flip(pixels, seeded()) == pixels.flip(3)).all(dim=(1, 2, 3))
    kept = (random_flip(pixels, seeded()) == pixels).all(dim=(1, 2, 3))
    assert torch.equal(mirrored, ~kept)
    assert 0.46 < mirrored.float().mean() < 0.54


def test_cutout_reaches_every_centre_and_is_clipped_at_the_border() -> None:
    size, length = 8, 4
    cut = cutout(torch.ones(6000, 1, size, size), length, seeded())[:, 0] == 0
    shapes, counts = cut.flatten(1).unique(dim=0, return_counts=True)
    assert len(shapes) == size * size
    assert counts.min() > 50
    areas = {int(area) for area in cut.sum((1, 2))}
    # 4 x 4 inside; 2 or 3 rows or columns remain at a border
    assert areas == {h * w for h in (2, 3, 4) for w in (2, 3, 4)}


def test_cutout_zeroes_the_same_pixels_of_all_channels_and_leaves_the_rest() -> None:
    images = torch.randn(50, 3, 8, 8, generator=seeded(1)) + 10
    cut = cutout(images, 4, seeded())
    gone = cut == 0
    assert gone.any(dim=1).any(dim=(1, 2)).all()
    assert torch.equal(gone.any(dim=1), gone.all(dim=1))
    assert torch.equal(cut[~gone], images[~gone])


def test_the_seed_decides() -> None:
    augmentation = Augmentation(MEAN, STD, padding=2, flip=True, cutout=4)
    pixels = random_pixels(20)
    before = pixels.clone()
    first = augmentation(pixels, seed=1)
    torch.rand(3)
    assert torch.equal(augmentation(pixels, seed=1), first)
    assert not torch.equal(augmentation(pixels, seed=2), first)
    assert torch.equal(pixels, before)
    assert first.dtype == torch.float32


def test_without_augmentation_images_are_only_normalised() -> None:
    pixels = random_pixels(6)
    plain = Augmentation(MEAN, STD)(pixels, seed=0)
    assert torch.equal(plain, Augmentation(MEAN, STD, padding=4, flip=True, cutout=8).normalize(pixels))
    assert torch.equal(plain, normalize(pixels, MEAN, STD))


@pytest.mark.parametrize("shape", [(40, 3), (40, 3, 7), (40, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_floating_inputs_are_standardised_as_float32_and_not_in_place(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    inputs = torch.randn(shape, generator=seeded()).to(dtype)
    before = inputs.clone()
    made = normalize(inputs, MEAN, STD)
    assert made.dtype == torch.float32
    assert torch.equal(inputs, before)
    for channel in range(3):
        expected = (inputs[:, channel].double() - MEAN[channel].double()) / STD[channel].double()
        torch.testing.assert_close(made[:, channel].double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(normalize(inputs, None, None), inputs.float())


def test_pixels_without_statistics_are_divided_by_255_and_other_types_stay() -> None:
    pixels = random_pixels(4)
    assert torch.equal(normalize(pixels, None, None), pixels.float() / 255)
    for inputs in (torch.arange(12).view(3, 4), torch.zeros(3, 4, dtype=torch.uint8)):
        assert torch.equal(normalize(inputs, None, None), inputs)
        assert normalize(inputs, None, None).dtype == inputs.dtype


def test_floating_images_are_augmented_like_pixels() -> None:
    pixels = random_pixels(20)
    settings: dict[str, Any] = {"padding": 2, "flip": True, "cutout": 4}
    of_pixels = Augmentation(MEAN, STD, **settings)(pixels, seed=1)
    of_floats = Augmentation(MEAN * 255, STD * 255, **settings)(pixels.double(), seed=1)
    torch.testing.assert_close(of_floats, of_pixels, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_sees_the_images_that_the_cpu_sees() -> None:
    augmentation = Augmentation(MEAN, STD, padding=4, flip=True, cutout=6)
    pixels = random_pixels(64)
    on_gpu = augmentation(pixels.cuda(), seed=3)
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), augmentation(pixels, seed=3))
