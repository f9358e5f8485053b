"""Whole cells in C++ (cells.cpp): one call for the pass through a cell, one for its gradients.

A cell is a graph of states, images (N, C, H, W). Sources read a state each and add to others what their branches make of it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.fast.kernels import SUFFIXES, SUMS
from src.fast.kernels.build import library


class Kind(IntEnum):
    """What a branch computes, before its BatchNorm: `Kind` of cells.cpp."""

    SAME = 0
    MAX_POOL = 1
    AVERAGE_POOL = 2
    CONVOLUTION = 3  # ReLU, depthwise and pointwise
    SEPARABLE = 4  # twice that, with a BatchNorm between them
    POINTWISE = 5  # ReLU and 1x1
    REDUCE = 6  # ReLU and two 1x1 of stride 2, the second of pixels with odd row and column


class Norm(ctypes.Structure):
    """The setting of BatchNorms. `present` is 0 where there are none."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("present", "training", "affine")),
        *((name, ctypes.c_double) for name in ("eps", "momentum")),
    ]


class BranchOf(ctypes.Structure):
    """A branch: its column among the mixing weights, its geometry, its BatchNorms."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("kind", "column", "kernel", "stride", "padding", "dilation")),
        ("middle", Norm),
        ("norm", Norm),
    ]


class State(NamedTuple):
    """The size of a state's images."""

    channels: int
    height: int
    width: int


class SourceOf(NamedTuple):
    """A source: the state it reads, the first of the `edges` states it adds to, and the first row of its mixing weights.

    Row -1 stands for weights of 1.
    """

    state: int
    first: int
    edges: int
    row: int
    branches: list[BranchOf]


class _State(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("channels", "height", "width")]


class _Source(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("state", "first", "edges", "row", "branches_begin", "branches_end")]


class _Graph(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("batch", "inputs", "states_count", "outputs", "sources_count", "columns")
        ),
        ("states", ctypes.POINTER(_State)),
        ("sources", ctypes.POINTER(_Source)),
        ("branches", ctypes.POINTER(BranchOf)),
    ]


class _Strided(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("image", "channel", "line", "pixel"))]


class Graph:
    """A cell as cells.cpp has it, for batches of one size.

    Args:
        dtype: of the images.
        batch: N.
        inputs: how many of the states, from the first, are given.
        outputs: how many of the last states are the output, side by side.
        states: their sizes.
        sources: in an order in which each state is complete before it is read.
        columns: of the mixing weights.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        batch: int,
        *,
        inputs: int,
        outputs: int,
        states: Sequence[State],
        sources: Sequence[SourceOf],
        columns: int,
    ) -> None:
        self.dtype, self.inputs, self.sources = dtype, inputs, sources
        branches = [branch for source in sources for branch in source.branches]
        flat, begin = [], 0
        for state, first, edges, row, own in sources:
            flat.append(_Source(state, first, edges, row, begin, begin + len(own)))
            begin += len(own)
        self._graph = _Graph(
            batch, inputs, len(states), outputs, len(sources), columns,
            (_State * len(states))(*states), (_Source * len(flat))(*flat), (BranchOf * len(branches))(*branches),
        )  # fmt: skip
        last = states[-1]
        self.output_shape = (batch, sum(state.channels for state in states[-outputs:]), last.height, last.width)
        sizes = (ctypes.c_int64 * 5)()
        self._function("sizes")(ctypes.byref(self._graph), sizes, None)
        self.numbers_size, self.weights, self.grads_size, self.running, arrays = sizes
        self.kept_sizes = (ctypes.c_int64 * arrays)()
        self._function("sizes")(ctypes.byref(self._graph), sizes, self.kept_sizes)

    def forward(
        self, inputs: Sequence[Tensor], rows: Tensor | None, weights: Sequence[int], running: Sequence[int]
    ) -> list[Tensor]:
        """Return the output, and arrays that `backward` needs; the running statistics in training move.

        Args:
            inputs: images, of any strides.
            rows: the mixing weights, (rows, columns), contiguous.
            weights: addresses of all weights, in the order of the branches, edge by edge.
            running: those of running mean and variance and of the number of batches, likewise.
        """
        x = inputs[0]
        batch, channels, height, width = self.output_shape
        output = x.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)
        numbers, kept = x.new_empty(self.numbers_size, dtype=SUMS), [x.new_empty(size) for size in self.kept_sizes]
        self._call(
            "forward", _strided(*inputs), _strided(output), _pointers(kept), _pointer(numbers), _addresses(weights),
            _addresses(running), _pointer(rows),
        )  # fmt: skip
        return [output, numbers, *kept]

    def backward(
        self,
        inputs: Sequence[Tensor],
        rows: Tensor | None,
        weights: Sequence[int],
        results: Sequence[Tensor],
        grad: Tensor,
        *,
        needs_inputs: Sequence[bool],
        needs_weights: Sequence[bool],
    ) -> tuple[list[Tensor | None], Tensor | None, Tensor | None]:
        """Return the gradients of the inputs, of the rows (in float64), and of all weights as one vector.

        Args:
            inputs: as `forward` had them, like rows and weights.
            rows: see there.
            weights: see there.
            results: what `forward` returned.
            grad: of the output.
            needs_inputs: of each input, whether its gradient is computed.
            needs_weights: of each source, whether those of its weights are; of others the vector has no values.
        """
        output, numbers, *kept = results
        input_grads = [
            torch.empty_like(x, memory_format=torch.channels_last) if needed else None
            for x, needed in zip(inputs, needs_inputs, strict=True)
        ]
        weight_grads = output.new_empty(self.grads_size) if any(needs_weights) else None
        row_grads = None if rows is None else torch.zeros(rows.shape, dtype=SUMS)
        self._call(
            "backward", _strided(*inputs), _strided(output), _strided(grad), _pointers(kept), _pointer(numbers),
            _addresses(weights), _pointer(rows), _strided(*input_grads),
            (ctypes.c_int64 * len(needs_weights))(*needs_weights), _pointer(weight_grads), _pointer(row_grads),
        )  # fmt: skip
        return input_grads, row_grads, weight_grads

    def _call(self, name: str, *arguments: Any) -> None:
        if self._function(name)(ctypes.byref(self._graph), *arguments, torch.get_num_threads()):
            raise MemoryError(f"no memory for the scratch images of cell_{name}")

    def _function(self, name: str) -> Any:
        loaded = library()
        assert loaded is not None, "images fit"
        return getattr(loaded, f"cell_{name}_{SUFFIXES[self.dtype]}")


def _strided(*images: Tensor | None) -> Any:
    """Return the addresses and strides of images (N, C, H, W); null for None."""
    return (_Strided * len(images))(*(_Strided() if x is None else _Strided(x.data_ptr(), *x.stride()) for x in images))


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return _addresses([tensor.data_ptr() for tensor in tensors])


def _addresses(values: Sequence[int]) -> Any:
    return (ctypes.c_void_p * len(values))(*values)
