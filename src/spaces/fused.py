"""The supernet's function of the same parameters, written to be fast. A state dict fits both.

The plain supernet (src/spaces/cells.py) is bound by memory traffic and by the number of kernels, not by arithmetic. A
cell here differs from a plain one in what it computes once instead of per edge (`FusedCell`), in BatchNorms that are
folded into the convolution before them (`_fold`), and in hand-written gradients (`_Depthwise`, `_NormReLU`, `_Mix`,
`_Normalise`). Every identity is exact; only rounding differs. Inside, images are channels_last, so that "flat" (pixels,
channels) matrices are views, and K means the operations that one call handles together.

The gradients cannot be differentiated again (create_graph=True is refused): an exact hypergradient needs the plain
supernet. Times in this file are medians of 15 to 31 calls by two threads of an AMD EPYC, in two readings where there are two,
float32, for 64 images of 32x32 with 16 channels unless they say otherwise. `python -m src.bench search` has the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, wraps
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.spaces.batch_norm import joined, processes_joined_by
from src.spaces.cells import Cell, CellPlan, Node, Supernet
from src.spaces.choices import LayerChoice
from src.spaces.operations import DilatedConv, FactorizedReduce, Pool, ReLUConvBN, SeparableConv, Zero


class FusedSupernet(Supernet):
    """`Supernet` with fused cells."""

    def cell(self, plan: CellPlan, *, nodes: int, candidates: Sequence[str]) -> nn.Module:
        """Return the cell for a place in the stack."""
        return FusedCell(plan, nodes=nodes, candidates=candidates)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        statistics = _Statistics()
        convolution, norm = cast(nn.Sequential, self.stem)
        before_last = last = _batch_norm(convolution(_channels_last(images)), [norm], statistics)[0]
        statistics.update_norms()
        for cell in self.cells:
            before_last, last = last, cell(before_last, last)
        return self.classifier(last.mean(dim=(2, 3)))


class FusedCell(Cell):
    """`Cell`, evaluated state by state: what several edges would compute from one state is computed once.

    `none` is never computed; the ReLU of a state, its pools with their BatchNorms (which have no parameters), and the
    pixels that operations of stride 2 read are shared by all its edges. An operation without a fused form is called as
    it is; modules with one are not called (their parameters are read), so that hooks on them do not run. All BatchNorms
    of a cell have the same momentum and eps, as src/spaces/operations.py makes them.
    """

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        """Map the outputs of cells k-2 and k-1 to this cell's output (N, nodes * channels, H, W)."""
        statistics = _Statistics()
        states = [
            _Source(x).preprocess(module, statistics)
            for x, module in ((before_last, self.preprocess0), (last, self.preprocess1))
        ]
        nodes = [cast(Node, node) for node in self.nodes]
        sums = [_Sum() for _ in nodes]
        for index in range(2 + len(nodes)):
            if index >= 2:
                rows = [cast(LayerChoice, edge).weights for edge in nodes[index - 2].edges]
                states.append(sums[index - 2](torch.stack(cast("list[Tensor]", rows)), statistics))
            targets = range(max(0, index - 1), len(nodes))
            if targets:
                edges = [cast(LayerChoice, nodes[target].edges[index]) for target in targets]
                _send(index, states[index], edges, [sums[target] for target in targets], statistics)
        statistics.update_norms()
        return torch.cat(states[2:], dim=1)


def _send(index: int, state: Tensor, edges: list[LayerChoice], sums: list[_Sum], statistics: _Statistics) -> None:
    """Apply the operations of all edges that leave `state`, and hand each result to the sum of the edge's node.

    Only the very classes of src/spaces/operations.py have a fused form, and only if their BatchNorm has no parameters.
    """
    source = _Source(state)
    for column, name in enumerate(edges[0].candidates):
        operations: list[Any] = [edge.candidates[name] for edge in edges]
        first = operations[0]
        layers: list[DilatedConv] = []
        if type(first) is Zero:
            continue
        if type(first) is DilatedConv and _has_plain_norm(first[3]):
            layers = operations
            outputs = source.depthwise([layer[1] for layer in layers])
        elif type(first) is SeparableConv and _has_plain_norm(first[0][3]):  # pyright: ignore[reportIndexIssue]
            middles = source.norm_relu([operation[0] for operation in operations], statistics)
            layers = [operation[1] for operation in operations]
            outputs = [_depthwise(middle, [layer[1]])[0] for middle, layer in zip(middles, layers, strict=True)]
        elif type(first) is Pool and _has_plain_norm(first.norm):
            outputs = source.pool(operations, statistics)
        elif type(first) is FactorizedReduce:
            outputs = source.factorized_reduce(operations, statistics)
        else:
            outputs = [operation(state) for operation in operations]
        for node, output, layer in zip(sums, outputs, layers or [None] * len(sums), strict=True):
            node.add((index, column), output, layer)


