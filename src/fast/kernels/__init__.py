"""The few functions of images that the fused forms are made of, in C++ (kernels.cpp) for a CPU.

Images that belong to K edges of a cell are (K, N, C, H, W), or (1, N, C, H, W) where the edges share them. In memory
channels are innermost; views with any other strides are read and written as well. Every function checks shapes, dtypes
and strides, and raises a ValueError, before C++ is entered: there, an index out of range is memory of something else.
Scratch memory that cannot be allocated is a MemoryError.

Sums over pixels: a row of pixels (in `dots`, 32 pixels) is summed in the dtype of the images, rows and images in float64.
No result depends on the number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from src.fast.kernels.build import library

SUMS = torch.float64
LONGEST_SIDE = 2**24  # pixels, padding included: products of sizes stay far below 2**63

SUFFIXES = {torch.float32: "float32", torch.float64: "float64"}

_enabled = True


class Geometry(NamedTuple):
    """The geometry of a square convolution or pool, in pixels."""

    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the output; below 1 where the kernel does not fit into the padded image."""
        reach = self.dilation * (self.kernel - 1)
        return tuple((side + 2 * self.padding - reach - 1) // self.stride + 1 for side in (height, width))  # pyright: ignore[reportReturnType]


def fit(images: Tensor) -> bool:
    """Return whether the kernels can compute on images like these: float32 or float64, on a CPU, without autocast.

    Fake tensors and a pass that torch.jit traces do not fit: there is nothing to read, or the kernels would not be traced.
    """
    return (
        type(images) in (Tensor, nn.Parameter)
        and images.is_cpu
        and images.dtype in SUFFIXES
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and _enabled
        and library() is not None
    )


@contextmanager
def disabled() -> Iterator[None]:
    """Make no images fit within the block, so that a network can be differentiated twice."""
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
    """Return z = pointwise(depthwise(max(0, scale * x + shift))) of K edges, less a constant a channel, and its moments.

    Args:
        x: (K or 1, N, C, H, W).
        rescale: scale and shift, (2, K, C); None is 1 and 0.
        depthwise: K of (C, 1, kernel, kernel); None leaves the images as they are.
        pointwise: K of (C_out, C, 1, 1).
        geometry: of the depthwise convolution.
        out: where to write z.

    Returns:
        z (K, N, C_out, H_out, W_out) less the constants, and `moments` of it, (3, K, C_out).
    """
    dtype, edges, channels_out = x.dtype, len(pointwise), len(pointwise[0])
    channels, height_out, width_out = _check_convolution(x, rescale, depthwise, pointwise, geometry)
    shape = (edges, x.shape[1], channels_out, height_out, width_out)
    z = empty(shape, like=x) if out is None else out
    _check("out", z, shape, dtype)
    moments = torch.empty(3, edges, channels_out, dtype=SUMS)
    _call(
        "convolve", dtype, _shape(x, z, geometry), _images(x), _array(rescale, (2, edges, channels), dtype),
        _addresses(depthwise, edges), _addresses(pointwise, edges), _written(z), moments,
    )  # fmt: skip
    return z, moments


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
        x: as `convolve` had it, like the four arguments that follow.
        rescale: see there.
        depthwise: see there.
        pointwise: see there.
        geometry: see there.
        into: (1, N, C, H, W), to which the gradient of x is written where the edges share x; None where each has its own.
        add: whether it is added there instead.
        needs_images: whether a gradient of images is computed at all.
        needs_weights: whether those of the weights are computed.

    Returns:
        Where each edge has its own x: the gradient of scale * x + shift, (K, N, C, H, W), and its sums over pixels,
        by itself and times x, (2, K, C); else None. Then the gradients of depthwise and of pointwise, K each, or none.
    """
    dtype, edges, taps = x.dtype, len(pointwise), geometry.kernel**2
    channels, height_out, width_out = _check_convolution(x, rescale, depthwise, pointwise, geometry)
    channels_out = len(pointwise[0])
    for name, images in (("grad", grad), ("z", z)):
        _check(name, images, (edges, x.shape[1], channels_out, height_out, width_out), dtype)
    x_grad = sums = weight_grads = None
    if into is not None:
        _check("into", into, (1, *x.shape[1:]), dtype)
        if len(x) != 1 or rescale is not None:
            raise ValueError("into must be None where each edge has its own x")
    elif needs_images:
        _check("x", x, (edges, *x.shape[1:]), dtype)
        x_grad = empty(x.shape, like=x)
        sums = torch.empty(2, edges, channels, dtype=SUMS)
    if needs_weights:
        weight_grads = x.new_empty(edges, (taps + channels_out) * channels)
    target = (into if x_grad is None else x_grad) if needs_images else None
    _call(
        "convolve_backward", dtype, _shape(x, z, geometry), _images(grad), _images(z),
        _array(mix, (3, edges, channels_out), dtype), _images(x), _array(rescale, (2, edges, channels), dtype),
        _addresses(depthwise, edges), _addresses(pointwise, edges), _written(target), int(add), sums, weight_grads,
    )  # fmt: skip
    depthwise_grads: list[Tensor] = []
    pointwise_grads: list[Tensor] = []
    if weight_grads is not None:
        split = taps * channels
        pointwise_grads = [row[split:].view(pointwise[0].shape) for row in weight_grads]
        if depthwise is not None:
            depthwise_grads = [row[:split].view(depthwise[0].shape) for row in weight_grads]
    return x_grad, sums, depthwise_grads, pointwise_grads


def pool(x: Tensor, geometry: Geometry, *, largest: bool, centre: bool = False) -> tuple[Tensor, Tensor | None]:
    """Return the maxima, or the means over pixels within the image, of x (1, N, C, H, W).

    If `centre`, they are less a constant a channel, and their `moments`, (3, 1, C), come with them, else None.
    """
    _check_pool(x, geometry)
    pooled = empty((*x.shape[:3], *geometry.size(*x.shape[3:])), like=x)
    moments = torch.empty(3, 1, x.shape[2], dtype=SUMS) if centre else None
    _call("pool", x.dtype, _shape(x, pooled, geometry), int(largest), _images(x), _written(pooled), moments)
    return pooled, moments


def pool_backward(grad: Tensor, x: Tensor, geometry: Geometry, *, largest: bool, into: Tensor, add: bool) -> None:
    """Write the gradient of `pool` to `into` (1, N, C, H, W), or add it, given that of its output."""
    _check_pool(x, geometry)
    _check("grad", grad, (*x.shape[:3], *geometry.size(*x.shape[3:])), x.dtype)
    _check("into", into, x.shape, x.dtype)
    shape = _shape(x, grad, geometry)
    _call("pool_backward", x.dtype, shape, int(largest), _images(grad), _images(x), _written(into), int(add))


def combine(out: Tensor, terms: Sequence[Tensor], coefficients: Tensor, constant: Tensor, *, add: bool) -> None:
    """Set `out` to, or add to it, the sum of constant and coefficients[i] * terms[i].

    Args:
        out: (K, N, C, H, W).
        terms: M of (K or 1, N, C, H, W).
        coefficients: (M, K, C).
        constant: (K, C).
        add: whether to add.
    """
    dtype, shape = out.dtype, out.shape
    _check("out", out, shape, dtype)
    edges, channels = shape[0], shape[2]
    _call(
        "combine", dtype, _shape(out, out), int(add), _written(out), ctypes.c_int64(len(terms)),
        _all_images(terms, shape, dtype), _array(coefficients, (len(terms), edges, channels), dtype),
        _array(constant, (edges, channels), dtype),
    )  # fmt: skip


def dots(images: Tensor, terms: Sequence[Tensor], shifts: Tensor | None = None) -> Tensor:
    """Return the sums over pixels of images (K, N, C, H, W), and of their products with M terms, (1 + M, K, C).

    Args:
        images: (K, N, C, H, W).
        terms: M of (K or 1, N, C, H, W).
        shifts: constants that the images and each term are less than they are given, (1 + M, K, C).
    """
    dtype, shape = images.dtype, images.shape
    _check("images", images, shape, dtype)
    sums = torch.empty(1 + len(terms), shape[0], shape[2], dtype=SUMS)
    _call(
        "dots", dtype, _shape(images, images), _images(images), ctypes.c_int64(len(terms)),
        _all_images(terms, shape, dtype), _array(shifts, (1 + len(terms), shape[0], shape[2]), dtype), sums,
    )  # fmt: skip
    return sums


def moments(images: Tensor, *, about: Tensor | None = None) -> Tensor:
    """Return the mean over pixels of images (K, N, C, H, W), the sum of squared deviations, and the shift, 0: (3, K, C).

    Of images that something was subtracted from, the shift is what they had more before.

    Args:
        images: (K, N, C, H, W).
        about: (K, C), constants near the means, so that no precision is lost; 0 if None.
    """
    total, squares = dots(images, [images], None if about is None else torch.stack([about, about]))
    mean = total / (images.numel() // total.numel())
    squares = (squares - total * mean).clamp_(min=0)
    return torch.stack([mean if about is None else mean + about, squares, torch.zeros_like(mean)])


def empty(shape: Sequence[int], *, like: Tensor) -> Tensor:
    """Return uninitialised images (K, N, C, H, W), in the layout in which kernels return theirs."""
    edges, count, channels, height, width = shape
    return like.new_empty(edges, count, height, width, channels).permute(0, 1, 4, 2, 3)


def _check(name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Raise a ValueError unless a tensor is of this shape, with no dimension of 0, and of this dtype, in memory."""
    if tensor.shape != shape or tensor.dtype is not dtype or dtype not in SUFFIXES or not tensor.is_cpu or 0 in shape:
        raise ValueError(
            f"{name} must be {tuple(shape)}, without 0, {dtype} (float32 or float64) on a CPU, "
            f"got {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"
        )


def _check_geometry(x: Tensor, geometry: Geometry) -> tuple[int, int]:
    """Return height and width of the output; raise a ValueError unless they are 1 or more and x fits."""
    _check("x", x, x.shape, x.dtype)
    if x.dim() != 5:
        raise ValueError(f"x must be (K, N, C, H, W), got {tuple(x.shape)}")
    kernel, stride, padding, dilation = geometry
    height, width = x.shape[3:]
    size = geometry.size(height, width) if min(kernel, stride, dilation) >= 1 and padding >= 0 else (0, 0)
    if min(size) < 1 or max(height, width) + 2 * padding + dilation * kernel + stride > LONGEST_SIDE:
        raise ValueError(f"{geometry} must fit images of {height}x{width} pixels")
    return size


def _check_convolution(
    x: Tensor,
    rescale: Tensor | None,
    depthwise: Sequence[Tensor] | None,
    pointwise: Sequence[Tensor],
    geometry: Geometry,
) -> tuple[int, int, int]:
    """Return channels of x, and height and width of z; raise a ValueError unless all fit together."""
    size = _check_geometry(x, geometry)
    edges, channels = len(pointwise), x.shape[2]
    if len(x) != edges and (len(x) != 1 or rescale is not None):
        raise ValueError(f"x must be of {edges} edges, or of 1 without rescale, got {len(x)}")
    if depthwise is None and geometry != Geometry():
        raise ValueError(f"geometry without depthwise weights must be {Geometry()}, got {geometry}")
    if depthwise is not None:
        _check_weights("depthwise", depthwise, edges, (channels, 1, geometry.kernel, geometry.kernel), x.dtype)
    _check_weights("pointwise", pointwise, edges, (len(pointwise[0]), channels, 1, 1), x.dtype)
    return channels, *size


def _check_weights(
    name: str, weights: Sequence[Tensor], edges: int, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    """Raise a ValueError unless there is a dense weight of this shape for each edge."""
    if len(weights) != edges:
        raise ValueError(f"{name} must be {edges} weights, got {len(weights)}")
    for weight in weights:
        _check(name, weight, shape, dtype)
        if not dense(weight):
            raise ValueError(f"{name} must be dense, got strides {weight.stride()}")


def dense(weight: Tensor) -> bool:
    """Return whether a weight (C_out, C_in, height, width) lies in memory as the kernels read it.

    One of C_in and height * width is 1, so that both of torch's memory formats are the same bytes.
    """
    return weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)


def _check_pool(x: Tensor, geometry: Geometry) -> None:
    _check_geometry(x, geometry)
    if len(x) != 1 or geometry.dilation != 1 or 2 * geometry.padding > geometry.kernel:
        raise ValueError(
            f"a pool must have images (1, N, C, H, W), dilation 1 and a padding of at most half its kernel, "
            f"got {tuple(x.shape)}, {geometry}"
        )


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
    """Return the address and the strides of (K, N, C, H, W)."""
    edge, image, channel, line, pixel = images.stride()
    if channel != 1 and images.shape[2] > 1:
        raise ValueError(f"channels must be innermost, got strides {images.stride()} of {tuple(images.shape)}")
    return _Images(images.data_ptr(), edge if len(images) > 1 else 0, image, line, pixel)


def _images(images: Tensor) -> Any:
    return ctypes.byref(_view(images))


def _written(images: Tensor | None) -> Any:
    """Return images that a kernel writes: no two pixels may be one."""
    if images is None:
        return ctypes.byref(_Images())
    if 0 in images.stride() and any(
        stride == 0 and size > 1 for stride, size in zip(images.stride(), images.shape, strict=True)
    ):
        raise ValueError(f"images to write must not be expanded, got strides {images.stride()}")
    return _images(images)


def _all_images(terms: Sequence[Tensor], shape: torch.Size, dtype: torch.dtype) -> Any:
    """Return terms of this shape, or of one edge."""
    for term in terms:
        _check("a term", term, (1, *shape[1:]) if len(term) == 1 else shape, dtype)
    return (_Images * len(terms))(*map(_view, terms))


def _addresses(weights: Sequence[Tensor] | None, edges: int) -> Any:
    """Return the addresses of the weights, null for None."""
    return (ctypes.c_void_p * edges)(*(weight.data_ptr() for weight in weights or ()))


def _array(values: Tensor | None, shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
    """Return values of this shape as a contiguous array of this dtype."""
    if values is None:
        return None
    values = values.to(dtype).contiguous()
    _check("constants", values, shape, dtype)
    return values


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
    if getattr(loaded, f"{name}_{SUFFIXES[dtype]}")(*values, torch.get_num_threads()):
        raise MemoryError(f"no memory for the scratch images of kernel {name}")
