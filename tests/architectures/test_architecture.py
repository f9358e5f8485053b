from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.architectures.architecture import NNI_NAMES, Architecture, InputSpec, LayerSpec
from src.spaces.cnn.genotypes import (
    CANDIDATES,
    NAMED_GENOTYPES,
    Edge,
    Genotype,
    cell_spec,
    edge_key,
    load_cells,
    parse_cells,
    switch_key,
)

SPEC = {
    "a": LayerSpec(("left", "right")),
    "b": LayerSpec(("left", "right")),
    "c": LayerSpec(("up", "down", "still")),
    "pick": InputSpec(("a", "b"), 1),
    "free": InputSpec(("x", "y", "z"), 2),
}
GOOD = {"a": "left", "b": [], "c": "still", "pick": ["a"], "free": ["x", "z"]}


def test_canonical_form() -> None:
    parsed = Architecture.parse(GOOD, SPEC)
    assert parsed.choices == {"a": "left", "b": None, "c": "still", "pick": ("a",), "free": ("x", "z")}
    assert parsed.to_plain() == GOOD


@pytest.mark.parametrize(
    ("key", "answer", "means"),
    [
        ("c", 1, "down"),
        ("c", [2], "still"),
        ("c", ["up"], "up"),
        ("c", [False, True, False], "down"),
        ("c", [0.0, 0.0, 1.0], "still"),
        ("free", [0, 1], ("x", "y")),
        ("free", ["z", "x"], ("x", "z")),
        ("free", [True, False, True], ("x", "z")),
        ("pick", "a", ("a",)),
        ("pick", 0, ("a",)),
        ("b", "right", None),  # an operation on an edge that was not kept
    ],
)
def test_every_form_of_an_answer(key: str, answer: object, means: object) -> None:
    assert Architecture.parse({**GOOD, key: answer}, SPEC).choices[key] == means


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": "downn"}, "did you mean 'down'? (allowed: up, down, still)"),
        ({"c": "none"}, "allowed: up, down, still"),
        ({"c": 3}, "c holds the index 3, allowed are 0 to 2"),
        ({"c": -1}, "allowed are 0 to 2"),
        ({"c": []}, "c names 0 operations, allowed is exactly one of up, down, still"),
        ({"c": ["up", "down"]}, "c names 2 operations"),
        ({"c": None}, "allowed are a name, an index or a list"),
        ({"c": {"up": 1}}, "allowed are a name, an index or a list"),
        ({"c": [True, True]}, "allowed are 3 values of 0 or 1"),
        ({"c": [0.0, 0.5, 0.5]}, "allowed are 3 values of 0 or 1"),
        ({"a": []}, "a names 0 operations"),  # kept, but without an operation
        ({"free": ["x"]}, "free names 1 inputs, allowed are 2 of x, y, z"),
        ({"free": ["x", "x"]}, "the same option twice"),
        ({"free": [0, 1, 2]}, "free names 3 inputs"),
        ({"extra": "left"}, "unknown choice 'extra'"),
    ],
)
def test_bad_answers_are_refused_with_what_is_allowed(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Architecture.parse({**GOOD, **change}, SPEC)
    assert "\n" not in str(caught.value)


def test_missing_keys_are_named() -> None:
    with pytest.raises(ValueError, match="no answer for a, c"):
        Architecture.parse({key: GOOD[key] for key in ("b", "pick", "free")}, SPEC)


@pytest.mark.parametrize("raw", [[], "left", 3, None, True])
def test_only_an_object_is_an_architecture(raw: object) -> None:
    with pytest.raises(ValueError, match="is a JSON object"):
        Architecture.parse(raw, SPEC)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(CANDIDATES),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(answers=st.dictionaries(st.sampled_from([*cell_spec(2), "other"]), json_values), keep=st.booleans())
def test_whatever_a_file_holds_ends_in_an_architecture_or_a_value_error(answers: dict, keep: bool) -> None:
    base = Genotype(
        normal=NAMED_GENOTYPES["DARTS_V2"].normal[:2], reduce=NAMED_GENOTYPES["DARTS_V2"].reduce[:2]
    ).to_architecture()
    raw = {**base.to_plain(), **answers} if keep else answers
    try:
        parsed = parse_cells(raw)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert parse_cells(json.loads(parsed.to_json())) == parsed


def genotypes() -> st.SearchStrategy[Genotype]:
    operation = st.sampled_from([name for name in CANDIDATES if name != "none"])

    def node(index: int) -> st.SearchStrategy:
        states = st.lists(st.integers(0, index - 1), min_size=2, max_size=2, unique=True).map(sorted)
        return states.flatmap(lambda pair: st.tuples(*(st.builds(Edge, operation, st.just(s)) for s in pair)))

    def cell(nodes: int) -> st.SearchStrategy:
        return st.tuples(*(node(index) for index in range(2, 2 + nodes)))

    return st.integers(1, 5).flatmap(lambda nodes: st.builds(Genotype, cell(nodes), cell(nodes)))


@given(genotype=genotypes())
def test_a_genotype_survives_its_file(genotype: Genotype) -> None:
    raw = json.loads(genotype.to_architecture().to_json())
    assert Genotype.from_architecture(parse_cells(raw)) == genotype


def test_a_file_of_nni_reads_as_it_is(tmp_path) -> None:
    ours = NAMED_GENOTYPES["DARTS_V1"].to_architecture()
    names = {ours_name: nni for nni, ours_name in NNI_NAMES.items()}
    raw = {
        key: names.get(answer, answer) if isinstance(answer, str) else answer for key, answer in ours.to_plain().items()
    }
    assert len(raw) == 36
    path = tmp_path / "epoch_49.json"
    path.write_text(json.dumps(raw, indent=2, sort_keys=True))
    assert load_cells(str(path)) == ours


def test_the_file_is_flat_sorted_and_complete(tmp_path) -> None:
    path = tmp_path / "genotype.json"
    NAMED_GENOTYPES["DARTS_V2"].to_architecture().write(path)
    text = path.read_text()
    raw = json.loads(text)
    assert text == json.dumps(raw, indent=2, sort_keys=True) + "\n"
    assert raw["normal_n5_p2"] == "dil_conv_3x3"
    assert raw["normal_n5_p1"] == []
    assert raw[switch_key("normal", 5)] == [edge_key("normal", 5, 0), edge_key("normal", 5, 2)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["genotype.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"normal_n2_p0": "sep_co', "is not valid JSON, truncated perhaps"),
        ("[1, 2]", "holds a JSON list"),
        ("", "is not valid JSON"),
        ("\xff\xfe", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("9" * 10_000, "is not valid JSON"),
        ("17", "holds a JSON int"),
        ('{"op_1": "conv"}', "is not a choice of the CNN cell space"),
        ('{"normal_n99_p0": "conv"}', "98 nodes a cell, allowed are 1 to 32"),
        ("{}", "0 nodes a cell"),
        ("Genotype(normal=[('skip_connect', 0)])", "is not valid JSON"),
        (" " * (2 << 20), "is larger than"),
    ],
)
def test_files_that_are_no_genotype(tmp_path, content: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_cells(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_mistyped_names(tmp_path) -> None:
    with pytest.raises(ValueError, match="cannot read genotype file"):
        load_cells(str(tmp_path / "absent.json"))
    with pytest.raises(ValueError, match=r"cannot read genotype file .*directory"):
        load_cells(str(tmp_path))
    with pytest.raises(ValueError, match="did you mean 'DARTS_V2'"):
        load_cells("DART_V2")
