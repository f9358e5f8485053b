from __future__ import annotations

import pytest

from src.architectures.architecture import Architecture, InputSpec, LayerSpec, Spec
from src.methods.decision import decided, flips, leads, margin, skips, strongest

EVEN = {"a": {"none": 0.25, "skip_connect": 0.25, "conv": 0.25, "pool": 0.25}}
SURE = {"a": {"none": 0.0, "skip_connect": 0.0, "conv": 1.0, "pool": 0.0}}


def test_decided() -> None:
    assert decided(EVEN.values()) == 0
    assert decided(SURE.values()) == 1
    assert decided([*EVEN.values(), *SURE.values()]) == pytest.approx(0.5)
    # An entropy of log(2) of at most log(4).
    assert decided([{"x": 0.5, "y": 0.5, "z": 0.0, "w": 0.0}]) == pytest.approx(0.5)
    # Weights that do not add up to 1, such as sigmoids, count by their shares.
    assert decided([{"x": 0.8, "y": 0.8}]) == pytest.approx(0)
    # There is nothing to decide with one candidate.
    assert decided([{"x": 1.0}]) is None
    assert decided([{"x": 1.0}, {"x": 0.5, "y": 0.5}]) == pytest.approx(0)


def test_margin() -> None:
    rows = {"one": {"a": 0.5, "none": 0.3, "b": 0.2}, "other": {"a": 0.1, "b": 0.9}, "alone": {"a": 1.0}}
    assert margin(rows) == pytest.approx((0.2 + 0.8) / 2)


def test_flips() -> None:
    before, after = strongest({**EVEN, "b": {"x": 0.6, "y": 0.4}}), strongest({**SURE, "b": {"x": 0.7, "y": 0.3}})
    assert before == {"a": "none", "b": "x"}
    assert flips(before, after) == 1
    assert flips(after, after) == 0


def test_skips() -> None:
    assert skips(Architecture({"a": "skip_connect", "b": "conv", "s": ("skip", "x"), "d": None}), EVEN) == 1
    assert skips(Architecture({"b": "x"}), {"b": {"x": 0.5, "y": 0.5}}) is None


def test_leads() -> None:
    spec: Spec = {
        "a": LayerSpec(("skip", "conv")),
        "b": LayerSpec(("skip", "conv")),
        "node": InputSpec(("a", "b"), 1),
        "free": InputSpec(("x", "y", "z"), 2),
    }
    expected = {
        "a": {"none": 0.5, "skip": 0.2, "conv": 0.3},
        "b": {"none": 0.1, "skip": 0.5, "conv": 0.4},
        "free": {"x": 0.5, "y": 0.3, "z": 0.2},
    }
    found = Architecture({"a": None, "b": "skip", "node": ("b",), "free": ("x", "y")})
    # `none` is never an answer, a dropped edge none that was given, and edges compete by their candidates.
    assert leads(expected, found, spec) == {"b": pytest.approx(0.1), "free": pytest.approx(0.1)}
    kept = Architecture({"a": "skip", "b": None, "node": ("a",), "free": ("x", "z")})
    below = {"a": pytest.approx(-0.1), "free": pytest.approx(-0.1)}
    assert leads(expected, kept, spec) == below, "another rule than the heaviest chose"
