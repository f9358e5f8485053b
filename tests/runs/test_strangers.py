"""Files from strangers: whatever they hold, reading them ends in a value or in a validation error."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.architectures.architecture import Architecture, load_json, read_text
from src.architectures.formats import Format
from src.runs import checkpoints
from src.runs.resume import read_settings
from src.spaces.cnn.formats import FORMATS, load_cells, read_cells
from src.spaces.cnn.genotypes import NAMED_GENOTYPES, cell_spec, parse_cells

GOOD = NAMED_GENOTYPES["DARTS_V2"].to_architecture()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=5) | st.dictionaries(st.text(max_size=10), children, max_size=5),
    max_leaves=10,
)
keys = st.sampled_from(sorted(GOOD.choices)) | st.from_regex(
    r"(normal|reduce)_n\d{1,4}_(p\d{1,4}|switch)", fullmatch=True
)


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Cut `content`, or change, insert or take out a few bytes."""
    place = st.integers(0, len(content) - 1)

    def change(edits: list[tuple[int, bytes, int]]) -> bytes:
        data = bytearray(content)
        for start, new, removed in edits:
            data[start : start + removed] = new
        return bytes(data)

    edits = st.lists(st.tuples(place, st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=3)
    return edits.map(change) | place.map(lambda end: content[:end]) | st.binary(max_size=200)


def error_or(read: Any, *arguments: Any) -> Any:
    """Return what reading gives, or None for a `ValueError` of one line; any other exception is the test's failure."""
    text = ""
    try:
        return read(*arguments)
    except ValueError as error:
        text = str(error)
    assert "\n" not in text
    assert len(text) < 2000
    return None


@pytest.fixture(scope="module")
def folder() -> Any:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@settings(max_examples=500)
@given(raw=st.dictionaries(keys, json_values, max_size=40) | json_values)
def test_cells_of_any_value(raw: Any) -> None:
    parsed = error_or(parse_cells, raw) if isinstance(raw, dict) else None
    assert parsed is None or isinstance(parsed, Architecture)
    error_or(lambda: Architecture.parse(raw, cell_spec(2)))


@settings(max_examples=500)
@given(changes=st.dictionaries(keys, json_values, min_size=1, max_size=3))
def test_genotype_with_changed_answers(changes: dict[str, Any]) -> None:
    parsed = error_or(parse_cells, {**GOOD.to_plain(), **changes})
    if parsed is not None:
        assert parse_cells({**parsed.to_plain()}) == parsed


@settings(max_examples=500)
@given(content=damaged(GOOD.to_json().encode()))
def test_genotype_file_of_any_bytes(content: bytes, folder: Path) -> None:
    path = folder / "genotype.json"
    path.write_bytes(content)
    error_or(load_json, path)
    error_or(load_cells, str(path))


@pytest.mark.parametrize("written", [format for format in FORMATS if format.write], ids=lambda format: format.name)
@settings(max_examples=300)
@given(data=st.data())
def test_genotype_of_every_format_with_any_damage(written: Format, data: st.DataObject, folder: Path) -> None:
    assert written.write is not None
    path = folder / "genotype"
    path.write_bytes(data.draw(damaged(written.write(GOOD).encode())))
    text = error_or(read_text, path)
    if text is not None:
        for format in FORMATS:
            answers = error_or(format.parse, text)
            assert answers is None or isinstance(answers, dict)
        parsed = error_or(read_cells, text)
        assert parsed is None or read_cells(parsed.to_json()) == parsed
        assert parsed == error_or(load_cells, str(path))


tokens = st.sampled_from(
    [
        *("Genotype(", ")", "[", "]", "(", ",", "=", "range(", "normal", "reduce_concat", "'", '"', "#", "\n", " "),
        *("'skip_connect'", '"normal"', '"reduce":', '"normal/op_2_0":', "{", "}", ":", "0", "1", "2", "99999999999"),
        *(
            "normal_n2:",
            "normal_n2_p0:",
            "chosen",
            "- ",
            "  ",
            "&a",
            "*a",
            "!!int",
            "!!python/name:os.system",
            "|",
            "?",
        ),
    ]
)


@settings(max_examples=500)
@given(text=st.lists(tokens, max_size=40).map("".join))
def test_genotype_of_any_tokens(text: str) -> None:
    for format in FORMATS:
        assert isinstance(format.reads(text), bool)
        error_or(format.parse, text)
    error_or(read_cells, text)


@settings(max_examples=500)
@given(content=damaged(b"# python -m src.search order=2\norder: 2\nepochs: 3\ndata:\n  batch_size: 64\n"))
def test_settings_file_of_any_bytes(content: bytes, folder: Path) -> None:
    (folder / "config.yaml").write_bytes(content)
    error_or(read_settings, folder)


def whole_checkpoint() -> bytes:
    parts = {name: kind() for name, kind in checkpoints.PARTS.items()}
    buffer = io.BytesIO()
    torch.save({**parts, "format": checkpoints.CHECKPOINT_FORMAT, "state_dict": {"w": torch.arange(50.0)}}, buffer)
    return buffer.getvalue()


@settings(max_examples=400)
@given(content=damaged(whole_checkpoint()))
def test_checkpoint_of_any_bytes(content: bytes, folder: Path) -> None:
    path = folder / "last.ckpt"
    path.write_bytes(content)
    checkpoint = error_or(checkpoints.load, path)
    # What is read in spite of the damage has its numbers whole: the checksums are of every part.
    assert checkpoint is None or torch.equal(checkpoint["state_dict"]["w"], torch.arange(50.0))


def test_whole_checkpoint_is_read(folder: Path) -> None:
    path = folder / "whole.ckpt"
    path.write_bytes(whole_checkpoint())
    assert torch.equal(checkpoints.load(path)["state_dict"]["w"], torch.arange(50.0))
