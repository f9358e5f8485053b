"""BatchNorms that a fast form computes together: what they must have in common, and what they are to remember."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn


class Setting(NamedTuple):
    """What BatchNorms must have in common to be computed together."""

    kind: type[nn.BatchNorm2d]
    training: bool
    eps: float
    momentum: float
    affine: bool
    channels: int
    dtype: torch.dtype
    device: torch.device


def setting_of(norms: Sequence[nn.BatchNorm2d]) -> Setting | None:
    """Return the setting of all norms; None if they differ, or if one lacks a tensor, or has tensors of several kinds."""
    result = None
    for norm in norms:
        parameters, buffers = norm._parameters, norm._buffers
        weight, bias, mean = parameters["weight"], parameters["bias"], buffers["running_mean"]
        affine = weight is not None
        if mean is None or norm.momentum is None or buffers["num_batches_tracked"] is None:
            return None
        if (bias is not None) != affine:
            return None
        for tensor in (mean, buffers["running_var"], *((weight, bias) if affine else ())):
            if tensor is None or tensor.shape != (norm.num_features,):
                return None
            if tensor.dtype != mean.dtype or tensor.device != mean.device:
                return None
        setting = Setting(
            type(norm), norm.training, norm.eps, norm.momentum, affine, norm.num_features, mean.dtype, mean.device
        )
        if result is not None and setting != result:
            return None
        result = setting
    return result


class Statistics:
    """The statistics of a batch that BatchNorms are to remember; three operators update all of one momentum."""

    def __init__(self) -> None:
        self.by_momentum: dict[float, tuple[list[nn.BatchNorm2d], list[Tensor], list[Tensor]]] = {}

    def add(self, norms: Sequence[nn.BatchNorm2d], means: Tensor, variances: Tensor) -> None:
        """Note means and unbiased variances (K, C) for K norms of one momentum."""
        dtype = cast(Tensor, norms[0].running_mean).dtype
        momentum = cast(float, norms[0].momentum)
        lists = self.by_momentum.setdefault(momentum, ([], [], []))
        for noted, more in zip(lists, (norms, means.to(dtype), variances.to(dtype)), strict=True):
            noted.extend(more)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def update_norms(self) -> None:
        """Move the running statistics, in place: they may be buffers that torch.func.functional_call put there."""
        for momentum, (norms, means, variances) in self.by_momentum.items():
            torch._foreach_lerp_([cast(Tensor, norm.running_mean) for norm in norms], means, momentum)
            torch._foreach_lerp_([cast(Tensor, norm.running_var) for norm in norms], variances, momentum)
            torch._foreach_add_([cast(Tensor, norm.num_batches_tracked) for norm in norms], 1)
