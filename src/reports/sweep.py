"""Many runs on one page: what a sweep varied, what came out, and how far seeds agree; also as a table for other programs."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from src.common.intervals import interval_of_mean
from src.reports.decisions import Finding
from src.reports.names import CELL_NAMES, answers_of, colours, edge_name, in_order, words
from src.reports.numbers import UNKNOWN, duration
from src.reports.page import Link, data_name, embedded, environment, genotype_name, next_commands, score_name
from src.reports.plots import GROUP_COLOURS, Palette, Plot, charts, data_of_plots, plot
from src.runs.folder import RunFolder
from src.runs.following import overrides_of
from src.runs.resume import experiment_of
from src.runs.saved import SavedRun, Score
from src.spaces.cnn.genotypes import split_keys

_SEED = "seed"
_LONGEST_PATH = 4096
_NOT_SWEPT = {"folder", "resume", "sweep.resume"}
_LATE = ("lr", "hypergradient_norm", "correction_ratio")  # of less interest


class RunLine(NamedTuple):
    """A run in the table of all."""

    name: str
    href: str
    swept: list[str]
    seed: str
    status: str
    score: str
    error: str
    time: str


class Group(NamedTuple):
    """Runs that differ only by their seed."""

    swept: list[str]
    what: str
    mean: str
    deviation: str
    interval: str
    seeds: int
    note: str
    time: str


class Frequencies(NamedTuple):
    """How often each choice has each answer, over the seeds of a group."""

    title: str
    seeds: int
    finding: Finding
    tables: list[tuple[str, list[tuple[str, str]], list[tuple[str, list[tuple[str, float]]]]]]
    """(name, candidates as (class, name), rows as (choice, [(count, share)]))."""


class Searched(NamedTuple):
    """A search beside the retrains of its genotype."""

    search: Link
    swept: str
    score: str
    retrains: list[Link]
    mean: str


class Section(NamedTuple):
    """The searches, or the retrains, among the runs."""

    kind: str
    swept: list[str]
    groups: list[Group]
    runs: list[RunLine]
    curves: list[tuple[Plot, int]]
    legend: list[tuple[str, str]]
    """(class of the colour, group) of the lines in the curves."""
    frequencies: list[Frequencies]


def swept_keys(runs: Sequence[SavedRun]) -> dict[str, list[str]]:
    """Return the keys that differ between runs of one kind, as they were typed, with the value that each run has.

    The seed comes last. A run whose command does not name a key has the value of its config.
    """
    typed = [_overrides(run) for run in runs]
    keys = [key for key in dict.fromkeys(key for overrides in typed for key in overrides) if key not in _NOT_SWEPT]
    found: dict[str, list[str]] = {}
    for key in sorted(keys, key=lambda key: key == _SEED):
        values = [overrides.get(key, _configured(run.config, key)) for run, overrides in zip(runs, typed, strict=True)]
        if len({(run.kind, value) for run, value in zip(runs, values, strict=True)}) > len({run.kind for run in runs}):
            found[key] = values
    return found


def render_sweep(runs: Sequence[SavedRun], base: Path, retrains: Mapping[Path, Sequence[SavedRun]], title: str) -> str:
    """Return the page of many runs.

    Args:
        runs: in the order of their names.
        base: the folder that the page is written into.
        retrains: folder of a search (resolved) -> the runs that trained its genotypes, as `retrains_of` returns.
        title: the page's.
    """
    palette = Palette()
    sections: list[Section] = []
    plots: list[Plot] = []
    for kind in dict.fromkeys(run.kind for run in runs):
        sections.append(_section(kind, [run for run in runs if run.kind == kind], base, palette, plots))
    finished = sum(run.status == "ok" for run in runs)
    failures = [
        (Link(_name(run, base), _page(run, base)), run.status, str(run.result.get("error") or ""), next_commands(run))
        for run in runs
        if run.status != "ok"
    ]
    return (
        environment()
        .get_template("sweep.html.jinja")
        .render(
            title=title,
            folder=base,
            count=len(runs),
            finished=finished,
            sections=sections,
            searched=_searched(runs, retrains, base),
            failures=failures,
            csv_name=RunFolder.RUNS,
            data=embedded(data_of_plots(plots)),
            palette=palette.rules(),
        )
    )


def runs_csv(runs: Sequence[SavedRun], base: Path, retrains: Mapping[Path, Sequence[SavedRun]]) -> str:
    """Return the runs as CSV, a row each: what was swept, what came out, how to run it again."""
    swept = swept_keys(runs)
    search_of = {retrain.folder.resolve(): folder for folder, found in retrains.items() for retrain in found}
    metrics = list(dict.fromkeys(name for run in runs for name in _metrics(run)))
    before = ["run", "kind", "data", "method"]
    after = ["seed", "status", "trained_epochs", "planned_epochs", "metric", "value"]
    after += [*metrics, "params", "macs", "seconds", "searched_by", "error", "command"]
    keys = [key for key in swept if key not in (*before, *after)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*before, *keys, *after])
    for place, run in enumerate(runs):
        score, measured = run.score, _metrics(run)
        searched = search_of.get(run.folder.resolve())
        writer.writerow(
            [
                _name(run, base),
                run.kind,
                _known(data_name(run)),
                run.method or "",
                *(swept[key][place] for key in keys),
                "" if run.seed is None else run.seed,
                run.status,
                run.epochs,
                "" if run.planned_epochs is None else run.planned_epochs,
                f"{score.split}_{score.metric}" if score else "",
                score.value if score else "",
                *(measured.get(name, "") for name in metrics),
                *(_whole(run.number(name)) for name in ("params", "macs")),
                "" if run.number("seconds") is None else run.number("seconds"),
                "" if searched is None else os.path.relpath(searched, base),
                run.result.get("error") or "",
                run.command or "",
            ]
        )
    return text.getvalue()


def named_folders(run: SavedRun) -> list[Path]:
    """Return where the settings of a retrain say that its search is; its genotype may be the folder, or a file in it."""
    given = run.config.get("genotype")
    if run.kind != "retrain" or not isinstance(given, str) or "Genotype(" in given or len(given) > _LONGEST_PATH:
        return []
    path = Path(given)
    return [folder for folder in (path, path.parent, path.parent.parent) if folder.parts]


def retrains_of(searches: Sequence[SavedRun], retrains: Sequence[SavedRun]) -> dict[Path, list[SavedRun]]:
    """Return which retrains trained a genotype of which search: folder of the search (resolved) -> retrains.

    A retrain names its genotype by a path: that of the search's folder, or of a file in it. A relative path counts from
    where the command ran, which is not recorded; it is taken to end like the search's folder.
    """
    found: dict[Path, list[SavedRun]] = {}
    folders = {run.folder.resolve(): run for run in searches}
    for run in retrains:
        for candidate in named_folders(run):
            matches = [
                folder
                for folder in folders
                if folder == candidate.absolute() or folder.parts[-len(candidate.parts) :] == candidate.parts
            ]
            if len(matches) == 1:
                found.setdefault(matches[0], []).append(run)
                break
    return found


def groups_of(runs: Sequence[SavedRun]) -> list[list[SavedRun]]:
    """Return the runs in groups that differ only by their seed, in the order of their first runs."""
    groups: dict[str, list[SavedRun]] = {}
    for run in runs:
        same = json.dumps([run.kind, experiment_of(run.config, run.result.get("data"))], sort_keys=True)
        if not run.config:  # a refused job
            same = json.dumps([run.kind, {**_overrides(run), _SEED: ""}], sort_keys=True)
        groups.setdefault(same, []).append(run)
    return list(groups.values())


def _section(kind: str, runs: Sequence[SavedRun], base: Path, palette: Palette, plots: list[Plot]) -> Section:
    swept = swept_keys(runs)
    keys = [key for key in swept if key != _SEED]
    values = {run.folder: [_short(key, swept[key][place]) for key in keys] for place, run in enumerate(runs)}
    groups = groups_of(runs)
    labels = [
        ", ".join(f"{key}={value}" for key, value in zip(keys, values[group[0].folder], strict=True))
        for group in groups
    ]
    curves = []
    for curve in _curves(groups, base, palette):
        curves.append((curve, len(plots)))
        plots.append(curve)
    frequencies = [
        found
        for group, label in zip(groups, labels, strict=True)
        if (found := _frequencies(group, label, palette)) is not None
    ]
    return Section(
        kind=kind,
        swept=keys,
        groups=[_group(group, values[group[0].folder]) for group in groups],
        runs=[_line(run, values[run.folder], base) for run in runs],
        curves=curves,
        legend=[
            (palette.of(GROUP_COLOURS[number % len(GROUP_COLOURS)]), label or "all runs")
            for number, label in enumerate(labels)
        ],
        frequencies=frequencies if kind != "retrain" else [],
    )


def _label(keys: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True) if value)


def _line(run: SavedRun, swept: list[str], base: Path) -> RunLine:
    return RunLine(
        name=_name(run, base),
        href=_page(run, base),
        swept=swept,
        seed=_seed(run),
        status=run.ended,
        score="" if run.score is None else str(run.score),
        error=str(run.result.get("error") or ""),
        time=duration(run.number("seconds")),
    )


def _group(group: Sequence[SavedRun], swept: list[str]) -> Group:
    """Return the statistics of runs that differ only by their seed; a seed that ran twice counts once."""
    by_seed = {_seed(run): run for run in group if run.status == "ok" and (run.score or not run.trains)}
    scores = [run.score for run in by_seed.values() if run.score]
    kinds = {score[:2] for score in scores}
    seconds = [second for run in by_seed.values() if (second := run.number("seconds")) is not None]
    missing = len({_seed(run) for run in group} - set(by_seed))
    cut = sum(run.is_cut_short for run in by_seed.values())
    notes = [f"{missing} not finished"] * bool(missing) + [f"{cut} cut short"] * bool(cut)
    notes += ["without training"] * any(not run.trains for run in by_seed.values())
    mean, deviation, interval = _statistics(scores) if len(kinds) == 1 else (UNKNOWN, UNKNOWN, UNKNOWN)
    return Group(
        swept=swept,
        what=score_name(scores[0]) if scores else UNKNOWN,
        mean=mean,
        deviation=deviation,
        interval=interval,
        seeds=len(scores or by_seed),
        note=", ".join(notes),
        time=duration(statistics.mean(seconds)) if seconds else UNKNOWN,
    )


def _statistics(scores: Sequence[Score]) -> tuple[str, str, str]:
    """Return mean, sample deviation and 95 % interval of the mean as text; "-" where there are too few scores."""
    values = [score.value * (100 if score.is_share else 1) for score in scores]

    def text(value: float) -> str:
        return f"{value:.2f}" if scores[0].is_share else f"{value:.4g}"

    unit = " %" if scores[0].is_share else ""
    mean = text(statistics.mean(values)) + unit
    if len(values) < 2:
        return mean, UNKNOWN, UNKNOWN
    low, high = interval_of_mean(values)
    if scores[0].is_share:  # Student's t does not know that no share is below 0 or above 1
        low, high = max(0.0, low), min(100.0, high)
    return mean, text(statistics.stdev(values)) + unit, f"{text(low)} to {text(high)}{unit}"


def _curves(groups: Sequence[Sequence[SavedRun]], base: Path, palette: Palette) -> list[Plot]:
    """Return a plot for each column that differs between the runs, with a line for each run."""
    runs = [
        (run, _name(run, base), GROUP_COLOURS[number % len(GROUP_COLOURS)])
        for number, group in enumerate(groups)
        for run in group
        if run.metrics.get("epoch")
    ]
    epochs = sorted({int(epoch) for run, _, _ in runs for epoch in run.metrics["epoch"]})
    if len(runs) < 2 or not epochs:
        return []
    columns = list(dict.fromkeys(name for run, _, _ in runs for name in run.metrics if name != "epoch"))
    columns.sort(key=lambda name: (name in _LATE, not name.startswith("val"), not name.endswith("accuracy")))
    curves = []
    for column in columns:
        series = []
        for run, name, colour in runs:
            by_epoch = dict(zip(map(int, run.metrics["epoch"]), run.metrics.get(column, []), strict=False))
            series.append((name, colour, [by_epoch.get(epoch, math.nan) for epoch in epochs]))
        if len({str(line) for _, _, line in series}) > 1:
            (chart,) = charts([column])
            name = chart.columns[column]
            title = f"{chart.title}: {_PARTS.get(name, name)}" if name else chart.title
            curves.append(plot(title, chart.subtitle, epochs, series, palette, percent=chart.percent, width=1.3))
    return curves


_PARTS = {"train": "training", "val": "validation", "arch": "alphas' batches", "test": "test"}


def _frequencies(group: Sequence[SavedRun], label: str, palette: Palette) -> Frequencies | None:
    """Return how often each choice has each answer in the final architectures of a group; None for fewer than two."""
    finished = {_seed(run): run for run in group if run.genotype and run.status == "ok"}
    genotypes = [run.genotype for run in finished.values()]
    if len(genotypes) < 2:
        return None
    keys = [
        key for key in dict.fromkeys(key for genotype in genotypes for key in genotype) if not key.endswith("_switch")
    ]
    counts = {key: Counter(", ".join(answers_of(genotype, key)) or "dropped" for genotype in genotypes) for key in keys}
    same = sum(max(counter.values()) == len(genotypes) for counter in counts.values())
    text = f"{same} of {len(keys)} choices have the same answer for all {len(genotypes)} seeds."
    cells, others = split_keys(keys)
    parts = [(CELL_NAMES[kind], [edges[place] for place in sorted(edges)]) for kind, edges in cells.items()]
    parts += [("Choices", others)] if others else []
    tables = []
    for name, members in parts:
        seen = {answer for key in members for answer in counts[key]} - {"dropped"}
        answers = in_order(seen)
        look = colours(answers)
        head = [(palette.of(look[answer]), words(answer)) for answer in answers] + [("", "dropped")] * bool(cells)
        rows = [
            (
                edge_name(key),
                [
                    (str(counts[key][answer] or ""), counts[key][answer] / len(genotypes))
                    for answer in [*answers, *["dropped"] * bool(cells)]
                ],
            )
            for key in members
        ]
        tables.append((name, head, rows))
    return Frequencies(label or "All runs", len(genotypes), Finding(text, "plain"), tables)


def _searched(runs: Sequence[SavedRun], retrains: Mapping[Path, Sequence[SavedRun]], base: Path) -> list[Searched]:
    """Return each search whose genotypes were retrained, beside what the retrains came to."""
    searches = [run for run in runs if run.kind in ("search", "select")]
    swept = swept_keys(searches)
    found = []
    for place, run in enumerate(searches):
        trained = retrains.get(run.folder.resolve(), [])
        if not trained:
            continue
        scores = [retrain.score for retrain in trained if retrain.status == "ok" and retrain.score]
        same = len({score[:2] for score in scores}) == 1
        mean, deviation, interval = _statistics(scores) if same and len(scores) > 1 else ("", "", "")
        found.append(
            Searched(
                search=Link(_name(run, base), _page(run, base)),
                swept=_label(list(swept), [values[place] for values in swept.values()]),
                score="" if run.score is None else str(run.score),
                retrains=[
                    Link(f"{retrain.score or retrain.status}{_which(retrain)}", _page(retrain, base))
                    for retrain in trained
                ],
                mean=f"{mean} ± {deviation} (95 %: {interval}, n = {len(scores)})" if mean else "",
            )
        )
    return found


def _which(retrain: SavedRun) -> str:
    """Return which of several retrains of one search it is: its seed, and the epoch whose genotype it trained."""
    stem = Path(str(retrain.config.get("genotype"))).stem
    epoch = f", {stem.replace('_', ' ')}" if stem.startswith("epoch_") else ""
    return f" (seed {_seed(retrain)}{epoch})"


def _overrides(run: SavedRun) -> dict[str, str]:
    """Return what a run's command sets: key -> value, as it was typed."""
    found = {}
    for word in overrides_of(run.command):
        key, equals, value = word.lstrip("+~").partition("=")
        if equals:
            found[key] = value.strip("'\"")
    return found


def _configured(config: Mapping[str, Any], key: str) -> str:
    """Return the value of a dotted key in a config: of a group its name, or nothing where there is none."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict):
        node = node.get("name")
    return "" if node is None else str(node)


def _short(key: str, value: str) -> str:
    return genotype_name({"genotype": value}) if key == "genotype" else value


def _metrics(run: SavedRun) -> dict[str, Any]:
    measured = run.result.get("metrics")
    return measured if isinstance(measured, dict) else {}


def _seed(run: SavedRun) -> str:
    return UNKNOWN if run.seed is None else str(run.seed)


def _known(value: object) -> object:
    return "" if value == UNKNOWN else value


def _whole(value: float | None) -> object:
    return "" if value is None else int(value)


def _name(run: SavedRun, base: Path) -> str:
    return os.path.relpath(run.folder.resolve(), base.resolve())


def _page(run: SavedRun, base: Path) -> str:
    return quote(os.path.relpath(RunFolder(run.folder.resolve()).report, base.resolve()))
