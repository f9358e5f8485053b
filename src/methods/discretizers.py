"""Discretizers: from mixing weights to an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from src.architectures.architecture import ZERO, Answer, Architecture, InputSpec, LayerSpec, Spec, ranks_edges

MixingWeights = Mapping[str, Mapping[str, float]]  # key of a choice -> candidate or input -> weight


class Discretizer(Protocol):
    """What a method asks of a discretizer. `ranks_by_edge_weights`: whether it takes account of edge weights."""

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