def _has_plain_norm(norm: nn.Module) -> bool:
    return isinstance(norm, nn.BatchNorm2d) and norm.weight is None


class _Source:
    """A state, and what its edges share."""

    def __init__(self, state: Tensor) -> None:
        self.state = state

    @cached_property
    def relu(self) -> Tensor:
        """ReLU of the state."""
        return F.relu(self.state)

    @cached_property
    def even(self) -> Tensor:
        """ReLU of the state at pixels of even row and column."""
        return _channels_last(self.relu[:, :, ::2, ::2])

    def depthwise(self, convs: Sequence[nn.Module]) -> Sequence[Tensor]:
        """Apply depthwise convolutions of one geometry. At stride 2, a dilation of 2 reads even pixels only."""
        conv = cast(nn.Conv2d, convs[0])
        if conv.stride == conv.dilation == (2, 2):
            return _depthwise(self.even, convs, subsampled=2)
        return _depthwise(self.relu, convs)

    def norm_relu(self, layers: Sequence[DilatedConv], statistics: _Statistics) -> Sequence[Tensor]:
        """Apply layers of one geometry, and the ReLU that follows them in a separable convolution."""
        call = _Call(_norms(layers), statistics, [])
        outputs = _NormReLU.apply(call, _pointwise_weights(layers), *self.depthwise([layer[1] for layer in layers]))
        return cast("tuple[Tensor, ...]", outputs)

    def pool(self, pools: Sequence[Pool], statistics: _Statistics) -> list[Tensor]:
        """Pool and normalise for each edge: in training once, since the batch's statistics serve every edge."""
        return _batch_norm(pools[0].pool(self.state), [pool.norm for pool in pools], statistics)

    def factorized_reduce(self, operations: Sequence[FactorizedReduce], statistics: _Statistics) -> list[Tensor]:
        """Apply FactorizedReduces; the pixels they read are gathered once, not by each strided convolution."""
        odd = self.relu[:, :, 1::2, 1::2]
        missing = (0, self.relu.shape[3] % 2, 0, self.relu.shape[2] % 2)
        odd = _channels_last(F.pad(odd, missing) if any(missing) else odd)
        outputs = []
        for operation in operations:
            halves = F.conv2d(self.even, operation.even.weight), F.conv2d(odd, operation.odd.weight)
            outputs += _batch_norm(torch.cat(halves, dim=1), [operation.norm], statistics)
        return outputs

    def preprocess(self, module: nn.Module, statistics: _Statistics) -> Tensor:
        """Bring the state, the output of an earlier cell, to this cell's size."""
        if isinstance(module, FactorizedReduce):
            return self.factorized_reduce([module], statistics)[0]
        _, convolution, norm = cast(ReLUConvBN, module)
        return _batch_norm(convolution(self.relu), [norm], statistics)[0]


class _Sum:
    """The incoming terms of a node, and their sum weighted by the alphas. A place is (edge, candidate)."""

    def __init__(self) -> None:
        self.places: list[tuple[int, int]] = []
        self.terms: list[Tensor] = []
        self.folded_places: list[tuple[int, int]] = []
        self.folded: list[Tensor] = []
        self.layers: list[DilatedConv] = []

    def add(self, place: tuple[int, int], term: Tensor, layer: DilatedConv | None = None) -> None:
        """Add a term; with a layer, `term` is its depthwise output, and its pointwise convolution and BatchNorm follow."""
        if layer is None:
            self.places.append(place)
            self.terms.append(term)
        else:
            self.folded_places.append(place)
            self.folded.append(term)
            self.layers.append(layer)

    def __call__(self, rows: Tensor, statistics: _Statistics) -> Tensor:
        """Return the sum (N, C, H, W), weighted by rows (edges, candidates)."""
        terms = [*self.terms, *self.folded]
        assert terms, "a LayerChoice has a candidate besides none"
        weights = _pointwise_weights(self.layers) if self.layers else None
        call = _Call(_norms(self.layers), statistics, [*self.places, *self.folded_places])
        return cast(Tensor, _Mix.apply(call, rows, weights, *terms))


