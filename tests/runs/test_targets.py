"""Building what a config describes: targets, their signatures, and values against their types."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from omegaconf import OmegaConf

from src.common.errors import ConfigError, must_be
from src.runs.targets import build, check, own_traceback
from src.runs.values import Unfit, convert, describe

HERE = "own_parts_of_tests"


class Own:
    """What the nodes below describe."""

    def __init__(
        self,
        depth: int = 2,
        *,
        rate: float = 0.1,
        name: str | None = None,
        sizes: Sequence[int] = (),
        mode: Literal["min", "max"] = "min",
        part: Any = None,
        input_shape: Sequence[int] = (),
    ) -> None:
        if depth < 0:
            raise must_be("depth", "0 or more", depth)
        if depth == 13:
            raise ValueError("a mistake in code")
        self.depth, self.rate, self.name, self.sizes, self.part = depth, rate, name, sizes, part
        self.input_shape = input_shape


class Needs:
    """Has an argument without a default."""

    def __init__(self, width: int) -> None:
        self.width = width


def anything(**arguments: Any) -> dict[str, Any]:
    """Take every argument."""
    return arguments


@pytest.fixture(autouse=True)
def own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this module a name that a config can say."""
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])


def node(name: str, /, **arguments: Any) -> Any:
    return OmegaConf.create({"_target_": f"{HERE}.{name}", **arguments})


class TestBuild:
    def test_arguments_and_what_the_run_supplies(self) -> None:
        own = build(node("Own", depth=3, sizes=[1, 2]), "space", input_shape=(1, 8, 8), num_classes=10)
        assert (own.depth, own.sizes, own.input_shape) == (3, [1, 2], (1, 8, 8))
        assert type(own.sizes) is list  # no container of OmegaConf's

    def test_everything_is_supplied_to_keyword_arguments(self) -> None:
        assert build(node("anything", a=1), "space", seed=3) == {"a": 1, "seed": 3}

    def test_nodes_within_nodes(self) -> None:
        own = build(node("Own", part={"inner": [node("Own", depth=5)]}), "space")
        assert own.part["inner"][0].depth == 5

    def test_partial(self) -> None:
        optimizer = build(OmegaConf.create({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5}), "optimizer")
        assert optimizer([torch.zeros(1, requires_grad=True)]).defaults["lr"] == 0.5

    def test_none_is_none(self) -> None:
        assert build(None, "optimizer.schedule") is None

    def test_an_interpolation_is_looked_up(self) -> None:
        config = OmegaConf.create({"epochs": 7, "space": {"_target_": f"{HERE}.Own", "depth": "${epochs}"}})
        assert build(config.space, "space").depth == 7

    def test_an_exception_of_the_target_is_raised_as_it_is(self) -> None:
        with pytest.raises(ValueError, match=r"^a mistake in code$") as caught:
            build(node("Own", depth=13), "space")
        assert not isinstance(caught.value, ConfigError)
        text = own_traceback(caught.value)
        assert [line for line in text.splitlines() if line.startswith("  File ")] == [
            line for line in text.splitlines() if __file__ in line and "in __init__" in line
        ]


