from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import quadratic, real_cells

from src.bilevel import hypergradient as module
from src.bilevel import precision
from src.bilevel.hypergradient import Bilevel, Exact, FiniteDifference, FirstOrder, Hypergradient, OneSided, of_order
from src.bilevel.unroll import VirtualStep

SECOND_ORDER = (FiniteDifference(), OneSided(), Exact())


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return float((value - truth).norm() / truth.norm())


def through_the_step(problem: Bilevel) -> torch.Tensor:
    """d/da of L_a(w'(a), a) by plain automatic differentiation through the step: no formula of the code under test."""
    alphas = {name: value.detach().requires_grad_() for name, value in problem.alphas.items()}
    weights = {name: value.detach().requires_grad_() for name, value in problem.weights.items()}
    gradients = torch.autograd.grad(problem.weight_loss(weights, alphas), list(weights.values()), create_graph=True)
    step, velocity = problem.step, problem.step.velocity
    assert velocity is not None
    virtual = {
        name: w - step.lr * (step.momentum * velocity[name] + g + step.weight_decay * w)
        for (name, w), g in zip(weights.items(), gradients, strict=True)
    }
    total = torch.autograd.grad(problem.arch_loss(virtual, alphas), list(alphas.values()))
    return torch.cat([gradient.flatten() for gradient in total])


@pytest.mark.parametrize("hypergradient", SECOND_ORDER, ids=lambda h: type(h).__name__)
@pytest.mark.parametrize("seed", range(3))
def test_second_order_equals_the_closed_form(hypergradient: Hypergradient, seed: int) -> None:
    problem, answer = quadratic(seed)
    # The gradient of a quadratic is linear in w, so both differences are exact up to rounding.
    assert relative_error(flat(hypergradient(problem).total), answer) < 1e-10


def test_first_order_is_the_plain_gradient() -> None:
    problem = real_cells()
    alphas = {name: value.detach().requires_grad_() for name, value in problem.alphas.items()}
    loss = problem.arch_loss(problem.weights, alphas)
    truth = torch.autograd.grad(loss, list(alphas.values()))
    result = FirstOrder()(problem)
    assert all(torch.equal(a, b) for a, b in zip(result.total.values(), truth, strict=True))
    assert result.correction == {}
    assert torch.equal(result.arch_loss, loss.detach())


def test_exact_equals_differentiation_through_the_step_on_real_cells() -> None:
    problem = real_cells()
    assert relative_error(flat(Exact()(problem).total), through_the_step(problem)) < 1e-12


def test_finite_difference_agrees_with_exact_on_real_cells() -> None:
    problem = real_cells()
    # So small a step crosses no kink of ReLU or max pool; a larger one sees their curvature, which `Exact` does not.
    truth, value = Exact()(problem), FiniteDifference(epsilon=1e-6)(problem)
    # The correction alone is compared: in the total, a wrong one would hide behind the direct term.
    correction, exact = flat(value.correction), flat(truth.correction)
    assert relative_error(correction, exact) < 1e-7
    assert torch.nn.functional.cosine_similarity(correction, exact, dim=0) > 1 - 1e-12
    assert exact.norm() > 1e-2 * flat(truth.direct).norm()


@pytest.mark.parametrize(("kind", "order"), [(FiniteDifference, 2), (OneSided, 1)])
def test_the_error_shrinks_with_the_promised_order(kind: type, order: int) -> None:
    problem = real_cells(smooth=True)
    exact = flat(Exact()(problem).correction)
    coarse, fine = (relative_error(flat(kind(epsilon=e)(problem).correction), exact) for e in (4e-4, 1e-4))
    assert coarse / fine == pytest.approx(4**order, rel=0.25)


@pytest.mark.parametrize("hypergradient", [FirstOrder(), *SECOND_ORDER], ids=lambda h: type(h).__name__)
def test_nothing_is_touched(hypergradient: Hypergradient) -> None:
    problem = real_cells()
    before = {name: value.clone() for name, value in (problem.weights | problem.alphas).items()}
    seen_in_place = []

    def watched(loss):
        def inner(weights, alphas):
            seen_in_place.append(all(torch.equal(problem.weights[name], before[name]) for name in problem.weights))
            return loss(weights, alphas)

        return inner

    watched_problem = Bilevel(
        watched(problem.weight_loss), watched(problem.arch_loss), problem.weights, problem.alphas, problem.step
    )
    hypergradient(watched_problem)
    after = problem.weights | problem.alphas
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(value.grad is None for value in after.values())
    assert seen_in_place
    assert all(seen_in_place)


@pytest.mark.parametrize(
    ("hypergradient", "passes"),
    [(FirstOrder(), 1), (FiniteDifference(), 4), (OneSided(), 3)],
    ids=lambda value: type(value).__name__,
)
def test_number_of_passes_and_what_they_differentiate(hypergradient: Hypergradient, passes: int) -> None:
    problem = real_cells()
    wants: list[tuple[bool, ...]] = []

    def watched(loss):
        def inner(weights, alphas):
            wants.append(tuple(any(t.requires_grad for t in group.values()) for group in (weights, alphas)))
            return loss(weights, alphas)

        return inner

    hypergradient(
        Bilevel(watched(problem.weight_loss), watched(problem.arch_loss), problem.weights, problem.alphas, problem.step)
    )
    assert len(wants) == passes
    alpha_only = (False, True)
    if isinstance(hypergradient, FirstOrder):
        assert wants == [alpha_only]
    elif isinstance(hypergradient, FiniteDifference):
        assert wants == [(True, False), (True, True), alpha_only, alpha_only]
    else:
        assert wants == [(True, True), (True, True), alpha_only]


