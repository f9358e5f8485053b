"""A method's search against its plain transcription, and bugs of published code put back."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from methods.plain import (
    HYPERGRADIENTS,
    Plain,
    PlainBeta,
    PlainGdas,
    PlainGdasPartialChannelsBeta,
    PlainPartialChannels,
    PlainRandomSmoothing,
    PlainRandomSmoothingPartialChannelsBeta,
    batches,
    difference,
    fit,
    search_module,
)
from methods.plain_darts_minus import (
    PlainDartsMinus,
    PlainDartsMinusGdas,
    PlainDartsMinusPartialChannels,
)
from methods.plain_drsnas import (
    PlainDirichlet,
    PlainDirichletDivergencePartialChannels,
    PlainGumbelSoft,
    PlainOneLevel,
    PlainSnas,
)
from methods.plain_fair_darts import PlainFairDarts, PlainFairDartsPartialChannels
from methods.plain_gaea import PlainGaea, PlainGaeaPartialChannelsRandomSmoothing
from methods.plain_weights import PlainAdversarial, PlainAlignment, PlainFlatMinimum, PlainStopping
from torch import Tensor

from methods import traps_weights
from src.fast.fused import FusedSupernet
from src.methods import perturbations
from src.methods.alpha_gradients import FlatMinimum
from src.methods.alpha_optimizers import ExponentiatedGradient, ExponentiatedGradientOptimizer
from src.methods.auxiliary import AuxiliarySkip
from src.methods.discretizers import StrongestProduct, Threshold
from src.methods.method import Method
from src.methods.mixed_ops import PartialChannels, PartialChoice
from src.methods.penalties import BetaDecay, DirichletDivergence, ZeroOne
from src.methods.perturbations import AdversarialSmoothing, RandomSmoothing
from src.methods.relaxations import Dirichlet, GumbelHard, GumbelSoft, Sigmoid, Simplex, concentration
from src.methods.schedules import Linear
from src.methods.weight_rules import LayerAlignment, OperationStopping
from src.spaces.choices import LayerChoice
from src.spaces.relaxed import RelaxedSpace
from src.training import search as search_step
from src.training.search import SearchModule

METHODS: dict[str, tuple[Method, type[Plain]]] = {
    "beta_darts": (Method(penalty=BetaDecay()), PlainBeta),
    "sdarts_rs": (Method(perturbation=RandomSmoothing()), PlainRandomSmoothing),
    "sdarts_adv": (Method(perturbation=AdversarialSmoothing()), PlainAdversarial),
    "a2m": (Method(hypergradient=FlatMinimum()), PlainFlatMinimum),
    "oles": (Method(weight_rule=OperationStopping(patience=0.0, every=2)), PlainStopping),
    "lambda_darts": (Method(weight_rule=LayerAlignment(weight=Linear(0.0, 1.0))), PlainAlignment),
    "gdas": (Method(relaxation=GumbelHard()), PlainGdas),
    "pc_darts": (
        Method(mixed_op=PartialChannels(k=2), edge_weights=True, discretizer=StrongestProduct(), frozen_epochs=1),
        PlainPartialChannels,
    ),
    "darts_minus": (Method(auxiliary=AuxiliarySkip()), PlainDartsMinus),
    "gdas and darts_minus": (Method(relaxation=GumbelHard(), auxiliary=AuxiliarySkip()), PlainDartsMinusGdas),
    "pc and darts_minus": (
        Method(
            mixed_op=PartialChannels(k=2),
            auxiliary=AuxiliarySkip(),
            edge_weights=True,
            discretizer=StrongestProduct(),
            frozen_epochs=1,
        ),
        PlainDartsMinusPartialChannels,
    ),
    "fair_darts": (Method(relaxation=Sigmoid(), penalty=ZeroOne(), discretizer=Threshold()), PlainFairDarts),
    "fair_darts and pc": (
        Method(
            relaxation=Sigmoid(),
            mixed_op=PartialChannels(k=2),
            edge_weights=True,
            penalty=ZeroOne(),
            discretizer=StrongestProduct(),
            frozen_epochs=1,
        ),
        PlainFairDartsPartialChannels,
    ),
    "gaea": (Method(relaxation=Simplex(), alpha_optimizer=ExponentiatedGradient()), PlainGaea),
    "gaea, pc and sdarts": (
        Method(
            relaxation=Simplex(),
            alpha_optimizer=ExponentiatedGradient(),
            mixed_op=PartialChannels(k=2),
            edge_weights=True,
            perturbation=RandomSmoothing(),
            discretizer=StrongestProduct(),
        ),
        PlainGaeaPartialChannelsRandomSmoothing,
    ),
    "one_level": (Method(one_level=True, frozen_epochs=1), PlainOneLevel),
    "snas": (Method(relaxation=GumbelSoft(), one_level=True), PlainSnas),
    "snas on two levels": (Method(relaxation=GumbelSoft()), PlainGumbelSoft),
    "drnas": (Method(relaxation=Dirichlet()), PlainDirichlet),
    "drnas, kl and pc": (
        Method(
            relaxation=Dirichlet(),
            penalty=DirichletDivergence(weight=0.5),
            mixed_op=PartialChannels(k=2),
            edge_weights=True,
            discretizer=StrongestProduct(),
            frozen_epochs=1,
        ),
        PlainDirichletDivergencePartialChannels,
    ),
    "gdas, pc and beta": (
        Method(
            relaxation=GumbelHard(),
            mixed_op=PartialChannels(k=2),
            edge_weights=True,
            penalty=BetaDecay(),
            discretizer=StrongestProduct(),
            frozen_epochs=1,
        ),
        PlainGdasPartialChannelsBeta,
    ),
    "sdarts, pc and beta": (
        Method(
            mixed_op=PartialChannels(k=2),
            edge_weights=True,
            penalty=BetaDecay(),
            perturbation=RandomSmoothing(),
            discretizer=StrongestProduct(),
            frozen_epochs=1,
        ),
        PlainRandomSmoothingPartialChannelsBeta,
    ),
}
ALONE = [name for name in METHODS if " " not in name]
ORDER_1_ONLY = ("gdas", "one_level", "snas")
LEGAL = [
    *((name, "first_order") for name in ALONE),
    *((name, "finite_difference") for name in ALONE if name not in ORDER_1_ONLY),
    ("sdarts_rs", "exact"),
    ("drnas", "exact"),
    ("drnas, kl and pc", "finite_difference"),
    ("snas on two levels", "finite_difference"),
    ("pc_darts", "exact"),
    ("gdas and darts_minus", "first_order"),
    ("pc and darts_minus", "finite_difference"),
    ("fair_darts", "exact"),
    ("fair_darts and pc", "first_order"),
    ("gaea", "exact"),
    ("gaea, pc and sdarts", "finite_difference"),
    ("gdas, pc and beta", "first_order"),
    ("sdarts, pc and beta", "finite_difference"),
]


def data_of(method: str) -> Any:
    return batches(1 if method == "a2m" else 2)  # a2m takes four hypergradients a step


@functools.cache  # several tests compare with it
def transcribed(method: str, hypergradient: str) -> RelaxedSpace:
    """Return what the plain algorithm makes of a search's first network."""
    kind, plain = METHODS[method]
    return plain(search_module(kind).net).run(data_of(method), hypergradient)


