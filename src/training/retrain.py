"""Training a derived architecture from scratch (arXiv 1806.09055, section 3.1.2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from src.common.errors import must_be
from src.data.tasks import Task
from src.training.module import WEIGHTS_PART, Batch, TrainingModule, in_layout, set_gradients
from src.training.search import OptimizerFactory, SchedulerFactory


class RetrainStep(NamedTuple):
    """What a step computes: the loss, the one with the auxiliary head's share, the outputs, and gradients if recorded."""

    loss: Tensor
    total: Tensor
    outputs: Tensor
    gradients: list[Tensor | None] | None = None


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
        graphs: bool | str = False,
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
            graphs=graphs,
        )
        self.auxiliary_weight = auxiliary_weight
        self.drop_path = drop_path
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._loss = torch.zeros(())
        self._gradients: list[Tensor | None] | None = None  # of a step that was recorded

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
        found = self.losses(batch) if self.graphs is None else self.recorded_gradients(batch)
        self._gradients = found.gradients
        _, targets = batch
        loss, outputs = found.loss.detach(), found.outputs.detach()
        self.measure("train", loss, outputs, targets)
        score = self.task.score(outputs, targets)
        self.step_values = {"step/train_loss": loss, f"step/train_{self.task.metric}": score}
        self.step_samples = len(targets)
        self._loss = found.total.detach()
        return {"loss": found.total, self.task.metric: score}

    def losses(self, batch: Batch) -> RetrainStep:
        """Return the losses on a batch, and the outputs."""
        inputs, targets = batch
        outputs, auxiliary = self(inputs)
        loss = total = self.task.loss(outputs, targets)
        if auxiliary is not None:
            total = loss + self.auxiliary_weight * self.task.loss(auxiliary, targets)
        return RetrainStep(loss, total, outputs)

    def gradients(self, batch: Batch) -> RetrainStep:
        """Return the losses on a batch, the outputs and the gradients, which are set, too."""
        found = self.losses(batch)
        weights = list(self.net.parameters())
        set_gradients(weights, torch.autograd.grad(found.total, weights, allow_unused=True))
        gradients = [weight.grad for weight in weights]
        return RetrainStep(found.loss.detach(), found.total.detach(), found.outputs.detach(), gradients)

    def recorded_gradients(self, batch: Batch) -> RetrainStep:
        """Return what `gradients` does, from a recording if there are any."""
        return self._recorded(WEIGHTS_PART, self.gradients, batch, frozen=getattr(self.net, "drop_path", None))

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Differentiate the loss, unless a recording has done so."""
        if self._gradients is None:
            super().backward(loss, *args, **kwargs)
            return
        for weight, gradient in zip(self.net.parameters(), self._gradients, strict=True):
            weight.grad = gradient

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map inputs (N, ...) to the network's outputs and an auxiliary head's or None."""
        output = self.net(in_layout(inputs))
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
