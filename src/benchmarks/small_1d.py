"""What every architecture of the space small_1d reaches on MNIST-1D; tables/README.md says how it was trained."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from src.benchmarks.table import Table
from src.benchmarks.tabulated import read_table
from src.common.errors import unknown

DATA = ("mnist_1d",)
FILE = Path(__file__).parent / "tables" / "small_1d.json"


@cache
def small_1d(data: str = "mnist_1d") -> Table:
    """Return the accuracies on held back data, three trainings each; architectures that compute the same have equal rows.

    Args:
        data: what they were trained on: `mnist_1d`.

    Raises:
        ConfigError: there is no such table.
    """
    if data not in DATA:
        raise unknown("table", data, DATA)
    return read_table(FILE)
