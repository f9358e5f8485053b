"""When checkpoints are written, and how a run stops before its last epoch."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, Timer

from src.common import processes
from src.common.errors import Interrupted, must_be
from src.runs.folder import RunFolder

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` after each epoch, and within one every `minutes` and before the run stops.

    A run stops for SIGINT (Ctrl-C) or SIGTERM on any process, and at `trainer.max_time` and `trainer.max_steps`: all
    processes finish their step, write a checkpoint and raise `Interrupted`. A second signal stops at once; what was done
    since the last checkpoint is then lost. Lightning calls a `Checkpoint` after all other callbacks, so the file holds
    their state.

    Args:
        folder: of the run.
        minutes: between checkpoints within an epoch; None writes none there.

    Attributes:
        epochs: how many epochs the run has trained.
        facts: of the run, in primitives; they are stored in the checkpoints under `run`.
    """

    def __init__(self, folder: Path, minutes: float | None) -> None:
        if minutes is not None and not minutes >= 0:
            raise must_be("checkpoint_minutes", "0 (every step) or more, or null (none within an epoch)", minutes)
        self.files = RunFolder(folder)
        self.minutes = minutes
        self.epochs = 0
        self.facts: dict[str, Any] = {}
        self.seconds_before = 0.0  # spent on the run before this process
        self._start = self._saved = time.monotonic()
        self._signal = 0
        self._handlers: dict[int, Any] = {}

    @property
    def seconds(self) -> float:
        """The time that the run has taken, over all its resumes."""
        return self.seconds_before + time.monotonic() - self._start

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds and epochs so far."""
        return {"seconds": self.seconds, "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting."""
        self.seconds_before = float(state_dict["seconds"])
        self.epochs = int(state_dict.get("epochs", 0))

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the facts."""
        checkpoint["run"] = self.facts

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let `trainer.max_time` begin anew: it limits the time of one process, not of the run over all its resumes."""
        for timer in _timers(trainer):
            checkpoint["callbacks"].pop(timer.state_key, None)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace Lightning's handling of the signals, which would stop in the middle of a step."""
        self.epochs = trainer.current_epoch
        self._saved = time.monotonic()
        try:
            self._handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        except ValueError:  # not the main thread, which alone may handle signals
            self._handlers = {}

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the handling of the signals."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            raise KeyboardInterrupt
        self._signal = number
        if processes.rank() == 0:
            print("\nstopping after this step, with a checkpoint; repeat to stop at once", file=sys.stderr, flush=True)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, and stop if the run is to stop; after an epoch's last step, its end does both."""
        if trainer.is_last_batch:
            return
        due = self.minutes is not None and time.monotonic() - self._saved >= 60 * self.minutes
        due_anywhere, stop, limited = processes.largest(
            [int(due), self._signal, int(limit_reached(trainer) is not None)], pl_module.device
        )
        if due_anywhere or stop or limited:
            self._save(trainer)
        if stop or limited:
            raise _interrupted(trainer, stop)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, and stop if the run is to stop and this was not its last epoch."""
        self.epochs = trainer.current_epoch + 1
        self._save(trainer)
        stop, limited = processes.largest([self._signal, int(limit_reached(trainer) is not None)], pl_module.device)
        if (stop or limited) and trainer.max_epochs is not None and self.epochs < trainer.max_epochs:
            raise _interrupted(trainer, stop)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.files.last, storage_options=self.files.previous)
        self._saved = time.monotonic()


def limit_reached(trainer: L.Trainer) -> str | None:
    """Return the limit of time or steps at which a run has to stop, as `key=value`, or None."""
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return f"trainer.max_steps={trainer.max_steps}"
    if not trainer.should_stop or trainer.current_epoch < (trainer.min_epochs or 0):
        return None
    left = [timer.time_remaining() for timer in _timers(trainer)]
    return "trainer.max_time" if any(seconds is not None and seconds <= 0 for seconds in left) else None


def early_stop(trainer: L.Trainer) -> str | None:
    """Return which callback ended the training before its last epoch, and why, or None if none did."""
    if not trainer.should_stop:
        return None
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        reason = getattr(callback, "stopping_reason_message", None)  # of an EarlyStopping, or a Guard
        if reason:
            return f"{type(callback).__name__}: {reason}"
    return "a callback that set trainer.should_stop"


def _interrupted(trainer: L.Trainer, signal_number: int) -> Interrupted:
    if signal_number:
        return Interrupted(signal.Signals(signal_number).name, signal_number)
    return Interrupted(limit_reached(trainer) or "a limit that another process reached")


def _timers(trainer: L.Trainer) -> list[Timer]:
    return [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # pyright: ignore[reportAttributeAccessIssue]
