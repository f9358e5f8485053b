"""Batches of images in memory. Order and augmentation are functions of (seed, epoch, step, rank): resuming is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from src.common.errors import ConfigError
from src.common.seeding import derive_seed
from src.data.images import Images


class Batch(NamedTuple):
    """Raw images and the seed of their augmentation."""

    pixels: Tensor  # uint8 (N, C, H, W)
    labels: Tensor  # int64 (N,)
    seed: int


class TrainLoader:
    """Yields {name: Batch} for every step of an epoch, shuffled anew for each epoch.

    The first set of images sets the length of an epoch, in whole batches. The others are gone through as often as that
    takes, in a new order each time. A set's order is the same on all ranks, and each rank takes its own slice of every
    batch of `batch_size * world_size`: together they see what one process with the joined batch size would see.

    The loader saves its place in an epoch and takes it up again; Lightning keeps the two state methods' dictionary in
    its checkpoints. A step counts as done once its batch has been handed out.

    Args:
        images_by_name: the sets of images.
        batch_size: images of each set in a batch of one process.
        seed: of the run.
        epoch: returns the current epoch; asked when the first batch of an iteration is.
        rank: of this process.
        world_size: number of processes.

    Raises:
        ConfigError: a set is smaller than one batch of all processes together.
    """

    def __init__(
        self,
        images_by_name: dict[str, Images],
        *,
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for name, images in images_by_name.items():
            if len(images) < batch_size * world_size:
                processes = f" on each of {world_size} processes" if world_size > 1 else ""
                raise ConfigError(
                    f"data.batch_size={batch_size}{processes} is more than the {len(images)} images of {name!r}, "
                    f"allowed is at most {len(images) // world_size}"
                )
        self._images = images_by_name
        self._batch_size = batch_size
        self._joined_batch_size = batch_size * world_size
        self._seed = seed
        self._epoch = epoch
        self._rank = rank
        self._next: tuple[int, int] | None = None  # the epoch and step that the next batch belongs to, once known
        self._resume: tuple[int, int] | None = None  # where the next iteration begins, after load_state_dict

    def __len__(self) -> int:
        first = next(iter(self._images.values()))
        return len(first) // self._joined_batch_size

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        # This being a generator matters: Lightning asks for an iterator before it has restored its own epoch, and for
        # the first batch after that. It also asks for iterators that it never uses.
        epoch = self._epoch()
        resumed_epoch, step = self._resume or (epoch, 0)
        self._resume = None
        first = step if resumed_epoch == epoch else 0
        streams = {name: self._batches(name, epoch, first) for name in self._images}
        for step in range(first, len(self)):
            batches = {name: next(stream) for name, stream in streams.items()}
            self._next = (epoch, step + 1) if step + 1 < len(self) else (epoch + 1, 0)
            yield batches

    def _batches(self, name: str, epoch: int, first: int) -> Iterator[Batch]:
        images = self._images[name]
        steps_a_pass = len(images) // self._joined_batch_size
        order = torch.empty(0)
        for step in count(first):
            nth_pass, place = divmod(step, steps_a_pass)
            if step == first or place == 0:
                generator = torch.Generator().manual_seed(derive_seed("order", self._seed, epoch, name, nth_pass))
                order = torch.randperm(len(images), generator=generator)
            start = place * self._joined_batch_size + self._rank * self._batch_size
            chosen = images.select(order[start : start + self._batch_size])
            seed = derive_seed("augmentation", self._seed, epoch, step, name, self._rank)
            yield Batch(chosen.pixels, chosen.labels, seed)

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the step of the next batch; after an epoch's last batch, step 0 of the next epoch."""
        epoch, step = self._next or (self._epoch(), 0)
        return {"epoch": epoch, "step": step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next iteration begin at the saved step, if it is of the saved epoch."""
        self._next = self._resume = (state_dict["epoch"], state_dict["step"])


class EvalLoader:
    """Yields every image once, in order, each on exactly one rank, as batches with seed 0.

    A rank takes every `world_size`-th image and cuts them into nearly equal batches. All ranks yield the same number of
    batches, none of them empty: ranks that wait for each other in a step never wait in vain. (For that, a batch may
    hold two images where `batch_size` is 1 and the images do not divide among the ranks.)

    Raises:
        ConfigError: there are fewer images than processes.
    """

    def __init__(self, images: Images, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if len(images) < world_size:
            raise ConfigError(
                f"{len(images)} images cannot be shared among {world_size} processes, allowed is an image or more for each"
            )
        self._images = images
        self._mine = torch.arange(rank, len(images), world_size)
        most, least = -(-len(images) // world_size), len(images) // world_size
        self._steps = min(-(-most // batch_size), least)

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        for indices in self._mine.tensor_split(self._steps):
            chosen = self._images.select(indices)
            yield Batch(chosen.pixels, chosen.labels, 0)
