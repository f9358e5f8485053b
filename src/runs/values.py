"""A value of a config against a type annotation: converted where that loses nothing, refused otherwise."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from src.common.errors import shorten


class Unfit(Exception):
    """A value is not of the annotated type."""


def convert(value: Any, annotation: Any) -> Any:
    """Return `value` as the annotated type has it.

    int, float, bool, str, None, Path, Literal, list, tuple, Sequence and unions of them are converted or refused. A value
    of any other type is returned as it is: whether it fits is for the code to say that asked for it.

    Raises:
        Unfit: the value cannot be converted without a loss, such as 1.5 or 'ten' to int.
    """
    if annotation in _SIMPLE:
        return _SIMPLE[annotation](value)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return convert(value, arguments[0])
    if origin in (Union, types.UnionType):
        return _one_of(value, arguments)
    if origin is Literal:
        if value not in arguments:
            raise Unfit
        return value
    if (origin or annotation) in (list, tuple, Sequence):
        return _several(value, origin or annotation, arguments)
    if (
        value is None and isinstance(annotation, type) and annotation not in (object, Any)
    ):  # Any is a class from 3.11 on
        raise Unfit
    return value


def describe(annotation: Any) -> str:
    """Return what a value has to be, in words: `a whole number or null`."""
    return " or ".join(sorted(dict.fromkeys(_alternatives(annotation)), key=lambda words: words == "null"))


def _alternatives(annotation: Any) -> list[str]:
    if annotation in _WORDS:
        return [_WORDS[annotation]]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _alternatives(arguments[0])
    if origin in (Union, types.UnionType):
        return [words for member in arguments for words in _alternatives(member)]
    if origin is Literal:
        return [str(value) for value in arguments]
    if (origin or annotation) in (list, tuple, Sequence):
        kinds = dict.fromkeys(describe(kind) for kind in arguments if kind is not Ellipsis)
        return ["a list" + (f" of values that are each {' or '.join(kinds)}" if kinds else "")]
    if origin is dict:
        words = f"a mapping, of which each value is {describe(arguments[1])}"
    else:
        words = f"a {annotation.__name__}" if isinstance(annotation, type) else str(annotation)
    return [words]


def show(value: Any) -> str:
    """Return a value as a message names it: text in quotes, the rest as in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(shorten(value)) if isinstance(value, str) else shorten(value)


def _int(value: Any) -> int:
    if isinstance(value, bool):
        raise Unfit
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return _parsed(int, value)
    return _only(int, value)


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise Unfit
    if isinstance(value, str):
        return _parsed(float, value)
    return float(_only(int | float, value))


def _bool(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return _only(bool, value)


def _str(value: Any) -> str:
    if isinstance(value, bool):
        raise Unfit
    return str(_only(str | int | float, value))


def _none(value: Any) -> None:
    if value is not None:
        raise Unfit


def _path(value: Any) -> Path:
    return Path(_only(str | Path, value))


def _only(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind):
        raise Unfit
    return value


def _parsed(kind: Callable[[str], Any], text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise Unfit from None


_SIMPLE: dict[Any, Callable[[Any], Any]] = {
    int: _int,
    float: _float,
    bool: _bool,
    str: _str,
    None: _none,
    types.NoneType: _none,
    Path: _path,
}
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    None: "null",
    types.NoneType: "null",
    Path: "a path",
}


def _one_of(value: Any, members: Sequence[Any]) -> Any:
    if type(value) in members:  # so that 1 stays 1 for `float | int`
        return value
    for member in members:
        try:
            return convert(value, member)
        except Unfit:
            continue
    raise Unfit


def _several(value: Any, kind: Any, arguments: Sequence[Any]) -> Any:
    if not isinstance(value, list | tuple):
        raise Unfit
    fixed = kind is tuple and arguments and arguments[-1] is not Ellipsis
    if fixed and len(arguments) != len(value):
        raise Unfit
    kinds = arguments if fixed else [arguments[0] if arguments else Any] * len(value)
    items = [convert(item, one) for item, one in zip(value, kinds, strict=True)]
    return tuple(items) if kind is tuple else items
