"""What every architecture of a space reaches once it is trained, and how good one of them is among all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.architectures.architecture import Architecture
from src.common.errors import ConfigError


class Standing(NamedTuple):
    """How good an architecture is among all of its space.

    Attributes:
        accuracy: mean over its runs, in [0, 1].
        percentile: the share of all architectures that are worse, with half of those that are equal, in [0, 1].
        regret: the accuracy of the best less its own.
    """

    accuracy: float
    percentile: float
    regret: float


@dataclass(frozen=True)
class Table:
    """The accuracies of all architectures of a space with one LayerChoice for each key.

    Attributes:
        options: key -> candidates, in the order of the digits of an architecture's row; the first key's is the highest.
        runs: accuracies on validation data, (architectures, runs), in [0, 1]; nan where an architecture has fewer.
        tests: accuracies of the same runs on test data, or None.
        seconds: of the same runs, on the machine that made the table, or None.
        data: what the architectures were trained on, or nothing.
    """

    options: Mapping[str, tuple[str, ...]]
    runs: NDArray[np.float64]
    tests: NDArray[np.float64] | None = None
    seconds: NDArray[np.float64] | None = None
    data: str = ""

    @cached_property
    def accuracies(self) -> NDArray[np.float64]:
        """The mean over the runs of each architecture, (architectures,)."""
        return np.nanmean(self.runs, axis=1)

    def row(self, architecture: Architecture) -> int:
        """Return the row of an architecture.

        Raises:
            ConfigError: it is not one of this space.
        """
        place = 0
        for key, names in self.options.items():
            answer = architecture.choices.get(key)
            if answer not in names:
                raise ConfigError(f"the table has {key} as one of {', '.join(names)}, got {answer}")
            place = place * len(names) + names.index(str(answer))
        return place

    def architecture(self, row: int) -> Architecture:
        """Return the architecture of a row."""
        answers: dict[str, str] = {}
        for key, names in reversed(list(self.options.items())):
            row, digit = divmod(row, len(names))
            answers[key] = names[digit]
        return Architecture({key: answers[key] for key in self.options})

    def standing(self, architecture: Architecture) -> Standing:
        """Return how good an architecture is among all."""
        accuracy = self.accuracies[self.row(architecture)]
        worse, equal = (self.accuracies < accuracy).sum(), (self.accuracies == accuracy).sum()
        percentile = (worse + equal / 2) / len(self.accuracies)
        return Standing(float(accuracy), float(percentile), float(self.accuracies.max() - accuracy))
