"""The settings of the commands: their types, and the check of what a user typed.

The files in conf/ give the values. These classes give the types of what is the commands' own, so that `epochs=ten` or
`epoch=10` is refused while the config is composed; `check` then looks at ranges and at what does not go together. What is
built from a `_target_` (a space, data, optimisers) needs no schema: src/runs/targets.py checks it against the target.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from src.common.errors import ConfigError, must_be
from src.runs.targets import unknown_key

LARGEST_SEED = 2**32 - 1


@dataclass
class SearchOptimizer:
    """The optimisers of a search: `weights` with its schedule (stepped once an epoch), and `alphas`."""

    weights: Any = MISSING
    schedule: Any = MISSING
    alphas: Any = MISSING
    gradient_clip: float = MISSING


@dataclass
class RetrainOptimizer:
    """The optimiser of a retrain with its schedule (stepped once an epoch)."""

    weights: Any = MISSING
    schedule: Any = MISSING
    gradient_clip: float = MISSING


@dataclass
class Sweep:
    """A sweep of the command. `resume`: the folder of one that is to be completed."""

    resume: str | None = None


@dataclass
class SearchConfig:
    """`python -m src.search`."""

    order: int = MISSING
    seed: int = MISSING
    epochs: int = MISSING
    folder: str = MISSING
    resume: str | None = None
    plan: bool = False
    checkpoint_minutes: float | None = MISSING
    graphs: Any = False
    sweep: Sweep = field(default_factory=Sweep)
    data: Any = MISSING
    space: Any = MISSING
    method: Any = MISSING
    hypergradient: Any = MISSING
    diagnostics: Any = None
    optimizer: SearchOptimizer = field(default_factory=SearchOptimizer)
    trainer: Any = MISSING
    logger: Any = None
    callbacks: Any = None


@dataclass
class RetrainConfig:
    """`python -m src.retrain`."""

    genotype: str = MISSING
    init: str | None = None
    seed: int = MISSING
    epochs: int = MISSING
    folder: str = MISSING
    resume: str | None = None
    plan: bool = False
    checkpoint_minutes: float | None = MISSING
    graphs: Any = False
    sweep: Sweep = field(default_factory=Sweep)
    data: Any = MISSING
    space: Any = MISSING
    optimizer: RetrainOptimizer = field(default_factory=RetrainOptimizer)
    trainer: Any = MISSING
    logger: Any = None
    callbacks: Any = None


# What a selection has from its search.
OF_THE_SEARCH = ("space", "method", "hypergradient", "order", "searched", "data", "optimizer", "experiment")


@dataclass
class SelectConfig:
    """`python -m src.select`."""

    search: str = MISSING
    searched: Any = None
    criterion: str = MISSING
    tune_epochs: int = MISSING
    train_alphas: bool = MISSING
    order: int = MISSING
    seed: int = MISSING
    epochs: int = MISSING
    folder: str = MISSING
    resume: str | None = None
    checkpoint_minutes: float | None = MISSING
    sweep: Sweep = field(default_factory=Sweep)
    data: Any = MISSING
    space: Any = MISSING
    method: Any = MISSING
    hypergradient: Any = MISSING
    optimizer: SearchOptimizer = field(default_factory=SearchOptimizer)
    trainer: Any = MISSING
    logger: Any = None
    callbacks: Any = None


@dataclass
class StudyConfig:
    """`python -m src.study`."""

    name: str = MISSING
    space: str = MISSING
    data: str = MISSING
    methods: list[str] = MISSING
    orders: list[int] = MISSING
    hypergradients: list[str] = MISSING
    variants: dict[str, list[str]] = MISSING
    seeds: int = MISSING
    search: list[str] = MISSING
    table: bool = MISSING
    retrain: dict[str, list[str]] = MISSING
    repeats: int = MISSING
    random: int = MISSING
    budget: int = MISSING
    folder: str = MISSING
    jobs: int | None = None
    threads: int | None = None
    plan: bool = False


@dataclass
class TabulateConfig:
    """`python -m src.tabulate`."""

    space: str = MISSING
    data: str = MISSING
    seeds: int = MISSING
    validation_fraction: float | None = MISSING
    retrain: list[str] = MISSING
    at_most: int = MISSING
    folder: str = MISSING
    jobs: int | None = None
    threads: int | None = None
    plan: bool = False


COMMANDS: dict[str, type] = {"search": SearchConfig, "retrain": RetrainConfig, "select": SelectConfig}
OF_JOBS: dict[str, type] = {"study": StudyConfig, "tabulate": TabulateConfig}  # commands that start runs, and are none
_SCHEMAS = {**COMMANDS, **OF_JOBS}


def register_schemas() -> None:
    """Make the schemas known to Hydra under the names that the defaults lists in conf/ use."""
    for command, schema in _SCHEMAS.items():
        ConfigStore.instance().store(name=f"{command}_schema", node=schema)


def annotation_of(command: str, key: str) -> Any:
    """Return the type of a key of a command's config, or None if it is not one of the schema's."""
    kind: Any = _SCHEMAS[command]
    for name in key.split("."):
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            kind = get_type_hints(kind).get(name) if is_dataclass(kind) else None
    return kind


def check(command: str, config: DictConfig) -> None:
    """Check a composed config, as far as it can be done without data.

    Raises:
        ConfigError: a key that the command does not know, a value that no run can use, or settings that do not go
            together.
    """
    check_keys(command, config)
    for name in config.optimizer:
        if OmegaConf.is_missing(config.optimizer, name):
            raise ConfigError(f"optimizer.{name} is not set: the optimizer option is for another command")
    if "order" in config and config.order not in (1, 2):
        raise must_be("order", "1 (first order) or 2 (unrolled)", config.order)
    if not 0 <= config.seed <= LARGEST_SEED:
        raise must_be("seed", f"between 0 and {LARGEST_SEED}", config.seed)
    if config.epochs < 1:
        raise must_be("epochs", "1 or more", config.epochs)
    if config.trainer.get("max_epochs", config.epochs) != config.epochs:
        raise ConfigError(
            f"trainer.max_epochs is {config.trainer.max_epochs} but epochs is {config.epochs}, and schedules end with "
            f"epochs; set epochs={config.trainer.max_epochs} instead"
        )


def check_keys(command: str, config: DictConfig) -> None:
    """Raise a `ConfigError` for a key that a command does not know."""
    _check_keys(config, _SCHEMAS[command], "")


def _check_keys(node: DictConfig, schema: type, within: str) -> None:
    known = {entry.name: entry for entry in fields(schema)}
    for key in node:
        if key not in known:
            raise ConfigError(unknown_key(key, within, known))
        kind = known[str(key)].default_factory
        if isinstance(kind, type) and is_dataclass(kind):
            _check_keys(node[key], kind, str(key))
