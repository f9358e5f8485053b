"""The supernet in few large operators: the edges that leave one state are computed as one.

The plain form (src/spaces/cnn/cells.py) calls some forty small operators an edge, and a GPU, or a CPU with small images,
spends its time between them. Here all edges that leave a state, or both inputs of a cell, share

- one ReLU, and one pool of each kind;
- one depthwise convolution for each dilation: smaller kernels lie in the middle of the largest;
- one batched product for all pointwise convolutions, and one BatchNorm over the channels of all edges, whose weight is the
  mixing weight of each edge's candidate, so that a node is a plain sum.

All weights of a cell are put in place by one concatenation and one gather. Everything is made of torch's own operators: it
runs on any device and in any dtype, under autocast, and can be differentiated twice, in reverse and in forward mode.

Every identity is exact; only rounding differs. State dicts fit all forms. As in src/fast/fused.py, operations that
src/fast/known.py does not know are called, edge by edge in the order of the plain form, and the plain form of a cell runs
where the result could differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from src.common.batch_norm import SyncedBatchNorm, normalised, processes_joined_by
from src.fast.known import Known, Memory, is_original
from src.fast.layout import Before, Column, Layout, PlainFormNeededError, plain_form_is_wanted
from src.fast.norms import Statistics, setting_of
from src.methods.mixed_ops import shuffled
from src.spaces.cnn.cells import Cell, CellPlan, Supernet
from src.spaces.cnn.modules import DilatedConv, FactorizedReduce, Pool, ReLUConvBN, SeparableConv


class MergedSupernet(Supernet):
    """`Supernet` with merged cells."""

    def cell(self, plan: CellPlan, *, nodes: int, candidates: Sequence[str]) -> nn.Module:
        """Return the cell for a place in the stack."""
        return MergedCell(plan, nodes=nodes, candidates=candidates)


class MergedCell(Cell):
    """`Cell` with one operation for all edges that leave a state."""

    def __init__(self, plan: CellPlan, *, nodes: int, candidates: Sequence[str]) -> None:
        super().__init__(plan, nodes=nodes, candidates=candidates)
        self._memory = Memory()

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        """Map the outputs of cells k-2 and k-1 to this cell's output (N, nodes * channels, H, W)."""
        plain = plain_form_is_wanted() or _has_any_global_hook() or not is_original(Cell)
        if last.dim() == before_last.dim() == 4 and not plain:
            output = self._memory.recall(self, _Form).output(before_last, last)
            if output is not None:
                return output
        return super().forward(before_last, last)


