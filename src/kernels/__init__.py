"""The few functions of images that the fused forms in src/spaces are made of, for every device and for a processor.

`of(tensor)` returns the module whose functions fit a tensor: src/kernels/compiled.py (C++, for float32 and float64 on a
processor with a compiler) or src/kernels/portable.py (PyTorch's own operators), which specifies the first. Both have

- `convolve` and `convolve_backward`: ReLU, depthwise and pointwise convolution, and the sums that BatchNorm needs
- `pool` and `pool_backward`: 3x3 pools and the like
- `combine`: a weighted sum of images
- `dots`: sums over images and their products, the gradients of those weights

Images that belong to K edges of a cell are (K, N, C, H, W), or (1, N, C, H, W) where the edges share them. How they lie
in memory is for a module to say, so what one returns is handed to the same one only. Sums over pixels are float64 (where
the device has it), so that a variance may be a difference of two of them.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from src.kernels import compiled, portable
from src.kernels.portable import sums_dtype

__all__ = ["Geometry", "of", "sums_dtype"]


class Geometry(NamedTuple):
    """Of a convolution or a pool, square: all in pixels."""

    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the output."""
        reach = self.dilation * (self.kernel - 1)
        return tuple((side + 2 * self.padding - reach - 1) // self.stride + 1 for side in (height, width))  # pyright: ignore[reportReturnType]


def of(tensor: Tensor) -> ModuleType:
    """Return the kernels for tensors like this one."""
    fits = tensor.is_cpu and tensor.dtype in (torch.float32, torch.float64)
    return compiled if fits and compiled.library() is not None else portable
