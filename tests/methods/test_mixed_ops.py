from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.common.errors import ConfigError
from src.methods.discretizers import StrongestProduct
from src.methods.method import Method
from src.methods.mixed_ops import PartialChannels, PartialChoice
from src.methods.schedules import Progress
from src.spaces.choices import LayerChoice
from src.spaces.cnn.cells import Supernet
from src.spaces.cnn.modules import Zero
from src.spaces.relaxed import RelaxedSpace


def scaled(width: int) -> dict[str, nn.Module]:
    """Candidates that can be told from each other and from what goes past them."""
    return {"zero": Zero(1), "same": nn.Identity()}


def mixed(k: int, width: int, x: Tensor) -> Tensor:
    net = RelaxedSpace(nn.Sequential(LayerChoice.of_width(scaled, width, key="edge")), mixed_op=PartialChannels(k))
    one_hot = {"edge": torch.tensor([0.0, 1.0], dtype=x.dtype)}
    return net(x, mixing=one_hot)


def test_the_order_of_the_channels_by_hand() -> None:
    x = torch.arange(8.0).reshape(1, 8, 1, 1)
    assert mixed(4, 8, x).flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    only_the_rest = RelaxedSpace(
        nn.Sequential(LayerChoice.of_width(scaled, 8, key="edge")), mixed_op=PartialChannels(4)
    )(x + 1, mixing={"edge": torch.tensor([1.0, 0.0])})
    assert only_the_rest.flatten().tolist() == [0, 3, 5, 7, 0, 4, 6, 8]  # channels 0 and 1 are mixed


@pytest.mark.parametrize("dimensions", [0, 1, 2, 3])
@pytest.mark.parametrize("side", [4, 5])
def test_what_goes_past_a_stride_is_pooled(dimensions: int, side: int) -> None:
    """By the largest of two pixels in each direction; an odd side keeps the last pixel."""
    sizes = [side] * dimensions
    halved = [(side + 1) // 2] * dimensions

    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[(..., *[slice(None, None, 2)] * dimensions)]

    choice = LayerChoice.of_width(lambda width: {"shrink": Half()}, 4, key="edge")
    x = torch.randn(2, 4, *sizes, dtype=torch.float64)
    output = RelaxedSpace(nn.Sequential(choice), mixed_op=PartialChannels(2))(
        x, mixing={"edge": torch.ones(1).double()}
    )
    assert output.shape == (2, 4, *halved)
    rest = x[:, 2:]
    for dimension in range(2, 2 + dimensions):
        pairs = rest.split(2, dimension)
        rest = torch.cat([pair.amax(dimension, keepdim=True) for pair in pairs], dimension)
    assert torch.equal(output[:, 1::2], rest)
    assert torch.equal(output[:, ::2], Half()(x[:, :2]))


def supernet(channels: int = 4, method: Method | None = None) -> RelaxedSpace:
    torch.manual_seed(0)
    space = Supernet(
        input_shape=(2, 8, 8), num_classes=3, channels=channels, cells=3, nodes=2, stem_multiplier=1,
        candidates=("none", "skip_connect", "max_pool_3x3", "dil_conv_3x3"),
    )  # fmt: skip
    return (method or Method()).relax(space, init_scale=1.0).double()


def test_k_1_is_darts() -> None:
    x = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    outputs = []
    for net in (supernet(), supernet(method=Method(mixed_op=PartialChannels(k=1)))):
        output = net(x)
        gradients = torch.autograd.grad(output.square().sum(), list(net.parameters()), allow_unused=True)
        outputs.append([output, *(gradient for gradient in gradients if gradient is not None)])
    assert len(outputs[0]) == len(outputs[1])
    assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))


def test_candidates_are_made_for_a_share_of_the_channels() -> None:
    net = supernet(channels=8, method=Method(mixed_op=PartialChannels(k=4)))
    choices = [module for module in net.modules() if isinstance(module, PartialChoice)]
    assert len(choices) == 3 * 5
    cells: Any = net.space.cells
    widths = [cell.nodes[0].edges[0].choice.candidates["dil_conv_3x3"][1].weight.shape[0] for cell in cells]
    assert widths == [2, 4, 8]  # of 8, 16 and 32 channels, when each cell of three is after a reduction but the first
    assert set(net.alphas) == set(supernet().alphas)


