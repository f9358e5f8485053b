"""Command: `python -m src.report PATH...` writes a page for each run, and prints one table of all.

A PATH is the folder of a run, or a folder that holds such folders at any depth (a sweep). Each run gets a page in its
folder. The table also has the mean and standard deviation of runs that differ only by their seed. Nothing is read but
the files in the folders, so runs of another machine are reported as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from src.common.errors import ConfigError, shorten
from src.common.files import write_whole
from src.reports.page import UNKNOWN, data_name, duration, genotype_name, millions, render_page
from src.runs.folder import RunFolder
from src.runs.resume import experiment_of
from src.runs.saved import SavedRun, find_runs, is_run, read_run

HEADER = ("run", "kind", "data", "method/genotype", "seed", "status", "score", "params (M)", "macs (M)", "time")
_LEFT = 6  # columns of text; those after them are numbers
_NEEDED = f"{RunFolder('').result.name} or {RunFolder('').metrics.name}"


def write_report(folder: Path) -> Path:
    """Write the page of a run into its folder and return its path. The page names files that cannot be read.

    Raises:
        ConfigError: `folder` is not that of a run.
    """
    if not is_run(folder):
        raise ConfigError(f"{folder} must be the folder of a run, which holds {_NEEDED}")
    return _write(read_run(folder))


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, print the table; return 0, or 2 if a path or a file could not be used."""
    parser = argparse.ArgumentParser(
        prog="python -m src.report", description="Write a page for each run, and print a table of all."
    )
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
            reason = f"holds no folder of a run, which holds {_NEEDED}" if path.is_dir() else "is not a folder"
            problems.append(f"{path} {reason}" if path.exists() else f"{path} does not exist")
        folders.update((folder.resolve(), folder) for folder in found)
    runs = [read_run(folder) for folder in folders.values()]
    pages = []
    for run in runs:
        problems += run.problems
        try:
            pages.append(_write(run))
        except OSError as error:
            problems.append(f"cannot write {RunFolder(run.folder).report}: {error.strerror}")
    if runs:
        print(table(runs))
        print()
        for page in pages:
            print(page)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2 if problems else 0


def table(runs: Sequence[SavedRun]) -> str:
    """Return a table of runs, with the mean and sample standard deviation of those that differ only by their seed."""
    base = os.path.commonpath([run.folder.resolve().parent for run in runs])
    lines = [HEADER, *(_line(run, Path(base)) for run in runs), *_means(runs, Path(base))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _write(run: SavedRun) -> Path:
    page = RunFolder(run.folder).report
    # A lone surrogate, which JSON can hold and UTF-8 cannot, becomes a question mark.
    write_whole(page, render_page(run).encode("utf-8", "replace"))
    return page


def _line(run: SavedRun, base: Path) -> tuple[str, ...]:
    return (
        _cell(run.folder.resolve().relative_to(base)),
        _cell(run.kind),
        _cell(data_name(run)),
        _cell(_variant(run)),
        _cell(_seed(run)),
        _cell(_status(run)),
        UNKNOWN if run.score is None else _cell(run.score),
        millions(run.number("params")),
        millions(run.number("macs")),
        duration(run.number("seconds")),
    )


def _cell(value: object) -> str:
    """Return a cell's text: on one line, with nothing in it that a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in shorten(value, 48))


def _status(run: SavedRun) -> str:
    return f"{run.status}, {run.epochs} of {run.planned_epochs} epochs" if run.is_cut_short else run.status


def _variant(run: SavedRun) -> str:
    if run.kind != "search":
        return genotype_name(run.config)
    order = run.result.get("order", run.config.get("order"))
    words = [*([run.method] if run.method else []), *([] if order is None else [f"order {order}"])]
    return " ".join(words) or UNKNOWN


def _seed(run: SavedRun) -> object:
    seed = run.result.get("seed", run.config.get("seed"))
    return UNKNOWN if seed is None else seed


def _means(runs: Sequence[SavedRun], base: Path) -> list[tuple[str, ...]]:
    groups: dict[str, dict[object, SavedRun]] = {}
    for run in runs:
        if run.status == "ok" and run.score and run.config:
            same = json.dumps(
                [run.kind, run.score[:2], experiment_of(run.config, run.result.get("data"))], sort_keys=True
            )
            # A seed that ran twice counts once: its repetition says nothing about other seeds.
            groups.setdefault(same, {})[str(_seed(run))] = run
    return [_mean_line(list(group.values()), base) for group in groups.values() if len(group) > 1]


def _mean_line(group: Sequence[SavedRun], base: Path) -> tuple[str, ...]:
    scores = [run.score for run in group if run.score]
    values = [score.value * (100 if score.is_share else 1) for score in scores]
    mean, deviation = (
        f"{value:.2f}" if scores[0].is_share else f"{value:.4g}"
        for value in (statistics.mean(values), statistics.stdev(values))
    )
    cut_short = sum(run.is_cut_short for run in group)
    return (
        f"mean ± std of {len(group)} seeds",
        *_line(group[0], base)[1:4],
        ",".join(str(_seed(run)) for run in group),
        f"ok, {cut_short} of {len(group)} cut short" if cut_short else "ok",
        scores[0].with_unit(f"{mean} ± {deviation}"),
        _mean_of(group, "params", millions),
        _mean_of(group, "macs", millions),
        _mean_of(group, "seconds", duration),
    )


def _mean_of(group: Sequence[SavedRun], name: str, write: Callable[[float | None], str]) -> str:
    numbers = [number for run in group if (number := run.number(name)) is not None]
    if len(numbers) < len(group):
        return UNKNOWN
    mean, deviation = statistics.mean(numbers), statistics.stdev(numbers)
    return write(mean) if deviation == 0 else f"{write(mean)} ± {write(deviation)}"


if __name__ == "__main__":
    sys.exit(main())
