"""What all tests share."""

from __future__ import annotations

import os

import pytest
import torch
from hydra._internal.hydra import Hydra
from hypothesis import settings

# The tensors here are small: more threads only wait for each other, and would differ between machines.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start

# Hydra composes each command's config twice, the first time to look for hydra.mode, which nothing here sets.
Hydra.get_mode = lambda *_, **__: None

# Time limits belong to `make bench`; here they would only make slow machines fail.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing:
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if item not in needing]
