"""What a run left in its folder, read back: files in, plain values out.

A run may have failed, been interrupted or still be going, so every file may be missing. One that is there and cannot
be read is named in `SavedRun.problems`, and the rest is read all the same.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from src.architectures.architecture import Answer
from src.common.errors import ConfigError, shorten
from src.runs.folder import RunFolder

T = TypeVar("T")


@dataclass
class SavedRun:
    """A run as its folder tells it; empty where a file is missing."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    """Column -> a value an epoch, nan where the file has none."""
    alphas: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Key of a choice -> candidate -> softmax weight, an epoch of `alpha_epochs` each."""
    alpha_epochs: list[int] = field(default_factory=list)
    genotype: dict[str, Answer] = field(default_factory=dict)
    history: dict[int, dict[str, Answer]] = field(default_factory=dict)
    """Epoch -> the architecture derived after it."""
    problems: list[str] = field(default_factory=list)
    """A line for each file that could not be read."""

    @property
    def kind(self) -> str:
        """What ran: "search" or "retrain"."""
        kind = self.result.get("kind")
        if isinstance(kind, str):
            return kind
        return "search" if self.alphas or self.history or "order" in self.config else "retrain"

    @property
    def status(self) -> str:
        """How it ended: "ok", "failed" or "interrupted", or that this is not known."""
        status = self.result.get("status")
        if isinstance(status, str):
            return status
        return "unreadable" if self.problems else "unfinished"

    @property
    def accuracy(self) -> tuple[str, float] | None:
        """The accuracy to judge the run by, as (split, fraction): on the test split where it was measured."""
        measured = self.result.get("metrics")
        for name in ("test_accuracy", "val_accuracy"):
            value = _number(measured.get(name)) if isinstance(measured, dict) else None
            if value is not None:
                return name.removesuffix("_accuracy"), value
        known = [value for value in self.metrics.get("val_accuracy", []) if math.isfinite(value)]
        return ("val", known[-1]) if known else None

    def number(self, name: str) -> float | None:
        """Return a number of result.json, such as `params`, `macs` or `seconds`; None where there is none."""
        return _number(self.result.get(name))


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
    """Read all that a run's folder holds."""
    record, files = SavedRun(folder), RunFolder(folder)

    def read(path: Path, parse: Callable[[str], T], otherwise: T) -> T:
        try:
            return parse(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return otherwise
        except OSError as error:
            record.problems.append(f"cannot read {path}: {error.strerror}")
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            record.problems.append(f"cannot read {path}, truncated perhaps: {shorten(error, 100)}")
        return otherwise

    record.config = read(files.config, _config, {})
    record.result = read(files.result, _object, {})
    record.metrics = read(files.metrics, _metrics, {})
    record.alpha_epochs, record.alphas = read(files.alphas, _alphas, ([], {}))
    record.genotype = read(files.genotype, _architecture, {})
    if not record.genotype and isinstance(record.result.get("genotype"), dict):
        record.genotype = _answers(record.result["genotype"])
    for path in files.checkpoints.glob(files.epoch("*").name):
        match = re.fullmatch(r"epoch_([0-9]{1,9})\.json", path.name)
        architecture = read(path, _architecture, {}) if match else {}
        if match and architecture:
            record.history[int(match[1])] = architecture
    return record


def _by_number(path: Path) -> list[tuple[int, int, str]]:
    """Return a key that sorts "2" before "10"."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part) for part in parts if part]


def _number(value: object) -> float | None:
    """Return a value from JSON as a number; None if it is none, or too large to be one."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    return None


def _object(text: str) -> dict[str, Any]:
    raw = json.loads(text)
    if not isinstance(raw, dict):
        raise ConfigError(f"it holds a JSON {type(raw).__name__}, an object is needed")
    return raw


def _config(text: str) -> dict[str, Any]:
    raw = yaml.safe_load(text)
    if not isinstance(raw, dict):
        raise ConfigError(f"it holds a YAML {type(raw).__name__}, a mapping is needed")
    return {str(key): value for key, value in raw.items()}


def _architecture(text: str) -> dict[str, Answer]:
    return _answers(_object(text))


def _answers(raw: dict[str, Any]) -> dict[str, Answer]:
    """Return the answers of an architecture of any space; a list is a tuple, nothing is None."""
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
            raise ConfigError(f"line 1 has the columns {shorten(header)}, needed are {', '.join(sorted(needed))}")
        for row in lines:
            if len(row) != len(header):
                raise ConfigError(f"line {lines.line_num} has {len(row)} columns of {len(header)}")
            yield lines.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ConfigError(f"line {lines.line_num}: {error}") from None


def _float(text: str, line: int) -> float:
    try:
        value = float(text) if text.strip() else math.nan
    except ValueError:
        raise ConfigError(f"line {line} holds {shorten(text)!r}, a number is needed") from None
    return value if math.isfinite(value) else math.nan


def _int(text: str, line: int) -> int:
    value = _float(text, line)
    if not value.is_integer():
        raise ConfigError(f"line {line} holds {shorten(text)!r}, the number of an epoch is needed")
    return int(value)


def _metrics(text: str) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for line, row in _rows(text, {"epoch"}):
        _int(row["epoch"], line)
        for name, value in row.items():
            columns.setdefault(name, []).append(_float(value, line))
    return columns


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
