"""What a retrain or a selection takes from its search: the space, the data and, if asked or needed, the weights."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from src.architectures.architecture import Architecture, load_json
from src.common import shell
from src.common.errors import ConfigError, must_be
from src.data.modules import RetrainData, SearchData
from src.runs.checkpoints import load, newest
from src.runs.folder import RunFolder
from src.runs.following import CONF
from src.runs.record import status_of
from src.runs.resume import kind_of, noun_of, read_settings
from src.runs.schema import OF_THE_SEARCH
from src.runs.targets import TARGET, locate, plain
from src.runs.values import show
from src.spaces.evaluation import changed_settings_of, evaluation_of, load_answers
from src.spaces.relaxed import WEIGHTS
from src.training.module import TrainingModule

# Of the run's data settings, those that belong to the recipe of the search rather than to the data.
_RECIPE = (TARGET, "batch_size", "arch_fraction")
_LARGEST_CHECKPOINT = 16 << 30

Weights = Mapping[str, Tensor]  # by their names in the space


def run_of(genotype: str) -> RunFolder | None:
    """Return the folder of the run that a genotype is given by, or None if it is no run's.

    Args:
        genotype: the folder itself, or the path of a file in it or in its `checkpoints`; anything else is no run's.
    """
    if not os.path.exists(genotype):  # a name, or a text, which may be too long for a path
        return None
    path = Path(genotype)
    folders = [path, path.parent] + [path.parent.parent] * (path.parent.name == RunFolder("").checkpoints.name)
    for folder in folders:
        try:
            read_settings(folder)
        except ConfigError:
            continue
        return RunFolder(folder)
    return None


def with_searched_settings(
    config: DictConfig, overrides: Iterable[str], choices: Mapping[str, Any] | None = None
) -> DictConfig:
    """Return the settings of a retrain, with the space and the data of the run that its genotype comes from.

    What the command line says comes first: `space=...` or `space._target_=...` is another network, `data=...` or
    `data.source._target_=...` are other data, and any other setting below `space` or `data` replaces the run's.

    Args:
        config: composed. One that resumes a run is returned as it is.
        overrides: of the command line.
        choices: the options that were chosen, by group; None: those of the command that Hydra runs. A config that was
            composed without Hydra's command has others.

    Raises:
        ConfigError: the run's settings cannot be used.
    """
    if config.resume is not None or OmegaConf.is_missing(config, "genotype"):
        return config
    if config.init not in (None, "search"):
        raise must_be("init", "null or search", config.init)
    choices = choices_of_the_command() if choices is None else choices
    keys = [text.lstrip("+~").partition("=")[0] for text in overrides]
    run = run_of(config.genotype)
    config = config.copy()
    if run is None:
        if config.init is not None:
            raise must_be(
                "init", f"null, since genotype={config.genotype} is not in the folder of a search", config.init
            )
        _set(config, "space", _as_evaluated(plain(config.space), keys), ())
        return config
    saved, commands = read_settings(run.path)
    if _chosen("space", keys, choices):
        _set(config, "space", _as_evaluated(plain(config.space), keys, config.init), ())
    else:
        changes = config.init is None and kind_of(commands) != "retrain"
        _set(config, "space", _space(plain(saved.space), plain(config.space), changes=changes), keys)
    if not _chosen("data", keys, choices):
        _set(config, "data", _data(plain(saved.data), plain(config.data)), keys)
    return config


def search_to_select_from(argument: str) -> str:
    """Return an argument of `src.select`, with `resume=FOLDER` of a search as `search=FOLDER`."""
    key, _, path = argument.partition("=")
    if key != "resume":
        return argument
    try:
        _, commands = read_settings(RunFolder.of(path).path)
    except ConfigError:
        return argument  # which the command will refuse
    return shell.override("search", path) if kind_of(commands) == "search" else argument


def with_settings_to_select(config: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """Return the settings of a selection, with those of its search; its learning rate is a tenth of the search's.

    What the command line says of the data and the optimisers comes first.

    Args:
        config: composed. One that resumes a selection is returned as it is.
        overrides: of the command line.

    Raises:
        ConfigError: there is no such search, it has not finished, or it trained nothing; or a setting that belongs to the
            search is to be changed.
    """
    keys = [text.lstrip("+~").partition("=")[0] for text in overrides]
    if "epochs" in keys:
        raise ConfigError("epochs cannot be set: a selection tunes for tune_epochs between two rounds")
    if config.resume is not None:
        return config
    run = RunFolder.of(config.search)
    saved, commands = read_settings(run.path)
    if kind_of(commands) != "search":
        raise must_be("search", "the folder of a search", f"{run}, which holds a {noun_of(kind_of(commands))}")
    for key in keys:
        group, dot, _ = key.partition(".")
        if group in OF_THE_SEARCH and not (dot and group in ("data", "optimizer")):
            raise ConfigError(f"{key} cannot be set: it is that of the search in {run}")
    if status_of(run.path) != "ok":
        raise must_be("search", "a search that has finished", f"{run}, which is {status_of(run.path) or 'unfinished'}")
    if not run.last.exists():
        raise ConfigError(f"a selection needs the supernet of its search, but there is no {run.last}")
    config = config.copy()
    optimizer: Any = OmegaConf.to_container(saved.optimizer, resolve=False)
    if isinstance(optimizer["weights"], dict) and isinstance(optimizer["weights"].get("lr"), float | int):
        optimizer["weights"]["lr"] /= 10
    own = OmegaConf.create({"optimizer": OmegaConf.to_container(config.optimizer, resolve=False)})
    _set(own, "optimizer", optimizer, keys)
    for name, node in own.optimizer.items():
        config.optimizer[name] = node
    _set(config, "data", plain(saved.data), keys)
    with open_dict(config):
        for key in ("space", "method", "hypergradient", "order"):
            config[key] = plain(saved[key])
        config.search = str(run.path.absolute())
        config.searched = {"seed": saved.seed, "epochs": saved.epochs}
    return config


def load_searched(run: RunFolder, module: TrainingModule, data: Mapping[str, Any]) -> None:
    """Put the state of a finished search into the module of a selection.

    Args:
        run: the search.
        module: of the selection.
        data: what the record of the selection says of its data.

    Raises:
        ConfigError: the checkpoint is missing or damaged, or it is for other data or another network.
    """
    found = newest(run, module, data=data)
    if found is None:
        raise ConfigError(f"a selection needs the supernet of its search, but there is no {run.last}")
    module.load_state_dict(found[1]["state_dict"])


def taken_from(config: DictConfig) -> str | None:
    """Return in a line what a retrain has taken from the run that its genotype comes from; None if it is no run's."""
    run = run_of(config.genotype)
    if run is None:
        return None
    saved, _ = read_settings(run.path)
    taken = ["genotype"]
    if plain(saved.data).get("source") == plain(config.data).get("source"):
        taken.append("data")
    if saved.space[TARGET] == config.space[TARGET]:
        changed = changed_settings_of(locate(config.space[TARGET], "space"))
        differ = [f"{n}={show(config.space[n])}" for n in changed if config.space.get(n) != saved.space.get(n)]
        taken.append(f"space ({config.space[TARGET]}{', with ' if differ else ''}{', '.join(differ)})")
    if config.init is not None:
        taken.append("weights")
    return f"taken from {run}: {', '.join(taken)}"


