"""Random search: an architecture by chance, the baseline of every method."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from src.architectures.architecture import Architecture, Spec
from src.architectures.enumeration import Architectures
from src.common.seeding import derive_seed


@dataclass(frozen=True)
class RandomSearch:
    """Draws an architecture uniformly from all different ones of a space, and trains nothing.

    The draws of different seeds are independent. Two of n are equal with a probability of about n^2 / 2 divided by the
    number of architectures, which for the paper's cells is below 10^-12 for a thousand seeds.

    The random search in the tables of arXiv 1806.09055 is the best of 24 draws by a short training; this is one draw.

    Attributes:
        name: of the method, for a run's record.
    """

    name: str = "random"
    trains: ClassVar[bool] = False

    def draw(self, spec: Spec, seed: int) -> Architecture:
        """Return an architecture: a function of the space's choices and the seed alone."""
        architectures = Architectures(spec)
        return architectures[random.Random(derive_seed("architecture", seed)).randrange(architectures.count)]
