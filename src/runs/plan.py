"""A plan before a run: what it will need of this machine, measured on a few of its own steps."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import lightning as L
import torch
from omegaconf import DictConfig
from torch.utils._pytree import tree_leaves, tree_map_only

from src.architectures.architecture import Architecture
from src.common.errors import ConfigError
from src.common.shell import override
from src.common.terminal import duration, has_bar, say, table
from src.runs.build import build_trainer
from src.runs.devices import machine, memory_limit, peak_memory, reset_peak_memory
from src.runs.folder import RunFolder
from src.runs.following import retrain_overrides
from src.runs.record import Record
from src.runs.resume import settings_text
from src.runs.summary import device, headline, network, samples, steps
from src.training.module import TrainingModule
from src.training.search import SearchModule

# Sizes of the first batches. The first prepares what later steps find ready, the others show how memory grows.
_WARM_UP, _FIRST, _GROWTH = 2, 8, 4
_TIMED, _SECONDS, _MOST = 3, 5.0, 20  # so many steps are timed, more of them while they take fewer seconds than that
_SAFE = 0.9  # of the memory that is free: a few steps do not show everything
_EPOCHS = 1000
_ROW = 60  # bytes of a row of alphas.csv


@dataclass
class Needs:
    """What a run needs.

    Attributes:
        step: seconds of a step.
        frozen_step: seconds of a step in the epochs of a search that train the weights only; None without such epochs.
        validation: seconds of a validation batch; None without validation.
        memory: bytes of the device or, on a CPU, of this process; None where they cannot be told.
        limit: bytes that `memory` could grow to.
        seconds: of the training.
        disk: bytes of the run's folder, without those of loggers.
    """

    step: float
    frozen_step: float | None
    validation: float | None
    memory: int | None
    limit: int | None
    seconds: float
    disk: int


def say_plan(config: DictConfig, record: Record, module: TrainingModule, data: Any) -> None:
    """Measure a few steps of a run, and print what the run will need; for a search also what the retrain will need.

    Loggers, callbacks and diagnostics are left out. The module has been trained a little afterwards. Nothing is left in
    the run's folder.

    Raises:
        ConfigError: the run does not fit into memory; the message names a batch size that does. Or it has several
            processes.
    """
    if has_bar():
        print("measuring a few steps ...", file=sys.stderr)
    probe = _Probe(module, config)
    with tempfile.TemporaryDirectory(prefix="darts-plan-") as folder:
        trainer = build_trainer(_quiet(config), Path(folder), module, last=[probe])
        if trainer.world_size > 1:
            raise ConfigError(f"plan=true needs one process (trainer.devices=1), got {trainer.world_size}")
        probe.measure(trainer, data)
        needs = probe.needs(trainer, Path(folder))
    record.machine = machine(trainer)
    batches = int(sum(trainer.num_val_batches))
    validation = f", and {batches:,} validation batches" if batches else ""
    say(f"plan of a {headline(record)}")
    say(
        table(
            [
                ("device", device(record.machine, trainer.precision, graphs=module.graphs is not None)),
                ("network", network(record, module)),
                ("data", samples(record.data)),
                ("training", f"{steps(trainer, config.epochs)}{validation}"),
                ("step", _step(needs, module)),
                ("memory", _memory(needs)),
                ("time", f"about {duration(needs.seconds)}{'' if record.kind == 'search' else ', without the test'}"),
                ("disk", f"about {_size(needs.disk)}, mostly two checkpoints"),
            ]
        )
    )
    if isinstance(module, SearchModule):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        say("then, for an architecture at random:")
        say(_plan_of_retrain(config, record, module.derive()))


def say_plan_without_training(config: DictConfig, record: Record, architecture: Architecture) -> None:
    """Print what a search that trains nothing will need, and what the retrain of its architecture will need."""
    say(f"plan of a {headline(record)}")
    say(table([("data", samples(record.data)), ("training", "none: the architecture is drawn in seconds")]))
    say("then, for this architecture:")
    say(_plan_of_retrain(config, record, architecture))


def _quiet(config: DictConfig) -> DictConfig:
    config = config.copy()
    config.callbacks = config.logger = config.checkpoint_minutes = None
    config.trainer.max_epochs = _EPOCHS  # a short run may have fewer steps than are measured
    return config


def _plan_of_retrain(config: DictConfig, record: Record, architecture: Architecture) -> str:
    """Return what `src.retrain` with `plan=true` prints, in a process of its own, so with memory of its own."""
    with tempfile.TemporaryDirectory(prefix="darts-plan-") as folder:
        files = RunFolder(folder)
        files.config.write_text(settings_text(config, [record.command]), encoding="utf-8")
        architecture.write(files.genotype)
        typed = [override("genotype", folder), override("folder", Path(folder) / "retrain"), "plan=true"]
        done = subprocess.run(
            [sys.executable, "-m", "src.retrain", *retrain_overrides(record.command), *typed],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            capture_output=True,
            text=True,
            check=False,
        )
    return (done.stdout if done.returncode == 0 else done.stderr).rstrip()


class _Enough(Exception):
    """Everything is measured."""


class _Taken(NamedTuple):
    samples: int
    is_frozen: bool
    seconds: float
    memory: int | None


class _Probe(L.Callback):
    """Takes steps on growing parts of a batch, then whole ones, then validates, and ends the training soon."""

    def __init__(self, module: TrainingModule, config: DictConfig) -> None:
        self.module = module
        self.config = config
        self.taken: list[_Taken] = []
        self.validated: list[float] = []
        self.whole = 0  # samples of a batch
        self.limit: int | None = None
        self._plan: Iterator[tuple[int, bool]] = iter(())
        self._next: tuple[int, bool] | None = None  # samples of the next step, and whether alphas are frozen in it
        self._mark = 0.0
        self._frozen_epochs = module.method.frozen_of(config.epochs) if isinstance(module, SearchModule) else 0

    def measure(self, trainer: L.Trainer, data: Any) -> None:
        """Train until everything is measured.

        Raises:
            ConfigError: the run does not fit into memory.
        """
        take = self.module.training_step

        def step(batch: Any, batch_idx: int) -> Any:
            assert self._next is not None
            size, is_frozen = self._next
            if isinstance(self.module, SearchModule):
                self.module.method = replace(self.module.method, frozen_epochs=_EPOCHS if is_frozen else 0)
            return take(tree_map_only(torch.Tensor, lambda tensor: tensor[:size], batch), batch_idx)

        self.module.training_step = step  # pyright: ignore[reportAttributeAccessIssue]
        try:
            trainer.fit(self.module, datamodule=data)
        except _Enough:
            pass
        except (MemoryError, torch.OutOfMemoryError):
            raise self._does_not_fit(None) from None
        finally:
            del self.module.training_step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin with the first batch."""
        if self.whole == 0:
            self.whole = len(tree_leaves(batch)[0])
            self.limit = memory_limit(pl_module.device)
            self._plan = self._sizes()
            self._next = next(self._plan)
        if batch_idx == 0:
            self._mark = time.monotonic()
        reset_peak_memory(pl_module.device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note what the step took; the time includes that of fetching its batch."""
        assert self._next is not None
        memory = peak_memory(pl_module.device)  # waits for the device
        now = time.monotonic()
        self.taken.append(_Taken(*self._next, now - self._mark, memory))
        self._next = next(self._plan, None)
        self._mark = time.monotonic()
        if self._next is None:
            trainer.save_checkpoint(RunFolder(trainer.default_root_dir).last)
            if not sum(trainer.num_val_batches):
                raise _Enough
            trainer.should_stop = True  # which has Lightning validate now

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._mark = time.monotonic()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Note what the batch took."""
        peak_memory(pl_module.device)
        self.validated.append(time.monotonic() - self._mark)
        if self._next is None and len(self.validated) > _TIMED:
            raise _Enough

    def _sizes(self) -> Iterator[tuple[int, bool]]:
        """Yield for each step how many samples it takes, and whether alphas are frozen in it."""
        yield min(_WARM_UP, self.whole), False
        size = _FIRST
        while size < self.whole:
            yield size, False
            self._check()
            size *= _GROWTH
        for is_frozen in (False, True) if self._frozen_epochs else (False,):
            while not self._is_timed(is_frozen):
                yield self.whole, is_frozen

    def _timed(self, is_frozen: bool) -> list[float]:
        """Return the seconds of whole steps; the first prepares what the others find ready."""
        return [one.seconds for one in self.taken if (one.samples, one.is_frozen) == (self.whole, is_frozen)][1:]

    def _is_timed(self, is_frozen: bool) -> bool:
        timed = self._timed(is_frozen)
        return len(timed) >= _TIMED and (sum(timed) >= _SECONDS or len(timed) >= _MOST)

    def _check(self) -> None:
        """Raise a `ConfigError` if a whole batch will not fit, as far as smaller ones tell."""
        needed = self._memory_of(self.whole)
        if needed is not None and self.limit is not None and needed > _SAFE * self.limit:
            raise self._does_not_fit(needed)

    def _line(self) -> tuple[int, int, float] | None:
        """Return the largest batch so far, the bytes that it took, and the bytes of each further sample."""
        points = [(one.samples, one.memory) for one in self.taken[1:] if one.memory is not None]
        if len(points) < 2:
            return None
        (few, less), (many, more) = points[-2:]
        return many, more, max(0.0, (more - less) / (many - few)) if many > few else 0.0

    def _memory_of(self, size: int) -> int | None:
        line = self._line()
        return None if line is None else int(line[1] + line[2] * (size - line[0]))

    def _does_not_fit(self, needed: int | None) -> ConfigError:
        """Return the error that names a batch size which fits."""
        line, text = self._line(), f"data.batch_size={self.whole} does not fit into memory"
        if needed is not None and self.limit is not None:
            text = f"data.batch_size={self.whole} needs about {_size(needed)} of memory, {_size(self.limit)} can be had"
        fits = max((one.samples for one in self.taken), default=0)
        if line is not None and self.limit is not None and line[2] > 0:
            fits = int(line[0] + (_SAFE * self.limit - line[1]) / line[2])
        fits = min(fits, self.whole // 2)
        fits -= fits % _FIRST if fits > _FIRST else 0
        if fits < 1:
            return ConfigError(f"{text}; a smaller network is needed, such as with fewer space.channels")
        own = self._memory_of(fits)
        return ConfigError(f"{text}; data.batch_size={fits} fits{'' if own is None else f', with about {_size(own)}'}")

    def needs(self, trainer: L.Trainer, folder: Path) -> Needs:
        """Return what the whole run needs, after `measure`."""
        step = median(self._timed(False))
        frozen = median(self._timed(True)) if self._timed(True) else None
        validation = median(self.validated[1:] or self.validated) if self.validated else None
        frozen_epochs = min(self._frozen_epochs, self.config.epochs)
        an_epoch = int(trainer.num_training_batches)
        seconds = an_epoch * ((self.config.epochs - frozen_epochs) * step + frozen_epochs * (frozen or step))
        seconds += self.config.epochs * int(sum(trainer.num_val_batches)) * (validation or 0.0)
        used = [one.memory for one in self.taken if one.samples == self.whole and one.memory is not None]
        rows = 0
        if isinstance(self.module, SearchModule):
            rows = self.config.epochs * sum(row.numel() for row in self.module.alphas().values())
        # Both checkpoints hold the rows of alphas.csv, too.
        disk = 2 * RunFolder(folder).last.stat().st_size + 3 * _ROW * rows
        return Needs(step, frozen, validation, max(used, default=None), self.limit, seconds, disk)


def _step(needs: Needs, module: TrainingModule) -> str:
    text = f"{needs.step:.3g} s"
    if needs.frozen_step is not None and isinstance(module, SearchModule):
        text += f"; {needs.frozen_step:.3g} s in the first epochs, which train the weights only"
    return text if needs.validation is None else f"{text}; {needs.validation:.3g} s a validation batch"


def _memory(needs: Needs) -> str:
    if needs.memory is None or needs.limit is None:
        return "not known: it is measured on Linux, and on a GPU"
    return f"{_size(needs.memory)} at most, of {_size(needs.limit)} that can be had"


def _size(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