def test_gradients_are_averaged_once_a_pass() -> None:
    problem, answer = quadratic()
    calls = []

    def average(tensors):
        calls.append(len(tensors))
        return tensors

    averaged = Bilevel(
        problem.weight_loss, problem.arch_loss, problem.weights, problem.alphas, problem.step, average=average
    )
    assert relative_error(flat(FiniteDifference()(averaged).total), answer) < 1e-10
    assert calls == [1, 2, 1, 1]


def test_a_vanishing_v_gives_the_direct_term() -> None:
    problem, _ = quadratic()
    flat_loss = Bilevel(
        problem.weight_loss,
        lambda weights, alphas: (alphas["a"] ** 2).sum() + 0 * weights["w"].sum(),
        problem.weights,
        problem.alphas,
        problem.step,
    )
    for hypergradient in SECOND_ORDER:
        assert torch.equal(hypergradient(flat_loss).total["a"], 2 * problem.alphas["a"])


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("inf"), float("nan")])
def test_epsilon_is_checked(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon must be a number above 0"):
        FiniteDifference(epsilon=epsilon)


def test_of_order() -> None:
    assert isinstance(of_order(1), FirstOrder)
    assert isinstance(of_order(2), FiniteDifference)


# Each of these bugs was, or still is, in a published implementation. Each replaces one piece of the code under test.


def _difference_of_the_wrong_scale(patch: pytest.MonkeyPatch) -> None:
    """(p - n) / 2 * e in place of (p - n) / (2 e): the correction is e^2 times too small."""
    combine = module._combine
    patch.setattr(
        module,
        "_combine",
        lambda direct, mixed, *rest, **more: combine(direct, {k: 1e-4 * m for k, m in mixed.items()}, *rest, **more),
    )


def _both_sides_the_same(patch: pytest.MonkeyPatch) -> None:
    move = Bilevel.moved_weights
    patch.setattr(Bilevel, "moved_weights", lambda self, direction, distance: move(self, direction, abs(distance)))


def _correction_added(patch: pytest.MonkeyPatch) -> None:
    combine = module._combine
    patch.setattr(module, "_combine", lambda direct, mixed, lr, loss, **more: combine(direct, mixed, -lr, loss, **more))


def _v_at_the_old_weights(patch: pytest.MonkeyPatch) -> None:
    at = Bilevel.at
    patch.setattr(Bilevel, "at", lambda self, virtual: at(self, self.weights))


def _virtual_step_without_effect(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VirtualStep, "__call__", lambda self, weights, gradients: dict(weights))


def _virtual_step_without(**changes: object) -> Callable[[pytest.MonkeyPatch], None]:
    def put_back(patch: pytest.MonkeyPatch) -> None:
        step: Any = VirtualStep.__call__
        patch.setattr(
            VirtualStep,
            "__call__",
            lambda self, weights, gradients: step(dataclasses.replace(self, **changes), weights, gradients),
        )

    return put_back


TRAPS = {
    "the difference multiplied by e": _difference_of_the_wrong_scale,
    "both sides of the difference the same": _both_sides_the_same,
    "the correction added": _correction_added,
    "v taken at the old weights": _v_at_the_old_weights,
    "a virtual step without effect": _virtual_step_without_effect,
    "no momentum in the virtual step": _virtual_step_without(velocity=None),
    "no weight decay in the virtual step": _virtual_step_without(weight_decay=0.0),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_known_bugs_are_noticed(trap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, answer = quadratic()
    TRAPS[trap](monkeypatch)
    assert relative_error(flat(FiniteDifference()(problem).total), answer) > 1e-4


def test_differences_are_taken_without_tf32_forward_and_backward() -> None:
    """cuDNN's convolutions round to 10 bits by default; a difference of two such gradients is mostly rounding."""
    seen: dict[str, list[tuple[object, ...]]] = {"forward": [], "backward": []}

    def flags() -> tuple[object, ...]:
        return tuple(getattr(part, name) for part, name, _ in precision._switches())

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen["forward"].append(flags())
            return x.clone()

        @staticmethod
        def backward(ctx, *grads):
            seen["backward"].append(flags())
            return grads[0]

    problem, answer = quadratic()
    before = flags()
    off = tuple(value for *_, value in precision._switches())
    watched = dataclasses.replace(
        problem, weight_loss=lambda w, a: problem.weight_loss(w, {"a": Watched.apply(a["a"])})
    )
    assert relative_error(flat(FiniteDifference()(watched).total), answer) < 1e-10
    assert seen["forward"][1:] == [off, off]  # the first is the virtual step's
    assert seen["backward"] == [off, off]
    assert flags() == before != off
