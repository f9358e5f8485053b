"""Outcomes of studies that nobody ran, in the form that studies read them in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from src.architectures.architecture import Architecture
from src.benchmarks.nas_bench_201 import nas_bench_201
from src.benchmarks.table import Table
from src.studies.outcomes import RANDOM, TABLE, Outcome

KEYS = ("first", "second", "third", "fourth")
CANDIDATES = ("conv_3x3", "conv_5x5", "max_pool_3x3", "skip_connect")
SKILLS = {"clever": (0.9, 1.0), "darts, order 1": (0.3, 0.95), "darts, order 2": (0.0, 0.5)}
"""Arm -> from which percentile to which its architectures are, in a table."""


def made_with_table(
    skills: Mapping[str, tuple[float, float]] | None = None,
    *,
    seeds: int = 10,
    epochs: int = 20,
    table: Table | None = None,
) -> list[Outcome]:
    """Return searches of the space of NAS-Bench-201: each epoch has an architecture between two percentiles.

    Over the epochs the percentile falls from the upper to the lower one, with chance added. The last epoch's architecture is
    the one found.
    """
    table = table or nas_bench_201()
    order = np.argsort(table.accuracies, kind="stable")
    outcomes: list[Outcome] = []
    for number, (arm, (low, high)) in enumerate((skills or SKILLS).items()):
        for seed in range(seeds):
            rng = np.random.default_rng([number, seed])
            ranks = [_rank(low, high, epoch / max(epochs - 1, 1), rng, len(order)) for epoch in range(epochs)]
            found = [table.architecture(int(order[rank])) for rank in ranks]
            rows = [
                {**_measured(epoch, epochs, rng, architecture), **_standing(table, architecture)}
                for epoch, architecture in enumerate(found)
            ]
            outcomes.append(
                Outcome(
                    arm=arm,
                    seed=seed,
                    folder=f"searches/{arm.replace(', ', '_').replace(' ', '_')}/{seed}",
                    architecture=found[-1],
                    scores={TABLE: table.standing(found[-1]).accuracy},
                    epochs=rows,
                    metrics={
                        "val_accuracy": rows[-1]["val_accuracy"],
                        "ranking_tau": float(rng.normal(0.4, 0.1)),
                        "ranking_tau_top": float(rng.normal(0.1, 0.1)),
                    },
                    seconds=float(rng.uniform(60, 90)),
                    evaluation_seconds={},
                )
            )
    return outcomes


def made_without_table(
    means: Mapping[str, float] | None = None,
    *,
    seeds: int = 10,
    drawn: int = 20,
    settings: Sequence[str] = ("short", "long"),
    sd: float = 0.01,
) -> list[Outcome]:
    """Return searches whose architectures were trained, in one or several settings, and random architectures.

    Args:
        means: arm -> mean score, with chance of `sd` around it.
        seeds: of each arm.
        drawn: random architectures, whose mean score is 0.9; 0 for none.
        settings: names of retrain settings; each has scores that are 0.02 above those of the one before.
        sd: standard deviation of the scores within an arm, and twice that of the random ones.
    """
    means = {"darts, order 1": 0.92, "darts, order 2": 0.925} if means is None else means
    arms = {**dict.fromkeys(means, seeds), **({RANDOM: drawn} if drawn else {})}
    outcomes: list[Outcome] = []
    for number, (arm, count) in enumerate(arms.items()):
        for seed in range(count):
            rng = np.random.default_rng([7, number, seed])
            architecture = Architecture({key: CANDIDATES[rng.integers(len(CANDIDATES))] for key in KEYS})
            score = 0.9 + 2 * sd * rng.normal() if arm == RANDOM else means[arm] + sd * rng.normal()
            rows = [] if arm == RANDOM else [_measured(epoch, 10, rng, architecture) for epoch in range(10)]
            outcomes.append(
                Outcome(
                    arm=arm,
                    seed=seed,
                    folder=f"searches/{arm}/{seed}",
                    architecture=architecture,
                    scores={name: score + 0.02 * place + 0.002 * rng.normal() for place, name in enumerate(settings)},
                    epochs=rows,
                    metrics={} if arm == RANDOM else {"val_accuracy": 0.8, "ranking_tau": float(rng.normal(0.3, 0.1))},
                    seconds=0.1 if arm == RANDOM else float(rng.uniform(60, 90)),
                    evaluation_seconds={name: 30.0 * (place + 1) for place, name in enumerate(settings)},
                )
            )
    return outcomes


def made_with_scores(scores: Mapping[str, Sequence[float]], name: str = TABLE) -> list[Outcome]:
    """Return searches with given scores: arm -> one for each seed; they found the same architecture."""
    return [
        Outcome(
            arm, seed, f"{arm}/{seed}", Architecture(dict.fromkeys(KEYS, "conv_3x3")), {name: score}, [], {}, 60.0, {}
        )
        for arm, values in scores.items()
        for seed, score in enumerate(values)
    ]


def _rank(low: float, high: float, passed: float, rng: np.random.Generator, count: int) -> int:
    percentile = high - (high - low) * passed * rng.uniform(0, 1) - (high - low) * 0.3 * rng.uniform(0, 1)
    return int(np.clip(percentile, low, high) * (count - 1))


def _measured(epoch: int, epochs: int, rng: np.random.Generator, architecture: Architecture) -> dict[str, float]:
    """Return what a row of metrics.csv has without a table."""
    passed = (epoch + 1) / epochs
    return {
        "epoch": float(epoch),
        "train_loss": 2 * math.exp(-2 * passed) + rng.uniform(0, 0.05),
        "val_loss": 2 * math.exp(-1.8 * passed) + rng.uniform(0, 0.1),
        "val_accuracy": 0.3 + 0.5 * passed + rng.uniform(0, 0.05),
        "alpha_entropy": 1.6 * (1 - 0.7 * passed),
        "skip_count": float(sum(answer == "skip_connect" for answer in architecture.choices.values())),
        "exact_cosine": float(np.clip(0.5 + 0.4 * passed + rng.normal(0, 0.05), -1, 1)),
        "lr": 0.025 * (1 - passed) + 0.001,
    }


def _standing(table: Table, architecture: Architecture) -> dict[str, float]:
    return {f"table_{name}": value for name, value in table.standing(architecture)._asdict().items()}
