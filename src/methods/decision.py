"""How far a search has decided, in numbers a person can judge: from mixing weights and the architecture they give."""

from __future__ import annotations

import math
from collections.abc import Mapping

from src.architectures.architecture import Architecture, InputSpec, Spec
from src.methods.discretizers import MixingWeights
from src.spaces.choices import ZERO, ranks_edges

SKIPS = frozenset({"skip_connect", "skip", "identity"})  # what spaces call the candidate that passes its input on


def decided(expected: MixingWeights) -> float:
    """Return how decided mixing weights are: 0 where all candidates weigh the same, 1 where one has all the weight.

    This is the mean over the choices of 1 - entropy / log(candidates).
    """
    shares = []
    for row in expected.values():
        total = sum(row.values())
        if len(row) > 1 and total > 0:
            parts = [weight / total for weight in row.values() if weight > 0]
            shares.append(1 + sum(part * math.log(part) for part in parts) / math.log(len(row)))
    return max(0.0, sum(shares) / len(shares)) if shares else 1.0


def strongest(expected: MixingWeights) -> dict[str, str]:
    """Return the heaviest candidate or input of each choice."""
    return {key: max(row, key=lambda name: row[name]) for key, row in expected.items()}


def flips(before: Mapping[str, str], after: Mapping[str, str]) -> int:
    """Return for how many choices the heaviest candidate has changed."""
    return sum(before.get(key) != name for key, name in after.items())


def skips(architecture: Architecture, expected: MixingWeights) -> int | None:
    """Return how many choices of an architecture are answered by a skip connection; None if the space has none."""
    if not any(name in SKIPS for row in expected.values() for name in row):
        return None
    return sum(answer in SKIPS for answer in architecture.choices.values() if isinstance(answer, str))


def leads(expected: MixingWeights, architecture: Architecture, spec: Spec) -> dict[str, float]:
    """Return by how much mixing weight each answer leads over the next that could have been it, in [0, 1].

    For a LayerChoice the next is the second heaviest candidate, `none` left out, since it is never an answer; for inputs,
    the heaviest of those that were not kept. Choices without a second possibility and dropped edges have no lead. Edges
    compete by the weight of their candidates, so an InputChoice over edges has none of its own.
    """
    result: dict[str, float] = {}
    for key, rule in spec.items():
        answer = architecture.choices[key]
        if answer is None or (isinstance(rule, InputSpec) and ranks_edges(rule, spec)):
            continue
        kept = {answer} if isinstance(answer, str) else set(answer)
        others = [weight for name, weight in expected[key].items() if name not in kept and name != ZERO]
        if others:
            result[key] = max(0.0, min(expected[key][name] for name in kept) - max(others))
    return result