@pytest.mark.parametrize(("method", "hypergradient"), LEGAL)
def test_search_equals_the_plain_algorithm(method: str, hypergradient: str) -> None:
    search = search_module(METHODS[method][0], HYPERGRADIENTS[hypergradient])
    reference = transcribed(method, hypergradient)
    assert difference(fit(search, data_of(method)), reference) < 1e-9


@pytest.mark.parametrize("method", ALONE)
def test_the_fused_optimiser_takes_the_same_steps(method: str) -> None:
    search = search_module(METHODS[method][0], fused=True)
    reference = transcribed(method, "first_order")
    assert difference(fit(search, data_of(method)), reference) < 1e-9


@pytest.mark.parametrize(
    ("method", "hypergradient"), [*((name, "first_order") for name in METHODS), ("sdarts_rs", "finite_difference")]
)
def test_the_fused_form_takes_the_same_steps(method: str, hypergradient: str) -> None:
    search = search_module(METHODS[method][0], HYPERGRADIENTS[hypergradient], space=FusedSupernet)
    reference = transcribed(method, hypergradient)
    assert difference(fit(search, data_of(method)), reference) < 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_the_weights_step_leaves_the_alphas_alone(method: str) -> None:
    search = search_module(METHODS[method][0])
    (weight_optimizer, _), _ = search.configure_optimizers()
    before = {name: vector.clone() for name, vector in search.alphas().items()}
    batch = batches(1)[0]
    search.step_weights(batch["weights"], weight_optimizer, arch=batch["arch"])
    assert all(torch.equal(vector, before[name]) for name, vector in search.alphas().items())