class _Gather:
    """Parts of a vector, in any order, that one gather puts in place."""

    def __init__(self) -> None:
        self._indices: list[Tensor] = []
        self._index: Tensor | None = None

    def add(self, index: Tensor) -> int:
        """Note a part by the places of its entries, of which negative ones count from the end; return its own place."""
        self._indices.append(index)
        return len(self._indices) - 1

    def take(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Return the parts of a vector, which always has the same length."""
        if self._index is None or self._index.device != vector.device:
            index = torch.cat(self._indices)
            self._index = index.where(index >= 0, index + len(vector)).to(vector.device)
        return vector.index_select(0, self._index).split([len(index) for index in self._indices])


class _Weights:
    """Weights of many convolutions, assembled into a few tensors by one concatenation and one gather."""

    def __init__(self) -> None:
        self.convolutions: list[nn.Conv2d] = []
        self._length = 0
        self._shapes: list[tuple[int, ...]] = []
        self._gather = _Gather()

    def add(self, convolutions: Sequence[nn.Conv2d], shape: Sequence[int], *, side: int | None = None) -> int:
        """Note a tensor of the given shape that holds weights one after the other, and return its place.

        `side` is that of the kernels in it; smaller ones lie in the middle of zeros.
        """
        indices = []
        for convolution in convolutions:
            weight = cast(Tensor, convolution._parameters["weight"])
            index = self._length + torch.arange(weight.numel()).view(weight.shape)
            if side is not None:  # the last entry, which `assemble` makes zero
                index = F.pad(index, [(side - weight.shape[-1]) // 2] * 4, value=-1)
            indices.append(index.flatten())
            self.convolutions.append(convolution)
            self._length += weight.numel()
        self._shapes.append(tuple(shape))
        return self._gather.add(torch.cat(indices))

    def assemble(self) -> list[Tensor] | None:
        """Return the tensors that were noted; None where a weight is not what a module of this kind has."""
        weights = [cast(Tensor, convolution._parameters["weight"]) for convolution in self.convolutions]
        if not weights:
            return []
        first = weights[0]
        for weight in weights:
            if type(weight) not in (Tensor, nn.Parameter) or weight.dtype != first.dtype:
                return None
        parts = self._gather.take(_flatten_dense_tensors([*weights, first.new_zeros(1)]))
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]


class _Norms(Statistics):
    """The BatchNorms of a cell, in one pass."""

    def normalise(
        self, x: Tensor, norms: Sequence[nn.BatchNorm2d], weight: Tensor | None = None, *, copies: int = 1
    ) -> Tensor:
        """Return x (N, M * C, H, W), normalised and times weight (M * C,), by the BatchNorms of its M parts.

        Each part has `copies` BatchNorms, one after the other, which all see it.

        Raises:
            PlainFormNeededError: the BatchNorms cannot be computed as one, or the batch has one pixel and no variance.
        """
        setting = setting_of(norms)
        if setting is None:
            raise PlainFormNeededError
        count = x.shape[0] * x.shape[2] * x.shape[3]
        if x.shape[1] * copies != setting.channels * len(norms) or (setting.training and count == 1):
            raise PlainFormNeededError
        weight = None if weight is None else weight.to(setting.dtype)
        if not setting.training:
            assert copies == 1
            mean, variance = (
                torch.cat([cast(Tensor, norm._buffers[name]) for norm in norms])
                for name in ("running_mean", "running_var")
            )
            output = F.batch_norm(x, mean, variance, weight, eps=setting.eps)
        elif setting.kind is SyncedBatchNorm and processes_joined_by(norms[0]) > 1:
            output, mean, variance = normalised(x, setting.eps)
            output = output if weight is None else output * weight[:, None, None]
            output = output.to(x.dtype)
        else:
            # A momentum of 1 leaves the batch's own statistics, the variance with Bessel's correction.
            mean, variance = x.new_zeros(2, x.shape[1], dtype=setting.dtype).unbind()
            output = F.batch_norm(x, mean, variance, weight, training=True, momentum=1.0, eps=setting.eps)
        if setting.training:
            shape = -1, copies, setting.channels
            of_norms = [v.detach().view(-1, 1, setting.channels).expand(shape).flatten(0, 1) for v in (mean, variance)]
            self.add(norms, *of_norms)
        return output


class _Pass:
    """One forward pass through a cell: its assembled weights, its mixing weights and its BatchNorms."""

    def __init__(self, weights: Sequence[Tensor], rows: Sequence[Tensor]) -> None:
        self.weights = weights
        self.rows = rows
        self.norms = _Norms()


class _Convolutions:
    """Depthwise and pointwise convolutions of one stride and dilation, each followed by a BatchNorm.

    The M = operations * S * K layers lie in the order (operations, S states, K edges of each). The first `halves` operations
    are the first halves of separable convolutions, which go on to `second`.
    """

    def __init__(
        self,
        weights: _Weights,
        layers: list[list[Any]],
        nodes: int,
        halves: int = 0,
        second: _Convolutions | None = None,
        rows: int | None = None,
    ) -> None:
        """Take the layers of each operation, of all edges, which lead to `nodes` nodes, and the place of their rows."""
        first = layers[0][0]
        self.stride, self.dilation = first[1].stride[0], first[1].dilation[0]
        self.channels = first[1].in_channels
        self.count, self.nodes, self.halves, self.second, self.rows = len(layers), nodes, halves, second, rows
        flat = [layer for column in layers for layer in column]
        self.edges = len(layers[0])
        self.side = max(layer[1].kernel_size[0] for layer in flat)
        channels = self.channels
        self.depthwise = weights.add(
            [layer[1] for layer in flat], (len(flat) * channels, 1, self.side, self.side), side=self.side
        )
        self.pointwise = weights.add([layer[2] for layer in flat], (len(flat), channels, channels))
        self.norms = [layer[3] for layer in flat]

    def of_states(self, x: Tensor, now: _Pass) -> Tensor:
        """Return what K edges of each state add to their nodes, (N, K, C, h, w), of rectified states (N, S, C, H, W)."""
        stride, dilation, height, width = self.stride, self.dilation, *x.shape[3:]
        if stride % dilation == 0:  # only pixels that are `dilation` apart are read
            return self._of_images(self._spread(x[..., ::dilation, ::dilation]), now, stride // dilation, 1)
        if stride > 1:
            return self._of_images(self._spread(x), now, stride, dilation)
        # A dilated convolution is one without dilation of each of the dilation ** 2 images of every so many-th pixel. cuDNN's
        # own, channels_last, takes 10 to 15 times as long as one without dilation.
        x = F.pad(x, (0, -width % dilation, 0, -height % dilation)) if width % dilation or height % dilation else x
        phases = x.unflatten(4, (-1, dilation)).unflatten(3, (-1, dilation)).permute(0, 4, 6, 1, 2, 3, 5)
        z = self._depthwise(self._spread(phases.flatten(0, 2)), now, 1, 1)
        z = z.unflatten(0, (-1, dilation, dilation)).permute(0, 3, 4, 1, 5, 2)
        z = z.reshape(len(x), -1, *x.shape[3:])
        return self._of_depthwise(z[..., :height, :width], now)

    def _spread(self, x: Tensor) -> Tensor:
        """Return a copy of the states (N, S, C, H, W) for each operation and edge: (N, M * C, H, W), channels_last.

        torch has no fast depthwise convolution with several outputs a channel, and its fast one is channels_last.
        """
        count, states, channels, height, width = x.shape
        spread = x.permute(0, 3, 4, 1, 2)[:, :, :, None, :, None]
        spread = spread.expand(count, height, width, self.count, states, self.edges // states, channels)
        return spread.reshape(count, height, width, -1).permute(0, 3, 1, 2)

    def _depthwise(self, x: Tensor, now: _Pass, stride: int, dilation: int) -> Tensor:
        padding = dilation * (self.side // 2)
        return F.conv2d(x, now.weights[self.depthwise], None, stride, padding, dilation, groups=x.shape[1])

    def _of_images(self, x: Tensor, now: _Pass, stride: int = 1, dilation: int = 1) -> Tensor:
        return self._of_depthwise(self._depthwise(x, now, stride, dilation), now)

    def _of_depthwise(self, z: Tensor, now: _Pass) -> Tensor:
        """Return what the edges add to their nodes, given the output of the depthwise convolution (N, M * C, h, w)."""
        count, wide, height, width = z.shape
        z = z.reshape(count, -1, self.channels, height * width)
        z = torch.matmul(now.weights[self.pointwise], z).view(count, wide, height, width)
        halves, weight = self.halves * self.edges * self.channels, None
        if self.rows is not None:
            weight = now.rows[self.rows][:, None].expand(-1, self.channels).reshape(-1)
            if halves:
                weight = torch.cat([weight.new_ones(halves), weight])
        z = now.norms.normalise(z, self.norms, weight)
        results = []
        if self.rows is not None:
            finals = z if not halves else z[:, halves:]
            results.append(finals.reshape(count, -1, self.nodes, self.channels, height, width).sum(1))
        if self.second is not None:
            middle = F.relu(z if self.rows is None else z[:, :halves])
            results.append(self.second._of_images(middle.contiguous(memory_format=torch.channels_last), now))
        return results[0] if len(results) == 1 else results[0] + results[1]


class _Reductions:
    """FactorizedReduce on K edges of each of S states, whose channels come half from even and half from odd pixels."""

    def __init__(self, weights: _Weights, operations: Sequence[Any], states: int) -> None:
        first = operations[0]
        self.states, self.channels = states, first.norm.num_features
        self.parts = []
        for name in ("even", "odd"):
            convolutions = [getattr(operation, name) for operation in operations]
            rows = len(operations) // states * convolutions[0].out_channels
            self.parts.append(weights.add(convolutions, (states, rows, convolutions[0].in_channels)))

    def __call__(self, x: Tensor, now: _Pass) -> Tensor:
        """Return the outputs before their BatchNorms, (N, S * K * C, H / 2, W / 2), of rectified states (N, S, C, H, W)."""
        count, states, channels, height, width = x.shape
        padded = F.pad(x, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x
        halves = []
        for part, pixels in zip(self.parts, (x[..., ::2, ::2], padded[..., 1::2, 1::2]), strict=True):
            z = torch.matmul(now.weights[part], pixels.reshape(count, states, channels, -1))
            halves.append(z.view(count, states, -1, self._half(part), z.shape[-1]))
        height, width = (height + 1) // 2, (width + 1) // 2
        return torch.cat(halves, dim=3).view(count, -1, height, width)

    def _half(self, part: int) -> int:
        half = self.channels // 2
        return half if part == self.parts[0] else self.channels - half


class _Front:
    """S states that are complete at once, and the K edges that leave each of them, as one operation."""

    def __init__(
        self, columns: list[list[Column]], offsets: list[list[int]], weights: _Weights, rows: _Gather, k: int
    ) -> None:
        """Take the columns of each state, where in the cell's rows the mixing weights of each edge begin, and `Layout.k`."""
        self.states, self.edges, self.k = len(columns), len(offsets[0]), k

        def rows_of(*places: int) -> int:
            return rows.add(torch.tensor([o + place for place in places for of_state in offsets for o in of_state]))

        self.called: list[int] = []  # the candidates without a merged form
        self.identities: list[int] = []
        self.reductions: list[tuple[_Reductions, list[nn.BatchNorm2d], int]] = []  # and where their rows are
        self.strides_of_none = set()
        layers: dict[tuple[int, int], list[tuple[int, list[Any], list[Any] | None]]] = {}
        pools: list[tuple[int, list[Any]]] = []
        for place, column in enumerate(zip(*columns, strict=True)):
            operations = [operation for part in column for operation in part.operations]
            what = _mergeable([known for part in column for known in part.known])
            if what is None:
                self.called.append(place)
            elif column[0].zero is not None:
                self.strides_of_none.add(column[0].zero)
            elif what.kind is nn.Identity:
                self.identities.append(place)
            elif what.kind is Pool:
                pools.append((place, operations))
            elif what.kind is FactorizedReduce:
                norms = [operation.norm for operation in operations]
                self.reductions.append((_Reductions(weights, operations, self.states), norms, rows_of(place)))
            else:
                separable = what.kind is SeparableConv
                first = [operation[0] if separable else operation for operation in operations]
                second = [operation[1] for operation in operations] if separable else None
                key = first[0][1].stride[0], first[0][1].dilation[0]
                layers.setdefault(key, []).append((place, first, second))
        self.convolutions = []
        for group in layers.values():
            group.sort(key=lambda layer: layer[2] is None)  # first halves, then whole operations
            halves = [layer for layer in group if layer[2] is not None]
            wholes = group[len(halves) :]
            second = None
            if halves:
                layers_of_second = [cast(list[Any], layer[2]) for layer in halves]
                places = rows_of(*(place for place, _, _ in halves))
                second = _Convolutions(weights, layers_of_second, self.edges, rows=places)
            places = rows_of(*(place for place, _, _ in wholes)) if wholes else None
            self.convolutions.append(
                _Convolutions(weights, [layer[1] for layer in group], self.edges, len(halves), second, places)
            )
        pools.sort(key=lambda pool: isinstance(pool[1][0].norm, nn.Identity))  # those with a BatchNorm first
        self.pools = [operations[0].pool for _, operations in pools]
        normed = [operations for _, operations in pools if not isinstance(operations[0].norm, nn.Identity)]
        self.normed = len(normed)
        self.pool_norms = [operation.norm for operations in normed for operation in operations]
        shared = [place for place, _ in pools] + self.identities
        places = [offsets[s][e] + place for e in range(self.edges) for place in shared for s in range(self.states)]
        self.shared_rows = rows.add(torch.tensor(places)) if shared else None
        self.past_rows = rows.add(torch.tensor(offsets).t().flatten() + len(columns[0])) if k > 1 else None

    @property
    def is_merged(self) -> bool:
        """Whether any candidate has a merged form."""
        return bool(self.convolutions) or bool(self.reductions) or self.shared_rows is not None

    def __call__(self, x: Tensor, now: _Pass) -> Tensor:
        """Return what the edges add to the K nodes, (N, K, C, H, W), of states (N, S, C, H, W).

        With partial channels those of the nodes are not shuffled yet.

        Raises:
            PlainFormNeededError: candidates differ in shape, or the plain form raises an error.
        """
        if self.k == 1:
            return self._mixed(x, now)
        seen = x.shape[2] // self.k
        mixed = self._mixed(x[:, :, :seen].contiguous(), now)
        return torch.cat([mixed, self._past(x[:, :, seen:], mixed.shape, now)], dim=2)

    def _past(self, x: Tensor, like: torch.Size, now: _Pass) -> Tensor:
        """Return what goes past the candidates, with the edges' weights, (N, K, C, H, W), of channels (N, S, C, H, W)."""
        assert self.past_rows is not None
        count, states, channels = x.shape[:3]
        x = x.flatten(1, 2)
        if like[3:] != x.shape[2:]:
            x = F.max_pool2d(x, 2, ceil_mode=True)
        if like[3:] != x.shape[2:]:
            raise PlainFormNeededError
        rows = now.rows[self.past_rows].view(self.edges, states).to(x.dtype)
        return torch.matmul(rows, x.reshape(count, states, -1)).view(count, self.edges, channels, *x.shape[2:])

    def _mixed(self, x: Tensor, now: _Pass) -> Tensor:
        """Return what the candidates add to the K nodes."""
        count, states, channels, height, width = x.shape
        terms = []
        if self.convolutions or self.reductions:
            rectified = F.relu(x)
            terms += [convolutions.of_states(rectified, now) for convolutions in self.convolutions]
            for reduction, norms, rows in self.reductions:
                z = reduction(rectified, now)
                weight = now.rows[rows][:, None].expand(-1, channels).reshape(-1)
                z = now.norms.normalise(z, norms, weight)
                terms.append(z.view(count, states, self.edges, channels, *z.shape[2:]).sum(1))
        if self.shared_rows is not None:
            terms.append(self._shared(x, now))
        shape = terms[0].shape
        for of_none in ((count, self.edges, channels, -(-height // s), -(-width // s)) for s in self.strides_of_none):
            if of_none != shape:
                raise PlainFormNeededError
        if any(term.shape != shape for term in terms):
            raise PlainFormNeededError
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def _shared(self, x: Tensor, now: _Pass) -> Tensor:
        """Return what pools and identities, which are the same on all edges of a state, add to the nodes."""
        assert self.shared_rows is not None
        count, states, channels, height, width = x.shape
        rows = now.rows[self.shared_rows].view(self.edges, -1).to(x.dtype)
        flat = x.view(count, states * channels, height, width)
        images = [pool(flat) for pool in self.pools] + [flat] * len(self.identities)
        if len({image.shape for image in images}) > 1:
            raise PlainFormNeededError
        height, width = images[0].shape[2:]
        shape = count, self.edges, channels, height, width
        results = []
        if self.normed:
            normed = torch.cat(images[: self.normed], dim=1) if self.normed > 1 else images[0]
            images = images[self.normed :]
            if self.pool_norms[0].training:
                images.insert(0, now.norms.normalise(normed, self.pool_norms, copies=self.edges))
            else:  # each edge has running statistics of its own
                of_normed, rows = rows.split([self.normed * states, rows.shape[1] - self.normed * states], dim=1)
                normed = normed.view(count, -1, 1, channels, height, width).expand(-1, -1, self.edges, -1, -1, -1)
                weight = of_normed.t()[:, :, None].expand(-1, -1, channels).reshape(-1)
                normed = now.norms.normalise(normed.reshape(count, -1, height, width), self.pool_norms, weight)
                results.append(normed.view(count, -1, *shape[1:]).sum(1))
        if images:
            joined = torch.cat(images, dim=1) if len(images) > 1 else images[0]
            mixed = torch.matmul(rows, joined.reshape(count, rows.shape[1], -1))
            results.append(mixed.view(shape))
        return results[0] if len(results) == 1 else results[0] + results[1]


def _mergeable(column: Sequence[Known | None]) -> Known | None:
    """Return what all operations of a column are, or None where they have no merged form."""
    first = column[0]
    if first is None or any(other != first for other in column):
        return None
    arguments: Any = first.arguments
    if first.kind in (DilatedConv, SeparableConv):
        kernel, affine = arguments[1], arguments[-1]
        return first if kernel % 2 and not affine else None
    if first.kind is FactorizedReduce:
        channels_in, channels_out, affine = arguments
        return first if channels_in == channels_out and not affine else None
    return None if first.kind in (ReLUConvBN, nn.BatchNorm2d) else first


_Circumstances = tuple[torch.Size, torch.Size, bool]  # the shapes of a cell's inputs, and whether it is trained


class _Form(Layout):
    """What a cell is made of, and how its parts are merged."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__(cell)
        self.cell = cell
        self.refused: set[_Circumstances] = set()  # in which the plain form is needed
        self.tried: set[_Circumstances] = set()  # in which it is not
        if not self.is_usable:
            return
        self.weights, self.rows = _Weights(), _Gather()  # of the convolutions, and of the cell's mixing weights
        self.input_reductions: dict[int, _Reductions] = {}
        self.input_weights: dict[int, int] = {}
        for place, (module, what) in enumerate(self.inputs):
            merged: Any = module
            if what is None or what.arguments[-1:] != (False,):  # unknown, or a BatchNorm with parameters
                continue
            if what.kind is FactorizedReduce:
                self.input_reductions[place] = _Reductions(self.weights, [module], 1)
            elif what.kind is ReLUConvBN:
                self.input_weights[place] = self.weights.add([merged[1]], merged[1].weight.shape)
        offsets, begin = [], 0
        for edges, columns in zip(self.states, self.columns, strict=True):
            length = len(columns) + (self.k > 1)
            offsets.append([begin + place * length for place in range(len(edges))])
            begin += len(edges) * length
        self.offsets = offsets
        alike = [[column.known for column in self.columns[state]] for state in (0, 1)]
        groups = [[0, 1]] if alike[0] == alike[1] else [[0], [1]]
        groups += [[state] for state in range(2, len(self.states))]
        self.fronts = [
            (
                group,
                _Front([self.columns[s] for s in group], [offsets[s] for s in group], self.weights, self.rows, self.k),
            )
            for group in groups
        ]
        self.fronts_by_state = [front for group, front in self.fronts for _ in group]
        self.is_usable = all(front.is_merged and not (front.called and self.k > 1) for _, front in self.fronts)
        self.called = [
            operation
            for group, front in self.fronts
            for state in group
            for place in front.called
            for operation in self.columns[state][place].operations
        ]
        self.called += [
            module
            for place, (module, _) in enumerate(self.inputs)
            if place not in self.input_weights and place not in self.input_reductions
        ]

    def output(self, before_last: Tensor, last: Tensor) -> Tensor | None:
        """Return the cell's output, or None where the plain form is needed; then nothing was changed."""
        circumstances = before_last.shape, last.shape, self.cell.training
        if not self.is_usable or circumstances in self.refused:
            return None
        if last.is_cpu and len(last) == 1:
            # The backward pass of torch's BatchNorm (2.14, CPU) gives wrong numbers for gradients whose batch stride, where
            # the batch is 1, is another than the images'.
            return None
        rows = [edge.mixing_weights(last.device) for edges in self.states for edge in edges]
        weights = self.weights.assemble()
        if weights is None or any(row is None for row in rows):
            return None
        flat = cast(list[Tensor], rows)
        now = _Pass(weights, self.rows.take(torch.cat(flat)))
        # Whether called operations leave room for another order is found out once: it takes copies of their buffers.
        before = None if circumstances in self.tried or not self.called else Before(self.called, last.device)
        try:
            output = self._output(before_last, last, flat, now)
            if before is not None and before.random_numbers_were_drawn():  # in another layout than in the plain form
                raise PlainFormNeededError
        except PlainFormNeededError:
            if before is not None:
                before.restore()
            self.refused.add(circumstances)
            return None
        self.tried.add(circumstances)
        now.norms.update_norms()
        return output

    def _output(self, before_last: Tensor, last: Tensor, rows: list[Tensor], now: _Pass) -> Tensor:
        states = self._inputs(before_last, last, now)
        total: Tensor | None = None  # what the nodes that are not complete have so far
        for group, front in self.fronts:
            if total is not None and front.edges < total.shape[1]:
                first, total = total.split([1, total.shape[1] - 1], dim=1)
                states.append(self._node(first.squeeze(1), states, rows))
            x = torch.stack(states, dim=1) if len(group) > 1 else states[group[0]].unsqueeze(1)
            more = front(x, now)
            if total is not None and more.shape != total.shape:
                raise PlainFormNeededError
            total = more if total is None else total + more
        assert total is not None
        states.append(self._node(total.squeeze(1), states, rows))
        return torch.cat(states[2:], dim=1)

    def _inputs(self, before_last: Tensor, last: Tensor, now: _Pass) -> list[Tensor]:
        """Return the first two states."""
        states = []
        for place, x in enumerate((before_last, last)):
            module: Any = self.inputs[place][0]
            if place in self.input_weights:
                z = F.conv2d(F.relu(x).contiguous(), now.weights[self.input_weights[place]])
                states.append(now.norms.normalise(z, [module[2]]))
            elif place in self.input_reductions:
                z = self.input_reductions[place](F.relu(x)[:, None], now)
                states.append(now.norms.normalise(z, [module.norm]))
            else:
                states.append(module(x).contiguous())
        if states[0].shape != states[1].shape:
            raise PlainFormNeededError
        return states

    def _node(self, merged: Tensor, states: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
        """Return the node behind some states: the sum of its merged operations, and of those that are called."""
        node = len(states) - 2
        total, edge = merged, 0
        for state, x in enumerate(states):
            place = node - max(0, state - 1)  # of the node among those that the state's edges lead to
            for candidate in self.fronts_by_state[state].called:
                if x.is_inference():  # which counts no writes
                    raise PlainFormNeededError
                version = x._version
                output = self.columns[state][candidate].operations[place](x)
                # The plain form gives all candidates one tensor: what one of them writes into it, the next ones read.
                if x._version != version or not isinstance(output, Tensor) or output.shape != merged.shape:
                    raise PlainFormNeededError
                total = total + rows[edge + place][candidate] * output
            edge += len(self.states[state])
        return total if self.k == 1 else shuffled(total, self.k)
