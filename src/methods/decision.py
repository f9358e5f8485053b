"""How far a search has decided, in numbers a person can judge: from mixing weights and the architecture they give."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from src.architectures.architecture import ZERO, Architecture, InputSpec, Spec, ranks_edges
from src.methods.discretizers import MixingWeights

NARROW = 0.01  # a lead of less mixing weight than this may be chance
SKIPS = frozenset({"skip_connect", "skip", "identity"})  # what spaces call the candidate that passes its input on


def decided(rows: Iterable[Mapping[str, float]]) -> float | None:
    """Return how decided mixing weights are, in [0, 1]: the mean over choices of 1 - entropy / log(candidates).

    It is 0 where all candidates of each choice weigh the same, and 1 where one has all the weight; None where there is
    nothing to decide.
    """
    shares = []
    for row in rows:
        weights = [weight for weight in row.values() if math.isfinite(weight) and weight > 0]
        total = sum(weights)
        if len(row) > 1 and total > 0:
            entropy = -sum(weight / total * math.log(weight / total) for weight in weights)
            shares.append(1 - entropy / math.log(len(row)))
    return max(0.0, sum(shares) / len(shares)) if shares else None


def lead(weights: Mapping[str, float], kept: Sequence[str]) -> float | None:
    """Return by how much mixing weight a choice is decided; None where nothing else could have been chosen.

    Args:
        weights: candidate -> mixing weight. `none` is left out, since an architecture never names it.
        kept: what was chosen; of an edge that was dropped nothing, so that its two heaviest candidates are compared.
    """
    possible = {name: weight for name, weight in weights.items() if name != ZERO and math.isfinite(weight)}
    chosen = [possible.pop(name) for name in kept if name in possible]
    if not chosen and len(possible) > 1:
        chosen = [possible.pop(max(possible, key=lambda name: possible[name]))]
    return min(chosen) - max(possible.values()) if chosen and possible else None


def leads(expected: MixingWeights, architecture: Architecture, spec: Spec) -> dict[str, float]:
    """Return the lead of each answer of an architecture; dropped edges, and choices without a second option, have none.

    Edges compete by the weight of their candidates, so an InputChoice over edges has no lead of its own. A lead is
    negative where another rule than the heaviest chose.
    """
    result: dict[str, float] = {}
    for key, rule in spec.items():
        answer = architecture.choices[key]
        if answer is None or (isinstance(rule, InputSpec) and ranks_edges(rule, spec)):
            continue
        found = lead(expected[key], [answer] if isinstance(answer, str) else answer)
        if found is not None:
            result[key] = found
    return result


def margin(expected: MixingWeights) -> float:
    """Return the mean over choices of the heaviest weight less the second, `none` included; nan without any choice."""
    found = [top[0] - top[1] for row in expected.values() if len(top := sorted(row.values(), reverse=True)) > 1]
    return sum(found) / len(found) if found else math.nan


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
