"""BatchNorm over the batches of all processes, on every kind of device (torch's SyncBatchNorm refuses a CPU)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from src.common.processes import Total, total, world_size


class SyncedBatchNorm(nn.BatchNorm2d):
    """A BatchNorm2d whose batch, in training, is that of all processes joined; their batches are of one size."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise images (N, C, H, W); the statistics and their gradients are summed over the processes."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        assert self.momentum is not None
        output, mean, variance = normalised(input, self.eps)
        if self.affine:
            output = output * self.weight[:, None, None] + self.bias[:, None, None]
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
                self.num_batches_tracked += 1
        return output.to(input.dtype)


def normalised(images: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return images (N, C, H, W) of all processes normalised, in float32 or float64, and their means and variances (C,).

    The variances have Bessel's correction. Statistics and their gradients are summed over the processes.
    """
    with torch.autocast(images.device.type, enabled=False):
        wide = images if images.dtype == torch.float64 else images.float()
        pixels = images.numel() // images.shape[1] * world_size()
        mean = cast(Tensor, Total.apply(wide.sum((0, 2, 3)))) / pixels
        centred = wide - mean[:, None, None]
        variance = cast(Tensor, Total.apply((centred * centred).sum((0, 2, 3)))) / pixels
        return centred * (variance + eps).rsqrt()[:, None, None], mean, variance * (pixels / (pixels - 1))


def synchronise(module: nn.Module) -> None:
    """Make every BatchNorm2d within `module` a `SyncedBatchNorm`, in place; parameters and buffers stay."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SyncedBatchNorm


def processes_joined_by(norm: nn.Module) -> int:
    """Return over how many processes the batch of a BatchNorm extends."""
    return world_size() if isinstance(norm, SyncedBatchNorm) else 1


def joined(sums: Tensor, processes: int) -> Tensor:
    """Return sums over the pixels of this process as those of all processes that a BatchNorm joins."""
    return total(sums) if processes > 1 else sums