# Each of these bugs was, or still is, in a published implementation, or is easily made. Each replaces a piece of the code.


def _no_penalty_in_the_unrolled_step(patch: pytest.MonkeyPatch) -> None:
    """As in Beta-DARTS' own code."""
    original = SearchModule.step_alphas

    def step_alphas(self: Any, *arguments: Any) -> Any:
        if self.hypergradient.unrolls:
            self.method = Method()
        return original(self, *arguments)

    patch.setattr(SearchModule, "step_alphas", step_alphas)


def _penalty_summed_over_edges(patch: pytest.MonkeyPatch) -> None:
    original = Method.penalty_gradient
    patch.setattr(
        Method,
        "penalty_gradient",
        lambda self, alphas, progress: {k: len(alphas) * g for k, g in original(self, alphas, progress).items()},
    )


def _raw_alphas_perturbed(patch: pytest.MonkeyPatch) -> None:
    """As in confopt: noise on the alphas, which are clipped and normalised, and then go through the softmax."""
    smooth = RandomSmoothing.__call__
    patch.setattr(
        RandomSmoothing,
        "__call__",
        lambda self, mixing, *rest: {
            k: row.softmax(0) for k, row in smooth(self, {k: row.log() for k, row in mixing.items()}, *rest).items()
        },
    )


def _perturbed_alphas_written_back(patch: pytest.MonkeyPatch) -> None:
    """As in confopt."""
    original = SearchModule._weights_step_mixing

    def mixing(self: Any, batch: Any) -> Any:
        result = original(self, batch)
        with torch.no_grad():
            for key, row in result.items():
                self.net.alphas[key].copy_(row)
        return result

    patch.setattr(SearchModule, "_weights_step_mixing", mixing)


def _alphas_step_perturbed(patch: pytest.MonkeyPatch) -> None:
    original = Method.mixing_weights

    def mixing_weights(self: Any, parameters: Any, noise: Any, progress: Any) -> Any:
        rows = original(self, parameters, noise, progress)
        offsets = perturbations.project({key: row.detach() + 0.03 * row.argsort() for key, row in rows.items()})
        return {key: row - row.detach() + offsets[key] for key, row in rows.items()}

    patch.setattr(Method, "mixing_weights", mixing_weights)


def _sampled_weights_as_zero_scalars(patch: pytest.MonkeyPatch) -> None:
    """GDAS' code for NAS-Bench-201: a gradient flows into the weights of candidates that were not drawn."""

    def forward(self: Any, x: Tensor) -> Tensor:
        outputs = [
            weight * operation(x) if place == self.path else weight
            for place, (weight, operation) in enumerate(zip(self.weights, self.candidates.values(), strict=True))
        ]
        return torch.stack(torch.broadcast_tensors(*outputs)).sum(0)

    patch.setattr(LayerChoice, "forward", forward)


