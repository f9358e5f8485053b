"""Selection by perturbation: an architecture chosen by what the supernet loses without each candidate, DARTS-PT.

Implements algorithm 1 of arXiv 2108.04392, for any space with choices. The choices of operations are decided one by one
in random order: the candidate without which the supernet is worst stays. Then the choices of inputs: the input without
which the supernet is best goes, until as many are left as the choice keeps. The supernet is tuned after each round. A
round decides one choice of each cell, as the official code (ruocwang/darts-pt, sota/cnn/projection.py) does for normal
and reduction cells; choices outside of cells count as one more cell.

A decided choice of operations has a one-hot row of mixing weights, an edge that was dropped a row of zeros; an input that
was kept weighs 1. The rows of candidates that are left out are not made to add up to 1 again. As in the official code, of
equals the first candidate stays, and the last input goes. Unlike there, `none` is no candidate: an architecture cannot
name it, so that it has its share of a row until the choice is decided.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from src.architectures.architecture import Answer, Architecture, InputSpec, LayerSpec, Spec, ranks_edges
from src.common.errors import ConfigError, must_be
from src.common.seeding import derive_seed
from src.methods.discretizers import MixingWeights, Strongest
from src.methods.method import Method
from src.methods.relaxations import Tensors
from src.methods.schedules import Progress
from src.spaces.cnn.genotypes import split_keys

# Relaxations whose expected mixing weights are those of a network that runs as a whole.
FITS = frozenset({"softmax", "sigmoid", "dirichlet", "simplex"})
CRITERIA = ("accuracy", "loss")


@dataclass(frozen=True)
class Decision:
    """What a choice was decided to.

    Attributes:
        round: in which it was decided, counted from 0.
        key: of the choice.
        kept: the candidate, or the inputs.
        dropped: the inputs that went, in their order; none for a choice of operations.
        scores: score of the supernet without each option that was left; one dictionary for a choice of operations, one
            for each input that was dropped.
    """

    round: int
    key: str
    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    scores: tuple[dict[str, float], ...]


class Selection:
    """The decisions so far, and how the next ones are made.

    Args:
        spec: of the space.
        names: of the entries of each row of mixing weights, as `RelaxedSpace.candidates` returns them.
        seed: of the random order, a function of the seed, the round and the cell.
        higher_is_better: whether a score grows with the quality of a network, as an accuracy does.

    Attributes:
        kept: of each choice that is decided, what was kept.
        decisions: in their order. Choices with nothing to choose are decided from the beginning, and not among them.
    """

    def __init__(
        self, spec: Spec, names: Mapping[str, tuple[str, ...]], *, seed: int = 0, higher_is_better: bool = True
    ) -> None:
        self.spec = spec
        self.names = names
        self.seed = seed
        self.higher_is_better = higher_is_better
        self.decisions: list[Decision] = []
        self.rounds_done = 0
        self.kept: dict[str, tuple[str, ...]] = {
            key: rule.candidates if isinstance(rule, LayerSpec) else rule.inputs
            for key, rule in spec.items()
            if _is_decided(rule)
        }
        open_layers = [key for key, rule in spec.items() if isinstance(rule, LayerSpec) and key not in self.kept]
        open_inputs = [key for key, rule in spec.items() if isinstance(rule, InputSpec) and key not in self.kept]
        self._phases = [_by_cell(open_layers, spec), _by_cell(open_inputs, spec)]
        self._nodes_of: dict[str, list[str]] = {}
        for key, rule in spec.items():
            if isinstance(rule, InputSpec) and ranks_edges(rule, spec):
                for edge in rule.inputs:
                    self._nodes_of.setdefault(edge, []).append(key)

    @property
    def rounds(self) -> int:
        """How many rounds there are."""
        return sum(max(map(len, phase.values()), default=0) for phase in self._phases)

    def decide(self, rows: Mapping[str, Tensor], score: Callable[[Tensors], float]) -> None:
        """Decide one choice of each cell.

        Args:
            rows: the mixing weights without noise, and without regard to decisions.
            score: of the supernet, as a function of the mixing weights.
        """
        phase = next(phase for phase in self._phases if any(key not in self.kept for key in _all(phase)))
        for cell, keys in phase.items():
            left = [key for key in keys if key not in self.kept]
            if left:
                key = random.Random(derive_seed("selection", self.seed, self.rounds_done, cell)).choice(left)
                self._decide(key, rows, score)
        self.rounds_done += 1

    def _decide(self, key: str, rows: Mapping[str, Tensor], score: Callable[[Tensors], float]) -> None:
        rule = self.spec[key]
        now = self.apply(rows)
        if isinstance(rule, LayerSpec):
            scores = {name: score(self._without(now, key, (name,))) for name in rule.candidates}
            kept, dropped, tried = (max(scores, key=lambda name: self._harm(scores[name])),), (), [scores]
        else:
            kept, dropped, tried = rule.inputs, (), []
            while len(kept) > rule.n_chosen:
                scores = {name: score(self._without(now, key, (*dropped, name))) for name in kept}
                tried.append(scores)
                worst = min(reversed(kept), key=lambda name: self._harm(scores[name]))
                dropped = (*dropped, worst)
                kept = tuple(name for name in kept if name != worst)
        self.kept[key] = kept
        self.decisions.append(Decision(self.rounds_done, key, kept, dropped, tuple(tried)))

    def _harm(self, score: float) -> float:
        return -score if self.higher_is_better else score

    def apply(self, rows: Mapping[str, Tensor]) -> Tensors:
        """Return mixing weights with the rows of what is decided; their gradient is zero."""
        result = dict(rows)
        for key, kept in self.kept.items():
            if key in self.names and key in rows:
                result[key] = _fixed(rows[key], [float(name in kept) for name in self.names[key]])
        for key, kept in self.kept.items():
            rule = self.spec[key]
            if isinstance(rule, InputSpec) and ranks_edges(rule, self.spec):
                result = self._without(result, key, tuple(name for name in rule.inputs if name not in kept))
        return result

    def _without(self, rows: Mapping[str, Tensor], key: str, dropped: tuple[str, ...]) -> Tensors:
        """Return mixing weights without some options of a choice."""
        rule, result = self.spec[key], dict(rows)
        if not (isinstance(rule, InputSpec) and ranks_edges(rule, self.spec)):
            result[key] = rows[key] * rows[key].new_tensor([float(name not in dropped) for name in self.names[key]])
            return result
        for edge in dropped:
            if len(self._nodes_of[edge]) == 1:
                result[edge] = rows[edge] * 0
        if any(len(self._nodes_of[edge]) > 1 for edge in dropped):  # other nodes may keep the edge
            weights = [float(edge not in dropped) for edge in rule.inputs]
            result[key] = next(iter(rows.values())).new_tensor(weights)
        return result

    def architecture(self, expected: MixingWeights) -> Architecture:
        """Return the architecture of what is decided; what is not is answered by the largest mixing weights."""
        strongest = Strongest()(expected, self.spec).choices
        raw: dict[str, Any] = {}
        for key, rule in self.spec.items():
            answer: Answer = strongest[key]
            if isinstance(rule, LayerSpec):
                answer = max(rule.candidates, key=lambda name, key=key: expected[key][name])
                raw[key] = self.kept.get(key, (answer,))[0]
            else:
                raw[key] = list(self.kept.get(key, answer or ()))
        return Architecture.parse(raw, self.spec)

    def state_dict(self) -> dict[str, Any]:
        """Return the decisions, in primitives."""
        return {"rounds": self.rounds_done, "decisions": [asdict(decision) for decision in self.decisions]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the decisions of a checkpoint."""
        self.rounds_done = state["rounds"]
        self.decisions = [Decision(**plain) for plain in state["decisions"]]
        self.kept |= {decision.key: decision.kept for decision in self.decisions}


