from __future__ import annotations

import math

import pytest
import torch
from conformance.relaxation import RelaxationConformance
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import gammaincinv
from spaces.test_choices import Perceptron
from torch import Tensor, nn

from src.common.errors import ConfigError
from src.methods import gamma
from src.methods.alpha_optimizers import ExponentiatedGradient
from src.methods.method import Method
from src.methods.relaxations import (
    Dirichlet,
    GumbelHard,
    GumbelSoft,
    Relaxation,
    Sigmoid,
    Simplex,
    Softmax,
    concentration,
)
from src.methods.schedules import Progress
from src.spaces.choices import LayerChoice
from src.spaces.relaxed import RelaxedSpace

ALPHAS = torch.tensor([0.0, math.log(2), math.log(3)], dtype=torch.float64)  # softmax [1/6, 1/3, 1/2]
NO_NOISE = {"edge": torch.zeros(3, dtype=torch.float64)}
FIRST = Progress(0, 1)


class TestSoftmax(RelaxationConformance):
    def relaxation(self) -> Relaxation:
        return Softmax()

    def test_by_hand(self) -> None:
        rows = Softmax().mixing_weights({"edge": ALPHAS}, {}, FIRST)
        torch.testing.assert_close(rows["edge"], torch.tensor([1 / 6, 1 / 3, 1 / 2], dtype=torch.float64))


class TestSigmoid(RelaxationConformance):
    sums_to_one = False

    def relaxation(self) -> Relaxation:
        return Sigmoid()

    def test_by_hand(self) -> None:
        rows = Sigmoid().mixing_weights({"edge": ALPHAS}, {}, FIRST)
        torch.testing.assert_close(rows["edge"], torch.tensor([1 / 2, 2 / 3, 3 / 4], dtype=torch.float64))
        net = self.method().relax(Perceptron())
        assert all(row.tolist() == [0.0] * len(row) for row in net.alphas.values())


class TestSimplex(RelaxationConformance):
    def relaxation(self) -> Relaxation:
        return Simplex()

    def method(self) -> Method:
        return Method(relaxation=self.relaxation(), alpha_optimizer=ExponentiatedGradient())

    def alphas(self, dtype: torch.dtype = torch.float64, device: str = "cpu", scale: float = 1.0) -> dict[str, Tensor]:
        return {key: row.softmax(0) for key, row in super().alphas(dtype, device, scale).items()}

    def test_by_hand(self) -> None:
        row = torch.tensor([1 / 6, 1 / 3, 1 / 2], dtype=torch.float64)
        assert torch.equal(Simplex().mixing_weights({"edge": row}, {}, FIRST)["edge"], row)
        net = self.method().relax(Perceptron())
        assert {key: set(row.tolist()) for key, row in net.alphas.items()} == {
            "twins": {0.5}, "third": {0.5}, "read": {torch.tensor(1 / 3).item()}
        }  # fmt: skip


