"""Batches of samples in memory. Order and augmentation are functions of (seed, epoch, step, rank): resuming is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from src.common.errors import ConfigError, must_be
from src.common.seeding import derive_seed
from src.data.samples import Part, Samples
from src.data.split import mixed_order


class Batch(NamedTuple):
    """Raw samples and the seed of their augmentation."""

    inputs: Tensor  # (N, ...)
    targets: Tensor  # (N, ...)
    seed: int


class TrainLoader:
    """Yields {name: Batch} for every step of an epoch, shuffled anew for each epoch.

    The first set of samples gives the length of an epoch, in whole batches. The other sets are repeated as often as
    needed, in a new order each time. A set's order is the same on all ranks, and each rank takes its own slice of every
    batch of `batch_size * world_size`. Together the ranks see what one process with the joined batch size would see.

    The loader can save its place in an epoch and resume from there; Lightning keeps the dictionary of the two state
    methods in its checkpoints. A step counts as done once its batch has been handed out.

    Args:
        sets: the samples by name.
        batch_size: samples of each set in a batch of one process.
        seed: of the run.
        epoch: returns the current epoch; called when the first batch of an iteration is taken.
        rank: of this process.
        world_size: number of processes.

    Raises:
        ConfigError: a set is smaller than one batch of all processes together.
    """

    def __init__(
        self,
        sets: Mapping[str, Samples | Part],
        *,
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for name, samples in sets.items():
            if len(samples) < batch_size * world_size:
                where = f"{len(samples)} samples of {name!r}" + (
                    f" on {world_size} processes" if world_size > 1 else ""
                )
                raise must_be("batch_size", f"at most {len(samples) // world_size} for the {where}", batch_size)
        self._sets = sets
        self._batch_size = batch_size
        self._joined_batch_size = batch_size * world_size
        self._seed = seed
        self._epoch = epoch
        self._rank = rank
        self._next: tuple[int, int] | None = None  # the epoch and step that the next batch belongs to, once known
        self._resume: tuple[int, int] | None = None  # where the next iteration begins, after load_state_dict

    def __len__(self) -> int:
        first = next(iter(self._sets.values()))
        return len(first) // self._joined_batch_size

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        # This must be a generator: Lightning asks for an iterator before it has restored its own epoch, and for the
        # first batch after that. It also asks for iterators that it never uses.
        epoch = self._epoch()
        resumed_epoch, step = self._resume or (epoch, 0)
        self._resume = None
        first = step if resumed_epoch == epoch else 0
        streams = {name: self._batches(name, epoch, first) for name in self._sets}
        for step in range(first, len(self)):
            batches = {name: next(stream) for name, stream in streams.items()}
            self._next = (epoch, step + 1) if step + 1 < len(self) else (epoch + 1, 0)
            yield batches

    def _batches(self, name: str, epoch: int, first: int) -> Iterator[Batch]:
        samples = self._sets[name]
        steps_a_pass = len(samples) // self._joined_batch_size
        order = torch.empty(0)
        for step in count(first):
            nth_pass, place = divmod(step, steps_a_pass)
            if step == first or place == 0:
                generator = torch.Generator().manual_seed(derive_seed("order", self._seed, epoch, name, nth_pass))
                order = torch.randperm(len(samples), generator=generator)
            start = place * self._joined_batch_size + self._rank * self._batch_size
            inputs, targets = samples.take(order[start : start + self._batch_size])
            yield Batch(inputs, targets, derive_seed("augmentation", self._seed, epoch, step, name, self._rank))

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and step of the next batch; after the last batch of an epoch, step 0 of the next epoch."""
        epoch, step = self._next or (self._epoch(), 0)
        return {"epoch": epoch, "step": step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next iteration begin at the saved step, if it is one of the saved epoch."""
        self._next = self._resume = (state_dict["epoch"], state_dict["step"])


class EvalLoader:
    """Yields every sample once, each on exactly one rank, as batches with seed 0.

    A rank takes every `world_size`-th sample and cuts them into nearly equal batches. All ranks yield the same number of
    batches, none of them empty, so that ranks which wait for each other in a step never wait in vain. (For that, a batch
    may hold two samples where `batch_size` is 1 and the samples do not divide evenly among the ranks.)

    Args:
        samples: of the split.
        batch_size: the most samples in a batch of one process.
        rank: of this process.
        world_size: number of processes.
        mixed: whether the order is `mixed_order`, in which the first batches stand for the whole, or that of the
            samples, which may be class by class.

    Raises:
        ConfigError: there are fewer samples than processes.
    """

    def __init__(
        self, samples: Samples | Part, *, batch_size: int, rank: int = 0, world_size: int = 1, mixed: bool = False
    ) -> None:
        if len(samples) < world_size:
            raise ConfigError(
                f"{len(samples)} samples cannot be shared among {world_size} processes; each needs one or more"
            )
        self._samples = samples
        order = mixed_order(samples.strata()) if mixed else torch.arange(len(samples))
        self._mine = order[rank::world_size]
        most, least = -(-len(samples) // world_size), len(samples) // world_size
        self._steps = min(-(-most // batch_size), least)

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        for indices in self._mine.tensor_split(self._steps):
            yield Batch(*self._samples.take(indices), 0)
