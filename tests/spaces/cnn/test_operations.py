"""The registry: an operation is registered once, then searched, retrained, drawn and written."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from src.common.errors import ConfigError
from src.fast.fused import FusedNetwork, FusedSupernet
from src.methods.discretizers import Strongest
from src.reports.cells import cell_figure
from src.reports.drawing import to_svg
from src.reports.names import colours, words
from src.spaces.cnn.cells import Supernet
from src.spaces.cnn.genotypes import CANDIDATES, Edge, Genotype, parse_cells
from src.spaces.cnn.network import Network
from src.spaces.cnn.operations import OPERATIONS, SPARE_COLOURS, Operation, import_operations, operation
from src.spaces.relaxed import RelaxedSpace

FIELD = ("sep_conv_7x7", "conv_7x1_1x7", "conv_3x3")


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Leave the registry as it was."""
    before = dict(OPERATIONS)
    yield
    OPERATIONS.clear()
    OPERATIONS.data.update(before)


class Halved(nn.Module):
    """Half of its input."""

    def __init__(self, channels: int, stride: int, searching: bool) -> None:
        super().__init__()
        assert stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def test_the_papers_candidates_in_the_order_of_its_alphas() -> None:
    assert CANDIDATES == (
        "none",
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "dil_conv_3x3",
        "dil_conv_5x5",
    )


@pytest.mark.parametrize("searching", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_field_operations_are_the_official_ones(stride: int, searching: bool) -> None:
    """OPS of cnn/operations.py in quark0/darts; conv_3x3 as its ReLUConvBN."""
    affine = not searching

    def separable() -> list[nn.Module]:
        parts: list[nn.Module] = []
        for step in (stride, 1):
            parts += [nn.ReLU(), nn.Conv2d(6, 6, 7, stride=step, padding=3, groups=6, bias=False)]
            parts += [nn.Conv2d(6, 6, 1, bias=False), nn.BatchNorm2d(6, affine=affine)]
        return parts

    official = {
        "sep_conv_7x7": separable(),
        "conv_7x1_1x7": [
            nn.ReLU(),
            nn.Conv2d(6, 6, (1, 7), stride=(1, stride), padding=(0, 3), bias=False),
            nn.Conv2d(6, 6, (7, 1), stride=(stride, 1), padding=(3, 0), bias=False),
            nn.BatchNorm2d(6, affine=affine),
        ],
        "conv_3x3": [
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(6, affine=affine),
        ],
    }
    x = torch.randn(2, 6, 9, 9)
    for name in FIELD:
        ours, theirs = OPERATIONS[name](6, stride, searching), nn.Sequential(*official[name])
        with torch.no_grad():
            for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                mine.copy_(other)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)


def lab(colour: str) -> tuple[np.ndarray, float]:
    """Return a colour in CIE L*a*b*, and its luminance."""
    channels = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(matrix @ linear / np.array([0.9505, 1, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)]), float(y**3)


def test_colours_can_be_told_apart_and_seen_on_white() -> None:
    shades = [*(known.colour for known in OPERATIONS.values()), *SPARE_COLOURS]
    for one, other in itertools.combinations(shades, 2):
        assert np.linalg.norm(lab(one)[0] - lab(other)[0]) > 20, (one, other)
    for shade in shades:
        assert re.fullmatch("#[0-9a-f]{6}", shade)
        assert 1.05 / (lab(shade)[1] + 0.05) > 2


def test_what_a_registration_leaves_open_is_filled_in() -> None:
    operation("own_one", takes_stride=False)(Halved)
    operation("own_two", words="mine", meaning="halves", colour="#123456")(Halved)
    one, two = OPERATIONS["own_one"], OPERATIONS["own_two"]
    assert (one.words, one.family, one.meaning) == ("own one", "own one", "Half of its input.")
    assert (two.words, two.family, two.meaning, two.colour) == ("mine", "mine", "halves", "#123456")
    OPERATIONS["own_three"] = lambda channels, stride, searching: nn.Identity()
    assert one.colour != OPERATIONS["own_three"].colour
    assert colours(["own_three", "x", "own_one"])["own_one"] == one.colour == colours(["own_one"])["own_one"]
    assert len(set(colours([*OPERATIONS, "x"]).values())) == len(OPERATIONS) + 1