def _the_weights_step_draws_anew(patch: pytest.MonkeyPatch) -> None:
    """As in GDAS' own code: the weights' step trains another path than the alphas' step has measured."""
    original = SearchModule._weights_step_mixing

    def mixing(self: Any, batch: Any) -> Any:
        self._noise = lambda: self.method.draw(self.alphas(), self._generator("another"))
        try:
            return original(self, batch)
        finally:
            del self._noise

    patch.setattr(SearchModule, "_weights_step_mixing", mixing)


def _undrawn_weights_have_gradient_zero(patch: pytest.MonkeyPatch) -> None:
    """Weight decay and momentum would go on moving them."""
    original = SearchModule.average_step
    patch.setattr(
        SearchModule,
        "average_step",
        lambda self, weights, gradients: original(
            self, weights, [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)]
        ),
    )


def _channels_not_shuffled(patch: pytest.MonkeyPatch) -> None:
    original = PartialChoice.forward
    patch.setattr(
        PartialChoice,
        "forward",
        lambda self, x: original(self, x).unflatten(1, (-1, self.k)).transpose(1, 2).flatten(1, 2),
    )


def _never_frozen(patch: pytest.MonkeyPatch) -> None:
    original = SearchModule.training_step

    def training_step(self: Any, *arguments: Any) -> Any:
        self.method = Method(**{**vars(self.method), "frozen_epochs": 0})
        return original(self, *arguments)

    patch.setattr(SearchModule, "training_step", training_step)


def _edge_weights_over_the_whole_cell(patch: pytest.MonkeyPatch) -> None:
    """Edges compete within a node, not within a cell."""
    original = Method.mixing_weights

    def mixing_weights(self: Any, parameters: Any, noise: Any, progress: Any) -> Any:
        rows = original(self, parameters, noise, progress)
        edges = [name.removeprefix("edges.") for name in parameters if name.startswith("edges.")]
        return rows | {key: rows[key] / len(edges) for key in edges}

    patch.setattr(Method, "mixing_weights", mixing_weights)


def _auxiliary_never_fades(patch: pytest.MonkeyPatch) -> None:
    """The default of DARTS-' own code."""
    patch.setattr(AuxiliarySkip, "value", lambda self, progress: 1.0)


def _auxiliary_shares_the_weights_of_the_candidate(patch: pytest.MonkeyPatch) -> None:
    original = LayerChoice._with_auxiliary

    def with_auxiliary(self: Any, total: Tensor, *inputs: Tensor) -> Tensor:
        self.auxiliary = self.candidates[self.auxiliary_of]
        return original(self, total, *inputs)

    patch.setattr(LayerChoice, "_with_auxiliary", with_auxiliary)


def _auxiliary_in_the_weights_step_only(patch: pytest.MonkeyPatch) -> None:
    original = SearchModule.step_alphas

    def step_alphas(self: Any, *arguments: Any) -> Any:
        method, self.method = self.method, Method()
        try:
            return original(self, *arguments)
        finally:
            self.method = method

    patch.setattr(SearchModule, "step_alphas", step_alphas)


def _a_softmax_of_the_rows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Simplex, "expected", lambda self, rows: {key: row.softmax(0) for key, row in rows.items()})


def _sum_of_the_penalty_of_each_edge(patch: pytest.MonkeyPatch) -> None:
    """The mean is over all alphas, however many edges there are."""
    original = ZeroOne.__call__
    patch.setattr(
        ZeroOne, "__call__", lambda self, alphas, p: sum(original(self, {k: a}, p) for k, a in alphas.items())
    )


def _a_softmax_in_place_of_sigmoids(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sigmoid, "expected", lambda self, alphas: {key: a.softmax(0) for key, a in alphas.items()})


def _edge_weights_are_logits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Method, "_on_simplex", False)


def _a_gradient_step_on_the_simplex(patch: pytest.MonkeyPatch) -> None:
    """The `gd` of GAEA's own code: p - lr g, which is not what its name says."""

    def step(self: Any, closure: Any = None) -> None:
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                moved = (p - 0.1 * p.grad).clamp_min(1e-5)
                p.copy_(moved / moved.sum())

    patch.setattr(ExponentiatedGradientOptimizer, "step", step)


