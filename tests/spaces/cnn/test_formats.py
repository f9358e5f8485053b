"""Genotypes as other programs write them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings

from src.common.errors import ConfigError
from src.spaces.cnn.formats import FORMATS, load_cells, read_cells
from src.spaces.cnn.genotypes import CANDIDATES, NAMED_GENOTYPES, Genotype
from tests.spaces.cnn.test_genotypes import genotypes

V1, V2 = (NAMED_GENOTYPES[name].to_architecture() for name in ("DARTS_V1", "DARTS_V2"))
BY_NAME = {format.name: format for format in FORMATS}

# As a search of the official code logs it, twice.
LOG = f"""2019-10-04 16:08:33,123 gpu device = 0
2019-10-04 16:08:40,011 genotype = {NAMED_GENOTYPES["DARTS_V1"]}
tensor([[0.1250, 0.1249, 0.1251]], device='cuda:0', grad_fn=<SoftmaxBackward>)
2019-10-05 01:02:03,004 genotype = {NAMED_GENOTYPES["DARTS_V2"]}
2019-10-05 01:02:09,004 valid_acc 87.336000
"""

# README of khanrc/pt.darts.
NESTED = """Genotype(
    normal=[[('sep_conv_3x3', 0), ('sep_conv_3x3', 1)],
            [('sep_conv_3x3', 0), ('sep_conv_3x3', 1)],
            [('sep_conv_3x3', 1), ('skip_connect', 0)],
            [('skip_connect', 0), ('dil_conv_3x3', 2)]],
    normal_concat=range(2, 6),
    reduce=[[('max_pool_3x3', 0), ('max_pool_3x3', 1)],
            [('skip_connect', 2), ('max_pool_3x3', 1)],
            [('max_pool_3x3', 0), ('skip_connect', 2)],
            [('skip_connect', 2), ('max_pool_3x3', 1)]],
    reduce_concat=range(2, 6))
"""

# configs/nas/mmcls/darts/DARTS_SUBNET_CIFAR_PAPER_ALIAS.yaml of open-mmlab/mmrazor has the paper's cells with unused
# operations on dropped edges.
MMRAZOR = """normal_n2:
  chosen:
  - normal_n2_p1
  - normal_n2_p0
normal_n2_p0:
  chosen:
  - sep_conv_3x3
normal_n2_p1:
  chosen:
  - sep_conv_3x3
reduce_n2:
  chosen:
  - reduce_n2_p0
  - reduce_n2_p1
reduce_n2_p0:
  chosen:
  - max_pool_3x3
reduce_n2_p1:
  chosen:
  - max_pool_3x3
normal_n3:
  chosen:
  - normal_n3_p0
  - normal_n3_p1
normal_n3_p0:
  chosen:
  - sep_conv_3x3
normal_n3_p1:
  chosen:
  - sep_conv_3x3
normal_n3_p2:
  chosen:
  - skip_connect
reduce_n3:
  chosen:
  - reduce_n3_p1
  - reduce_n3_p2
reduce_n3_p1:
  chosen:
  - max_pool_3x3
reduce_n3_p2:
  chosen:
  - skip_connect
