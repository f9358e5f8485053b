"""The page of a run: one HTML file that needs no other file. A script moves it through the epochs; it reads without one."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from src.architectures.architecture import Answer
from src.common.errors import ConfigError
from src.common.intervals import interval_of_share
from src.common.shell import override, pastable
from src.reports.decisions import Finding, at_epoch, lead, uniform_entropy, verdict
from src.reports.guarded import guarded
from src.reports.names import CELL_NAMES, alike, answers_of, colours, drawable, edge_name, in_order, meaning, words
from src.reports.numbers import UNKNOWN, duration, millions
from src.reports.plots import Palette, Plot, Tick, chart_plot, charts, plot_data, positions, ticks, trace
from src.reports.rails import Rails, rails_of
from src.reports.selection import decided_choices, selection_in_words
from src.reports.settings import Row, name_of, nested_rows, said, settings_in_words
from src.runs.folder import RunFolder
from src.runs.following import other_seeds_command, retrain_command
from src.runs.saved import SavedRun, Score
from src.spaces.cnn.genotypes import Genotype, NodeEdges, edge_key, edge_of, parse_cells, split_keys

_SPLITS = {"test": "test", "val": "validation"}


class Command(NamedTuple):
    """Something to type."""

    heading: str
    text: str


class Link(NamedTuple):
    """A way to the page of another run."""

    text: str
    href: str


class Cell(NamedTuple):
    """A cell of the architecture, with what its edges weigh."""

    kind: str
    name: str
    rails: Rails
    shares: list[str]
    """For each edge, from top to bottom, its mixing weight in percent; nothing in a retrain."""


class Panel(NamedTuple):
    """The mixing weights of one choice over the epochs, and which of them each epoch's architecture took."""

    paths: list[tuple[str, str]]  # (class of the colour, SVG path)
    dots: list[tuple[str, float, float]]
    strip: list[tuple[str, float, float, float, float]]  # (class of the colour, x, y, width, height)
    guide: float
    summary: str


class Choice(NamedTuple):
    """A row of the table of mixing weights."""

    key: str
    name: str
    row: int  # in the grid of panels: the node and the state; 0 for choices that are no edges
    column: int
    weights: list[tuple[str, float, bool]]  # (percent, weight from 0 to 1, whether it was chosen)
    lead: str
    answer: str
    panel: Panel


@dataclass(frozen=True)
class Table:
    """Choices with the same candidates."""

    name: str
    candidates: list[tuple[str, str]]  # (class of the colour, name)
    choices: list[Choice]
    keys: list[str]
    names: list[str]
    columns: int
    """Of the grid of panels; 0 lets them flow."""
    y_ticks: list[Tick]


PANEL_WIDTH, PANEL_HEIGHT = 150.0, 74.0
_PANEL_LEFT, _PANEL_TOP, _PANEL_BOTTOM, _STRIP = 28.0, 4.0, 58.0, 63.0


