"""How clearly a search has decided, from the mixing weights and architectures that it left: numbers and a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from src.architectures.architecture import ZERO, Answer
from src.methods.decision import NARROW, SKIPS, decided, lead, strongest
from src.reports.names import answers_of
from src.runs.saved import SavedRun
from src.spaces.cnn.genotypes import edge_of

_SKIPS_OF_A_COLLAPSE = 2


class Finding(NamedTuple):
    """A sentence of the verdict."""

    text: str
    tone: str  # "good", "weak" or "plain"


def uniform_entropy(alphas: Mapping[str, Mapping[str, Sequence[float]]]) -> float | None:
    """Return the mean over the choices of log(candidates), in nats: the entropy of equal weights."""
    logs = [math.log(len(row)) for row in alphas.values() if row]
    return sum(logs) / len(logs) if logs else None


def changed(before: Mapping[str, Answer], after: Mapping[str, Answer]) -> int:
    """Return how many answers differ between two architectures of one space."""
    return sum(before.get(key) != answer for key, answer in after.items() if not key.endswith("_switch"))


def at_epoch(run: SavedRun, place: int, keys: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Return the mixing weights after an epoch: choice -> candidate -> weight.

    Args:
        run: a search.
        place: of the epoch in `run.alpha_epochs`.
        keys: of the choices; by default all of them.
    """
    return {
        key: {name: line[place] for name, line in run.alphas[key].items()}
        for key in (run.alphas if keys is None else keys)
    }


def verdict(run: SavedRun) -> list[Finding]:
    """Return what the mixing weights and architectures of a search say about how far it can be trusted."""
    findings: list[Finding] = []
    if run.alphas and run.genotype:
        findings += _clarity(run)
    findings += _stability(run)
    findings += _skips(run.genotype)
    remark = run.result.get("remark")
    if isinstance(remark, str):
        findings.append(Finding(f"Of the rule that made the architecture: {remark}.", "plain"))
    return findings


def _clarity(run: SavedRun) -> list[Finding]:
    last = at_epoch(run, run.final_place)
    kept = {key: names for key in last if (names := answers_of(run.genotype, key))}
    leads = [value for key, names in kept.items() if (value := lead(last[key], names)) is not None]
    narrow = sum(value < NARROW for value in leads)
    findings = []
    what = "kept edges" if any(edge_of(key) for key in kept) else "choices"
    if leads and narrow:
        findings.append(
            Finding(
                f"{narrow} of {len(leads)} {what} lead by less than {100 * NARROW:g} percentage point of mixing weight. "
                "A longer search, or a larger learning rate for the alphas, would decide them more clearly.",
                "weak",
            )
        )
    elif leads:
        text = f"All {len(leads)} {what} lead by {100 * NARROW:g} percentage point of mixing weight or more."
        findings.append(Finding(text, "good"))
    share = decided(list(last.values()))
    if share is not None:
        text = (
            f"The mixing weights are {100 * share:.1f} % decided: 0 % is all equal, 100 % is one with all the weight."
        )
        findings.append(Finding(text, "plain"))
    nothing = [key for key, name in strongest(last).items() if name == ZERO]
    if nothing:
        share_of = f"{len(nothing)} of {sum(ZERO in row for row in last.values())}"
        where = "edges" if any(edge_of(key) for key in nothing) else "choices that have it"
        text = f"“none” is the heaviest candidate on {share_of} {where}; an architecture takes the heaviest other one."
        findings.append(Finding(text, "plain"))
    return findings


def _stability(run: SavedRun) -> list[Finding]:
    final = run.architecture_epoch
    epochs = sorted(epoch for epoch in run.history if final is None or epoch <= final)
    changes = [epoch for before, epoch in pairwise(epochs) if changed(run.history[before], run.history[epoch])]
    if len(epochs) < 2:
        return []
    if not changes:
        return [Finding("The architecture was the same after every epoch.", "plain")]
    if changes[-1] == epochs[-1]:
        count = changed(run.history[epochs[-2]], run.history[epochs[-1]])
        return [Finding(f"The architecture still changed in the last epoch, in {_choices(count)}.", "weak")]
    quiet = epochs[-1] - changes[-1]
    text = f"The architecture last changed in epoch {changes[-1]}, {quiet} epoch{'' if quiet == 1 else 's'} before the end."
    return [Finding(text, "good" if quiet >= len(epochs) / 4 else "plain")]


def _skips(genotype: Mapping[str, Answer]) -> list[Finding]:
    places = {key: place for key in genotype if (place := edge_of(key)) and place.kind == "normal"}
    count = sum(genotype[key] in SKIPS for key in places)
    if count <= _SKIPS_OF_A_COLLAPSE:
        return []
    kept = sum(genotype[key] is not None for key in places)
    return [
        Finding(
            f"The normal cell has skip connections on {count} of {kept} edges. Searches of DARTS can collapse to them, "
            f"and DARTS+ (arXiv 1909.06035) stops a search at more than {_SKIPS_OF_A_COLLAPSE}: compare the retrained "
            "accuracy with that of an earlier epoch.",
            "weak",
        )
    ]


def _choices(count: int) -> str:
    return f"{count} choice{'' if count == 1 else 's'}"
