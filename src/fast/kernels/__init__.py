"""The few functions of images that the fused forms in src/spaces are made of, in C++ (kernels.cpp) for a processor.

Images that belong to K edges of a cell are (K, N, C, H, W), or (1, N, C, H, W) where the edges share them. In memory they
lie one edge after another, channels innermost; a view with a larger step from pixel to pixel, or from edge to edge, is
read and written as well. Sums over pixels are float64, so that a variance may be a difference of two of them, and no
result depends on the number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.fast.kernels.build import library

SUMS = torch.float64

_enabled = True


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


def fit(images: Tensor) -> bool:
    """Return whether the kernels compute what is asked of images like these: float32 or float64, on a processor."""
    plain = images.is_cpu and images.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    return plain and _enabled and library() is not None


@contextmanager
def disabled() -> Iterator[None]:
    """Within it, no images fit: for whoever counts operators."""
    global _enabled  # noqa: PLW0603
    _enabled = False
    try:
        yield
    finally:
        _enabled = True


def convolve(
    x: Tensor,
    rescale: Tensor | None,
    depthwise: Sequence[Tensor] | None,
    pointwise: Sequence[Tensor],
    geometry: Geometry,
    *,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return z = pointwise(depthwise(max(0, scale * x + shift))) of K edges, and its sums over pixels.

    Args:
        x: (K or 1, N, C, H, W).
        rescale: scale and shift, (2, K, C); none is 1 and 0.
        depthwise: K of (C, 1, kernel, kernel); none leaves the images as they are.
        pointwise: K of (C_out, C, 1, 1).
        geometry: of the depthwise convolution.
        out: where to write z.

    Returns:
        z (K, N, C_out, H_out, W_out), and (2, K, C_out): the sums of z and of its square.
    """
    edges, channels_out = len(pointwise), len(pointwise[0])
    z = empty((edges, x.shape[1], channels_out, *geometry.size(*x.shape[3:])), like=x) if out is None else out
    sums = torch.empty(2, edges, channels_out, dtype=SUMS)
    _call(
        "convolve", x.dtype, _shape(x, z, geometry), _images(x), _array(rescale, x), _weights(depthwise, edges),
        _weights(pointwise, edges), _images(z), sums,
    )  # fmt: skip
    return z, sums


def convolve_backward(
    grad: Tensor,
    z: Tensor,
    mix: Tensor,
    x: Tensor,
    rescale: Tensor | None,
    depthwise: Sequence[Tensor] | None,
    pointwise: Sequence[Tensor],
    geometry: Geometry,
    *,
    into: Tensor | None,
    add: bool,
    needs_images: bool,
    needs_weights: bool,
) -> tuple[Tensor | None, Tensor | None, list[Tensor], list[Tensor]]:
    """Return the gradients of `convolve`, where that of z is mix[0] * grad + mix[1] * z + mix[2].

    Args:
        grad: (K, N, C_out, H_out, W_out).
        z: what `convolve` returned.
        mix: (3, K, C_out).
        x: as `convolve` had it, and what follows.
        rescale: see there.
        depthwise: see there.
        pointwise: see there.
        geometry: see there.
        into: where the edges share x, its gradient is written to this (1, N, C, H, W).
        add: whether it is added there instead.
        needs_images: whether a gradient of images is wanted at all.
        needs_weights: whether those of the weights are wanted.

    Returns:
        Where each edge has its own x: the gradient of scale * x + shift, (K, N, C, H, W), and its sums over pixels,
        by itself and times x, (2, K, C); else None. Then the gradients of depthwise and of pointwise, K each, or none.
    """
    edges, (channels_out, channels), taps = len(pointwise), pointwise[0].shape[:2], geometry.kernel**2
    x_grad = sums = weight_grads = None
    if needs_images and into is None:
        x_grad = empty(x.shape, like=x)
        sums = torch.empty(2, edges, channels, dtype=SUMS)
    if needs_weights:
        weight_grads = x.new_empty(edges, (taps + channels_out) * channels)
    target = (into if x_grad is None else x_grad) if needs_images else None
    _call(
        "convolve_backward", x.dtype, _shape(x, z, geometry), _images(grad), _images(z), _array(mix, x), _images(x),
        _array(rescale, x), _weights(depthwise, edges), _weights(pointwise, edges), _images(target), int(add), sums,
        weight_grads,
    )  # fmt: skip
    depthwise_grads: list[Tensor] = []
    pointwise_grads: list[Tensor] = []
    if weight_grads is not None:
        split = taps * channels
        pointwise_grads = [row[split:].view(pointwise[0].shape) for row in weight_grads]
        if depthwise is not None:
            depthwise_grads = [row[:split].view(depthwise[0].shape) for row in weight_grads]
    return x_grad, sums, depthwise_grads, pointwise_grads


