"""GAEA's search step in plain PyTorch: see plain.py."""

from __future__ import annotations

from typing import Any

import torch
from methods.plain import EPOCHS, SEED, Plain, PlainPartialChannels
from torch import Tensor

from src.common.seeding import derive_seed
from src.spaces.relaxed import RelaxedSpace


class PlainGaea(Plain):
    def rows(self, net: RelaxedSpace, epoch: int, step: int) -> dict[str, Tensor]:
        return {key: 1.0 * alpha for key, alpha in net.alphas.items()}

    def step_alphas(
        self, alphas: list[Tensor], h: list[Tensor], first: list[Tensor], second: list[Tensor], count: int
    ) -> None:
        with torch.no_grad():
            for p, g in zip(alphas, h, strict=True):
                moved = p * torch.exp(-0.1 * g)
                moved = moved / moved.sum()
                raised = torch.where(moved < 1e-5, torch.full_like(moved, 1e-5), moved)
                p.copy_(raised / raised.sum())


class PlainGaeaPartialChannelsRandomSmoothing(PlainPartialChannels, PlainGaea):
    """Edges' weights are on the simplex, too, and are not perturbed."""

    frozen_epochs = 0

    def add_up(self, net: RelaxedSpace, node: Any, outputs: list[Tensor]) -> Tensor:
        edges = net.edges[node.switch.key]
        return torch.stack([weight * output for weight, output in zip(edges, outputs, strict=True)]).sum(0)

    def rows_of_the_weights_step(self, net: RelaxedSpace, epoch: int, step: int) -> dict[str, Tensor]:
        radius = 0.03 + 0.27 * epoch / EPOCHS
        generator = torch.Generator().manual_seed(derive_seed("perturbation", SEED, epoch, step))
        result = {}
        for key, alpha in net.alphas.items():
            uniform = torch.rand(alpha.shape, dtype=torch.float64, generator=generator)
            positive = (alpha.detach() + radius * (2 * uniform - 1)).clamp(min=0, max=1)
            result[key] = positive / positive.sum()
        return result
