"""What a user types, made ready for Hydra; and what a `_target_` on the command line does to a composed config."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from omegaconf import DictConfig, OmegaConf, open_dict

from src.common.errors import ConfigError
from src.common.shell import override, parsed, with_quotes
from src.runs.resume import named_run

# What is built from a `_target_`. Arguments below these keys are checked against its signature, so any may be set.
_BUILT = (
    "space",
    "data",
    "method",
    "hypergradient",
    "diagnostics",
    "optimizer.weights",
    "optimizer.schedule",
    "optimizer.alphas",
    "trainer",
    "logger",
    "callbacks",
)
# Mappings whose names are the user's own: Hydra takes new ones with `++` alone.
_NAMED = ("variants", "retrain")
_OVERRIDE = re.compile(r"(?P<prefix>\+{0,2}|~)(?P<key>[\w.-]+)(?P<rest>=.*)?", re.DOTALL)
_TARGET = "._target_"
_JOB_FOLDER = "hydra.sweep.subdir"
_SHORT_FLAGS = ("-h", "-m", "-r", "-c", "-p", "-i", "-sc", "-cp", "-cn", "-cd")
_FLAGS = (
    "--help",
    "--hydra-help",
    "--version",
    "--multirun",
    "--run",
    "--resolve",
    "--cfg",
    "--package",
    "--info",
    "--shell-completion",
    "--config-path",
    "--config-name",
    "--config-dir",
    "--experimental-rerun",
)


def ready(arguments: Sequence[str]) -> list[str]:
    """Return a command line as Hydra takes it; one that is ready stays as it is.

    Values that Hydra's grammar refuses are quoted, arguments of what is built need no `+`, and `~optimizer.schedule` is
    `optimizer.schedule=null`. A checkpoint that is to be resumed becomes the folder of its run. The jobs of a sweep get
    folders with names that say which they are.

    Raises:
        ConfigError: an option such as `--order=2`, where `order=2` is meant; a value without a key; a plan of a sweep.
    """
    for index, argument in enumerate(arguments):
        if argument.startswith("="):
            raise ConfigError(f"cannot read {argument!r}, arguments have the form key=value")
        name, given, value = argument.partition("=")
        known = name in _SHORT_FLAGS or any(flag.startswith(name) for flag in _FLAGS)
        if argument.startswith("-") and not known:
            following = arguments[index + 1] if index + 1 < len(arguments) else "..."
            if not given:
                value = "..." if "=" in following or following.startswith("-") else following
            raise ConfigError(f"unknown option {argument}, did you mean {name.lstrip('-')}={value}?")
    if is_sweep(arguments) and any(one is not None and one.key_or_group == "plan" for one in map(parsed, arguments)):
        raise ConfigError("plan is for a single run, without --multirun")
    readied = [_ready(argument) for argument in with_quotes(arguments, sweep=is_sweep(arguments))]
    return [*readied, *_named_jobs(readied)] if is_sweep(arguments) else readied


def _named_jobs(arguments: Sequence[str]) -> list[str]:
    """Return the override that names the folder of each job of a sweep after what sets it apart: `order=2,seed=1`."""
    if any(argument.startswith(_JOB_FOLDER) for argument in arguments):
        return []
    given = [parsed(argument) for argument in arguments]
    keys = sorted(one.key_or_group for one in given if one is not None and one.is_sweep_override())
    return [f"{_JOB_FOLDER}='${{job_name:{','.join(keys)}}}'"] if keys else []


def is_sweep(arguments: Sequence[str]) -> bool:
    """Return whether a command line asks for several runs."""
    return any(argument == "-m" or (len(argument) > 3 and "--multirun".startswith(argument)) for argument in arguments)


def only_shows(arguments: Sequence[str]) -> bool:
    """Return whether a command line asks for a help text or a config, not for a run."""
    return any(
        argument.startswith("-") and argument not in ("-m", "-r") and not "--multirun".startswith(argument)
        for argument in arguments
    )


def _ready(argument: str) -> str:
    if argument.startswith("resume="):
        given = parsed(argument)
        path = None if given is None else given.value()
        return override("resume", named_run(path)) if isinstance(path, str) else argument
    if argument.partition("=")[0] == "~optimizer.schedule":
        return "optimizer.schedule=null"
    match = _OVERRIDE.fullmatch(argument)
    if match is not None and match["key"] in _NAMED and not match["prefix"]:
        return f"++{argument}"
    below = match is not None and any(match["key"].startswith(f"{built}.") for built in _BUILT)
    if match is None or not below or match["prefix"] == "~" or match["rest"] is None:
        return argument
    return f"++{match['key']}{match['rest']}"


def as_typed(text: str) -> str:
    """Return an override without the `++` that `ready` put before it."""
    bare = text.removeprefix("++")
    return bare if _ready(bare) == text else text


def drop_inherited(config: DictConfig, overrides: Iterable[str]) -> None:
    """Let what has a `_target_` on the command line start from that target's own defaults.

    Of the arguments beside such a `_target_`, those that the command line names stay, and the others go: they were
    chosen for the target of an option in conf/.

    Args:
        config: composed; it is changed.
        overrides: of the command line.
    """
    keys = [match["key"] for match in map(_OVERRIDE.fullmatch, overrides) if match and match["prefix"] != "~"]
    for key in keys:
        node = OmegaConf.select(config, key.removesuffix(_TARGET)) if key.endswith(_TARGET) else None
        # A trainer's arguments are this code's to choose as much as the trainer's.
        if not isinstance(node, DictConfig) or not key.startswith(_BUILT) or key.startswith("trainer."):
            continue
        prefix = key.removesuffix("_target_")
        named = {other.removeprefix(prefix).partition(".")[0] for other in keys if other.startswith(prefix)}
        with open_dict(node):
            for name in [name for name in node if name not in (*named, "_partial_")]:
                del node[name]
