"""The decisions of a selection by perturbation, as its page tells them."""

from __future__ import annotations

from typing import NamedTuple

from src.reports.names import CELL_NAMES, edge_name, words
from src.runs.saved import SavedRun
from src.spaces.cnn.genotypes import edge_of


class Option(NamedTuple):
    """What the supernet scored without an option of a choice, and whether it was `kept` or `dropped` for that."""

    name: str
    score: str
    answer: str


class Decided(NamedTuple):
    """A line of the table: a choice of operations, or one of the steps in which a node lost an input."""

    round: int
    name: str
    options: list[Option]


def decided_choices(run: SavedRun) -> list[Decided]:
    """Return the decisions in their order."""
    lines: dict[tuple[str, str, str], list[Option]] = {}
    for row in run.decisions:
        option = Option(_option(row["without"]), _score(run, float(row["score"])), row["answer"])
        lines.setdefault((row["round"], row["choice"], row["pass"]), []).append(option)
    return [
        Decided(int(number), _choice(key, [row["without"] for row in run.decisions if row["choice"] == key]), options)
        for (number, key, _), options in lines.items()
    ]


def selection_in_words(run: SavedRun) -> list[str]:
    """Return how many decisions were ties, and how far apart the others were."""
    passes: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for row in run.decisions:
        passes.setdefault((row["choice"], row["pass"]), []).append((float(row["score"]), row["answer"]))
    ties = sum(
        any(score == next(own for own, taken in tried if taken) for score, answer in tried if not answer)
        for tried in passes.values()
        if any(answer for _, answer in tried)
    )
    if not passes:
        return []
    text = (
        f"{ties} of {len(passes)} decisions were between options with equal scores, of which the first was kept: more "
        "validation batches, or criterion=loss, would tell them apart."
        if ties
        else f"None of {len(passes)} decisions was between options with equal scores."
    )
    return [text, "The scores are those of the supernet. They do not rank architectures: a retrain does."]


def _score(run: SavedRun, score: float) -> str:
    return f"{score:.4g}" if run.config.get("criterion") == "loss" else f"{100 * score:.2f} %"


def _choice(key: str, options: list[str]) -> str:
    """Return what to call a choice: an edge, or the node that edges lead into."""
    place = edge_of(key) or edge_of(options[0])
    if place is None:
        return edge_name(key)
    what = edge_name(key) if edge_of(key) else f"inputs of node {place.node}"
    return f"{what}, {CELL_NAMES[place.kind].lower()}"


def _option(name: str) -> str:
    return edge_name(name) if edge_of(name) else words(name)