class TestGumbelHard(RelaxationConformance):
    def relaxation(self) -> Relaxation:
        return GumbelHard()

    def test_by_hand(self) -> None:
        alphas = ALPHAS.clone().requires_grad_()
        row = GumbelHard(temperature=2.0).mixing_weights({"edge": alphas}, NO_NOISE, FIRST)["edge"]
        assert row.tolist() == [0.0, 0.0, 1.0]
        (gradient,) = torch.autograd.grad(row[2], alphas)
        # p = softmax(log softmax(alphas) / 2), and dp_2 / dalphas = p_2 (onehot_2 - p) / 2.
        root = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).sqrt()
        p = root / root.sum()
        torch.testing.assert_close(p, torch.tensor([0.241181, 0.341081, 0.417738]).double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(gradient, p[2] * (torch.tensor([0.0, 0.0, 1.0]) - p) / 2)
        expected = torch.tensor([-0.050375, -0.071241, 0.121616], dtype=torch.float64)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)

    @given(st.lists(st.floats(-3, 3), min_size=2, max_size=6), st.integers(0, 2**32), st.sampled_from([0.1, 1.0, 10.0]))
    def test_the_gradient_is_that_of_the_relaxed_draw(self, values: list[float], seed: int, tau: float) -> None:
        alphas = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        relaxation = GumbelHard(temperature=tau)
        noise = relaxation.draw({"edge": alphas}, torch.Generator().manual_seed(seed))
        cost = torch.linspace(-1, 2, len(values), dtype=torch.float64)
        row = relaxation.mixing_weights({"edge": alphas}, noise, FIRST)["edge"]
        (gradient,) = torch.autograd.grad(cost @ row, alphas)

        def relaxed(shifted: Tensor) -> float:
            logits = (shifted - torch.logsumexp(shifted, 0) + noise["edge"]) / tau
            weights = (logits - logits.max()).exp()
            return float(cost @ weights / weights.sum())

        h = 1e-5
        with torch.no_grad():
            steps = h * torch.eye(len(values), dtype=torch.float64)
            numerical = torch.tensor([(relaxed(alphas + e) - relaxed(alphas - e)) / (2 * h) for e in steps])
        torch.testing.assert_close(gradient, numerical.double(), rtol=1e-4, atol=1e-6)

    def test_a_candidate_is_drawn_as_often_as_its_softmax(self) -> None:
        """The Gumbel-max trick, whatever the temperature."""
        for tau in (0.1, 10.0):
            relaxation, generator = GumbelHard(temperature=tau), torch.Generator().manual_seed(0)
            many = {f"edge{index}": ALPHAS for index in range(5_000)}
            rows = relaxation.mixing_weights(many, relaxation.draw(many, generator), FIRST)
            frequencies = torch.stack(list(rows.values())).mean(0)
            # Three standard deviations of a frequency are 0.0212.
            torch.testing.assert_close(frequencies, ALPHAS.softmax(0), rtol=0, atol=0.0212)

    def test_an_infinite_draw_is_repeated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn = [torch.tensor([1.0, 0.0]), torch.tensor([math.inf, 1.0]), torch.tensor([1.0, math.e])]
        monkeypatch.setattr(Tensor, "exponential_", lambda self, **_: self.copy_(drawn.pop(0)))
        noise = GumbelHard().draw({"edge": torch.zeros(2)}, torch.Generator())["edge"]
        torch.testing.assert_close(noise, torch.tensor([0.0, -1.0]))
        assert drawn == []

    def test_the_default_temperature_is_the_papers(self) -> None:
        gradients = []
        for epoch in (0, 24, 49):
            alphas = ALPHAS.clone().requires_grad_()
            row = GumbelHard().mixing_weights({"edge": alphas}, NO_NOISE, Progress(epoch, 50))["edge"]
            gradients.append(torch.autograd.grad(row[2], alphas)[0])
        for gradient, tau in zip(gradients, (10.0, 10 - 9.9 * 24 / 49, 0.1), strict=True):
            p = (ALPHAS / tau).softmax(0)
            torch.testing.assert_close(gradient, p[2] * (torch.tensor([0.0, 0.0, 1.0]) - p) / tau)

    @pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
    def test_temperatures_are_above_0(self, tau: float) -> None:
        with pytest.raises(ConfigError, match=r"^temperature must be above 0 in every epoch, got \S+ in epoch 0$"):
            GumbelHard(temperature=tau).mixing_weights({"edge": ALPHAS}, NO_NOISE, FIRST)


