from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.common.errors import ConfigError
from src.spaces.cnn.genotypes import (
    CANDIDATES,
    NAMED_GENOTYPES,
    Edge,
    EdgePlace,
    Genotype,
    cell_spec,
    edge_key,
    edge_of,
    parse_cells,
    split_keys,
    switch_key,
)
from src.spaces.cnn.operations import OPERATIONS

V2 = NAMED_GENOTYPES["DARTS_V2"].to_architecture()
DERIVED = [name for name in OPERATIONS if name != "none"]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(list(OPERATIONS)),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def genotypes(operations: list[str] = DERIVED) -> st.SearchStrategy[Genotype]:
    def node(index: int) -> st.SearchStrategy:
        states = st.lists(st.integers(0, index - 1), min_size=2, max_size=2, unique=True).map(sorted)
        edge = st.sampled_from(operations)
        return states.flatmap(lambda pair: st.tuples(*(st.builds(Edge, edge, st.just(s)) for s in pair)))

    def cell(nodes: int) -> st.SearchStrategy:
        return st.tuples(*(node(index) for index in range(2, 2 + nodes)))

    return st.integers(1, 5).flatmap(lambda nodes: st.builds(Genotype, cell(nodes), cell(nodes)))


@given(answers=st.dictionaries(st.sampled_from([*cell_spec(2), "other"]), json_values), keep=st.booleans())
def test_any_answers_end_in_an_architecture_or_a_value_error(answers: dict, keep: bool) -> None:
    base = Genotype(NAMED_GENOTYPES["DARTS_V2"].normal[:2], NAMED_GENOTYPES["DARTS_V2"].reduce[:2]).to_architecture()
    raw = {**base.to_plain(), **answers} if keep else answers
    try:
        parsed = parse_cells(raw)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert parse_cells(json.loads(parsed.to_json())) == parsed


@given(genotype=genotypes())
def test_a_genotype_of_any_registered_operations_survives_its_file(genotype: Genotype) -> None:
    raw = json.loads(genotype.to_architecture().to_json())
    assert Genotype.from_architecture(parse_cells(raw)) == genotype


@given(genotype=genotypes(), switches=st.booleans(), edges=st.booleans())
def test_what_follows_from_the_rest_may_be_missing(genotype: Genotype, switches: bool, edges: bool) -> None:
    whole = genotype.to_architecture()
    raw = {
        key: answer
        for key, answer in whole.to_plain().items()
        if not (switches and key.endswith("_switch")) and not (edges and answer == [])
    }
    assert parse_cells(raw) == whole


def test_an_operation_on_an_edge_that_the_switch_drops_does_not_count() -> None:
    raw = {**V2.to_plain(), "normal_n5_p1": "sep_conv_5x5"}
    assert parse_cells(raw) == V2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normal_n3_switch": None, "normal_n3_p2": "skip_connect"}, "no answer for normal_n3_switch"),  # three edges
        ({"normal_n3_switch": None, "normal_n3_p1": []}, "no answer for normal_n3_switch"),  # one
        ({"normal_n3_p0": None}, "no answer for normal_n3_p0"),  # an edge that is kept
        ({"normal_n3_p0": "sep_conv_3x4"}, f"did you mean 'sep_conv_3x3'? (allowed: {', '.join(DERIVED)})"),
        ({"normal_n3_p0": "none"}, "unknown answer to normal_n3_p0: 'none'"),
        ({"normal_n3_p0": 7}, "must be an index from 0 to 6, got 7"),
        ({"normal_n2_p0": "a\nb"}, "unknown answer to normal_n2_p0: 'a b'"),
        ({"normal_n6_switch": ["normal_n6_p0", "normal_n6_p1"]}, "no answer for normal_n6_p0"),
        ({"op_1": "conv"}, "is not a choice of the CNN cell space, whose keys are {normal|reduce}_n{node}_p{state}"),
        ({"normal_n99_p0": 0}, "must have 1 to 32 nodes in a cell, got 98"),
    ],
)
def test_bad_answers_are_refused_with_what_is_allowed(change: dict[str, Any], message: str) -> None:
    raw = {**V2.to_plain(), **change}
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        parse_cells({key: answer for key, answer in raw.items() if answer is not None})
    assert "\n" not in str(caught.value)


def test_no_answers_are_no_architecture() -> None:
    with pytest.raises(ConfigError, match="got 0"):
        parse_cells({})


def test_indices_and_multi_hot_lists_count_the_papers_operations_without_none() -> None:
    paper = [name for name in CANDIDATES if name != "none"]
    raw = V2.to_plain()
    indexed = {key: paper.index(answer) if isinstance(answer, str) else answer for key, answer in raw.items()}
    hot = {
        key: [name == answer for name in paper] if isinstance(answer, str) else answer for key, answer in raw.items()
    }
    assert parse_cells(indexed) == parse_cells(hot) == V2


def test_names_that_nothing_is_registered_for_only_where_asked() -> None:
    raw = {**V2.to_plain(), "normal_n2_p0": "mine"}
    assert parse_cells(raw, also=["mine"]).choices["normal_n2_p0"] == "mine"
    with pytest.raises(ConfigError, match="unknown answer to normal_n2_p0: 'mine'"):
        parse_cells(raw)


def test_keys() -> None:
    assert edge_of(edge_key("reduce", 12, 3)) == EdgePlace("reduce", 12, 3)
    for key in ("normal_n2_p2", "normal_n02_p1", "normal_n2_switch", "other", "normal_n2_p0 "):
        assert edge_of(key) is None
    assert split_keys(cell_spec(4))[1] == [
        switch_key(kind, node) for kind in ("normal", "reduce") for node in range(2, 6)
    ]


def test_published_genotypes_as_their_code_prints_them() -> None:
    """The text of PC-DARTS is that of its repository's genotypes.py."""
    assert str(NAMED_GENOTYPES["PC_DARTS"]) == (
        "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 0), ('dil_conv_3x3', 1), "
        "('sep_conv_5x5', 0), ('sep_conv_3x3', 1), ('avg_pool_3x3', 0), ('dil_conv_3x3', 1)], "
        "normal_concat=range(2, 6), reduce=[('sep_conv_5x5', 1), ('max_pool_3x3', 0), ('sep_conv_5x5', 1), "
        "('sep_conv_5x5', 2), ('sep_conv_3x3', 0), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('sep_conv_3x3', 2)], "
        "reduce_concat=range(2, 6))"
    )
    for genotype in NAMED_GENOTYPES.values():
        assert parse_cells(genotype.to_architecture().to_plain()) == genotype.to_architecture()
