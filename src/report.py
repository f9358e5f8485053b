"""Command: `python -m src.report PATH...` writes a page for each run, one for each folder of runs, and prints a table.

A PATH is the folder of a run, or a folder that holds such folders at any depth (a sweep). Each run gets a page in its
folder (report.html), and each folder of runs an overview (index.html) and a table for other programs (runs.csv). The
printed table also has the mean and standard deviation of runs that differ only by their seed. Nothing is read but the
files in the folders, so runs of another machine are reported as well.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from src.common.errors import ConfigError, shorten
from src.common.files import write_whole
from src.common.terminal import columns, refuse
from src.reports.numbers import UNKNOWN, duration, millions
from src.reports.page import Link, data_name, genotype_name, render_page
from src.reports.sweep import groups_of, named_folders, render_sweep, retrains_of, runs_csv, swept_keys
from src.runs.folder import RunFolder
from src.runs.saved import SavedRun, find_runs, is_run, read_run

HEADER = ("run", "kind", "data", "method/genotype", "seed", "status", "score", "params (M)", "macs (M)", "time")
_LEFT = 6  # columns of text; those after them are numbers
_SHOWN = (
    "seed",
    "order",
    "method",
    "genotype",
    "data",
    "experiment",
)  # swept keys that other columns of the table tell
_NEEDED = f"{RunFolder('').result.name} or {RunFolder('').metrics.name}"

Retrains = Mapping[Path, Sequence[SavedRun]]


def write_report(folder: Path) -> Path:
    """Write the page of a run into its folder and return its path. The page names files that cannot be read.

    The page of a retrain links to that of its search, whose page is written again with links to the retrains that lie
    beside this one.

    Raises:
        ConfigError: `folder` is not that of a run.
    """
    if not is_run(folder):
        raise ConfigError(f"{folder} must be the folder of a run, which holds {_NEEDED}")
    run = read_run(folder)
    page = _write(run, {})
    search = _search_of(run)
    if search is not None:
        found = read_run(search)
        with suppress(OSError):  # the search may be somebody else's
            _write(found, retrains_of([found], list(_beside(run, search))))
    return page


def write_overview(folder: Path) -> Path | None:
    """Write the overview of a folder of runs, and the pages of those runs that have none; return its path.

    Returns:
        None if there are no runs in the folder.
    """
    runs = [read_run(path) for path in find_runs(folder)]
    if not runs or is_run(folder):
        return None
    retrains = _retrains(runs)
    for run in runs:
        if not RunFolder(run.folder).report.exists():
            _write(run, retrains)
    return _write_overview(folder, runs, retrains)


def report_sweep(folder: Path) -> None:
    """Write the overview of a sweep that has ended, and say where it is; one that cannot be written is no failure of a job."""
    try:
        page = write_overview(folder)
    except OSError as error:
        print(f"cannot write {error.filename or folder}: {error.strerror}", file=sys.stderr)
        return
    if page is not None:
        print(f"sweep: {page}")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, print the table; return 0, or 2 if a path or a file could not be used."""
    parser = argparse.ArgumentParser(
        prog="python -m src.report",
        description="Write a page for each run and each folder of runs, and print a table of all runs.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", type=Path, help="a run's folder, or a folder of runs")
    paths: list[Path] = parser.parse_args(argv).paths

    problems: list[str] = []
    folders: dict[Path, list[Path]] = {}
    for path in paths:
        try:
            folders[path] = list(find_runs(path))
        except OSError as error:
            problems.append(f"cannot read {error.filename}: {error.strerror}")
            continue
        if not folders[path]:
            reason = f"holds no folder of a run, which holds {_NEEDED}" if path.is_dir() else "is not a folder"
            problems.append(f"{path} {reason}" if path.exists() else f"{path} does not exist")
    runs = {folder.resolve(): read_run(folder) for found in folders.values() for folder in found}
    retrains = _retrains(list(runs.values()))
    pages = []

    def attempt(write: Callable[[], Path]) -> None:
        try:
            pages.append(write())
        except OSError as error:
            problems.append(f"cannot write {error.filename or 'a page'}: {error.strerror}")

    for run in runs.values():
        problems += run.problems
        attempt(lambda run=run: _write(run, retrains))
    for path, found in folders.items():
        if found and found != [path]:
            inside = [runs[folder.resolve()] for folder in found]
            attempt(lambda path=path, inside=inside: _write_overview(path, inside, retrains))
    if runs:
        print(table(list(runs.values())))
        print()
        for page in pages:
            print(page)
    return max([refuse(problem) for problem in problems], default=0)


