"""Which optimiser steps the alphas of a search: the run's, or one that the method brings."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf, open_dict

from src.common.errors import ConfigError

RUNS, METHODS = "optimizer.alphas", "method.alpha_optimizer"


def is_of_method(config: DictConfig, key: str) -> bool:
    """Return whether a key is that of the run's optimiser of the alphas, in whose place a method has its own."""
    return key == RUNS and OmegaConf.select(config, METHODS) is not None


def with_own_optimizer(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return the settings of a search without an optimiser that would not be used.

    Args:
        config: composed; it is changed.
        overrides: of the command line.

    Raises:
        ConfigError: the command line sets the run's optimiser of the alphas beside a method that has its own.
    """
    if not is_of_method(config, RUNS):
        return config
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key == RUNS or key.startswith(f"{RUNS}."):
            raise ConfigError(
                f"{key} is not used, since {METHODS} steps the alphas of {OmegaConf.select(config, 'method.name')}; "
                f"set {METHODS}{key.removeprefix(RUNS)}, or leave it out"
            )
    with open_dict(config):
        config.optimizer.alphas = None
    return config
