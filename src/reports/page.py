"""The report of a run: one HTML page that needs no other file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from src.architectures.architecture import Answer
from src.common.errors import ConfigError
from src.reports.cells import cell_figure, in_order
from src.reports.curves import (
    CELL_NAMES,
    chart_figure,
    charts,
    choices_figure,
    heat_figure,
    history_figure,
    weights_figure,
)
from src.reports.drawing import colours, to_svg, words
from src.runs.folder import RunFolder
from src.runs.saved import SavedRun, Score
from src.spaces.cnn.genotypes import Genotype, edge_of, parse_cells, split_keys
from src.spaces.cnn.operations import OPERATIONS

UNKNOWN = "-"
_SPLITS = {"test": "test", "val": "validation"}


class Row(NamedTuple):
    """A row of a table: a name, a value, and how deep the name is nested."""

    name: str
    value: str
    depth: int = 0


def render_page(run: SavedRun) -> str:
    """Return the page of a run. A section whose file is missing says so in one line."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cells = _cells(run.genotype)
    return templates.get_template("page.html.jinja").render(
        run=run,
        files=RunFolder(run.folder),
        title=f"{_what(run)[0].upper()}{_what(run)[1:]}",
        error=run.result.get("error"),
        sentence=_sentence(run),
        limits=_limits(run),
        facts=_facts(run),
        cells=[_svg(cell_figure(nodes, CELL_NAMES[kind], among=_used(cells))) for kind, nodes in cells.items()],
        operations=_operations(cells),
        answers=[] if cells else [Row(key, _plain(answer)) for key, answer in sorted(run.genotype.items())],
        curves=_curves(run),
        weights=_weights(run),
        settings=_settings(run.config),
        results=_results(run, cells),
        commands=_commands(run.result),
    )


def duration(seconds: float | None) -> str:
    """Return a time in the two largest units that it has, or "-" where it is not known."""
    if seconds is None:
        return UNKNOWN
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def millions(number: float | None) -> str:
    """Return a count in millions, or "-" where it is not known."""
    return UNKNOWN if number is None else f"{number / 1e6:.2f}" if number >= 1e5 else f"{number / 1e6:.4f}"


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


def _svg(figure: Figure) -> Markup:
    return Markup(to_svg(figure))  # matplotlib escapes the text in it


def _what(run: SavedRun) -> str:
    on = "" if data_name(run) == UNKNOWN else f" on {data_name(run)}"
    if run.kind == "search":
        order = run.result.get("order", run.config.get("order"))
        named = {1: "first-order ", 2: "second-order "}.get(order, "") if isinstance(order, int) else ""
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
    text = f"{ended} after {count} epoch{'' if count == '1' else 's'}"
    if run.number("seconds") is not None:
        text += f" and {duration(run.number('seconds'))}"
    if run.score and run.score.is_share:
        text += (
            f", with a {_name(run.score)} of {100 * run.score.value:.2f} % (error {100 - 100 * run.score.value:.2f} %)"
        )
    elif run.score:
        text += f", with a {_name(run.score)} of {run.score.value:.4g}"
    return text + "."


def _name(score: Score) -> str:
    return f"{_SPLITS[score.split]} {score.metric}"


def _limits(run: SavedRun) -> list[str]:
    """Return the settings that left out part of every epoch or measurement."""
    trainer = run.config.get("trainer")
    return [
        f"trainer.{name}={_plain(value)}"
        for name, value in (trainer.items() if isinstance(trainer, dict) else ())
        if str(name).startswith("limit_") and value is not None and not (isinstance(value, float) and value == 1)
    ]


def _facts(run: SavedRun) -> list[Row]:
    """Return the numbers that are shown in large type."""
    facts = []
    if run.score:
        value = f"{100 * run.score.value:.2f} %" if run.score.is_share else f"{run.score.value:.4g}"
        facts.append(Row(_name(run.score), value))
    for name, label in (("params", "million weights"), ("macs", "million multiply-adds per image")):
        if run.number(name) is not None:
            facts.append(Row(label, millions(run.number(name))))
    if run.number("seconds") is not None:
        facts.append(Row("run time", duration(run.number("seconds"))))
    return facts


def _cells(answers: Mapping[str, Answer]) -> dict[str, Any]:
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


