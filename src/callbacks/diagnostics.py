"""What a search does not need to know, but a researcher may want to: how good its gradient is, and what it means.

Everything is computed beside the run: with the noise and the random numbers of the search step, but on copies of all
buffers, and every generator is restored. A run with diagnostics is the same run, bit by bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from src.architectures.architecture import Answer
from src.bilevel.hypergradient import AlphaGradient, Bilevel, Exact, FiniteDifference, FirstOrder, norm
from src.bilevel.unroll import Tensors, check_unrollable
from src.callbacks.scalars import last_step, log_row, step_of
from src.common import processes
from src.common.errors import ConfigError, must_be
from src.common.seeding import preserved_randomness
from src.fast import kernels
from src.training.search import SearchModule

_KRYLOV = 12  # vectors; one product with the Hessian each
_TOLERANCE = 1e-2  # of the eigenvalue, relative


class Diagnostics(L.Callback):
    """Logs, under `diagnostics/`, what a search step could have computed in another way.

    - `cosine_order_1_2`: of the alphas' gradients of order 1, at the present weights, and of order 2.
    - `finite_difference_cosine` and `finite_difference_error`: of the second-order correction by the finite difference
      against the exact one; the error is a share of the exact one's length.
    - `alpha_eigenvalue`: the largest eigenvalue of the Hessian of the arch loss with respect to the alphas, at the present
      weights, on the last arch batch of an epoch. Watched by arXiv 1909.09656: where it rises, the architectures that
      are derived get worse.
    - `supernet_METRIC`, `discretised_METRIC` and `discretisation_gap`: the score of the supernet, that of the supernet with
      the derived architecture's candidates alone (same weights), and the first minus the second. Both are on the first
      validation batches, which are of the alphas' half unless the data have a validation split, with the BatchNorm
      statistics of each batch: running statistics are those of the mixture.

    - `seconds_orders`, `seconds_exact`, `seconds_eigenvalue` and `seconds_gap`: what each of them took in the epoch.

    A comparison that the run cannot make is left out: orders where the weights' optimiser cannot be unrolled, the
    relaxation has no second derivative, or the method is of one level (the loss of the eigenvalue is then that on both
    batches).

    Args:
        orders_every_n_steps: steps between two comparisons of the orders, which each epoch's last step has too; None
            compares none.
        exact_every_n_steps: the same for comparisons with the exact gradient.
        eigenvalue_every_n_epochs: epochs between two eigenvalues; None computes none.
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
        self.gap_batches = gap_batches
        self._unrolls = self._differentiates_twice = False
        self._other: AlphaGradient | None = None
        self._exact: AlphaGradient | None = None
        self._scores: list[Tensor] = []
        self._seconds: dict[str, float] = {}

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
        orders, exact = (_due(every, trainer, batch_idx) for every in (self.orders_every, self.exact_every))
        if not (orders or exact) or not self._unrolls or not _watched(trainer, pl_module):
            return
        second = pl_module.hypergradient.order == 2
        if orders or not second:
            with self._beside("orders", pl_module, batch_idx):
                problem = pl_module.problem(batch, trainer.optimizers[0])
                hypergradient = FirstOrder() if second else FiniteDifference()
                self._other = pl_module.method.alpha_gradient(hypergradient, problem)
        if exact and not pl_module.hypergradient.differentiates_twice:
            # The plain form can be differentiated twice.
            with self._beside("exact", pl_module, batch_idx), kernels.disabled():
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
        every, epoch = self.eigenvalue_every, trainer.current_epoch
        is_due = trainer.is_last_batch and every is not None and (epoch + 1) % every == 0
        if is_due and self._differentiates_twice and _watched(trainer, pl_module):
            with self._beside("eigenvalue", pl_module, batch_idx), kernels.disabled():
                values["alpha_eigenvalue"] = top_eigenvalue(pl_module.problem(batch, None))
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
        if batch_idx == 0:
            self._scores = []
        if trainer.sanity_checking or batch_idx >= self.gap_batches or not trainer.loggers:
            return
        inputs, targets = batch
        alphas = {name: alpha.detach() for name, alpha in pl_module.alphas().items()}
        mixing = pl_module.method.evaluated(alphas, pl_module.progress)
        chosen = one_hot(pl_module.derive().choices, pl_module.net.candidates(), mixing)
        with self._beside("gap", pl_module, None), _batch_statistics(pl_module):
            scores = [
                pl_module.task.score(pl_module.outputs_with(inputs, weights), targets) for weights in (mixing, chosen)
            ]
        self._scores.append(torch.stack([*scores, scores[0].new_ones(())]) * len(targets))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the gap."""
        assert isinstance(pl_module, SearchModule)
        if not self._scores:
            return
        supernet, discretised, samples = processes.total(torch.stack(self._scores).sum(0)).tolist()
        self._scores = []
        metric = pl_module.task.metric
        values: dict[str, Tensor | float] = {
            f"supernet_{metric}": supernet / samples,
            f"discretised_{metric}": discretised / samples,
            "discretisation_gap": (supernet - discretised) / samples,
        }
        _log(trainer, last_step(trainer), values)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log what the diagnostics took."""
        _log(trainer, last_step(trainer), {f"seconds_{name}": value for name, value in self._seconds.items()})
        self._seconds = {}

    @contextmanager
    def _beside(self, what: str, module: SearchModule, batch_idx: int | None) -> Iterator[None]:
        """Compute at the module's place in the run, leave no trace in any generator, and note the time."""
        start = time.perf_counter()
        devices = [module.device] if module.device.type == "cuda" else []
        with preserved_randomness(), torch.random.fork_rng(devices=devices):
            if batch_idx is not None:  # callbacks come before the module, which notes the step later
                module.at_step(batch_idx)
            yield
        for device in devices:
            torch.cuda.synchronize(device)
        self._seconds[what] = self._seconds.get(what, 0.0) + time.perf_counter() - start