def table(runs: Sequence[SavedRun]) -> str:
    """Return a table of runs, with the mean and sample standard deviation of those that differ only by their seed.

    Swept settings that the other columns do not tell have columns of their own.
    """
    base = Path(os.path.commonpath([run.folder.resolve().parent for run in runs]))
    swept = {key: values for key, values in swept_keys(runs).items() if key not in _SHOWN}
    extra = {run.folder: [_cell(values[place]) for values in swept.values()] for place, run in enumerate(runs)}

    def line(run: SavedRun) -> tuple[str, ...]:
        cells = _line(run, base)
        return (*cells[: _LEFT - 2], *extra[run.folder], *cells[_LEFT - 2 :])

    left = _LEFT + len(swept)
    header = (*HEADER[: _LEFT - 2], *map(_cell, swept), *HEADER[_LEFT - 2 :])
    return columns([header, *map(line, runs), *_means(runs, line, left)], left)


def _write(run: SavedRun, retrains: Retrains) -> Path:
    page = RunFolder(run.folder).report
    folder = run.folder.resolve()
    search = next((path for path, found in retrains.items() if run in found), None) or _search_of(run)
    links = [
        Link(f"Retrained with seed {_seed(retrain)}: {retrain.score or retrain.status}", _href(retrain.folder, folder))
        for retrain in retrains.get(folder, ())
    ]
    up = None if search is None else Link("The search that found this genotype", _href(search, folder))
    # A lone surrogate, which JSON can hold and UTF-8 cannot, becomes a question mark.
    write_whole(page, render_page(run, search=up, retrains=links).encode("utf-8", "replace"))
    return page


def _write_overview(folder: Path, runs: Sequence[SavedRun], retrains: Retrains) -> Path:
    page = folder / RunFolder.OVERVIEW
    title = f"Runs in {folder.resolve().name}"
    write_whole(folder / RunFolder.RUNS, runs_csv(runs, folder, retrains).encode("utf-8", "replace"))
    write_whole(page, render_sweep(runs, folder, retrains, title).encode("utf-8", "replace"))
    return page


def _href(run: Path, page_in: Path) -> str:
    """Return the link from a page in one folder to the page of a run."""
    return quote(os.path.relpath(RunFolder(run.resolve()).report, page_in))


def _retrains(runs: Sequence[SavedRun]) -> Retrains:
    searches = [run for run in runs if run.kind in ("search", "select")]
    return retrains_of(searches, [run for run in runs if run.kind == "retrain"])


def _search_of(run: SavedRun) -> Path | None:
    """Return the folder of the search whose genotype a retrain trains, if it is there."""
    for folder in named_folders(run):
        with suppress(OSError, ValueError):  # a path that no file can have
            if is_run(folder) and folder.resolve() != run.folder.resolve():
                return folder
    return None


def _beside(run: SavedRun, search: Path) -> Iterable[SavedRun]:
    """Yield a retrain and those in the same folder whose settings name the folder of its search."""
    with suppress(OSError):
        for folder in find_runs(run.folder.resolve().parent):
            config = RunFolder(folder).config
            if config.is_file() and search.resolve().name in config.read_text(encoding="utf-8", errors="replace"):
                other = read_run(folder)
                if other.kind == "retrain":
                    yield other


def _line(run: SavedRun, base: Path) -> tuple[str, ...]:
    return (
        _cell(run.folder.resolve().relative_to(base)),
        _cell(run.kind),
        _cell(data_name(run)),
        _cell(_variant(run)),
        _cell(_seed(run)),
        _cell(run.ended),
        UNKNOWN if run.score is None else _cell(run.score),
        millions(run.number("params")),
        millions(run.number("macs")),
        duration(run.number("seconds")),
    )


def _cell(value: object) -> str:
    """Return a cell's text: on one line, with nothing in it that a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in shorten(value, 48))


def _variant(run: SavedRun) -> str:
    if run.kind == "retrain":
        return genotype_name(run.config)
    words = [*([run.method] if run.method else []), *([] if run.order is None else [f"order {run.order}"])]
    return " ".join(words) or UNKNOWN


def _seed(run: SavedRun) -> object:
    return UNKNOWN if run.seed is None else run.seed


def _means(runs: Sequence[SavedRun], line: Callable[[SavedRun], tuple[str, ...]], left: int) -> list[tuple[str, ...]]:
    means = []
    for group in groups_of([run for run in runs if run.status == "ok" and run.score and run.config]):
        for what in dict.fromkeys(run.score[:2] for run in group if run.score):
            # A seed that ran twice counts once: its repetition says nothing about other seeds.
            by_seed = {str(_seed(run)): run for run in group if run.score and run.score[:2] == what}
            if len(by_seed) > 1:
                means.append(_mean_line(list(by_seed.values()), line, left))
    return means


def _mean_line(group: Sequence[SavedRun], line: Callable[[SavedRun], tuple[str, ...]], left: int) -> tuple[str, ...]:
    scores = [run.score for run in group if run.score]
    values = [score.value * (100 if score.is_share else 1) for score in scores]
    mean, deviation = (
        f"{value:.2f}" if scores[0].is_share else f"{value:.4g}"
        for value in (statistics.mean(values), statistics.stdev(values))
    )
    cut_short = sum(run.is_cut_short for run in group)
    return (
        f"mean ± std of {len(group)} seeds",
        *line(group[0])[1 : left - 2],
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
