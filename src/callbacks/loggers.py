"""What a logger may be told of the run, and the logger that needs nothing: a CSV file with a row for each step."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from src.callbacks.scalars import ALPHAS
from src.common.files import write_whole
from src.runs.folder import RunFolder


@dataclass(frozen=True)
class Identity:
    """A run's folder, and what the run is called where its user has not said it."""

    folder: Path
    name: str
    job_type: str
    group: str | None = None
    tags: tuple[str, ...] = ()


@runtime_checkable
class OfRun(Protocol):
    """A logger that wants to know which run it belongs to."""

    def of_run(self, run: Identity) -> None:
        """Take note of it; called once, before anything is logged."""
        ...


class StepsFile(Logger):
    """Writes `steps.csv`: what the other loggers get, but for the mixing weights, which alphas.csv has.

    A column that appears later is empty in the rows before. A resumed run continues the file after the step that it
    resumes from. The settings, which other loggers take as hyperparameters, are in config.yaml.
    """

    def __init__(self) -> None:
        super().__init__()
        self.path = RunFolder("").steps
        self._columns: list[str] = []
        self._step: int | None = None
        self._row: dict[str, str] = {}

    def of_run(self, run: Identity) -> None:
        """Write into the run's folder."""
        self.path = RunFolder(run.folder).steps

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    @property
    def version(self) -> str:
        """There is one version."""
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> None:
        """Lightning asks for it; there is none."""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Leave the settings to config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to the row of a step; the row is written when another step begins."""
        step = (self._step or 0) if step is None else step
        if step != self._step:
            if self._step is None:
                self._continue_before(step)
            self._write()
            self._step, self._row = step, {"step": str(step)}
        kept = {name: f"{value:.9g}" for name, value in metrics.items() if not name.startswith(ALPHAS)}
        self._row |= kept

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the last row."""
        self._write()
        self._row = {}

    def _continue_before(self, step: int) -> None:
        """Drop the rows of a run that was stopped from a step on: they will be written again."""
        rows = self._read()
        if rows:
            self._columns = list(rows[0])
            write_whole(self.path, self._text([row for row in rows if int(row["step"]) < step], header=True))

    def _write(self) -> None:
        if not self._row:
            return
        new = [name for name in self._row if name not in self._columns]
        if new:
            rows = self._read()
            self._columns += new
            write_whole(self.path, self._text([*rows, self._row], header=True))
        else:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(self._text([self._row], header=False))

    def _read(self) -> list[dict[str, str]]:
        """Return the rows of the file; a last line that was cut off is left out."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        return [row for row in rows if None not in row.values() and str(row.get("step", "")).isdecimal()]

    def _text(self, rows: Iterable[Mapping[str, str]], *, header: bool) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()
