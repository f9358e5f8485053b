"""What operations are built of: the modules of the CNN cell space (arXiv 1806.09055, section 3.1.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Zero(nn.Module):
    """No connection: zeros of the shape the other candidates give."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros, (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride))."""
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class ReLUConvBN(nn.Sequential):
    """ReLU, convolution, BatchNorm: the order in all convolutions of the paper."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, affine: bool) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(channels_out, affine=affine),
        )


class DilatedConv(nn.Sequential):
    """A depthwise separable convolution: ReLU, depthwise, pointwise, BatchNorm. The paper's dil_conv has dilation 2."""

    def __init__(self, channels: int, kernel: int, *, stride: int, dilation: int, affine: bool) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(
                channels,
                channels,
                kernel,
                stride=stride,
                padding=dilation * (kernel // 2),
                dilation=dilation,
                groups=channels,
                bias=False,
            ),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        )


class SeparableConv(nn.Sequential):
    """Two depthwise separable convolutions in a row, the first with the stride: the paper's sep_conv."""

    def __init__(self, channels: int, kernel: int, *, stride: int, affine: bool) -> None:
        super().__init__(
            DilatedConv(channels, kernel, stride=stride, dilation=1, affine=affine),
            DilatedConv(channels, kernel, stride=1, dilation=1, affine=affine),
        )


class RowColumnConv(nn.Sequential):
    """A convolution in two: ReLU, 1 x kernel, kernel x 1, BatchNorm; each halves its own side at stride 2."""

    def __init__(self, channels: int, kernel: int, *, stride: int, affine: bool) -> None:
        half = kernel // 2
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(channels, channels, (1, kernel), stride=(1, stride), padding=(0, half), bias=False),
            nn.Conv2d(channels, channels, (kernel, 1), stride=(stride, 1), padding=(half, 0), bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        )


class FactorizedReduce(nn.Module):
    """Halve height and width: two 1x1 convolutions of stride 2, one shifted by a pixel, of half the channels each."""

    def __init__(self, channels_in: int, channels_out: int, *, affine: bool) -> None:
        super().__init__()
        half = channels_out // 2
        self.relu = nn.ReLU()
        # The pixels are picked before the convolution: PyTorch 2.14's own strided 1x1 convolution of fewer than 8
        # channels, channels_last, on a CPU, corrupts memory in its backward pass.
        self.even = nn.Conv2d(channels_in, half, 1, bias=False)
        self.odd = nn.Conv2d(channels_in, channels_out - half, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, ceil(H / 2), ceil(W / 2)); an odd side is padded with a zero."""
        x = self.relu(x)
        padded = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        return self.norm(torch.cat([self.even(x[:, :, ::2, ::2]), self.odd(padded[:, :, 1::2, 1::2])], dim=1))


class Pool(nn.Module):
    """A 3x3 pool. While searching a BatchNorm without parameters follows, so that pools do not win by their scale."""

    def __init__(self, pool: nn.Module, channels: int, *, searching: bool) -> None:
        super().__init__()
        self.pool = pool
        self.norm = nn.BatchNorm2d(channels, affine=False) if searching else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride))."""
        return self.norm(self.pool(x))
