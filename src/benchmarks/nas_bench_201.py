"""The published accuracies of NAS-Bench-201 (arXiv 2001.00326); tables/README.md says where they are from."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from src.benchmarks.table import Table
from src.common.errors import unknown

DATA = ("cifar10", "cifar100", "imagenet16_120")
_FILE = Path(__file__).parent / "tables" / "nas_bench_201.npz"


@cache
def nas_bench_201(data: str = "cifar10") -> Table:
    """Return the accuracies on the validation split of a data set, after 200 epochs, in two or three runs each.

    Args:
        data: `cifar10`, `cifar100` or `imagenet16_120`.

    Raises:
        ConfigError: there are no such data.
    """
    if data not in DATA:
        raise unknown("table", data, DATA)
    with np.load(_FILE) as columns:
        right: Any = columns[f"{data}_right"]
        runs = np.where(right == np.iinfo(right.dtype).max, np.nan, right / columns[f"{data}_images"])
        options = dict.fromkeys(columns["keys"].tolist(), tuple(columns["candidates"].tolist()))
        return Table(options, runs, data=data)
