"""What a network is trained for: its loss, and the figures that it is judged by. They belong to the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanAbsoluteError, Metric
from torchmetrics.classification import MulticlassAccuracy


class Task(ABC):
    """A loss, and metrics.

    Attributes:
        outputs: size of the network's last layer; a space is given it as `num_classes`.
        metric: the name in `metrics` of the figure that a run is judged by.
    """

    outputs: int
    metric: str

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over the samples of a batch, a scalar that can be differentiated twice."""

    @abstractmethod
    def metrics(self) -> dict[str, Metric]:
        """Return new metrics by name; each takes `update(outputs, targets)`."""

    @abstractmethod
    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return `metric` on one batch, a scalar; for the progress bar."""


class Classification(Task):
    """One class of several for each sample: cross entropy and accuracy. Targets are int64 (N,)."""

    metric = "accuracy"

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.outputs = len(self.classes)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy of logits (N, classes)."""
        return F.cross_entropy(outputs, targets)

    def metrics(self) -> dict[str, Metric]:
        """Return the accuracy: the share of samples whose largest logit is that of their class."""
        return {"accuracy": MulticlassAccuracy(self.outputs, average="micro")}

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the accuracy on one batch."""
        return (outputs.argmax(1) == targets).float().mean()


class Regression(Task):
    """Numbers to be predicted: mean squared error and mean absolute error. Targets are floating (N,) or (N, targets)."""

    metric = "mae"

    def __init__(self, targets: int = 1) -> None:
        self.outputs = targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error of outputs (N, targets)."""
        return F.mse_loss(outputs.reshape(targets.shape), targets)

    def metrics(self) -> dict[str, Metric]:
        """Return the mean absolute error."""
        return {"mae": _AbsoluteError()}

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean absolute error on one batch."""
        return (outputs.reshape(targets.shape) - targets).abs().mean()


class _AbsoluteError(MeanAbsoluteError):
    """torchmetrics' own, of outputs (N, 1) with targets (N,) too."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch."""
        super().update(torch.as_tensor(preds).reshape(target.shape), target)