def _operations(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (colour, name, meaning) of every operation in the cells."""
    used = _used(cells)
    meanings = {name: OPERATIONS[name].meaning if name in OPERATIONS else "" for name in used}
    return [(colours(used)[name], words(name), meaning) for name, meaning in meanings.items()]


def _used(cells: Mapping[str, Any]) -> list[str]:
    return in_order([edge.operation for nodes in cells.values() for node in nodes for edge in node])


def _curves(run: SavedRun) -> list[Markup]:
    epochs = run.metrics.get("epoch", [])
    return [_svg(chart_figure(chart, epochs, run.metrics)) for chart in charts(run.metrics)] if epochs else []


def _weights(run: SavedRun) -> list[tuple[str, list[Markup]]]:
    """Return (heading, figures) for each cell, and for the choices that belong to none."""
    cells, others = split_keys(run.alphas)
    epochs, answers = run.alpha_epochs, run.genotype
    sections = []
    for kind, edges in cells.items():
        name = CELL_NAMES[kind]
        figure = weights_figure(edges, run.alphas, epochs, answers, f"{name}: mixing weights after each epoch")
        sections.append((name, figure, [edges[place] for place in sorted(edges)]))
    if others:
        figure = choices_figure(others, run.alphas, epochs, answers, "Choices: mixing weights after each epoch")
        sections.append(("Choices", figure, others))

    pictures = []
    for name, figure, keys in sections:
        figures = [figure]
        last = {key: {candidate: line[-1] for candidate, line in run.alphas[key].items()} for key in keys}
        for same in _alike(keys, last):
            figures.append(heat_figure(same, last, answers, f"{name}: mixing weights after the last epoch"))
        if run.history:
            figures.append(history_figure(run.history, last, f"{name}: derived after each epoch"))
        pictures.append((name, [_svg(figure) for figure in figures]))
    return pictures


def _alike(keys: Sequence[str], weights: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Group keys by their candidates."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for key in keys:
        groups.setdefault(tuple(weights[key]), []).append(key)
    return list(groups.values())


def _settings(config: Mapping[str, Any]) -> list[tuple[str, list[Row]]]:
    """Return the settings as (group, rows): the plain ones first, then a group for each nested one."""
    plain = [Row(key, _plain(value)) for key, value in config.items() if not _nested(value)]
    groups = [("run", plain)] if plain else []
    return groups + [(key, list(_flatten(value, 0))) for key, value in config.items() if _nested(value)]


def _nested(value: object) -> bool:
    return isinstance(value, dict) and bool(value)


def _flatten(mapping: Mapping[Any, Any], depth: int) -> list[Row]:
    rows = []
    for key, value in mapping.items():
        if _nested(value):
            rows += [Row(str(key), "", depth), *_flatten(value, depth + 1)]
        else:
            rows.append(Row(str(key), _plain(value), depth))
    return rows


def _plain(value: object) -> str:
    """Return a value as YAML has it, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) or "none"
    return str(value)


def _results(run: SavedRun, cells: Mapping[str, Any]) -> list[tuple[str, list[Row]]]:
    """Return the result as (group, rows)."""
    result = run.result
    if not result:
        return []
    rows = [Row("status", run.status)]
    rows += [Row("epochs", str(run.epochs) if run.planned_epochs is None else f"{run.epochs} of {run.planned_epochs}")]
    rows += [Row("stopped by", _plain(result["stopped_by"]))] if result.get("stopped_by") else []
    rows += [Row(name, _plain(result[name])) for name in ("seed", "method", "order") if result.get(name) is not None]
    for name, label in (("params", "weights"), ("macs", "multiply-adds per image")):
        number = run.number(name)
        if number is not None:
            rows.append(Row(label, f"{number:,.0f}"))
    for kind, nodes in cells.items():
        operations = [edge.operation for node in nodes for edge in node]
        rows.append(Row(f"skip connections, {kind}", f"{operations.count('skip_connect')} of {len(operations)} edges"))
    rows += [Row("run time", duration(run.number("seconds"))), Row("git commit", _plain(result.get("git_commit")))]
    groups = [("result", rows)]
    for name in ("metrics", "data", "machine", "versions"):
        if _nested(result.get(name)):
            groups.append((name, _flatten(result[name], 0)))
    return groups


def _commands(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (heading, commands): what starts this run anew, and what was typed, where that differs."""
    command, history = result.get("command"), result.get("commands")
    if isinstance(command, list):  # as older runs have it
        command = shlex.join(map(str, command))
    found = [("To run it again", command)] if isinstance(command, str) and command else []
    if isinstance(history, list) and len(history) > 1:
        found.append(("How it was run", "\n".join(map(str, history))))
    return found
