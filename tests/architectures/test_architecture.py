from __future__ import annotations

import codecs
import re
from pathlib import Path

import pytest

from src.architectures.architecture import MAX_FILE_BYTES, Architecture, InputSpec, LayerSpec, load_json, read_text
from src.common.errors import ConfigError

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
        ({"c": 3}, "c must be an index from 0 to 2, got 3"),
        ({"c": -1}, "c must be an index from 0 to 2, got -1"),
        ({"c": []}, "c must name exactly one of up, down, still, got 0 of them"),
        ({"c": ["up", "down"]}, "c must name exactly one of up, down, still, got 2 of them"),
        ({"c": None}, "c must be a name, an index or a list of up, down, still, got 'None'"),
        ({"c": {"up": 1}}, "c must be a name, an index or a list"),
        ({"c": [True, True]}, "c: a multi-hot list must hold 3 values of 0 or 1, got [True, True]"),
        ({"c": [0.0, 0.5, 0.5]}, "must hold 3 values of 0 or 1"),
        ({"a": []}, "a must name exactly one of left, right, got 0 of them"),  # kept, but without an operation
        ({"free": ["x"]}, "free must name 2 of x, y, z, got 1 of them"),
        ({"free": ["x", "x"]}, "the same option twice"),
        ({"free": [0, 1, 2]}, "free must name 2 of x, y, z, got 3 of them"),
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
    with pytest.raises(ValueError, match="must be a JSON object"):
        Architecture.parse(raw, SPEC)


@pytest.mark.parametrize(
    "encoded",
    ["{}".encode("utf-16"), codecs.BOM_UTF8 + b"{}", "{}".encode("utf-16-le"), "{}".encode("utf-32")],
    ids=["utf-16", "utf-8 with a mark", "utf-16 without a mark", "utf-32"],
)
def test_a_file_may_have_any_of_jsons_encodings(encoded: bytes, tmp_path: Path) -> None:
    path = tmp_path / "genotype.json"
    path.write_bytes(encoded)
    assert load_json(path) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": "le', "not valid JSON, perhaps truncated"),
        (b"[1, 2]", "must be a JSON object, got a list"),
        (b"17", "must be a JSON object, got a number"),
        (b"null", "must be a JSON object, got null"),
        (b"", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"9" * 10_000, "not valid JSON"),
        (b"{\xe9}", "is not text"),
        (b" " * (MAX_FILE_BYTES + 1), "is larger than 16 MiB"),
    ],
)
def test_files_that_hold_no_object(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_json(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read genotype file .*absent.json: No such file"):
        read_text(tmp_path / "absent.json")
    with pytest.raises(ConfigError, match=r"cannot read genotype file .*directory"):
        read_text(tmp_path)
    with pytest.raises(ConfigError, match="no file can have this name"):
        read_text(Path("a\0b"))
