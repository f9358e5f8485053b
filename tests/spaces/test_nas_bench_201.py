"""The space of NAS-Bench-201 and the published table, against numbers of its authors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Done, read_csv, read_json, refused, run
from conformance.space import SpaceConformance
from omegaconf import OmegaConf

from src.architectures.architecture import Architecture
from src.benchmarks.nas_bench_201 import nas_bench_201
from src.common.errors import ConfigError
from src.runs.folder import RunFolder
from src.spaces.choices import fix
from src.spaces.nas_bench_201 import NasBench201, to_text

# Rows to the base 5, with the millions of weights that the published table has for them on CIFAR-10.
PARAMS = {
    "111111": 0.073306,
    "000000": 0.073306,
    "333132": 1.073466,
    "032301": 0.587386,
    "244300": 0.344346,
    "421014": 0.101306,
    "410034": 0.316346,
}


def of(digits: str) -> Architecture:
    return nas_bench_201().architecture(int(digits, 5))


@pytest.mark.parametrize("digits", PARAMS)
def test_networks_have_as_many_weights_as_the_published_ones(digits: str) -> None:
    network = fix(NasBench201(input_shape=(3, 32, 32), num_classes=10, affine=True), of(digits))
    assert sum(weight.numel() for weight in network.parameters()) == round(PARAMS[digits] * 1e6)


def test_the_best_architecture_is_the_published_one() -> None:
    table = nas_bench_201()
    best = table.architecture(int(table.accuracies.argmax()))
    assert (
        to_text(best)
        == "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"
    )
    assert table.standing(best) == pytest.approx((0.9160667, 1 - 0.5 / 15625, 0.0), abs=1e-6)


def test_an_architecture_of_skips_has_the_accuracy_that_the_literature_gives_for_darts() -> None:
    assert round(100 * nas_bench_201("cifar10").standing(of("111111")).accuracy, 2) == 39.77


@pytest.mark.parametrize(("data", "best"), [("cifar10", 91.61), ("cifar100", 73.49), ("imagenet16_120", 46.73)])
def test_the_table_is_whole(data: str, best: float) -> None:
    table = nas_bench_201(data)
    assert table.runs.shape == (15625, 3)
    assert (np.isfinite(table.runs).sum(axis=1) >= 2).all()
    assert round(100 * table.accuracies.max(), 2) == best


def test_rows_and_architectures_are_one_to_one() -> None:
    table = nas_bench_201()
    for row in (0, 1, 5, 3124, 7777, 15624):
        assert table.row(table.architecture(row)) == row


def test_what_the_table_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the table has n1_p0 as one of zeroize, skip_connect, .*, got none"):
        nas_bench_201().row(Architecture({"n1_p0": "none"}))
    with pytest.raises(ConfigError, match="cifar10, cifar100, imagenet16_120"):
        nas_bench_201("cifar")


class TestConformance(SpaceConformance):
    def space(self) -> NasBench201:
        return NasBench201(input_shape=(3, 8, 8), num_classes=4, channels=2, cells=1)

    def inputs(self) -> tuple[torch.Tensor, ...]:
        return (torch.randn(4, 3, 8, 8),)


def test_a_fixed_network_computes_what_its_graph_says() -> None:
    """The cell |conv~0|+|zeroize~0|skip~1|+|skip~0|zeroize~1|pool~2| is x + pool(conv(x))."""
    torch.manual_seed(0)
    network = fix(NasBench201(input_shape=(3, 8, 8), num_classes=2, channels=2, cells=1), of("301104")).eval()
    cell: Any = network.get_submodule("layers.0")
    x = torch.randn(2, 2, 8, 8)
    conv, pool = cell.edges["n1_p0"], cell.edges["n3_p2"]
    assert torch.equal(cell(x), x + pool(conv(x)))


TINY = ["data.batch_size=32", "trainer=cpu", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1"]
TINY += ["callbacks=none"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    folder = tmp_path_factory.mktemp("searched") / "run"
    space = ["space=nas_bench_201", "space.channels=2", "space.cells=1", "space.table=cifar100"]
    done = run("search", *space, *TINY, "data=digits", "epochs=2", f"folder={folder}")
    assert done.code == 0, done.err
    return folder, done


def test_each_epoch_is_looked_up(searched: tuple[Path, Done]) -> None:
    folder, done = searched
    table = nas_bench_201("cifar100")
    for epoch, row in enumerate(read_csv(folder / "metrics.csv")):
        choices = read_json(RunFolder(folder).epoch(epoch))
        found = table.standing(Architecture(choices))
        assert [float(row[f"table_{name}"]) for name in found._fields] == pytest.approx(list(found), rel=1e-6)
    found = table.standing(Architecture(read_json(folder / "genotype.json")))
    page = (folder / "report.html").read_text()
    assert "Regret" in page
    assert read_json(folder / "result.json")["table"] == "cifar100"
    assert f"{100 * found.accuracy:.2f} %" in page
    assert "accuracy once trained on cifar100, by the table" in page
    words = f"once trained on cifar100, better than {100 * found.percentile:.1f} % of the space, regret"
    assert f"table     {100 * found.accuracy:.2f} % {words} {100 * found.regret:.2f} %\n" in done.out


@pytest.mark.parametrize(
    ("overrides", "affine"), [([], True), (["space.affine=false"], False), (["init=search"], False)]
)
def test_a_retrain_has_the_batch_norms_of_the_published_networks(
    overrides: list[str], affine: bool, searched: tuple[Path, Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for weights of the search, which has no parameters in them, and where the command line says otherwise."""
    monkeypatch.setattr("src.retrain.write_report", lambda folder: folder / "report.html")
    folder = tmp_path / "run"
    options = [*TINY, "epochs=1", "trainer.limit_test_batches=1", f"genotype={searched[0]}", f"folder={folder}"]
    done = run("retrain", *options, *overrides)
    assert done.code == 0, done.err
    assert OmegaConf.load(folder / "config.yaml").space.affine is affine
    assert ("NasBench201, with affine=true)" in done.out) is affine


def test_a_mistyped_table_is_refused() -> None:
    line = refused(run("search", "space=nas_bench_201", "data=digits", "space.table=cifar"))
    assert "space: unknown table 'cifar', did you mean 'cifar10'?" in line
