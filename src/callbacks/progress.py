"""What a run prints while it trains: a bar on a terminal, a line after each epoch, and elsewhere a line every minute.

Epochs are counted from 0 everywhere, as in metrics.csv and in the names of the architecture files: the last of 50 is 49.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from src.callbacks.record import EpochAlphas
from src.common import processes
from src.common.terminal import duration, has_bar, named, percent, say
from src.methods.decision import decided, flips, skips, strongest
from src.training.module import TrainingModule
from src.training.search import SearchModule

_SILENCE = 60.0  # seconds without a line after which one is due
_REDRAWN = 0.1  # seconds between two states of the bar
_FIRST_STEPS, _FIRST_SECONDS = 3, 5.0  # what the first estimate is made of


class Progress(ProgressBar):
    """Prints a row of a table after each epoch, and one estimate of the time that is left.

    A row has the training loss, the task's metric on the training batches and on what the run is validated with, and of a
    search: how decided the mixing weights are (0 % where all candidates weigh the same, 100 % where one has all the
    weight), how many skip connections the architecture has, and for how many choices the heaviest candidate has changed
    since the last epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm[Any] | None = None
        self._pace = Pace()
        self._said = 0.0
        self._drawn = 0.0
        self._columns: list[tuple[str, int]] = []
        self._estimated = False
        self._strongest: dict[str, str] = {}

    # What Lightning asks of a bar.

    def enable(self) -> None:
        """Show the bar, if there is a terminal."""
        self._enabled = True

    def disable(self) -> None:
        """Show no bar; Lightning calls this on all processes but the first."""
        self._enabled = False
        self._close()

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print a line, above the bar if there is one."""
        if processes.rank() > 0:
            return
        self._said = time.monotonic()
        text = sep.join(map(str, args))
        if self._bar is None:
            say(text)
        else:
            self._bar.write(named(text), file=sys.stdout)

    # Training.

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; what a resumed run had done before does not count."""
        self._pace = Pace()
        self._said = time.monotonic()
        self._columns, self._estimated, self._strongest = [], False, {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Time a step, and what lies between two epochs."""
        self._pace.begin(time.monotonic(), first=batch_idx == 0)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the step's loss and metric, as the training step returned them."""
        now = time.monotonic()
        self._pace.end(now)
        if not self._estimated and self._pace.is_measured:
            self._estimate(trainer, batch_idx)
        total = int(trainer.num_training_batches)
        # Reading a value waits for the device.
        shown = self._is_shown() and (now - self._drawn >= _REDRAWN or batch_idx + 1 == total)
        due = self._is_due(now)
        if not shown and not due:
            return
        values = ", ".join(f"{name} {_number(name, float(value))}" for name, value in outputs.items())
        text = f"{values}, {duration(self._left(trainer, batch_idx + 1))} left"
        if shown:
            self._drawn = now
            self._show(f"epoch {_place(trainer)}", batch_idx + 1, total, text)
        if due:
            self.print(f"epoch {_place(trainer)}, step {batch_idx + 1}/{total}: {text}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the epoch's row."""
        self._pace.pause(time.monotonic())
        cells = self._cells(trainer, pl_module)
        if not self._columns:
            self._columns = [(name, max(width, len(name), len(text))) for name, text, width in cells]
            self.print("  ".join(name.rjust(width) for name, width in self._columns))
        texts = {name: text for name, text, _ in cells}
        self.print("  ".join(texts.get(name, "").rjust(width) for name, width in self._columns))
        self._estimated = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the bar."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Remove the bar, so that the error has a line of its own."""
        self._close()

    # Validation and test.

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Show how far the validation is."""
        if not trainer.sanity_checking:
            what = f"epoch {_place(trainer)}, {validation_name(trainer, pl_module)}"
            self._measured(what, batch_idx + 1, trainer.num_val_batches[dataloader_idx])

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Show how far the test is."""
        self._measured("test", batch_idx + 1, trainer.num_test_batches[dataloader_idx])

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the bar."""
        self._close()

    def _measured(self, what: str, done: int, total: float) -> None:
        if self._is_shown():
            self._show(what, done, int(total), "")
        if self._is_due(time.monotonic()):
            self.print(f"{what}: batch {done}/{int(total)}")

    # The row.

    def _cells(self, trainer: L.Trainer, module: L.LightningModule) -> list[tuple[str, str, int]]:
        """Return the name, the text and the usual width of each cell of the epoch's row."""
        assert isinstance(module, TrainingModule)
        measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
        metric = module.task.metric
        cells = [("epoch", _place(trainer), 5)]
        for title, name in (
            ("loss", "train_loss"),
            (f"{metric}: train", f"train_{metric}"),
            (validation_name(trainer, module), f"val_{metric}"),
        ):
            if name in measured:
                cells.append((title, _number(name.partition("_")[2], measured[name]), 6))
        if isinstance(module, SearchModule):
            cells += self._decision(trainer, module)
        left = self._left(trainer, int(trainer.num_training_batches))
        return [*cells, ("left", duration(left), 10)]

    def _decision(self, trainer: L.Trainer, module: SearchModule) -> list[tuple[str, str, int]]:
        expected = module.net.by_name(module.mixing_weights())
        before = self._strongest or _strongest_before(trainer)
        self._strongest = strongest(expected)
        share, skipped = decided(expected.values()), skips(module.derive(), expected)
        return [
            *([] if share is None else [("decided", percent(share), 0)]),
            *([] if skipped is None else [("skips", str(skipped), 0)]),
            ("flips", str(flips(before, self._strongest)) if before else "-", 0),
        ]

    # Time.

    def _left(self, trainer: L.Trainer, done: int) -> float:
        """Return the seconds that are left, after `done` batches of the present epoch."""
        assert trainer.max_epochs is not None
        epochs, batches = trainer.max_epochs - trainer.current_epoch, int(trainer.num_training_batches)
        return self._pace.left(epochs * batches - done, epochs - (self._pace.is_paused))

    def _estimate(self, trainer: L.Trainer, batch_idx: int) -> None:
        self._estimated = True
        assert trainer.max_epochs is not None
        steps = (trainer.max_epochs - trainer.current_epoch) * int(trainer.num_training_batches) - batch_idx - 1
        if not steps:
            return
        rest = ", and the validation of each epoch" if sum(trainer.num_val_batches) else ""
        self.print(
            f"{duration(self._pace.left(steps, 0))} left, estimated: {steps:,} steps of {self._pace.step:.3g} s{rest}"
        )

    def _is_due(self, now: float) -> bool:
        return now - self._said >= _SILENCE and not (self._is_shown() and sys.stdout.isatty())

    # The bar.

    def _is_shown(self) -> bool:
        return self._enabled and has_bar()

    def _show(self, what: str, done: int, total: int, text: str) -> None:
        if self._bar is None or self._bar.desc != what:
            self._close()
            self._bar = tqdm(
                desc=what,
                total=total,
                leave=False,
                miniters=1,
                dynamic_ncols=True,
                file=sys.stderr,
                bar_format="{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}",
            )
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Pace:
    """How long a step takes, and what lies between the steps of two epochs: validation, files, pictures.

    The first step of a process prepares what the others find ready, so it counts only while there is no other.

    Attributes:
        is_paused: whether the present epoch's steps are done.
    """

    def __init__(self) -> None:
        self.is_paused = False
        self._first: float | None = None
        self._steps, self._seconds = 0, 0.0
        self._between = 0.0
        self._began = 0.0
        self._ended: float | None = None

    def begin(self, now: float, *, first: bool) -> None:
        """Begin a step; `first` of an epoch."""
        if first and self._ended is not None:
            self._between = now - self._ended
        # Within an epoch a step begins where the last one ended: fetching its batch belongs to it.
        self._began = now if first or self._ended is None else self._ended
        self.is_paused = False

    def end(self, now: float) -> None:
        """End a step."""
        seconds, self._ended = now - self._began, now
        if self._first is None:
            self._first = seconds
        else:
            self._steps += 1
            self._seconds += seconds

    def pause(self, now: float) -> None:
        """End an epoch, after its validation."""
        self.is_paused = True
        if self._ended is not None:
            self._between = now - self._ended

    @property
    def is_measured(self) -> bool:
        """Whether there are enough steps for an estimate."""
        return self._steps >= _FIRST_STEPS and self._seconds >= _FIRST_SECONDS

    @property
    def step(self) -> float:
        """The mean time of a step."""
        return self._seconds / self._steps if self._steps else self._first or 0.0

    def left(self, steps: int, epochs: int) -> float:
        """Return the seconds that some steps, and the ends of some epochs, will take."""
        return steps * self.step + epochs * self._between


def validation_name(trainer: L.Trainer, module: L.LightningModule) -> str:
    """Return what the validation is of: the half of the train split that trains the alphas, or a split of its own.

    With a method of one level, that half trains the weights as well.
    """
    describe = getattr(trainer.datamodule, "record", None)  # pyright: ignore[reportAttributeAccessIssue]
    described: Mapping[str, Any] = describe() if describe is not None else {}
    if not isinstance(module, SearchModule) or described.get("validation_samples") != 0:
        return "validation"
    return "trained half" if module.method.one_level else "alphas' half"


def _strongest_before(trainer: L.Trainer) -> dict[str, str]:
    """Return the heaviest candidates after the last epoch of a run that this process has resumed."""
    rows = [row for table in trainer.callbacks if isinstance(table, EpochAlphas) for row in table.rows]  # pyright: ignore[reportAttributeAccessIssue]
    weights: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["epoch"] == trainer.current_epoch - 1:
            weights.setdefault(row["key"], {})[row["candidate"]] = row["weight"]
    return strongest(weights)


def _place(trainer: L.Trainer) -> str:
    """Return the present epoch and the last, both counted from 0."""
    assert trainer.max_epochs is not None
    return f"{trainer.current_epoch}/{trainer.max_epochs - 1}"


def _number(name: str, value: float) -> str:
    if name == "accuracy":
        return percent(value)
    return f"{value:.3f}" if 0.1 <= abs(value) < 1000 else f"{value:.4g}"
