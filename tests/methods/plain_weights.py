"""Plain transcriptions of methods that change a step's gradients, or the mixing weights by the loss."""

from __future__ import annotations

import copy
from typing import Any

import torch
from methods.plain import EPOCHS, SEED, Batch, Plain, gradients, one_hot, split
from torch import Tensor

from src.common.seeding import derive_seed
from src.spaces.relaxed import RelaxedSpace


def projected(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for key, row in rows.items():
        positive = row.clamp(min=0, max=1)
        result[key] = positive / positive.sum() if positive.sum() > 0 else one_hot(row)
    return result


class PlainAdversarial(Plain):
    """SDARTS-ADV: gradient ascent in eval mode, from a random start."""

    batch: Batch

    def weight_gradients(self, batch: dict[str, Batch], epoch: int, step: int) -> list[Tensor | None]:
        self.batch = batch["weights"]
        return super().weight_gradients(batch, epoch, step)

    def rows_of_the_weights_step(self, net: RelaxedSpace, epoch: int, step: int) -> dict[str, Tensor]:
        e = 0.03 + 0.27 * epoch / EPOCHS
        judge = copy.deepcopy(net).eval()
        start = {key: alpha.detach().softmax(0) for key, alpha in net.alphas.items()}
        generator = torch.Generator().manual_seed(derive_seed("perturbation", SEED, epoch, step))
        rows = projected(
            {
                key: row + e * (2 * torch.rand(row.shape, dtype=torch.float64, generator=generator) - 1)
                for key, row in start.items()
            }
        )
        for _ in range(7):
            for row in rows.values():
                row.requires_grad_()
            g = gradients(self.loss(judge, self.batch, rows), list(rows.values()))
            with torch.no_grad():
                moved = {key: row + 2 * e / 7 * s.sign() for (key, row), s in zip(rows.items(), g, strict=True)}
                near = {key: start[key] + (row - start[key]).clamp(-e, e) for key, row in moved.items()}
                rows = projected(near)
        with torch.no_grad():
            return rows if self.loss(judge, self.batch, rows) > self.loss(judge, self.batch, start) else start


class PlainFlatMinimum(Plain):
    """A2M, around each hypergradient."""

    def _flat(self, hypergradient: Any, *arguments: Any) -> list[Tensor]:
        rho = epsilon = 1e-2
        alphas = split(self.net)[1]
        start = [alpha.detach().clone() for alpha in alphas]

        def at(distance: float, direction: list[Tensor]) -> list[Tensor]:
            with torch.no_grad():
                for alpha, first, move in zip(alphas, start, direction, strict=True):
                    alpha.copy_(first + distance * move)
            found = hypergradient(*arguments)
            with torch.no_grad():
                for alpha, first in zip(alphas, start, strict=True):
                    alpha.copy_(first)
            return found

        uphill = at(rho, hypergradient(*arguments))
        sides = at(epsilon, uphill), at(-epsilon, uphill)
        return [g + rho * (p - n) / (2 * epsilon) for g, p, n in zip(uphill, *sides, strict=True)]

    def first_order(self, batch: Any, epoch: int, step: int, lr: float, velocity: list[Any]) -> list[Tensor]:
        return self._flat(super().first_order, batch, epoch, step, lr, velocity)

    def finite_difference(self, batch: Any, epoch: int, step: int, lr: float, velocity: list[Any]) -> list[Tensor]:
        return self._flat(super().finite_difference, batch, epoch, step, lr, velocity)
