"""The space of which everything is trained: its networks, and which of its architectures are the same function."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import read_csv, read_json, refused, run
from conformance.space import SpaceConformance
from torch import Tensor, nn

from src.architectures.architecture import Architecture
from src.architectures.enumeration import Architectures
from src.benchmarks.small_1d import small_1d
from src.common.errors import ConfigError
from src.spaces.choices import fix, spec_of
from src.spaces.small_1d import AveragePool, Small1d

TINY = ["data=mnist_1d", "trainer=cpu", "callbacks=none", "logger=none", "trainer.limit_train_batches=2"]


def space(**changes: Any) -> Small1d:
    torch.manual_seed(0)
    return Small1d(input_shape=(1, 12), num_classes=3, **{"channels": 4, **changes})


def signals(count: int = 5) -> Tensor:
    return torch.randn(count, 1, 12, generator=torch.Generator().manual_seed(1))


class TestConformance(SpaceConformance):
    outputs = 3

    def space(self) -> nn.Module:
        return space()

    def inputs(self) -> tuple[Tensor, ...]:
        return (signals(),)


def test_85_of_125_architectures_differ_and_equal_ones_have_equal_outputs() -> None:
    architectures = Architectures(spec_of(space()))
    every = [architectures[number] for number in range(architectures.count)]
    assert len(every) == 125
    with_weights = space()
    outputs: dict[str, list[Tensor]] = {}
    for architecture in every:
        network = fix(deepcopy(with_weights), architecture).train()
        trained = network(signals())  # which also moves the running statistics
        canonical = Small1d.canonical(architecture)
        assert Small1d.canonical(canonical) == canonical
        both = torch.cat([trained, network.eval()(signals())]).detach()
        outputs.setdefault(str(canonical.choices), []).append(both)
    assert len(outputs) == 85
    for same in outputs.values():
        assert all(torch.equal(same[0], other) for other in same[1:])
    # Those that are told apart do differ, but for the same operations in another order, such as a skip behind a pooling.
    distinct = {tuple(same[0].flatten().tolist()) for same in outputs.values()}
    assert len(distinct) > 75


@pytest.mark.parametrize("length", [1, 2, 7])
def test_the_pooling_is_that_of_torch(length: int) -> None:
    x = torch.randn(3, 2, length, generator=torch.Generator().manual_seed(0))
    expected = nn.AvgPool1d(3, stride=1, padding=1, count_include_pad=False)(x)
    torch.testing.assert_close(AveragePool()(x), expected)


def test_a_search_that_is_looked_up_and_a_retrain_by_command(tmp_path: Path) -> None:
    found, trained = tmp_path / "found", tmp_path / "trained"
    done = run("search", "space=small_1d", "epochs=1", *TINY, "trainer.limit_val_batches=1", f"folder={found}")
    assert done.code == 0, done.err
    (row,) = read_csv(found / "metrics.csv")
    standing = small_1d().standing(Architecture(read_json(found / "genotype.json")))
    assert [float(row[f"table_{name}"]) for name in standing._fields] == pytest.approx(list(standing), rel=1e-6)
    half = "data.validation_fraction=0.5"
    done = run("retrain", f"genotype={found}", "epochs=1", *TINY, half, f"folder={trained}")
    assert done.code == 0, done.err
    record = read_json(trained / "result.json")
    assert record["genotype"] == read_json(found / "genotype.json")
    assert set(record["genotype"]) == {"n1_p0", "n2_p0", "n2_p1"}
    assert (record["data"]["train_samples"], record["data"]["validation_samples"]) == (2000, 2000)
    assert 0 <= record["metrics"]["val_accuracy"] <= 1


def test_what_it_is_not_for_is_refused() -> None:
    line = refused(run("search", "space=small_1d", "data=digits"))
    assert "space: samples must be signals of shape (channels, length), such as data=mnist_1d; got (1, 8, 8)" in line
    with pytest.raises(ConfigError, match="channels must be 1 or more, got 0"):
        space(channels=0)