@functools.cache  # which also keeps the templates that were compiled
def environment() -> Environment:
    """Return where the templates are, with escaping of all text."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(run: SavedRun, *, search: Link | None = None, retrains: Sequence[Link] = ()) -> str:
    """Return the page of a run. A section whose file is missing says so in one line.

    Args:
        run: what its folder holds.
        search: the page of the search that a retrain trains the genotype of.
        retrains: the pages of the runs that trained this search's genotype.
    """
    palette = Palette()
    cells = cells_of(run.genotype)
    epochs = _epochs(run)
    tables = _tables(run, palette)
    operations = _operations(run, cells, palette)
    drawn = _cells(run, cells)
    curves = _curves(run, palette)
    guard = guarded(run, palette)
    plots = [*curves, *(guard.plots if guard else ())]
    return (
        environment()
        .get_template("run.html.jinja")
        .render(
            run=run,
            files=RunFolder(run.folder),
            title=f"{_what(run)[0].upper()}{_what(run)[1:]}",
            error=run.result.get("error"),
            sentence=_sentence(run),
            limits=_limits(run),
            facts=_facts(run),
            findings=_findings(run),
            next_commands=next_commands(run),
            search=search,
            retrains=retrains,
            cells=drawn,
            operations=operations,
            by_name={name: colour for colour, name, _ in operations},
            words=words,
            answers=[] if cells else [Row(key, _answer(answer)) for key, answer in sorted(run.genotype.items())],
            curves=curves,
            guard=guard,
            tables=[] if run.kind == "select" else tables,
            decided=decided_choices(run),
            by_loss=run.config.get("criterion") == "loss",
            values=_values(run),
            epochs=epochs,
            shown=_shown(run, epochs),
            settings=settings_in_words(_resolved(run.config), run.kind, trains=run.trains),
            results=_results(run, cells),
            commands=_commands(run),
            panel=(PANEL_WIDTH, PANEL_HEIGHT, _PANEL_LEFT, _PANEL_BOTTOM),
            data=embedded(_script_data(run, epochs, drawn, operations, tables, plots)),
            palette=palette.rules(),
        )
    )


def embedded(data: object) -> Markup:
    """Return data as JSON inside a `<script>`: nothing in it can end the element or begin another one."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def shown_path(folder: Path) -> str:
    """Return a folder as one would type it from here: relative where it lies below the current folder."""
    absolute = str(folder.absolute())
    here = os.path.relpath(absolute) if os.path.splitdrive(absolute)[0] == os.path.splitdrive(os.getcwd())[0] else ".."
    return absolute if here.startswith("..") else here


def next_commands(run: SavedRun) -> list[Command]:
    """Return what to type after a run: what comes next, or how it is resumed."""
    folder = shown_path(run.folder)
    kind = run.kind if run.kind in ("search", "select", "retrain") else None
    if run.status == "ok" and kind == "search" and run.genotype and not run.trains:
        text = other_seeds_command("search", run.command, run.result.get("seed"))
        return [
            Command("Train the architecture from scratch, and test it", retrain_command(run.command, folder)),
            Command("Draw others, for a mean that compares", text),
        ]
    if run.status == "ok" and kind in ("search", "select") and run.genotype:
        return [
            Command("Train what was found from scratch, and test it", retrain_command(run.command, folder)),
            Command(
                "The same with four seeds, for a mean that compares", retrain_command(run.command, folder, "0,1,2,3")
            ),
        ]
    if run.status == "ok" and kind == "retrain" and run.command:
        text = other_seeds_command("retrain", run.command, run.result.get("seed"))
        return [Command("Train it with other seeds, for a mean and a deviation", text)]
    if kind and run.status in ("interrupted", "unfinished", "failed") and RunFolder(run.folder).last.is_file():
        return [Command("To resume it from its last checkpoint", pastable(kind, [override("resume", folder)]))]
    return [Command("To run it again", run.command)] if run.command and run.status != "ok" else []


def genotype_name(config: Mapping[str, Any]) -> str:
    """Return which genotype a run retrained: a built-in name, the last two parts of a path, or that it was a text."""
    given = config.get("genotype")
    if isinstance(given, str) and "Genotype(" in given:
        return "Genotype(...)"
    return "/".join(Path(given).parts[-2:]) if isinstance(given, str) else UNKNOWN


def data_name(run: SavedRun) -> str:
    """Return the name of the data a run used, or "-" where it is not known."""
    data = run.result.get("data")
    name = data.get("name") if isinstance(data, dict) else None
    if name is None and isinstance(run.config.get("data"), dict):
        name = run.config["data"].get("name")
    return name if isinstance(name, str) else UNKNOWN


def score_name(score: Score) -> str:
    """Return what a score is, such as `test accuracy`."""
    return f"{_SPLITS[score.split]} {score.metric}"