class _Call(NamedTuple):
    """What `_NormReLU` and `_Mix` are told besides tensors: the K BatchNorms, and the place of each term."""

    norms: list[nn.BatchNorm2d]
    statistics: _Statistics
    places: list[tuple[int, int]]

    @property
    def processes(self) -> int:
        """Over how many processes the BatchNorms' batch extends."""
        return processes_joined_by(self.norms[0]) if self.norms else 1


class _Statistics:
    """The statistics of a batch that a cell's BatchNorms are to remember; three kernels update all of them."""

    def __init__(self) -> None:
        self.norms: list[nn.BatchNorm2d] = []
        self.means: list[Tensor] = []
        self.variances: list[Tensor] = []

    def add(self, norms: Iterable[nn.BatchNorm2d], means: Iterable[Tensor], variances: Iterable[Tensor]) -> None:
        """Note means and unbiased variances (C,) for `norms`."""
        self.norms.extend(norms)
        self.means.extend(means)
        self.variances.extend(variances)

    @torch.no_grad()
    def update_norms(self) -> None:
        """Move the running statistics, in place: they may be buffers that torch.func.functional_call put there."""
        if self.norms:
            momentum = cast(float, self.norms[0].momentum)
            torch._foreach_lerp_([cast(Tensor, norm.running_mean) for norm in self.norms], self.means, momentum)
            torch._foreach_lerp_([cast(Tensor, norm.running_var) for norm in self.norms], self.variances, momentum)
            torch._foreach_add_([cast(Tensor, norm.num_batches_tracked) for norm in self.norms], 1)


def _first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a backward pass that is to be differentiated itself an error.

    torch's once_differentiable raises too late: where the second derivative is asked for by torch.autograd.grad, it
    drops the path through the function without a word.
    """

    @wraps(backward)
    def checked(*args: Any) -> Any:
        if torch.is_grad_enabled():  # by create_graph=True
            raise RuntimeError("the fused supernet has no second derivatives, space.impl=reference has")
        return backward(*args)

    return checked


# BatchNorm


def _batch_norm(x: Tensor, norms: Sequence[nn.Module], statistics: _Statistics) -> list[Tensor]:
    """Return x normalised by each of `norms`; those without parameters give the same tensor in training."""
    if not norms[0].training:
        return [norm(x) for norm in norms]
    first, *_ = norms = [cast(nn.BatchNorm2d, norm) for norm in norms]
    processes = processes_joined_by(first)
    output, mean, variance = cast("tuple[Tensor, Tensor, Tensor]", _Normalise.apply(x, first.eps, processes))
    statistics.add(norms, [mean] * len(norms), [variance] * len(norms))
    if first.weight is not None:
        output = output * first.weight[:, None, None] + first.bias[:, None, None]
    return [output] * len(norms)


class _Normalise(torch.autograd.Function):
    """x (N, C, H, W) with mean 0 and variance 1 in each channel; also returns mean and unbiased variance.

    Not for speed: torch's BatchNorm of channels_last images on CPU adds up plainly, so that its mean and scale are off
    by 7e-6 for 64 images of 32x32, where a mean by sum() is by 1e-7. With it the alphas' gradient of the paper's
    supernet missed float64's by 1.3e-3 and 3.0e-3 (two batches of 8 images), without it by 3e-4 both times; the plain
    supernet misses it by 1e-4 and 4e-4 in NCHW, and by 1.4e-3 and 3.2e-3 in channels_last.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, processes: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.processes = processes
        with _no_autocast(x):
            flat = _wide(_flat(x))
            pixels = flat.shape[0] * processes
            mean = joined(flat.sum(0), processes) / pixels
            centred = flat - mean
            squares = joined((centred * centred).sum(0), processes)
            scale = (squares / pixels + eps).rsqrt()
            output = _unflat(centred.mul_(scale).to(x.dtype), x)
            variance = squares / (pixels - 1)
        ctx.save_for_backward(output, scale)
        ctx.mark_non_differentiable(mean, variance)
        return output, mean, variance

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        output, scale = ctx.saved_tensors
        with _no_autocast(grad):
            flat, normal = _wide(_flat(grad)), _wide(_flat(output))
            pixels = flat.shape[0] * ctx.processes
            sums = joined(torch.stack([flat.sum(0), (flat * normal).sum(0)]), ctx.processes)
            constant, slope = -scale * sums / pixels
            x_grad = torch.addcmul(constant, normal, slope).addcmul_(flat, scale)
        return _unflat(x_grad.to(grad.dtype), output), None, None


