"""What a network is trained for: its loss, and the metrics that it is judged by. They belong to the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanAbsoluteError, Metric
from torchmetrics.classification import MulticlassAccuracy


class Task(ABC):
    """A loss, and metrics.

    Attributes:
        outputs: size of the network's last layer; a space is given it as `num_classes`.
        metric: the name in `metrics` of the one that a run is judged by.
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

    def check(self, targets: Tensor) -> None:  # noqa: B027 (a task may leave it to its loss)
        """Raise a `ValueError` for targets (N, ...) that the loss does not take."""

    def strata(self, targets: Tensor) -> Tensor:
        """Return the stratum of each of the targets (N, ...), int64 (N,).

        Halves, and subsets for evaluation, hold the strata in proportion. Here all samples are of one stratum, so that
        the choice among them is simply random.
        """
        return torch.zeros(len(targets), dtype=torch.int64)

    def record(self) -> dict[str, Any]:
        """Return what a run's record says of the task, in primitives; equal for tasks that are alike."""
        return {"task": type(self).__name__.lower(), "outputs": self.outputs}


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
        # Its checks would have the host wait for a GPU; `check` has seen the targets.
        return {"accuracy": MulticlassAccuracy(self.outputs, average="micro", validate_args=False)}

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the accuracy on one batch."""
        return (outputs.argmax(1) == targets).float().mean()

    def check(self, targets: Tensor) -> None:
        """Raise a `ValueError` for targets other than int64 (N,), indices into the classes."""
        if targets.dtype != torch.int64 or targets.dim() != 1:
            raise ValueError(f"targets must be int64 (N,), got {_describe(targets)}")
        if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < self.outputs:
            found = f"{int(targets.min())} to {int(targets.max())}"
            raise ValueError(f"targets must be 0 to {self.outputs - 1}, one index for each class, got {found}")

    def strata(self, targets: Tensor) -> Tensor:
        """Return the class of each sample."""
        return targets

    def record(self) -> dict[str, Any]:
        """Return what a run's record says of the task: also the names of the classes."""
        return {**super().record(), "classes": list(self.classes)}


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

    def check(self, targets: Tensor) -> None:
        """Raise a `ValueError` for targets that are not finite numbers, floating (N,) or (N, outputs)."""
        shapes = [(len(targets), self.outputs), *([(len(targets),)] if self.outputs == 1 else [])]
        if not targets.is_floating_point() or targets.shape not in shapes:
            needed = "(N,)" if self.outputs == 1 else f"(N, {self.outputs})"
            raise ValueError(f"targets must be floating {needed}, got {_describe(targets)}")
        if not bool(targets.isfinite().all()):
            raise ValueError("targets must be finite, got nan or inf")


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


class _AbsoluteError(MeanAbsoluteError):
    """torchmetrics' own, of outputs (N, 1) with targets (N,) too."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch."""
        super().update(torch.as_tensor(preds).reshape(target.shape), target)
