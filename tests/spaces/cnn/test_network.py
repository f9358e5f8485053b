from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from src.common.errors import ConfigError
from src.runs.build import count_macs, count_params
from src.spaces.cnn.formats import load_cells
from src.spaces.cnn.genotypes import NAMED_GENOTYPES
from src.spaces.cnn.network import AuxiliaryHead, Network, drop_path


def network(name: str = "DARTS_V2", **changes) -> Network:
    settings = {"input_shape": (3, 32, 32), "num_classes": 10}
    return Network(NAMED_GENOTYPES[name].to_architecture(), **{**settings, **changes})


@pytest.mark.parametrize(
    ("name", "without", "with_head", "macs"),
    [("DARTS_V1", 3_169_414, 3_645_840, 500_987_520), ("DARTS_V2", 3_349_342, 3_825_768, 528_359_040)],
)
def test_size_equals_the_official_code(name: str, without: int, with_head: int, macs: int) -> None:
    plain = network(name, auxiliary=False)
    assert count_params(plain) == without
    assert count_macs(plain, (3, 32, 32)) == macs
    headed = network(name)
    assert count_params(headed) == with_head
    assert count_macs(headed, (3, 32, 32)) == macs  # the head is not there when the network is used


# Nodes with one edge or none: genotypes in the official code of FairDARTS (fairdarts/genotypes.py), which says of them
# 2.83 M weights (A, with the head), 2.59 M and 400 M multiply-adds (C, without), 3.88 M (with) and 536 M (B).
FAIR_DARTS_A = (
    "Genotype(normal=[('sep_conv_3x3', 2, 0), ('sep_conv_5x5', 2, 1), ('max_pool_3x3', 4, 0), ('sep_conv_3x3', 5, 0)], "
    "normal_concat=range(2, 6), reduce=[('max_pool_3x3', 2, 0), ('avg_pool_3x3', 2, 1), ('avg_pool_3x3', 3, 0), "
    "('dil_conv_5x5', 3, 1), ('avg_pool_3x3', 4, 0), ('sep_conv_5x5', 4, 1), ('skip_connect', 5, 0), "
    "('skip_connect', 5, 1)], reduce_concat=range(2, 6))"
)
FAIR_DARTS_B = (
    "Genotype(normal=[('sep_conv_3x3', 2, 0), ('sep_conv_3x3', 2, 1), ('sep_conv_3x3', 3, 1), ('dil_conv_3x3', 4, 0), "
    "('sep_conv_5x5', 4, 1), ('dil_conv_5x5', 5, 1)], normal_concat=range(2, 6), reduce=[('skip_connect', 2, 0), "
    "('dil_conv_3x3', 2, 1), ('skip_connect', 3, 0), ('dil_conv_3x3', 3, 1), ('max_pool_3x3', 4, 0), "
    "('sep_conv_3x3', 4, 1), ('skip_connect', 5, 2), ('max_pool_3x3', 5, 0)], reduce_concat=range(2, 6))"
)
FAIR_DARTS_C = (
    "Genotype(normal=[('max_pool_3x3', 2, 0), ('sep_conv_5x5', 2, 1), ('dil_conv_3x3', 4, 0), ('dil_conv_5x5', 4, 2), "
    "('skip_connect', 5, 3), ('sep_conv_3x3', 5, 0)], normal_concat=range(2, 6), reduce=[('dil_conv_3x3', 2, 1), "
    "('dil_conv_5x5', 2, 0), ('dil_conv_3x3', 3, 0), ('sep_conv_3x3', 3, 1), ('sep_conv_5x5', 4, 0), "
    "('sep_conv_5x5', 4, 3), ('sep_conv_5x5', 5, 0), ('skip_connect', 5, 1)], reduce_concat=range(2, 6))"
)


@pytest.mark.parametrize(
    ("genotype", "without", "with_head", "macs"),
    [
        (FAIR_DARTS_A, 2_360_782, 2_837_208, 371_455_200),
        (FAIR_DARTS_B, 3_407_878, 3_884_304, 536_487_552),
        (FAIR_DARTS_C, 2_598_814, 3_075_240, 399_987_936),
    ],
    ids=["A", "B", "C"],
)
def test_size_of_cells_with_fewer_edges(genotype: str, without: int, with_head: int, macs: int) -> None:
    architecture = load_cells(genotype)
    plain = Network(architecture, input_shape=(3, 32, 32), num_classes=10, auxiliary=False)
    assert (count_params(plain), count_macs(plain, (3, 32, 32))) == (without, macs)
    assert count_params(Network(architecture, input_shape=(3, 32, 32), num_classes=10)) == with_head


