"""Weight rules by hand: cosines of operations, and the alignment of cells on losses whose derivatives are known."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from methods.plain import batches, search_module
from torch import Tensor, nn
from torch.nn import functional as F

from src.common.errors import ConfigError
from src.methods.method import Method
from src.methods.relaxations import GumbelHard
from src.methods.schedules import Progress
from src.methods.weight_rules import LayerAlignment, OperationStopping, Rule, WeightsPoint, alignment, repeated
from src.spaces.choices import InputChoice, LayerChoice
from src.spaces.cnn.cells import Supernet
from src.spaces.relaxed import RelaxedSpace

SECOND = Progress(1, 2)


class Linears(nn.Module):
    """A stem, and two linear candidates at each of two places; `skip` has no weights."""

    def __init__(self, keys: tuple[str, ...] = ("one", "two")) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.places = nn.ModuleList(
            LayerChoice({"linear": nn.Linear(2, 2), "skip": nn.Identity()}, key=key) for key in keys
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for place in self.places:
            x = place(x)
        return x


def stopping(patience: float = 0.4, every: int = 2) -> Any:
    return OperationStopping(patience, every).start(RelaxedSpace(Linears()))


def point(others: list[Tensor | None]) -> WeightsPoint:
    def unused(rows: dict[str, Tensor]) -> list[Tensor | None]:
        raise AssertionError

    return WeightsPoint({}, {}, unused, lambda: others, SECOND)


# The stem's two tensors, then weight and bias of "one" and of "two".
STEM: list[Tensor | None] = [torch.ones(2, 2), torch.ones(2)]
ONES: list[Tensor | None] = [torch.ones(2, 2), torch.ones(2)]
TURNED: list[Tensor | None] = [torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([1.0, -1.0])]  # cosines 1/2 and 0


def test_an_operation_is_frozen_by_its_mean_cosine() -> None:
    """`one`: (1/2 + 0) / 2 = 1/4 and then 1, so 5/8 over two steps; `two`: 1/4 and 1/4."""
    rule = stopping(patience=0.4)
    first = rule([*STEM, *ONES, *ONES], point([*STEM, *TURNED, *TURNED]))
    assert all(g is not None for g in first)
    assert rule.sums.tolist() == [0.25, 0.25]
    second = rule([*STEM, *ONES, *ONES], point([*STEM, *ONES, *TURNED]))
    assert [g is None for g in second] == [False, False, False, False, True, True]
    assert rule.frozen == {"space.places.1.candidates.linear.weight", "space.places.1.candidates.linear.bias"}
    assert rule.values()["frozen_operations"] == 1
    alike = [rule([*STEM, *ONES, *ONES], point([*STEM, *ONES, *ONES])) for _ in range(2)]  # which changes nothing
    assert [g is None for g in alike[-1]] == [False, False, False, False, True, True]


def test_tensors_without_a_gradient_take_no_part() -> None:
    """An operation that was not drawn has no gradient; one of zeros has no direction."""
    rule = stopping(patience=0.9, every=1)
    zeros: list[Tensor | None] = [torch.zeros(2, 2), torch.ones(2)]
    found = rule([*STEM, None, None, *ONES], point([*STEM, *TURNED, *zeros]))
    assert [g is None for g in found] == [False, False, True, True, False, False]  # None was given, and none is frozen
    assert rule.frozen == frozenset()


def test_a_checkpoint_has_all_that_a_rule_remembers() -> None:
    """Half way to a decision, and with an operation frozen."""
    rule = stopping()
    for others in (TURNED, TURNED, ONES):
        rule([*STEM, *ONES, *ONES], point([*STEM, *ONES, *others]))
    other = stopping()
    assert other.frozen == frozenset()  # which it has to forget
    other.load_state_dict(copy.deepcopy(rule.state_dict()))
    assert other.frozen == rule.frozen != frozenset()
    for one in (rule, other):
        one([*STEM, *ONES, *ONES], point([*STEM, *TURNED, *ONES]))
    assert {name: value.tolist() for name, value in other.state_dict().items()} == {
        name: value.tolist() for name, value in rule.state_dict().items()
    }
    assert rule.steps.item() == 0


def test_of_choices_within_candidates_the_innermost_counts() -> None:
    inner = LayerChoice({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}, key="inner")
    outer = LayerChoice({"nested": nn.Sequential(nn.Linear(1, 1), inner), "skip": nn.Identity()}, key="outer")
    rule: Any = OperationStopping().start(RelaxedSpace(outer))
    assert sorted(map(len, rule._tensors)) == [2, 2, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OperationStopping(patience=2.0), "patience must be between -1 and 1, got 2.0"),
        (lambda: OperationStopping(every=0), "every must be 1 or more, got 0"),
        (lambda: LayerAlignment(epsilon=0.0), "epsilon must be a number above 0, got 0.0"),
        (
            lambda: LayerAlignment(weight=-1.0).check(SECOND),
            "weight must be 0 or more in every epoch, got -1 in epoch 1",
        ),
        (
            lambda: LayerAlignment().start(RelaxedSpace(Linears())),
            "LayerAlignment needs choices that share a key, as those of repeated cells do",
        ),
        (
            lambda: OperationStopping().start(RelaxedSpace(LayerChoice({"a": nn.ReLU(), "b": nn.Tanh()}, key="k"))),
            "OperationStopping needs a LayerChoice with a candidate that has weights",
        ),
        (
            lambda: Method(relaxation=GumbelHard(), weight_rule=LayerAlignment()),
            "weight_rule LayerAlignment needs a relaxation with which all candidates run, got GumbelHard, which runs one "
            "of each choice",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message


def test_the_alignment_by_hand() -> None:
    """Rows (1, 0) and (3, 4): cosine 3/5, whose gradients are (0, 4/5), and (16, -12) / 125."""
    cosine, gradient = alignment(torch.tensor([[1.0, 0.0], [3.0, 4.0]], dtype=torch.float64))
    torch.testing.assert_close(cosine.item(), 0.6)
    torch.testing.assert_close(gradient, torch.tensor([[0, 0.8], [16 / 125, -12 / 125]], dtype=torch.float64))


@pytest.mark.parametrize("count", [2, 3, 6])
def test_the_alignment_is_the_mean_cosine_of_all_pairs(count: int) -> None:
    cells = torch.randn(count, 5, generator=torch.Generator().manual_seed(count), dtype=torch.float64).requires_grad_()
    pairs = [F.cosine_similarity(cells[i], cells[j], dim=0) for i in range(count) for j in range(i)]
    mean = torch.stack(pairs).mean()
    (expected,) = torch.autograd.grad(mean, cells)
    cosine, gradient = alignment(cells.detach())
    torch.testing.assert_close(cosine, mean.detach())
    torch.testing.assert_close(gradient, expected)


def test_cells_without_a_gradient_are_left_out() -> None:
    cosine, gradient = alignment(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert cosine == 0.0
    assert gradient.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_the_alignment_of_a_quadratic_loss() -> None:
    """L = sum_l p_l M_l w has g_l = M_l w, so the gradient of Lambda by w is sum_l M_l^T u_l; the difference is exact."""
    generator = torch.Generator().manual_seed(0)
    net = RelaxedSpace(Linears(("same", "same", "same"))).double()
    matrices = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)
    w = torch.randn(4, generator=generator, dtype=torch.float64)
    rule = LayerAlignment(weight=0.3).start(net)
    rows = rule.rows({"same": torch.tensor([0.25, 0.75], dtype=torch.float64)})
    assert rows["same"].tolist() == [[0.25, 0.75]] * 3

    def at(replaced: dict[str, Tensor]) -> list[Tensor | None]:
        return [torch.einsum("lp,lpw->w", replaced["same"], matrices), None]

    def unused() -> list[Tensor | None]:
        raise AssertionError

    there = WeightsPoint(rows, {"same": matrices @ w}, at, unused, SECOND)
    found, none = rule(at(rows), there)
    assert none is None
    leaf = w.clone().requires_grad_()
    g = matrices @ leaf
    pairs = [F.cosine_similarity(g[i], g[j], dim=0) for i in range(3) for j in range(i)]
    (of_mean,) = torch.autograd.grad(torch.stack(pairs).mean(), leaf)
    own = at(rows)[0]
    assert found is not None
    assert own is not None
    torch.testing.assert_close(found, own - 0.3 * of_mean, rtol=1e-8, atol=1e-10)


def test_repeated_cells_of_the_papers_supernet() -> None:
    net = RelaxedSpace(
        Supernet(input_shape=(1, 8, 8), num_classes=2, channels=2, cells=8, candidates=("skip_connect",))
    )
    groups = [({key.partition("_")[0] for key in keys}, len(keys), places) for keys, places in repeated(net)]
    assert groups == [({"normal"}, 14, 6), ({"reduce"}, 14, 2)]


def test_repeated_blocks_at_several_depths() -> None:
    """Stages of blocks, each with two choices; `own` occurs once, and an InputChoice repeats like the others."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = LayerChoice({"a": nn.ReLU(), "b": nn.Tanh()}, key="one")
            self.inner = nn.Sequential(LayerChoice({"a": nn.ReLU(), "b": nn.Tanh()}, key="two"))
            self.read = InputChoice(["x", "y"], n_chosen=1, key="read")

    stages = nn.Sequential(
        *(nn.Sequential(Block(), Block()) for _ in range(2)), LayerChoice({"a": nn.ReLU(), "b": nn.Tanh()}, key="own")
    )
    found = {tuple(sorted(keys)): places for keys, places in repeated(RelaxedSpace(stages))}
    assert found == {("one", "read", "two"): 4, ("own",): 1}


