"""Training a derived architecture from scratch (arXiv 1806.09055, section 3.1.2)."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from src.seeding import seed_step
from src.training.search import Labelled, OptimizerFactory, SchedulerFactory, channels_last


class RetrainModule(L.LightningModule):
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
        super().__init__()
        for name, value, highest in (("auxiliary_weight", auxiliary_weight, 1e6), ("drop_path", drop_path, 0.999)):
            if not 0 <= value <= highest:
                raise ValueError(f"{name}={value}, allowed are 0 to {highest:g}")
        if gradient_clip <= 0:
            raise ValueError(f"optimizer.gradient_clip={gradient_clip}, allowed are numbers above 0")
        self.net = network
        self.net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.gradient_clip = gradient_clip
        self.auxiliary_weight = auxiliary_weight
        self.drop_path = drop_path
        self.seed = seed
        self._optimizer = optimizer
        self._scheduler = scheduler
        self.train_accuracy, self.val_accuracy, self.test_accuracy = (
            MulticlassAccuracy(num_classes, average="micro") for _ in range(3)
        )

    def configure_optimizers(self) -> Any:
        """Return the optimiser with its schedule, stepped once an epoch."""
        optimizer = self._optimizer(self.net.parameters())
        return [optimizer], [self._scheduler(optimizer)]

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip the gradient's norm over all weights."""
        nn.utils.clip_grad_norm_(self.net.parameters(), self.gradient_clip)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set this epoch's drop path probability, and make what it drops a function of the place in the run."""
        if hasattr(self.net, "drop_path"):
            epochs = self.trainer.max_epochs
            assert epochs is not None
            self.net.drop_path = self.drop_path * self.current_epoch / epochs  # pyright: ignore[reportArgumentType]
        seed_step(self.seed, self.current_epoch, batch_idx, self.global_rank)

    def training_step(self, batch: Labelled, batch_idx: int) -> dict[str, Tensor]:
        """Return the loss, the auxiliary head's share included, and the accuracy."""
        images, labels = batch
        logits, auxiliary = self(images)
        loss = F.cross_entropy(logits, labels)
        accuracy = self.train_accuracy(logits, labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(labels))
        self.log("train_accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        if auxiliary is not None:
            loss = loss + self.auxiliary_weight * F.cross_entropy(auxiliary, labels)
        return {"loss": loss, "accuracy": accuracy}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map images (N, C, H, W) to logits (N, num_classes) and an auxiliary head's logits or None."""
        output = self.net(channels_last(images))
        return output if isinstance(output, tuple) else (output, None)

    def validation_step(self, batch: Labelled, batch_idx: int) -> None:
        """Measure on the data set's own validation split, if it has one."""
        self._measure("val", self.val_accuracy, batch)

    def test_step(self, batch: Labelled, batch_idx: int) -> None:
        """Measure on the test split."""
        self._measure("test", self.test_accuracy, batch)

    def _measure(self, name: str, accuracy: MulticlassAccuracy, batch: Labelled) -> None:
        images, labels = batch
        logits, _ = self(images)
        accuracy(logits, labels)
        self.log(f"{name}_loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        self.log(f"{name}_accuracy", accuracy)
