from __future__ import annotations

import pytest
import torch
from torch import Tensor

from src.data import samples as samples_module
from src.data.samples import Part, Samples
from src.data.tasks import Classification, Regression

TWO = Classification(["a", "b"])


def random_images(count: int, channels: int = 3, height: int = 5, width: int = 4) -> Samples:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, channels, height, width), generator=generator, dtype=torch.uint8)
    return Samples(pixels, torch.arange(count) % 2, TWO)


def of(inputs: Tensor) -> Samples:
    return Samples(inputs, torch.zeros(len(inputs), dtype=torch.int64), TWO)


def statistics(samples: Samples) -> tuple[Tensor, Tensor]:
    found = samples.statistics()
    assert found is not None
    assert found[0].dtype == found[1].dtype == torch.float32
    return found


@pytest.mark.parametrize("chunk", [1, 200, 10**9])
def test_statistics_of_pixels_are_those_of_all_whatever_the_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples_module, "CHUNK", chunk)
    images = random_images(11)
    mean, std = statistics(images)
    scaled = images.inputs.double() / 255
    torch.testing.assert_close(mean, scaled.mean((0, 2, 3)).float())
    torch.testing.assert_close(std, scaled.std((0, 2, 3), unbiased=False).float())


@pytest.mark.parametrize("shape", [(50, 3), (50, 3, 7), (50, 3, 4, 5), (50, 3, 2, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_statistics_of_floating_inputs_are_per_feature_or_channel(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples_module, "CHUNK", 64)
    inputs = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3 + 100).to(dtype)
    mean, std = statistics(of(inputs))
    per_channel = inputs.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, per_channel.mean(1).float())
    torch.testing.assert_close(std, per_channel.std(1, unbiased=False).float())


def test_a_constant_channel_can_be_divided_by_its_deviation() -> None:
    pixels = torch.full((3, 2, 4, 4), 200, dtype=torch.uint8)
    pixels[:, 1, 0] = 7
    mean, std = statistics(of(pixels))
    assert std[0].item() == pytest.approx(1 / 255)
    assert std[1] > 0.1
    assert mean[0].item() == pytest.approx(200 / 255)
    _, std = statistics(of(torch.tensor([[0.1, 0.0, 1e-6], [0.1, 0.0, 2e-6], [0.1, 0.0, 3e-6]])))
    assert std[:2].tolist() == [1, 1]
    assert std[2].item() == pytest.approx(1e-6 * (2 / 3) ** 0.5)


@pytest.mark.parametrize(
    "inputs",
    [
        torch.zeros(4, 9, dtype=torch.int64),
        torch.zeros(4, 9, dtype=torch.uint8),
        torch.zeros(4, 1, 3, 3, dtype=torch.int64),
        torch.zeros(4, 2, dtype=torch.bool),
    ],
)
def test_other_types_have_no_statistics_and_are_no_images(inputs: Tensor) -> None:
    assert of(inputs).statistics() is None
    assert not of(inputs).are_images


def test_images_are_pixels_or_floating_with_channel_height_and_width() -> None:
    assert random_images(2).are_images
    assert of(torch.zeros(2, 1, 3, 3)).are_images
    assert not of(torch.zeros(2, 3, 3)).are_images
    assert not of(torch.zeros(2, 1, 3, 3, 3)).are_images


def test_samples_are_taken_with_their_targets() -> None:
    images = random_images(9)
    chosen = images.select(torch.tensor([7, 2, 2]))
    assert (len(images), len(chosen)) == (9, 3)
    assert chosen.shape == images.shape == (3, 5, 4)
    assert torch.equal(chosen.inputs[1], images.inputs[2])
    assert chosen.targets.tolist() == [1, 0, 0]
    assert chosen.task is images.task


def test_a_part_takes_by_its_own_indices() -> None:
    images = random_images(9)
    part = Part(images, torch.tensor([1, 4, 7, 8]))
    inputs, targets = part.take(torch.tensor([3, 0]))
    assert len(part) == 4
    assert torch.equal(inputs, images.inputs[[8, 1]])
    assert targets.tolist() == [0, 1]
    assert part.strata().tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("inputs", "targets", "task", "message"),
    [
        (torch.zeros(2), torch.zeros(2).long(), TWO, r"inputs must have the shape \(N, \.\.\.\), got \(2,\)"),
        (torch.zeros(2, 4), torch.zeros(3).long(), TWO, r"as many as inputs, got \(3,\) for inputs \(2, 4\)"),
        (torch.zeros(2, 4), torch.zeros(2).int(), TWO, r"targets must be int64 \(N,\), got int32 \(2,\)"),
        (torch.zeros(2, 4), torch.zeros(2, 1).long(), TWO, r"targets must be int64 \(N,\), got int64 \(2, 1\)"),
        (torch.zeros(2, 4), torch.tensor([1, 2]), TWO, r"targets must be 0 to 1, .* got 1 to 2"),
        (torch.zeros(2, 4), torch.tensor([1, -1]), TWO, r"targets must be 0 to 1, .* got -1 to 1"),
        (torch.zeros(2, 4), torch.zeros(2).long(), Regression(), r"must be floating \(N,\), got int64 \(2,\)"),
        (torch.zeros(2, 4), torch.zeros(2), Regression(3), r"must be floating \(N, 3\), got float32 \(2,\)"),
        (torch.zeros(2, 4), torch.tensor([1.0, float("nan")]), Regression(), "targets must be finite, got nan or inf"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(inputs: Tensor, targets: Tensor, task: Regression, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Samples(inputs, targets, task)


@pytest.mark.parametrize(("targets", "outputs"), [((5,), 1), ((5, 1), 1), ((5, 3), 3)])
def test_targets_of_a_regression(targets: tuple[int, ...], outputs: int) -> None:
    samples = Samples(torch.zeros(5, 2), torch.rand(targets), Regression(outputs))
    assert samples.strata().tolist() == [0] * 5
    assert samples.task.record() == {"task": "regression", "outputs": outputs}
