"""Random combinations of slots: legal ones differentiate what they claim to, all others are refused in one line.

Which are legal is written down here once more, as a table of words, and not asked of the classes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from methods.plain import CLIP, HYPERGRADIENTS, batches, search_module
from torch import Tensor

from src.bilevel.hypergradient import Bilevel
from src.common.errors import ConfigError
from src.methods.alpha_gradients import FlatMinimum
from src.methods.alpha_optimizers import ExponentiatedGradient
from src.methods.auxiliary import AuxiliarySkip
from src.methods.discretizers import Strongest, StrongestProduct, Threshold
from src.methods.method import Method
from src.methods.mixed_ops import PartialChannels
from src.methods.penalties import BetaDecay, DirichletDivergence, RelativeEntropy, ZeroOne
from src.methods.perturbations import AdversarialSmoothing, RandomSmoothing
from src.methods.relaxations import Dirichlet, GumbelHard, GumbelSoft, Sigmoid, Simplex, Softmax
from src.methods.weight_rules import LayerAlignment, OperationStopping
from src.training.search import SearchModule

SLOTS: dict[str, dict[str, Any]] = {
    "relaxation": {
        "softmax": Softmax(),
        "sigmoid": Sigmoid(),
        "one path": GumbelHard(),
        "gumbel": GumbelSoft(),
        "dirichlet": Dirichlet(),
        "simplex": Simplex(),
    },
    "mixed_op": {"all channels": None, "half of them": PartialChannels(k=2)},
    "auxiliary": {"none": None, "skip": AuxiliarySkip()},
    "edge_weights": {"none": False, "softmax": True},
    "penalty": {
        "none": None,
        "beta": BetaDecay(weight=2.0),
        "zero-one": ZeroOne(),
        "dirichlet": DirichletDivergence(),
        "entropy": RelativeEntropy(weight=0.1),
    },
    "perturbation": {"none": None, "random": RandomSmoothing(), "adversarial": AdversarialSmoothing(steps=1)},
    "alpha_optimizer": {"run's": None, "exponentiated": ExponentiatedGradient()},
    "hypergradient": {"run's": None, "flat": FlatMinimum()},
    "weight_rule": {"none": None, "stopping": OperationStopping(), "alignment": LayerAlignment()},
    "discretizer": {"strongest": Strongest(), "product": StrongestProduct(), "threshold": Threshold()},
    "one_level": {"two": False, "one": True},
}
CHOICE = {slot: next(iter(options)) for slot, options in SLOTS.items()}  # DARTS


# By relaxation: what goes with it, besides the first option of each slot.
FITS: dict[str, dict[str, set[str]]] = {
    "softmax": {"penalty": {"beta"}, "perturbation": {"random", "adversarial"}, "hypergradient": {"flat"}},
    "sigmoid": {"penalty": {"zero-one"}, "hypergradient": {"flat"}},
    "one path": {"penalty": {"beta"}},
    "gumbel": {"penalty": {"beta"}, "hypergradient": {"flat"}},
    "dirichlet": {"penalty": {"dirichlet"}, "hypergradient": {"flat"}},
    "simplex": {"penalty": {"entropy"}, "perturbation": {"random", "adversarial"}},
}


def is_legal(chosen: dict[str, str], hypergradient: str) -> bool:
    """Return whether slots and a hypergradient go together."""
    kind, order_2 = chosen["relaxation"], hypergradient != "first_order"
    fits = all(
        chosen[slot] == CHOICE[slot] or chosen[slot] in FITS[kind].get(slot, ())
        for slot in ("penalty", "perturbation", "hypergradient")
    )
    one_level = chosen["one_level"] == "one"
    return (
        fits
        and (chosen["alpha_optimizer"] == "exponentiated") == (kind == "simplex")
        and (chosen["edge_weights"] == "softmax") == (chosen["discretizer"] == "product")
        and (chosen["discretizer"] != "threshold" or kind == "sigmoid")
        and not (order_2 and (one_level or kind == "one path"))
        and not (kind == "one path" and chosen["weight_rule"] == "alignment")
        and not (
            one_level and any(chosen[slot] != CHOICE[slot] for slot in ("perturbation", "hypergradient", "weight_rule"))
        )
    )


def build(chosen: dict[str, str], hypergradient: str) -> SearchModule:
    return search_module(
        Method(**{slot: SLOTS[slot][name] for slot, name in chosen.items()}), HYPERGRADIENTS[hypergradient]
    )


combinations = st.fixed_dictionaries({slot: st.sampled_from(list(options)) for slot, options in SLOTS.items()})
# Few slots at a time: of all combinations nearly none is legal.
nearby = st.lists(st.sampled_from(list(SLOTS)), max_size=3, unique=True).flatmap(
    lambda slots: st.fixed_dictionaries({slot: st.sampled_from(list(SLOTS[slot])) for slot in slots})
)


@given(st.one_of(combinations, nearby.map(lambda few: CHOICE | few)), st.sampled_from(list(HYPERGRADIENTS)))
@settings(max_examples=300)
def test_what_does_not_go_together_is_refused(chosen: dict[str, str], hypergradient: str) -> None:
    try:
        Method(**{slot: SLOTS[slot][name] for slot, name in chosen.items()}).check_hypergradient(
            HYPERGRADIENTS[hypergradient]
        )
        refusal = None
    except ConfigError as error:
        refusal = str(error)
    assert (refusal is None) == is_legal(chosen, hypergradient), refusal
    assert "\n" not in (refusal or "")


@st.composite
def legal(draw: st.DrawFn) -> tuple[dict[str, str], str]:
    """Draw a legal combination, and the hypergradient to search it with."""
    kind = draw(st.sampled_from(list(FITS)))
    few = {slot: draw(st.sampled_from([CHOICE[slot], *FITS[kind].get(slot, ())])) for slot in FITS["softmax"]}
    for slot in ("mixed_op", "auxiliary", "edge_weights", "weight_rule", "one_level"):
        few[slot] = draw(st.sampled_from(list(SLOTS[slot])))
    few["alpha_optimizer"] = "exponentiated" if kind == "simplex" else "run's"
    few["discretizer"] = "product" if few["edge_weights"] == "softmax" else "strongest"
    chosen, hypergradient = CHOICE | few | {"relaxation": kind}, draw(st.sampled_from(["first_order", "exact"]))
    assume(is_legal(chosen, hypergradient))
    return chosen, hypergradient


def everything(kind: str, **few: str) -> tuple[dict[str, str], str]:
    """Return a combination of many slots."""
    many = {"relaxation": kind, "mixed_op": "half of them", "auxiliary": "skip", "edge_weights": "softmax"}
    return CHOICE | many | {"discretizer": "product"} | few, "first_order"


@given(legal())
@example(everything("softmax", penalty="beta", perturbation="adversarial", weight_rule="stopping"))
@example(everything("simplex", penalty="entropy", alpha_optimizer="exponentiated", weight_rule="alignment"))
@example(everything("one path", penalty="beta"))
@settings(max_examples=12, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
def test_a_step_takes_the_gradients_of_the_losses_that_it_names(case: tuple[dict[str, str], str]) -> None:
    chosen, hypergradient = case
    search = build(chosen, hypergradient)
    (weight_optimizer, alpha_optimizer), _ = search.configure_optimizers()
    batch = batches(1, size=4)[0]
    noise = search._noise()
    unrolled = weight_optimizer if search.hypergradient.unrolls else None
    if chosen["hypergradient"] == "run's" and chosen["relaxation"] != "one path":  # whose weights jump
        found = search.alpha_gradients(batch, noise, unrolled).stepped
        problem = search.problem(batch, unrolled, noise=noise)
        direction = {name: torch.randn(alpha.shape, dtype=alpha.dtype) for name, alpha in problem.alphas.items()}
        along = sum(float((found[name] * direction[name]).sum()) for name in direction)

        def loss(alphas: dict[str, Tensor]) -> Tensor:
            return unrolled_loss(problem, alphas) + penalty(search, alphas)

        assert along == pytest.approx(derivative(loss, problem.alphas, direction), rel=1e-4, abs=1e-6)
    mixing = search._weights_step_mixing(batch["weights"])
    if chosen["weight_rule"] == "none":
        weights = {name: weight.detach().clone() for name, weight in search.weights().items()}
        step = search.weight_gradients(batch["weights"], mixing)
        scale = max(1.0, (float(step.length) + 1e-6) / CLIP)
        direction = {name: torch.randn_like(weight) for name, weight in weights.items()}
        along = scale * sum(
            float((gradient * direction[name]).sum())
            for name, gradient in zip(weights, step.gradients, strict=True)
            if gradient is not None
        )

        def loss_of_weights(moved: dict[str, Tensor]) -> Tensor:
            inputs, targets = batch["weights"]
            return search.task.loss(search._call_with({**moved, **search._scratch()}, inputs, mixing), targets)

        assert along == pytest.approx(derivative(loss_of_weights, weights, direction), rel=1e-4, abs=1e-6)
    search.take_step(batch, weight_optimizer, alpha_optimizer)
    assert all(bool(value.isfinite().all()) for value in search.state_dict().values())


def unrolled_loss(problem: Bilevel, alphas: dict[str, Tensor]) -> Tensor:
    """Return L_a(w'(a), a), with w' the weights after the virtual step; of order 1 at the weights themselves."""
    weights = {name: weight.detach().requires_grad_() for name, weight in problem.weights.items()}
    if problem.step.lr:
        (gradients,) = problem.gradients(problem.weight_loss(weights, alphas), weights)
        weights = problem.virtual_weights(gradients)
    return problem.arch_loss(weights, alphas).detach()


def penalty(search: SearchModule, alphas: dict[str, Tensor]) -> Tensor | float:
    if search.method.penalty is None:
        return 0.0
    vectors = {name.removeprefix("alphas."): alpha for name, alpha in alphas.items() if name.startswith("alphas.")}
    return search.method.penalty(vectors, search.progress)


def derivative(loss: Any, point: dict[str, Tensor], direction: dict[str, Tensor], epsilon: float = 1e-8) -> float:
    """Return the derivative of a loss along a direction, by a central difference."""
    ahead, behind = (
        float(loss({name: value.detach() + sign * epsilon * direction[name] for name, value in point.items()}))
        for sign in (1, -1)
    )
    return (ahead - behind) / (2 * epsilon)