"""

# nni/nas/hub/pytorch/nasnet.py of NNI 3 has the paper's second order cells in this form.
NNI3 = {
    "normal/op_2_0": "sep_conv_3x3",
    "normal/op_2_1": "sep_conv_3x3",
    "normal/input_2_0": [0],
    "normal/input_2_1": [1],
    "normal/op_3_0": "sep_conv_3x3",
    "normal/op_3_1": "sep_conv_3x3",
    "normal/input_3_0": [0],
    "normal/input_3_1": [1],
    "normal/op_4_0": "sep_conv_3x3",
    "normal/op_4_1": "skip_connect",
    "normal/input_4_0": [1],
    "normal/input_4_1": [0],
    "normal/op_5_0": "skip_connect",
    "normal/op_5_1": "dil_conv_3x3",
    "normal/input_5_0": [0],
    "normal/input_5_1": [2],
    "reduce/op_2_0": "max_pool_3x3",
    "reduce/op_2_1": "max_pool_3x3",
    "reduce/input_2_0": [0],
    "reduce/input_2_1": [1],
    "reduce/op_3_0": "skip_connect",
    "reduce/op_3_1": "max_pool_3x3",
    "reduce/input_3_0": [2],
    "reduce/input_3_1": [1],
    "reduce/op_4_0": "max_pool_3x3",
    "reduce/op_4_1": "skip_connect",
    "reduce/input_4_0": [0],
    "reduce/input_4_1": [2],
    "reduce/op_5_0": "skip_connect",
    "reduce/op_5_1": "max_pool_3x3",
    "reduce/input_5_0": [2],
    "reduce/input_5_1": [1],
}

AMOEBANET = """AmoebaNet = Genotype(
  normal = [
    ('avg_pool_3x3', 0),
    ('max_pool_3x3', 1),
    ('sep_conv_3x3', 0),
    ('sep_conv_5x5', 2),
    ('sep_conv_3x3', 0),
    ('avg_pool_3x3', 3),
    ('sep_conv_3x3', 1),
    ('skip_connect', 1),
    ('skip_connect', 0),
    ('avg_pool_3x3', 1),
    ],
  normal_concat = [4, 5, 6],
  reduce = [
    ('avg_pool_3x3', 0),
    ('sep_conv_3x3', 1),
    ('max_pool_3x3', 0),
    ('sep_conv_7x7', 2),
    ('sep_conv_7x7', 0),
    ('avg_pool_3x3', 1),
    ('max_pool_3x3', 0),
    ('max_pool_3x3', 1),
    ('conv_7x1_1x7', 0),
    ('sep_conv_3x3', 5),
  ],
  reduce_concat = [3, 4, 6]
)
"""


def fields(**changes: object) -> str:
    """Return the JSON of DARTS_V2's fields, with some changed."""
    genotype = NAMED_GENOTYPES["DARTS_V2"]
    whole = {
        "normal": [edge for node in genotype.normal for edge in node],
        "normal_concat": [2, 3, 4, 5],
        "reduce": [edge for node in genotype.reduce for edge in node],
        "reduce_concat": [2, 3, 4, 5],
    }
    return json.dumps({name: value for name, value in {**whole, **changes}.items() if value is not None})


@pytest.mark.parametrize(
    "text",
    [
        str(NAMED_GENOTYPES["DARTS_V2"]),
        LOG,
        NESTED,
        f"# mine\nDARTS_V2 = {NAMED_GENOTYPES['DARTS_V2']}  # the end\n",
        str(NAMED_GENOTYPES["DARTS_V2"]).replace("'", '"').replace("range(2, 6)", "[2, 3, 4, 5]").replace(")]", "),]"),
        re.sub(r"\w+=", "", str(NAMED_GENOTYPES["DARTS_V2"])),
        json.dumps(NNI3),
        json.dumps({**NNI3, "width": 36, "depth": 20, "normal/input_2_0": 0}),
        fields(),
        fields(normal=[list(node) for node in NAMED_GENOTYPES["DARTS_V2"].normal]),
        fields(normal_concat=None, reduce_concat=[5, 4, 3, 2]),
        json.dumps({key: answer for key, answer in V2.to_plain().items() if answer != []}),
        json.dumps({key: answer for key, answer in V2.to_plain().items() if isinstance(answer, str)}),
    ],
    ids=[
        "official",
        "training log",
        "pt.darts",
        "module of genotypes",
        "other spelling",
        "without names",
        "NNI 3",
        "NNI 3 with a size",
        "JSON of fields",
        "JSON of fields, nested",
        "JSON of fields, concat",
        "kept edges and switches",
        "kept edges",
    ],
)
def test_every_spelling_of_darts_v2(text: str, tmp_path: Path) -> None:
    path = tmp_path / "genotype"
    path.write_text(text)
    assert load_cells(str(path)) == read_cells(text) == V2


def test_text_in_place_of_a_path() -> None:
    assert load_cells(str(NAMED_GENOTYPES["DARTS_V1"])) == V1


def test_mmrazor_with_edges_that_are_not_kept() -> None:
    cells = Genotype(NAMED_GENOTYPES["DARTS_V2"].normal[:2], NAMED_GENOTYPES["DARTS_V2"].reduce[:2])
    assert read_cells(MMRAZOR) == cells.to_architecture()


def test_nni_by_its_own_names() -> None:
    """NNI 2.1's DARTS example, examples/nas/oneshot/darts: ops.py and the file that its retrain reads."""
    text = BY_NAME["nni"].write(V1)  # pyright: ignore[reportOptionalCall]
    raw = json.loads(text)
    assert len(raw) == 36
    assert raw["normal_n2_p0"] == "sepconv3x3"
    assert raw["reduce_n5_p0"] == "avgpool"
    assert raw["reduce_n5_p1"] == []
    assert raw["reduce_n5_switch"] == ["reduce_n5_p0", "reduce_n5_p2"]
    assert text == json.dumps(raw, indent=2, sort_keys=True) + "\n"
    assert read_cells(text) == V1
    lists = {key: [answer] if isinstance(answer, str) else answer for key, answer in raw.items()}
    assert read_cells(json.dumps(lists)) == V1


