"""What a run says while it goes on: a bar within the epoch, a line after it."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

from src.common import processes


class Progress(TQDMProgressBar):
    """On a terminal, a bar with loss, accuracy and the time left of the whole run; everywhere, a line an epoch."""

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate if sys.stderr.isatty() else 0)
        self._start = time.monotonic()
        self._first_batch = 0
        self._latest: dict[str, str] = {}

    def on_train_start(self, *args: Any) -> None:
        """Start the clock; what a resumed run had done before does not count."""
        super().on_train_start(*args)
        self._start = time.monotonic()
        self._first_batch = self._batches(self.trainer)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return what the bar shows behind the batches: loss, accuracy, time left."""
        return {**self._latest, "left": _duration(self._seconds_left(trainer))}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the batch's loss and accuracy from what the training step returned."""
        if self.is_enabled:
            self._latest = {"loss": f"{float(outputs['loss']):.3f}", "accuracy": f"{float(outputs['accuracy']):.1%}"}
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the epoch's line."""
        super().on_train_epoch_end(trainer, pl_module)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        parts = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"]
        for name, text in (("train", "train"), ("val", "validation")):
            if f"{name}_accuracy" in metrics:
                parts.append(f"{text} loss {metrics[f'{name}_loss']:.3f} accuracy {metrics[f'{name}_accuracy']:.1%}")
        if "alpha_entropy" in metrics:
            parts.append(f"alpha entropy {metrics['alpha_entropy']:.3f}")
        parts.append(f"{_duration(time.monotonic() - self._start)} gone, {_duration(self._seconds_left(trainer))} left")
        self.print(" | ".join(parts))

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line, above the bar if there is one."""
        if self.is_enabled and self.train_progress_bar is not None:
            super().print(*args, **kwargs)
        elif processes.rank() == 0:
            print(*args, flush=True)

    def _seconds_left(self, trainer: L.Trainer) -> float:
        done = self._batches(trainer) - self._first_batch
        assert trainer.max_epochs is not None
        total = trainer.max_epochs * trainer.num_training_batches - self._first_batch
        return (time.monotonic() - self._start) / max(done, 1) * (total - done)

    @staticmethod
    def _batches(trainer: L.Trainer) -> int:
        return trainer.fit_loop.epoch_loop.total_batch_idx + 1


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
