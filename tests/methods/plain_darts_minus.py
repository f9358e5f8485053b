"""DARTS- in plain PyTorch, by itself and with other methods: see tests/methods/plain.py."""

from __future__ import annotations

from typing import Any

from methods.plain import EPOCHS, Plain, PlainGdas, PlainPartialChannels
from torch import Tensor
from torch.nn import functional as F

from src.spaces.relaxed import RelaxedSpace


class PlainDartsMinus(Plain):
    beta = 1.0

    def rows(self, net: RelaxedSpace, epoch: int, step: int) -> dict[str, Tensor]:
        self.beta = 1 - epoch / EPOCHS
        return super().rows(net, epoch, step)

    def rows_of_the_weights_step(self, net: RelaxedSpace, epoch: int, step: int) -> dict[str, Tensor]:
        self.beta = 1 - epoch / EPOCHS
        return super().rows_of_the_weights_step(net, epoch, step)

    def mix(self, edge: Any, row: Tensor, x: Tensor) -> Tensor:
        mixed = super().mix(edge, row, x)
        halved = mixed.shape[-1] < x.shape[-1]  # then the auxiliary is a FactorizedReduce of its own
        return mixed + self.beta * (edge.auxiliary(x) if halved else x)


class PlainDartsMinusGdas(PlainDartsMinus, PlainGdas):
    pass


class PlainDartsMinusPartialChannels(PlainPartialChannels):
    """The auxiliary skip sees the channels that the candidates see."""

    def __init__(self, net: RelaxedSpace) -> None:
        super().__init__(net)
        self.inner = PlainDartsMinus(net)

    def rows(self, net: RelaxedSpace, epoch: int, step: int) -> dict[str, Tensor]:
        self.inner.beta = 1 - epoch / EPOCHS
        return super().rows(net, epoch, step)

    def mix(self, edge: Any, row: Tensor, x: Tensor) -> Tensor:
        size = x.shape[1] // self.k
        rest = x[:, size:]
        mixed = self.inner.mix(edge.choice, row, x[:, :size])
        if mixed.shape[-1] < x.shape[-1]:
            rest = F.max_pool2d(rest, 2, 2)
        order = [i * size + j for j in range(size) for i in range(self.k)]
        joined = x.new_empty(len(x), x.shape[1], *mixed.shape[2:])
        joined[:, :size], joined[:, size:] = mixed, rest
        return joined[:, order]
