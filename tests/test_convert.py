"""The command that writes a genotype for other programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from src.spaces.cnn.formats import FORMATS, read_cells
from src.spaces.cnn.genotypes import NAMED_GENOTYPES
from src.spaces.cnn.operations import OPERATIONS
from tests.commands import refused, run, start

V2 = NAMED_GENOTYPES["DARTS_V2"].to_architecture()


def converted(*arguments: str) -> str:
    done = run("convert", *arguments)
    assert (done.code, done.err) == (0, "")
    return done.out


@pytest.mark.parametrize("name", [format.name for format in FORMATS if format.write])
def test_every_format_is_written_and_read_again(name: str, tmp_path: Path) -> None:
    path = tmp_path / "written"
    path.write_text(converted("DARTS_V2", "--to", name))
    assert converted(str(path), "--to", "json") == V2.to_json()


def test_a_runs_folder(tmp_path: Path) -> None:
    V2.write(tmp_path / "genotype.json")
    (tmp_path / "result.json").write_text("{}")
    assert converted(str(tmp_path), "--to", "genotype") == f"{read_genotype()}\n"


def read_genotype() -> str:
    """Return DARTS_V2 with the edges of each node in the order of their states, as files have them."""
    return (
        "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
        "('skip_connect', 0), ('sep_conv_3x3', 1), ('skip_connect', 0), ('dil_conv_3x3', 2)], "
        "normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('max_pool_3x3', 1), "
        "('skip_connect', 2), ('max_pool_3x3', 0), ('skip_connect', 2), ('max_pool_3x3', 1), ('skip_connect', 2)], "
        "reduce_concat=range(2, 6))"
    )


def test_text_on_the_command_line_by_a_process_of_its_own() -> None:
    done = start("-m", "src.convert", str(NAMED_GENOTYPES["DARTS_V2"]), "--to", "nni")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["normal_n5_p2"] == "dilconv3x3"
    assert read_cells(done.out) == V2


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("DARTS_V2", "--to", "nnni"), "unknown format in --to: 'nnni', did you mean 'nni'? (allowed: genotype, "),
        (("DARTS_V3", "--to", "nni"), "unknown genotype 'DARTS_V3', did you mean 'DARTS_V2'?"),
        (("no/such.json", "--to", "nni"), "cannot read genotype file no/such.json: No such file"),
        ((".", "--to", "nni"), "cannot read genotype file genotype.json: No such file"),
        ((str(NAMED_GENOTYPES["DARTS_V2"]).replace("dil", "dill"), "--to", "nni"), "did you mean 'dil_conv_3x3'?"),
        ((str(NAMED_GENOTYPES["DARTS_V2"]).replace("dil_conv_3x3", "conv_3x3"), "--to", "nni"), "NNI 2.1 has no opera"),
        (("DARTS_V2", "--to", "nni", "--operations", "no_such_module"), "operations must name modules that Python fin"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments: tuple[str, ...], part: str) -> None:
    assert part in refused(run("convert", *arguments))


@pytest.mark.parametrize("arguments", [(), ("DARTS_V2",), ("DARTS_V2", "--t", "nni")])
def test_missing_arguments(arguments: tuple[str, ...]) -> None:
    done = run("convert", *arguments)
    assert done.code == 2
    assert "usage: python -m src.convert" in done.err


def test_operations_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ops_to_convert.py").write_text(
        "from torch import nn\nfrom src.spaces.cnn.operations import operation\n\n"
        "@operation('to_convert', foreign={'nni': 'theirs'})\n"
        "def build(channels, stride, searching):\n    return nn.Identity()\n"
    )
    text = str(NAMED_GENOTYPES["DARTS_V2"]).replace("dil_conv_3x3", "to_convert")
    arguments = (text, "--to", "nni")
    assert "unknown answer to normal_n5_p2: 'to_convert'" in refused(run("convert", *arguments))
    try:
        assert json.loads(converted(*arguments, "--operations", "ops_to_convert"))["normal_n5_p2"] == "theirs"
    finally:
        OPERATIONS.pop("to_convert", None)
        sys.modules.pop("ops_to_convert", None)