class TestRefusals:
    @pytest.mark.parametrize(
        ("described", "line"),
        [
            (("Own", {"dept": 3}), "unknown key 'dept' in space, did you mean 'depth'? (allowed: depth, rate, name, "),
            (("Own", {"zzzzz": 3}), "unknown key 'zzzzz' in space (allowed: depth, rate, name, sizes, mode, part)"),
            (("Own", {"depth": "ten"}), "space.depth must be a whole number, got 'ten'"),
            (("Own", {"depth": None}), "space.depth must be a whole number, got null"),
            (("Own", {"rate": True}), "space.rate must be a number, got true"),
            (("Own", {"name": [1]}), "space.name must be text or null, got [1]"),
            (("Own", {"sizes": 3}), "space.sizes must be a list of values that are each a whole number, got 3"),
            (("Own", {"mode": "best"}), "space.mode must be min or max, got 'best'"),
            (("Own", {"depth": -1}), "space.depth must be 0 or more, got -1"),
            (("Own", {"input_shape": [1]}), "space.input_shape is set by the command, remove it"),
            (("Own", {"part": {"_target_": f"{HERE}.Own", "depth": -1}}), "space.part.depth must be 0 or more, got -1"),
            (("Own", {"part": {"_target_": f"{HERE}.Own", "dep": 1}}), "unknown key 'dep' in space.part, did you mean"),
            (("Needs", {}), "space.width is not set, set it with space.width=..."),
            (("Needs", {"width": "???"}), "space.width is not set, set it with space.width=..."),
            (("Ow", {}), f"space._target_: {HERE} has no 'Ow', did you mean {HERE}.Own?"),
            (("HERE", {}), f"space._target_: {HERE}.HERE is not a class or function"),
        ],
    )
    def test_one_line_that_names_the_key(self, described: tuple[str, dict[str, Any]], line: str) -> None:
        name, arguments = described
        with pytest.raises(ConfigError, match=f"^{re.escape(line)}"):
            build(node(name, **arguments), "space", input_shape=(1, 8, 8))

    @pytest.mark.parametrize(
        ("target", "line"),
        [
            ("no_such_package.Space", "space._target_: there is no module 'no_such_package' in the current folder"),
            ("src.spaces.nowhere.Space", "space._target_: src.spaces has no 'nowhere'"),
            ("src.spaces.relaxed.RelaxdSpace", "did you mean src.spaces.relaxed.RelaxedSpace?"),
            ("a b", "space._target_ must be the dotted name of a class or function, got 'a b'"),
            (3, "space._target_ must be the dotted name of a class or function, got 3"),
            ("os.system", "space._target_: Target 'os.system' is blocklisted"),
        ],
    )
    def test_a_target_that_is_none(self, target: Any, line: str) -> None:
        for function in (build, check):
            with pytest.raises(ConfigError, match=re.escape(line)):
                function({"_target_": target}, "space")

    def test_a_value_that_torch_refuses_is_one_line(self) -> None:
        optimizer = build({"_target_": "torch.optim.SGD", "_partial_": True, "lr": -1}, "optimizer.weights")
        with pytest.raises(ConfigError, match=r"^optimizer.weights: Invalid learning rate: -1.0$"):
            optimizer([torch.zeros(1, requires_grad=True)])

    def test_check_finds_keys_and_types_without_building(self) -> None:
        config = {"part": {"_target_": f"{HERE}.Own", "depth": 13, "part": [{"_target_": f"{HERE}.Own", "raet": 1}]}}
        with pytest.raises(ConfigError, match=r"^unknown key 'raet' in method.part.part.0, did you mean 'rate'"):
            check(config, "method")
        config["part"].pop("part")
        check(config, "method")


class TestModules:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        monkeypatch.syspath_prepend(str(tmp_path))
        before = set(sys.modules)
        yield tmp_path
        for name in set(sys.modules) - before:
            del sys.modules[name]

    @pytest.mark.parametrize(
        ("text", "last"),
        [
            ("import no_such_module_here\n", "ModuleNotFoundError: No module named 'no_such_module_here'"),
            ("def f(:\n", "SyntaxError: invalid syntax"),
            ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ],
    )
    def test_an_error_in_a_module_shows_its_own_traceback(self, text: str, last: str, folder: Path) -> None:
        (folder / "own_broken.py").write_text(text)
        with pytest.raises((ImportError, SyntaxError, ZeroDivisionError)) as caught:
            build({"_target_": "own_broken.Space"}, "space")
        shown = own_traceback(caught.value)
        assert [line for line in shown.splitlines() if line.startswith("  File ")] == [
            line for line in shown.splitlines() if "own_broken.py" in line
        ]
        assert shown.splitlines()[-1] == last


class TestConvert:
    @pytest.mark.parametrize(
        ("value", "annotation", "result"),
        [
            (3, int, 3),
            (3.0, int, 3),
            ("3", int, 3),
            (3, float, 3.0),
            ("1e-3", float, 1e-3),
            ("TRUE", bool, True),
            (3, str, "3"),
            (None, int | None, None),
            (3, float | int, 3),
            (0.5, int | float | None, 0.5),
            ("auto", list[int] | str | int, "auto"),
            ([1, 2], list[int] | str | int, [1, 2]),
            ([1, 2.0], tuple[float, float], (1.0, 2.0)),
            ([1, 2, 3], tuple[int, ...], (1, 2, 3)),
            ("a/b", Path, Path("a/b")),
            ("a", Any, "a"),
            (None, Any, None),
            ("cpu", torch.device, "cpu"),
            (0.1, float | torch.Tensor, 0.1),
        ],
    )
    def test_without_a_loss(self, value: Any, annotation: Any, result: Any) -> None:
        converted = convert(value, annotation)
        assert (type(converted), converted) == (type(result), result)

    @pytest.mark.parametrize(
        ("value", "annotation"),
        [
            (1.5, int),
            (True, int),
            ("x", float),
            (1, bool),
            ("yes", bool),
            (True, str),
            ("abc", Sequence[str]),
            ([1, "x"], list[int]),
            ([1], tuple[int, int]),
            (None, torch.device),
            ("x", int | None),
        ],
    )
    def test_refused(self, value: Any, annotation: Any) -> None:
        with pytest.raises(Unfit):
            convert(value, annotation)

    def test_words(self) -> None:
        assert describe(None | int) == "a whole number or null"
        assert describe(tuple[float, float]) == "a list of values that are each a number"