# Depthwise convolutions


def _depthwise(x: Tensor, convs: Sequence[nn.Module], *, subsampled: int = 1) -> tuple[Tensor, ...]:
    """Apply depthwise convolutions of one geometry to x, of which only every `subsampled`-th pixel is given."""
    conv = cast(nn.Conv2d, convs[0])
    stride, dilation = conv.stride[0] // subsampled, conv.dilation[0] // subsampled
    geometry = stride, cast(int, conv.padding[0]) // subsampled, dilation
    weights = [cast(nn.Conv2d, conv).weight for conv in convs]
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weights = x.to(dtype), [weight.to(dtype) for weight in weights]
    return cast("tuple[Tensor, ...]", _Depthwise.apply(geometry, x, *weights))


class _Depthwise(torch.autograd.Function):
    """Depthwise convolutions of x (N, C, H, W) with K weights (C, 1, k, k), without bias.

    The data gradient at stride 1 is a forward convolution with the flipped kernel: 0.4 and 1.0 ms against 2.1 and 3.9
    by oneDNN's own (3x3, dilated), 1.1 and 1.3 against 6.0 and 6.2 (5x5, dilated). At stride 2 oneDNN's own is faster.
    For the weight gradient see `_weight_gradients`. Both are skipped where nothing requires them.
    """

    @staticmethod
    def forward(ctx: Any, geometry: tuple[int, int, int], x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.geometry = geometry
        ctx.save_for_backward(x, *weights)
        with _no_autocast(x):
            return tuple(F.conv2d(x, weight, None, *geometry, x.shape[1]) for weight in weights)

    @staticmethod
    @_first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        grads = tuple(_channels_last(grad) for grad in grads)
        data_grad: Tensor | None = None
        weight_grads: list[Tensor | None] = [None] * len(weights)
        with _no_autocast(x):
            if ctx.needs_input_grad[1]:
                for grad, weight in zip(grads, weights, strict=True):
                    if stride > 1:
                        term = _gradient(x, grad, weight, *ctx.geometry, of_data=True)
                    else:
                        edge = dilation * (weight.shape[2] - 1) - padding
                        term = F.conv2d(grad, weight.flip(2, 3), None, 1, edge, dilation, x.shape[1])
                    data_grad = term if data_grad is None else data_grad.add_(term)
            if any(ctx.needs_input_grad[2:]):
                weight_grads = [*_weight_gradients(x, grads, weights[0], ctx.geometry)]
        return None, data_grad, *weight_grads


def _weight_gradients(
    x: Tensor, grads: Sequence[Tensor], weight: Tensor, geometry: tuple[int, int, int]
) -> list[Tensor]:
    """Return the gradient of each depthwise weight.

    oneDNN has a fast kernel for widths up to 3 without dilation only. So on CPU a dilated convolution becomes a plain
    one on the sub-grids of its pixels, and a wider kernel is cut into strips of 3 columns, each of which sees x shifted
    (and padded above and below: images lower than the kernel take a slow path again, 0.5 to 0.8 ms against 0.1 for
    4x4). K = 4 of 5x5 take 12.0 and 14.2 ms against 15.6 and 16.9; of 3x3, dilated, 9.0 and 5.5 against 44 and 54; of
    5x5, dilated, 27 and 26 against 107 and 139.
    """
    stride, padding, dilation = geometry
    kernel = weight.shape[2]
    if not x.is_cpu or (stride > 1 and dilation > 1):
        return [_gradient(x, grad, weight, *geometry) for grad in grads]
    if dilation > 1:
        x, grads = _subgrids(x, dilation), [_subgrids(grad, dilation) for grad in grads]
        padding //= dilation
    if kernel <= 3:
        return [_gradient(x, grad, weight, stride, padding, 1) for grad in grads]
    padded = F.pad(x, [padding] * 4)
    strips = []
    for left in range(0, kernel, 3):
        strip = weight[..., left : left + 3]
        right = kernel - left - strip.shape[3]
        strips.append((_channels_last(padded[..., left : padded.shape[3] - right]), strip))
    return [torch.cat([_gradient(s, grad, w, stride, 0, 1) for s, w in strips], dim=3) for grad in grads]


def _gradient(
    x: Tensor, grad: Tensor, weight: Tensor, stride: int, padding: int, dilation: int, *, of_data: bool = False
) -> Tensor:
    """Return torch's gradient of a depthwise weight, of which then the shape alone is used, or of the data."""
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], x.shape[1],
        [of_data, not of_data, False],
    )[0 if of_data else 1]  # fmt: skip