def cells_of(answers: Mapping[str, Answer]) -> dict[str, tuple[NodeEdges, ...]]:
    """Return the cells of an architecture by kind; none where it is not of the CNN cell space."""
    if not any(edge_of(key) for key in answers):
        return {}
    plain: dict[str, object] = {
        key: answer if isinstance(answer, str) else list(answer or ()) for key, answer in answers.items()
    }
    # A run's own operations are drawn although the module that registers them is not imported here.
    own = [answer for answer in answers.values() if isinstance(answer, str)]
    try:
        genotype = Genotype.from_architecture(parse_cells(plain, also=own))
    except ConfigError:
        return {}
    return {"normal": genotype.normal, "reduce": genotype.reduce}


def _what(run: SavedRun) -> str:
    on = "" if data_name(run) == UNKNOWN else f" on {data_name(run)}"
    if not run.trains:
        return f"{run.method} search without training{on}"
    if run.kind == "select":
        return f"architecture selection by perturbation{on}"
    if run.kind == "search":
        named = {1: "first-order ", 2: "second-order "}.get(run.order, "") if isinstance(run.order, int) else ""
        method = f" with {run.method}" if run.method else ""
        return f"{named}architecture search{method}{on}"
    given = genotype_name(run.config)
    return f"retraining {'a genotype' if given == UNKNOWN else given}{on}"


def _sentence(run: SavedRun) -> str:
    """Return the result in one sentence with numbers."""
    count = f"{run.epochs} of {run.planned_epochs}" if run.is_cut_short else str(run.epochs)
    ended = {
        "ok": "Stopped early" if run.is_cut_short else "Completed",
        "failed": "Failed",
        "interrupted": "Was interrupted",
        "unfinished": f"Has not ended: there is no {RunFolder(run.folder).result.name} yet",
        "unreadable": "Its files cannot all be read",
    }.get(run.status, f"Ended with the status {run.status!r}")
    text = f"{ended} after {count} epoch{'' if count == '1' else 's'}" if run.trains else ended
    if run.number("seconds") is not None:
        text += f" {'and' if run.trains else 'in'} {duration(run.number('seconds'))}"
    if run.score and run.score.is_share:
        text += f", with a {score_name(run.score)} of {100 * run.score.value:.2f} % "
        text += f"(error {100 - 100 * run.score.value:.2f} %)"
    elif run.score:
        text += f", with a {score_name(run.score)} of {run.score.value:.4g}"
    text += "."
    epoch = run.architecture_epoch
    if run.status == "ok" and epoch is not None and epoch != run.epochs - 1:
        text += f" Architecture and score are those of epoch {epoch}."
    return text


def _findings(run: SavedRun) -> list[Finding]:
    """Return the verdict on a search or a retrain, in sentences."""
    score = run.score
    if not run.trains:
        text = (
            "The architecture was drawn by chance and nothing was trained: a retrain measures what it reaches. The mean "
            "over several draws is what a search method has to exceed."
        )
        return [Finding(text, "plain")]
    if run.kind == "select":
        return [Finding(text, "plain") for text in selection_in_words(run)]
    if run.kind == "search":
        findings = verdict(run)
        if findings and score:
            text = (
                f"The {score_name(score)} is that of the supernet, in which all candidates run together. It does not rank "
                "architectures: the test accuracy of a retrain does."
            )
            findings.append(Finding(text, "plain"))
        if findings and score and _validates_on_trained(run):
            text = "It is not of images held out: one level trains the weights, too, on the half that the validation is of."
            findings.append(Finding(text, "weak"))
        return findings
    data = run.result.get("data")
    samples = data.get("test_samples") if isinstance(data, dict) else None
    if score is None or score.split != "test":
        return []
    text = "Other seeds give other results: only a mean over several compares."
    if score.is_share and isinstance(samples, int) and samples > 0 and 0 <= score.value <= 1:
        low, high = interval_of_share(score.value, samples)
        text = (
            f"On {samples:,} test samples, a {score_name(score)} of {100 * score.value:.2f} % has a 95 % interval from "
            f"{100 * low:.2f} % to {100 * high:.2f} %. It does not contain the difference between seeds: only a mean over "
            "several compares."
        )
    return [Finding(text, "plain")]


