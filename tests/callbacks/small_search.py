"""A search that takes a moment, for callbacks to watch."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from torch import Tensor, nn

from src.bilevel.hypergradient import FirstOrder
from src.data.tasks import Classification
from src.spaces.choices import LayerChoice
from src.training.search import SearchModule

CLASSES, SHAPE, BATCHES = 3, (1, 2, 2), 4
TASK = Classification([str(label) for label in range(CLASSES)])


class Space(nn.Module):
    """Two layers with a choice each, by keys that are none of the CNN cell space."""

    def __init__(self) -> None:
        super().__init__()
        size = SHAPE[1] * SHAPE[2]
        self.first = LayerChoice({"wide": nn.Linear(size, size), "identity": nn.Identity()}, key="first")
        self.second = LayerChoice(
            {"none": nn.Hardtanh(0.0, 1e-9), "tanh": nn.Tanh(), "relu": nn.ReLU()},
            key="second",
        )
        self.classifier = nn.Linear(size, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.second(self.first(images.flatten(1))))


class Batches(L.LightningDataModule):
    """The same batches in every epoch."""

    def _loader(self, make: Callable[[torch.Generator], Any]) -> Any:
        generator = torch.Generator().manual_seed(7)
        return torch.utils.data.DataLoader([make(generator) for _ in range(BATCHES)], batch_size=None)  # pyright: ignore[reportArgumentType]

    @staticmethod
    def _batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(5, *SHAPE, generator=generator), torch.randint(CLASSES, (5,), generator=generator)

    def train_dataloader(self) -> Any:
        return self._loader(lambda generator: {"weights": self._batch(generator), "arch": self._batch(generator)})

    def val_dataloader(self) -> Any:
        return self._loader(self._batch)


def search_module(space: nn.Module) -> SearchModule:
    torch.manual_seed(1)
    return SearchModule(
        space,
        task=TASK,
        hypergradient=FirstOrder(),
        weight_optimizer=functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        alpha_optimizer=functools.partial(torch.optim.Adam, lr=0.05),
        weight_scheduler=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=4, eta_min=0.0),
    )


def fit(
    folder: Path, *callbacks: L.Callback, epochs: int = 2, resume: Path | None = None
) -> tuple[L.Trainer, SearchModule]:
    """Search `Space` with some callbacks, and leave `last.ckpt` in `folder`; with `resume`, continue after a checkpoint."""
    torch.manual_seed(0)
    module = search_module(Space())
    checkpoint = ModelCheckpoint(folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[*callbacks, checkpoint],
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on loaders and loggers
        trainer.fit(module, datamodule=Batches(), ckpt_path=resume)
    return trainer, module
