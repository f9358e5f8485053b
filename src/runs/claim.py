"""How a process makes the folder of a run its own, and how the run ends in it."""

from __future__ import annotations

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
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from src.callbacks.checkpoint import Checkpoints
from src.common.errors import ConfigError, Diverged, Interrupted
from src.common.files import lock_file, write_whole
from src.runs.checkpoints import newest
from src.runs.folder import RunFolder
from src.runs.record import Record, status_of, write_result
from src.runs.resume import read_settings, settings_text


def _is_first_process() -> bool:
    # As the environment says: the commands ask before the processes are joined, too.
    return rank_zero_only.rank == 0  # pyright: ignore[reportFunctionMemberAccess]


@dataclass
class Run:
    """A folder that is this process's own, and the checkpoint to go on from, if it goes on.

    Of several processes the first alone writes into the folder and holds its lock.
    """

    folder: Path
    config: DictConfig
    record: Record
    trainer: L.Trainer
    checkpoint: Path | None = None
    lock: int | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process is the first of the run: always, unless the run has several."""
        return _is_first_process()


def claim(folder: Path, config: DictConfig, record: Record, trainer: L.Trainer, module: L.LightningModule) -> Run:
    """Make a folder this run's own by locking it and writing `config.yaml` into it, or take up the run in it.

    Raises:
        ConfigError: another process is at it; or it already holds a run, and `config.resume` does not ask to go on with
            it; or it does, and there is nothing to go on from, or nothing left to do.
    """
    run, files = Run(folder, config, record, trainer), RunFolder(folder)
    if run.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        run.lock = lock_file(files.lock)
        if run.lock is None:
            raise ConfigError(f"{folder} is in use by another process, allowed is a folder of its own (folder=...)")
    try:
        if config.resume is None:
            for path, what in ((files.result, "a finished run"), (files.config, "a run that was begun")):
                if run.is_first and path.exists():
                    raise ConfigError(
                        f"{folder} already holds {what} ({path.name}), allowed are a folder without one (folder=...) and "
                        f"resume={folder}"
                    )
        else:
            _, record.command = read_settings(folder)
            found = newest(files, module)
            if found is not None:
                run.checkpoint, checkpoint = found
                _check_can_go_on(folder, checkpoint, trainer)
        if run.is_first:
            files.checkpoints.mkdir(parents=True, exist_ok=True)
            files.result.unlink(missing_ok=True)
            write_whole(files.config, settings_text(config, record.command))
    except BaseException:
        _unlock(run)
        raise
    return run


def _check_can_go_on(folder: Path, checkpoint: dict[str, Any], trainer: L.Trainer) -> None:
    begun_by = len(checkpoint["epoch_sums"])
    if begun_by not in (0, trainer.world_size):
        raise ConfigError(
            f"the checkpoint in {folder} was written within an epoch by {begun_by} process(es), not {trainer.world_size}, "
            f"allowed are as many to go on (trainer.devices={begun_by})"
        )
    if status_of(folder) == "ok" and trainer.max_epochs is not None and checkpoint["epoch"] + 1 >= trainer.max_epochs:
        raise ConfigError(
            f"{folder} has finished its {trainer.max_epochs} epochs, allowed is epochs={trainer.max_epochs + 1} or more"
        )


def _unlock(run: Run) -> None:
    if run.lock is not None:
        with suppress(OSError):
            RunFolder(run.folder).lock.unlink()
        os.close(run.lock)
        run.lock = None


class RunFailed(Exception):
    """A run ended for a reason that is known and said in one line; `result.json` has it, too."""


@contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Write `result.json` once, at the end of the block: status `ok`, `failed` or `interrupted`.

    Raises:
        SystemExit: the run was interrupted; the exit code is 128 and the signal's number.
        RunFailed: it failed for a reason that is known.
    """

    def write(status: str, error: str | None) -> None:
        if run.is_first:
            (clock,) = (callback for callback in run.trainer.callbacks if isinstance(callback, Checkpoints))  # pyright: ignore[reportAttributeAccessIssue]
            write_result(run.folder, run.record, status, error, clock.seconds)

    try:
        yield
        write("ok", None)
    except (Interrupted, KeyboardInterrupt, SystemExit) as stop:  # Lightning turns a KeyboardInterrupt into SystemExit
        number = stop.signal_number if isinstance(stop, Interrupted) else signal.SIGINT
        go_on = f"python -m src.{run.record.kind} resume={run.folder}"
        write("interrupted", f"stopped by {signal.Signals(number).name}; to go on: {go_on}")
        if run.is_first:
            print(f"stopped; to go on: {go_on}", file=sys.stderr)
        raise SystemExit(128 + number) from stop
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


def reason(failure: BaseException, config: DictConfig) -> str | None:
    """Return in one line why a run failed and what would help, for the failures that are nobody's mistake in code."""
    text = " ".join(str(failure).split())
    if isinstance(failure, Diverged):
        return text
    if isinstance(failure, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        size = config.data.batch_size
        return (
            f"out of memory with data.batch_size={size}, space.channels={config.space.get('channels')}; "
            f"data.batch_size={max(1, size // 2)} takes about half"
        )
    if isinstance(failure, OSError):
        return f"cannot write {failure.filename or 'a file of the run'}: {failure.strerror or text}"
    return None
