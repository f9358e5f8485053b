"""What the BatchNorms of a fast form are to remember of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn


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
