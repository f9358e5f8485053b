"""A2M on quadratic losses, whose Hessians are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from src.bilevel.hypergradient import Bilevel, Exact, FiniteDifference, FirstOrder
from src.bilevel.unroll import VirtualStep
from src.common.errors import ConfigError
from src.methods.alpha_gradients import FlatMinimum

RHO = 0.3


def symmetric(size: int, seed: int) -> Tensor:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return matrix + matrix.T


def vector(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


H, B, P, A, W = symmetric(3, 0), vector(3, 1), symmetric(3, 2), vector(3, 3), vector(3, 4)


def problem(lr: float = 0.0) -> Bilevel:
    """L_a = a H a / 2 + b a + w a + |w|^2 / 2 and L_w = w P a, so w' = w - lr P a."""

    def alpha(alphas: dict[str, Tensor]) -> Tensor:
        return torch.cat([alphas["one"], alphas["two"]])

    return Bilevel(
        weight_loss=lambda weights, alphas: weights["w"] @ P @ alpha(alphas),
        arch_loss=lambda weights, alphas: (
            alpha(alphas) @ H @ alpha(alphas) / 2 + (B + weights["w"]) @ alpha(alphas) + weights["w"].square().sum() / 2
        ),
        weights={"w": W},
        alphas={"one": A[:1], "two": A[1:]},
        step=VirtualStep(lr=lr),
    )


def joined(found: dict[str, Tensor]) -> Tensor:
    return torch.cat([found["one"], found["two"]])


def test_first_order_by_hand() -> None:
    """The gradient is H a + b + w, its derivative H, so G = (I + rho H) (H (a + rho g) + b + w): the difference is exact."""
    g = H @ A + B + W
    uphill = H @ (A + RHO * g) + B + W
    found = FlatMinimum(rho=RHO)(FirstOrder(), problem())
    torch.testing.assert_close(joined(found.total), uphill + RHO * H @ uphill, rtol=1e-9, atol=0)
    torch.testing.assert_close(joined(found.direct), joined(found.total))
    assert found.correction == {}
    plain = problem()
    assert found.arch_loss == plain.arch_loss(plain.weights, plain.alphas)


@pytest.mark.parametrize("hypergradient", [FiniteDifference(), Exact()])
def test_second_order_by_hand(hypergradient: FiniteDifference | Exact) -> None:
    """F(a) = L_a(w - lr P a, a) is quadratic too, with the Hessian H - 2 lr P + lr^2 P P; h is its gradient."""
    lr = 0.1
    hessian = H - 2 * lr * P + lr**2 * P @ P

    def gradient(a: Tensor) -> Tensor:
        w = W - lr * P @ a
        return H @ a + B + w - lr * P @ (w + a)

    uphill = gradient(A + RHO * gradient(A))
    found = FlatMinimum(rho=RHO)(hypergradient, problem(lr))
    torch.testing.assert_close(joined(found.total), uphill + RHO * hessian @ uphill, rtol=1e-7, atol=0)
    torch.testing.assert_close(joined(found.total), joined(found.direct) + joined(found.correction))
    assert float(joined(found.correction).norm()) > 0.01


def test_without_a_step_uphill_it_is_the_hypergradient() -> None:
    found, plain = FlatMinimum(rho=0.0)(FiniteDifference(), problem(0.1)), FiniteDifference()(problem(0.1))
    torch.testing.assert_close(joined(found.total), joined(plain.total), rtol=0, atol=0)


def test_alphas_stay_as_they_are() -> None:
    given = problem(0.1)
    before = joined(given.alphas)
    FlatMinimum()(FiniteDifference(), given)
    assert torch.equal(joined(given.alphas), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": -0.1}, "rho must be a number of 0 or more, got -0.1"),
        ({"epsilon": 0.0}, "epsilon must be a number above 0, got 0.0"),
    ],
)
def test_settings_have_a_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FlatMinimum(**settings)
    assert str(caught.value) == message
