"""Bugs of published code, or easily made, in methods that change a step's gradients: test_steps.py puts them back."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from methods.plain import batches

from src.bilevel.hypergradient import norm
from src.methods.alpha_gradients import FlatMinimum
from src.methods.perturbations import AdversarialSmoothing
from src.methods.weight_rules import Rule, _Stopping, alignment
from src.training.search import SearchModule


def _ascent_goes_down(patch: pytest.MonkeyPatch) -> None:
    """As in confopt."""
    _with_loss(patch, lambda loss: lambda rows: -loss(rows))


def _ascent_on_a_fixed_batch(patch: pytest.MonkeyPatch) -> None:
    """As in confopt: the batch that the perturbation was made with."""
    original = SearchModule._weights_step_mixing
    patch.setattr(SearchModule, "_weights_step_mixing", lambda self, batch: original(self, batches(1)[0]["weights"]))


def _ascent_with_batch_statistics(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("src.training.search.in_eval_mode", lambda modules: contextlib.nullcontext())


def _with_loss(patch: pytest.MonkeyPatch, change: Any) -> None:
    ascend = AdversarialSmoothing.__call__
    patch.setattr(
        AdversarialSmoothing,
        "__call__",
        lambda self, mixing, loss, *rest: ascend(self, mixing, change(loss), *rest),
    )


def _alphas_stay_uphill(patch: pytest.MonkeyPatch) -> None:
    """As in A2M's code for DARTS-PT, which restores other alphas than those of the step."""
    original = FlatMinimum.__call__

    def uphill(self: Any, hypergradient: Any, problem: Any) -> Any:
        found = original(self, hypergradient, problem)
        with torch.no_grad():
            for name, alpha in problem.alphas.items():
                alpha.add_(self.rho * found.total[name])
        return found

    patch.setattr(FlatMinimum, "__call__", uphill)


def _step_uphill_is_normalised(patch: pytest.MonkeyPatch) -> None:
    """As in sharpness-aware minimisation, which A2M is not."""
    original = FlatMinimum.__call__

    def normalised(self: Any, hypergradient: Any, problem: Any) -> Any:
        length = float(norm(hypergradient(problem).total))
        return original(FlatMinimum(rho=self.rho / length), hypergradient, problem)

    patch.setattr(FlatMinimum, "__call__", normalised)


def _gradients_of_both_halves_compared_with_one(patch: pytest.MonkeyPatch) -> None:
    """As in OLES' own code: the gradient on the arch batch is added to that on the weight batch, which it is compared to."""
    original = _Stopping._add

    def add(self: Any, ones: Any, others: Any) -> None:
        both = [one if two is None else one + two for one, two in zip(ones, others, strict=True)]
        original(self, ones, both)

    patch.setattr(_Stopping, "_add", add)


def _frozen_weights_have_gradient_zero(patch: pytest.MonkeyPatch) -> None:
    """Weight decay and momentum would go on moving them."""
    original = _Stopping.forward

    def forward(self: Any, gradients: Any, point: Any) -> Any:
        return [
            torch.zeros_like(own) if found is None else found
            for own, found in zip(gradients, original(self, gradients, point), strict=True)
        ]

    patch.setattr(_Stopping, "forward", forward)


def _virtual_step_moves_frozen_weights(patch: pytest.MonkeyPatch) -> None:
    original = SearchModule.problem

    def problem(self: Any, *arguments: Any, **named: Any) -> Any:
        rule, self.rule = self.rule, Rule()
        try:
            return original(self, *arguments, **named)
        finally:
            self.rule = rule

    patch.setattr(SearchModule, "problem", problem)


def _further_passes_move_the_statistics(patch: pytest.MonkeyPatch) -> None:
    """As in Lambda-DARTS' own code."""
    patch.setattr(SearchModule, "_mean_by_weights", _with_statistics)


def _with_statistics(self: Any, batch: Any, mixing: Any) -> Any:
    inputs, targets = batch
    loss = self.task.loss(self._call_with({}, inputs, mixing), targets)
    return list(torch.autograd.grad(loss, list(self.weights().values()), allow_unused=True))


def _cells_drift_apart(patch: pytest.MonkeyPatch) -> None:
    """The sign of the difference."""
    patch.setattr("src.methods.weight_rules.alignment", lambda cells: (alignment(cells)[0], -alignment(cells)[1]))


def _cells_move_together(patch: pytest.MonkeyPatch) -> None:
    """One row for all cells, as the alphas have it: the gradients of different cells are added up."""
    patch.setattr(
        "src.methods.weight_rules.alignment",
        lambda cells: (alignment(cells)[0], alignment(cells)[1].mean(0, keepdim=True).expand_as(cells)),
    )


SDARTS_ADV = (_ascent_goes_down, _ascent_on_a_fixed_batch, _ascent_with_batch_statistics)
A2M = (_alphas_stay_uphill, _step_uphill_is_normalised)
OLES = (
    _gradients_of_both_halves_compared_with_one,
    _frozen_weights_have_gradient_zero,
    _further_passes_move_the_statistics,
)
OLES_UNROLLED = (_virtual_step_moves_frozen_weights,)
LAMBDA_DARTS = (_further_passes_move_the_statistics, _cells_drift_apart, _cells_move_together)