def test_rows_of_their_own_reach_their_places() -> None:
    """With (places, candidates) each choice of a key has its row; equal rows are the shared row."""
    torch.manual_seed(0)
    net = RelaxedSpace(Linears(("same", "same"))).double()
    x = torch.randn(3, 2, dtype=torch.float64)
    row, other = torch.tensor([0.25, 0.75]).double(), torch.tensor([2.0, -1.0]).double()
    torch.testing.assert_close(net(x, mixing={"same": torch.stack([row, row])}), net(x, mixing={"same": row}))
    space: Any = net.space
    first, second = (place.candidates.linear for place in space.places)
    y = space.stem(x)
    y = row[0] * first(y) + row[1] * y
    expected = other[0] * second(y) + other[1] * y
    torch.testing.assert_close(net(x, mixing={"same": torch.stack([row, other])}), expected)


def test_the_rule_of_darts_does_nothing() -> None:
    gradients: list[Tensor | None] = [torch.ones(2), None]
    assert Rule()(gradients, point([])) is gradients
    assert Method().start_rule(RelaxedSpace(Linears())).state_dict() == {}


def test_the_difference_is_the_derivative_of_the_mean_cosine() -> None:
    """On a supernet, against double backward through the gradients of its two reduction cells."""
    search = search_module(Method(weight_rule=LayerAlignment(weight=1.0, epsilon=1e-6)))
    batch = batches(1)[0]["weights"]
    mixing = search.method.expected({name: alpha.detach() for name, alpha in search.alphas().items()})
    weights = list(search.weights().values())
    rows = {key: row.requires_grad_() for key, row in search.rule.rows(mixing).items()}
    loss = search.task.loss(search.outputs_with(batch[0], mixing | rows), batch[1])
    cells = torch.cat(torch.autograd.grad(loss, list(rows.values()), create_graph=True), dim=1)
    own = torch.autograd.grad(loss, weights, retain_graph=True)
    expected = torch.autograd.grad(F.cosine_similarity(*cells, dim=0), weights, allow_unused=True)
    search.gradient_clip = 1e9
    found = search.weight_gradients(batch, mixing).gradients
    moved = torch.cat(
        [(g - f).flatten() for g, f, x in zip(own, found, expected, strict=True) if f is not None and x is not None]
    )
    wanted = torch.cat([x.flatten() for x in expected if x is not None])
    assert float((moved - wanted).norm() / wanted.norm()) < 1e-3
