"""What a run left in its folder, read back: files in, plain values out.

A run may have failed, been interrupted or still be running, so every file may be missing. A file that exists and cannot
be read is named in `SavedRun.problems`; the others are read all the same.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from src.architectures.architecture import Answer
from src.common.errors import ConfigError, shorten
from src.runs.folder import RunFolder

T = TypeVar("T")


class Score(NamedTuple):
    """The figure that a run is judged by: on the test split where it was measured, else on the validation split."""

    split: str  # "test" or "val"
    metric: str  # "accuracy" or, where there is none, the first metric besides the loss
    value: float

    def __str__(self) -> str:
        return self.with_unit(f"{100 * self.value:.2f}" if self.is_share else f"{self.value:.4g}")

    @property
    def is_share(self) -> bool:
        """Whether the value is a share of all samples, which is shown in percent."""
        return self.metric == "accuracy"

    def with_unit(self, number: str) -> str:
        """Return a number with this score's unit and split: `90.00 % val`, `0.31 val mae`."""
        return f"{number} % {self.split}" if self.is_share else f"{number} {self.split} {self.metric}"


@dataclass
class SavedRun:
    """A run as its folder describes it; empty where a file is missing."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    """Column -> one value per epoch, nan where the file has none."""
    alphas: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Key of a choice -> candidate -> mixing weight, one for each of `alpha_epochs`."""
    alpha_epochs: list[int] = field(default_factory=list)
    genotype: dict[str, Answer] = field(default_factory=dict)
    history: dict[int, dict[str, Answer]] = field(default_factory=dict)
    """Epoch -> the architecture derived after it."""
    decisions: list[dict[str, str]] = field(default_factory=list)
    """The rows of decisions.csv, of a selection."""
    problems: list[str] = field(default_factory=list)
    """One line for each file that could not be read."""
    typed: list[str] = field(default_factory=list)
    """The commands in the head of config.yaml: what started the run, and what resumed it."""

    @property
    def kind(self) -> str:
        """What ran: "search", "select" or "retrain"."""
        kind = self.result.get("kind")
        if isinstance(kind, str):
            return kind
        if "searched" in self.config:
            return "select"
        return "search" if self.alphas or self.history or "order" in self.config else "retrain"

    @property
    def status(self) -> str:
        """How it ended: "ok", "failed" or "interrupted", or that this is not known."""
        status = self.result.get("status")
        if isinstance(status, str):
            return status
        return "unreadable" if self.problems else "unfinished"

    @property
    def method(self) -> str | None:
        """The name of a search's method; None where this is not known."""
        method = self.result.get("method")
        return method if isinstance(method, str) else None

    @property
    def seed(self) -> object:
        """Its seed; None where this is not known."""
        return self.result.get("seed", self.config.get("seed"))

    @property
    def order(self) -> object:
        """The order of a search; None where this is not known."""
        return self.result.get("order", self.config.get("order"))

    @property
    def command(self) -> str | None:
        """What starts a run with these settings; None where this is not known."""
        command = self.result.get("command")
        if isinstance(command, list):  # as older runs have it
            command = shlex.join(map(str, command))
        if isinstance(command, str) and command:
            return command
        return self.typed[0] if self.typed else None

    @property
    def epochs(self) -> int:
        """How many epochs were trained."""
        trained = _number(self.result.get("epochs"))
        return len(self.metrics.get("epoch", [])) if trained is None else int(trained)

    @property
    def planned_epochs(self) -> int | None:
        """How many epochs were to be trained; None where this is not known."""
        planned = _number(self.result.get("planned_epochs", self.config.get("epochs")))
        return None if planned is None else int(planned)

    @property
    def trains(self) -> bool:
        """Whether the run trains anything: not so a search that draws its architecture by chance."""
        return self.planned_epochs != 0

    @property
    def architecture_epoch(self) -> int | None:
        """The epoch after which a search's architecture was derived; None where this is not known."""
        epoch = _number(self.result.get("architecture_epoch"))
        return None if epoch is None else int(epoch)

    @property
    def final_place(self) -> int:
        """The place of that epoch in `alpha_epochs`; the last one where this is not known."""
        epoch = self.architecture_epoch
        return self.alpha_epochs.index(epoch) if epoch in self.alpha_epochs else len(self.alpha_epochs) - 1

    @property
    def is_cut_short(self) -> bool:
        """Whether fewer epochs were trained than were to be."""
        return self.planned_epochs is not None and self.epochs < self.planned_epochs

    @property
    def ended(self) -> str:
        """The status, and how far a run came that was cut short."""
        return f"{self.status}, {self.epochs} of {self.planned_epochs} epochs" if self.is_cut_short else self.status

    @property
    def score(self) -> Score | None:
        """The figure to judge the run by, or None where nothing was measured."""
        measured = self.result.get("metrics")
        last = {
            name: next((value for value in reversed(line) if math.isfinite(value)), None)
            for name, line in self.metrics.items()
        }
        return score_of(measured if isinstance(measured, dict) else {}) or score_of(last)

    def number(self, name: str) -> float | None:
        """Return a number of the result, such as `params`, `macs` or `seconds`; None where there is none."""
        return _number(self.result.get(name))


