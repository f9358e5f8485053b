"""Selection by perturbation, worked by hand on a supernet whose accuracy is a function of its mixing weights."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from src.architectures.architecture import InputSpec, LayerSpec, Spec
from src.common.errors import ConfigError
from src.methods.discretizers import StrongestProduct
from src.methods.method import Method
from src.methods.perturbations import RandomSmoothing
from src.methods.relaxations import GumbelHard
from src.methods.schedules import Progress
from src.methods.selection import Selecting, Selection, check_method
from src.spaces.cnn.genotypes import cell_spec

# Of three edges, a node keeps one; of two inputs that are no edges, another keeps one.
SPEC: Spec = {
    "a": LayerSpec(("conv", "pool")),
    "b": LayerSpec(("conv", "pool")),
    "c": LayerSpec(("conv",)),
    "node": InputSpec(("a", "b", "c"), 1),
    "read": InputSpec(("early", "late"), 1),
}
NAMES = {
    "a": ("none", "conv", "pool"),
    "b": ("none", "conv", "pool"),
    "c": ("conv",),
    "read": ("early", "late"),
}
ROWS = {
    "a": torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
    "b": torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64),
    "c": torch.tensor([1.0]),
    "read": torch.tensor([0.6, 0.4], dtype=torch.float64),
}
# What each unit of mixing weight adds to the accuracy.
WORTH = {
    "a": torch.tensor([0.9, 0.1, 0.2]),
    "b": torch.tensor([0.9, 0.3, 0.1]),
    "c": torch.tensor([0.15]),
    "read": torch.tensor([0.1, 0.4]),
}


def accuracy(rows: Mapping[str, Tensor]) -> float:
    return float(sum((rows[key] * WORTH[key]).sum() for key in WORTH))


def decided(selection: Selection, score: object = accuracy) -> dict[str, tuple[str, ...]]:
    while selection.rounds_done < selection.rounds:
        selection.decide(ROWS, score)  # pyright: ignore[reportArgumentType]
    return {decision.key: decision.kept for decision in selection.decisions}


def test_by_hand() -> None:
    """Row a: conv adds .5 * .1 = .05, pool .3 * .2 = .06, so pool stays though it weighs less. Row b: conv .2 * .3 = .06,
    pool .3 * .1 = .03. Then the edges weigh 1: a adds .2, b .3, c .15, so c goes first, then a. Of the inputs, early adds
    .6 * .1 = .06 and late .4 * .4 = .16.
    """
    selection = Selection(SPEC, NAMES, seed=0)
    assert selection.rounds == 4  # c has nothing to choose
    assert decided(selection) == {"a": ("pool",), "b": ("conv",), "node": ("b",), "read": ("late",)}
    assert {decision.key for decision in selection.decisions[:2]} == {"a", "b"}
    by_key = {decision.key: decision for decision in selection.decisions}
    # Nothing is made to add up to 1 again: without one option the others weigh what they did.
    for key, difference in (("a", 0.06 - 0.05), ("b", 0.03 - 0.06)):
        (scores,) = by_key[key].scores
        assert scores["conv"] - scores["pool"] == pytest.approx(difference)
    assert by_key["node"].dropped == ("c", "a")
    first, second = by_key["node"].scores
    assert first["a"] - first["b"] == pytest.approx(0.3 - 0.2)
    assert second["b"] - second["a"] == pytest.approx(0.2 - 0.3)
    assert set(second) == {"a", "b"}
    assert selection.apply(ROWS)["read"].tolist() == [0.0, 1.0]
    assert [selection.apply(ROWS)[key].tolist() for key in "abc"] == [[0, 0, 0], [0, 1, 0], [0]]
    expected = {key: dict(zip(NAMES[key], row.tolist(), strict=True)) for key, row in ROWS.items()}
    choices = selection.architecture(expected).choices
    assert choices == {"a": None, "b": "conv", "c": None, "node": ("b",), "read": ("late",)}


def test_a_loss_is_better_when_it_is_lower() -> None:
    selection = Selection(SPEC, NAMES, higher_is_better=False)
    assert decided(selection, lambda rows: -accuracy(rows)) == decided(Selection(SPEC, NAMES))


def test_of_equals_the_first_operation_stays_and_the_last_input_goes() -> None:
    selection = Selection(SPEC, NAMES)
    assert decided(selection, lambda rows: 0.5) == {
        "a": ("conv",), "b": ("conv",), "node": ("a",), "read": ("early",)
    }  # fmt: skip
    assert {decision.key: decision.dropped for decision in selection.decisions}["node"] == ("c", "b")


def test_a_decision_counts_in_the_next_score() -> None:
    """Both edges decide in one round, a cell each: the second one sees the row of the first."""
    spec = cell_spec(2, ("max_pool_3x3", "skip_connect"))
    names = {key: rule.candidates for key, rule in spec.items() if isinstance(rule, LayerSpec)}
    rows = {key: torch.tensor([0.5, 0.5]) for key in names}
    selection = Selection(spec, names, seed=3)
    seen: list[dict[str, Tensor]] = []
    selection.decide(rows, lambda rows: seen.append(rows) or 0.0)  # pyright: ignore[reportArgumentType]
    normal, reduce = selection.decisions
    assert (normal.round, reduce.round) == (0, 0)
    assert normal.key.startswith("normal")
    assert reduce.key.startswith("reduce")
    assert [rows[normal.key].tolist() for rows in seen] == [[0, 0.5], [0.5, 0], [1, 0], [1, 0]]
    assert selection.rounds == 5 + 1  # five edges; of the nodes, the second one drops one of three


def test_the_order_is_random_and_a_function_of_the_seed() -> None:
    spec = cell_spec(4)
    names = {key: rule.candidates for key, rule in spec.items() if isinstance(rule, LayerSpec)}
    rows = {key: torch.full((7,), 1 / 7) for key in names}
    assert Selection(spec, names).rounds == 14 + 3

    def order(seed: int) -> list[str]:
        selection = Selection(spec, names, seed=seed)
        for _ in range(selection.rounds):
            selection.decide(rows, lambda rows: 0.0)
        return [decision.key for decision in selection.decisions]

    assert order(0) == order(0)
    assert len({tuple(order(seed)) for seed in range(4)}) == 4
    assert sorted(order(0)) == sorted(order(1))


def test_state_goes_on_with_the_same_decisions() -> None:
    straight, first = Selection(SPEC, NAMES, seed=2), Selection(SPEC, NAMES, seed=2)
    decided(straight)
    first.decide(ROWS, accuracy)
    second = Selection(SPEC, NAMES, seed=2)
    second.load_state_dict(first.state_dict())
    decided(second)
    assert second.decisions == straight.decisions
    assert second.kept == straight.kept


def test_an_edge_into_two_nodes_is_dropped_from_each_by_itself() -> None:
    spec: Spec = {
        "a": LayerSpec(("conv",)),
        "b": LayerSpec(("conv",)),
        "first": InputSpec(("a", "b"), 1),
        "second": InputSpec(("a", "b"), 1),
    }
    rows = {"a": torch.ones(1), "b": torch.ones(1)}

    def score(rows: Mapping[str, Tensor]) -> float:
        """The first node needs a, the second one b."""
        one = torch.ones(2)
        return float(rows.get("first", one)[0] + rows.get("second", one)[1] + rows["a"] + rows["b"])

    selection = Selection(spec, {"a": ("conv",), "b": ("conv",)})
    for _ in range(selection.rounds):
        selection.decide(rows, score)
    assert (selection.kept["first"], selection.kept["second"]) == (("a",), ("b",))
    applied = selection.apply(rows)
    assert [applied[key].tolist() for key in ("a", "b", "first", "second")] == [[1], [1], [1, 0], [0, 1]]
    answers = selection.architecture({"a": {"conv": 1.0}, "b": {"conv": 1.0}}).choices
    assert answers == {"a": "conv", "b": "conv", "first": ("a",), "second": ("b",)}


def test_what_is_decided_has_no_gradient_and_is_not_perturbed() -> None:
    selection = Selection({"a": SPEC["a"], "b": SPEC["b"]}, {"a": ("conv", "pool"), "b": ("conv", "pool")})
    alphas = {f"alphas.{key}": torch.randn(2, generator=torch.Generator().manual_seed(0)) for key in "ab"}
    method = Selecting.of(Method(perturbation=RandomSmoothing(0.3)), selection)
    selection.decide(method.undecided(alphas), lambda rows: float(rows["a"][0] - rows["b"][0]))
    (decision,) = selection.decisions
    other = "b" if decision.key == "a" else "a"
    leaves = {name: alpha.requires_grad_() for name, alpha in alphas.items()}
    rows = method.mixing_weights(leaves, {}, Progress(0, 1))
    of_decided, of_other = torch.autograd.grad(
        (rows["a"] * torch.tensor([1.0, 2.0])).sum() + (rows["b"] * torch.tensor([1.0, 2.0])).sum(),
        [leaves[f"alphas.{decision.key}"], leaves[f"alphas.{other}"]],
    )
    assert of_decided.tolist() == [0, 0]
    assert of_other.abs().sum() > 0
    generator = torch.Generator().manual_seed(0)
    detached = {name: alpha.detach() for name, alpha in alphas.items()}
    perturbed = method.weights_step_mixing(detached, {}, Progress(0, 1), lambda rows: torch.zeros(()), generator)
    assert sorted(perturbed[decision.key].tolist()) == [0, 1]
    assert not torch.equal(perturbed[other], method.expected(detached)[other])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Method(relaxation=GumbelHard()), "got GumbelHard, which is of kind gumbel"),
        (Method(edge_weights=True, discretizer=StrongestProduct()), "edge_weights must be false in a search"),
    ],
)
def test_methods_that_it_means_nothing_for(method: Method, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_method(method)
