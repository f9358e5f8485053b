"""The order of a recipe that leaves it to the method: 2 where that has one."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from src.common.errors import ConfigError
from src.runs.targets import build


def highest_order(*, _root_: DictConfig) -> int:
    """Return the highest order of hypergradient that a config's method can be searched with, 1 or 2."""
    try:
        method = build(_root_.method, "method")
        if not method.trains:
            return 1
        method.check_order(unrolls=True)
    except ConfigError:  # it has none, or cannot be built, which the run will say
        return 1
    return 2


# conf/experiment has orders from this, as ${highest_order:}.
OmegaConf.register_new_resolver("highest_order", highest_order, replace=True)