def test_a_choice_that_is_used_twice_stays_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = LayerChoice.of_width(lambda width: {"conv": nn.Conv2d(width, width, 1)}, 4, key="edge")
            self.other = self.one

    space: Any = Twice()
    RelaxedSpace(space, mixed_op=PartialChannels(2))
    assert isinstance(space.one, PartialChoice)
    assert space.one is space.other


def test_choices_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"PartialChannels needs a number of channels that k=4 divides, 'normal_n2_p0' has 6$"
    ):
        supernet(channels=6, method=Method(mixed_op=PartialChannels(k=4)))
    fixed = nn.Sequential(LayerChoice({"a": nn.Identity(), "b": nn.Tanh()}, key="edge"))
    with pytest.raises(ConfigError, match=r"LayerChoice\.of_width, 'edge' has a fixed width$"):
        RelaxedSpace(fixed, mixed_op=PartialChannels())
    with pytest.raises(ConfigError, match=r"^k must be 1 or more, got 0$"):
        PartialChannels(k=0)


class TestEdgeWeights:
    method = Method(edge_weights=True, discretizer=StrongestProduct())

    def test_equal_weights_are_the_mean_of_a_nodes_edges(self) -> None:
        weighed = supernet(method=self.method)
        plain = supernet()
        plain.load_state_dict(weighed.state_dict(), strict=False)
        assert {key: vector.numel() for key, vector in weighed.edges.items()} == {
            "normal_n2_switch": 2, "normal_n3_switch": 3, "reduce_n2_switch": 2, "reduce_n3_switch": 3,
        }  # fmt: skip
        with torch.no_grad():
            for vector in weighed.edges.values():
                vector.zero_()
        cells: Any = [net.space.cells for net in (plain, weighed)]
        for ours, theirs in zip(*(group[0].nodes for group in cells), strict=True):
            edges = [torch.randn(2, 4, 4, 4, dtype=torch.float64) for _ in ours.edges]
            theirs.switch.weights = weighed.softmax()[theirs.switch.key]
            torch.testing.assert_close(theirs.switch(edges), ours.switch(edges) / len(edges))

    def test_edges_compete_within_a_node(self) -> None:
        net = supernet(method=self.method)
        parameters: dict[str, Tensor] = dict(net.named_parameters())
        for rows in (self.method.expected(parameters), self.method.mixing_weights(parameters, {}, Progress(0, 1))):
            for key, vector in net.edges.items():
                torch.testing.assert_close(rows[key], vector.exp() / vector.exp().sum())

    def test_they_are_trained_with_the_alphas(self) -> None:
        net = supernet(method=self.method)
        loss = net(torch.randn(4, 2, 8, 8, dtype=torch.float64)).square().sum()
        gradients = torch.autograd.grad(loss, list(net.edges.values()))
        assert all(float(gradient.abs().sum()) > 0 for gradient in gradients)

    def test_a_space_without_edges_is_refused(self) -> None:
        with pytest.raises(
            ConfigError, match="edge_weights must be false for a space without an InputChoice over edges"
        ):
            self.method.relax(nn.Sequential(LayerChoice({"a": nn.Identity()}, key="edge")))


@pytest.mark.parametrize("k", [1, 2])
def test_gradients_through_the_whole_space_are_those_of_its_loss(k: int) -> None:
    """Alphas and edges' weights against numerical differentiation."""
    method = Method(mixed_op=PartialChannels(k), edge_weights=True, discretizer=StrongestProduct())
    net = supernet(method=method)
    for parent in list(net.modules()):  # no kinks
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.Softplus())
    x = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    vectors = [*net.alphas.values(), *net.edges.values()]

    def loss() -> Tensor:
        rows = method.mixing_weights(dict(net.named_parameters()), {}, Progress(0, 1))
        return net(x, mixing=rows).square().mean()  # BatchNorm's running statistics have no part in it

    gradients = torch.autograd.grad(loss(), vectors)
    generator = torch.Generator().manual_seed(0)
    start = [vector.detach().clone() for vector in vectors]
    direction = [torch.randn(vector.shape, generator=generator, dtype=torch.float64) for vector in vectors]

    @torch.no_grad()
    def at(distance: float) -> float:
        for vector, old, d in zip(vectors, start, direction, strict=True):
            vector.copy_(old + distance * d)
        return float(loss())

    h = 1e-5
    analytical = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    assert (at(h) - at(-h)) / (2 * h) == pytest.approx(analytical, rel=1e-6)
