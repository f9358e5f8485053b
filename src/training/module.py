"""What both training modules share: epoch metrics that survive a stop, averages over processes, a watch for nan."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from src.common import processes
from src.common.errors import ConfigError, Diverged
from src.common.seeding import seed_step

CHECKPOINT_FORMAT = 1
Labelled = tuple[Tensor, Tensor]  # images (N, C, H, W), labels (N,)


class Mean(Metric):
    """The mean over samples. (torchmetrics' own looks for nan in every value, or else leaves the weights out.)"""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("samples", torch.tensor(0.0), dist_reduce_fx="sum")
        self.total: Tensor
        self.samples: Tensor

    def update(self, value: Tensor, samples: int) -> None:
        """Add the mean over some samples."""
        self.total += value.to(self.total.dtype) * samples
        self.samples += samples

    def compute(self) -> Tensor:
        """Return the mean over all."""
        return self.total / self.samples


class TrainingModule(L.LightningModule):
    """A LightningModule with `net`, the network that is trained, in channels_last.

    Metrics are means over all samples of an epoch, on all processes. Those of the training epoch go into checkpoints,
    so that an epoch that was cut in two has the metrics of a whole one.

    Args:
        net: the network.
        num_classes: of the accuracies.
        training_metrics: names of the means over a training epoch; `*_accuracy` is an accuracy.
        evaluation_metrics: the same for validation and test.
        gradient_clip: largest norm of the weights' gradient.
        seed: of the run.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        num_classes: int,
        training_metrics: Iterable[str],
        evaluation_metrics: Iterable[str],
        gradient_clip: float,
        seed: int,
    ) -> None:
        super().__init__()
        if gradient_clip <= 0:
            raise ConfigError(f"optimizer.gradient_clip={gradient_clip}, allowed are numbers above 0")
        self.net = net
        self.net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.gradient_clip = gradient_clip
        self.seed = seed
        self._training_metrics = tuple(training_metrics)
        self.metrics = nn.ModuleDict(
            {
                name: MulticlassAccuracy(num_classes, average="micro") if name.endswith("_accuracy") else Mean()
                for name in [*self._training_metrics, *evaluation_metrics]
            }
        )
        self._batch_idx = 0
        self._period: int | None = None

    def measure(self, name: str, value: Tensor, weight: int | Tensor) -> None:
        """Add to a metric of the epoch: a mean over `weight` samples or, for an accuracy, logits and labels."""
        metric = self._metric(name)
        metric.update(value, weight)
        self.log(name, metric, on_step=False, on_epoch=True)

    def on_train_start(self) -> None:
        """Let a schedule that a checkpoint restored end with the epochs that this run was told."""
        for config in self.trainer.lr_scheduler_configs:
            if hasattr(config.scheduler, "T_max"):
                config.scheduler.T_max = self._period  # pyright: ignore[reportAttributeAccessIssue]

    def note_schedule(self, scheduler: Any) -> Any:
        """Remember the period of a schedule as configured, and return the schedule."""
        self._period = getattr(scheduler, "T_max", None)
        return scheduler

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make whatever randomness an operation uses a function of the place in the run."""
        self._batch_idx = batch_idx
        seed_step(self.seed, self.current_epoch, batch_idx, self.global_rank)

    def average_step(self, gradients: list[Tensor]) -> list[Tensor]:
        """Return the gradients' means over the processes; the running statistics become theirs, in the same message.

        So the processes' networks stay equal to the bit, and any of them can write the checkpoint.
        """
        if processes.world_size() == 1:
            return gradients
        buffers = [buffer for buffer in self.net.buffers() if buffer.is_floating_point()]
        averaged = processes.average([*gradients, *buffers])
        if buffers:
            torch._foreach_copy_(buffers, averaged[len(gradients) :])
        return averaged[: len(gradients)]

    def check_finite(self, what: str, gradient_norm: Tensor, loss: Tensor) -> None:
        """Raise `Diverged` if a gradient, averaged over the processes, is not finite."""
        if not bool(gradient_norm.isfinite()):
            optimizers = self._trainer.optimizers if self._trainer is not None else []
            rates = ", ".join(f"{group['lr']:.3g}" for optimizer in optimizers for group in optimizer.param_groups)
            raise Diverged(
                f"the gradient of the {what} is {float(gradient_norm)} in epoch {self.current_epoch}, "
                f"step {self._batch_idx} (loss {float(loss):.4g}, learning rates {rates}); a smaller optimizer.weights.lr "
                "may help"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the sums of the training epoch so far, of every process; none at an epoch's end."""
        checkpoint["format"] = CHECKPOINT_FORMAT
        within_epoch = not self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        sums = {
            name: {key: cast(Tensor, value).cpu() for key, value in self._metric(name).metric_state.items()}
            for name in self._training_metrics
        }
        checkpoint["epoch_sums"] = processes.gather(sums) if within_epoch else []

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the sums of an epoch that was cut in two."""
        sums = checkpoint["epoch_sums"]
        assert len(sums) in (0, processes.world_size())
        for name, states in (sums[processes.rank()] if sums else {}).items():
            metric = self._metric(name)
            for key, value in states.items():
                setattr(metric, key, value.to(metric.device))

    def _metric(self, name: str) -> Metric:
        metric = self.metrics[name]
        assert isinstance(metric, Metric)
        return metric


def set_gradients(parameters: Iterable[Tensor], gradients: Iterable[Tensor]) -> None:
    """Set each `grad`, with the same order of elements in memory as in its parameter.

    `backward` sees to that itself. torch's fused optimisers rely on it, and mix up elements without a word where it does
    not hold (seen in 2.14.1 on a CPU).
    """
    formats = torch.contiguous_format, torch.channels_last
    for parameter, gradient in zip(parameters, gradients, strict=True):
        alike = any(
            parameter.is_contiguous(memory_format=f) and gradient.is_contiguous(memory_format=f) for f in formats
        )
        parameter.grad = gradient if alike else torch.empty_like(parameter).copy_(gradient)


def channels_last(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) with channels innermost in memory: the faster layout for these small convolutions."""
    return images.contiguous(memory_format=torch.channels_last)
