"""Signals to classify: sines, squares and saws of any frequency and phase, in noise."""

import torch

from src.data.samples import Samples
from src.data.tasks import Classification


def waves(count: int = 600, length: int = 64, noise: float = 0.3) -> Samples:
    """Return `count` signals (1, length)."""
    generator = torch.Generator().manual_seed(0)
    frequency, phase = torch.rand(2, count, 1, generator=generator)
    turns = (2 + 4 * frequency) * torch.linspace(0, 1, length) + phase
    sine = torch.sin(2 * torch.pi * turns)
    kinds = torch.stack([sine, sine.sign(), 2 * (turns % 1) - 1])
    labels = torch.randint(len(kinds), (count,), generator=generator)
    signals = kinds[labels, torch.arange(count)] + noise * torch.randn(count, length, generator=generator)
    return Samples(signals[:, None], labels, Classification(["sine", "square", "saw"]))
