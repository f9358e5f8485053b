"""What the guard of a search measured and did, for the page: sentences, and a curve of each signal with its limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from src.reports.decisions import Finding
from src.reports.names import drawable
from src.reports.plots import Palette, Plot, Tick, plot
from src.runs.saved import SavedRun

_TITLES = {
    "eigenvalue": ("Top eigenvalue of the alphas' Hessian", "with the alphas' weight decay"),
    "skips": ("Skip connections", "of the derived architecture"),
    "entropy": ("Entropy of the mixing weights", "nats, mean over the choices"),
    "gap": ("Gap", "score of the supernet less that of its discretised self"),
}
_READING, _JUDGED, _LIMIT = "#1f5fa8", "#19754a", "#b9540a"
_DONE = {"stop": "ended", "roll_back": "rolled back"}


class Guarded(NamedTuple):
    """The section of the page."""

    sentences: list[Finding]
    plots: list[Plot]


def guarded(run: SavedRun, palette: Palette) -> Guarded | None:
    """Return the section on a run's guard; None where it had none, or the record does not say."""
    facts = run.result.get("guard")
    if not isinstance(facts, dict):
        return None
    events = [event for event in _list(facts.get("events")) if isinstance(event, dict)]
    sentences = [
        Finding(f"{text[:1].upper()}{text[1:]}.", "plain" if event.get("action") == "warn" else "weak")
        for event in events
        if isinstance(text := event.get("text"), str) and text
    ]
    if not sentences:
        sentences = [Finding("The guard had no reason to act.", "good")]
    signals = facts.get("signals")
    plots = [
        replace(drawn, marks=_marks(drawn, events))
        for name, columns in (signals.items() if isinstance(signals, dict) else ())
        if isinstance(columns, dict) and (drawn := _plot(str(name), columns, palette)) is not None
    ]
    return Guarded(sentences, plots)


def _plot(name: str, columns: Mapping[str, Any], palette: Palette) -> Plot | None:
    epochs = [int(epoch) for epoch in _list(columns.get("epochs")) if isinstance(epoch, int | float)]
    values, judged, limits = (
        [_number(value) for value in _list(columns.get(column))] for column in ("values", "judged", "limits")
    )
    if not epochs or not len(epochs) == len(values) == len(judged) == len(limits):
        return None
    series = [("after the epoch", _READING, values)]
    if any(math.isfinite(mean) and mean != value for mean, value in zip(judged, values, strict=True)):
        series.append(("mean that is judged", _JUDGED, judged))
    series.append(("limit", _LIMIT, limits))
    title, subtitle = _TITLES.get(name, (drawable(name, 36), ""))
    return plot(title, subtitle, epochs, series, palette)


def _marks(drawn: Plot, events: list[dict[str, Any]]) -> list[Tick]:
    """Return where the guard acted, and where it returned to."""
    places = dict(zip(drawn.epochs, drawn.x, strict=True))
    marks = []
    for event in events:
        done = _DONE.get(str(event.get("action")))
        if done is not None:
            labels = [(event.get("returned_to"), f"epoch {event.get('returned_to')} taken"), (event.get("epoch"), done)]
            marks += [Tick(places[epoch], text) for epoch, text in labels if epoch in places]
    return marks


def _list(thing: Any) -> list[Any]:
    return thing if isinstance(thing, list) else []


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