def test_more_operations_than_colours() -> None:
    for number in range(20):
        OPERATIONS[f"own_{number}"] = Halved
    assert {OPERATIONS[f"own_{number}"].colour for number in range(20)} == set(SPARE_COLOURS)
    assert len(colours([*OPERATIONS, "x"])) == len(OPERATIONS) + 1


@pytest.mark.parametrize("name", ["no name", "keys", "3x3", ""])
def test_names_that_no_module_can_have(name: str) -> None:
    with pytest.raises(ValueError, match="must be an identifier"):
        OPERATIONS[name] = Halved


def test_a_name_is_registered_once_but_a_cell_of_a_notebook_may_run_again() -> None:
    with pytest.raises(
        ValueError, match=r"'skip_connect' is already registered, by src\.spaces\.cnn\.operations\._skip"
    ):
        operation("skip_connect")(Halved)
    operation("own")(Halved)
    operation("own", words="again")(Halved)
    assert OPERATIONS["own"].words == "again"


def test_an_operation_without_stride_is_preceded_by_a_reduction() -> None:
    OPERATIONS["own"] = Operation(Halved, takes_stride=False)
    x = torch.randn(2, 6, 7, 7)
    assert torch.equal(OPERATIONS["own"](6, 1, True)(x), x / 2)
    assert OPERATIONS["own"](6, 2, True)(x).shape == (2, 6, 4, 4)
    assert not [name for name, _ in OPERATIONS["own"](6, 2, True).named_parameters() if "norm" in name]
    assert [name for name, _ in OPERATIONS["own"](6, 2, False).named_parameters() if "norm" in name]


def test_an_operation_of_your_own_is_searched_retrained_drawn_and_written() -> None:
    operation("own", words="my own", takes_stride=False)(Halved)
    shape = {"input_shape": (3, 8, 8), "num_classes": 3, "channels": 4, "cells": 3}
    net = RelaxedSpace(Supernet(**shape, nodes=2, candidates=("none", "skip_connect", "own")))
    with torch.no_grad():
        for alpha in net.alphas.values():
            alpha.copy_(torch.tensor([0.0, 0.0, 1.0]))
    derived = parse_cells(Strongest()(net.by_name(net.softmax()), net.spec).to_plain())
    genotype = Genotype.from_architecture(derived)
    assert {edge.operation for node in (*genotype.normal, *genotype.reduce) for edge in node} == {"own"}
    logits, _ = Network(derived, **shape, auxiliary=False)(torch.randn(2, 3, 8, 8))
    assert logits.shape == (2, 3)
    assert words("own") in to_svg(cell_figure(genotype.normal, "A cell"))


def test_field_operations_are_the_same_in_the_fused_form() -> None:
    torch.manual_seed(0)
    shape = {"input_shape": (3, 9, 9), "num_classes": 3, "channels": 4, "cells": 3}
    candidates = ("none", *FIELD, "sep_conv_3x3")
    plain, fast = (
        RelaxedSpace(kind(**shape, nodes=2, candidates=candidates)).double() for kind in (Supernet, FusedSupernet)
    )
    fast.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-9, atol=1e-9)
    cells = tuple((Edge(FIELD[node % 3], 0), Edge(FIELD[(node + 1) % 3], 1)) for node in range(3))
    architecture = Genotype(cells, cells).to_architecture()
    whole, fused = (kind(architecture, **shape, auxiliary=False).double() for kind in (Network, FusedNetwork))
    fused.load_state_dict(whole.state_dict())
    torch.testing.assert_close(fused(x)[0], whole(x)[0], rtol=1e-9, atol=1e-9)


def test_modules_that_register_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_archs_ops.py").write_text(
        "from torch import nn\nfrom src.spaces.cnn.operations import operation\n\n"
        "@operation('from_a_module')\ndef build(channels, stride, searching):\n    return nn.Identity()\n"
    )
    (tmp_path / "my_broken_ops.py").write_text("import nothing_of_this_name\n")
    import_operations(["my_archs_ops"])
    assert "from_a_module" in OPERATIONS
    sys.modules.pop("my_archs_ops")
    for name in ("my_absent_ops", "my_absent_package.ops", "", "a b"):
        with pytest.raises(ConfigError, match="operations must name modules that Python finds, got"):
            import_operations([name])
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):
        import_operations(["my_broken_ops"])
