"""A method: one choice in each slot, and which choices can be combined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from src.architectures.architecture import Architecture, Spec
from src.bilevel.hypergradient import AlphaGradient, Bilevel, Hypergradient
from src.common.errors import ConfigError, must_be
from src.methods.alpha_gradients import AlphaGradientRule
from src.methods.alpha_optimizers import AlphaOptimizer
from src.methods.auxiliary import AuxiliarySkip
from src.methods.discretizers import Discretizer, MixingWeights, Strongest
from src.methods.mixed_ops import MixedOp
from src.methods.penalties import Penalty
from src.methods.perturbations import Perturbation
from src.methods.relaxations import Relaxation, Softmax
from src.methods.schedules import Progress
from src.methods.weight_rules import Rule, WeightRule
from src.spaces.relaxed import ALPHAS, AUXILIARY, EDGES, RelaxedSpace, softmax

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Method:
    """How a search weighs candidates and derives an architecture; the defaults are DARTS.

    `parameters` are the architecture parameters by their names in a `RelaxedSpace`: `alphas.{key}`, and `edges.{key}` for
    the weights of edges.

    Attributes:
        name: of the method, for a run's record.
        relaxation: from alphas to mixing weights.
        mixed_op: returns what replaces a LayerChoice during a search; None keeps the choice.
        auxiliary: a skip connection beside the candidates of each choice, which fades.
        edge_weights: whether each edge has a weight of its own, a softmax over the edges of a node. Implements equation
            3 of arXiv 1907.05737 (edge normalisation). With alphas on the simplex, edges' weights are on it, too.
        penalty: a function of the alphas that is added to their loss.
        perturbation: changes the mixing weights in the weights' step.
        alpha_optimizer: steps the alphas; None leaves them to the optimiser of the run.
        hypergradient: what is made of the run's hypergradient; None takes it as it is.
        weight_rule: what becomes of the weights' gradients in their step; None takes them as they are.
        discretizer: from mixing weights to an architecture.
        frozen_epochs: epochs at the start that train the weights only: an integer is their number, a float below 1 is
            their share of all epochs, as in scikit-learn's `train_size`.
        one_level: whether a search step trains alphas and weights together, in one pass over the batches of both halves,
            with both gradients at the same point. There is then no held-out half, and nothing to unroll.
        trains: whether a search trains anything; a method without training (src/methods/random_search.py) is no `Method`.

    Raises:
        ConfigError: the choices cannot be combined.
    """

    name: str = "darts"
    relaxation: Relaxation = Softmax()
    mixed_op: MixedOp | None = None
    auxiliary: AuxiliarySkip | None = None
    edge_weights: bool = False
    penalty: Penalty | None = None
    perturbation: Perturbation | None = None
    alpha_optimizer: AlphaOptimizer | None = None
    hypergradient: AlphaGradientRule | None = None
    weight_rule: WeightRule | None = None
    discretizer: Discretizer = Strongest()
    frozen_epochs: int | float = 0
    one_level: bool = False
    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for slot, choice in vars(self).items():
            if slot != "name" and isinstance(choice, str):
                raise must_be(slot, "an object (on the command line, its class as _target_)", choice)
        if not (self.frozen_epochs >= 0 if isinstance(self.frozen_epochs, int) else 0 <= self.frozen_epochs < 1):
            allowed = "a number of epochs (an integer, 0 or more) or a share of them (below 1)"
            raise must_be("frozen_epochs", allowed, self.frozen_epochs)
        slots = ("penalty", "perturbation", "hypergradient", "alpha_optimizer", "discretizer")
        for slot, choice in ((slot, getattr(self, slot)) for slot in slots):
            fits = getattr(choice, "fits", None)  # a discretizer need not have it
            if choice is not None and fits is not None and self.relaxation.kind not in fits:
                raise ConfigError(
                    f"{slot} {_name(choice)} needs a relaxation of kind {' or '.join(sorted(fits))}, "
                    f"got {_name(self.relaxation)}, which is of kind {self.relaxation.kind}"
                )
        if self._on_simplex and self.alpha_optimizer is None:
            raise must_be(
                "alpha_optimizer",
                "ExponentiatedGradient, or another that keeps alphas on the simplex, with the relaxation "
                f"{_name(self.relaxation)}",
                None,
            )
        for slot in ("perturbation", "hypergradient", "weight_rule") if self.one_level else ():
            if getattr(self, slot) is not None:
                allowed = "null with one_level, where alphas and weights share one pass"
                raise must_be(slot, allowed, _name(getattr(self, slot)))
        if self.weight_rule is not None and self.weight_rule.needs_all_candidates and self.relaxation.one_path:
            raise ConfigError(
                f"weight_rule {_name(self.weight_rule)} needs a relaxation with which all candidates run, got "
                f"{_name(self.relaxation)}, which runs one of each choice"
            )
        discretizer = _name(self.discretizer)
        if self.edge_weights and not self.discretizer.ranks_by_edge_weights:
            raise must_be(
                "discretizer", "StrongestProduct, or another that ranks by edge weights, with edge_weights", discretizer
            )
        if self.discretizer.ranks_by_edge_weights and not self.edge_weights:
            raise must_be("edge_weights", f"true with the discretizer {discretizer}", self.edge_weights)

    def check_order(self, *, unrolls: bool) -> None:
        """Raise a `ConfigError` if the hypergradient is of an order that the relaxation has no gradient for."""
        if unrolls and not self.relaxation.second_order:
            raise ConfigError(
                f"order must be 1 with the relaxation {_name(self.relaxation)}, got 2: its mixing weights have no "
                "second derivative"
            )
        if unrolls and self.one_level:
            raise ConfigError(
                "order must be 1 with one_level, got 2: one loss trains alphas and weights, so nothing is unrolled"
            )

    def check_hypergradient(self, hypergradient: Hypergradient) -> None:
        """Raise a `ConfigError` if the method cannot be searched with a hypergradient."""
        self.check_order(unrolls=hypergradient.unrolls)
        if self.one_level and not getattr(hypergradient, "is_direct", False):
            raise must_be(
                "hypergradient",
                "first_order with one_level, which takes the gradient in its one pass",
                _name(hypergradient),
            )

    def check_epochs(self, epochs: int, parameters: Mapping[str, Tensor]) -> None:
        """Raise a `ConfigError` unless a search of so many epochs trains the alphas, with legal values in each epoch."""
        if self.frozen_of(epochs) >= epochs:
            raise must_be("frozen_epochs", f"less than the number of epochs ({epochs})", self.frozen_epochs)
        alphas, generator = _under(ALPHAS, parameters), torch.Generator()
        noise = self.relaxation.draw(alphas, generator)
        first = dict([*self.relaxation.expected(alphas).items()][:1])  # of which an ascent takes no time
        for epoch in range(epochs):
            progress = Progress(epoch, epochs)
            with _within("relaxation"):
                self.relaxation.mixing_weights(alphas, noise, progress)
            if self.auxiliary is not None:
                with _within("auxiliary"):
                    self.auxiliary.value(progress)
            if self.penalty is not None:
                with _within("penalty"):
                    self.penalty(alphas, progress)
            if self.weight_rule is not None:
                with _within("weight_rule"):
                    self.weight_rule.check(progress)
            if self.perturbation is not None:
                with _within("perturbation"):
                    self.perturbation(first, lambda rows: next(iter(rows.values())).sum(), progress, generator)

    def frozen_of(self, epochs: int) -> int:
        """Return how many epochs of a search train the weights only.

        A share is rounded to the nearest number of epochs that leaves one for the alphas.
        """
        if isinstance(self.frozen_epochs, int):
            return self.frozen_epochs
        return min(round(self.frozen_epochs * epochs), epochs - 1)

    def relax(self, space: torch.nn.Module, *, init_scale: float = 1e-3) -> RelaxedSpace:
        """Return the space with its alphas, with each LayerChoice replaced by its mixed operation; `space` is changed.

        Raises:
            ConfigError: the method cannot search this space.
        """
        net = RelaxedSpace(
            space,
            init_scale=init_scale,
            initial=getattr(self.relaxation, "initial", None),
            mixed_op=self.mixed_op,
            edge_weights=self.edge_weights,
        )
        if self.edge_weights and not len(net.edges):
            raise must_be("edge_weights", "false for a space without an InputChoice over edges", True)
        if self.auxiliary is not None:
            self.auxiliary.attach(net.space)
        return net

    def draw(self, parameters: Mapping[str, Tensor], generator: torch.Generator) -> Tensors:
        """Return the noise of one search step."""
        return self.relaxation.draw(_under(ALPHAS, parameters), generator)

    def mixing_weights(
        self, parameters: Mapping[str, Tensor], noise: Mapping[str, Tensor], progress: Progress
    ) -> Tensors:
        """Return the mixing weights of a pass in training, {key: (candidates,)}.

        Edges' weights are under their InputChoice, that of auxiliary skips under `AUXILIARY`.
        """
        alphas = self.relaxation.mixing_weights(_under(ALPHAS, parameters), noise, progress)
        return alphas | self._edge_weights(parameters) | self._of_auxiliary(parameters, progress)

    def _of_auxiliary(self, parameters: Mapping[str, Tensor], progress: Progress | None) -> Tensors:
        if self.auxiliary is None or progress is None:
            return {}
        return {AUXILIARY: next(iter(parameters.values())).new_full((), self.auxiliary.value(progress))}

    def expected(self, parameters: Mapping[str, Tensor]) -> Tensors:
        """Return the mixing weights without noise."""
        return self.relaxation.expected(_under(ALPHAS, parameters)) | self._edge_weights(parameters)

    def evaluated(self, parameters: Mapping[str, Tensor], progress: Progress | None = None) -> Tensors:
        """Return the mixing weights that a supernet is validated with: those without noise, or the likeliest path alone.

        Auxiliary skips are among them if there is a `progress`.
        """
        auxiliary = self._of_auxiliary(parameters, progress)
        if not self.relaxation.one_path:
            return self.expected(parameters) | auxiliary
        rows = self.relaxation.expected(_under(ALPHAS, parameters))
        paths = {key: torch.zeros_like(row).scatter_(0, row.argmax(0, keepdim=True), 1.0) for key, row in rows.items()}
        return paths | self._edge_weights(parameters) | auxiliary

    @property
    def _on_simplex(self) -> bool:
        return self.relaxation.kind == "simplex"

    def _edge_weights(self, parameters: Mapping[str, Tensor]) -> Tensors:
        """Return the weights of edges, {key of an InputChoice: (edges,)}."""
        edges = _under(EDGES, parameters)
        return edges if self._on_simplex else softmax(edges)

    @property
    def rule_means(self) -> tuple[str, ...]:
        """The names of values of the weight rule of which an epoch has the mean."""
        return () if self.weight_rule is None else self.weight_rule.means

    @property
    def rule_maxima(self) -> tuple[str, ...]:
        """The names of values of the weight rule of which an epoch has the largest."""
        return () if self.weight_rule is None else self.weight_rule.maxima

    def start_rule(self, net: RelaxedSpace) -> Rule:
        """Return the weight rule at work on a network.

        Raises:
            ConfigError: it has nothing to work on.
        """
        return Rule() if self.weight_rule is None else self.weight_rule.start(net)

    def alpha_gradient(self, hypergradient: Hypergradient, problem: Bilevel) -> AlphaGradient:
        """Return the alphas' gradient, without that of the penalty, given the hypergradient of the run."""
        return hypergradient(problem) if self.hypergradient is None else self.hypergradient(hypergradient, problem)

    def penalty_gradient(self, parameters: Mapping[str, Tensor], progress: Progress) -> Tensors:
        """Return the gradient of the penalty with respect to the alphas; empty without a penalty."""
        if self.penalty is None:
            return {}
        leaves = {
            name: value.detach().requires_grad_() for name, value in parameters.items() if name.startswith(ALPHAS)
        }
        value = self.penalty(_under(ALPHAS, leaves), progress)
        gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(leaves, gradients, strict=True))

    def weights_step_mixing(
        self,
        parameters: Mapping[str, Tensor],
        noise: Mapping[str, Tensor],
        progress: Progress,
        loss: Callable[[Tensors], Tensor],
        generator: torch.Generator,
    ) -> Tensors:
        """Return the mixing weights of the weights' step: those of the other passes, of which alphas' are perturbed.

        Args:
            parameters: without a graph.
            noise: of the search step.
            progress: of the search.
            loss: of the step's batch, as a function of the mixing weights.
            generator: in the same state on all processes.
        """
        mixing = self.mixing_weights(parameters, noise, progress)
        if self.perturbation is None:
            return mixing
        rows = {key: mixing[key] for key in _under(ALPHAS, parameters)}
        others = {key: row for key, row in mixing.items() if key not in rows}
        return self.perturbation(rows, lambda rows: loss({**rows, **others}), progress, generator) | others

    def derive(self, expected: MixingWeights, spec: Spec) -> Architecture:
        """Return the architecture."""
        return self.discretizer(expected, spec)

    def remark(self, expected: MixingWeights, spec: Spec) -> str | None:
        """Return what a user has to know of how the discretizer comes to the architecture, or None."""
        remark = getattr(self.discretizer, "remark", None)
        return None if remark is None else remark(expected, spec)


def _name(choice: object) -> str:
    return type(choice).__name__


@contextmanager
def _within(slot: str) -> Iterator[None]:
    """Put the slot before the names of arguments in a `ConfigError`."""
    try:
        yield
    except ConfigError as error:
        raise error.within(slot) from None


def _under(prefix: str, parameters: Mapping[str, Tensor]) -> Tensors:
    """Return the parameters whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}