class TestGumbelSoft(RelaxationConformance):
    def relaxation(self) -> Relaxation:
        return GumbelSoft()

    def test_by_hand(self) -> None:
        row = GumbelSoft(temperature=2.0).mixing_weights({"edge": ALPHAS}, NO_NOISE, FIRST)["edge"]
        torch.testing.assert_close(row, torch.tensor([0.241181, 0.341081, 0.417738]).double(), rtol=0, atol=1e-6)
        noise = {"edge": torch.tensor([0.5, 0.0, -0.25], dtype=torch.float64)}
        row = GumbelSoft(temperature=0.5).mixing_weights({"edge": ALPHAS}, noise, FIRST)["edge"]
        heavy = torch.tensor([math.exp(1.0), 4.0, 9.0 * math.exp(-0.5)], dtype=torch.float64)
        torch.testing.assert_close(row, heavy / heavy.sum())

    def test_the_default_temperature_goes_from_1_to_003(self) -> None:
        for epoch, tau in ((0, 1.0), (74, 1 - 0.97 * 74 / 149), (149, 0.03)):
            row = GumbelSoft().mixing_weights({"edge": ALPHAS}, NO_NOISE, Progress(epoch, 150))["edge"]
            torch.testing.assert_close(row, (ALPHAS / tau).softmax(0))

    @pytest.mark.parametrize("tau", [0.0, math.nan])
    def test_temperatures_are_above_0(self, tau: float) -> None:
        with pytest.raises(ConfigError, match=r"^temperature must be above 0 in every epoch, got \S+ in epoch 0$"):
            GumbelSoft(temperature=tau).mixing_weights({"edge": ALPHAS}, NO_NOISE, FIRST)


class TestDirichlet(RelaxationConformance):
    CONCENTRATION = torch.tensor([1.0, 1.693147, 2.098612], dtype=torch.float64)

    def relaxation(self) -> Relaxation:
        return Dirichlet()

    def test_concentration_by_hand(self) -> None:
        torch.testing.assert_close(concentration(ALPHAS), self.CONCENTRATION, rtol=0, atol=1e-6)
        values = torch.tensor([-2.0, -50.0, -1e4], dtype=torch.float32)
        found = concentration(values)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found[:2], values[:2].double().exp())
        assert float(found[2]) > 0

    def test_many_draws(self) -> None:
        """Mean and variance are those of the distribution, and so is the gradient of the mean."""
        count = 10_000
        alphas = ALPHAS.clone().requires_grad_()
        many = {f"edge{index}": alphas for index in range(count)}
        relaxation = Dirichlet()
        noise = relaxation.draw(many, torch.Generator().manual_seed(0))
        rows = torch.stack(list(relaxation.mixing_weights(many, noise, FIRST).values()))
        c = concentration(ALPHAS)
        mean = c / c.sum()
        variance = mean * (1 - mean) / (c.sum() + 1)
        # Five standard deviations of the mean over the draws.
        torch.testing.assert_close(rows.mean(0), mean, rtol=0, atol=5 * 0.24 / math.sqrt(count))
        torch.testing.assert_close(rows.var(0), variance, rtol=0.06, atol=0)
        cost = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
        (gradient,) = torch.autograd.grad((rows @ cost).mean(), alphas)
        slopes = torch.where(ALPHAS > 0, 1.0, ALPHAS.exp())
        expected = slopes * (cost - cost @ mean) / c.sum()
        torch.testing.assert_close(gradient, expected, rtol=0, atol=0.015)

    def test_a_draw_moves_with_the_alphas(self) -> None:
        """The same numbers are drawn after a step of the alphas, and the draw before it is nearly that after it."""
        relaxation, step = Dirichlet(), torch.tensor([0.02, -0.01, 0.01], dtype=torch.float64)
        before, after = {"edge": ALPHAS}, {"edge": ALPHAS + step}
        noise = relaxation.draw(before, torch.Generator().manual_seed(3))
        moved = relaxation.mixing_weights(after, noise, FIRST)["edge"]
        again = relaxation.mixing_weights(after, relaxation.draw(after, torch.Generator().manual_seed(3)), FIRST)[
            "edge"
        ]
        assert float((moved - relaxation.mixing_weights(before, noise, FIRST)["edge"]).abs().max()) > 1e-4
        torch.testing.assert_close(moved, again, rtol=0, atol=1e-6)

    @given(st.floats(0.05, 40.0), st.floats(1e-6, 1 - 1e-6))
    def test_derivatives_of_gamma_variables(self, shape: float, uniform: float) -> None:
        c, u = (torch.tensor([value], dtype=torch.float64) for value in (shape, uniform))
        start = gamma.log_quantile(c, u)
        level = gamma.log_distribution(c, start)
        torch.testing.assert_close(level, u.log(), rtol=1e-8, atol=1e-12)
        leaf = c.clone().requires_grad_()
        value = gamma.moved(start, level, leaf)
        (first,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), leaf)
        value, first = value.detach(), first.detach()
        h = 1e-3 * shape
        around = [math.log(float(gammaincinv(shape + k * h, uniform))) for k in (-2, -1, 0, 1, 2)]
        slope = (around[0] - 8 * around[1] + 8 * around[3] - around[4]) / (12 * h)
        curvature = (-around[0] + 16 * around[1] - 30 * around[2] + 16 * around[3] - around[4]) / (12 * h * h)
        assert math.isclose(float(value), around[2], rel_tol=1e-9, abs_tol=1e-9)
        assert math.isclose(float(first), slope, rel_tol=1e-6, abs_tol=1e-9)
        assert math.isclose(float(second), curvature, rel_tol=1e-3, abs_tol=1e-5 / shape**2)

    def test_far_alphas_are_finite(self) -> None:
        alphas = torch.tensor([-1e4, -130.0, -40.0, 0.0, 60.0, 300.0], requires_grad=True)
        for seed in range(20):
            noise = Dirichlet().draw({"edge": alphas}, torch.Generator().manual_seed(seed))
            row = Dirichlet().mixing_weights({"edge": alphas}, noise, FIRST)["edge"]
            (first,) = torch.autograd.grad(row[3] + row[5] ** 2, alphas, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), alphas)
            assert bool(torch.stack([row.detach(), first.detach(), second]).isfinite().all())


