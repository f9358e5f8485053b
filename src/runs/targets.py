"""From a node of a config to the object that it describes, checked against the signature of its `_target_`.

A node is a mapping with a `_target_`, the dotted name of a class or function, and its arguments. Everything that a
config describes is built here, so a class needs no schema besides its own signature.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, ListConfig, OmegaConf

from src.common.errors import ConfigError, shorten
from src.runs.values import Unfit, convert, describe, show

TARGET, PARTIAL = "_target_", "_partial_"
_SPECIAL = (TARGET, PARTIAL, "_args_", "_recursive_", "_convert_")
_MISSING = "???"
# What these raise for an argument is the user's to put right; what other code raises is a mistake in it.
_LIBRARIES = ("torch", "lightning")
_MANY = 20  # names that a message does not list
_NEVER_SET = (
    "input_shape",
    "num_classes",
    "seed",
    "purpose",
    "architecture",
    "params",
    "optimizer",
)  # what commands supply


def build(node: Any, key: str, **supplied: Any) -> Any:
    """Return the object that a config's node describes, or a function that returns it if the node says `_partial_`.

    Args:
        node: with a `_target_`; nodes among its arguments are built, too. None is returned as it is.
        key: of the node in the config, such as `space`, for messages.
        supplied: what a run knows and a config does not, such as `input_shape`. Each is passed if the target takes it.

    Raises:
        ConfigError: there is no such target, it does not take an argument, or it refuses a value; the message begins
            with the key. Any other exception of the target, or of its module, is raised as it is.
    """
    return _build(plain(node), key, supplied)


def check(node: Any, key: str) -> None:
    """Check a node, and the nodes in it, as `build` does, as far as it can be done without building.

    Raises:
        ConfigError: there is no such target, or it does not take an argument.
    """
    found = plain(node)
    if isinstance(found, dict) and TARGET in found:
        kind = locate(found[TARGET], key)
        _authorized(found[TARGET], key)
        _Signature(kind, key).fit(found)
    if isinstance(found, dict | list):
        for name, child in found.items() if isinstance(found, dict) else enumerate(found):
            check(child, f"{key}.{name}")


def plain(node: Any) -> Any:
    """Return a node of a config as dicts, lists and values, with everything looked up that it refers to."""
    if isinstance(node, DictConfig | ListConfig):
        return OmegaConf.to_container(node, resolve=True)
    if isinstance(node, dict):
        return {name: plain(child) for name, child in node.items()}
    return [plain(child) for child in node] if isinstance(node, list) else node


def fit(target: Callable[..., Any], key: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `target` that a config has below `key`, converted to the types that it annotates.

    Raises:
        ConfigError: the target does not take an argument, or not its type.
    """
    return _Signature(target, key).fit(arguments)


@contextmanager
def within(key: str) -> Iterator[None]:
    """Put a key before the `ConfigError`s of what is called in the block."""
    try:
        yield
    except ConfigError as error:
        if str(error).startswith(f"{key}."):  # the message has named it
            raise
        raise error.within(key) from error


def _build(node: Any, key: str, supplied: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_build(child, f"{key}.{index}", {}) for index, child in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if TARGET not in node:
        return {name: _build(child, f"{key}.{name}", {}) for name, child in node.items()}
    kind = locate(node[TARGET], key)
    target, signature = _authorized(node[TARGET], key), _Signature(kind, key)
    arguments = signature.fit(node)
    for name in arguments:
        if name in supplied:
            raise ConfigError(f"{key}.{name} is set by the command, remove it")
    if node.get("_recursive_", True):
        arguments = {name: _build(child, f"{key}.{name}", {}) for name, child in arguments.items()}
    arguments |= {name: value for name, value in supplied.items() if signature.takes(name)}
    for name, value in arguments.items():
        if isinstance(value, str) and value == _MISSING:
            raise _not_set(key, name)
    positional = [_build(child, f"{key}._args_", {}) for child in node.get("_args_", [])]
    is_library = (getattr(kind, "__module__", None) or "").partition(".")[0] in _LIBRARIES
    if node.get(PARTIAL, False):
        return partial(_call, target, key, is_library, *positional, **arguments)
    signature.check_complete(arguments, len(positional))
    return _call(target, key, is_library, *positional, **arguments)


def _call(target: Callable[..., Any], key: str, is_library: bool, /, *args: Any, **arguments: Any) -> Any:
    try:
        with within(key):
            return target(*args, **arguments)
    except (TypeError, ValueError, MisconfigurationException) as error:
        if isinstance(error, ConfigError) or not is_library:
            raise
        raise ConfigError(f"{key}: {shorten(error, 300)}") from error


def _not_set(key: str, name: str) -> ConfigError:
    return ConfigError(f"{key}.{name} is not set, set it with {key}.{name}=...")


class _Signature:
    """What a target takes."""

    def __init__(self, target: Callable[..., Any], key: str) -> None:
        self.key = key
        try:
            parameters = list(inspect.signature(target).parameters.values())
        except (TypeError, ValueError):  # some functions written in C have none
            parameters = [inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD)]
        self.by_name = {
            parameter.name: parameter
            for parameter in parameters
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }
        self.takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
        self.hints = _hints(target)

    def takes(self, name: str) -> bool:
        """Return whether there is an argument of that name."""
        return self.takes_any or name in self.by_name

    def fit(self, given: Mapping[Any, Any]) -> dict[str, Any]:
        """Return the arguments in a node, converted to the annotated types where those are simple."""
        arguments = {}
        for name, value in given.items():
            if name in _SPECIAL:
                continue
            if not isinstance(name, str) or not self.takes(name):
                raise ConfigError(
                    unknown_key(name, self.key, [known for known in self.by_name if known not in _NEVER_SET])
                )
            arguments[name] = self._fit(name, value)
        return arguments

    def _fit(self, name: str, value: Any) -> Any:
        parameter = self.by_name.get(name)
        annotation = self.hints.get(name, Any)
        if isinstance(value, dict) or (isinstance(value, str) and value == _MISSING):
            return value
        if value is None and parameter is not None and parameter.default is None:
            return value
        try:
            return convert(value, annotation)
        except Unfit:
            raise ConfigError(f"{self.key}.{name} must be {describe(annotation)}, got {show(value)}") from None

    def check_complete(self, arguments: Mapping[str, Any], positional: int) -> None:
        """Raise a `ConfigError` if an argument without a default is not there."""
        for name, parameter in list(self.by_name.items())[positional:]:
            if parameter.default is parameter.empty and name not in arguments:
                raise _not_set(self.key, name)


