"""Which samples go where: the halves of a train split, and the order of a subset for evaluation."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from src.common.errors import must_be
from src.common.seeding import derive_seed


def split_halves(strata: Tensor, *, arch_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the weight half and of the arch half.

    The arch half holds `arch_fraction` of all samples, rounded, and of each stratum to within one sample (largest
    remainders are rounded up). Which samples of a stratum it holds depends on `seed`.

    Args:
        strata: the stratum, for a classification the class, of each sample, int64 (N,).
        arch_fraction: share of the arch half, between 0 and 1.
        seed: of the choice.

    Returns:
        Two sorted int64 tensors that together hold 0 to N - 1, each once.

    Raises:
        ConfigError: `arch_fraction` is outside (0, 1) or leaves a half without samples.
    """
    if not 0 < arch_fraction < 1:
        raise must_be("arch_fraction", "above 0 and below 1", arch_fraction)
    total = int(len(strata) * arch_fraction + 0.5)
    if total in (0, len(strata)):
        half = "arch" if total == 0 else "weight"
        raise must_be("arch_fraction", f"such that {len(strata)} samples leave one for the {half} half", arch_fraction)
    counts = strata.bincount()
    wanted = counts.double() * arch_fraction
    taken = wanted.long()
    rounded_up = (wanted - taken).argsort(descending=True, stable=True)[: total - int(taken.sum())]
    taken[rounded_up] += 1

    generator = torch.Generator().manual_seed(derive_seed("split", seed))
    weight: list[Tensor] = []
    arch: list[Tensor] = []
    by_stratum = strata.argsort(stable=True).split(counts.tolist())
    for indices, take in zip(by_stratum, taken.tolist(), strict=True):
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


def mixed_order(strata: Tensor) -> Tensor:
    """Return a random order, int64 (N,), of which every beginning holds the strata in proportion.

    So the first batches stand for the whole split, also where a folder lists one class after the other. The order
    depends on `strata`, int64 (N,), alone: runs of all seeds are measured on the same samples.
    """
    generator = torch.Generator().manual_seed(derive_seed("evaluation"))
    shuffled = torch.randperm(len(strata), generator=generator)
    by_stratum = shuffled[strata[shuffled].argsort(stable=True)]
    # The samples of a stratum are spread evenly over (0, 1); strata of one size take turns in random order.
    places = torch.cat([(torch.arange(size, dtype=torch.float64) + 0.5) / size for size in strata.bincount().tolist()])
    ties = torch.randperm(len(strata), generator=generator)
    return by_stratum[ties[places[ties].argsort(stable=True)]]
