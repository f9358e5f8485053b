"""What a run can be told: the schema of the commands' configs, and the one place that validates what a user typed.

The files in conf/ give the values; these classes give the types, so that `epochs=ten` or `epoch=10` is refused while the
config is composed. `check` then looks at ranges and at what does not go together.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from src.common.errors import ConfigError, unknown

LARGEST_SEED = 2**32 - 1


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


# conf/ has the folder of a run, or of a sweep, from it: a given one to go on in, or a new one. A launcher that starts
# processes of its own imports this module there, so it stands outside of `register_schemas`.
OmegaConf.register_new_resolver("first", _first, replace=True)


@dataclass
class SearchData:
    """The data of a search: the train split in two halves. Further keys belong to the source."""

    source: Any = MISSING
    batch_size: int = MISSING
    arch_fraction: float = MISSING
    crop_padding: int = MISSING
    flip: bool = MISSING


@dataclass
class RetrainData:
    """The data of a retrain: the whole train split, and the test split. `cutout` null: half of the image's side."""

    source: Any = MISSING
    batch_size: int = MISSING
    crop_padding: int = MISSING
    flip: bool = MISSING
    cutout: int | None = None


@dataclass
class CellSpace:
    """The CNN cell space as it is searched; see `src.spaces.cnn.cells.Supernet`."""

    _target_: str = MISSING
    impl: str = MISSING
    channels: int = MISSING
    cells: int = MISSING
    nodes: int = MISSING
    stem_multiplier: int = MISSING
    candidates: list[str] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)


@dataclass
class CellNetwork:
    """The network that a genotype is retrained as; see `src.spaces.cnn.network.Network`."""

    _target_: str = MISSING
    impl: str = MISSING
    channels: int = MISSING
    cells: int = MISSING
    stem_multiplier: int = MISSING
    auxiliary: bool = MISSING
    operations: list[str] = field(default_factory=list)
    auxiliary_weight: float = MISSING
    drop_path: float = MISSING


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
    checkpoint_minutes: float | None = MISSING
    sweep: Sweep = field(default_factory=Sweep)
    data: SearchData = field(default_factory=SearchData)
    space: Any = MISSING
    method: Any = MISSING
    hypergradient: Any = MISSING
    optimizer: SearchOptimizer = field(default_factory=SearchOptimizer)
    trainer: Any = MISSING
    logger: Any = None
    callbacks: Any = None


@dataclass
class RetrainConfig:
    """`python -m src.retrain`."""

    genotype: str = MISSING
    seed: int = MISSING
    epochs: int = MISSING
    folder: str = MISSING
    resume: str | None = None
    checkpoint_minutes: float | None = MISSING
    sweep: Sweep = field(default_factory=Sweep)
    data: RetrainData = field(default_factory=RetrainData)
    space: Any = MISSING
    optimizer: RetrainOptimizer = field(default_factory=RetrainOptimizer)
    trainer: Any = MISSING
    logger: Any = None
    callbacks: Any = None


def register_schemas() -> None:
    """Make the schemas known to Hydra under the names that the defaults lists in conf/ use."""
    store = ConfigStore.instance()
    store.store(name="search_schema", node=SearchConfig)
    store.store(name="retrain_schema", node=RetrainConfig)
    store.store(group="space", name="cell_space_schema", node=CellSpace)
    store.store(group="space", name="cell_network_schema", node=CellNetwork)


def check(command: str, config: DictConfig) -> None:
    """Raise a `ConfigError` for a key that the command does not know (+key=...), or a value that no run can use."""
    _check_keys(config, SearchConfig if command == "search" else RetrainConfig, "")
    if config.data.source is None:
        raise ConfigError("data.source is null, allowed is a source as in conf/data/")
    if "order" in config and config.order not in (1, 2):
        raise ConfigError(f"order={config.order}, allowed are 1 (first order) and 2 (unrolled)")
    if not 0 <= config.seed <= LARGEST_SEED:
        raise ConfigError(f"seed={config.seed}, allowed are 0 to {LARGEST_SEED}")
    if config.epochs < 1:
        raise ConfigError(f"epochs={config.epochs}, allowed are 1 and more")


def _check_keys(node: DictConfig, schema: type, within: str) -> None:
    known = {entry.name: entry for entry in fields(schema)}
    for key in node:
        if key not in known:
            raise ConfigError(f"{unknown('key', key, known)}{within and f', in {within}'}")
        kind = known[str(key)].default_factory
        if isinstance(kind, type) and is_dataclass(kind):
            _check_keys(node[key], kind, str(key))
