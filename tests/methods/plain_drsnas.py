"""Plain transcriptions of DrNAS, SNAS and the step of one level."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from methods.plain import EPOCHS, SEED, Batch, Plain, PlainPartialChannels, sgd, split
from scipy.special import gammaincinv
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence
from torch.nn import functional as F

from src.common.seeding import derive_seed
from src.spaces.relaxed import RelaxedSpace


class PlainOneLevel(Plain):
    """One loss on both batches; alphas and weights step along its gradients at one point."""

    frozen_epochs = 1

    def run(self, data: list[dict[str, Batch]], hypergradient: str, epochs: int = EPOCHS) -> RelaxedSpace:
        net = self.net
        weights, alphas = split(net)
        velocity: list[Tensor | None] = [None] * len(weights)
        first, second = ([torch.zeros_like(a) for a in alphas] for _ in range(2))
        count = 0
        for epoch in range(epochs):
            lr = 0.01 + (0.1 - 0.01) * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2
            for step, batch in enumerate(data):
                images, labels = (torch.cat([batch["weights"][i], batch["arch"][i]]) for i in (0, 1))
                loss = self.loss(net, (images, labels), self.rows(net, epoch, step))
                trained: list[Any] = weights if epoch < self.frozen_epochs else weights + alphas
                found = list(torch.autograd.grad(loss, trained, allow_unused=True))
                if epoch >= self.frozen_epochs:
                    both = zip(alphas, found[len(weights) :], self.penalty(alphas, epoch), strict=True)
                    h = [p if g is None else g + p for _, g, p in both]
                    count += 1
                    self.step_alphas(alphas, h, first, second, count)
                sgd(weights, found[: len(weights)], velocity, lr)
        return net


class PlainGumbelSoft(Plain):
    def rows(self, net: RelaxedSpace, epoch: int, step: int) -> dict[str, Tensor]:
        tau = 1 + (0.03 - 1) * epoch / (EPOCHS - 1)
        generator = torch.Generator().manual_seed(derive_seed("noise", SEED, epoch, step))
        result = {}
        for key, alpha in net.alphas.items():
            exponential = torch.empty(alpha.shape, dtype=torch.float64).exponential_(generator=generator)
            result[key] = torch.softmax((alpha - exponential.log()) / tau, 0)
        return result


class PlainSnas(PlainOneLevel, PlainGumbelSoft):
    frozen_epochs = 0


def gamma(shape: Tensor, uniform: Tensor) -> Tensor:
    """Return scipy's quantiles, with derivatives by the shape from differences of them."""
    c, u = shape.detach(), uniform.numpy()

    def at(moved: Tensor) -> Tensor:
        return cast(Tensor, torch.from_numpy(gammaincinv(moved.numpy(), u)))

    def slope(h: float) -> Tensor:
        return (at(c * (1 + h)) - at(c * (1 - h))) / (2 * h * c)

    return at(c) + (4 * slope(5e-4) - slope(1e-3)) / 3 * (shape - c)


class PlainDirichlet(Plain):
    def rows(self, net: RelaxedSpace, epoch: int, step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(derive_seed("noise", SEED, epoch, step))
        result = {}
        for key, alpha in net.alphas.items():
            uniform = torch.rand(alpha.shape, dtype=torch.float64, generator=generator) * (1 - 1e-9)
            drawn = gamma(F.elu(alpha) + 1, uniform)
            result[key] = drawn / drawn.sum()
        return result


class PlainDirichletDivergencePartialChannels(PlainPartialChannels, PlainDirichlet):
    def penalty(self, alphas: list[Tensor], epoch: int) -> list[Tensor]:
        count = len(self.net.alphas)
        leaves = [alpha.detach().requires_grad_() for alpha in alphas[:count]]
        divergence = torch.stack(
            [kl_divergence(Dirichlet(F.elu(a) + 1), Dirichlet(torch.ones_like(a))) for a in leaves]
        ).sum()
        return [
            *torch.autograd.grad(0.5 * divergence, leaves),
            *(torch.zeros_like(vector) for vector in alphas[count:]),
        ]