@pytest.mark.parametrize("name", [format.name for format in FORMATS if format.write])
@settings(max_examples=25)
@given(genotype=genotypes([name for name in CANDIDATES if name != "none"]))
def test_what_is_written_is_read(genotype: Genotype, name: str) -> None:
    format = BY_NAME[name]
    assert format.write is not None
    text = format.write(genotype.to_architecture())
    assert text.endswith("\n")
    found = next(format for format in FORMATS if format.reads(text))
    assert found is format
    assert read_cells(text) == genotype.to_architecture()


SPARSE = (
    "Genotype(normal=[('sep_conv_3x3', 2, 0), ('skip_connect', 4, 3), ('max_pool_3x3', 4, 1)], "
    "normal_concat=range(2, 6), reduce=[('sep_conv_3x3', 2, 1)], reduce_concat=range(2, 6))\n"
)


def test_nodes_with_fewer_edges() -> None:
    """In the form of FairDARTS' code; the number of nodes is in the concat, where the last ones are empty."""
    architecture = read_cells(SPARSE)
    assert architecture.choices["normal_n3_switch"] == architecture.choices["reduce_n5_switch"] == ()
    assert architecture.choices["normal_n4_switch"] == ("normal_n4_p1", "normal_n4_p3")
    assert architecture.choices["reduce_n2_p0"] is None
    assert BY_NAME["genotype"].write is not None
    assert BY_NAME["genotype"].write(architecture) == SPARSE.replace(
        "('skip_connect', 4, 3), ('max_pool_3x3', 4, 1)", "('max_pool_3x3', 4, 1), ('skip_connect', 4, 3)"
    )
    for name in ("genotype", "edges", "json"):
        write = BY_NAME[name].write
        assert write is not None
        assert read_cells(write(architecture)) == architecture
    for name, program in (("nni", "NNI 2.1's JSON"), ("nni3", "NNI 3's JSON"), ("mmrazor", "MMRazor's YAML")):
        write = BY_NAME[name].write
        assert write is not None
        with pytest.raises(ConfigError) as error:
            write(architecture)
        assert str(error.value) == (
            f"{program} needs 2 edges into each node, but node 2 of the normal cell has 1; the formats genotype, edges and "
            "json take it"
        )


