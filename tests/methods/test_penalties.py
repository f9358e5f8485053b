from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import SEARCH, run
from hypothesis import given
from hypothesis import strategies as st

from src.common.errors import ConfigError
from src.methods.method import Method
from src.methods.penalties import BetaDecay, DirichletDivergence, RelativeEntropy, ZeroOne
from src.methods.relaxations import Dirichlet, Sigmoid
from src.methods.schedules import Linear, Progress

ALPHAS = torch.tensor([0.0, math.log(2), math.log(3)], dtype=torch.float64)
FIRST = Progress(0, 1)


def test_beta_decay_by_hand() -> None:
    assert float(BetaDecay(weight=1.0)({"edge": ALPHAS}, FIRST)) == math.log(6)
    method = Method(penalty=BetaDecay(weight=6.0))
    parameters = {"alphas.a": ALPHAS, "alphas.b": ALPHAS + 1, "alphas.c": torch.zeros(2).double(), "edges.n": ALPHAS}
    gradient = method.penalty_gradient(parameters, FIRST)
    softmax = torch.tensor([1 / 6, 1 / 3, 1 / 2], dtype=torch.float64)
    assert set(gradient) == {"alphas.a", "alphas.b", "alphas.c"}  # edges' weights are not penalised
    torch.testing.assert_close(gradient["alphas.a"], 6 * softmax / 3)
    torch.testing.assert_close(gradient["alphas.b"], 6 * softmax / 3)
    torch.testing.assert_close(gradient["alphas.c"], torch.ones(2).double())


def test_zero_one_by_hand() -> None:
    """sigmoid(alpha) is [1/2, 2/3, 3/4]."""
    assert float(ZeroOne(weight=1.0)({"edge": ALPHAS}, FIRST)) == pytest.approx(-13 / 432, rel=1e-14)
    assert float(ZeroOne()({"edge": ALPHAS}, FIRST)) == pytest.approx(-130 / 432, rel=1e-14)
    method = Method(relaxation=Sigmoid(), penalty=ZeroOne(weight=3.0))
    parameters = {"alphas.a": ALPHAS, "alphas.b": torch.zeros(2).double(), "edges.n": ALPHAS}
    gradient = method.penalty_gradient(parameters, FIRST)
    assert set(gradient) == {"alphas.a", "alphas.b"}
    # The mean is over all five alphas: d/da = -3 / 5 * 2 (s - 1/2) s (1 - s).
    by_hand = [0.0, -6 / 5 * (1 / 6) * (2 / 9), -6 / 5 * (1 / 4) * (3 / 16)]
    torch.testing.assert_close(gradient["alphas.a"], torch.tensor(by_hand, dtype=torch.float64))
    assert gradient["alphas.b"].tolist() == [0.0, 0.0]


def test_the_default_weight_is_the_papers() -> None:
    value = BetaDecay()({"edge": ALPHAS}, Progress(0, 100))
    assert float(value) == 0.0
    for epoch, expected in ((1, 0.5), (50, 25.0), (99, 49.5)):
        value = BetaDecay()({"edge": ALPHAS}, Progress(epoch, 100))
        torch.testing.assert_close(float(value), expected * math.log(6))


def test_dirichlet_divergence_by_hand() -> None:
    """KL = lgamma(C) - sum lgamma(c) - lgamma(K) + sum (c - 1) (digamma(c) - digamma(C)), with C the sum of c."""
    c = torch.tensor([1.0, 1 + math.log(2), 1 + math.log(3)], dtype=torch.float64)
    total = c.sum()
    expected = total.lgamma() - c.lgamma().sum() - math.lgamma(3) + ((c - 1) * (c.digamma() - total.digamma())).sum()
    both = {"one": ALPHAS, "other": ALPHAS, "flat": torch.zeros(2, dtype=torch.float64)}  # Dirichlet(1) itself
    torch.testing.assert_close(DirichletDivergence(weight=10.0)(both, FIRST), 20 * expected)
    assert 0.2 < float(expected) < 0.3
    torch.testing.assert_close(DirichletDivergence()({"one": ALPHAS.float()}, FIRST), 1e-3 * expected.float())


def test_dirichlet_divergence_draws_the_alphas_to_0() -> None:
    method = Method(relaxation=Dirichlet(), penalty=DirichletDivergence(weight=1.0))
    values = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0], dtype=torch.float64)
    for value in values.tolist():  # all alphas alike: the divergence is a function of one number
        gradient = method.penalty_gradient({"alphas.a": torch.full((4,), value, dtype=torch.float64)}, FIRST)[
            "alphas.a"
        ]
        assert torch.equal(gradient.sign(), torch.full((4,), value, dtype=torch.float64).sign())


@pytest.mark.parametrize("kind", [BetaDecay, RelativeEntropy, ZeroOne, DirichletDivergence])
def test_a_negative_weight_is_refused(kind: Any) -> None:
    falling = kind(weight=Linear(1.0, -1.0))
    falling({"edge": ALPHAS.softmax(0)}, Progress(1, 3))
    with pytest.raises(ConfigError, match="weight must be 0 or more in every epoch, got -1 in epoch 2"):
        falling({"edge": ALPHAS.softmax(0)}, Progress(2, 3))


def test_without_a_penalty_there_is_no_gradient() -> None:
    assert Method().penalty_gradient({"alphas.a": ALPHAS}, FIRST) == {}


rows = st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=5), min_size=1, max_size=4)


@given(rows, st.floats(0, 50))
def test_beta_decays_gradient_is_that_of_its_value(values: list[list[float]], weight: float) -> None:
    penalty = BetaDecay(weight=weight)
    alphas = {f"alphas.{i}": torch.tensor(row, dtype=torch.float64) for i, row in enumerate(values)}
    gradient = Method(penalty=penalty).penalty_gradient(alphas, FIRST)
    assert all(not alpha.requires_grad for alpha in alphas.values())
    h = 1e-5
    for name, alpha in alphas.items():
        for place in range(len(alpha)):
            step = torch.zeros_like(alpha)
            step[place] = h
            ahead, behind = (
                float(penalty({k.removeprefix("alphas."): v for k, v in {**alphas, name: moved}.items()}, FIRST))
                for moved in (alpha + step, alpha - step)
            )
            assert math.isclose((ahead - behind) / (2 * h), float(gradient[name][place]), rel_tol=1e-5, abs_tol=1e-6)


def test_a_penalty_that_is_not_finite_is_among_the_suspects(tmp_path: Path) -> None:
    done = run("search", *SEARCH, "method=beta_darts", "method.penalty.weight=1e39", f"folder={tmp_path / 'run'}")
    assert done.code == 1
    assert "the gradient of the alphas, with the penalty's, is inf in epoch 0, step 0" in done.err
    assert "a smaller weight of the penalty, or smaller learning rates, may help" in done.err
