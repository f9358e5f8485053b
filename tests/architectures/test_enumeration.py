from __future__ import annotations

import json
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.architectures.architecture import Architecture, InputSpec, LayerSpec, Spec
from src.architectures.enumeration import Architectures
from src.spaces.choices import spec_of
from src.spaces.cnn.cells import Supernet

# Edge `c` leads into both nodes, and the edges of a node have different numbers of operations.
SHARED: Spec = {
    "a": LayerSpec(("conv", "pool")),
    "b": LayerSpec(("conv", "pool", "skip")),
    "c": LayerSpec(("conv", "skip")),
    "alone": LayerSpec(("relu", "tanh")),
    "first": InputSpec(("a", "b", "c"), 2),
    "second": InputSpec(("c", "b"), 1),
    "read": InputSpec(("early", "middle", "late"), 2),
}


def by_brute_force(spec: Spec) -> set[str]:
    """Return the different architectures among all answers to all choices, as text."""
    options = [
        rule.candidates if isinstance(rule, LayerSpec) else tuple(map(list, combinations(rule.inputs, rule.n_chosen)))
        for rule in spec.values()
    ]
    return {text(Architecture.parse(dict(zip(spec, answers, strict=True)), spec)) for answers in product(*options)}


def text(architecture: Architecture) -> str:
    return json.dumps(architecture.to_plain())


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Some layers, of which nodes share the first ones as edges, and a choice of other inputs."""
    layers = [f"layer{number}" for number in range(draw(st.integers(1, 4)))]
    spec: dict[str, LayerSpec | InputSpec] = {
        key: LayerSpec(tuple("xyz"[: draw(st.integers(1, 3))])) for key in draw(st.permutations(layers))
    }
    for number in range(draw(st.integers(0, 3))):
        edges = draw(st.lists(st.sampled_from(layers), min_size=1, max_size=4, unique=True))
        spec[f"node{number}"] = InputSpec(tuple(edges), draw(st.integers(1, len(edges))))
    if draw(st.booleans()):
        spec["read"] = InputSpec(("early", "middle", "late"), draw(st.integers(1, 3)))
    return spec


@given(specs())
def test_every_architecture_has_one_number(spec: Spec) -> None:
    architectures = Architectures(spec)
    found = [text(architecture) for architecture in architectures]
    assert len(found) == architectures.count
    assert len(set(found)) == len(found)
    assert set(found) == by_brute_force(spec)


def test_counts_by_hand() -> None:
    # first = a+b: second = c has 2*3*2, second = b 2*3; a+c: c 2*2, b 2*2*3; b+c: 3*2 either way. 46, times 2, times 3.
    assert Architectures(SHARED).count == 46 * 2 * 3
    # A cell: 1 * 3 * 6 * 10 ways to keep two edges a node, each of 8 edges with 7 operations.
    space = Supernet(input_shape=(1, 8, 8), channels=4, cells=3, num_classes=2)
    assert Architectures(spec_of(space)).count == (180 * 7**8) ** 2


def test_an_architecture_is_in_canonical_form() -> None:
    for architecture in Architectures(SHARED):
        assert Architecture.parse(architecture.to_plain(), SHARED) == architecture


@pytest.mark.parametrize("number", [-1, 46 * 6])
def test_there_is_no_other_number(number: int) -> None:
    with pytest.raises(IndexError, match=f"must be 0 to 275, got {number}"):
        Architectures(SHARED)[number]


def test_many_nodes_are_no_burden() -> None:
    """States of nodes one after the other must not multiply."""
    spec: dict[str, LayerSpec | InputSpec] = {}
    for node in range(40):
        edges = tuple(f"n{node}_{edge}" for edge in range(6))
        spec |= dict.fromkeys(edges, LayerSpec(("conv", "skip")))
        spec[f"n{node}"] = InputSpec(edges, 3)
    architectures = Architectures(spec)
    assert architectures.count == (20 * 2**3) ** 40
    for number in (0, architectures.count - 1):
        assert Architecture.parse(architectures[number].to_plain(), spec) == architectures[number]