def pool(x: Tensor, geometry: Geometry, *, largest: bool) -> Tensor:
    """Return the maxima, or the means over pixels within the image, of x (1, N, C, H, W)."""
    pooled = empty((*x.shape[:3], *geometry.size(*x.shape[3:])), like=x)
    _call("pool", x.dtype, _shape(x, pooled, geometry), int(largest), _images(x), _images(pooled))
    return pooled


def pool_backward(grad: Tensor, x: Tensor, geometry: Geometry, *, largest: bool, into: Tensor, add: bool) -> None:
    """Write the gradient of `pool` to `into` (1, N, C, H, W), or add it, given that of its output."""
    shape = _shape(x, grad, geometry)
    _call("pool_backward", x.dtype, shape, int(largest), _images(grad), _images(x), _images(into), int(add))


def combine(out: Tensor, terms: Sequence[Tensor], coefficients: Tensor, constant: Tensor, *, add: bool) -> None:
    """Set `out` to, or add to it, the sum of constant and coefficients[i] * terms[i].

    Args:
        out: (K, N, C, H, W).
        terms: M of (K or 1, N, C, H, W).
        coefficients: (M, K, C).
        constant: (K, C).
        add: whether to add.
    """
    _call(
        "combine", out.dtype, _shape(out, out), int(add), _images(out), ctypes.c_int64(len(terms)),
        (_Images * len(terms))(*map(_view, terms)), _array(coefficients, out), _array(constant, out),
    )  # fmt: skip


def dots(images: Tensor, terms: Sequence[Tensor]) -> Tensor:
    """Return the sums over pixels of images (K, N, C, H, W), and of their products with M terms, (1 + M, K, C)."""
    edges, _, channels = images.shape[:3]
    sums = torch.empty(1 + len(terms), edges, channels, dtype=SUMS)
    _call(
        "dots", images.dtype, _shape(images, images), _images(images), ctypes.c_int64(len(terms)),
        (_Images * len(terms))(*map(_view, terms)), sums,
    )  # fmt: skip
    return sums


def empty(shape: Sequence[int], *, like: Tensor) -> Tensor:
    """Return uninitialised images (K, N, C, H, W), in the layout in which kernels return theirs."""
    edges, count, channels, height, width = shape
    return like.new_empty(edges, count, height, width, channels).permute(0, 1, 4, 2, 3)


class _Shape(ctypes.Structure):
    """`Geometry` of kernels.cpp."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "batch", "height", "width", "out_height", "out_width", "channels", "out_channels", "edges", "kernel",
            "stride", "padding", "dilation",
        )
    ]  # fmt: skip


class _Images(ctypes.Structure):
    """`Images` of kernels.cpp."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("edge", "image", "line", "pixel"))]


def _shape(x: Tensor, out: Tensor, geometry: Sequence[int] = (1, 1, 0, 1)) -> Any:
    _, images, channels, height, width = x.shape
    edges, _, channels_out, height_out, width_out = out.shape
    values = (images, height, width, height_out, width_out, channels, channels_out, edges, *geometry)
    return ctypes.byref(_Shape(*values))


def _view(images: Tensor) -> _Images:
    """Return the address and the steps of (K, N, C, H, W)."""
    edge, image, channel, line, pixel = images.stride()
    assert channel == 1 or images.shape[2] == 1, "channels are innermost"
    return _Images(images.data_ptr(), edge if len(images) > 1 else 0, image, line, pixel)


def _images(images: Tensor | None) -> Any:
    return ctypes.byref(_Images() if images is None else _view(images))


def _weights(weights: Sequence[Tensor] | None, edges: int) -> Any:
    """Return the addresses of one weight (C_out, C_in, height, width) an edge, where one of C_in and height is 1.

    Then both of torch's memory formats are the same bytes.
    """
    if weights is None:
        return (ctypes.c_void_p * edges)()
    assert all(
        weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last) for weight in weights
    ), "weights are dense"
    return (ctypes.c_void_p * edges)(*(weight.data_ptr() for weight in weights))


def _array(values: Tensor | None, like: Tensor) -> Tensor | None:
    return None if values is None else values.to(like.dtype).contiguous()


def _call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Call a kernel; tensors are contiguous arrays, None is a null pointer."""
    loaded = library()
    assert loaded is not None, "images fit"
    values = [
        ctypes.c_void_p(argument.data_ptr() if argument is not None else None)
        if argument is None or isinstance(argument, Tensor)
        else argument
        for argument in arguments
    ]
    getattr(loaded, f"{name}_{'float32' if dtype == torch.float32 else 'float64'}")(*values, torch.get_num_threads())
