"""The file of a table, and the numbers that say how far it can be trusted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.architectures.architecture import Architecture, InputSpec, LayerSpec
from src.benchmarks.tabulated import Gate, Runs, count_of, distinct, options_of, read_table, table_text
from src.common.errors import ConfigError

OPTIONS = {"a": ("x", "y"), "b": ("x", "y", "z")}


def of(a: str, b: str) -> Architecture:
    return Architecture({"a": a, "b": b})


def swapped(architecture: Architecture) -> Architecture:
    """Return the one that stands for all with the same operations in another order."""
    a, b = sorted(map(str, architecture.choices.values()))
    return of(a, b) if b != "z" or a != "z" else architecture


def made() -> str:
    found = [
        (one, same, Runs([row / 10, row / 10 + 0.01], [row / 20, row / 20], [1.5, 2.5]))
        for row, (one, same) in distinct(OPTIONS, swapped).items()
    ]
    return table_text({"space": "made", "seeds": [0, 1]}, OPTIONS, found)


def test_architectures_that_differ_are_listed_once() -> None:
    assert count_of(OPTIONS) == 6
    assert {row: one for row, (one, _) in distinct(OPTIONS, None).items()} == {
        0: of("x", "x"),
        1: of("x", "y"),
        2: of("x", "z"),
        3: of("y", "x"),
        4: of("y", "y"),
        5: of("y", "z"),
    }
    assert distinct(OPTIONS, swapped)[1] == (of("x", "y"), [of("y", "x")])
    assert len(distinct(OPTIONS, swapped)) == 5


def test_a_canonical_form_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="canonical of the space must leave as it is what it returned"):
        distinct(OPTIONS, lambda one: of(str(one.choices["b"]).replace("z", "x"), str(one.choices["a"])))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(made())
    table = read_table(path)
    assert table.options == OPTIONS
    assert table.runs.tolist() == pytest.approx(
        np.array([[0, 0.01], [0.1, 0.11], [0.2, 0.21], [0.1, 0.11], [0.4, 0.41], [0.5, 0.51]])
    )
    assert table.tests is not None
    assert table.seconds is not None
    assert table.tests[:, 0].tolist() == pytest.approx([0, 0.05, 0.1, 0.05, 0.2, 0.25])
    assert table.seconds.tolist() == [[1.5, 2.5]] * 6
    assert table.standing(of("y", "x")) == table.standing(of("x", "y"))
    raw = json.loads(made())
    assert list(raw) == ["space", "seeds", "choices", "architectures"]


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.pop("architectures"),
        lambda raw: raw["architectures"].pop(),
        lambda raw: raw["architectures"][0].pop("test"),
        lambda raw: raw["architectures"][0].update(validation=[0.5]),
        lambda raw: raw["choices"].update(a=["x"]),
        lambda raw: raw["architectures"][0].update(same=3),
    ],
)
def test_a_file_that_is_not_whole_is_refused(change: Any, tmp_path: Path) -> None:
    raw = json.loads(made())
    change(raw)
    path = tmp_path / "table.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="holds no whole table"):
        read_table(path)
    path.write_text(made()[:-20])
    with pytest.raises(ConfigError, match="holds no whole table"):
        read_table(path)
    with pytest.raises(ConfigError, match="cannot read the table"):
        read_table(tmp_path / "missing.json")


def test_only_layer_choices_can_be_tabulated() -> None:
    assert options_of({"a": LayerSpec(("x", "y"))}) == {"a": ("x", "y")}
    with pytest.raises(ConfigError, match="but its b is an InputChoice"):
        options_of({"a": LayerSpec(("x", "y")), "b": InputSpec(("p", "q"), 1)})


def test_the_gate_takes_off_what_a_seed_does_to_all() -> None:
    quality = np.array([0.9, 0.8, 0.7, 0.6])
    noise = np.array([[0.001, -0.001], [-0.001, 0.001], [0.002, -0.002], [-0.002, 0.002]])
    gate = Gate.of(quality[:, None] + noise + np.array([0.1, -0.1]))
    assert gate.accuracies.tolist() == pytest.approx(quality)
    assert gate.between == pytest.approx(quality.std(ddof=1))
    assert gate.better_half == pytest.approx((0.1 / math.sqrt(2), 0.002))
    assert gate.noise == pytest.approx(math.sqrt((noise**2).sum() / 3))
    assert gate.ratio == pytest.approx(gate.between / gate.noise)
    assert dict(gate.rows())["ratio"].endswith("enough")


def test_the_gate_of_noise_alone_says_so() -> None:
    runs = 0.9 + 0.01 * np.random.default_rng(0).standard_normal((200, 3))
    gate = Gate.of(runs)
    assert gate.noise == pytest.approx(0.01, rel=0.1)
    assert gate.between == pytest.approx(0.01 / math.sqrt(3), rel=0.15)
    assert "too little: 5 or more" in dict(gate.rows())["ratio"]