def _subgrids(x: Tensor, step: int) -> Tensor:
    """Return x (N, C, H, W) as its step^2 sub-grids, stacked along N; sides are padded with zeros to a multiple."""
    missing = (0, -x.shape[3] % step, 0, -x.shape[2] % step)
    if any(missing):
        x = F.pad(x, missing)
    return torch.cat([x[:, :, i::step, j::step] for i in range(step) for j in range(step)])


# Pointwise convolutions with their BatchNorm


class _Folded(NamedTuple):
    """Statistics of z = W d for K pointwise convolutions, and those of d that they come from (None in eval mode)."""

    mean: Tensor  # (K, C), of z
    scale: Tensor  # (K, C), 1 / sqrt(variance of z + eps)
    input_mean: Tensor | None  # (K, C)
    covariance: Tensor | None  # (K, C, C)


def _fold(inputs: Sequence[Tensor], weights: Tensor, call: _Call) -> _Folded:
    """Return what BatchNorm needs to know of z = W d, without z; inputs are K flat d, weights (K, C, C).

    In training the mean of z is W mean(d) and its variance diag(W Cov(d) W^T). So a * BatchNorm(W d) is one product
    with the matrix a * scale * W and a constant: neither z nor its normalised form is written, and the backward pass
    needs d only. The edges of a node add up in place, each product onto the last. Statistics are float32 at least.
    """
    norms = call.norms
    eps = norms[0].eps
    if not norms[0].training:
        mean = torch.stack([cast(Tensor, norm.running_mean) for norm in norms])
        variance = torch.stack([cast(Tensor, norm.running_var) for norm in norms])
        return _Folded(mean, (variance + eps).rsqrt(), None, None)
    pixels = inputs[0].shape[0] * call.processes
    count, channels = weights.shape[0], weights.shape[2]
    moments = weights.new_empty(count, channels + 1, channels)  # second moments, and below them the sums: one message
    for index, d in enumerate(map(_wide, inputs)):
        torch.mm(d.t(), d, out=moments[index, :-1])
        torch.sum(d, 0, out=moments[index, -1])
    moments = joined(moments, call.processes).div_(pixels)
    input_mean = moments[:, -1]
    covariance = moments[:, :-1] - input_mean[:, :, None] * input_mean[:, None, :]
    mean = (weights @ input_mean[:, :, None])[:, :, 0]
    variance = ((weights @ covariance) * weights).sum(2).clamp_(min=0)
    call.statistics.add(norms, mean.unbind(), (variance * (pixels / (pixels - 1))).unbind())
    return _Folded(mean, (variance + eps).rsqrt(), input_mean, covariance)


class _Gradients(NamedTuple):
    """Gradients of K terms a * BatchNorm(W d)."""

    factor: Tensor  # (K,), of a
    weights: Tensor | None  # (K, C, C)
    inputs: list[Tensor | None]  # K of (N, C, H, W)