def _validates_on_trained(run: SavedRun) -> bool:
    """Return whether a search trained its weights on what it was validated on."""
    method, data = run.config.get("method"), run.result.get("data")
    own = data.get("validation_samples") if isinstance(data, dict) else None
    return isinstance(method, dict) and bool(method.get("one_level")) and not own


def _limits(run: SavedRun) -> list[str]:
    """Return the settings that left out part of every epoch or measurement."""
    trainer = run.config.get("trainer")
    return [
        f"trainer.{name}={value}"
        for name, value in (trainer.items() if isinstance(trainer, dict) else ())
        if str(name).startswith("limit_") and value is not None and not (isinstance(value, float) and value == 1)
    ]


def _facts(run: SavedRun) -> list[Row]:
    """Return the numbers that are shown in large type."""
    facts = []
    if run.score:
        value = f"{100 * run.score.value:.2f} %" if run.score.is_share else f"{run.score.value:.4g}"
        facts.append(Row(score_name(run.score), value))
    facts += _of_table(run)
    for name, label in (("params", "weights"), ("macs", "multiply-adds a sample")):
        number = run.number(name)
        if number is not None:
            facts.append(Row(label, f"{number:,.0f}" if number < 1e6 else f"{millions(number)} million"))
    if run.number("seconds") is not None:
        facts.append(Row("run time", duration(run.number("seconds"))))
    return facts


def _of_table(run: SavedRun) -> list[Row]:
    """Return how good a search's architecture is, where a table has it."""
    on, metrics = run.result.get("table"), run.result.get("metrics")
    names = {
        "table_accuracy": (
            f"accuracy once trained{f' on {on}' if isinstance(on, str) and on else ''}, by the table",
            2,
        ),
        "table_percentile": ("of all architectures are worse", 1),
        "table_regret": ("regret: below the best", 2),
    }
    found = metrics if isinstance(metrics, dict) else {}
    return [
        Row(label, f"{100 * found[name]:.{digits}f} %")
        for name, (label, digits) in names.items()
        if isinstance(found.get(name), float)
    ]


def _epochs(run: SavedRun) -> list[int]:
    """Return the epochs that anything is known of."""
    return sorted({*map(int, run.metrics.get("epoch", [])), *run.alpha_epochs, *run.history})


def _shown(run: SavedRun, epochs: Sequence[int]) -> int:
    """Return the place of the epoch that the page shows at first: that of the architecture, else the last."""
    epoch = run.architecture_epoch
    return epochs.index(epoch) if epoch in epochs else len(epochs) - 1


def operations_in(cells: Mapping[str, Sequence[NodeEdges]]) -> list[str]:
    """Return the operations of some cells, each once, in the order of the registry."""
    return in_order(edge.operation for nodes in cells.values() for node in nodes for edge in node)


def _operations(
    run: SavedRun, cells: Mapping[str, Sequence[NodeEdges]], palette: Palette
) -> list[tuple[str, str, str]]:
    """Return (class of the colour, operation, meaning) of every operation that a cell had in any epoch."""
    if not cells:
        return []
    used = set(operations_in(cells))
    for answers in run.history.values():
        used |= {answer for key, answer in answers.items() if edge_of(key) and isinstance(answer, str)}
    names = in_order(used)
    look = colours(names)
    return [(palette.of(look[name]), name, meaning(name)) for name in names]


def _cells(run: SavedRun, cells: Mapping[str, Sequence[NodeEdges]]) -> list[Cell]:
    drawn = []
    for kind, nodes in cells.items():
        rails = rails_of(nodes)
        shares = []
        for node in rails.nodes:
            for row in node.rows:
                line = run.alphas.get(edge_key(kind, node.number, row.state), {}).get(row.operation)
                weight = _weight(line[run.final_place]) if line else ""
                shares.append(f"{weight} %" if weight else "")
        drawn.append(Cell(kind, CELL_NAMES[kind], rails, shares))
    return drawn