def test_nodes_without_edges_are_left_out() -> None:
    """By hand: node 3 is empty, so that an edge from it and node 5, which has no other, carry nothing either."""
    architecture = load_cells(
        "Genotype(normal=[('skip_connect', 2, 0), ('skip_connect', 4, 2), ('sep_conv_3x3', 4, 3), ('dil_conv_3x3', 5, 3)],"
        " normal_concat=range(2, 6), reduce=[('skip_connect', 2, 1)], reduce_concat=range(2, 6))"
    )
    net = Network(architecture, input_shape=(3, 8, 8), num_classes=3, channels=4, cells=3).train()
    net.drop_path = 0.5  # not on identities
    cell: Any = net.cells[0]
    assert [len(operations) for operations in cell.nodes] == [1, 0, 1, 0]
    before_last, last = torch.randn(2, 2, 12, 8, 8)
    node2 = cell.preprocess0(before_last)
    torch.testing.assert_close(cell(before_last, last, 0.5), torch.cat([node2, node2], dim=1))
    logits, auxiliary = net(torch.randn(2, 3, 8, 8))
    (logits.sum() + auxiliary.sum()).backward()
    # The last cell reduces and has one node; its first input ends nowhere.
    assert net.classifier.in_features == 16
    idle = {name for name, parameter in net.named_parameters() if parameter.grad is None}
    assert {name.rpartition(".")[0].split(".preprocess")[0] for name in idle} <= {"cells.0", "cells.1", "cells.2"}
    assert all(".preprocess" in name for name in idle)


@pytest.mark.parametrize(
    ("name", "params", "macs"), [("DARTS_V1", 4_510_432, 505_864_704), ("DARTS_V2", 4_718_752, 529_911_552)]
)
def test_size_on_imagenet_equals_the_official_code(name: str, params: int, macs: int) -> None:
    shape = (3, 224, 224)
    net = network(name, input_shape=shape, num_classes=1000, channels=48, cells=14, stem="imagenet", auxiliary=False)
    assert count_params(net) == params
    assert count_macs(net, shape) == macs


def test_the_auxiliary_head_on_imagenet_takes_7x7() -> None:
    net = network(input_shape=(3, 224, 224), channels=2, cells=3, stem="imagenet")
    assert net.auxiliary is not None
    pool = net.auxiliary.features[1]
    assert isinstance(pool, nn.AvgPool2d)
    assert (pool.kernel_size, pool.stride) == (5, 2)


@pytest.mark.parametrize("side", [5, 8, 16, 28, 33])
def test_small_images_have_an_auxiliary_head_too(side: int) -> None:
    net = network(input_shape=(1, side, side), num_classes=4, channels=4, cells=6).train()
    logits, auxiliary = net(torch.randn(2, 1, side, side))
    assert logits.shape == (2, 4)
    assert auxiliary is not None
    assert auxiliary.shape == (2, 4)
    assert net.eval()(torch.randn(2, 1, side, side))[1] is None


def test_images_too_small_for_the_head_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^auxiliary must be false for images smaller than 5x5"):
        network(input_shape=(1, 4, 4), channels=4, cells=6)
    with pytest.raises(ConfigError, match=r"^auxiliary must be false for images smaller than 33x33"):
        network(input_shape=(1, 32, 32), channels=4, cells=6, stem="imagenet")
    assert network(input_shape=(1, 4, 4), channels=4, cells=6, auxiliary=False)(torch.randn(2, 1, 4, 4))[1] is None


@pytest.mark.parametrize(("side", "kernel", "stride"), [(8, 5, 3), (7, 5, 2)])
def test_the_papers_heads(side: int, kernel: int, stride: int) -> None:
    pool = AuxiliaryHead(4, 10, side=side).features[1]
    assert isinstance(pool, nn.AvgPool2d)
    assert (pool.kernel_size, pool.stride) == (kernel, stride)


@pytest.mark.parametrize("side", range(2, 40))
def test_the_heads_pool_leaves_two_by_two(side: int) -> None:
    pool = AuxiliaryHead(1, 2, side=side).features[1]
    assert pool(torch.zeros(1, 1, side, side)).shape == (1, 1, 2, 2)


def test_batch_norms_have_parameters_and_pools_none() -> None:
    net = network(channels=4, cells=6)
    assert all(module.affine for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    pools = [m for m in net.modules() if type(m).__name__ == "Pool"]
    assert pools
    assert all(isinstance(pool.norm, nn.Identity) for pool in pools)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3, 3)
    dropped = drop_path(x, 0.3)
    per_sample = dropped.flatten(1)
    assert torch.equal(per_sample.min(1).values, per_sample.max(1).values)
    assert per_sample[:, 0].unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert float((per_sample[:, 0] == 0).float().mean()) == pytest.approx(0.3, abs=0.03)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.05)


def test_identity_is_never_dropped(monkeypatch) -> None:
    seen: list[nn.Module] = []
    net = network(channels=2, cells=3).train()
    for module in net.modules():
        if type(module).__name__ in ("Identity", "SeparableConv", "DilatedConv", "FactorizedReduce", "Pool"):
            module.register_forward_hook(lambda m, _, output: seen.append(m))
    calls = []
    monkeypatch.setattr("src.spaces.cnn.network.drop_path", lambda x, p: calls.append(p) or x)
    net.drop_path = 0.2
    net(torch.randn(2, 3, 32, 32))
    edges = [op for cell in net.cells for node in cell.get_submodule("nodes").children() for op in node.children()]
    identities = sum(isinstance(op, nn.Identity) for op in edges)
    assert identities > 0
    assert len(calls) == len(edges) - identities
    assert set(calls) == {0.2}
    calls.clear()
    net.eval()(torch.randn(2, 3, 32, 32))
    assert calls == []
