"""The kernels in C++ (kernels.cpp): built by the machine's compiler on first use, which takes seconds, and kept.

The functions are those of src/kernels/portable.py, which documents them. Images of K edges lie one edge after another,
(K, N, H, W, C) in memory; a view with a larger step from pixel to pixel, or from edge to edge, is read as well.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from src.kernels import Geometry

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
_SUMS = torch.float64


def convolve(
    x: Tensor,
    rescale: Tensor | None,
    depthwise: Sequence[Tensor] | None,
    pointwise: Sequence[Tensor],
    geometry: Geometry,
    *,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See src/kernels/portable.py."""
    edges, channels_out = len(pointwise), len(pointwise[0])
    z = empty((edges, x.shape[1], channels_out, *geometry.size(*x.shape[3:])), like=x) if out is None else out
    sums = torch.empty(2, edges, channels_out, dtype=_SUMS)
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
    needs_images: bool,
    needs_weights: bool,
) -> tuple[Tensor | None, Tensor | None, list[Tensor], list[Tensor]]:
    """See src/kernels/portable.py."""
    edges, (channels_out, channels), taps = len(pointwise), pointwise[0].shape[:2], geometry.kernel**2
    x_grad = sums = weight_grads = None
    if needs_images and into is None:
        x_grad = empty(x.shape, like=x)
        sums = torch.empty(2, edges, channels, dtype=_SUMS)
    if needs_weights:
        weight_grads = x.new_empty(edges, (taps + channels_out) * channels)
    target = (into if x_grad is None else x_grad) if needs_images else None
    _call(
        "convolve_backward", x.dtype, _shape(x, z, geometry), _images(grad), _images(z), _array(mix, x), _images(x),
        _array(rescale, x), _weights(depthwise, edges), _weights(pointwise, edges), _images(target), sums, weight_grads,
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
    """See src/kernels/portable.py."""
    pooled = empty((*x.shape[:3], *geometry.size(*x.shape[3:])), like=x)
    _call("pool", x.dtype, _shape(x, pooled, geometry), int(largest), _images(x), _images(pooled))
    return pooled


def pool_backward(grad: Tensor, x: Tensor, geometry: Geometry, *, largest: bool, into: Tensor) -> None:
    """See src/kernels/portable.py."""
    shape = _shape(x, grad, geometry)
    _call("pool_backward", x.dtype, shape, int(largest), _images(grad), _images(x), _images(into))


def combine(out: Tensor, terms: Sequence[Tensor], coefficients: Tensor, constant: Tensor, *, add: bool) -> None:
    """See src/kernels/portable.py."""
    _call(
        "combine", out.dtype, _shape(out, out), int(add), _images(out), ctypes.c_int64(len(terms)),
        (_Images * len(terms))(*map(_view, terms)), _array(coefficients, out), _array(constant, out),
    )  # fmt: skip


def dots(images: Tensor, terms: Sequence[Tensor]) -> Tensor:
    """See src/kernels/portable.py."""
    edges, _, channels = images.shape[:3]
    sums = torch.empty(1 + len(terms), edges, channels, dtype=_SUMS)
    _call(
        "dots", images.dtype, _shape(images, images), _images(images), ctypes.c_int64(len(terms)),
        (_Images * len(terms))(*map(_view, terms)), sums,
    )  # fmt: skip
    return sums


def empty(shape: Sequence[int], *, like: Tensor) -> Tensor:
    """See src/kernels/portable.py."""
    edges, count, channels, height, width = shape
    return like.new_empty(edges, count, height, width, channels).permute(0, 1, 4, 2, 3)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None, with a line on stderr, where they cannot be built."""
    try:
        return ctypes.CDLL(str(_built()))
    except OSError as error:
        print(f"the fused form runs without compiled kernels, several times slower: {error}", file=sys.stderr)
        return None


def _built() -> Path:
    """Return the shared library for this source, compiler and processor; build it if it is not there.

    Raises:
        OSError: there is no compiler, it fails, or nothing can be written.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        raise OSError(f"no C++ compiler found (CXX, {', '.join(COMPILERS)})")
    command = [*compiler.split(), *FLAGS]
    key = hashlib.sha256(repr((command, SOURCE.read_bytes(), _processor())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "darts-template"
    path = folder / f"kernels-{key}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            target = Path(temporary, path.name)
            done = subprocess.run(
                [*command, str(SOURCE), "-o", str(target)], check=False, capture_output=True, text=True
            )
            if done.returncode:
                first = next((line for line in done.stderr.splitlines() if "error" in line), f"exit {done.returncode}")
                raise OSError(f"{' '.join(command)}: {first}")
            target.replace(path)
    return path


def _processor() -> str:
    """Return what tells processors apart for which a compiler's -march=native differs: a home may serve several."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return os.uname().machine
    return "".join(sorted({line for line in lines if line.startswith(("model", "flags", "CPU", "Features"))}))


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
    assert loaded is not None
    values = [
        ctypes.c_void_p(argument.data_ptr() if argument is not None else None)
        if argument is None or isinstance(argument, Tensor)
        else argument
        for argument in arguments
    ]
    getattr(loaded, f"{name}_{'float32' if dtype == torch.float32 else 'float64'}")(*values, torch.get_num_threads())