def top_eigenvalue(problem: Bilevel) -> float:
    """Return the largest eigenvalue of the Hessian of the arch loss with respect to the alphas, at the present weights.

    By ARPACK's Lanczos iteration, with products by double backward; nan where it has not converged.
    """
    alphas = {name: alpha.detach().requires_grad_() for name, alpha in problem.alphas.items()}
    leaves = list(alphas.values())
    loss = problem.arch_loss({name: weight.detach() for name, weight in problem.weights.items()}, alphas)
    gradient = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
    flat = torch.cat([part.reshape(-1) for part in gradient])

    def times(vector: np.ndarray) -> np.ndarray:
        direction = torch.as_tensor(vector.ravel(), dtype=flat.dtype, device=flat.device)
        product = torch.autograd.grad(
            flat, leaves, grad_outputs=direction, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([part.reshape(-1) for part in problem.average(list(product))]).double().cpu().numpy()

    size = flat.numel()
    if size <= _KRYLOV:
        return float(np.linalg.eigvalsh(np.stack([times(row) for row in np.eye(size)]))[-1])
    operator = LinearOperator((size, size), matvec=times, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    # Not a constant: a softmax takes no notice of one, so that it is an eigenvector with the eigenvalue 0.
    start = np.random.default_rng(0).standard_normal(size)
    try:
        lanczos: Any = eigsh  # its type stubs take tol for a whole number
        values = lanczos(operator, k=1, which="LA", v0=start, ncv=_KRYLOV, tol=_TOLERANCE, return_eigenvectors=False)
    except ArpackNoConvergence as error:
        values = error.eigenvalues
    return float(values[0]) if len(values) else float("nan")


def one_hot(choices: Mapping[str, Answer], candidates: Mapping[str, tuple[str, ...]], like: Tensors) -> Tensors:
    """Return the mixing weights with which a supernet computes what an architecture keeps of it.

    Args:
        choices: the architecture's answers.
        candidates: key -> the names that its mixing weights belong to.
        like: mixing weights, for their types and devices.
    """
    found = {}
    for key, names in candidates.items():
        answer = choices.get(key)
        kept = (answer,) if isinstance(answer, str) else tuple(answer or ())
        found[key] = like[key].new_tensor([float(name in kept) for name in names])
    return found


def _due(every: int | None, trainer: L.Trainer, batch_idx: int) -> bool:
    return every is not None and ((step_of(trainer, batch_idx) + 1) % every == 0 or trainer.is_last_batch)


def _watched(trainer: L.Trainer, module: SearchModule) -> bool:
    return bool(trainer.loggers) and not module.is_frozen


def _log(trainer: L.Trainer, step: int, values: Mapping[str, Tensor | float]) -> None:
    log_row(trainer, step, {f"diagnostics/{name}": value for name, value in values.items()})


def _cosine(one: Tensors, other: Tensors) -> Tensor:
    product = torch.stack([(one[name] * other[name]).sum() for name in one]).sum()
    return product / (norm(one) * norm(other))


@contextmanager
def _batch_statistics(module: SearchModule) -> Iterator[None]:
    """Let every BatchNorm normalise by its batch."""
    norms = [(part, part.training) for part in module.net.modules() if isinstance(part, _BatchNorm)]
    for part, _ in norms:
        part.training = True
    try:
        yield
    finally:
        for part, training in norms:
            part.training = training
