"""What `python -m src.bench` can measure, and at which sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from src.bench import comparisons
from src.bench.difference import difference
from src.bench.forms import Sizes
from src.bench.gpu import gpu
from src.bench.measuring import Rows
from src.bench.methods import methods

SMALL: dict[str, int | str] = {
    "channels": 4, "cells": 3, "nodes": 2, "batch": 16, "image": 8, "pairs": 1, "memory": False,
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A part of the bench.

    Attributes:
        rows: measures, and yields a row as soon as it is known.
        words: what it measures, for `--help`.
        takes: how long it takes and how much memory, where that was measured, for `--help`.
        sizes: those of `Sizes` in which it differs from the paper's.
        quick: likewise, with `--quick`; None for a part that has no quick form.
        by_name: whether it runs only when it is named.
        line_by_line: whether each row is printed as soon as it is known.
    """

    rows: Callable[[Sizes], Rows]
    words: str
    takes: str = ""
    sizes: Mapping[str, int | str] = field(default_factory=dict)
    quick: Mapping[str, int | str] | None = None
    by_name: bool = False
    line_by_line: bool = False


PARTS = {
    "search": Part(comparisons.search, "a whole search step of order 1 and 2", quick=SMALL),
    "hypergradient": Part(
        comparisons.hypergradient, "the hypergradients, along a real search", quick={**SMALL, "steps": 3}
    ),
    "retrain": Part(
        comparisons.retrain,
        "a training step of DARTS_V2",
        quick={"retrain_channels": 16, "retrain_cells": 8, "retrain_batch": 32, "pairs": 2},
    ),
    "data": Part(comparisons.data, "images per second into the network", quick={"pairs": 2}),
    "growth": Part(comparisons.growth, "how a search step grows with each size", quick=SMALL),
    "demo": Part(
        comparisons.demo,
        "a search step at the size of `make demo`, with one thread and two",
        sizes={"channels": 4, "cells": 3, "batch": 96, "image": 8},
        quick={"channels": 4, "cells": 3, "batch": 96, "image": 8, "pairs": 1},
    ),
    "methods": Part(methods, "a search step of each method in conf/method, against DARTS", quick=SMALL),
    "difference": Part(
        difference,
        "why the finite difference is poor, by epsilon, along a search",
        sizes={"channels": 4, "cells": 3, "batch": 32, "image": 8},
        by_name=True,
    ),
    "gpu": Part(
        gpu,
        "all that a GPU can tell in ten minutes",
        sizes={"device": "cuda", "pairs": 3},
        by_name=True,
        line_by_line=True,
    ),
}
