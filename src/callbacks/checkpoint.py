"""When checkpoints are written, and how a run stops when it is asked to."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from src.common import processes
from src.common.errors import ConfigError, Interrupted
from src.runs.folder import RunFolder

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Checkpoints(Checkpoint):
    """Writes `checkpoints/last.ckpt` after every epoch, and within one every `minutes` and when the run is to stop.

    SIGINT (Ctrl-C) or SIGTERM on any process lets all finish their step, write a checkpoint and raise `Interrupted`. A
    second one stops at once; what was done since the last checkpoint is then lost. Lightning calls a `Checkpoint` after
    all other callbacks, so the rows that they keep are in the file.

    Args:
        folder: of the run.
        minutes: between checkpoints within an epoch; None writes none there.
    """

    def __init__(self, folder: Path, minutes: float | None) -> None:
        if minutes is not None and not minutes >= 0:
            raise ConfigError(f"checkpoint_minutes={minutes}, allowed are numbers from 0 (every step), or null")
        self.path = RunFolder(folder).last
        self.minutes = minutes
        self.seconds_before = 0.0  # spent on the run before this process
        self._start = self._saved = time.monotonic()
        self._signal = 0
        self._handlers: dict[int, Any] = {}

    @property
    def seconds(self) -> float:
        """What the run has taken, all its processes in a row counted."""
        return self.seconds_before + time.monotonic() - self._start

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.seconds_before = float(state_dict["seconds"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals over from Lightning, which would leave in the middle of a step."""
        self._saved = time.monotonic()
        try:
            self._handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        except ValueError:  # not the main thread: whoever runs it there handles signals
            self._handlers = {}

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            raise KeyboardInterrupt
        self._signal = number
        if processes.rank() == 0:
            print(
                "\nstopping after this step, with a checkpoint; once more to stop at once", file=sys.stderr, flush=True
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time or the run is to stop; after an epoch's last step the epoch's end will do it."""
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        due = self.minutes is not None and time.monotonic() - self._saved >= 60 * self.minutes
        due_anywhere, stop = processes.largest([int(due), self._signal], pl_module.device)
        if due_anywhere or stop:
            self._save(trainer)
        if stop:
            raise Interrupted(stop)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save; stop if asked to, unless this was the last epoch anyway."""
        self._save(trainer)
        (stop,) = processes.largest([self._signal], pl_module.device)
        if stop and trainer.max_epochs is not None and trainer.current_epoch + 1 < trainer.max_epochs:
            raise Interrupted(stop)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved = time.monotonic()
