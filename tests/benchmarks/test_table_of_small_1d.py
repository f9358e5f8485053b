"""The table of small_1d: whole, in line with what its space says is the same, good enough to judge by, and reproducible."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import read_json, run

from src.architectures.architecture import Architecture
from src.benchmarks.small_1d import FILE, small_1d
from src.benchmarks.tabulated import ENOUGH, Gate, distinct
from src.common.errors import ConfigError
from src.spaces.choices import spec_of
from src.spaces.small_1d import Small1d


def test_it_has_all_architectures_of_the_space() -> None:
    table = small_1d()
    spec = spec_of(Small1d(input_shape=(1, 40), num_classes=10))
    assert table.options == {key: rule.candidates for key, rule in spec.items()}  # pyright: ignore[reportAttributeAccessIssue]
    assert table.tests is not None
    assert table.seconds is not None
    for values in (table.runs, table.tests, table.seconds):
        assert values.shape == (125, 3)
        assert np.isfinite(values).all()
    assert 0 < table.runs.min() < table.runs.max() < 1


def test_architectures_that_compute_the_same_share_their_runs() -> None:
    table = small_1d()
    for row in range(125):
        standing = table.row(Small1d.canonical(table.architecture(row)))
        assert table.runs[row].tolist() == table.runs[standing].tolist()
    found = distinct(table.options, Small1d.canonical)
    assert len(found) == 85
    written = json.loads(FILE.read_text())["architectures"]
    assert [entry["choices"] for entry in written] == [one.to_plain() for one, _ in found.values()]


def test_it_tells_architectures_apart() -> None:
    table = small_1d()
    rows = list(distinct(table.options, Small1d.canonical))
    gate = Gate.of(table.runs[rows])
    assert gate.ratio >= ENOUGH
    nothing = table.standing(Architecture(dict.fromkeys(table.options, "zeroize")))
    assert nothing.accuracy == pytest.approx(0.1, abs=0.01)
    assert table.standing(Architecture(dict.fromkeys(table.options, "conv_7"))).percentile > 0.9


def test_the_same_functions_in_another_order_were_trained_apart_and_differ_by_noise_alone() -> None:
    """A skip before an operation and one behind it are one function, so their rows say how large the noise is."""
    table = small_1d()
    gate = Gate.of(table.runs[list(distinct(table.options, Small1d.canonical))])
    differences = []
    for short in table.options["n2_p0"]:
        for name in ("conv_3", "conv_7"):
            before, behind = (
                Architecture({"n1_p0": first, "n2_p0": short, "n2_p1": second})
                for first, second in (("skip_connect", name), (name, "skip_connect"))
            )
            differences.append(table.standing(before).accuracy - table.standing(behind).accuracy)
    assert len(differences) == 10
    expected = gate.noise * np.sqrt(2 / gate.seeds)
    assert expected / 2 < np.sqrt(np.mean(np.square(differences))) < 2 * expected


def test_another_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown table 'mnist', did you mean 'mnist_1d'"):
        small_1d("mnist")


@pytest.mark.slow
@pytest.mark.parametrize(("row", "seed"), [(7, 0), (31, 1), (62, 2), (88, 0), (124, 1)])
def test_a_training_reaches_what_the_table_has(row: int, seed: int, tmp_path: Path) -> None:
    """As the command in the table says: the same bits on such a machine, within 3 standard deviations on others."""
    table, written = small_1d(), json.loads(FILE.read_text())
    architecture = Small1d.canonical(table.architecture(row))
    architecture.write(tmp_path / "architecture.json")
    settings = {"ARCHITECTURE": str(tmp_path / "architecture.json"), "SEED": str(seed)}
    typed = [word.split("=", 1) for word in shlex.split(written["training"])[3:]]
    threads = torch.get_num_threads()
    torch.set_num_threads(written["machine"][0]["threads"])
    try:
        done = run(
            "retrain", *[f"{key}={settings.get(value, value)}" for key, value in typed], f"folder={tmp_path / 'run'}"
        )
    finally:
        torch.set_num_threads(threads)
    assert done.code == 0, done.err
    result: dict[str, Any] = read_json(tmp_path / "run" / "result.json")
    assert table.tests is not None
    expected = {"val_accuracy": table.runs[row, seed], "test_accuracy": table.tests[row, seed]}
    found = {name: round(result["metrics"][name], 6) for name in expected}
    if result["machine"] in written["machine"]:
        assert found == expected
    else:
        for runs, name in ((table.runs, "val_accuracy"), (table.tests, "test_accuracy")):
            deviation = Gate.of(runs[list(distinct(table.options, Small1d.canonical))]).noise
            assert abs(found[name] - expected[name]) < 3 * np.sqrt(2) * deviation
