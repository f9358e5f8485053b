"""Discretizers: from mixing weights to an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from src.architectures.architecture import ZERO, Answer, Architecture, InputSpec, LayerSpec, Spec, fewest, ranks_edges
from src.common.errors import must_be

MixingWeights = Mapping[str, Mapping[str, float]]  # key of a choice -> candidate or input -> weight


class Discretizer(Protocol):
    """What a method asks of a discretizer. `ranks_by_edge_weights`: whether it takes account of edge weights.

    It may also have `fits`, the kinds of relaxations that it makes sense with, and a method `remark(expected, spec) ->
    str | None`: what a user has to know of how it came to an architecture.
    """

    ranks_by_edge_weights: ClassVar[bool]

    def __call__(self, expected: MixingWeights, spec: Spec) -> Architecture:
        """Return the architecture of a space with the choices in `spec`, given mixing weights without noise."""
        ...


@dataclass(frozen=True)
class Strongest:
    """The paper's rule (section 2.4 of arXiv 1806.09055).

    Each LayerChoice keeps its heaviest candidate other than `none`; each InputChoice over edges keeps the edges whose
    kept candidate is heaviest; each other InputChoice keeps its heaviest inputs. Weights are compared as they are, with
    the share of `none` in them. Of equals the first is kept.
    """

    ranks_by_edge_weights: ClassVar[bool] = False

    def __call__(self, expected: MixingWeights, spec: Spec) -> Architecture:
        """Return the architecture."""
        kept = {
            key: max(
                ((name, weight) for name, weight in expected[key].items() if name != ZERO), key=lambda pair: pair[1]
            )
            for key, rule in spec.items()
            if isinstance(rule, LayerSpec)
        }
        choices: dict[str, Answer] = {key: name for key, (name, _) in kept.items()}
        dropped: set[str] = set()
        chosen: set[str] = set()
        for key, rule in spec.items():
            if isinstance(rule, InputSpec):
                edges = ranks_edges(rule, spec)
                if edges:
                    strength = {name: self.strength(kept[name][1], expected.get(key, {}), name) for name in rule.inputs}
                else:
                    strength = expected[key]
                order = sorted(rule.inputs, key=lambda name: -strength[name])
                choices[key] = tuple(name for name in rule.inputs if name in order[: rule.n_chosen])
                if edges:
                    chosen.update(order[: rule.n_chosen])
                    dropped.update(order[rule.n_chosen :])
        dropped -= chosen  # an edge into two nodes stays if either keeps it
        return Architecture({key: None if key in dropped else choices[key] for key in spec})

    def strength(self, weight: float, edge_weights: Mapping[str, float], edge: str) -> float:
        """Return how strong an edge is, given the weight of the candidate it keeps."""
        return weight


@dataclass(frozen=True)
class StrongestProduct(Strongest):
    """The paper's rule, with an edge as strong as its candidate's weight times its own: PC-DARTS.

    Implements the last paragraph of section 3.3 of arXiv 1907.05737.
    """

    ranks_by_edge_weights: ClassVar[bool] = True

    def strength(self, weight: float, edge_weights: Mapping[str, float], edge: str) -> float:
        """Return the product of candidate's and edge's weight."""
        return weight * edge_weights[edge]


@dataclass(frozen=True)
class Threshold:
    """The paper's rule, after which edges whose kept candidate weighs less than a threshold are dropped: FairDARTS.

    Implements section 4.1 of arXiv 1911.12126 in the form of the official code (fairdarts/utils.py, `threshold_sparse`),
    which takes the strongest edges of a node first: a node may keep fewer than the paper's two, or none. An InputChoice
    that may not be empty keeps its strongest edge all the same. In the paper's cells that is the first node; the official
    code has no such rule, and builds no network of a cell without an edge.

    A short search brings no candidate to the threshold. Where no edge reaches it, it says nothing about which to keep, so
    that the paper's rule alone decides; `remark` says so. InputChoices over other inputs than edges keep their heaviest.

    Attributes:
        threshold: 0.85 in the official code.
    """

    threshold: float = 0.85
    fits: ClassVar[frozenset[str]] = frozenset({"sigmoid"})
    ranks_by_edge_weights: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise must_be("threshold", "0 to 1", self.threshold)

    def __call__(self, expected: MixingWeights, spec: Spec) -> Architecture:
        """Return the architecture."""
        strongest = Strongest()(expected, spec)
        weights = _weights_of_edges(strongest, expected, spec)
        if not self._decides(weights):
            return strongest
        choices, kept = dict(strongest.choices), set[str]()
        for key, rule in spec.items():
            if isinstance(rule, InputSpec) and ranks_edges(rule, spec):
                edges = strongest.choices[key] or ()
                passing = [name for name in edges if weights[name] >= self.threshold]
                if len(passing) < fewest(rule, spec):
                    passing = [max(edges, key=lambda name: weights[name])]
                choices[key] = tuple(passing)
                kept.update(passing)
        # An edge into two nodes stays if either keeps it.
        return Architecture({key: None if key in weights and key not in kept else choices[key] for key in spec})

    def remark(self, expected: MixingWeights, spec: Spec) -> str | None:
        """Return how many edges the threshold has dropped, or that it has decided nothing; None if it dropped none."""
        weights = _weights_of_edges(Strongest()(expected, spec), expected, spec)
        if not weights:
            return None
        if not self._decides(weights):
            return (
                f"no edge reaches the threshold of {self.threshold:g} (the strongest has {max(weights.values()):.2g}), so "
                "it was not applied: search longer, or set a lower method.discretizer.threshold"
            )
        architecture = self(expected, spec)
        dropped = sum(architecture.choices[name] is None for name in weights)
        forced = sum(architecture.choices[name] is not None and w < self.threshold for name, w in weights.items())
        if not dropped and not forced:
            return None
        text = f"{dropped} of {len(weights)} edges dropped, whose operations weigh less than {self.threshold:g}"
        return f"{text}; {forced} such kept, where a node needs an edge" if forced else text

    def _decides(self, weights: Mapping[str, float]) -> bool:
        return any(weight >= self.threshold for weight in weights.values())


def _weights_of_edges(architecture: Architecture, expected: MixingWeights, spec: Spec) -> dict[str, float]:
    """Return the weight of the candidate of each edge that an architecture keeps."""
    edges = [
        name
        for rule in spec.values()
        if isinstance(rule, InputSpec) and ranks_edges(rule, spec)
        for name in rule.inputs
    ]
    answers = {name: architecture.choices[name] for name in dict.fromkeys(edges)}
    return {name: expected[name][answer] for name, answer in answers.items() if isinstance(answer, str)}
