"""A data set and a space of one's own: the diabetes data of scikit-learn, a regression, and a perceptron.

    python -m src.search data=own data.source._target_=examples.diabetes.diabetes \\
        space._target_=examples.diabetes.Perceptron epochs=20 folder=runs/diabetes/search
    python -m src.retrain genotype=runs/diabetes/search epochs=20 folder=runs/diabetes/retrain

The data set comes with scikit-learn: nothing is downloaded. A function that returns `Samples` is all that is needed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from src.data.samples import Samples
from src.data.sources import InMemory
from src.data.tasks import Regression
from src.spaces.choices import LayerChoice


def diabetes() -> InMemory:
    """Return 442 patients with ten measurements each, and the progress of their illness after a year."""
    data: Any = load_diabetes()
    # Inputs are standardised by the data module, targets are not: 25 to 346 becomes about -2 to 2.
    progress = (torch.from_numpy(data.target) - 150) / 100
    return InMemory(Samples(torch.from_numpy(data.data), progress, Regression()), name="diabetes")


class Perceptron(nn.Module):
    """Layers of a width, each with a choice of what it is."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, depth: int = 2, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), width))
        self.layers = nn.Sequential(
            *(
                LayerChoice(
                    {
                        "relu": nn.Sequential(nn.Linear(width, width), nn.ReLU()),
                        "tanh": nn.Sequential(nn.Linear(width, width), nn.Tanh()),
                        "skip": nn.Identity(),
                    },
                    key=f"layer{index}",
                )
                for index in range(depth)
            )
        )
        self.last = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (N, ...) to outputs (N, num_classes)."""
        return self.last(self.layers(self.first(x)))
