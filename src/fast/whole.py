"""A whole cell in one call of the kernels, where all of its operations have a fast form.

What src/fast/fused.py does step by step for a cell with other operations, or with statistics that processes share, is
done here by src/fast/kernels/cells.cpp: a step of a small supernet is bound by the calls, not by what they compute. What
is found out of a cell's modules is remembered, and each pass reads no more than the tensors and the settings that may have
changed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors

from src.common.batch_norm import processes_joined_by
from src.fast import kernels
from src.fast.branches import (
    Branch,
    Called,
    Convolution,
    Pointwise,
    Pooling,
    Reduce,
    Same,
    Separable,
)
from src.fast.kernels import Geometry
from src.fast.kernels.cells import BranchOf, Graph, Kind, Norm, SourceOf, State
from src.fast.norms import Setting


class Reading(NamedTuple):
    """A state, the states that its edges add to, and their branches, each one candidate on all edges."""

    state: int
    first: int
    edges: int
    row: int  # the first of the edges' rows of mixing weights; -1 without any
    columns: Sequence[int]  # of the branches
    branches: Sequence[Branch]
    strides_of_none: frozenset[int] = frozenset()


class Whole:
    """A cell for images of one size and dtype, and modules in one setting."""

    def __init__(self, graph: Graph, readings: Sequence[Reading]) -> None:
        self.graph = graph
        branches = [branch for reading in readings for branch in reading.branches]
        self._convolutions = [c._parameters for b in branches for c in getattr(b, "convolutions", ())]
        self._norms = [norm for b in branches for norms in (b.middle_norms, b.norms) for norm in norms]
        self._dicts = [*map(vars, self._norms)]
        self._settings = [*map(_SETTING, self._dicts)]
        self._read: list[tuple[dict[str, Any], str]] = []
        self._buffers: list[tuple[dict[str, Any], str]] = []
        self.split = [0]  # of the weights, by source
        for reading in readings:
            for branch in reading.branches:
                self._read += [(c._parameters, "weight") for c in getattr(branch, "convolutions", ())]
                for norms in (branch.middle_norms, branch.norms):
                    if norms and norms[0].weight is not None:
                        self._read += [(n._parameters, name) for name in ("weight", "bias") for n in norms]
                    self._buffers += [(n._buffers, name) for name in _BUFFERS for n in norms]
            self.split.append(len(self._read))
        assert (len(self._read), len(self._buffers)) == (graph.weights, graph.running)
        self._shapes = [owner[key].shape for owner, key in self._read]
        self._buffer_shapes = [owner[key].shape for owner, key in self._buffers]
        self._buffer_dtypes = [torch.int64 if key == _BUFFERS[2] else graph.dtype for _, key in self._buffers]

    def holds(self) -> bool:
        """Return whether the BatchNorms still have the settings that the graph was made for."""
        return [*map(_SETTING, self._dicts)] == self._settings

    def tensors(self) -> tuple[list[Tensor], list[Tensor]] | None:
        """Return the weights and the buffers that the modules have now; None if cells.cpp cannot read them."""
        weights, buffers = ([owner[key] for owner, key in places] for places in (self._read, self._buffers))
        readable = (
            all(parameters["bias"] is None for parameters in self._convolutions)
            and all(buffer is not None for buffer in buffers)
            and {*map(type, weights), *map(type, buffers)} <= {Tensor, nn.Parameter}
            and [*map(_SHAPE, weights)] == self._shapes
            and [*map(_SHAPE, buffers)] == self._buffer_shapes
            and {*map(_DTYPE, weights)} <= {self.graph.dtype}
            and [*map(_DTYPE, buffers)] == self._buffer_dtypes
            and all(map(_IS_CPU, weights))
            and all(map(_IS_CPU, buffers))
            and all(map(Tensor.is_contiguous, buffers))
            and (all(map(Tensor.is_contiguous, weights)) or all(map(kernels.dense, weights)))
        )
        return (weights, buffers) if readable else None

    def output(self, inputs: Sequence[Tensor], rows: Tensor | None) -> Tensor | None:
        """Return the cell's output for some mixing weights; None if its tensors have changed too much."""
        tensors = self.tensors()
        if tensors is None:
            return None
        weights, buffers = tensors
        return cast(Tensor, _Pass.apply(self, buffers, rows, *inputs, *weights))


