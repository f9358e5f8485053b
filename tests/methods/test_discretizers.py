from __future__ import annotations

import pytest

from src.architectures.architecture import InputSpec, LayerSpec, Spec
from src.common.errors import ConfigError
from src.methods.discretizers import Strongest, StrongestProduct, Threshold

SPEC: Spec = {
    "a": LayerSpec(("conv", "pool")),
    "b": LayerSpec(("conv", "pool")),
    "c": LayerSpec(("conv", "pool")),
    "node": InputSpec(("a", "b", "c"), 1),
    "read": InputSpec(("early", "late"), 1),
}
WEIGHTS = {
    "a": {"none": 0.1, "conv": 0.6, "pool": 0.3},
    "b": {"none": 0.5, "conv": 0.2, "pool": 0.3},
    "c": {"none": 0.3, "conv": 0.5, "pool": 0.2},
    "read": {"early": 0.4, "late": 0.6},
}
# Products with the edges' weights: a 0.12, b 0.15, c 0.15.
PRODUCTS_DISAGREE = {"node": {"a": 0.2, "b": 0.5, "c": 0.3}}


def test_without_edge_weights_the_strongest_candidates_decide() -> None:
    choices = Strongest()(WEIGHTS, SPEC).choices
    assert choices == {"a": "conv", "b": None, "c": None, "node": ("a",), "read": ("late",)}


@pytest.mark.parametrize(
    ("edges", "kept"),
    [
        ({"a": 0.2, "b": 0.5, "c": 0.3}, "b"),  # 0.12, 0.15 and 0.15: of equals the first
        ({"a": 0.2, "b": 0.4, "c": 0.4}, "c"),  # 0.12, 0.12 and 0.20: neither the heaviest candidate nor edge alone
        ({"a": 0.5, "b": 0.25, "c": 0.25}, "a"),
        ({"a": 0.0, "b": 1.0, "c": 0.0}, "b"),
    ],
)
def test_products_of_candidate_and_edge_decide(edges: dict[str, float], kept: str) -> None:
    choices = StrongestProduct()({**WEIGHTS, "node": edges}, SPEC).choices
    candidates = {"a": "conv", "b": "pool", "c": "conv"}
    assert choices["node"] == (kept,)
    assert {key: choices[key] for key in candidates} == {
        key: candidates[key] if key == kept else None for key in candidates
    }
    assert choices["read"] == ("late",)  # inputs with weights of their own are no edges


FAIR: Spec = {
    **{key: LayerSpec(("conv", "pool")) for key in "abcdef"},
    "first": InputSpec(("a", "b"), 2),
    "second": InputSpec(("c", "d", "e"), 2, may_be_empty=True),
    "shared": InputSpec(("e", "f"), 1, may_be_empty=True),
    "read": InputSpec(("early", "late"), 1),
}


def fair(**weights: float) -> dict[str, dict[str, float]]:
    """Return mixing weights in which the stronger candidate of an edge has a given weight."""
    edges = {key: {"none": 0.99, "conv": weight, "pool": 0.1} for key, weight in weights.items()}
    return {**edges, "read": {"early": 0.2, "late": 0.3}}


@pytest.mark.parametrize(
    ("weights", "kept", "remark"),
    [
        ({"a": 0.9, "b": 0.86, "c": 0.9, "d": 0.95, "e": 0.9, "f": 0.99}, "ab cd f", None),
        # The two strongest are taken first: e is third, though it passes. b is dropped.
        (
            {"a": 0.9, "b": 0.84, "c": 0.9, "d": 0.95, "e": 0.87, "f": 0.1},
            "a cd e",
            "1 of 5 edges dropped, whose operations weigh less than 0.85",
        ),
        ({"a": 0.85, "b": 0.1, "c": 0.2, "d": 0.3, "e": 0.4, "f": 0.9}, "a - f", "3 of 5 edges dropped, whose operations "
         "weigh less than 0.85"),
        # The first may not be empty.
        (
            {"a": 0.5, "b": 0.6, "c": 0.2, "d": 0.9, "e": 0.4, "f": 0.3},
            "b d -",
            "2 of 4 edges dropped, whose operations weigh less than 0.85; 1 such kept, where a node needs an edge",
        ),
        # None passes: the threshold decides nothing.
        (
            {"a": 0.5, "b": 0.6, "c": 0.2, "d": 0.8, "e": 0.4, "f": 0.3},
            "ab de e",
            "no edge reaches the threshold of 0.85 (the strongest has 0.8), so it was not applied: search longer, or set a "
            "lower method.discretizer.threshold",
        ),
    ],
)  # fmt: skip
def test_a_threshold_after_the_strongest_edges(weights: dict[str, float], kept: str, remark: str | None) -> None:
    threshold = Threshold()
    choices = threshold(fair(**weights), FAIR).choices
    nodes = [tuple(node.strip("-")) for node in kept.split()]
    assert [choices[key] for key in ("first", "second", "shared")] == nodes
    edges = {key for node in nodes for key in node}
    assert {key: choices[key] for key in "abcdef"} == {key: "conv" if key in edges else None for key in "abcdef"}
    assert choices["read"] == ("late",)  # it weighs less than the threshold, but is no edge
    assert threshold.remark(fair(**weights), FAIR) == remark


def test_thresholds() -> None:
    weights = fair(a=0.5, b=0.6, c=0.2, d=0.8, e=0.4, f=0.3)
    assert Threshold(0.0)(weights, FAIR) == Strongest()(weights, FAIR)
    assert Threshold(0.8)(weights, FAIR).choices["second"] == ("d",)
    layers: Spec = {key: rule for key, rule in FAIR.items() if key in "abcdef"}
    assert Threshold()(weights, layers) == Strongest()(weights, layers)
    assert Threshold().remark(weights, layers) is None  # there are no edges
    with pytest.raises(ConfigError, match=r"^threshold must be 0 to 1, got 85$"):
        Threshold(85)
