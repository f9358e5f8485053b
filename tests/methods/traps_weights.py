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


SDARTS_ADV = (_ascent_goes_down, _ascent_on_a_fixed_batch, _ascent_with_batch_statistics)
A2M = (_alphas_stay_uphill, _step_uphill_is_normalised)
