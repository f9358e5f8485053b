"""Why a config could not be composed, in one line, with the nearest name that exists."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    ConfigTypeError,
    OmegaConfBaseException,
    ValidationError,
)

from src.common.errors import ConfigError, unknown
from src.common.shell import parsed, pastable, quoted
from src.runs.build import check_targets
from src.runs.commandline import as_typed, drop_inherited, ready
from src.runs.following import CONF
from src.runs.schema import COMMANDS, OF_JOBS, OF_THE_SEARCH, annotation_of, check
from src.runs.targets import TARGET, locate, unknown_key
from src.runs.values import describe, show
from src.spaces.evaluation import evaluation_of


def composition_mistake(command: str, arguments: Sequence[str], error: Exception) -> str:
    """Return in one line what is wrong with a command line.

    Args:
        command: `search` or `retrain`.
        arguments: the command line.
        error: what Hydra or OmegaConf raised while it composed the config.
    """
    explanations = (
        _unreadable,
        _several_values,
        _unknown_option,
        _of_another_command,
        _without_package,
        _of_the_jobs,
        _unknown_key,
        _wrong_type,
    )
    failure = _Failure(command, arguments, error)
    explained = next((text for explain in explanations if (text := explain(failure))), None)
    if explained is None:
        return one_line(error)
    return f"{failure.file}: {explained}" if failure.file else explained


@dataclass
class _Failure:
    command: str
    arguments: Sequence[str]
    error: Exception

    @property
    def cause(self) -> BaseException:
        # Of a mistake in a file, Hydra raises the cause only as the context.
        return self.error.__cause__ or (self.error.__context__ if self.file else None) or self.error

    @property
    def file(self) -> str | None:
        """The file in conf/ that has the mistake, or None if the command line has it."""
        match = re.match(r"In '([^']+)': \w+ raised while composing", str(self.error))
        return f"conf/{match[1]}.yaml" if match else None


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line."""
    return " ".join(str(error).split())


def _unreadable(failure: _Failure) -> str | None:
    if not isinstance(failure.error, OverrideParseException):
        return None
    argument = as_typed(str(failure.error.override))
    key, equals, value = argument.partition("=")
    if not key or not equals:
        return f"cannot read {argument!r}, arguments have the form key=value"
    if parsed(f"{key}={quoted(value)}") is None:
        return f"cannot read {argument!r}: {key!r} is not the name of a setting"
    if any(value.startswith(opening) and closing not in value for opening, closing in ("[]", "{}")):
        return f"cannot read {argument!r}, which has no closing bracket; with spaces in it, quote it: '{key}=...'"
    return f"cannot read {argument!r}; to pass the value as text, quote it: {_quoted_argument(key, value)}"


def _several_values(failure: _Failure) -> str | None:
    ambiguous = re.match(r"Ambiguous value for argument '(.*?)'\n", str(failure.error), re.DOTALL)
    if ambiguous is None:
        return None
    key, _, value = ambiguous[1].partition("=")
    return (
        f"{ambiguous[1]} is several values: add --multirun (-m) to run each of them, "
        f"or quote what is one value: {_quoted_argument(key, value)}"
    )


def _quoted_argument(key: str, value: str) -> str:
    return pastable("", [f"{key}={quoted(value)}"]).partition("src. ")[2]


def _unknown_option(failure: _Failure) -> str | None:
    error = failure.error
    if not isinstance(error, MissingConfigException) or not error.options or not error.missing_cfg_file:
        return None
    group, _, name = error.missing_cfg_file.rpartition("/")
    usable = [option for option in error.options if _is_usable(failure.command, group, option)]
    return str(unknown(f"{group} option" if group else "config", name, usable))


def _of_another_command(failure: _Failure) -> str | None:
    """Say of an option that it belongs to another command, such as an experiment of src.search."""
    command = failure.command
    for argument in failure.arguments if command in COMMANDS else ():
        group, _, option = argument.partition("=")
        if not _is_option(group, option) or _is_usable(command, group, option):
            continue
        others = [f"src.{other}" for other in COMMANDS if other != command and _is_usable(other, group, option)]
        if others:
            usable = [path.stem for path in sorted((CONF / group).glob("*.yaml"))]
            usable = [option for option in usable if _is_usable(command, group, option)]
            nearest = get_close_matches(option, usable, n=1, cutoff=0.0)
            hint = f"; with src.{command} use {nearest[0]}" if nearest else ""
            return f"{argument} is for {' and '.join(others)}{hint}"
    return None


def _is_option(group: str, option: str) -> bool:
    return bool(group and option) and (CONF / group / f"{option}.yaml").is_file()


@functools.cache  # of each of many options the config is composed
def _is_usable(command: str, group: str, option: str) -> bool:
    """Return whether a command can use an option.

    An option with the name of a command is for that one, and so is one that begins with such an option. A selection has
    some groups from its search. A space is one that the command can search, or train. With an optimiser or an experiment,
    the command's config can be composed, and passes the checks that need no data.
    """
    begins_with = {option, *map(str, _defaults(CONF / group / f"{option}.yaml"))}
    if begins_with & (COMMANDS.keys() - {command}) or (command == "select" and group in OF_THE_SEARCH):
        return False
    if group not in ("space", "optimizer", "experiment", "debug"):
        return group in _groups(command)
    config = _composed(command, [f"{group}={option}"])
    if config is None:
        return False
    for key in ("genotype", "search"):
        if OmegaConf.is_missing(config, key):
            config[key] = ""  # it is for the user to say
    try:
        check(command, config)
        check_targets(command, config)
    except (ConfigError, OmegaConfBaseException):
        return False
    if group != "space":
        return True
    kind = locate(config.space.get(TARGET), "space")
    return evaluation_of(kind) in (None, kind) if command == "retrain" else evaluation_of(kind) is not kind


