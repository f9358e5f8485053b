"""What the searches of a study came to: files of run folders in, plain values out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from src.architectures.architecture import Architecture
from src.benchmarks.table import Table
from src.callbacks.lookup import metrics_of
from src.runs.saved import SavedRun

TABLE = "table"  # the evaluation that looks an architecture up
RANDOM = "random"  # the arm of architectures that are drawn by chance


class Metric(NamedTuple):
    """What architectures are judged by.

    Attributes:
        name: such as `accuracy`, which is a share of all samples, or `mae`.
        higher_is_better: whether a larger value is a better one.
    """

    name: str = "accuracy"
    higher_is_better: bool = True


@dataclass(frozen=True)
class Outcome:
    """What one search of a study found, and how good that is.

    Attributes:
        arm: the setting that is compared, such as `darts, order 2`; each has several seeds.
        seed: of the search.
        folder: of the search, relative to the study's.
        architecture: the one that it found.
        scores: evaluation -> score: `table` for the mean over a table's runs, or the name of a retrain setting for the
            test score there, the mean over its repetitions.
        epochs: the rows of the search's metrics.csv; a value that was not measured is absent.
        metrics: what the search's result.json has under this name.
        seconds: of the search.
        evaluation_seconds: retrain setting -> seconds of one training there; empty with a table.
    """

    arm: str
    seed: int
    folder: str
    architecture: Architecture
    scores: Mapping[str, float]
    epochs: Sequence[Mapping[str, float]]
    metrics: Mapping[str, float]
    seconds: float
    evaluation_seconds: Mapping[str, float]


def outcome_of(
    arm: str,
    seed: int,
    folder: str,
    search: SavedRun,
    trainings: Mapping[str, Sequence[SavedRun]],
    table: Table | None,
) -> Outcome | None:
    """Return what a search that has finished came to; None where it, or a training of what it found, has no score.

    Args:
        arm: its name.
        seed: of the search.
        folder: of the search, relative to the study's.
        search: the run.
        trainings: setting -> the trainings of what it found.
        table: to look it up in, or None.
    """
    if search.status != "ok" or not search.genotype:
        return None
    architecture = Architecture(search.genotype)
    scores: dict[str, float] = {}
    seconds: dict[str, float] = {}
    if table is not None:
        scores[TABLE] = table.standing(architecture).accuracy
    for setting, trained in trainings.items():
        tested = [one.score.value for one in trained if one.status == "ok" and one.score and one.score.split == "test"]
        if len(tested) < len(trained):
            return None
        scores[setting] = statistics.fmean(tested)
        seconds[setting] = statistics.fmean(one.number("seconds") or 0.0 for one in trained)
    measured = search.result.get("metrics")
    metrics = {
        str(name): float(value)
        for name, value in (measured.items() if isinstance(measured, dict) else ())
        if isinstance(value, int | float)
    }
    return Outcome(
        arm, seed, folder, architecture, scores, _rows(search, table), metrics, search.number("seconds") or 0.0, seconds
    )


def _rows(run: SavedRun, table: Table | None) -> list[dict[str, float]]:
    """Return the rows of a run's metrics.csv, without the values that were not measured.

    What the table says of each epoch's architecture is looked up again: the table may be newer than the search.
    """
    rows = [
        {name: value for name, value in zip(run.metrics, row, strict=True) if not math.isnan(value)}
        for row in zip(*run.metrics.values(), strict=True)
    ]
    if table is not None:
        for row in rows:
            answers = run.history.get(int(row["epoch"]))
            if answers:
                row.update(metrics_of(table.standing(Architecture(answers))))
    return rows
