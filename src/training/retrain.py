"""Training a derived architecture from scratch (arXiv 1806.09055, section 3.1.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from src.common.errors import must_be
from src.data.tasks import Task
from src.training.module import Batch, TrainingModule, channels_last, set_gradients
from src.training.search import OptimizerFactory, SchedulerFactory


class RetrainModule(TrainingModule):
    """Trains a network of fixed architecture and tests it.

    The network returns its outputs, or a pair of them and an auxiliary head's (None while evaluating). One with an
    attribute `drop_path` has it raised linearly over the epochs, from 0 to nearly `drop_path`.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        task: Task,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory,
        gradient_clip: float = 5.0,
        auxiliary_weight: float = 0.4,
        drop_path: float = 0.0,
        seed: int = 0,
    ) -> None:
        for name, value, highest in (("auxiliary_weight", auxiliary_weight, 1e6), ("drop_path", drop_path, 0.999)):
            if not 0 <= value <= highest:
                raise must_be(name, f"between 0 and {highest:g}", value)
        if drop_path and not hasattr(network, "drop_path"):
            raise must_be("drop_path", "0 for a network without an attribute drop_path", drop_path)
        super().__init__(
            network,
            task=task,
            splits=("train", "val", "test"),
            gradient_clip=gradient_clip,
            seed=seed,
        )
        self.auxiliary_weight = auxiliary_weight
        self.drop_path = drop_path
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._loss = torch.zeros(())

    def configure_optimizers(self) -> Any:
        """Return the optimiser with its schedule, stepped once an epoch."""
        optimizer = self._optimizer(self.net.parameters())
        self._optimizers = [optimizer]
        return [optimizer], [self.note_schedule(self._scheduler(optimizer))]

    def on_after_backward(self) -> None:
        """Average the gradients over the processes."""
        weights = list(self.net.parameters())
        set_gradients(weights, self.average_step(weights, [weight.grad for weight in weights]))

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip the gradient's norm over all weights."""
        gradient_norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.gradient_clip)
        self.check_finite("weights", gradient_norm, self._loss)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set this epoch's drop path probability, and make what it drops a function of the place in the run."""
        if hasattr(self.net, "drop_path"):
            self.net.drop_path = self.drop_path * self.current_epoch / self._epochs  # pyright: ignore[reportArgumentType]
        super().on_train_batch_start(batch, batch_idx)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the loss, the auxiliary head's share included, and the task's score."""
        inputs, targets = batch
        outputs, auxiliary = self(inputs)
        loss = self.task.loss(outputs, targets)
        self.measure("train", loss.detach(), outputs.detach(), targets)
        score = self.task.score(outputs.detach(), targets)
        self.step_values = {"step/train_loss": loss.detach(), f"step/train_{self.task.metric}": score}
        self.step_samples = len(targets)
        if auxiliary is not None:
            loss = loss + self.auxiliary_weight * self.task.loss(auxiliary, targets)
        self._loss = loss.detach()
        return {"loss": loss, self.task.metric: score}

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map inputs (N, ...) to the network's outputs and an auxiliary head's or None."""
        output = self.net(channels_last(inputs))
        return output if isinstance(output, tuple) else (output, None)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure on the data set's own validation split, if it has one."""
        self._measure("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure on the test split."""
        self._measure("test", batch)

    def _measure(self, split: str, batch: Batch) -> None:
        inputs, targets = batch
        outputs, _ = self(inputs)
        self.measure(split, self.task.loss(outputs, targets), outputs, targets)
