from __future__ import annotations

import pytest
import torch

from src.data import images as images_module
from src.data.images import Images


def random_images(count: int, channels: int = 3, height: int = 5, width: int = 4) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, channels, height, width), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 2, ("a", "b"))


def test_statistics_are_those_of_all_pixels_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "CHUNK", 4)
    images = random_images(11)
    mean, std = images.statistics()
    scaled = images.pixels.double() / 255
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean, scaled.mean((0, 2, 3)).float())
    torch.testing.assert_close(std, scaled.std((0, 2, 3), unbiased=False).float())


def test_a_constant_channel_can_be_divided_by_its_deviation() -> None:
    pixels = torch.full((3, 2, 4, 4), 200, dtype=torch.uint8)
    pixels[:, 1, 0] = 7
    mean, std = Images(pixels, torch.zeros(3, dtype=torch.int64), ("a",)).statistics()
    assert std[0].item() == pytest.approx(1 / 255)
    assert std[1] > 0.1
    assert mean[0].item() == pytest.approx(200 / 255)


def test_select_keeps_images_with_their_labels() -> None:
    images = random_images(9)
    chosen = images.select(torch.tensor([7, 2, 2]))
    assert len(images) == 9
    assert len(chosen) == 3
    assert chosen.shape == images.shape == (3, 5, 4)
    assert torch.equal(chosen.pixels[1], images.pixels[2])
    assert chosen.labels.tolist() == [1, 0, 0]
    assert chosen.classes == images.classes


@pytest.mark.parametrize(
    ("pixels", "labels"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int32)),
    ],
)
def test_anything_but_pixels_and_their_labels_breaks_the_promise(pixels: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(AssertionError):
        Images(pixels, labels, ("a",))