def _new_alphas_for_the_weights(patch: pytest.MonkeyPatch) -> None:
    """The alphas step first, and the weights' gradient is taken after that."""

    def together(self: Any, batch: Any, weight_optimizer: Any, alpha_optimizer: Any) -> Any:
        joined = search_step._joined(batch)
        self.step_alphas(batch, weight_optimizer.optimizer, alpha_optimizer)
        return (None, *self.step_weights(joined, weight_optimizer), joined[1], {})

    patch.setattr(SearchModule, "_step_together", together)


def _the_noise_of_the_first_step(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SearchModule, "_generator", lambda self, purpose: torch.Generator().manual_seed(0))


def _the_mean_of_the_draws(patch: pytest.MonkeyPatch) -> None:
    """Without a draw, DrNAS is DARTS with another softmax."""

    def mean(self: Any, alphas: Any, *_: Any) -> Any:
        return {key: concentration(alpha) / concentration(alpha).sum() for key, alpha in alphas.items()}

    patch.setattr(Dirichlet, "mixing_weights", mean)


def _alphas_see_one_half(patch: pytest.MonkeyPatch) -> None:
    original = SearchModule.gradients_together

    def together(self: Any, batch: Any, noise: Any) -> Any:
        of_weights = original(self, batch, noise)[1]
        before = copy.deepcopy(self.net.state_dict())
        of_alphas = original(self, tuple(tensor.chunk(2)[1] for tensor in batch), noise)[0]
        self.net.load_state_dict(before)
        return of_alphas, of_weights

    patch.setattr(SearchModule, "gradients_together", together)


TRAPS = {
    "darts_minus": (
        _auxiliary_never_fades,
        _auxiliary_shares_the_weights_of_the_candidate,
        _auxiliary_in_the_weights_step_only,
    ),
    "one_level": (_new_alphas_for_the_weights, _alphas_see_one_half),
    "snas": (_the_noise_of_the_first_step,),
    "drnas": (_the_weights_step_draws_anew, _the_mean_of_the_draws),
    "beta_darts": (_no_penalty_in_the_unrolled_step, _penalty_summed_over_edges),
    "sdarts_rs": (_raw_alphas_perturbed, _perturbed_alphas_written_back, _alphas_step_perturbed),
    "sdarts_adv": (*traps_weights.SDARTS_ADV, _perturbed_alphas_written_back),
    "a2m": traps_weights.A2M,
    "oles": (*traps_weights.OLES, *traps_weights.OLES_UNROLLED),
    "lambda_darts": traps_weights.LAMBDA_DARTS,
    "gdas": (_sampled_weights_as_zero_scalars, _the_weights_step_draws_anew, _undrawn_weights_have_gradient_zero),
    "fair_darts": (_sum_of_the_penalty_of_each_edge, _a_softmax_in_place_of_sigmoids),
    "gaea": (_a_softmax_of_the_rows, _a_gradient_step_on_the_simplex),
    "gaea, pc and sdarts": (_edge_weights_are_logits,),
    "pc_darts": (_channels_not_shuffled, _never_frozen, _edge_weights_over_the_whole_cell),
}


@pytest.mark.parametrize(
    ("method", "trap"),
    [pytest.param(method, trap, id=trap.__name__.strip("_")) for method, traps in TRAPS.items() for trap in traps],
)
def test_known_bugs_are_noticed(method: str, trap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    unrolled = (_no_penalty_in_the_unrolled_step, *traps_weights.OLES_UNROLLED)
    hypergradient = "exact" if trap in unrolled else "first_order"
    search = search_module(METHODS[method][0], HYPERGRADIENTS[hypergradient])
    reference = transcribed(method, hypergradient)
    with monkeypatch.context() as patch:
        trap(patch)
        found = difference(fit(search, data_of(method)), reference)
    assert found > 1e-6