def load_architecture(space: Any, genotype: str) -> Architecture | None:
    """Return a genotype's architecture as the evaluation network reads it; None if the space itself is retrained.

    Args:
        space: the node of the config.
        genotype: a name, a text or a path; what the space itself is to read is looked at, too.

    Raises:
        ConfigError: it cannot be read.
    """
    settings = plain(space)
    kind = locate(settings[TARGET], "space")
    if evaluation_of(kind) is None:
        load_json(Path(genotype))
        return None
    load = getattr(kind, "load", None)
    if load is None:
        return load_answers(Path(genotype))
    taken = inspect.signature(load).parameters
    return load(genotype, **{name: value for name, value in settings.items() if name in taken})


def initial_weights(config: DictConfig) -> Weights | None:
    """Return the weights that the space of a retrain starts from; None starts from new ones.

    Raises:
        ConfigError: the settings ask for weights that there are not.
    """
    if config.init is None:
        return None
    kind = config.space[TARGET]
    if evaluation_of(locate(kind, "space")) is not None:
        raise must_be("init", f"null, since {kind} is another network than the one that was searched", config.init)
    run = run_of(config.genotype)
    assert run is not None, "with_searched_settings has found it"
    return _searched_weights(run)


def _searched_weights(run: RunFolder) -> Weights:
    """Return the weights that the space had after a search, by their names in the space."""
    if not run.last.exists():
        raise ConfigError(f"init=search needs the weights of the search, but there is no {run.last}")
    state = load(run.last, largest=_LARGEST_CHECKPOINT).get("state_dict")
    prefix = f"net.{WEIGHTS}"
    weights = {
        name.removeprefix(prefix): value
        for name, value in (state.items() if isinstance(state, Mapping) else ())
        if isinstance(name, str) and name.startswith(prefix) and isinstance(value, Tensor)
    }
    if not weights:
        raise ConfigError(f"init=search needs the weights of a search, {run.last} holds none")
    return weights


