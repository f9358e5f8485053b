"""Differentiable architecture search (DARTS): commands on top, plain torch below.

What a notebook needs is here, and is imported when it is first used:

    from src import load_run, load_runs, LayerChoice, InputChoice, ConfigError
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from src.common.errors import ConfigError
    from src.runs.opened import load_run, load_runs
    from src.spaces.choices import InputChoice, LayerChoice

__all__ = ["ConfigError", "InputChoice", "LayerChoice", "load_run", "load_runs"]

_HOMES = {
    "ConfigError": "src.common.errors",
    "InputChoice": "src.spaces.choices",
    "LayerChoice": "src.spaces.choices",
    "load_run": "src.runs.opened",
    "load_runs": "src.runs.opened",
}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` on its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