class TestOnePath:
    class Counted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.calls = 0

        def forward(self, input: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(input)

    def test_candidates_that_were_not_drawn_are_not_called_and_not_trained(self) -> None:
        choice = LayerChoice({name: self.Counted() for name in ("a", "b", "c")}, key="edge")
        net = RelaxedSpace(nn.Sequential(choice)).double()
        with torch.no_grad():
            net.alphas["edge"].copy_(ALPHAS)
        weights = list(net.space.parameters())
        optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.1)
        net(torch.ones(2, 3, dtype=torch.float64)).sum().backward()  # DARTS: all have a gradient and a momentum
        optimizer.step()
        optimizer.zero_grad()
        before = [(weight.clone(), optimizer.state[weight]["momentum_buffer"].clone()) for weight in weights]
        for operation in choice.candidates.values():
            operation.calls = 0  # pyright: ignore[reportArgumentType]

        rows = GumbelHard(temperature=2.0).mixing_weights(dict(net.alphas.items()), NO_NOISE, FIRST)
        net(torch.ones(2, 3, dtype=torch.float64), mixing=rows, one_path=True).sum().backward()
        assert [operation.calls for operation in choice.candidates.values()] == [0, 0, 1]
        assert [weight.grad is not None for weight in weights] == [False, False, False, False, True, True]
        assert net.alphas["edge"].grad is not None
        assert bool((net.alphas["edge"].grad != 0).all())
        optimizer.step()
        unchanged = [
            torch.equal(weight, old) and torch.equal(optimizer.state[weight]["momentum_buffer"], momentum)
            for weight, (old, momentum) in zip(weights, before, strict=True)
        ]
        assert unchanged == [True, True, True, True, False, False]

    def test_the_output_is_that_of_the_candidate(self) -> None:
        choice = LayerChoice({name: nn.Linear(3, 3) for name in ("a", "b", "c")}, key="edge")
        net = RelaxedSpace(nn.Sequential(choice)).double()
        x = torch.randn(2, 3, dtype=torch.float64)
        rows = GumbelHard(temperature=2.0).mixing_weights({"edge": ALPHAS}, NO_NOISE, FIRST)
        assert torch.equal(net(x, mixing=rows, one_path=True), choice.candidates["c"](x))
        assert choice.path is None  # nothing stays behind
