"""A data module that shares nothing with those of src.data, as a user would write one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from src.data.tasks import Regression


class Loader:
    """Batches of (x, y) of several sets, in an order that follows from the seed and the epoch."""

    def __init__(self, data: Waves, sets: dict[str, Tensor]) -> None:
        self.data, self.sets, self.start = data, sets, 0
        trainer: Any = data.trainer
        self.rank, self.world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)

    def __len__(self) -> int:
        return min(map(len, self.sets.values())) // (self.data.batch_size * self.world_size)

    def __iter__(self) -> Iterator[Any]:
        epoch = self.data.trainer.current_epoch if self.data.trainer else 0
        start, self.start = self.start, 0
        generator = torch.Generator().manual_seed(1000 * self.data.seed + epoch)
        orders = {
            name: indices[torch.randperm(len(indices), generator=generator)] for name, indices in self.sets.items()
        }
        for step in range(start, len(self)):
            self.next = (step + 1) % len(self)
            first = (step * self.world_size + self.rank) * self.data.batch_size
            chosen = {name: order[first : first + self.data.batch_size] for name, order in orders.items()}
            batch = {name: (self.data.x[indices], self.data.y[indices]) for name, indices in chosen.items()}
            yield batch if len(batch) > 1 else batch["train"]

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["next"]


class Waves(L.LightningDataModule):
    """Sine waves of 16 points, (1, 16), whose frequency is to be predicted. One class for both commands."""

    def __init__(self, purpose: str, batch_size: int, seed: int, points: int = 16) -> None:
        super().__init__()
        self.purpose, self.batch_size, self.seed = purpose, batch_size, seed
        self.input_shape = (1, points)
        self.task = Regression()

    def setup(self, stage: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.y = 1 + 4 * torch.rand(60, generator=generator)
        self.x = torch.sin(self.y[:, None, None] * torch.linspace(0, 6.28, self.input_shape[1]))

    def record(self) -> dict[str, Any]:
        return {"name": "waves", "input_shape": list(self.input_shape), "train_samples": 48, "test_samples": 12}

    def train_dataloader(self) -> Loader:
        halves = {"weights": torch.arange(0, 48, 2), "arch": torch.arange(1, 48, 2)}
        return Loader(self, halves if self.purpose == "search" else {"train": torch.arange(48)})

    def val_dataloader(self) -> Any:
        return [] if self.purpose == "retrain" else self.in_order(slice(1, 48, 2))

    def test_dataloader(self) -> Any:
        if self.purpose == "search":
            raise RuntimeError("a search has no test split")
        return self.in_order(slice(48, None))

    def in_order(self, chosen: slice) -> Any:
        return DataLoader(TensorDataset(self.x[chosen], self.y[chosen]), self.batch_size)
