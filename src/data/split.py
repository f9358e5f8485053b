"""Cutting a train split in two: one part for the weights, one for the alphas."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from src.common.errors import ConfigError
from src.common.seeding import derive_seed


def split_halves(labels: Tensor, *, arch_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the weight half and of the arch half.

    The arch half holds `arch_fraction` of all images, rounded, and of each class to within one image (largest
    remainders are rounded up). Which images of a class it holds depends on `seed`.

    Args:
        labels: int64 (N,).
        arch_fraction: share of the arch half, between 0 and 1.
        seed: of the choice.

    Returns:
        Two sorted int64 tensors that together hold 0 to N - 1, each once.

    Raises:
        ConfigError: `arch_fraction` is outside (0, 1) or leaves a half without images.
    """
    if not 0 < arch_fraction < 1:
        raise ConfigError(f"data.arch_fraction={arch_fraction}, allowed are numbers between 0 and 1, both excluded")
    total = int(len(labels) * arch_fraction + 0.5)
    if total in (0, len(labels)):
        half = "arch" if total == 0 else "weight"
        raise ConfigError(f"data.arch_fraction={arch_fraction} of {len(labels)} images leaves none for the {half} half")
    counts = labels.bincount()
    wanted = counts.double() * arch_fraction
    taken = wanted.long()
    rounded_up = (wanted - taken).argsort(descending=True, stable=True)[: total - int(taken.sum())]
    taken[rounded_up] += 1

    generator = torch.Generator().manual_seed(derive_seed("split", seed))
    weight: list[Tensor] = []
    arch: list[Tensor] = []
    by_class = labels.argsort(stable=True).split(counts.tolist())
    for indices, take in zip(by_class, taken.tolist(), strict=True):
        shuffled = indices[torch.randperm(len(indices), generator=generator)]
        arch.append(shuffled[:take])
        weight.append(shuffled[take:])
    return torch.cat(weight).sort().values, torch.cat(arch).sort().values


def indices_hash(weight: Tensor, arch: Tensor) -> str:
    """Return the SHA-256, in hexadecimal, of the indices of both halves; equal for equal splits on every machine."""
    digest = hashlib.sha256()
    for name, indices in (("weight", weight), ("arch", arch)):
        digest.update(f"{name} {len(indices)} ".encode())
        digest.update(indices.numpy().astype("<i8").tobytes())
    return digest.hexdigest()
