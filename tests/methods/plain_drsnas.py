"""Plain transcriptions of DrNAS, SNAS and the step of one level."""

from __future__ import annotations

import math
from typing import Any

import torch
from methods.plain import EPOCHS, Batch, Plain, adam, sgd, split
from torch import Tensor

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
                    adam(alphas, h, first, second, count)
                sgd(weights, found[: len(weights)], velocity, lr)
        return net
