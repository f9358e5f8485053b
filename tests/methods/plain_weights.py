"""Plain transcriptions of methods that change a step's gradients, or the mixing weights by the loss."""

from __future__ import annotations

import copy
from typing import Any

import torch
from methods.plain import DECAY, EPOCHS, MOMENTUM, SEED, Batch, Plain, gradients, one_hot, split
from torch import Tensor
from torch.nn import functional as F

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


class PlainStopping(Plain):
    """OLES, with a decision every other step at a mean cosine of 0."""

    def __init__(self, net: RelaxedSpace) -> None:
        super().__init__(net)
        space: Any = net.space
        weights = split(net)[0]
        self.operations = [
            [next(place for place, weight in enumerate(weights) if weight is own) for own in operation.parameters()]
            for cell in space.cells
            for node in cell.nodes
            for edge in node.edges
            for operation in edge.candidates.values()
            if list(operation.parameters())
        ]
        self.cosines: list[list[float]] = [[] for _ in self.operations]
        self.frozen: set[int] = set()  # places of weights

    def weight_gradients(self, batch: dict[str, Batch], epoch: int, step: int) -> list[Tensor | None]:
        judge = copy.deepcopy(self.net)
        rows = self.rows_of_the_weights_step(judge, epoch, step)
        others = gradients(self.loss(judge, batch["arch"], rows), split(judge)[0])
        own = super().weight_gradients(batch, epoch, step)
        for operation, known in zip(self.operations, self.cosines, strict=True):
            pairs = [(own[place], others[place]) for place in operation]
            cosines = [float(F.cosine_similarity(g.flatten(), h.flatten(), dim=0)) for g, h in pairs if g is not None]
            known.append(sum(cosines) / len(cosines))
            if len(known) == 2:
                if sum(known) / 2 < 0.0:
                    self.frozen |= set(operation)
                known.clear()
        return [None if place in self.frozen else g for place, g in enumerate(own)]

    def at_the_virtual_weights(
        self, batch: Any, epoch: int, step: int, lr: float, velocity: list[Any]
    ) -> tuple[list[Tensor], list[Tensor]]:
        virtual = copy.deepcopy(self.net)
        weights, alphas = split(virtual)
        g = gradients(self.loss(virtual, batch["weights"], self.rows(virtual, epoch, step)), weights)
        with torch.no_grad():
            for place, (w, gw, m) in enumerate(zip(weights, g, velocity, strict=True)):
                if place not in self.frozen:
                    w.sub_(lr * ((0 if m is None else MOMENTUM * m) + gw + DECAY * w))
        both = gradients(self.loss(virtual, batch["arch"], self.rows(virtual, epoch, step)), weights + alphas)
        v = both[: len(weights)]
        return [torch.zeros_like(x) if place in self.frozen else x for place, x in enumerate(v)], both[len(weights) :]


class PlainAlignment(Plain):
    """Lambda-DARTS on the two reduction cells of a supernet of three, with lambda = epoch / 1 and epsilon = 1e-4."""

    def loss(self, net: RelaxedSpace, batch: Batch, rows: dict[str, Tensor]) -> Tensor:
        space: Any = net.space
        reductions = [space.cells[1], space.cells[2]]
        self.cell_of = {
            edge: place for place, cell in enumerate(reductions) for node in cell.nodes for edge in node.edges
        }
        return super().loss(net, batch, rows)

    def mix(self, edge: Any, row: Tensor, x: Tensor) -> Tensor:
        return super().mix(edge, row if row.dim() == 1 else row[self.cell_of[edge]], x)

    def weight_gradients(self, batch: dict[str, Batch], epoch: int, step: int) -> list[Tensor | None]:
        rows = self.rows_of_the_weights_step(self.net, epoch, step)
        keys = [key for key in rows if key.startswith("reduce")]
        own = {key: torch.stack([rows[key], rows[key]]).requires_grad_() for key in keys}
        clones = [copy.deepcopy(self.net) for _ in range(2)]
        weights = split(self.net)[0]
        loss = self.loss(self.net, batch["weights"], rows | own)
        found = torch.autograd.grad(loss, [*weights, *own.values()], allow_unused=True)
        cells = [
            torch.cat([g[place] for g in found[len(weights) :] if g is not None]).requires_grad_() for place in (0, 1)
        ]
        u = gradients(F.cosine_similarity(*cells, dim=0), cells)
        e = 1e-4 / float(torch.cat(u).norm())
        sides = []
        for clone, sign in zip(clones, (1, -1), strict=True):
            moved, begin = {}, 0
            for key in keys:
                end = begin + len(rows[key])
                moved[key] = own[key].detach() + sign * e * torch.stack([part[begin:end] for part in u])
                begin = end
            loss = self.loss(clone, batch["weights"], rows | moved)
            sides.append(torch.autograd.grad(loss, split(clone)[0], allow_unused=True))
        return [
            None if g is None else g - epoch * (p - n) / (2 * e)
            for g, p, n in zip(found[: len(weights)], *sides, strict=True)
        ]
