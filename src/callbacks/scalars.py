"""The scalars that every logger gets, on one axis: training steps, counted from 0 over the whole run.

Values of an epoch stand at its last step. All values of a step go to one row: src/callbacks/loggers.py has the loggers
that put them together.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, SupportsFloat

import lightning as L
import torch
from torch import Tensor

from src.methods.decision import margin
from src.training.module import TrainingModule
from src.training.search import SearchModule

ALPHAS = "alphas/"
"""Before the names of mixing weights: `alphas/KEY/CANDIDATE`."""


def step_of(trainer: L.Trainer, batch_idx: int) -> int:
    """Return the number of a training step in the run, counted from 0."""
    return int(trainer.current_epoch * trainer.num_training_batches) + batch_idx


def last_step(trainer: L.Trainer) -> int:
    """Return the number of the last step of the present epoch."""
    return step_of(trainer, int(trainer.num_training_batches) - 1)


def log_row(trainer: L.Trainer, step: int, values: Mapping[str, Tensor | SupportsFloat]) -> None:
    """Give values of a step to all loggers; only the first process has any."""
    if values and trainer.loggers and trainer.is_global_zero:
        if isinstance(trainer.lightning_module, TrainingModule):
            trainer.lightning_module.confirm()
        row = {name: float(value) for name, value in _on_host(values).items()}
        for logger in trainer.loggers:
            logger.log_metrics({**row, "epoch": trainer.current_epoch}, step=step)


def _on_host(values: Mapping[str, Tensor | SupportsFloat]) -> Mapping[str, Tensor | SupportsFloat]:
    """Return values with those on a GPU copied from there, all at once."""
    there = {name: value for name, value in values.items() if isinstance(value, Tensor) and value.is_cuda}
    if not there:
        return values
    copied = torch.stack([value.detach().double() for value in there.values()]).tolist()
    return {**values, **dict(zip(there, copied, strict=True))}


class Scalars(L.Callback):
    """Logs what a step measured, every `trainer.log_every_n_steps` steps and at an epoch's last, and what an epoch did.

    Of a step: losses, the task's score, learning rates, norms of the hypergradient's terms, times, samples a second,
    memory; all of the first process and its share of the batch. Of an epoch: what metrics.csv has, and of a search the
    mixing weights and how decided they are.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._samples = 0
        self._rates: dict[str, float] = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock at an epoch's first step, and note the learning rates.

        What lies between epochs is no training. After an epoch's last step, optimisers may have the next epoch's rates.
        """
        if self._since is None:
            self._since, self._samples = time.monotonic(), 0
        names = ("step/lr_weights", "step/lr_alphas")
        self._rates = {n: float(o.param_groups[0]["lr"]) for n, o in zip(names, trainer.optimizers, strict=False)}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the step."""
        assert isinstance(pl_module, TrainingModule)
        self._samples += pl_module.step_samples * trainer.world_size
        if (step_of(trainer, batch_idx) + 1) % trainer.log_every_n_steps and not trainer.is_last_batch:  # pyright: ignore[reportAttributeAccessIssue]
            return
        if not trainer.loggers or not trainer.is_global_zero:
            return
        # The clock is read when a GPU has done the step: values of it are waited for first.
        values = {**_on_host(pl_module.step_values), **self._rates, **_memory(pl_module.device)}
        now = time.monotonic()
        if self._since is not None and now > self._since:
            values["time/samples_per_second"] = self._samples / (now - self._since)
        log_row(trainer, step_of(trainer, batch_idx), values)
        self._since, self._samples = time.monotonic(), 0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the epoch, at its last step."""
        self._since = None
        by_lightning = trainer.logged_metrics
        values: dict[str, Tensor | float] = {
            name: value for name, value in trainer.callback_metrics.items() if name not in by_lightning
        }
        if isinstance(pl_module, SearchModule):
            weights = pl_module.net.by_name(pl_module.mixing_weights())
            values["alpha_margin"] = margin(weights)
            for key, row in weights.items():
                values |= {f"{ALPHAS}{key}/{name}": weight for name, weight in row.items()}
        log_row(trainer, last_step(trainer), values)


def _memory(device: torch.device) -> dict[str, float]:
    """Return the largest amounts of memory that the process has used so far, in GiB."""
    found = {}
    if device.type == "cuda":
        found["memory/device_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform != "win32":
        import resource  # noqa: PLC0415 (Windows has none)

        unit = 1 if sys.platform == "darwin" else 1024
        found["memory/process_peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    return found
