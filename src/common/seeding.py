"""Randomness as a function of the place in a run, so that a resumed run draws what the straight one drew."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """Return a seed of 63 bits that depends on all parts; the same on every machine and in every version of Python."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seed torch's global generators for one training step of one process."""
    derived = derive_seed("step", seed, epoch, step, rank)
    if torch.cuda.is_initialized() or torch.backends.mps.is_available():
        torch.manual_seed(derived)
    else:  # it would keep a traceback for the day when CUDA begins, which takes as long as a small pass
        torch.default_generator.manual_seed(derived)


@contextmanager
def preserved_randomness() -> Iterator[None]:
    """Restore the generators of Python, NumPy and PyTorch (on the CPU) at the end of the block."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (code that uses it needs it restored)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