@pytest.mark.parametrize("name", ["nni", "nni3"])
def test_an_operation_that_the_other_program_lacks(name: str) -> None:
    text = str(NAMED_GENOTYPES["DARTS_V2"]).replace("dil_conv_3x3", "conv_7x1_1x7")
    with pytest.raises(ConfigError, match="has no operation 'conv_7x1_1x7'"):
        BY_NAME[name].write(read_cells(text))  # pyright: ignore[reportOptionalCall]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (AMOEBANET, "node 5 of the normal cell takes state 1 twice, but a node here takes each state at most once"),
        (AMOEBANET.replace("('skip_connect', 1)", "('skip_connect', 2)"), "normal_concat must be all nodes, [2, 3, 4"),
        (str(NAMED_GENOTYPES["DARTS_V1"])[:-40], "ends before its closing bracket, perhaps truncated"),
        (f"{NAMED_GENOTYPES['DARTS_V1']}\nGenotype(", "ends before its closing bracket"),
        ("Genotype(recurrent=[('relu', 0)], concat=range(1, 9))", "unknown field of a genotype 'recurrent'"),
        ("Genotype(normal=[])", "the genotype has no field 'reduce'"),
        ("Genotype(normal=[], normal=[], reduce=[])", "each of normal, normal_concat, reduce, reduce_concat once"),
        ("Genotype(normal=__import__('os').system('x'))", "must be made of lists, names in quotes and numbers, got"),
        ("Genotype(normal=[('a' 0)])", "must have ',' where it has '0'"),
        ("Genotype(normal=[-1])", "must be made of lists, names in quotes and numbers, got '-'"),
        ("Genotype(normal_concat=range(2, 99999999), normal=[])", "range(...) must have one or two small numbers"),
        ("Genotype(normal=[[[[[['a']]]]]])", "must be made of lists"),
        (fields(normal="x"), "normal must be a list of edges, got a string"),
        (fields(normal=[["skip_connect", 0]]), "normal must have 2 edges for each node, got 1 edges"),
        (fields(normal=[[["skip_connect", 0]] * 3]), "node 2 of the normal cell must have 2 edges, got 3"),
        (fields(normal=[["skip_connect", 0], ["skip_connect", 2]]), "must take states from 0 to 1, got 2"),
        (fields(normal=[["skip_connect", 0], ["skip_connect", "1"]]), "must be a pair (operation, state), got"),
        (fields(normal=[["skip_connect", 0], ["skip_connect", True]]), "must be a pair (operation, state), got"),
        (fields(normal=[["skip_connect", 0], ["skip_connect", 1]]), "equally many nodes, got 1 (normal) and 4"),
        (fields(normal=[["skip_connect", 0], ["skip_connect", 1]] * 33), "normal must have 1 to 32 nodes, got 33"),
        (fields(normal_concat=[2, 3, 4]), "normal_concat must be all nodes, [2, 3, 4, 5], since a cell here joins all"),
        (fields(reduce_concat="all"), "reduce_concat must be all nodes"),
        (
            fields(normal=[["mish", 0], ["skip_connect", 1]] * 4),
            "unknown answer to normal_n2_p0: 'mish' (allowed: max_",
        ),
        (
            fields(normal=[["skip_connect", 2, 0], ["skip_connect", 1]]),
            "an edge of normal must be a triple (operation, node, state) like the others, got ['skip_connect', 1]",
        ),
        (fields(normal=[["skip_connect", 2, 0]] * 2), "node 2 of the normal cell takes state 0 twice"),
        (
            fields(normal=[["skip_connect", 3, 0]]),
            "normal_n2_switch must name 1 to 2 of normal_n2_p0, normal_n2_p1, got 0",
        ),
        (
            fields(normal=[["skip_connect", 2, s] for s in (0, 1, 0)]),
            "node 2 of the normal cell must have 2 edges, got 3",
        ),
        (json.dumps({**NNI3, "normal/input_2_1": [0]}), "node 2 of the normal cell takes state 0 twice"),
        (json.dumps({**NNI3, "normal/input_2_1": [0, 1]}), "must be a pair (operation, state)"),
        (json.dumps({**NNI3, "dropout": 1}), "'dropout' is not a key of NNI 3's cells"),
        (json.dumps({**NNI3, "normal/op_2_2": "skip_connect"}), "1 to 32 nodes, counted from 2, with 2 edges each"),
        (json.dumps({**NNI3, "normal/op_6_0": "skip_connect"}), "no answer for normal/input_6_0"),
        ("normal_n2:\n  chosen: &a [*a]\n", "YAML aliases are not read"),
        ("normal_n2:\n  chosen: [normal_n2_p0\n", "not valid YAML"),
        ("normal_n2: 3\n", "normal_n2 must be a mapping with 'chosen' alone, got 3"),
        ("normal_n2:\n  chosen: {a: b}\n", "normal_n2_switch must be a name, an index or a list"),
        ("normal_n2:\n" + " " * (1 << 17), "YAML of more than 131072 characters is not read"),
        ('{"conv1": "wide"}', "'conv1' is not a choice of the CNN cell space"),
        ('{"normal_n2_p0": "sep_co', "not valid JSON, perhaps truncated"),
        ("[1, 2]", "the format is not known (known formats: a text with Genotype(...), NNI 3's JSON (normal/op_2_0), "),
        ("", "it is empty (known formats: "),
    ],
)
def test_what_cannot_be_expressed_is_refused_with_the_reason(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "genotype.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_cells(str(path))
    assert str(caught.value).startswith(f"genotype file {path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", range(900, 1000, 7))
def test_lists_nested_as_deeply_as_json_allows(depth: int) -> None:
    with pytest.raises(ConfigError):
        read_cells('{"normal_n2_p0": ' + "[" * depth + "]" * depth + "}")


def test_mistyped_names_and_files() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'DARTS_V2'\? \(allowed: DARTS_V1, DARTS_V2, PC_DARTS, "):
        load_cells("DART_V2")
    with pytest.raises(ConfigError, match=r"cannot read genotype file no/such\.json: No such file"):
        load_cells("no/such.json")
    with pytest.raises(ConfigError, match="unknown genotype"):
        load_cells("x" * 5000)
