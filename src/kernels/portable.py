"""The kernels by PyTorch's operators, on any device and in any precision: what the compiled ones are held against.

Edges are batched, so that the number of operator calls does not grow with them: a depthwise convolution of K edges is
one of K * C channels, their pointwise convolutions are one batched product. bfloat16 images are multiplied as they are;
what is added up over pixels is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from src.kernels import Geometry


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
    with _no_autocast(x):
        d = _depthwise(_rectified(x, rescale), depthwise, len(pointwise), geometry)
        flat = _flat(d) @ _matrices(pointwise, d.dtype).transpose(1, 2)
        variance, mean = torch.var_mean(_wide(flat), 1, correction=0)
        mean, variance = mean.to(sums_dtype(x.device)), variance.to(sums_dtype(x.device))
        z = _unflat(flat, d) if out is None else out.copy_(_unflat(flat, d))
        return z, torch.stack([mean, variance + mean * mean]) * flat.shape[1]


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
        into: where the edges share x, its gradient is added to this (1, N, C, H, W).
        needs_images: whether a gradient of images is wanted at all.
        needs_weights: whether those of the weights are wanted.

    Returns:
        Where each edge has its own x: the gradient of scale * x + shift, (K, N, C, H, W), and its sums over pixels,
        by itself and times x, (2, K, C); else None. Then the gradients of depthwise and of pointwise, K each, or none.
    """
    edges = len(pointwise)
    x_grad = sums = None
    depthwise_grads: list[Tensor] = []
    pointwise_grads: list[Tensor] = []
    with _no_autocast(x):
        y = _rectified(x, rescale)
        of_grad, of_z, constant = mix[:, :, None, :, None, None].to(_wide(z).dtype)
        z_grad = _flat((of_grad * grad + of_z * z + constant).to(z.dtype))
        if needs_weights:
            d = _depthwise(y, depthwise, edges, geometry)
            grads = _wide(z_grad).transpose(1, 2) @ _wide(_flat(d))
            pointwise_grads = [*grads[..., None, None]]
        d_grad = _unflat(z_grad @ _matrices(pointwise, z.dtype), z)
        y_grad = d_grad
        if depthwise is not None:
            weight = torch.cat(list(depthwise)).to(y.dtype)
            wide = _side_by_side(y, edges)
            y_grad, weight_grad, _ = torch.ops.aten.convolution_backward(  # pyright: ignore[reportGeneralTypeIssues]
                _side_by_side(d_grad, edges), wide, weight, None, [geometry.stride] * 2, [geometry.padding] * 2,
                [geometry.dilation] * 2, False, [0, 0], len(weight), [needs_images, needs_weights, False],
            )  # fmt: skip
            if needs_weights:
                depthwise_grads = [*_wide(weight_grad).chunk(edges)]
            if needs_images:
                y_grad = y_grad.unflatten(1, (edges, -1)).movedim(1, 0)
        if needs_images:
            if into is not None:
                into += (y_grad.sum(0, keepdim=True) if len(x) < edges else y_grad) * (y > 0)
            else:
                x_grad = y_grad * (y > 0)
                pixels = (1, 3, 4)
                sums = torch.stack([_wide(x_grad).sum(pixels), (_wide(x_grad) * x).sum(pixels)])
                sums = sums.to(sums_dtype(x.device))
    return x_grad, sums, depthwise_grads, pointwise_grads


def pool(x: Tensor, geometry: Geometry, *, largest: bool) -> Tensor:
    """Return the maxima, or the means over pixels within the image, of x (1, N, C, H, W)."""
    pooled = (
        F.max_pool2d(x[0], geometry.kernel, geometry.stride, geometry.padding)
        if largest
        else F.avg_pool2d(x[0], geometry.kernel, geometry.stride, geometry.padding, count_include_pad=False)
    )
    return pooled[None]


