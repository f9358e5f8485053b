from __future__ import annotations

import math
from pathlib import Path

import pytest

from src.architectures.architecture import Answer
from src.common.intervals import interval_of_mean, interval_of_share
from src.reports.decisions import decided, lead, uniform_entropy, verdict
from src.runs.saved import SavedRun

KEYS = ["normal_n2_p0", "normal_n2_p1"]


def search(weights: list[list[float]], history: dict[int, dict[str, Answer]]) -> SavedRun:
    """Return a search of two edges, whose candidates have the same weights."""
    names = ("none", "skip_connect", "sep_conv_3x3")
    lines = {name: list(line) for name, line in zip(names, zip(*weights, strict=True), strict=True)}
    return SavedRun(
        Path("run"),
        alphas=dict.fromkeys(KEYS, lines),
        alpha_epochs=list(range(len(weights))),
        genotype=history[max(history)],
        history=history,
    )


def test_the_lead_is_over_the_next_that_could_have_been_chosen() -> None:
    weights = {"none": 0.5, "skip_connect": 0.3, "sep_conv_3x3": 0.2}
    assert lead(weights, ("skip_connect",)) == pytest.approx(0.1)
    assert lead(weights, ()) == pytest.approx(0.1)  # dropped: its two heaviest
    assert lead(weights, ("sep_conv_3x3",)) == pytest.approx(-0.1)  # what was kept is not the heaviest
    assert lead({"a": 0.5, "b": 0.3, "c": 0.2}, ("a", "b")) == pytest.approx(0.1)
    assert lead({"none": 0.9, "a": 0.1}, ("a",)) is None  # there was no other


def test_decided_goes_from_0_to_1() -> None:
    assert decided([{"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25}]) == pytest.approx(0)
    assert decided([{"a": 1.0, "b": 0.0}]) == pytest.approx(1)
    assert decided([{"a": 1.0, "b": 0.0}, {"a": 0.5, "b": 0.5}]) == pytest.approx(0.5)
    assert decided([{"a": 3.0, "b": 1.0}]) == decided([{"a": 0.75, "b": 0.25}])  # sigmoids do not add up to 1
    assert decided([{"a": 1.0}]) is None


def test_the_entropy_of_equal_weights_is_the_mean_over_choices() -> None:
    row = [0.0]
    assert uniform_entropy({"x": {"a": row, "b": row}, "y": {"a": row, "b": row, "c": row, "d": row}}) == pytest.approx(
        1.5 * math.log(2)
    )
    assert uniform_entropy({}) is None


def test_the_verdict_on_a_narrow_and_on_a_clear_decision() -> None:
    kept: dict[str, Answer] = dict.fromkeys(KEYS, "skip_connect")
    other: dict[str, Answer] = {**kept, KEYS[0]: "sep_conv_3x3"}
    narrow = verdict(search([[0.34, 0.33, 0.33], [0.2, 0.403, 0.397]], {0: other, 1: kept}))
    assert [finding.tone for finding in narrow] == ["weak", "plain", "weak"]
    assert narrow[0].text.startswith("2 of 2 kept edges lead by less than 1 percentage point")
    assert narrow[2].text == "The architecture still changed in the last epoch, in 1 choice."
    weights = [[0.4, 0.3, 0.3]] * 3 + [[0.5, 0.45, 0.05]]
    clear = verdict(search(weights, {0: other, 1: kept, 2: kept, 3: kept}))
    assert [finding.tone for finding in clear] == ["good", "plain", "plain", "good"]
    assert clear[2].text.startswith("“none” is the heaviest candidate on 2 of 2 edges")
    assert clear[3].text == "The architecture last changed in epoch 1, 2 epochs before the end."


def test_a_normal_cell_of_skip_connections_is_a_warning() -> None:
    genotype: dict[str, Answer] = {f"normal_n{node}_p0": "skip_connect" for node in range(2, 5)}
    genotype |= {"normal_n2_p1": "sep_conv_3x3", "normal_n3_p1": None, "reduce_n2_p0": "skip_connect"}
    (finding,) = verdict(SavedRun(Path("run"), genotype=genotype))
    assert finding.tone == "weak"
    assert finding.text.startswith("The normal cell has skip connections on 3 of 4 edges.")
    assert verdict(SavedRun(Path("run"), genotype={**genotype, "normal_n2_p0": "sep_conv_3x3"})) == []


def test_intervals() -> None:
    """Against published values: Wilson's for 90 of 100, and Student's t of 2.776 for five values."""
    assert interval_of_share(0.9, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert interval_of_share(1.0, 50)[1] == 1.0
    low, high = interval_of_mean([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (low, high) == pytest.approx((3 - 2.776 * math.sqrt(2.5 / 5), 3 + 2.776 * math.sqrt(2.5 / 5)), abs=1e-3)