def _curves(run: SavedRun, palette: Palette) -> list[Plot]:
    epochs = [int(epoch) for epoch in run.metrics.get("epoch", [])]
    if not epochs:
        return []
    uniform = uniform_entropy(run.alphas)
    return [
        chart_plot(chart, epochs, run.metrics, palette, uniform=uniform if "alpha_entropy" in chart.columns else None)
        for chart in charts(run.metrics)
    ]


def _values(run: SavedRun) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of metrics.csv, as a table to read."""
    columns = list(run.metrics)
    rows = [
        [_value(name, value) for name, value in zip(columns, row, strict=True)]
        for row in zip(*run.metrics.values(), strict=True)
    ]
    return [name_of(name) for name in columns], rows


def _value(name: str, value: object) -> str:
    if not isinstance(value, (int, float)):
        return said(value)
    if not math.isfinite(value):
        return ""
    if name == "epoch":
        return str(int(value))
    return f"{100 * value:.2f} %" if name.endswith("accuracy") else f"{value:.4g}"


def _tables(run: SavedRun, palette: Palette) -> list[Table]:
    """Return the mixing weights as tables: one for each cell, and one for all other choices with the same candidates."""
    if not run.alpha_epochs:
        return []
    cells, others = split_keys(run.alphas)
    groups = [
        (CELL_NAMES[kind], same)
        for kind, edges in cells.items()
        for same in alike([edges[place] for place in sorted(edges)], run.alphas)
    ]
    groups += [(", ".join(map(edge_name, same)), same) for same in alike(others, run.alphas)]
    return [_table(run, palette, drawable(name, 80), keys) for name, keys in groups]


def _table(run: SavedRun, palette: Palette, name: str, keys: list[str]) -> Table:
    candidates = list(run.alphas[keys[0]])
    look = {candidate: palette.of(colour) for candidate, colour in colours(candidates).items()}
    drawn = [value for key in keys for line in run.alphas[key].values() for value in line if math.isfinite(value)]
    heaviest = max([*drawn, 0.0]) or 1.0
    last = at_epoch(run, run.final_place, keys)
    marks = ticks(0.0, heaviest, count=2)
    places = [place for key in keys if (place := edge_of(key))]
    choices = []
    for key in keys:
        kept = answers_of(run.genotype, key)
        place = edge_of(key) if len(places) == len(keys) else None
        choices.append(
            Choice(
                key=key,
                name=edge_name(key),
                row=place.node - 1 if place else 0,
                column=place.state + 1 if place else 0,
                weights=[
                    (_weight(value), min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0, candidate in kept)
                    for candidate, value in last[key].items()
                ],
                lead=_weight(lead(last[key], kept)),
                answer=", ".join(map(words, kept)) or "dropped",
                panel=_panel(run, key, look, marks[-1]),
            )
        )
    return Table(
        name=name,
        candidates=[(look[candidate], words(candidate)) for candidate in candidates],
        choices=choices,
        keys=keys,
        names=candidates,
        columns=max(place.state for place in places) + 1 if len(places) == len(keys) else 0,
        y_ticks=[Tick(_height(mark, marks[-1]), f"{100 * mark:g} %") for mark in (marks[0], marks[-1])],
    )


def _height(value: float, highest: float) -> float:
    return round(_PANEL_BOTTOM - value / highest * (_PANEL_BOTTOM - _PANEL_TOP), 1)


def _panel(run: SavedRun, key: str, look: Mapping[str, str], highest: float) -> Panel:
    """Return the lines of one choice. Their axis goes from 0 to the same weight for all choices of a table."""
    xs = positions(run.alpha_epochs, _PANEL_LEFT, PANEL_WIDTH - 3)
    paths, dots = [], []
    for candidate, line in run.alphas[key].items():
        path, lonely = trace(xs, [_height(value, highest) if math.isfinite(value) else math.nan for value in line])
        paths += [(look[candidate], path)] if path else []
        dots += [(look[candidate], x, y) for x, y in lonely]
    last = {name: line[-1] for name, line in run.alphas[key].items()}
    heavy = sorted((name for name in last if math.isfinite(last[name])), key=lambda name: -last[name])[:2]
    summary = f"{edge_name(key)} over {len(xs)} epochs; at the end " + (
        ", ".join(f"{words(name)} {100 * last[name]:.1f} %" for name in heavy) or "no weights"
    )
    total = sum(line[0] for line in run.alphas[key].values())
    uniform = _height((total if math.isfinite(total) else 1.0) / len(last), highest)
    return Panel(paths, dots, list(_strip(run, key, look, xs)), uniform, summary)


def _strip(
    run: SavedRun, key: str, look: Mapping[str, str], xs: Sequence[float]
) -> Iterator[tuple[str, float, float, float, float]]:
    """Yield a bar for each stretch of epochs whose architectures have the same answer; a dropped edge has none."""
    step = (xs[-1] - xs[0]) / (len(xs) - 1) if len(xs) > 1 else 12.0
    kept = [answers_of(run.history.get(epoch, {}), key) for epoch in run.alpha_epochs]
    start = 0
    for end in range(1, len(kept) + 1):
        if end < len(kept) and kept[end] == kept[start]:
            continue
        height = 7.0 / max(1, len(kept[start]))
        left, right = max(xs[start] - step / 2, _PANEL_LEFT), min(xs[end - 1] + step / 2, PANEL_WIDTH - 3)
        for number, answer in enumerate(kept[start]):
            if answer in look:
                yield (look[answer], round(left, 1), round(_STRIP + height * number, 1), round(right - left, 1), height)
        start = end


def _weight(value: float | None) -> str:
    tenths = _tenths(value)
    return "" if tenths is None else f"{tenths / 10:.1f}"


def _script_data(
    run: SavedRun,
    epochs: Sequence[int],
    cells: Sequence[Cell],
    operations: Sequence[tuple[str, str, str]],
    tables: Sequence[Table],
    curves: Sequence[Plot],
) -> dict[str, Any]:
    """Return what the script needs to show another epoch, as plain lists."""
    return {
        "epochs": list(epochs),
        "plots": [plot_data(curve) for curve in curves],
        "cells": [_frames(run, cell, epochs) for cell in cells] if run.history else [],
        "alphaEpochs": run.alpha_epochs,
        "x": positions(run.alpha_epochs, _PANEL_LEFT, PANEL_WIDTH - 3) if run.alpha_epochs else [],
        "tables": [
            {
                "names": [words(name) for name in table.names],
                "choices": [choice.name for choice in table.choices],
                "leads": [
                    [_tenths(lead(weights[key], answers_of(_derived(run, epoch), key))) for key in table.keys]
                    for epoch, weights in zip(run.alpha_epochs, _each_epoch(run, table.keys), strict=True)
                ],
                "weights": [
                    [[_tenths(run.alphas[key][name][place]) for name in table.names] for key in table.keys]
                    for place in range(len(run.alpha_epochs))
                ],
                "answers": [
                    [
                        [
                            table.names.index(answer)
                            for answer in answers_of(_derived(run, epoch), key)
                            if answer in table.names
                        ]
                        for key in table.keys
                    ]
                    for epoch in run.alpha_epochs
                ],
            }
            for table in tables
        ],
        "operations": {name: [words(name), colour] for colour, name, _ in operations},
    }


def _each_epoch(run: SavedRun, keys: Sequence[str]) -> list[dict[str, dict[str, float]]]:
    return [at_epoch(run, place, keys) for place in range(len(run.alpha_epochs))]


def _derived(run: SavedRun, epoch: int) -> Mapping[str, Answer]:
    """Return the architecture after an epoch; after the last one, the final one where no file has it."""
    if epoch in run.history:
        return run.history[epoch]
    return run.genotype if epoch == run.alpha_epochs[-1] else {}


def _frames(run: SavedRun, cell: Cell, epochs: Sequence[int]) -> list[list[list[Any]] | None]:
    """Return for each epoch the edges of a cell, as [state, operation, weight]; None where no file holds the epoch."""
    counts = [len(node.rows) for node in cell.rails.nodes]
    places = {epoch: place for place, epoch in enumerate(run.alpha_epochs)}
    frames: list[list[list[Any]] | None] = []
    for epoch in epochs:
        nodes = cells_of(run.history.get(epoch, {})).get(cell.kind)
        if nodes is None or [len(node) for node in nodes] != counts:
            frames.append(None)
            continue
        edges: list[list[Any]] = []
        for number, node in enumerate(nodes, start=2):
            for edge in sorted(node, key=lambda edge: edge.state):
                line = run.alphas.get(edge_key(cell.kind, number, edge.state), {}).get(edge.operation)
                value = line[places[epoch]] if line and epoch in places else math.nan
                edges.append([edge.state, edge.operation, _tenths(value)])
        frames.append(edges)
    return frames


def _tenths(value: float | None) -> int | None:
    """Return a mixing weight in whole tenths of a percent, as tables show it and the script gets it."""
    return None if value is None or not math.isfinite(value) else round(1000 * value)


def _resolved(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with `${epochs}` and its like, which config.yaml keeps, replaced by their values."""

    def value_of(value: object) -> object:
        if isinstance(value, dict):
            return {key: value_of(item) for key, item in value.items()}
        if isinstance(value, str) and value.startswith("${") and value.endswith("}"):
            found = config.get(value[2:-1], value)
            return value if isinstance(found, dict) else found
        return value

    return {key: value_of(value) for key, value in config.items()}


