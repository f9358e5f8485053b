"""Where a sweep of this process writes. Hydra knows it before the jobs; the command reports on the folder after them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
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
