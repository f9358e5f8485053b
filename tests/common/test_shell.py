"""Overrides and commands: what is written is what is read, whatever characters it holds."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from src.common.shell import override, parsed, pastable, with_quotes

NASTY = "ab é猫=(),'\"\\$`!~#[]{}:;&|<>*?%@+-._/0"


def read(text: str) -> object:
    """Return the value that a config gets from an override."""
    found = parsed(text)
    assert found is not None, text
    return OmegaConf.create({"value": found.value()}).value


@given(st.text(NASTY, max_size=12))
@example("null")
@example("true")
@example("1")
@example("${now:%Y}")
@example("\\${a}")
@example(" ends in a backslash \\")
def test_override_sets_exactly_the_text(value: str) -> None:
    assume(value != "???")  # OmegaConf's own word for a value that is missing
    assert read(override("resume", value)) == value


@pytest.mark.parametrize("value", ["runs/a", "rené ordner", "lr=0.1", "it's", "$HOME", "`id`", "a\\'b", '"!x"', "~/a"])
def test_command_reaches_the_program_as_it_is(value: str) -> None:
    command = pastable("search", [override("resume", value)])
    assert shlex.split(command) == ["python", "-m", "src.search", override("resume", value)]
    words = command.removeprefix("python -m src.search ")
    done = subprocess.run(["bash", "-c", f"printf %s {words}"], capture_output=True, text=True, check=True)
    assert read(done.stdout) == value


def test_quotes_only_where_they_are_needed() -> None:
    assert pastable("search", [override("resume", "runs/a")]) == "python -m src.search resume=runs/a"
    assert pastable("search", [override("resume", "a=1")]) == "python -m src.search \"resume='a=1'\""


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("folder=runs/résumé", "runs/résumé"),
        ("folder=猫", "猫"),
        ("folder=runs/lr=0.1", "runs/lr=0.1"),
        ("folder=run (2)", "run (2)"),
        ("genotype=a/epoch=9-step=8.json", "a/epoch=9-step=8.json"),
        ("folder=runs/(a, b)", "runs/(a, b)"),
        ("data.source.root=~/pets", "/home/me/pets"),
        ("+data.source.root=~", "/home/me"),
        ("folder=a~b", "a~b"),
    ],
)
def test_a_value_that_hydra_refuses_is_taken_as_text(typed: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (text,) = with_quotes([typed], sweep=False)
    assert read(text) == value


@pytest.mark.parametrize(
    "typed",
    [
        "variants={short:[epochs=1,order=2],long:[epochs=3]}",
        "variants={short: [epochs=1, order=2], long: ['epochs=3']}",
    ],
)
def test_overrides_in_a_mapping_need_no_quotes(typed: str) -> None:
    (text,) = with_quotes([typed], sweep=False)
    assert read(text) == {"short": ["epochs=1", "order=2"], "long": ["epochs=3"]}


def test_commas_separate_the_values_of_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (text,) = with_quotes(["genotype=~/a.json,DARTS_V2,x=1"], sweep=True)
    found = parsed(text)
    assert found is not None
    assert list(found.sweep_string_iterator()) == ["'/home/me/a.json'", "DARTS_V2", "'x=1'"]


def test_commas_within_brackets_do_not_separate_the_values_of_a_sweep() -> None:
    genotype = "Genotype(normal=[('skip_connect', 0), ('skip_connect', 1)], normal_concat=range(2, 3))"
    for sweep, typed in ((False, f"genotype={genotype}"), (True, f"genotype={genotype},DARTS_V2")):
        (text,) = with_quotes([typed], sweep=sweep)
        found = parsed(text)
        assert found is not None
        values = list(found.sweep_string_iterator()) if sweep else [text.partition("=")[2]]
        assert read(f"genotype={values[0]}") == genotype
        assert values[1:] == ["DARTS_V2"][: len(values) - 1]


def test_everything_else_stays() -> None:
    typed = [
        "order=2",
        "folder='a=b'",
        "seed=1,2",
        "~logger.x",
        "-m",
        "order",
        "=3",
        "x=[a",
        "x={a,b=c}",
        "x='a",
        "x=${y}",
    ]
    assert with_quotes(typed, sweep=False) == typed