def _unfold(
    grads: Sequence[Tensor],
    totals: Tensor,
    inputs: Sequence[Tensor],
    weights: Tensor,
    factor: Tensor,
    folded: _Folded,
    *,
    processes: int,
    needs_weights: bool,
    needs_inputs: Sequence[bool],
) -> _Gradients:
    """Return the gradients of K terms a * BatchNorm(W d) from the d, with no z.

    grads are the gradients g of the terms and inputs the d, both (N, C, H, W); totals (K, C) is g summed over pixels,
    factor (K, 1) is a. With A = g^T d and q = scale * (rowsum(W * A) - mean * total), the gradient of a is sum(q), and
    that of d is g (a scale W) - d (W^T diag(a scale^2 q / P) W) + constant. The first product is a 1x1 convolution,
    which adds the constant on its way: 0.57 and 0.34 ms against 0.74 and 0.35 as torch.addmm.

    Where BatchNorm joins several processes, P, q and the totals in the gradient of d are those of all; the gradients of
    a and W are this process's share.
    """
    mean, scale, input_mean, covariance = folded
    pixels = grads[0].numel() // grads[0].shape[1] * processes
    products = torch.empty_like(weights)
    for index, (grad, d) in enumerate(zip(grads, inputs, strict=True)):
        torch.mm(_wide(_flat(grad)).t(), _wide(_flat(d)), out=products[index])
    q = scale * ((weights * products).sum(2) - mean * totals)
    slope = factor * scale
    direct = slope[:, :, None] * weights
    weight_grad = bend = None
    constant = torch.zeros_like(totals)
    if needs_weights:
        weight_grad = slope[:, :, None] * products
    if input_mean is not None and covariance is not None:  # the batch's statistics depend on d, too
        joined_q, joined_totals = joined(torch.stack([q, totals]), processes)
        curvature = slope * scale * joined_q / pixels
        bend = -(weights * curvature[:, :, None]).transpose(1, 2) @ weights
        constant = ((curvature * mean - slope * joined_totals / pixels)[:, None, :] @ weights)[:, 0]
        if weight_grad is not None:
            through_mean = (slope * totals)[:, :, None] * input_mean[:, None, :]
            through_variance = (slope * scale * q)[:, :, None] * (weights @ covariance)
            weight_grad -= through_mean + through_variance
    dtype = inputs[0].dtype
    direct, constant = direct.to(dtype), constant.to(dtype)
    input_grads: list[Tensor | None] = [None] * len(inputs)
    for index, (grad, d, needed) in enumerate(zip(grads, inputs, needs_inputs, strict=True)):
        if needed:
            input_grad = F.conv2d(grad, direct[index].t()[:, :, None, None], constant[index])
            if bend is not None:
                flat = _flat(input_grad).addmm_(_flat(d), bend[index].to(dtype))
                input_grad = _unflat(flat, d)
            input_grads[index] = input_grad
    return _Gradients(q.sum(1), weight_grad, input_grads)


