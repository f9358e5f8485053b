from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from src.common.errors import ConfigError
from src.methods.alpha_optimizers import ExponentiatedGradient
from src.methods.method import Method
from src.methods.penalties import RelativeEntropy
from src.methods.relaxations import Simplex
from src.methods.schedules import Progress

ROW = [1 / 6, 1 / 3, 1 / 2]
FIRST = Progress(0, 1)


def stepped(row: list[float], gradient: list[float], **choices: float) -> Tensor:
    p = nn.Parameter(torch.tensor(row, dtype=torch.float64))
    p.grad = torch.tensor(gradient, dtype=torch.float64)
    ExponentiatedGradient(**choices)([p]).step()
    return p.detach()


def test_by_hand() -> None:
    expected = torch.tensor([0.145464, 0.321525, 0.533011], dtype=torch.float64)
    torch.testing.assert_close(stepped(ROW, [1.0, 0.0, -1.0]), expected, rtol=0, atol=1e-6)


def test_a_constant_in_the_gradient_changes_nothing_at_the_floor_either() -> None:
    for gradient in ([1.0, 0.0, -1.0], [300.0, 0.0, -1.0]):
        once = stepped(ROW, gradient)
        torch.testing.assert_close(stepped(ROW, [g + 50 for g in gradient]), once, rtol=1e-12, atol=0)


def test_the_floor() -> None:
    row = stepped(ROW, [400.0, 0.0, 0.0], lr=0.1)
    # exp(-40) is nothing: the others share 1, and all are divided by 1 + floor.
    torch.testing.assert_close(
        row * (1 + 1e-5), torch.tensor([1e-5, 0.4, 0.6], dtype=torch.float64), rtol=1e-12, atol=0
    )
    grown = stepped(row.tolist(), [-400.0, 0.0, 0.0], lr=0.1)
    assert float(grown[0]) > 0.99
    assert float(stepped(ROW, [400.0, 0.0, 0.0], floor=0.01)[0]) == pytest.approx(0.01 / 1.01)


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_a_large_gradient_does_not_overflow(size: float) -> None:
    p = nn.Parameter(torch.tensor(ROW))
    p.grad = size * torch.tensor([1.0, 0.0, -1.0])
    ExponentiatedGradient()([p]).step()
    assert p.tolist() == pytest.approx([1e-5, 1e-5, 1 - 2e-5], abs=1e-7)


def test_vectors_of_several_sizes_stay_on_the_simplex() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = [nn.Parameter(torch.full((size,), 1 / size)) for size in (2, 5, 5, 1)]
    alone = [copy.deepcopy(vector) for vector in vectors]
    optimizer, single = ExponentiatedGradient()(vectors), [ExponentiatedGradient()([vector]) for vector in alone]
    for _ in range(50):
        for one, other in zip(vectors[:3], alone, strict=False):  # the last has no gradient
            one.grad = 5 * torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        assert optimizer.step(lambda: 2.5) == 2.5
        for each in single:
            each.step()
    for one, other in zip(vectors, alone, strict=True):
        torch.testing.assert_close(one, other)
        assert float(one.detach().sum()) == pytest.approx(1)
        assert bool((one >= 0.9e-5).all())
    assert vectors[3].tolist() == [1.0]


def test_the_entropy_penalty_takes_weights_to_a_power() -> None:
    method = Method(
        relaxation=Simplex(), alpha_optimizer=ExponentiatedGradient(lr=0.1), penalty=RelativeEntropy(weight=0.5)
    )
    row = torch.tensor(ROW, dtype=torch.float64)
    gradient = method.penalty_gradient({"alphas.edge": row}, FIRST)["alphas.edge"]
    torch.testing.assert_close(gradient, 0.5 * (row.log() + 1 + torch.tensor(3.0).double().log()))
    expected = row ** (1 - 0.1 * 0.5)
    torch.testing.assert_close(stepped(ROW, gradient.tolist()), expected / expected.sum())
    assert float(RelativeEntropy(weight=1.0)({"edge": torch.full((4,), 0.25)}, FIRST)) == 0


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"lr": 0.0}, "lr must be above 0, got 0.0"),
        ({"lr": float("nan")}, "lr must be above 0, got nan"),
        ({"floor": 0.0}, "floor must be above 0 and below 0.1, got 0.0"),
        ({"floor": 0.2}, "floor must be above 0 and below 0.1, got 0.2"),
    ],
)
def test_values_that_no_step_can_use(choices: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        ExponentiatedGradient(**choices)
    assert str(error.value) == message
