"""The auxiliary skip of DARTS-."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods.test_mixed_ops import supernet
from torch import Tensor, nn

from src.common.errors import ConfigError
from src.methods.auxiliary import AuxiliarySkip
from src.methods.discretizers import StrongestProduct
from src.methods.method import Method
from src.methods.mixed_ops import PartialChannels
from src.methods.relaxations import GumbelHard
from src.methods.schedules import Linear, Progress
from src.spaces.choices import LayerChoice, fix
from src.spaces.relaxed import AUXILIARY, RelaxedSpace

METHOD = Method(auxiliary=AuxiliarySkip())


class Called(nn.Module):
    """Notes that it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return 3 * x


def edge(**candidates: nn.Module) -> LayerChoice:
    return LayerChoice(candidates or {"skip": nn.Identity(), "other": Called()}, key="edge")


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
def test_beta_times_the_input_is_added(beta: float) -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    net = METHOD.relax(nn.Sequential(edge())).double()
    rows = net.softmax()
    outputs = [net(x, mixing=rows | {AUXILIARY: torch.tensor(b).double()}) for b in (beta, 0.0)]
    torch.testing.assert_close(outputs[0] - outputs[1], beta * x, rtol=1e-15, atol=1e-15)
    assert torch.equal(net(x, mixing=rows), outputs[1])


def test_beside_a_sampled_path_the_auxiliary_always_runs() -> None:
    other = Called()
    net = METHOD.relax(nn.Sequential(edge(skip=nn.Identity(), other=other)))
    x = torch.randn(4, 3)
    for path, output, calls in ((0, 1.5 * x, 0), (1, 3.5 * x, 1)):
        row = nn.functional.one_hot(torch.tensor(path), 2).float().requires_grad_()
        found = net(x, mixing={"edge": row, AUXILIARY: torch.tensor(0.5)}, one_path=True)
        torch.testing.assert_close(found, output)
        assert other.calls == calls
        # The weight of the skip that was not drawn gets nothing from the auxiliary.
        (grad,) = torch.autograd.grad(found.sum(), row)
        assert (grad != 0).tolist() == [path == 0, path == 1]


@pytest.mark.parametrize(
    ("weight", "values"),
    [(AuxiliarySkip().weight, [1.0, 0.5, 0.02]), (Linear(1.0, 0.0), [1.0, 1 - 25 / 49, 0.0]), (0.3, [0.3, 0.3, 0.3])],
)
def test_beta_of_the_first_middle_and_last_epoch(weight: Any, values: list[float]) -> None:
    parameters = {"alphas.edge": torch.zeros(2, dtype=torch.float64)}
    method = Method(auxiliary=AuxiliarySkip(weight))
    found = [float(method.mixing_weights(parameters, {}, Progress(epoch, 50))[AUXILIARY]) for epoch in (0, 25, 49)]
    assert found == pytest.approx(values, rel=1e-14)
    # The supernet is validated with it, and an architecture derived without.
    assert float(method.evaluated(parameters, Progress(25, 50))[AUXILIARY]) == pytest.approx(values[1])
    assert method.expected(parameters).keys() == {"edge"}


def test_at_stride_2_it_has_weights_of_its_own() -> None:
    net = supernet(method=METHOD)
    choices = [module for module in net.modules() if isinstance(module, LayerChoice)]
    weights = [parameter for choice in choices for parameter in choice.auxiliary.parameters()]  # pyright: ignore[reportOptionalMemberAccess]
    # Two of three cells reduce: each has two nodes, each with two edges of stride 2, with two convolutions.
    assert len(weights) == 2 * 2 * 2 * 2
    assert net.alphas.keys() == supernet().alphas.keys()
    assert net.spec == supernet().spec
    assert net.candidates() == supernet().candidates()
    for choice in choices:
        skip = choice.candidates["skip_connect"]
        for own, of_candidate in zip(choice.auxiliary.parameters(), skip.parameters(), strict=True):  # pyright: ignore[reportOptionalMemberAccess]
            assert own is not of_candidate
            assert not torch.equal(own, of_candidate)


def test_it_is_dropped_from_the_architecture() -> None:
    net = supernet(method=METHOD)
    architecture = METHOD.derive(net.by_name(net.softmax()), net.spec)
    assert architecture == Method().derive(net.by_name(net.softmax()), net.spec)
    x = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    network = fix(net.space, architecture)
    assert not any("auxiliary" in name for name, _ in network.named_modules())
    assert network(x).shape == (4, 3)


def test_partial_channels_have_it_on_the_channels_that_candidates_see() -> None:
    method = Method(
        auxiliary=AuxiliarySkip(), mixed_op=PartialChannels(2), edge_weights=True, discretizer=StrongestProduct()
    )
    net = RelaxedSpace(
        nn.Sequential(LayerChoice.of_width(lambda width: {"skip": nn.Identity()}, 4, key="edge")),
        mixed_op=method.mixed_op,
    )
    AuxiliarySkip().attach(net)
    x = torch.arange(1.0, 5.0).reshape(1, 4, 1, 1)
    found = net(x, mixing={"edge": torch.ones(1), AUXILIARY: torch.tensor(10.0)})
    assert found.flatten().tolist() == [11, 3, 22, 4]


class Holding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = LayerChoice({"one": nn.Identity(), "two": nn.Identity()}, key="inner")

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_what_it_refuses() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^AuxiliarySkip needs a candidate named identity or skip or skip_connect, got the candidates one, two$",
    ):
        METHOD.relax(nn.Sequential(edge(one=nn.Identity(), two=nn.ReLU())))
    with pytest.raises(ConfigError, match=r"'skip' without choices of its own, that of 'edge' has some$"):
        METHOD.relax(nn.Sequential(edge(skip=Holding(), two=nn.ReLU())))
    with pytest.raises(ConfigError, match=r"^auxiliary\.weight must be 0 or more in every epoch, got -1 in epoch 2$"):
        Method(auxiliary=AuxiliarySkip(Linear(1.0, -1.0))).check_epochs(3, {"alphas.edge": torch.zeros(3)})


def test_choices_without_a_skip_stay_as_they_are() -> None:
    net = METHOD.relax(nn.Sequential(edge(), LayerChoice({"one": nn.ReLU(), "two": nn.Identity()}, key="other")))
    assert [m.auxiliary is None for m in net.modules() if isinstance(m, LayerChoice)] == [False, True]


def test_a_sampled_network_is_validated_with_it() -> None:
    parameters = {"alphas.edge": torch.tensor([0.0, 2.0])}
    method = Method(relaxation=GumbelHard(), auxiliary=AuxiliarySkip())
    rows = method.evaluated(parameters, Progress(0, 2))
    assert rows["edge"].tolist() == [0.0, 1.0]
    assert float(rows[AUXILIARY]) == 1.0