class Wholes:
    """The cell, or the operation, for each size and dtype of its inputs that came up."""

    def __init__(self) -> None:
        self._made: dict[Any, Whole | None] = {}

    def of(
        self,
        inputs: Sequence[Tensor],
        readings: Callable[[torch.dtype], Sequence[Reading]],
        *,
        outputs: int,
        columns: int,
    ) -> Whole | None:
        """Return what computes the last `outputs` of the states that `readings` have; None where it takes several calls."""
        key = tuple(x.shape for x in inputs), inputs[0].dtype
        whole = self._made.get(key)
        if key not in self._made or (whole is not None and not whole.holds()):
            whole = self._made[key] = whole_of(readings(inputs[0].dtype), inputs, outputs=outputs, columns=columns)
        return whole


_WIDEST_BORDER = 64  # pixels: cells.cpp writes the images with theirs
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_SETTING = itemgetter("training", "eps", "momentum", "affine")
_VERSION = attrgetter("_version")
_SHAPE, _DTYPE, _IS_CPU = attrgetter("shape"), attrgetter("dtype"), attrgetter("is_cpu")


class _Pass(torch.autograd.Function):
    """Mixing weights, inputs and all weights -> the output."""

    @staticmethod
    def forward(ctx: Any, whole: Whole, buffers: list[Tensor], rows: Tensor | None, *tensors: Tensor) -> Tensor:
        graph = whole.graph
        inputs, weights = tensors[: graph.inputs], tensors[graph.inputs :]
        addresses = [*map(Tensor.data_ptr, weights)]
        results = graph.forward(inputs, rows, addresses, [*map(Tensor.data_ptr, buffers)])
        # The weights are not saved: an optimiser may have changed them since. Then `backward` raises an error.
        ctx.whole, ctx.weights, ctx.versions = whole, weights, [*map(_VERSION, weights)]
        ctx.save_for_backward(rows, *inputs, *results)
        return results[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        check_first_order()
        whole, weights = ctx.whole, ctx.weights
        if [*map(_VERSION, weights)] != ctx.versions:
            raise RuntimeError("weights were changed in place between a forward pass and its backward pass")
        graph, split = whole.graph, whole.split
        rows, *tensors = ctx.saved_tensors
        inputs, results = tensors[: graph.inputs], tensors[graph.inputs :]
        needs = ctx.needs_input_grad[3:]
        needs_inputs, needs = needs[: graph.inputs], needs[graph.inputs :]
        needs_weights = [any(needs[begin:end]) for begin, end in itertools.pairwise(split)]
        input_grads, row_grads, weight_grads = graph.backward(
            inputs, rows, [*map(Tensor.data_ptr, weights)], results, grads[0],
            needs_inputs=needs_inputs, needs_weights=needs_weights,
        )  # fmt: skip
        parameter_grads: Sequence[Tensor | None] = [None] * len(weights)
        if weight_grads is not None:
            parameter_grads = _unflatten_dense_tensors(weight_grads, weights)
            if not all(needs_weights):
                parameter_grads = [g if need else None for g, need in zip(parameter_grads, needs, strict=True)]
        return None, None, None if row_grads is None else row_grads.to(rows.dtype), *input_grads, *parameter_grads


def check_first_order() -> None:
    """Raise an error in a backward pass that is to be differentiated itself.

    torch's once_differentiable raises too late: where the second derivative is asked for by torch.autograd.grad, it
    silently drops the path through the function.
    """
    if torch.is_grad_enabled():  # by create_graph=True
        raise RuntimeError("the fused supernet has no second derivatives; space.impl=merged and reference have")


def whole_of(readings: Sequence[Reading], inputs: Sequence[Tensor], *, outputs: int, columns: int) -> Whole | None:
    """Return the cell for inputs of these sizes; None where it has to be computed step by step.

    That is: operations without a fast form, statistics that several processes share, shapes that do not fit together,
    and what the plain form refuses.
    """
    states_count = max(reading.first + reading.edges for reading in readings)
    dtype, batch = inputs[0].dtype, len(inputs[0])
    if any(len(x) != batch for x in inputs) or any(column >= columns for r in readings for column in r.columns):
        return None
    states: list[State | None] = [None] * states_count
    states[: len(inputs)] = [State(*x.shape[1:]) for x in inputs]
    sources = []
    for reading in readings:
        x = states[reading.state]
        assert x is not None
        branches = []
        for column, branch in zip(reading.columns, reading.branches, strict=True):
            size = size_after(branch, x)
            if size is None or not _fits(branch, batch * size.height * size.width):
                return None
            if not all(states[reading.first + k] in (None, size) for k in range(reading.edges)):
                return None
            states[reading.first : reading.first + reading.edges] = [size] * reading.edges
            branches.append(_branch(branch, column))
        for stride in reading.strides_of_none:
            if State(x.channels, -(-x.height // stride), -(-x.width // stride)) != states[reading.first]:
                return None
        sources.append(SourceOf(reading.state, reading.first, reading.edges, reading.row, branches))
    if len({*states[-outputs:]}) != 1:
        return None
    graph = Graph(
        dtype, batch, inputs=len(inputs), outputs=outputs, states=cast(list[State], states), sources=sources,
        columns=columns,
    )  # fmt: skip
    return Whole(graph, readings)


def _fits(branch: Branch, pixels: int) -> bool:
    """Return whether the statistics of a branch are those of this process, and those of more than one pixel."""
    norms = [*branch.norms[:1], *branch.middle_norms[:1]]
    return not any(processes_joined_by(norm) > 1 or (norm.training and pixels == 1) for norm in norms)


def size_after(branch: Branch, x: State) -> State | None:
    """Return the size of what a branch makes of a state; None if it does not take it, or has no form in cells.cpp."""
    if branch.channels not in (None, x.channels) or isinstance(branch, Called):
        return None
    geometry = _geometry(branch)
    if isinstance(branch, Reduce):
        return State(branch.norms[0].num_features, (x.height + 1) // 2, (x.width + 1) // 2)
    height, width = geometry.size(x.height, x.width)
    fits = (
        min(height, width) >= 1
        and geometry.padding <= _WIDEST_BORDER
        and max(x.height, x.width) <= kernels.LONGEST_SIDE // 2
        and not (isinstance(branch, Separable) and branch.second.geometry.size(height, width) != (height, width))
    )
    channels = x.channels
    if isinstance(branch, Separable | Convolution | Pointwise):
        layers = branch.second if isinstance(branch, Separable) else branch.layers
        channels = len(layers.pointwise[0])
    return State(channels, height, width) if fits else None


def _geometry(branch: Branch) -> Geometry:
    if isinstance(branch, Pooling):
        return branch.geometry
    if isinstance(branch, Separable):
        return branch.first.geometry
    return branch.layers.geometry if isinstance(branch, Convolution | Pointwise) else Geometry()


_KINDS = {
    Same: Kind.SAME,
    Convolution: Kind.CONVOLUTION,
    Separable: Kind.SEPARABLE,
    Pointwise: Kind.POINTWISE,
    Reduce: Kind.REDUCE,
}


def _branch(branch: Branch, column: int) -> BranchOf:
    if isinstance(branch, Pooling):
        kind = Kind.MAX_POOL if branch.largest else Kind.AVERAGE_POOL
    else:
        kind = _KINDS[type(branch)]
    return BranchOf(kind, column, *_geometry(branch), _norm(branch.middle_setting), _norm(branch.setting))


def _norm(setting: Setting | None) -> Norm:
    return Norm() if setting is None else Norm(1, setting.training, setting.affine, setting.eps, setting.momentum)
