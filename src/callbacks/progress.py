"""What a run prints while it trains: a bar within the epoch, one line after it."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

from src.common import processes

_SPLITS = {"train": "train", "val": "validation"}


class Progress(TQDMProgressBar):
    """On a terminal, a bar with loss, metric and the remaining time of the whole run; everywhere, one line per epoch."""

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate if sys.stderr.isatty() else 0)
        self._start = time.monotonic()
        self._first: int | None = None  # batch of the run that this process began with
        self._done = 0  # batches of the run, those of earlier processes included
        self._latest: dict[str, str] = {}

    def on_train_start(self, *args: Any) -> None:
        """Start the clock; what a resumed run had done before does not count."""
        super().on_train_start(*args)
        self._start = time.monotonic()
        self._first = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note where this process began: a resumed run may begin within an epoch."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._first is None:
            self._first = self._done = self._batches(trainer, batch_idx)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return what the bar shows after the batches: loss, metric, remaining time."""
        return {**self._latest, "left": _duration(self._seconds_left(trainer))}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the batch's loss and metric from what the training step returned."""
        self._done = self._batches(trainer, batch_idx) + 1
        if self.is_enabled:
            self._latest = {name: _number(name, float(value)) for name, value in outputs.items()}
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the epoch's line."""
        super().on_train_epoch_end(trainer, pl_module)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        parts = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"]
        for split, text in _SPLITS.items():
            own = {
                name.removeprefix(f"{split}_"): value for name, value in metrics.items() if name.startswith(f"{split}_")
            }
            if own:
                names = sorted(own, key=lambda name: name != "loss")
                parts.append(" ".join([text, *(f"{name} {_number(name, own[name])}" for name in names)]))
        if "alpha_entropy" in metrics:
            parts.append(f"alpha entropy {metrics['alpha_entropy']:.3f}")
        parts.append(
            f"{_duration(time.monotonic() - self._start)} elapsed, {_duration(self._seconds_left(trainer))} left"
        )
        self.print(" | ".join(parts))

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line, above the bar if there is one."""
        if self.is_enabled and self.train_progress_bar is not None:
            super().print(*args, **kwargs)
        elif processes.rank() == 0:
            print(*args, flush=True)

    def _seconds_left(self, trainer: L.Trainer) -> float:
        assert trainer.max_epochs is not None
        done = self._done - (self._first or 0)
        left = self._batches(trainer, 0, epoch=trainer.max_epochs) - self._done
        return (time.monotonic() - self._start) / max(done, 1) * left

    @staticmethod
    def _batches(trainer: L.Trainer, batch_idx: int, *, epoch: int | None = None) -> int:
        """Return how many batches of the run come before one of an epoch, by default of the current one."""
        return int((trainer.current_epoch if epoch is None else epoch) * trainer.num_training_batches) + batch_idx


def _number(name: str, value: float) -> str:
    return f"{value:.1%}" if name == "accuracy" else f"{value:.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
