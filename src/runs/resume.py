"""Going on with a run: its own settings, of which a few may change."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from src.common.errors import ConfigError, shorten, unknown
from src.runs.folder import RunFolder

CHANGEABLE = ("epochs", "trainer", "logger", "callbacks", "checkpoint_minutes")
MAX_SETTINGS_BYTES = 1 << 20
# Kept as they are in config.yaml, since they follow a setting that may change, or the place of the folder.
_LIVE = ("${epochs}", "${hydra:runtime.output_dir}")
_COMMAND = re.compile(r"# (python -m src\.\w+.*)")


def settings_text(config: DictConfig, command: str) -> str:
    """Return the text of `config.yaml`: the command on its first line, then all settings, resolved."""

    def resolved(raw: Any, value: Any) -> Any:
        if isinstance(raw, dict):
            return {key: resolved(raw[key], value[key]) for key in raw}
        return raw if raw in _LIVE else value

    plain = resolved(OmegaConf.to_container(config, resolve=False), OmegaConf.to_container(config, resolve=True))
    return f"# {command}\n{OmegaConf.to_yaml(OmegaConf.create(plain))}"


def read_settings(folder: Path) -> tuple[DictConfig, str]:
    """Return the settings of the run in a folder, and the command that began it.

    Raises:
        ConfigError: there is no run, or its `config.yaml` cannot be read.
    """
    path = RunFolder(folder).config
    try:
        if path.stat().st_size > MAX_SETTINGS_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_SETTINGS_BYTES} bytes, no run's settings are")
        text = path.read_text(encoding="utf-8")
        config = OmegaConf.create(text)
    except OSError as error:
        raise ConfigError(f"{folder} holds no run to go on with ({path.name}: {error.strerror})") from None
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException, RecursionError, AssertionError) as error:
        # An AssertionError is what OmegaConf has for YAML that holds neither a mapping nor a list.
        raise ConfigError(f"{path} is no run's settings ({shorten(error)})") from None
    command = _COMMAND.match(text)
    if not isinstance(config, DictConfig) or "data" not in config or command is None:
        raise ConfigError(f"{path} is no run's settings, it names no command or no data")
    return config, command[1]


def with_saved_settings(command: str, given: DictConfig, overrides: Sequence[str], folder: Path) -> DictConfig:
    """Return the settings that the run in `folder` goes on with: its own, with what `overrides` may change.

    Args:
        command: `search` or `retrain`, as which it is to go on.
        given: the settings composed from the command line, of which the overridden ones are taken.
        overrides: what stands on the command line.
        folder: of the run.

    Raises:
        ConfigError: there is no such run, it is the other command's, or an override may not change.
    """
    saved, begun_by = read_settings(folder)
    kind = begun_by.split()[2]
    if kind != f"src.{command}":
        raise ConfigError(f"{folder} holds a run of {kind}, allowed is python -m {kind} resume={folder}")
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        top = key.partition(".")[0]
        if key in ("resume", "sweep.resume", "folder"):
            continue
        if top not in CHANGEABLE:
            message = f"{override}: a run goes on with its own settings, allowed to change are {', '.join(CHANGEABLE)}"
            raise ConfigError(message if top in saved else str(unknown("key", top, CHANGEABLE)))
        if key in ("trainer", "logger", "callbacks"):
            limits = {name: value for name, value in saved.trainer.items() if str(name).startswith("limit_")}
            saved[key] = None if given[key] is None else OmegaConf.to_container(given[key], resolve=False)
            saved.trainer.update(limits)
        else:
            OmegaConf.update(saved, key, OmegaConf.select(given, key))
    saved.resume = str(folder)
    return saved


def first_difference(config: DictConfig, saved: DictConfig) -> str | None:
    """Return the first top-level setting, of those that may not change, in which two runs differ, or None."""
    ignored = (*CHANGEABLE, "resume", "sweep", "folder")
    own, theirs = (_plain(settings_text(part, "")) for part in (config, saved))
    return next((key for key in {**own, **theirs} if key not in ignored and own.get(key) != theirs.get(key)), None)


def _plain(settings: str) -> dict[str, Any]:
    plain = OmegaConf.to_container(OmegaConf.create(settings), resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