def _answer(answer: Answer) -> str:
    return "dropped" if answer is None else answer if isinstance(answer, str) else ", ".join(answer)


def _results(run: SavedRun, cells: Mapping[str, Sequence[NodeEdges]]) -> list[tuple[str, list[Row]]]:
    """Return the result as (group, rows)."""
    result = run.result
    if not result:
        return []
    rows = [Row("status", run.status)]
    if run.trains:
        planned = "" if run.planned_epochs is None else f" of {run.planned_epochs}"
        rows.append(Row("epochs", f"{run.epochs}{planned}"))
    rows += [Row("stopped by", said(result["stopped_by"]))] if result.get("stopped_by") else []
    if run.architecture_epoch is not None:
        rows.append(Row("architecture of epoch", str(run.architecture_epoch)))
    rows += [Row(name, said(result[name])) for name in ("seed", "method", "order") if result.get(name) is not None]
    for name, label in (("params", "weights"), ("macs", "multiply-adds a sample")):
        number = run.number(name)
        if number is not None:
            rows.append(Row(label, f"{number:,.0f}"))
    for kind, nodes in cells.items():
        operations = [edge.operation for node in nodes for edge in node]
        rows.append(Row(f"skip connections, {kind}", f"{operations.count('skip_connect')} of {len(operations)} edges"))
    rows += [Row("run time", duration(run.number("seconds"))), Row("git commit", said(result.get("git_commit")))]
    groups = [("Result", rows)]
    metrics = result.get("metrics")
    if isinstance(metrics, dict) and metrics:
        rows = [Row(name_of(name), _value(str(name), value)) for name, value in metrics.items()]
        groups.append(("Metrics", rows))
    for name in ("data", "machine", "versions"):
        nested = result.get(name)
        if isinstance(nested, dict) and nested:
            groups.append((name.capitalize(), nested_rows(nested)))
    return groups


def _commands(run: SavedRun) -> list[Command]:
    """Return what starts this run anew, and what was typed, where that differs."""
    command, history = run.command, run.result.get("commands")
    found = [Command("To run it again", command)] if command else []
    if isinstance(history, list) and len(history) > 1:
        found.append(Command("How it was run", "\n".join(map(str, history))))
    return found