def unknown_key(name: object, key: str, allowed: Iterable[str]) -> str:
    """Return the message for a name that is not one of those in a node of a config, with the nearest that is."""
    names = list(allowed)
    nearest = get_close_matches(str(name), names, n=1, cutoff=0.5)
    message = f"unknown key {shorten(name)!r}" + (f" in {key}" if key else "")
    message += f", did you mean {nearest[0]!r}?" if nearest else ""
    return message if len(names) > _MANY and nearest else f"{message} (allowed: {', '.join(names) or 'none'})"


def _hints(target: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if isinstance(target, type) else target)
    except Exception:  # names that are imported for type checkers only
        return {}


def locate(name: Any, key: str) -> Callable[..., Any]:
    """Return the class or function of a dotted name, of the node `key`.

    Raises:
        ConfigError: there is no such module, or no such name in it. An error in the module is raised as it is.
    """
    if name == _MISSING:
        raise _not_set(key, TARGET)
    key = f"{key}.{TARGET}"
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{key} must be the dotted name of a class or function, got {show(name)}")
    first, *others = name.split(".")
    found: Any = _import(first, key)
    path = first
    for part in others:
        below = f"{path}.{part}"
        if hasattr(found, part):
            found = getattr(found, part)
        elif isinstance(found, ModuleType) and hasattr(found, "__path__") and _is_module(below):
            found = _import(below, key)
        else:
            nearest = get_close_matches(part, [entry for entry in dir(found) if not entry.startswith("_")], n=1)
            hint = f", did you mean {path}.{nearest[0]}?" if nearest else ""
            raise ConfigError(f"{key}: {path} has no {part!r}{hint}")
        path = below
    if not callable(found):
        raise ConfigError(f"{key}: {name} is not a class or function")
    return found


def _authorized(name: str, key: str) -> Callable[..., Any]:
    """Return what Hydra calls for a target; Hydra refuses `os.system` and the like."""
    try:
        return instantiate({TARGET: name, PARTIAL: True})
    except InstantiationException as error:
        raise ConfigError(f"{key}.{TARGET}: {shorten(error, 300)}") from error


def _is_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _import(name: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # something that the module imports
            raise
        raise ConfigError(
            f"{key}: there is no module {name!r} in the current folder or among the installed packages"
        ) from None


def look_here() -> None:
    """Let packages in the current folder be found: a console script starts without it."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def own_traceback(error: BaseException) -> str:
    """Return the traceback of an error; of one in a target or in its module, without the frames that lead there."""
    shortened = traceback.TracebackException.from_exception(error)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    start = max((i + 1 for i, frame in enumerate(frames) if frame.f_code in _ENTRANCES), default=0)
    while 0 < start < len(frames) and frames[start].f_code.co_filename.startswith(_ON_THE_WAY):
        start += 1
    if start < len(frames) or isinstance(error, SyntaxError):  # a syntax error names its place itself
        shortened.stack = traceback.StackSummary.from_list(list(shortened.stack)[start:])
    return "".join(shortened.format())


_ENTRANCES = (_call.__code__, _import.__code__)
_ON_THE_WAY = (str(Path(hydra.__file__).parent), str(Path(importlib.__file__).parent), "<frozen importlib")
