from __future__ import annotations

import copy

import pytest
import torch
from conformance.space import SpaceConformance
from torch import Tensor, nn

from src.common.errors import ConfigError
from src.fast.fused import FusedSupernet
from src.fast.merged import MergedSupernet
from src.methods.discretizers import Strongest
from src.runs.build import count_macs, count_params
from src.spaces.choices import LayerChoice, fix
from src.spaces.cnn.cells import Supernet
from src.spaces.cnn.formats import load_cells
from src.spaces.cnn.genotypes import CANDIDATES, EDGES_PER_NODE, edge_key, switch_key
from src.spaces.relaxed import RelaxedSpace


def small(**changes) -> RelaxedSpace:
    settings = {"input_shape": (1, 8, 8), "num_classes": 4, "channels": 4, "cells": 3, "nodes": 2}
    return RelaxedSpace(Supernet(**{**settings, **changes}))


def test_size_equals_the_official_code() -> None:
    net = RelaxedSpace(Supernet(input_shape=(3, 32, 32), num_classes=10))
    assert count_params(net.space) == 1_930_618
    assert count_macs(net, (3, 32, 32)) == 300_255_744
    assert len(net.alphas) == 28
    assert sum(alpha.numel() for alpha in net.alphas.values()) == 2 * 14 * 8


class TestSupernet(SpaceConformance):
    outputs = 4

    def space(self) -> nn.Module:
        return Supernet(input_shape=(1, 8, 8), num_classes=4, channels=4, cells=3, nodes=2)

    def inputs(self) -> tuple[Tensor, ...]:
        return (torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)


def test_the_imagenet_stem_halves_three_times() -> None:
    net = small(input_shape=(3, 61, 64), stem="imagenet")
    shapes: list[torch.Size] = []
    space = net.space
    assert isinstance(space, Supernet)
    for cell in space.cells:
        cell.register_forward_hook(lambda _, inputs, output: shapes.extend([*(x.shape for x in inputs), output.shape]))
    assert net(torch.randn(2, 3, 61, 64)).shape == (2, 4)
    assert [tuple(shape) for shape in shapes[:3]] == [(2, 4, 16, 16), (2, 4, 8, 8), (2, 8, 8, 8)]
    affine = [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d) and module.affine]
    assert affine == ["space.stem.1", "space.stem.4", "space.stem1.2"]


@pytest.mark.parametrize("side", [7, 8, 13, 16, 28])
@pytest.mark.parametrize("cells", [3, 5])
def test_any_image_size(side: int, cells: int) -> None:
    net = small(input_shape=(2, side, side), cells=cells)
    assert net(torch.randn(3, 2, side, side)).shape == (3, 4)


def test_reduction_cells_stand_at_one_and_two_thirds() -> None:
    space = Supernet(input_shape=(3, 32, 32), num_classes=10, channels=2, cells=8)
    kinds = []
    for cell in space.cells:
        choice = next(module for module in cell.modules() if isinstance(module, LayerChoice))
        kinds.append(choice.key.split("_")[0])
    assert [index for index, kind in enumerate(kinds) if kind == "reduce"] == [2, 5]


def test_only_the_stem_has_batch_norm_parameters() -> None:
    net = small()
    affine = [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d) and module.affine]
    assert affine == ["space.stem.1"]


def test_pools_are_followed_by_batch_norm() -> None:
    choice = next(module for module in small().modules() if isinstance(module, LayerChoice))
    for name in ("max_pool_3x3", "avg_pool_3x3"):
        assert isinstance(list(choice.candidates[name].children())[-1], nn.BatchNorm2d)


