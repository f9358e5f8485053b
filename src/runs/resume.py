"""Resuming a run: its own settings, of which a few may change."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from src.common.errors import ConfigError, shorten, unknown
from src.common.shell import override, pastable
from src.runs.folder import RunFolder
from src.runs.following import CONF

CHANGEABLE = ("epochs", "trainer", "logger", "callbacks", "diagnostics", "checkpoint_minutes", "graphs")
_GROUPS = ("trainer", "logger", "callbacks", "diagnostics")  # config groups among them
# Where the data are, within `data`. It may change too: whether they are the same data is checked in another way.
PLACE = "root"
# Settings that say how a run was started, where it writes and who watches it; they identify no experiment.
_INCIDENTAL = {"folder", "resume", "plan", "sweep", "hydra", "logger", "callbacks", "diagnostics"}
_INCIDENTAL |= {"checkpoint_minutes", "graphs"}
_GUARD = "src.callbacks.guard.Guard"  # the callback that may change a run
_INCIDENTAL_WITHIN = {"trainer": {"accelerator", "profiler", "log_every_n_steps", "max_time"}, "space": {"impl"}}

MAX_SETTINGS_BYTES = 1 << 20
# Kept as they are in config.yaml: they follow a setting that may change, or the place of the folder.
_LIVE = ("${epochs}", "${hydra:runtime.output_dir}")
_COMMAND = re.compile(r"# (python -m src\.\w+.*)")


def settings_text(config: DictConfig, commands: Iterable[str]) -> str:
    """Return the text of `config.yaml`: the commands that started and resumed the run, then all settings, resolved.

    The place of the data becomes an absolute path, so that the run can be resumed from another directory.
    """
    header = "".join(f"# {command}\n" for command in commands)
    return header + OmegaConf.to_yaml(OmegaConf.create(_settings(config)))


def _settings(config: DictConfig) -> dict[str, Any]:
    def resolved(raw: Any, value: Any) -> Any:
        if isinstance(raw, dict):
            return {key: resolved(raw[key], value[key]) for key in raw}
        return raw if raw in _LIVE else value

    def placed(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            key: str(Path(item).expanduser().absolute())
            if key == PLACE and isinstance(item, str) and "://" not in item
            else placed(item)
            for key, item in value.items()
        }

    settings = resolved(OmegaConf.to_container(config, resolve=False), OmegaConf.to_container(config, resolve=True))
    return {str(key): placed(value) if key == "data" else value for key, value in settings.items()}


def read_settings(folder: Path) -> tuple[DictConfig, list[str]]:
    """Return the settings of the run in a folder, and the commands that started and resumed it.

    Raises:
        ConfigError: there is no run, or its `config.yaml` cannot be read.
    """
    path = RunFolder(folder).config
    try:
        if path.stat().st_size > MAX_SETTINGS_BYTES:
            raise ConfigError(f"{path} must hold {MAX_SETTINGS_BYTES} bytes or fewer, got {path.stat().st_size}")
        text = path.read_text(encoding="utf-8")
        config = OmegaConf.create(text)
    except OSError as error:
        raise ConfigError(f"{folder} holds no run to resume ({path.name}: {error.strerror})") from None
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException, RecursionError, AssertionError) as error:
        # OmegaConf raises AssertionError for YAML that holds neither a mapping nor a list.
        raise ConfigError(f"{path} does not hold the settings of a run ({shorten(error)})") from None
    commands: list[str] = []
    for line in text.splitlines():
        match = _COMMAND.fullmatch(line)
        if match is None:
            break
        commands.append(match[1])
    if not isinstance(config, DictConfig) or "data" not in config or not commands:
        raise ConfigError(f"{path} does not hold the settings of a run: it names no command or no data")
    return config, commands


def kind_of(commands: Sequence[str]) -> str:
    """Return which command started a run: `search`, `select` or `retrain`."""
    return commands[0].split()[2].removeprefix("src.")


def noun_of(kind: str) -> str:
    """Return what messages call a run of a kind."""
    return {"select": "selection"}.get(kind, kind)


def named_run(path: str) -> Path:
    """Return the folder of the run that `resume=path` names: the folder itself, or that of a checkpoint.

    Raises:
        ConfigError: the file is not a checkpoint in the folder of a run.
    """
    files = RunFolder.of(path)
    if files.path.is_file():
        last = RunFolder("RUN").last
        raise ConfigError(f"resume must be the folder of a run, or its checkpoint as in {last}, got the file {path}")
    return files.path


def with_saved_settings(command: str, given: DictConfig, overrides: Sequence[str], folder: Path) -> DictConfig:
    """Return the settings with which the run in `folder` is resumed: its own, with what `overrides` may change.

    Args:
        command: `search`, `select` or `retrain`, as which it is to be resumed.
        given: the settings composed from the command line, of which the overridden ones are taken.
        overrides: the overrides on the command line.
        folder: of the run.

    Raises:
        ConfigError: there is no such run, it belongs to the other command, or an override may not change.
    """
    saved, commands = read_settings(folder)
    kind = kind_of(commands)
    if kind != command:
        raise ConfigError(
            f"{folder} holds a {noun_of(kind)}; resume it with {pastable(kind, [override('resume', folder)])}"
        )
    for text in overrides:
        key = _key(text)
        top = key.partition(".")[0]
        if key in ("resume", "sweep.resume", "folder"):
            continue
        if top not in CHANGEABLE and not _is_place(key):
            if top not in saved and not (CONF / top).is_dir():  # an experiment is not saved by its name
                raise unknown("key", top, CHANGEABLE)
            raise ConfigError(
                f"{key} cannot change in a resumed run; {', '.join(CHANGEABLE)} and the {PLACE} of the data can"
            )
        if key in _GROUPS:
            limits = {name: value for name, value in saved.trainer.items() if str(name).startswith("limit_")}
            saved[key] = None if given[key] is None else OmegaConf.to_container(given[key], resolve=False)
            saved.trainer.update(limits)
        else:
            OmegaConf.update(saved, key, OmegaConf.select(given, key))
    saved.resume = str(folder)
    return saved


def present_command(commands: Sequence[str]) -> str:
    """Return the command that starts a run with the settings that it has after the commands that resumed it."""
    kept: list[str] = []
    for command in commands:
        overrides = [text for text in shlex.split(command)[3:] if _key(text) not in ("folder", "sweep.resume")]
        if not any(_key(text) == "resume" for text in overrides):
            kept = overrides  # a job of a sweep is resumed by its own command
            continue
        for text in overrides:
            key = _key(text)
            if key != "resume":
                kept = [*(other for other in kept if not _replaces(key, _key(other))), text]
    return pastable(commands[0].split()[2].removeprefix("src."), kept)


def first_difference(config: DictConfig, saved: DictConfig) -> str | None:
    """Return the first top-level setting, of those that may not change, in which two runs differ, or None."""
    own, theirs = (_without_places(_settings(part)) for part in (config, saved))
    ignored = {*CHANGEABLE, *_INCIDENTAL}
    return next((key for key in {**own, **theirs} if key not in ignored and own.get(key) != theirs.get(key)), None)


def experiment_of(config: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """Return what identifies a run but for its seed, for comparison: its settings, and which data it used.

    Args:
        config: of `config.yaml`.
        data: what `result.json` says of the data. If it describes them, their place does not matter.
    """
    folder = str(config.get("folder") or "")

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items() if not str(key).endswith("seed")}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return str(value).replace(folder, "FOLDER") if folder else str(value)

    described = {key: value for key, value in data.items() if key != "split_sha256"} if isinstance(data, dict) else {}
    settings: dict[str, Any] = {str(key): value for key, value in config.items() if key not in _INCIDENTAL}
    watching = config.get("callbacks")
    settings["guards"] = [
        node
        for node in (watching.values() if isinstance(watching, dict) else ())
        if isinstance(node, dict) and node.get("_target_") == _GUARD and node.get("action") != "warn"
    ]
    for key, names in _INCIDENTAL_WITHIN.items():
        if isinstance(settings.get(key), dict):
            settings[key] = {name: value for name, value in settings[key].items() if name not in names}
    if described.get("mean") is not None:  # of all inputs: other data differ in it
        described["name"] = str(described.get("name")).partition(":")[0]
        settings = _without_places(settings)
    return {"settings": plain(settings), "data": plain(described)}


def _key(text: str) -> str:
    """Return the key of an override."""
    return text.lstrip("+~").partition("=")[0]


def _is_place(key: str) -> bool:
    return key.startswith("data.") and key.rpartition(".")[2] == PLACE


def _replaces(key: str, other: str) -> bool:
    """Return whether an override of `key` takes the place of an earlier one of `other`, as in `with_saved_settings`."""
    if other == key:
        return True
    return key in _GROUPS and other.startswith(f"{key}.") and not other.startswith("trainer.limit_")


def _without_places(settings: Mapping[str, Any]) -> dict[str, Any]:
    def strip(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: strip(item) for key, item in value.items() if key != PLACE}

    return {key: strip(value) if key == "data" else value for key, value in settings.items()}
