"""Whether this is a job of a sweep, and where the sweep writes: the command reports on that folder after the jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

_folder: Path | None = None


class SweepFolder(Callback):
    """Notes the folder of the sweep that begins; conf/ names it among Hydra's callbacks."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the folder."""
        global _folder  # noqa: PLW0603
        _folder = Path(config.hydra.sweep.dir)


def begin() -> None:
    """Forget the folder of an earlier sweep of this process."""
    global _folder  # noqa: PLW0603
    _folder = None


def folder() -> Path | None:
    """Return the folder of the sweep that this process has begun; None for a single run."""
    return _folder


def is_job() -> bool:
    """Return whether what runs now is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
