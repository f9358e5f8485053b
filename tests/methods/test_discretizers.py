from __future__ import annotations

import pytest

from src.architectures.architecture import InputSpec, LayerSpec, Spec
from src.methods.discretizers import Strongest, StrongestProduct

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
