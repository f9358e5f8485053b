"""A table that `python -m src.tabulate` made: its file, and how far one can trust it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.architectures.architecture import Architecture, LayerSpec, Spec
from src.benchmarks.table import Table
from src.common.errors import ConfigError, shorten
from src.common.terminal import percent

BEST = 5  # architectures that the gate looks at one by one
ENOUGH = 5.0  # ratio of the differences between architectures to the noise


class Runs(NamedTuple):
    """What the trainings of an architecture came to, one value for each seed.

    Attributes:
        validation: accuracies on the part of the train split that was held back, in [0, 1].
        test: accuracies on the test split, in [0, 1].
        seconds: of the trainings.
    """

    validation: Sequence[float]
    test: Sequence[float]
    seconds: Sequence[float]


Options = Mapping[str, tuple[str, ...]]  # key -> candidates


def options_of(spec: Spec) -> dict[str, tuple[str, ...]]:
    """Return the candidates of each choice of a space.

    Raises:
        ConfigError: one is no LayerChoice.
    """
    options: dict[str, tuple[str, ...]] = {}
    for key, rule in spec.items():
        if not isinstance(rule, LayerSpec):
            raise ConfigError(f"space must hold LayerChoices alone for a table, but its {key} is an InputChoice")
        options[key] = rule.candidates
    return options


def count_of(options: Options) -> int:
    """Return how many architectures there are."""
    return math.prod(map(len, options.values()))


def distinct(
    options: Options, canonical: Callable[[Architecture], Architecture] | None
) -> dict[int, tuple[Architecture, list[Architecture]]]:
    """Return row -> the architecture and others that compute the same, for the architectures of a space that differ.

    Args:
        options: of the space.
        canonical: returns the architecture that stands for all that compute the same; None: all differ.

    Raises:
        ConfigError: an architecture that stands for others does not stand for itself.
    """
    rows = Table(options, np.empty((0, 0)))
    found: dict[int, tuple[Architecture, list[Architecture]]] = {}
    for row in range(count_of(options)):
        architecture = rows.architecture(row)
        standing = architecture if canonical is None else canonical(architecture)
        if canonical is not None and canonical(standing) != standing:
            raise ConfigError(f"canonical of the space must leave as it is what it returned: {standing.to_plain()}")
        _, same = found.setdefault(rows.row(standing), (standing, []))
        if architecture != standing:
            same.append(architecture)
    return found


def table_text(
    facts: Mapping[str, Any], options: Options, found: Iterable[tuple[Architecture, Sequence[Architecture], Runs]]
) -> str:
    """Return the text of a table's file, with a line for each architecture.

    Args:
        facts: how it was made, in primitives.
        options: of the space.
        found: architecture, others that compute the same, and what its trainings came to.
    """
    head = json.dumps({**facts, "choices": options}, indent=1)
    lines = [
        json.dumps({"choices": one.to_plain(), **runs._asdict(), "same": [other.to_plain() for other in same]})
        for one, same, runs in found
    ]
    return head.removesuffix("\n}") + ',\n "architectures": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"


def read_table(path: Path | str) -> Table:
    """Return the table in a file that `python -m src.tabulate` wrote; architectures that compute the same have equal rows.

    Raises:
        ConfigError: there is no such file, or it holds no whole table.
    """
    try:
        raw = json.loads(Path(path).read_bytes())
        options = {str(key): tuple(map(str, names)) for key, names in raw["choices"].items()}
        rows = Table(options, np.empty((0, 0)))
        runs: dict[int, Runs] = {}
        for entry in raw["architectures"]:
            values = Runs(entry["validation"], entry["test"], entry["seconds"])
            for choices in (entry["choices"], *entry["same"]):
                runs[rows.row(Architecture(choices))] = values
        every = [runs[row] for row in range(count_of(options))]
        validation, test, seconds = (np.array(column, dtype=np.float64) for column in zip(*every, strict=True))
        data = str(raw["data"]["name"]) if "data" in raw else ""
    except OSError as error:
        raise ConfigError(f"cannot read the table {path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {shorten(error)}"
        raise ConfigError(f"{path} holds no whole table of python -m src.tabulate ({what})") from None
    return Table(options, validation, test, seconds, data)


@dataclass(frozen=True)
class Gate:
    """Whether the trainings of a table tell architectures apart: how much these differ, against the noise of a training.

    Each architecture that differs counts once. A seed moves all architectures alike, for one because it decides which
    samples are trained on; that is no noise between architectures and is taken off.

    Attributes:
        architectures: how many.
        seeds: trainings of each.
        accuracies: mean of the trainings of each, from the best to the worst.
        between: standard deviation of those means.
        noise: standard deviation of one training about its architecture's mean.
        better_half: both among the better half of the architectures, which is where searches should end.
    """

    architectures: int
    seeds: int
    accuracies: NDArray[np.float64]
    between: float
    noise: float
    better_half: tuple[float, float]

    @classmethod
    def of(cls, runs: NDArray[np.float64]) -> Gate:
        """Return the gate of trainings, (architectures, seeds)."""
        count, seeds = runs.shape
        best_first = runs[np.argsort(-runs.mean(axis=1), kind="stable")]
        half = best_first[: (count + 1) // 2]
        means = best_first.mean(axis=1)
        return cls(count, seeds, means, _between(runs), _noise(runs), (_between(half), _noise(half)))

    @property
    def ratio(self) -> float:
        """How many times as large as the noise the differences are; 5 or more is asked for."""
        return self.between / self.noise if self.noise else math.inf

    def rows(self) -> list[tuple[str, str]]:
        """Return what to know of the table, in words."""
        best = self.accuracies[:BEST]
        between, noise = self.better_half
        error = noise * math.sqrt(2 / self.seeds)
        verdict = "enough" if self.ratio >= ENOUGH else f"too little: {ENOUGH:g} or more is asked for"
        return [
            ("best", percent(float(self.accuracies[0]), 2)),
            ("median", percent(float(np.median(self.accuracies)), 2)),
            ("mean", percent(float(self.accuracies.mean()), 2)),
            ("worst", percent(float(self.accuracies[-1]), 2)),
            ("between", f"{percent(self.between, 2)} standard deviation, of architectures"),
            ("noise", f"{percent(self.noise, 2)} standard deviation, of one training"),
            ("ratio", f"{self.ratio:.1f}, {verdict}"),
            ("better half", f"{percent(between, 2)} between, {percent(noise, 2)} noise"),
            (f"best {len(best)}", ", ".join(percent(float(one), 2) for one in best)),
            ("", f"the difference of two has a standard error of {percent(error, 2)}"),
        ]


def _between(runs: NDArray[np.float64]) -> float:
    return float(runs.mean(axis=1).std(ddof=1)) if len(runs) > 1 else math.nan


def _noise(runs: NDArray[np.float64]) -> float:
    freedom = (runs.shape[0] - 1) * (runs.shape[1] - 1)
    residual = runs - runs.mean(axis=1, keepdims=True) - runs.mean(axis=0, keepdims=True) + runs.mean()
    return math.sqrt((residual**2).sum() / freedom) if freedom else math.nan