def score_of(metrics: Mapping[str, object]) -> Score | None:
    """Return the figure that a run with these metrics is judged by; None if there is none."""
    for split in ("test", "val"):
        found = {
            name.removeprefix(f"{split}_"): number
            for name, value in metrics.items()
            if name.startswith(f"{split}_") and (number := _number(value)) is not None
        }
        found.pop("loss", None)
        for metric in sorted(found, key=lambda name: name != "accuracy"):
            return Score(split, metric, found[metric])
    return None


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run."""
    files = RunFolder(folder)
    return files.result.is_file() or files.metrics.is_file()


def find_runs(path: Path) -> Iterator[Path]:
    """Yield `path` if it is a run's folder, else the run folders in it at any depth, in the order of their names.

    What a run's folder holds below it, such as a logger's files, is not searched.
    """
    if is_run(path):
        yield path
    elif path.is_dir():
        for child in sorted(path.iterdir(), key=_by_number):
            if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
                yield from find_runs(child)


def read_run(folder: Path) -> SavedRun:
    """Read everything that a run's folder holds."""
    run, files = SavedRun(folder), RunFolder(folder)

    def read(path: Path, parse: Callable[[str], T], otherwise: T) -> T:
        try:
            return parse(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return otherwise
        except OSError as error:
            run.problems.append(f"cannot read {path}: {error.strerror}")
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            run.problems.append(f"cannot read {path}, which may be truncated: {shorten(error, 100)}")
        return otherwise

    run.config = read(files.config, _config, {})
    run.typed = read(files.config, _commands, []) if run.config else []
    run.result = read(files.result, _object, {})
    run.metrics = read(files.metrics, _metrics, {})
    run.alpha_epochs, run.alphas = read(files.alphas, _alphas, ([], {}))
    run.decisions = read(files.decisions, _decisions, [])
    run.genotype = read(files.genotype, _architecture, {})
    if not run.genotype and isinstance(run.result.get("genotype"), dict):
        run.genotype = _answers(run.result["genotype"])
    for epoch, path in files.epochs():
        architecture = read(path, _architecture, {})
        if architecture:
            run.history[epoch] = architecture
    return run


def _by_number(path: Path) -> list[tuple[int, int, str]]:
    """Return a key that sorts "2" before "10"."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part) for part in parts if part]


def _number(value: object) -> float | None:
    """Return a value from JSON or YAML as a number; None if it is not a finite one."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    return None


def _object(text: str) -> dict[str, Any]:
    raw = json.loads(text)
    if not isinstance(raw, dict):
        raise ConfigError(f"it must hold a JSON object, got a {type(raw).__name__}")
    return raw


def _config(text: str) -> dict[str, Any]:
    raw = yaml.safe_load(text)
    if not isinstance(raw, dict):
        raise ConfigError(f"it must hold a YAML mapping, got a {type(raw).__name__}")
    return {str(key): value for key, value in raw.items()}


def _commands(text: str) -> list[str]:
    """Return the commands above the settings, a comment each."""
    head = itertools.takewhile(lambda line: line.startswith("# "), text.splitlines())
    return [line.removeprefix("# ") for line in head]


def _architecture(text: str) -> dict[str, Answer]:
    return _answers(_object(text))


def _answers(raw: dict[str, Any]) -> dict[str, Answer]:
    """Return the answers of an architecture of any space. A list becomes a tuple, an empty list None."""
    answers: dict[str, Answer] = {}
    for key, answer in raw.items():
        if isinstance(answer, list):
            answers[key] = tuple(str(item) for item in answer) or None
        else:
            answers[key] = None if answer is None else str(answer)
    return answers


def _rows(text: str, needed: set[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield a CSV file's (line number, row); every row must have all of the header's columns."""
    lines = csv.reader(text.splitlines(), strict=True)
    try:
        header = next(lines, [])
        if not needed <= set(header):
            raise ConfigError(f"line 1 must name the columns {', '.join(sorted(needed))}, got {shorten(header)}")
        for row in lines:
            if len(row) != len(header):
                raise ConfigError(f"line {lines.line_num} must have {len(header)} columns, got {len(row)}")
            yield lines.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ConfigError(f"line {lines.line_num}: {error}") from None


def _float(text: str, line: int) -> float:
    try:
        value = float(text) if text.strip() else math.nan
    except ValueError:
        raise ConfigError(f"line {line} must hold a number, got {shorten(text)!r}") from None
    return value if math.isfinite(value) else math.nan


def _int(text: str, line: int) -> int:
    value = _float(text, line)
    if not value.is_integer():
        raise ConfigError(f"line {line} must hold the number of an epoch, got {shorten(text)!r}")
    return int(value)


def _metrics(text: str) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for line, row in _rows(text, {"epoch"}):
        _int(row["epoch"], line)
        for name, value in row.items():
            columns.setdefault(name, []).append(_float(value, line))
    return columns


def _decisions(text: str) -> list[dict[str, str]]:
    rows = []
    for line, row in _rows(text, {"round", "choice", "pass", "without", "score", "answer"}):
        _int(row["round"], line)
        _float(row["score"], line)
        rows.append(row)
    return rows


def _alphas(text: str) -> tuple[list[int], dict[str, dict[str, list[float]]]]:
    found: dict[str, dict[str, dict[int, float]]] = {}
    epochs: set[int] = set()
    for line, row in _rows(text, {"epoch", "key", "candidate", "weight"}):
        epoch = _int(row["epoch"], line)
        epochs.add(epoch)
        found.setdefault(row["key"], {}).setdefault(row["candidate"], {})[epoch] = _float(row["weight"], line)
    order = sorted(epochs)
    return order, {
        key: {candidate: [line.get(epoch, math.nan) for epoch in order] for candidate, line in lines.items()}
        for key, lines in found.items()
    }
