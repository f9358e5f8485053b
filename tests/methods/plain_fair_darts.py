"""FairDARTS' search step in plain PyTorch: see plain.py."""

from __future__ import annotations

from methods.plain import Plain, PlainPartialChannels
from torch import Tensor

from src.spaces.relaxed import RelaxedSpace


class PlainFairDarts(Plain):
    def rows(self, net: RelaxedSpace, epoch: int, step: int) -> dict[str, Tensor]:
        return {key: 1 / (1 + (-alpha).exp()) for key, alpha in net.alphas.items()}

    def penalty(self, alphas: list[Tensor], epoch: int) -> list[Tensor]:
        count = len(self.net.alphas)  # after these come the edges' weights, which are not penalised
        entries = sum(len(alpha) for alpha in alphas[:count])
        weights = [1 / (1 + (-alpha.detach()).exp()) for alpha in alphas[:count]]
        gradients = [-10 / entries * 2 * (w - 0.5) * w * (1 - w) for w in weights]
        return gradients + [0 * vector.detach() for vector in alphas[count:]]


class PlainFairDartsPartialChannels(PlainPartialChannels, PlainFairDarts):
    pass
