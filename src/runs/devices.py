"""Which devices a run may use."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from src.common.errors import ConfigError
from src.common.files import lock_file

_gpu_lock: int | None = None


def own_gpu(count: int) -> int:
    """Return the number of a GPU that no other job of a sweep on this machine has; it is this process's until it ends
    or asks again.

    Raises:
        ConfigError: all `count` GPUs are taken.
    """
    global _gpu_lock  # noqa: PLW0603
    if _gpu_lock is not None:
        os.close(_gpu_lock)
        _gpu_lock = None
    user = getattr(os, "getuid", int)()  # Windows has a temporary folder for each user
    for index in range(count):
        _gpu_lock = lock_file(Path(tempfile.gettempdir()) / f"darts-gpu-{user}-{index}.lock")
        if _gpu_lock is not None:
            return index
    raise ConfigError(
        f"all {count} GPUs have a job of a sweep, allowed are as many jobs at once (hydra.launcher.n_jobs={count})"
    )