@dataclass(frozen=True, kw_only=True)
class Selecting(Method):
    """A method whose mixing weights are those of the decisions of a selection, where there are any.

    Raises:
        ConfigError: a selection of this method means nothing.
    """

    selection: Selection

    @classmethod
    def of(cls, method: Method, selection: Selection) -> Selecting:
        """Return a method with the slots of another one."""
        return cls(**{field.name: getattr(method, field.name) for field in fields(Method)}, selection=selection)

    def undecided(self, parameters: Mapping[str, Tensor]) -> Tensors:
        """Return the mixing weights without noise, and without regard to decisions."""
        return super().expected(parameters)

    def expected(self, parameters: Mapping[str, Tensor]) -> Tensors:
        """Return the mixing weights without noise."""
        return self.selection.apply(super().expected(parameters))

    def mixing_weights(
        self, parameters: Mapping[str, Tensor], noise: Mapping[str, Tensor], progress: Progress
    ) -> Tensors:
        """Return the mixing weights of a pass in training."""
        return self.selection.apply(super().mixing_weights(parameters, noise, progress))

    def weights_step_mixing(
        self,
        parameters: Mapping[str, Tensor],
        noise: Mapping[str, Tensor],
        progress: Progress,
        loss: Callable[[Tensors], Tensor],
        generator: Any,
    ) -> Tensors:
        """Return the mixing weights of the weights' step; a perturbation leaves what is decided as it is."""
        apply = self.selection.apply
        return apply(
            super().weights_step_mixing(parameters, noise, progress, lambda rows: loss(apply(rows)), generator)
        )


def check_method(method: Method) -> None:
    """Raise a `ConfigError` unless an architecture can be selected from a supernet that the method has trained."""
    if method.relaxation.one_path or method.relaxation.kind not in FITS:
        raise ConfigError(
            f"a selection needs a search with a relaxation of kind {', '.join(sorted(FITS))}, got "
            f"{type(method.relaxation).__name__}, which is of kind {method.relaxation.kind}"
        )
    if method.edge_weights:
        raise must_be("edge_weights", "false in a search that is selected from, since a selection ignores them", True)


def _is_decided(rule: LayerSpec | InputSpec) -> bool:
    if isinstance(rule, LayerSpec):
        return len(rule.candidates) == 1
    return len(rule.inputs) == rule.n_chosen


def _by_cell(keys: list[str], spec: Spec) -> dict[str, list[str]]:
    """Return keys by the kind of cell that they are in; those of no cell are under an empty name."""
    found: dict[str, list[str]] = {}
    for key in keys:
        rule = spec[key]
        edge = rule.inputs[0] if isinstance(rule, InputSpec) else key
        found.setdefault(next(iter(split_keys([edge])[0]), ""), []).append(key)
    return found


def _all(phase: Mapping[str, list[str]]) -> list[str]:
    return [key for keys in phase.values() for key in keys]


def _fixed(row: Tensor, values: list[float]) -> Tensor:
    """Return a row of constants that depends on `row` for autograd, with a gradient of zero."""
    return row * 0 + row.new_tensor(values)
