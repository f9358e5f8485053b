"""Training a derived architecture from scratch (arXiv 1806.09055, section 3.1.2)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.common.errors import ConfigError
from src.training.module import Labelled, TrainingModule, channels_last, set_gradients
from src.training.search import OptimizerFactory, SchedulerFactory


class RetrainModule(TrainingModule):
    """Trains a network of fixed architecture and tests it.

    The network returns logits, or a pair of logits and an auxiliary head's logits (None while evaluating). One with an
    attribute `drop_path` has it raised linearly over the epochs, from 0 to nearly `drop_path`.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory,
        gradient_clip: float = 5.0,
        auxiliary_weight: float = 0.4,
        drop_path: float = 0.2,
        seed: int = 0,
    ) -> None:
        for name, value, highest in (("auxiliary_weight", auxiliary_weight, 1e6), ("drop_path", drop_path, 0.999)):
            if not 0 <= value <= highest:
                raise ConfigError(f"{name}={value}, allowed are 0 to {highest:g}")
        super().__init__(
            network,
            num_classes=num_classes,
            training_metrics=("train_loss", "train_accuracy"),
            evaluation_metrics=("val_loss", "val_accuracy", "test_loss", "test_accuracy"),
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
        return [optimizer], [self.note_schedule(self._scheduler(optimizer))]

    def on_after_backward(self) -> None:
        """Average the gradients over the processes."""
        weights = [weight for weight in self.net.parameters() if weight.grad is not None]
        set_gradients(weights, self.average_step([cast(Tensor, weight.grad) for weight in weights]))

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip the gradient's norm over all weights."""
        gradient_norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.gradient_clip)
        self.check_finite("weights", gradient_norm, self._loss)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set this epoch's drop path probability, and make what it drops a function of the place in the run."""
        if hasattr(self.net, "drop_path"):
            epochs = self.trainer.max_epochs
            assert epochs is not None
            self.net.drop_path = self.drop_path * self.current_epoch / epochs  # pyright: ignore[reportArgumentType]
        super().on_train_batch_start(batch, batch_idx)

    def training_step(self, batch: Labelled, batch_idx: int) -> dict[str, Tensor]:
        """Return the loss, the auxiliary head's share included, and the accuracy."""
        images, labels = batch
        logits, auxiliary = self(images)
        loss = F.cross_entropy(logits, labels)
        self.measure("train_loss", loss.detach(), len(labels))
        self.measure("train_accuracy", logits, labels)
        if auxiliary is not None:
            loss = loss + self.auxiliary_weight * F.cross_entropy(auxiliary, labels)
        self._loss = loss.detach()
        return {"loss": loss, "accuracy": (logits.argmax(1) == labels).float().mean()}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map images (N, C, H, W) to logits (N, num_classes) and an auxiliary head's logits or None."""
        output = self.net(channels_last(images))
        return output if isinstance(output, tuple) else (output, None)

    def validation_step(self, batch: Labelled, batch_idx: int) -> None:
        """Measure on the data set's own validation split, if it has one."""
        self._measure("val", batch)

    def test_step(self, batch: Labelled, batch_idx: int) -> None:
        """Measure on the test split."""
        self._measure("test", batch)

    def _measure(self, name: str, batch: Labelled) -> None:
        images, labels = batch
        logits, _ = self(images)
        self.measure(f"{name}_loss", F.cross_entropy(logits, labels), len(labels))
        self.measure(f"{name}_accuracy", logits, labels)
