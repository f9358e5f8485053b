"""How a process makes the folder of a run its own, and how the run ends in it."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from src.callbacks.checkpoint import Checkpoints, early_stop, limit_reached
from src.common.errors import ConfigError, Diverged, Interrupted
from src.common.files import lock_file, write_whole
from src.common.shell import override, pastable, shell_word
from src.runs.checkpoints import newest
from src.runs.devices import machine
from src.runs.folder import RunFolder
from src.runs.loggers import begin, finish
from src.runs.record import Record, status_of, write_result
from src.runs.resume import present_command, read_settings, settings_text
from src.runs.sweeps import is_job

# What a disk answers when it is full, broken, or may not be written; other OSErrors are a mistake in code.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def unwatched_objects() -> Iterator[None]:
    """Let the garbage collector leave alone, within the block, what exists before it.

    It would walk over all of a supernet's thousands of modules every few steps, which takes as long as a small step.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def is_first_process() -> bool:
    """Return whether this is the first process of its run."""
    # As the environment says: the commands ask before the processes are joined, too.
    return rank_zero_only.rank == 0  # pyright: ignore[reportFunctionMemberAccess]


@dataclass
class Run:
    """A folder that this process owns, and the checkpoint to resume from, if the run is resumed.

    Of several processes only the first writes into the folder and holds its lock.
    """

    folder: Path
    config: DictConfig
    record: Record
    trainer: L.Trainer
    checkpoints: Checkpoints
    resume_from: Path | None = None
    lock: int | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process is the first of the run: always, unless the run has several."""
        return is_first_process()

    def fit(self, module: L.LightningModule, data: L.LightningDataModule) -> None:
        """Train to the last epoch, or until a callback ends the training; the record then says which and why.

        Raises:
            Interrupted: a signal or a limit of time or steps ended the training.
            ConfigError: there was nothing to train on.
        """
        begin(self.trainer.loggers, self.folder, self.config, self.record)
        with unwatched_objects():
            self.trainer.fit(module, datamodule=data, ckpt_path=self.resume_from)
        if self.trainer.max_epochs is None or self.checkpoints.epochs >= self.trainer.max_epochs:
            return
        limit = limit_reached(self.trainer)
        if limit is not None:  # before the first step: later, `Checkpoints` stops the run
            raise Interrupted(limit)
        self.record.stopped_by = early_stop(self.trainer)
        if self.record.stopped_by is None:
            raise ConfigError(
                f"the training ended after {self.checkpoints.epochs} of {self.trainer.max_epochs} epochs: there are no "
                f"training batches (trainer.limit_train_batches={self.trainer.limit_train_batches})"
            )

    def skip_training(self) -> None:
        """Do what `fit` does for a run that trains nothing: the loggers learn of it, and the record of no epochs."""
        begin(self.trainer.loggers, self.folder, self.config, self.record)
        self.record.planned_epochs = 0


def claim(folder: Path, config: DictConfig, record: Record, trainer: L.Trainer, module: L.LightningModule) -> Run:
    """Make a folder this run's own by locking it and writing its settings, or take over the run in it.

    Raises:
        ConfigError: another process uses the folder; or it holds a run, and `config.resume` does not ask to resume it;
            or it does, and the run does not fit, has other data, or has nothing left to do.
    """
    (checkpoints,) = (callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoints))
    record.machine, record.planned_epochs = machine(trainer), trainer.max_epochs
    checkpoints.facts = {"data": record.data, "machine": record.machine}
    run, files = Run(folder, config, record, trainer, checkpoints), RunFolder(folder)
    if run.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        run.lock = lock_file(files.lock)
        if run.lock is None:
            raise ConfigError(f"{folder} is in use by another process; choose another folder (folder=...)")
    try:
        if config.resume is None:
            for path, what in ((files.result, "a finished run"), (files.config, "a run that was started")):
                if run.is_first and path.exists():
                    raise ConfigError(
                        f"{folder} already holds {what} ({path.name}); choose another folder (folder=...) or resume the "
                        f"run ({_to_resume(run)})"
                    )
            record.commands = [record.command]
        else:
            _, commands = read_settings(folder)
            record.commands = [*commands, record.command]
            record.command = present_command(record.commands)
            found = newest(files, module, data=record.data)
            if found is not None:
                run.resume_from, checkpoint = found
                _check_resumes(run, checkpoint)
        if run.is_first:
            files.checkpoints.mkdir(parents=True, exist_ok=True)
            files.result.unlink(missing_ok=True)
            write_whole(files.config, settings_text(config, record.commands))
    except BaseException:
        _unlock(run)
        raise
    return run


def _check_resumes(run: Run, checkpoint: dict[str, Any]) -> None:
    folder, trainer = run.folder, run.trainer
    started_by = len(checkpoint["epoch_sums"])
    if started_by not in (0, trainer.world_size):
        raise ConfigError(
            f"{folder} must be resumed with {started_by} process(es), got {trainer.world_size}: its checkpoint was written "
            f"within an epoch (trainer.devices={started_by})"
        )
    if status_of(folder) == "ok" and trainer.max_epochs is not None and checkpoint["epoch"] + 1 >= trainer.max_epochs:
        if run.record.kind == "select":  # whose space says how many epochs it has
            raise ConfigError(f"{folder} has finished, and a selection has no epochs to add")
        raise ConfigError(
            f"{folder} has finished its {trainer.max_epochs} epochs; epochs must be {trainer.max_epochs + 1} or more to "
            "resume it"
        )
    before = checkpoint.get("run", {}).get("machine")
    changes = [
        f"{name}={value} (before: {before[name]})"
        for name, value in run.record.machine.items()
        if isinstance(before, dict) and before.get(name, value) != value
    ]
    if changes and run.is_first:
        print(
            f"resumed with {', '.join(changes)}: results will differ in the last digits from those of a run that was never "
            "stopped",
            file=sys.stderr,
        )


def _unlock(run: Run) -> None:
    if run.lock is not None:
        with suppress(OSError):
            RunFolder(run.folder).lock.unlink()
        os.close(run.lock)
        run.lock = None


class RunFailed(Exception):
    """A run ended for a reason that is known and said in one line; `result.json` holds it, too."""


@contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Write `result.json` once, at the end of the block: status `ok`, `failed` or `interrupted`.

    Raises:
        SystemExit: a signal interrupted the run; the exit code is 128 plus the signal's number.
        RunFailed: it failed for a known reason, or a limit of time or steps interrupted it.
    """

    def write(status: str, error: str | None) -> None:
        if run.is_first:
            run.record.epochs = run.checkpoints.epochs
            result = write_result(run.folder, run.record, status, error, run.checkpoints.seconds)
            finish(run.trainer.loggers, run.folder, result)

    try:
        yield
        write("ok", None)
    except (Interrupted, KeyboardInterrupt, SystemExit) as stop:  # Lightning turns a KeyboardInterrupt into SystemExit
        known = stop if isinstance(stop, Interrupted) else Interrupted("SIGINT", signal.SIGINT)
        run.record.stopped_by = known.by
        epochs = f"{run.checkpoints.epochs} of {run.trainer.max_epochs} epochs"
        text = f"stopped by {known.by} after {epochs}; to continue: {_to_resume(run)}"
        write("interrupted", text)
        if not known.signal_number:
            raise RunFailed(text) from stop
        if run.is_first:
            print(text, file=sys.stderr)
        raise SystemExit(128 + known.signal_number) from stop
    except BaseException as failure:
        known = reason(failure, run.config)
        error = known or " ".join("".join(traceback.format_exception_only(failure)).split())
        try:
            write("failed", error)
        except OSError as another:
            raise RunFailed(
                f"{error}; {RunFolder(run.folder).result.name} cannot be written either: {another.strerror}"
            ) from failure
        if known:
            raise RunFailed(known) from failure
        raise
    finally:
        _unlock(run)


def _to_resume(run: Run) -> str:
    """Return what to type to resume a run, or the sweep that it is a job of."""
    if is_job():
        return f"the same command with {shell_word(override('sweep.resume', HydraConfig.get().sweep.dir))}"
    return pastable(run.record.kind, [override("resume", run.folder)])


def reason(failure: BaseException, config: DictConfig) -> str | None:
    """Return in one line why a run failed and what would help, for failures that are not a mistake in code."""
    text = " ".join(str(failure).split())
    if isinstance(failure, ConfigError | Diverged | MisconfigurationException):
        return text
    if isinstance(failure, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        size = config.data.get("batch_size", 1)
        channels = config.space.get("channels")
        return (
            f"out of memory with data.batch_size={size}{'' if channels is None else f' and space.channels={channels}'}; "
            f"data.batch_size={max(1, size // 2)} needs about half as much"
        )
    if isinstance(failure, OSError) and failure.errno in _DISK_ERRORS:
        return f"cannot write {failure.filename or 'a file of the run'}: {failure.strerror or text}"
    return None
