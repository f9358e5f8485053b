"""Command: `python -m src.report PATH...` turns run folders into one page each and one table of all.

A PATH is the folder of a run, or a folder that holds such folders at any depth (a sweep). Each run gets a
`report.html`; the table also has the mean and standard deviation of runs that differ only by seed. Nothing but the
folders' files is read, so runs of another machine are reported just as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from src.common.errors import ConfigError, shorten
from src.common.files import write_whole
from src.reports.page import UNKNOWN, data_name, duration, genotype_name, millions, render_page
from src.runs.folder import RunFolder
from src.runs.saved import SavedRun, find_runs, is_run, read_run

HEADER = ("run", "kind", "data", "order/genotype", "seed", "status", "accuracy", "params (M)", "macs (M)", "time")
_LEFT = 6  # columns of text; those after them are numbers

# Settings that may differ between runs of the same experiment: names, places, and what only watches.
_INCIDENTAL = {"seed", "folder", "resume", "logger", "callbacks", "hydra"}


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run's folder and return its path; files that cannot be read are named on the page.

    Raises:
        ConfigError: `folder` is not that of a run.
    """
    if not is_run(folder):
        raise ConfigError(f"{folder} is not a run folder: it has neither result.json nor metrics.csv")
    return _write(read_run(folder))


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, print the table; return 0, or 2 if a path or a file could not be used."""
    parser = argparse.ArgumentParser(prog="python -m src.report", description="Report on runs: a page each, a table.")
    parser.add_argument("paths", nargs="+", metavar="PATH", type=Path, help="a run's folder, or a folder of runs")
    paths: list[Path] = parser.parse_args(argv).paths

    problems: list[str] = []
    folders: dict[Path, Path] = {}
    for path in paths:
        try:
            found = list(find_runs(path))
        except OSError as error:
            problems.append(f"cannot read {error.filename}: {error.strerror}")
            continue
        if not found:
            reason = "holds no run folder (one with result.json or metrics.csv)" if path.is_dir() else "is not a folder"
            problems.append(f"{path} {reason}" if path.exists() else f"{path} does not exist")
        folders.update((folder.resolve(), folder) for folder in found)
    records = [read_run(folder) for folder in folders.values()]
    pages = []
    for record in records:
        problems += record.problems
        try:
            pages.append(_write(record))
        except OSError as error:
            problems.append(f"cannot write {RunFolder(record.folder).report}: {error.strerror}")
    if records:
        print(table(records))
        print()
        for page in pages:
            print(page)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2 if problems else 0


def table(records: Sequence[SavedRun]) -> str:
    """Return a table of runs, and of the mean and sample standard deviation of those that differ only by seed."""
    base = os.path.commonpath([record.folder.resolve().parent for record in records])
    lines = [HEADER, *(_line(record, Path(base)) for record in records), *_means(records, Path(base))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _write(record: SavedRun) -> Path:
    page = RunFolder(record.folder).report
    # A lone surrogate, which JSON can hold and UTF-8 cannot, becomes a question mark.
    write_whole(page, render_page(record).encode("utf-8", "replace"))
    return page


def _line(record: SavedRun, base: Path) -> tuple[str, ...]:
    accuracy = UNKNOWN if record.accuracy is None else f"{100 * record.accuracy[1]:.2f} % {record.accuracy[0]}"
    return (
        _cell(record.folder.resolve().relative_to(base)),
        _cell(record.kind),
        _cell(data_name(record)),
        _cell(_variant(record)),
        _cell(_seed(record)),
        _cell(record.status),
        accuracy,
        millions(record.number("params")),
        millions(record.number("macs")),
        duration(record.number("seconds")),
    )


def _cell(value: object) -> str:
    """Return a cell's text: on one line, with nothing in it that a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in shorten(value, 48))


def _variant(record: SavedRun) -> str:
    if record.kind != "search":
        return genotype_name(record.config)
    order = record.result.get("order", record.config.get("order"))
    return UNKNOWN if order is None else f"order {order}"


def _seed(record: SavedRun) -> object:
    seed = record.result.get("seed", record.config.get("seed"))
    return UNKNOWN if seed is None else seed


def _means(records: Sequence[SavedRun], base: Path) -> list[tuple[str, ...]]:
    groups: dict[str, dict[object, SavedRun]] = {}
    for record in records:
        if record.status == "ok" and record.accuracy and record.config:
            # A seed that ran twice counts once: its repetition says nothing about other seeds.
            groups.setdefault(_experiment(record), {})[str(_seed(record))] = record
    return [_mean_line(list(group.values()), base) for group in groups.values() if len(group) > 1]


def _mean_line(group: Sequence[SavedRun], base: Path) -> tuple[str, ...]:
    accuracies = [100 * record.accuracy[1] for record in group if record.accuracy]
    split = group[0].accuracy[0] if group[0].accuracy else ""
    first = _line(group[0], base)
    return (
        f"mean ± std of {len(group)} seeds",
        *first[1:4],
        ",".join(str(_seed(record)) for record in group),
        "ok",
        f"{statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f} % {split}",
        _mean_of(group, "params", millions),
        _mean_of(group, "macs", millions),
        _mean_of(group, "seconds", duration),
    )


def _mean_of(group: Sequence[SavedRun], name: str, write: Callable[[float | None], str]) -> str:
    numbers = [number for record in group if (number := record.number(name)) is not None]
    if len(numbers) < len(group):
        return UNKNOWN
    mean, deviation = statistics.mean(numbers), statistics.stdev(numbers)
    return write(mean) if deviation == 0 else f"{write(mean)} ± {write(deviation)}"


def _experiment(record: SavedRun) -> str:
    """Return what identifies a run but for its seed: its settings, without its own folder's name in them."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): strip(item) for key, item in value.items() if not str(key).endswith("seed")}
        if isinstance(value, list):
            return [strip(item) for item in value]
        return str(value).replace(folder, "FOLDER") if folder else value

    folder = str(record.config.get("folder") or "")
    settings = {key: value for key, value in record.config.items() if key not in _INCIDENTAL}
    return json.dumps([record.kind, data_name(record), strip(settings)], sort_keys=True)


if __name__ == "__main__":
    sys.exit(main())
