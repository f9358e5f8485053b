"""What the searches of a study came to: files of run folders in, plain values out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from src.architectures.architecture import Architecture

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
