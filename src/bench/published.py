"""The paper's code, in its arithmetic and its order of work, to compare with.

NCHW, every operation on its own, a copy of the network for the virtual step, weights moved in place, and weights'
gradients wherever a plain backward computes them; a PIL image and torchvision's transforms for each sample.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from src.data.samples import Samples
from src.spaces.relaxed import RelaxedSpace

Batches = dict[str, tuple[Tensor, Tensor]]  # "weights" and "arch": images (N, 3, H, W) and labels (N,)


def autocast(device: str, precision: str) -> torch.autocast:
    """Return the context of a precision: `fp32`, or `bf16` for autocast."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")


class PublishedSearch:
    """The paper's search step, on the plain supernet.

    Each forward pass has an autocast of its own, in which bf16 computes: one for the whole step would keep the
    weights that it cast first, when they have moved since.
    """

    def __init__(self, net: RelaxedSpace, order: int, precision: str = "fp32") -> None:
        self.net = net
        self.order = order
        self.precision = precision
        named = list(net.named_parameters())
        self.weights = [p for name, p in named if not name.startswith("alphas.")]
        self.alphas = [p for name, p in named if name.startswith("alphas.")]
        self.weight_optimizer = torch.optim.SGD(self.weights, lr=0.025, momentum=0.9, weight_decay=3e-4)
        self.alpha_optimizer = torch.optim.Adam(self.alphas, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)

    def loss(self, net: RelaxedSpace, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of a network on a batch."""
        with autocast(batch[0].device.type, self.precision):
            return F.cross_entropy(net(batch[0]), batch[1])

    def __call__(self, batch: Batches) -> None:
        """Step the alphas, then the weights."""
        self.backward_to_alphas(batch)
        self.alpha_optimizer.step()
        self.weight_optimizer.zero_grad()
        self.loss(self.net, batch["weights"]).backward()
        nn.utils.clip_grad_norm_(self.weights, 5.0)
        self.weight_optimizer.step()

    def backward_to_alphas(self, batch: Batches) -> None:
        """Leave the alphas' gradient in their `grad`."""
        self.alpha_optimizer.zero_grad()
        if self.order == 1:
            self.loss(self.net, batch["arch"]).backward()
        else:
            self._unrolled(batch)

    def _unrolled(self, batch: Batches) -> None:
        lr = 0.025
        gradients = torch.autograd.grad(self.loss(self.net, batch["weights"]), self.weights)
        virtual = copy.deepcopy(self.net)
        parameters = dict(virtual.named_parameters())
        copies = [p for name, p in parameters.items() if not name.startswith("alphas.")]
        with torch.no_grad():
            for weight, target, gradient in zip(self.weights, copies, gradients, strict=True):
                momentum = self.weight_optimizer.state[weight].get("momentum_buffer", torch.zeros_like(weight))
                target.copy_(weight - lr * (0.9 * momentum + gradient + 3e-4 * weight))
        self.loss(virtual, batch["arch"]).backward()
        v = [p.grad for p in copies if p.grad is not None]
        e = 0.01 / torch.cat([x.flatten() for x in v]).norm()
        sides = []
        for move in (e, -2 * e):
            with torch.no_grad():
                for weight, x in zip(self.weights, v, strict=True):
                    weight.add_(x * move)
            sides.append(torch.autograd.grad(self.loss(self.net, batch["weights"]), self.alphas))
        with torch.no_grad():
            for weight, x in zip(self.weights, v, strict=True):
                weight.add_(x * e)
        direct = [p.grad for name, p in parameters.items() if name.startswith("alphas.")]
        for alpha, d, p, n in zip(self.alphas, direct, *sides, strict=True):
            assert d is not None
            alpha.grad = d - lr * (p - n) / (2 * e)


class PublishedData(Dataset[tuple[Any, int]]):
    """The paper's data pipeline: crop, flip and normalisation of each image on its own."""

    def __init__(self, images: Samples, mean: Tensor, deviation: Tensor) -> None:
        self.pictures = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in images.inputs]
        self.labels = images.targets.tolist()
        self.transform = T.Compose(
            [
                T.RandomCrop(images.shape[1], padding=4),
                T.RandomHorizontalFlip(),
                T.ToTensor(),
                T.Normalize(mean.tolist(), deviation.tolist()),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.pictures[index]), self.labels[index]