def _groups(command: str) -> list[str]:
    """Return the groups of options that a command has."""
    defaults = _defaults(CONF / f"{command}.yaml")
    return sorted(group for entry in defaults if isinstance(entry, dict) for group in entry if (CONF / group).is_dir())


def _defaults(path: Path) -> list[Any]:
    """Return the defaults list of a file in conf/."""
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", [])


def usable_options(command: str) -> str:
    """Return the options that a command can use, a line for each group, for its help."""
    state = Singleton.get_state()  # Hydra is about to print the help, and composing clears what it knows
    try:
        lines = []
        for group in _groups(command):
            options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
            usable = [option for option in options if _is_usable(command, group, option)]
            lines += [f"  {group}: {', '.join(usable)}"] if usable else []
        return "\n".join(lines)
    finally:
        Singleton.set_state(state)


# The help of a command has its options from this.
OmegaConf.register_new_resolver("options", usable_options, replace=True)


def composed(command: str, overrides: Sequence[str]) -> DictConfig:
    """Return the config that a command composes from overrides as they are typed; a command that Hydra runs is not disturbed.

    Raises:
        ConfigError: it cannot be composed.
    """
    state = Singleton.get_state()
    try:
        arguments = ready(overrides)
        config = _compose(command, arguments)
        drop_inherited(config, arguments)
        return config
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(composition_mistake(command, overrides, error)) from error
    finally:
        Singleton.set_state(state)


def _composed(command: str, overrides: list[str]) -> DictConfig | None:
    try:
        return _compose(command, overrides)
    except (HydraException, OmegaConfBaseException):
        return None


def _compose(command: str, arguments: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(command, overrides=arguments)


def _without_package(failure: _Failure) -> str | None:
    """Say of a file of a study what Hydra needs it to begin with: without, its settings go below the file's group."""
    key = getattr(failure.cause, "full_key", None)
    if failure.file and isinstance(failure.cause, ConfigKeyError | ConfigAttributeError) and key in OF_JOBS:
        return "it must begin with the line # @package _global_"
    return None


def _of_the_jobs(failure: _Failure) -> str | None:
    """Say of a setting of the runs that a command starts where it goes, such as `epochs=3` of a study's searches."""
    command = failure.command
    if command not in OF_JOBS or failure.file:
        return None
    job = "search" if command == "study" else "retrain"
    names = [entry.name for entry in fields(OF_JOBS[command])]
    for argument in map(as_typed, failure.arguments):
        key, equals, _ = argument.partition("=")
        first, _, rest = key.lstrip("+~").partition(".")
        below = rest and annotation_of(command, first) is str
        foreign = first not in (*names, *OF_JOBS, "hydra") and not get_close_matches(first, names, n=1, cutoff=0.8)
        if equals and (below or foreign):
            return f"src.{command} has no setting {key}; a setting of src.{job} goes into {job}=[{argument}]"
    return None


def _unknown_key(failure: _Failure) -> str | None:
    text, cause = str(failure.error), failure.cause
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return _nearest_key(failure, cause.full_key or str(cause.key))
    match = re.search(r"Could not override '([^']+)'", text) or re.search(r"override '?([\w./@]+)'?.*No match", text)
    return _nearest_key(failure, match[1]) if match and not isinstance(cause, ValidationError) else None


def _nearest_key(failure: _Failure, key: str) -> str | None:
    """Name the nearest key; keys of one parent are listed, the whole tree is too much to read."""
    options = [argument for argument in failure.arguments if _is_option(*argument.partition("=")[::2])]
    config = _composed(failure.command, options) or _composed(failure.command, [])
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(config, parent, throw_on_missing=False) if parent and config is not None else config
    if not isinstance(node, DictConfig):
        return _nearest_key(failure, parent) if parent else None
    names = [str(name) for name in node]
    if not parent:
        names += [group for group in ("experiment", "debug") if group in _groups(failure.command)]
    return None if last in names else unknown_key(last, parent, names)


def _wrong_type(failure: _Failure) -> str | None:
    cause = failure.cause
    key = getattr(cause, "full_key", None)
    if not key:
        return None
    whole = re.sub(r"\[\d+\]$", "", key)  # of an item of a list, the list
    annotation = annotation_of(failure.command, whole) if isinstance(cause, ValidationError | ConfigTypeError) else None
    if annotation is None:
        return f"{key}: {str(cause).strip().splitlines()[0]}"
    given = re.search(r"Value '(.*)' (?:of |is not a valid bool \()type '?(\w+)", str(cause), re.DOTALL)
    if given is not None and whole == key:
        got = show(given[1]) if given[2] == "str" else given[1]
    else:
        got = _typed(failure, whole)
    return f"{whole} must be {describe(annotation)}{f', got {got}' if got else ''}"


def _typed(failure: _Failure, key: str) -> str | None:
    """Return the value that the command line gives a key, as a message names it; None if it gives none."""
    for one in filter(None, map(parsed, reversed(failure.arguments))):
        if one.is_sweep_override() or one.is_delete() or not f"{key}.".startswith(f"{one.key_or_group}."):
            continue
        value = one.value()
        for name in filter(None, key.removeprefix(one.key_or_group).split(".")):
            value = value.get(name) if isinstance(value, dict) else None
        return show(value)
    return None