def test_an_edge_is_the_softmax_weighted_sum_of_its_candidates() -> None:
    net = small().double()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    choice = next(m for m in net.modules() if isinstance(m, LayerChoice) and m.key == "normal_n2_p0")
    alpha = torch.randn(8, dtype=torch.float64)
    shares = alpha.exp() / alpha.exp().sum()
    choice.weights = alpha.softmax(0)
    expected = sum(share * op(x) for share, op in zip(shares, choice.candidates.values(), strict=True))
    torch.testing.assert_close(choice(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_candidates_agree_on_shape(stride: int) -> None:
    from src.spaces.cnn.operations import OPERATIONS

    for searching in (True, False):
        for side in (7, 8):
            x = torch.randn(2, 6, side, side)
            shapes = {name: tuple(make(6, stride, searching)(x).shape) for name, make in OPERATIONS.items()}
            assert set(shapes.values()) == {(2, 6, -(-side // stride), -(-side // stride))}, shapes


def test_derived_by_hand() -> None:
    """Nodes 2 and 3 of the normal cell, worked out on paper from logits that are logs of small integers."""
    net = small(candidates=["none", "skip_connect", "sep_conv_3x3"])
    weights = {
        # none, skip, sep: shares of their sum
        "normal_n2_p0": (6, 3, 1),  # skip 0.3
        "normal_n2_p1": (0.5, 1, 8.5),  # sep 0.85
        "normal_n3_p0": (90, 4, 6),  # sep 0.06: none is large and counts in the softmax
        "normal_n3_p1": (1, 5, 4),  # skip 0.5
        "normal_n3_p2": (2, 4, 4),  # skip 0.4, the tie goes to the first
    }
    with torch.no_grad():
        for key, values in weights.items():
            net.alphas[key].copy_(torch.tensor(values).log())
    choices = Strongest()(net.by_name(net.softmax()), net.spec).choices
    assert choices["normal_n2_p0"] == "skip_connect"
    assert choices["normal_n2_p1"] == "sep_conv_3x3"
    assert choices["normal_n3_p0"] is None
    assert choices["normal_n3_p1"] == "skip_connect"
    assert choices["normal_n3_p2"] == "skip_connect"
    assert choices[switch_key("normal", 3)] == (edge_key("normal", 3, 1), edge_key("normal", 3, 2))
    assert all(answer != "none" for answer in choices.values())
    assert all(
        len(choices[switch_key(kind, n)] or ()) == EDGES_PER_NODE for kind in ("normal", "reduce") for n in (2, 3)
    )


def test_alphas_stand_in_the_order_of_the_cells() -> None:
    order = list(small().alphas)
    expected = [
        edge_key(kind, node, state) for kind in ("normal", "reduce") for node in (2, 3) for state in range(node)
    ]
    assert order == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": 2}, "^cells must be 3 or more, got 2"),
        ({"channels": 0}, "^channels must be 1 or more, got 0"),
        ({"channels": 1, "stem": "imagenet"}, "^channels must be 2 or more for the imagenet stem, .* got 1"),
        ({"nodes": 0}, "^nodes must be 1 to 32, got 0"),
        ({"nodes": 33}, "^nodes must be 1 to 32, got 33"),
        ({"stem_multiplier": 0}, "^stem_multiplier must be 1 or more, got 0"),
        ({"stem": "imagnet"}, "^unknown stem 'imagnet', did you mean 'imagenet'"),
        ({"operations": ["no_such_module"]}, "^operations must name modules"),
        ({"candidates": ["none"]}, "^candidates must be different operations, at least one of them not none, got none"),
        ({"candidates": ["sep_conv_3x3", "sep_conv_3x3"]}, "candidates must be different operations"),
        ({"candidates": ["sep_conv_3x4"]}, "did you mean 'sep_conv_3x3'"),
    ],
)
def test_bad_sizes_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**change)


def test_candidates_are_configurable() -> None:
    net = small(candidates=CANDIDATES[2:6])
    assert {alpha.numel() for alpha in net.alphas.values()} == {4}
    assert net(torch.randn(2, 1, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize("form", [Supernet, FusedSupernet, MergedSupernet])
def test_fixed_cells_with_fewer_edges_compute_what_one_hot_weights_do(form: type[Supernet]) -> None:
    """Node 3 of the normal cell is empty: its state is zero, for the edge that begins there and in the output."""
    torch.manual_seed(0)
    space = form(input_shape=(1, 8, 8), num_classes=4, channels=4, cells=3, nodes=3).double()
    net = RelaxedSpace(copy.deepcopy(space)).double()
    architecture = load_cells(
        "Genotype(normal=[('skip_connect', 2, 0), ('sep_conv_3x3', 4, 3), ('max_pool_3x3', 4, 1)], "
        "normal_concat=range(2, 5), reduce=[('dil_conv_3x3', 2, 1), ('skip_connect', 3, 2)], reduce_concat=range(2, 5))"
    )
    rows = {
        key: torch.tensor([float(name == architecture.choices[key]) for name in names], dtype=torch.float64)
        for key, names in net.candidates().items()
    }
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    expected = net(images, mixing=rows)
    torch.testing.assert_close(fix(space, architecture)(images), expected, rtol=1e-9, atol=1e-12)