def _space(searched: dict[str, Any], composed: dict[str, Any], *, changes: bool) -> dict[str, Any]:
    """Return the settings of the network that a run's architectures are retrained as.

    Args:
        searched: of the run's space or network.
        composed: of the retrain.
        changes: whether a space that is retrained as itself changes what it wants to.
    """
    kind = locate(searched.get(TARGET), "space")
    network = evaluation_of(kind)
    if network is None:
        return searched | (changed_settings_of(kind) if changes else {})
    inherited = {name: searched[name] for name in getattr(network, "settings_of_the_space", ()) if name in searched}
    if locate(composed[TARGET], "space") is network:
        return composed | inherited
    if network is kind:  # the run is a retrain
        return searched
    return {TARGET: f"{network.__module__}.{network.__qualname__}"} | inherited


def _as_evaluated(space: dict[str, Any], keys: Iterable[str], init: str | None = None) -> dict[str, Any]:
    """Return the settings of a network or space with the network that the space's architectures are retrained as.

    Args:
        space: the settings.
        keys: that the command line sets.
        init: the setting of this name.
    """
    kind = locate(space.get(TARGET), "space")
    network = evaluation_of(kind)
    if network is None or network is kind:
        changed = changed_settings_of(kind) if init is None else {}
        return space | {name: value for name, value in changed.items() if f"space.{name}" not in keys}
    return space | {TARGET: f"{network.__module__}.{network.__qualname__}"}


def _data(searched: dict[str, Any], composed: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the data of a retrain on a run's data."""
    kind = locate(searched[TARGET], "data") if TARGET in searched else SearchData
    if kind not in (SearchData, RetrainData):
        return searched
    taken = inspect.signature(RetrainData).parameters
    return composed | {name: value for name, value in searched.items() if name in taken and name not in _RECIPE}


def _set(config: DictConfig, key: str, node: dict[str, Any], overrides: Iterable[str]) -> None:
    """Set a node of the config, in which the settings of the command line stay as they are."""
    given = config[key]
    result = OmegaConf.create(node)
    for override in overrides:
        top, _, name = override.partition(".")
        if top == key and name:
            value = OmegaConf.select(given, name)
            if value is None and OmegaConf.select(given, name, default="") == "":
                _remove(result, name)  # by ~
            else:
                OmegaConf.update(result, name, value, force_add=True)
    with open_dict(config):
        config[key] = result


def _remove(node: DictConfig, name: str) -> None:
    parent, _, last = name.rpartition(".")
    found = OmegaConf.select(node, parent) if parent else node
    if isinstance(found, DictConfig):
        found.pop(last, None)


def _chosen(group: str, keys: Iterable[str], choices: Mapping[str, Any]) -> bool:
    """Return whether the command line, or an experiment, chooses the whole of a group."""
    if any(key in (group, f"{group}.{TARGET}", f"{group}.source.{TARGET}") for key in keys):
        return True
    return choices.get(group, _default(group)) != _default(group)


def choices_of_the_command() -> Mapping[str, Any]:
    """Return the options that the command which Hydra runs has chosen, by group."""
    return HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}


@cache
def _default(group: str) -> str:
    """Return the option of a group in conf/retrain.yaml."""
    defaults = yaml.safe_load((CONF / "retrain.yaml").read_text(encoding="utf-8"))["defaults"]
    return next(entry[group] for entry in defaults if isinstance(entry, dict) and group in entry)