def pool_backward(grad: Tensor, x: Tensor, geometry: Geometry, *, largest: bool, into: Tensor) -> None:
    """Add the gradient of `pool` to `into` (1, N, C, H, W), given that of its output."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        pooled = pool(leaf, geometry, largest=largest)
    into += torch.autograd.grad(pooled, leaf, grad.to(x.dtype))[0]


def combine(out: Tensor, terms: Sequence[Tensor], coefficients: Tensor, constant: Tensor, *, add: bool) -> None:
    """Set `out` to, or add to it, the sum of constant and coefficients[i] * terms[i].

    Args:
        out: (K, N, C, H, W).
        terms: M of (K or 1, N, C, H, W).
        coefficients: (M, K, C).
        constant: (K, C).
        add: whether to add.
    """
    shape = (-1, 1, out.shape[2], 1, 1)
    constant = constant.to(out.dtype).view(shape)
    out.add_(constant) if add else out.copy_(constant.expand_as(out))
    for term, factor in zip(terms, coefficients.to(out.dtype), strict=True):
        out.addcmul_(term.to(out.dtype), factor.view(shape))


def dots(images: Tensor, terms: Sequence[Tensor]) -> Tensor:
    """Return the sums over pixels of images (K, N, C, H, W), and of their products with M terms, (1 + M, K, C)."""
    wide, pixels = _wide(images), (1, 3, 4)
    sums = [wide.sum(pixels), *((wide * term).sum(pixels) for term in terms)]
    return torch.stack(sums).to(sums_dtype(images.device))


def empty(shape: Sequence[int], *, like: Tensor) -> Tensor:
    """Return uninitialised images (K, N, C, H, W), in the layout in which kernels return theirs."""
    edges, count, channels, height, width = shape
    return like.new_empty(edges, count, height, width, channels).permute(0, 1, 4, 2, 3)


def sums_dtype(device: torch.device) -> torch.dtype:
    """Return the type of sums over pixels."""
    return torch.float32 if device.type == "mps" else torch.float64


def _rectified(x: Tensor, rescale: Tensor | None) -> Tensor:
    if rescale is not None:
        scale, shift = rescale[:, :, None, :, None, None].to(_wide(x).dtype)
        x = (x * scale + shift).to(x.dtype)
    return F.relu(x)


def _matrices(pointwise: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return (K, C_out, C)."""
    return torch.stack([weight.flatten(1) for weight in pointwise]).to(dtype)


def _depthwise(y: Tensor, weights: Sequence[Tensor] | None, edges: int, geometry: Geometry) -> Tensor:
    """Return (K, N, C, H_out, W_out)."""
    if weights is None:
        return y
    weight = torch.cat(list(weights)).to(y.dtype)
    _, stride, padding, dilation = geometry
    wide = F.conv2d(_side_by_side(y, edges), weight, None, stride, padding, dilation, len(weight))
    return wide.unflatten(1, (edges, -1)).movedim(1, 0)


def _side_by_side(y: Tensor, edges: int) -> Tensor:
    """Return (K or 1, N, C, H, W) as (N, K * C, H, W), channels_last."""
    wide = y.expand(edges, *y.shape[1:]).movedim(0, 1).flatten(1, 2)
    return wide.contiguous(memory_format=torch.channels_last)


def _flat(images: Tensor) -> Tensor:
    """Return (K, N, C, H, W) as (K, pixels, C)."""
    return images.permute(0, 1, 3, 4, 2).flatten(1, 3)


def _unflat(flat: Tensor, like: Tensor) -> Tensor:
    """Return (K, pixels, C) as (K, N, C, H, W) with the sides of `like`."""
    _, count, _, height, width = like.shape
    return flat.unflatten(1, (count, height, width)).permute(0, 1, 4, 2, 3)


def _wide(x: Tensor) -> Tensor:
    """Return x in at least float32."""
    return x if x.dtype == torch.float64 else x.float()


def _no_autocast(x: Tensor) -> torch.autocast:
    """Return the context in which types are what the code says."""
    return torch.autocast(x.device.type, enabled=False)
