"""Which choices go together (the table of legal combinations), and what the others are told."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from methods.plain import TASK, fit
from spaces.test_choices import Perceptron

from src.bilevel.hypergradient import Exact, FiniteDifference, FirstOrder, Hypergradient
from src.common.errors import ConfigError
from src.methods.alpha_optimizers import ExponentiatedGradient
from src.methods.discretizers import Strongest, StrongestProduct, Threshold
from src.methods.method import Method
from src.methods.mixed_ops import PartialChannels
from src.methods.penalties import BetaDecay, ZeroOne
from src.methods.perturbations import RandomSmoothing
from src.methods.relaxations import GumbelHard, Sigmoid, Simplex, Softmax
from src.methods.schedules import Linear, Progress
from src.training.search import SearchModule


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({}, None),
        ({"penalty": BetaDecay()}, None),
        ({"relaxation": GumbelHard(), "penalty": BetaDecay()}, None),
        ({"perturbation": RandomSmoothing()}, None),
        ({"relaxation": GumbelHard(), "mixed_op": PartialChannels()}, None),
        ({"relaxation": Sigmoid(), "mixed_op": PartialChannels()}, None),
        ({"relaxation": Sigmoid(), "penalty": ZeroOne(), "discretizer": Threshold()}, None),
        ({"relaxation": Sigmoid(), "edge_weights": True, "discretizer": StrongestProduct()}, None),
        (
            {"penalty": ZeroOne()},
            "penalty ZeroOne needs a relaxation of kind sigmoid, got Softmax, which is of kind softmax",
        ),
        (
            {"discretizer": Threshold()},
            "discretizer Threshold needs a relaxation of kind sigmoid, got Softmax, which is of kind softmax",
        ),
        (
            {"relaxation": Sigmoid(), "perturbation": RandomSmoothing()},
            "perturbation RandomSmoothing needs a relaxation of kind simplex or softmax, got Sigmoid, which is of kind "
            "sigmoid",
        ),
        ({"edge_weights": True, "discretizer": StrongestProduct()}, None),
        (
            {"relaxation": Sigmoid(), "penalty": BetaDecay()},
            "penalty BetaDecay needs a relaxation of kind gumbel or gumbel_soft or softmax, got Sigmoid, which is of kind sigmoid",
        ),
        (
            {"relaxation": GumbelHard(), "perturbation": RandomSmoothing()},
            "perturbation RandomSmoothing needs a relaxation of kind simplex or softmax, got GumbelHard, which is of "
            "kind gumbel",
        ),
        (
            {"relaxation": Simplex(), "alpha_optimizer": ExponentiatedGradient(), "perturbation": RandomSmoothing()},
            None,
        ),
        (
            {"relaxation": Simplex()},
            "alpha_optimizer must be ExponentiatedGradient, or another that keeps alphas on the simplex, with the "
            "relaxation Simplex, got None",
        ),
        (
            {"alpha_optimizer": ExponentiatedGradient()},
            "alpha_optimizer ExponentiatedGradient needs a relaxation of kind simplex, got Softmax, which is of kind "
            "softmax",
        ),
        (
            {"relaxation": Simplex(), "alpha_optimizer": ExponentiatedGradient(), "penalty": BetaDecay()},
            "penalty BetaDecay needs a relaxation of kind gumbel or gumbel_soft or softmax, got Simplex, which is of kind simplex",
        ),
        (
            {"edge_weights": True},
            "discretizer must be StrongestProduct, or another that ranks by edge weights, with edge_weights, got Strongest",
        ),
        (
            {"discretizer": StrongestProduct()},
            "edge_weights must be true with the discretizer StrongestProduct, got False",
        ),
        ({"one_level": True, "relaxation": GumbelHard(), "penalty": BetaDecay(), "frozen_epochs": 0.5}, None),
        (
            {"one_level": True, "perturbation": RandomSmoothing()},
            "perturbation must be null with one_level, where alphas and weights share one pass, got RandomSmoothing",
        ),
        *(
            (
                {"frozen_epochs": value},
                "frozen_epochs must be a number of epochs (an integer, 0 or more) or a share of them (below 1), "
                f"got {value}",
            )
            for value in (-1, -0.1, 1.0, float("nan"))
        ),
    ],
)
def test_which_choices_go_together(choices: dict[str, Any], message: str | None) -> None:
    if message is None:
        Method(**choices)
        return
    with pytest.raises(ConfigError) as error:
        Method(**choices)
    assert str(error.value) == message


def test_orders() -> None:
    for relaxation in (Softmax(), GumbelHard()):
        Method(relaxation=relaxation).check_order(unrolls=False)
    Method().check_order(unrolls=True)
    with pytest.raises(ConfigError, match=r"^order must be 1 with the relaxation GumbelHard, got 2: "):
        Method(relaxation=GumbelHard()).check_order(unrolls=True)


def test_one_level_takes_the_first_order_alone() -> None:
    class Own(FirstOrder):
        is_direct: ClassVar[bool] = False  # such as one that adds noise

    method = Method(one_level=True)
    method.check_hypergradient(FirstOrder())
    Method().check_hypergradient(Own())
    for hypergradient in (FiniteDifference(), Exact()):
        with pytest.raises(ConfigError, match=r"^order must be 1 with one_level, got 2: one loss trains"):
            method.check_hypergradient(hypergradient)
    with pytest.raises(ConfigError, match=r"^hypergradient must be first_order with one_level, .* got Own$"):
        method.check_hypergradient(Own())


@pytest.mark.parametrize(
    ("choices", "epochs", "message"),
    [
        ({"frozen_epochs": 2}, 3, None),
        ({"frozen_epochs": 3}, 3, r"frozen_epochs must be less than the number of epochs \(3\), got 3"),
        ({"relaxation": GumbelHard(temperature=Linear(1.0, 0.0))}, 1, None),  # the first epoch is the only one
        (
            {"relaxation": GumbelHard(temperature=Linear(1.0, 0.0))},
            3,
            r"relaxation\.temperature must be above 0 in every epoch, got 0 in epoch 2",
        ),
        (
            {"perturbation": RandomSmoothing(radius=Linear(0.1, -0.1))},
            3,
            r"perturbation\.radius must be 0 or more in every epoch, got -0\.1 in epoch 2",
        ),
    ],
)
def test_what_goes_with_a_number_of_epochs(choices: dict[str, Any], epochs: int, message: str | None) -> None:
    method, parameters = Method(**choices), {"alphas.edge": torch.zeros(3), "edges.node": torch.zeros(2)}
    if message is None:
        method.check_epochs(epochs, parameters)
        return
    with pytest.raises(ConfigError, match=f"^{message}$"):
        method.check_epochs(epochs, parameters)


@pytest.mark.parametrize(
    ("frozen_epochs", "epochs", "expected"),
    [
        (0, 50, 0), (15, 50, 15), (0.0, 50, 0), (0.3, 50, 15), (0.3, 24, 7), (0.3, 6, 2), (0.29, 100, 29), (0.3, 1, 0),
        (0.99, 6, 5), (0.99, 1, 0),
    ],
)  # fmt: skip
def test_frozen_epochs_are_a_number_or_a_share(frozen_epochs: float, epochs: int, expected: int) -> None:
    method = Method(frozen_epochs=frozen_epochs)
    assert method.frozen_of(epochs) == expected
    method.check_epochs(epochs, {"alphas.edge": torch.zeros(3)})


def test_a_space_of_ones_own() -> None:
    """Keys that are shared, and inputs with alphas: all slots but those that need a width, or edges."""
    x, progress = torch.randn(4, 6), Progress(0, 2)
    for method in (
        Method(penalty=BetaDecay(weight=1.0)),
        Method(perturbation=RandomSmoothing(radius=0.1)),
        Method(relaxation=GumbelHard()),
    ):
        net = method.relax(Perceptron())
        parameters: dict[str, torch.Tensor] = {k: p for k, p in net.named_parameters() if k.startswith("alphas.")}
        noise = method.draw(parameters, torch.Generator())
        rows = method.weights_step_mixing(parameters, noise, progress, lambda rows: x.sum(), torch.Generator())
        assert {key: row.shape for key, row in rows.items()} == {"twins": (2,), "third": (2,), "read": (3,)}
        assert net(x, mixing=rows, one_path=method.relaxation.one_path).shape == (4, 3)
        assert net(x, mixing=method.evaluated(parameters), one_path=method.relaxation.one_path).shape == (4, 3)
        architecture = method.derive(net.by_name(method.expected(parameters)), net.spec)
        assert set(architecture.choices) == {"twins", "third", "read"}
    with pytest.raises(ConfigError, match=r"needs choices made by LayerChoice\.of_width, 'twins' has a fixed width$"):
        Method(mixed_op=PartialChannels()).relax(Perceptron())
    with pytest.raises(ConfigError, match=r"^edge_weights must be false for a space without an InputChoice over edges"):
        Method(edge_weights=True, discretizer=StrongestProduct()).relax(Perceptron())


@pytest.mark.parametrize(
    ("method", "hypergradient"),
    [
        (Method(penalty=BetaDecay()), FiniteDifference()),
        (Method(perturbation=RandomSmoothing()), Exact()),
        (Method(relaxation=GumbelHard()), FirstOrder()),
        (Method(relaxation=Sigmoid(), penalty=ZeroOne(), discretizer=Threshold()), Exact()),
        (Method(relaxation=Simplex(), alpha_optimizer=ExponentiatedGradient()), FiniteDifference()),
    ],
    ids=["beta_darts", "sdarts_rs", "gdas", "fair_darts", "gaea"],
)
def test_a_search_of_a_space_of_ones_own(method: Method, hypergradient: Hypergradient) -> None:
    torch.manual_seed(0)
    search = SearchModule(
        Perceptron(),
        task=TASK,
        hypergradient=hypergradient,
        method=method,
        weight_optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True),
        alpha_optimizer=partial(torch.optim.Adam, lr=0.1),
        weight_scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=2),
    )
    before = {name: tensor.clone() for name, tensor in (search.weights() | search.alphas()).items()}
    x = torch.randn(9, 6, dtype=torch.float64)
    batch = x, x[:, :3].argmax(1)
    fit(search, [{"weights": batch, "arch": batch}] * 6, epochs=2)
    after = search.weights() | search.alphas()
    unmoved = [name for name in before if torch.equal(after[name].float(), before[name])]
    # A sampled path need not reach every candidate.
    assert [name for name in unmoved if not (method.relaxation.one_path and ".candidates." in name)] == []
    assert all(bool(tensor.isfinite().all()) for tensor in after.values())


def test_a_sampled_network_is_validated_by_its_likeliest_path() -> None:
    parameters = {"alphas.edge": torch.tensor([0.0, 2.0, 1.0]), "edges.node": torch.tensor([0.0, 1.0])}
    rows = Method(relaxation=GumbelHard()).evaluated(parameters)
    assert rows["edge"].tolist() == [0.0, 1.0, 0.0]
    assert torch.equal(rows["node"], parameters["edges.node"].softmax(0))
    assert torch.equal(Method().evaluated(parameters)["edge"], parameters["alphas.edge"].softmax(0))


def test_edges_weights_are_not_perturbed() -> None:
    method = Method(edge_weights=True, discretizer=StrongestProduct(), perturbation=RandomSmoothing(radius=0.3))
    parameters = {"alphas.edge": torch.tensor([0.0, 2.0, 1.0]), "edges.node": torch.tensor([0.0, 1.0])}
    rows = method.weights_step_mixing(
        parameters, {}, Progress(0, 1), lambda rows: torch.zeros(()), torch.Generator().manual_seed(0)
    )
    assert torch.equal(rows["node"], parameters["edges.node"].softmax(0))
    assert not torch.allclose(rows["edge"], parameters["alphas.edge"].softmax(0))
    assert Strongest.ranks_by_edge_weights is False