class _NormReLU(torch.autograd.Function):
    """ReLU(BatchNorm(W d)) for K depthwise outputs d (N, C, H, W) and weights (K, C, C): a separable conv's middle."""

    @staticmethod
    def forward(ctx: Any, call: _Call, weights: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.processes = call.processes
        with _no_autocast(weights):
            folded = _fold([_flat(d) for d in inputs], weights, call)
            dtype = inputs[0].dtype
            matrices = (folded.scale[:, :, None] * weights).to(dtype)
            constants = -(folded.scale * folded.mean).to(dtype)
            outputs = tuple(
                F.conv2d(d, matrix[:, :, None, None], constant).relu_()
                for d, matrix, constant in zip(inputs, matrices, constants, strict=True)
            )
        ctx.save_for_backward(weights, *folded, *inputs, *outputs)
        return outputs

    @staticmethod
    @_first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weights, mean, scale, input_mean, covariance, *tensors = ctx.saved_tensors
        inputs, outputs = tensors[: len(grads)], tensors[len(grads) :]
        with _no_autocast(weights):
            masked = [
                torch.ops.aten.threshold_backward(_channels_last(grad), output, 0)
                for grad, output in zip(grads, outputs, strict=True)
            ]
            result = _unfold(
                masked,
                torch.stack([_wide(_flat(grad)).sum(0) for grad in masked]),
                inputs,
                weights,
                torch.ones_like(mean[:, :1]),
                _Folded(mean, scale, input_mean, covariance),
                processes=ctx.processes,
                needs_weights=ctx.needs_input_grad[1],
                needs_inputs=ctx.needs_input_grad[2:],
            )
        return None, result.weights, *result.inputs


class _Mix(torch.autograd.Function):
    """The sum of a node's terms, each times its entry of rows (edges, candidates).

    Of the terms (N, C, H, W) the last K are depthwise outputs d and stand for BatchNorm(W d), weights (K, C, C).
    """

    @staticmethod
    def forward(ctx: Any, call: _Call, rows: Tensor, weights: Tensor | None, *terms: Tensor) -> Tensor:
        ctx.places = call.places
        ctx.processes = call.processes
        folded: Sequence[Tensor | None] = ()
        count = len(call.norms)
        plain, inputs = terms[: len(terms) - count], terms[len(terms) - count :]
        with _no_autocast(rows):
            alphas = torch.stack([rows[place] for place in call.places])
            dtype = terms[-1].dtype
            if weights is not None:
                flats = [_flat(d) for d in inputs]
                folded = _fold(flats, weights, call)
                slope = alphas[len(plain) :, None] * folded.scale
                matrices = (slope[:, :, None] * weights).transpose(1, 2).to(dtype)
                total = torch.addmm(-(slope * folded.mean).sum(0).to(dtype), flats[0], matrices[0])
                for d, matrix in zip(flats[1:], matrices[1:], strict=True):
                    total.addmm_(d, matrix)
            else:
                total = torch.zeros_like(_flat(terms[-1]))
            for term, alpha in zip(plain, alphas.to(dtype), strict=False):
                total.addcmul_(_flat(term).to(dtype), alpha)
        ctx.save_for_backward(rows, weights, *terms, *folded)
        return _unflat(total, terms[-1])

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weights, *tensors = ctx.saved_tensors
        terms, folded = tensors[: len(ctx.places)], tensors[len(ctx.places) :]
        count = 0 if weights is None else len(weights)
        plain, inputs = terms[: len(terms) - count], terms[len(terms) - count :]
        needed = ctx.needs_input_grad[3:]
        result = _Gradients(rows.new_empty(0), None, [])
        with _no_autocast(rows):
            grad = _channels_last(grad)
            if weights is not None:
                result = _unfold(
                    [grad] * count,
                    _wide(_flat(grad)).sum(0).expand(count, -1),
                    inputs,
                    weights,
                    torch.stack([rows[place] for place in ctx.places[len(plain) :]])[:, None],
                    _Folded(*folded),
                    processes=ctx.processes,
                    needs_weights=ctx.needs_input_grad[2],
                    needs_inputs=needed[len(plain) :],
                )
            term_grads = [
                (grad * rows[place]).to(term.dtype) if needs else None
                for place, term, needs in zip(ctx.places, plain, needed, strict=False)
            ]
            rows_grad = None
            if ctx.needs_input_grad[1]:
                vector = _wide(_flat(grad)).flatten()
                values = [torch.dot(vector, _wide(_flat(term)).flatten()) for term in plain]
                at: dict[Any, Any] = dict(zip(ctx.places, [*values, *result.factor.unbind()], strict=True))
                zero = rows.new_zeros(())  # of `none`
                places = [(edge, column) for edge in range(rows.shape[0]) for column in range(rows.shape[1])]
                rows_grad = torch.stack([at.get(place, zero) for place in places]).view_as(rows)
        return None, rows_grad, result.weights, *term_grads, *result.inputs


def _pointwise_weights(layers: Sequence[DilatedConv]) -> Tensor:
    return torch.stack([cast(nn.Conv2d, layer[2]).weight.flatten(1) for layer in layers])


def _norms(layers: Sequence[DilatedConv]) -> list[nn.BatchNorm2d]:
    return [cast(nn.BatchNorm2d, layer[3]) for layer in layers]


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _flat(x: Tensor) -> Tensor:
    """Return x (N, C, H, W) as (pixels, C), a view if x is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _unflat(flat: Tensor, like: Tensor) -> Tensor:
    """Return `flat` (pixels, C) as (N, C, H, W) with the sides of `like`."""
    return flat.view(like.shape[0], like.shape[2], like.shape[3], -1).permute(0, 3, 1, 2)


def _wide(x: Tensor) -> Tensor:
    """Return x in at least float32."""
    return x if x.dtype == torch.float64 else x.float()


def _no_autocast(x: Tensor) -> torch.autocast:
    """Return the context in which types are what the code says; a backward pass may run inside of autocast."""
    return torch.autocast(x.device.type, enabled=False)
