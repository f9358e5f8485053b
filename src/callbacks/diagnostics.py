"""What a search does not need to know, but a researcher may want to: how good its gradient is, and what it means.

A run with diagnostics is the same run, bit by bit: src/callbacks/measured.py computes beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from src.bilevel.hypergradient import AlphaGradient, Exact, FiniteDifference, FirstOrder, norm
from src.bilevel.unroll import Tensors, check_unrollable
from src.callbacks.measured import GapMeter, Measurements
from src.callbacks.scalars import last_step, log_row, step_of
from src.common.errors import ConfigError, must_be
from src.fast import kernels
from src.training.search import SearchModule

_OF_EPOCH = ("exact_cosine", "finite_difference_cosine", "alpha_eigenvalue")  # which metrics.csv has, too


class Diagnostics(L.Callback):
    """Logs, under `diagnostics/`, what a search step could have computed in another way.

    - `cosine_order_1_2`: of the alphas' gradients of order 1, at the present weights, and of order 2.
    - `finite_difference_cosine` and `finite_difference_error`: of the second-order correction by the finite difference
      against the exact one; the error is a share of the exact one's length.
    - `exact_cosine`: of the alphas' whole gradient, as the search steps along it, and the exact one, for any hypergradient: of order
      1 the exact one is that of the virtual step which order 2 would take. It is 1 for the exact hypergradient itself.
    - `alpha_eigenvalue`: the largest eigenvalue of the Hessian of the arch loss with respect to the alphas, at the present
      weights, on the last arch batch of an epoch, with the alphas' weight decay, as the guard has it. Watched by arXiv
      1909.09656: where it rises, the architectures that are derived get worse.
    - `supernet_METRIC`, `discretised_METRIC` and `discretisation_gap`: the score of the supernet, that of the supernet with
      the derived architecture's candidates alone (same weights), and the first minus the second. Both are on the first
      validation batches, which are of the alphas' half unless the data have a validation split, with the BatchNorm
      statistics of each batch: running statistics are those of the mixture.

    - `seconds_orders`, `seconds_exact`, `seconds_eigenvalue` and `seconds_gap`: what each of them took in the epoch.

    `alpha_eigenvalue`, and the means over an epoch of `exact_cosine` and `finite_difference_cosine`, are in metrics.csv too.

    A comparison that the run cannot make is left out: orders where the weights' optimiser cannot be unrolled, the
    relaxation has no second derivative, or the method is of one level (the loss of the eigenvalue is then that on both
    batches).

    Args:
        orders_every_n_steps: steps between two comparisons of the orders, which each epoch's last step has too; None
            compares none.
        exact_every_n_steps: the same for comparisons with the exact gradient.
        eigenvalue_every_n_epochs: epochs between two eigenvalues, from epoch 0 on; None computes none.
        gap_batches: number of validation batches for the gap; 0 measures none.
    """

    def __init__(
        self,
        orders_every_n_steps: int | None = 50,
        exact_every_n_steps: int | None = None,
        eigenvalue_every_n_epochs: int | None = None,
        gap_batches: int = 4,
    ) -> None:
        for name, value in (
            ("orders_every_n_steps", orders_every_n_steps),
            ("exact_every_n_steps", exact_every_n_steps),
            ("eigenvalue_every_n_epochs", eigenvalue_every_n_epochs),
        ):
            if value is not None and value < 1:
                raise must_be(name, "1 or more, or null", value)
        if gap_batches < 0:
            raise must_be("gap_batches", "0 or more", gap_batches)
        self.orders_every = orders_every_n_steps
        self.exact_every = exact_every_n_steps
        self.eigenvalue_every = eigenvalue_every_n_epochs
        self._gap = GapMeter(gap_batches)
        self._unrolls = self._differentiates_twice = False
        self._other: AlphaGradient | None = None
        self._exact: AlphaGradient | None = None
        self._of_epoch: dict[str, list[float]] = {}  # for metrics.csv

    def state_dict(self) -> dict[str, Any]:
        """Return what the present epoch has measured for metrics.csv."""
        return {"of_epoch": {name: list(values) for name, values in self._of_epoch.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue an epoch that was cut in two."""
        self._of_epoch = {name: list(values) for name, values in state_dict["of_epoch"].items()}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find out what the run can be compared with."""
        assert isinstance(pl_module, SearchModule)
        self._differentiates_twice = pl_module.method.relaxation.second_order
        try:
            pl_module.method.check_order(unrolls=True)
            check_unrollable(trainer.optimizers[0])
            self._unrolls = True
        except ConfigError:
            self._unrolls = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Compute the other gradients, at the alphas and weights that the step is about to change."""
        assert isinstance(pl_module, SearchModule)
        self._other = self._exact = None
        orders = _due(self.orders_every, trainer, batch_idx) and bool(trainer.loggers)
        exact = _due(self.exact_every, trainer, batch_idx)
        if not (orders or exact) or not self._unrolls or pl_module.is_frozen:
            return
        measurements = Measurements.of(trainer)
        second = pl_module.hypergradient.order == 2
        if orders or not second:
            with measurements.beside("orders", pl_module, batch_idx):
                problem = pl_module.problem(batch, trainer.optimizers[0])
                hypergradient = FirstOrder() if second else FiniteDifference()
                self._other = pl_module.method.alpha_gradient(hypergradient, problem)
        if exact and not pl_module.hypergradient.differentiates_twice:
            # The plain form can be differentiated twice.
            with measurements.beside("exact", pl_module, batch_idx), kernels.disabled():
                problem = pl_module.problem(batch, trainer.optimizers[0])
                self._exact = pl_module.method.alpha_gradient(Exact(), problem)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare the step's own gradient with the others; at an epoch's last step, look at the Hessian."""
        assert isinstance(pl_module, SearchModule)
        values: dict[str, Tensor | float] = {}
        own, other, exact = pl_module.step_gradient, self._other, self._exact
        if own is not None and other is not None and _due(self.orders_every, trainer, batch_idx):
            values["cosine_order_1_2"] = _cosine(own.total, other.total)
        second = own if pl_module.hypergradient.order == 2 else other
        if exact is not None and second is not None:
            values["finite_difference_cosine"] = _cosine(second.correction, exact.correction)
            difference = {name: second.correction[name] - term for name, term in exact.correction.items()}
            values["finite_difference_error"] = norm(difference) / norm(exact.correction)
        if own is not None and exact is not None:
            values["exact_cosine"] = _cosine(own.total, exact.total)
        elif (
            own is not None
            and pl_module.hypergradient.differentiates_twice
            and _due(self.exact_every, trainer, batch_idx)
        ):
            values["exact_cosine"] = 1.0
        every = self.eigenvalue_every
        is_due = trainer.is_last_batch and every is not None and trainer.current_epoch % every == 0
        if is_due and self._differentiates_twice and not pl_module.is_frozen:
            values["alpha_eigenvalue"] = Measurements.of(trainer).eigenvalue(pl_module, batch, batch_idx)
        for name in _OF_EPOCH:
            if name in values:
                self._of_epoch.setdefault(name, []).append(float(values[name]))
        _log(trainer, step_of(trainer, batch_idx), values)
        self._other = self._exact = None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the supernet and its discretised self on a batch."""
        assert isinstance(pl_module, SearchModule)
        if trainer.loggers:
            self._gap.add(trainer, pl_module, batch, batch_idx)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the gap."""
        assert isinstance(pl_module, SearchModule)
        scores, metric = self._gap.take(), pl_module.task.metric
        if scores is not None:
            values: dict[str, Tensor | float] = {
                f"supernet_{metric}": scores.supernet,
                f"discretised_{metric}": scores.discretised,
                "discretisation_gap": scores.gap,
            }
            _log(trainer, last_step(trainer), values)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log what metrics.csv has of the epoch, and what the diagnostics took."""
        for name, values in self._of_epoch.items():
            pl_module.log(name, sum(values) / len(values), logger=False)
        self._of_epoch = {}
        seconds = Measurements.of(trainer).seconds
        _log(trainer, last_step(trainer), {f"seconds_{name}": value for name, value in seconds.items()})
        seconds.clear()


def _due(every: int | None, trainer: L.Trainer, batch_idx: int) -> bool:
    return every is not None and ((step_of(trainer, batch_idx) + 1) % every == 0 or trainer.is_last_batch)


def _log(trainer: L.Trainer, step: int, values: Mapping[str, Tensor | float]) -> None:
    log_row(trainer, step, {f"diagnostics/{name}": value for name, value in values.items()})


def _cosine(one: Tensors, other: Tensors) -> Tensor:
    product = torch.stack([(one[name] * other[name]).sum() for name in one]).sum()
    return product / (norm(one) * norm(other))
