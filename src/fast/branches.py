"""Operations in the form that src/fast/fused.py evaluates: a term from a kernel, and the BatchNorm that follows apart.

A branch is one candidate on K edges that leave one state. Its forward pass gives a term t, and the sums over pixels from
which the BatchNorms follow; what a node adds up is factor * t + constant, channel by channel, where alpha, scale and
shift of the BatchNorm are in the two. So a normalised image is never written. The backward pass starts from the
gradient g of the nodes, and that of t is a mix of g, t and a constant (`Normal.mix`), made where it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.common.batch_norm import joined, processes_joined_by
from src.fast import kernels
from src.fast.kernels import Geometry
from src.spaces.cnn.operations import DilatedConv, FactorizedReduce, Pool, ReLUConvBN, SeparableConv


class Incoming(NamedTuple):
    """What the backward pass of a branch starts from."""

    grads: Tensor  # of the nodes, (K, N, C, H, W)
    mix: Tensor  # (3, K, C): factors of grads and of the term, and a constant, of which the term's gradient is the sum
    x: Tensor  # the state, (1, N, C, H, W)
    into: Tensor | None  # where the state's gradient is written, unless nothing asks for it
    add: bool  # whether it is added to what is there
    needs_weights: bool


class Branch:
    """One candidate on K edges. A branch lives for one call; `tensors` are those its backward pass needs, the term first."""

    norms: Sequence[nn.BatchNorm2d] = ()  # of the term, one an edge
    parameters: Sequence[Tensor] = ()  # without those of `norms`

    def __init__(self) -> None:
        self.moments: Tensor  # sums of the term and of its square, (2, K or 1, C); where there are norms
        self.tensors: list[Tensor] = []

    @property
    def term(self) -> Tensor:
        """What the nodes add up, before its BatchNorms: (K or 1, N, C, H, W)."""
        return self.tensors[0]

    def forward(self, x: Tensor, statistics: Statistics) -> None:
        """Compute the term of a state (1, N, C, H, W)."""
        raise NotImplementedError

    def backward(self, incoming: Incoming) -> Sequence[Tensor | None]:
        """Return the gradients of `parameters`, and write that of the state."""
        raise NotImplementedError


def branch_of(operations: Sequence[nn.Module]) -> Branch:
    """Return the branch of K operations, all of one kind and geometry.

    The very classes of src/spaces/cnn/operations.py have a form of their own; any other module is called as it is. Of those
    that have, the parameters are read and the forward is not called, so that hooks on them do not run.
    """
    first: Any = operations[0]
    kinds: dict[Any, Callable[[Any], Branch]] = {
        nn.Identity: Same,
        DilatedConv: Convolution,
        SeparableConv: Separable,
        ReLUConvBN: Pointwise,
        FactorizedReduce: Reduce,
        Pool: Pooling,
    }
    kind = kinds.get(type(first), Called)
    if (kind is Pointwise and first[1].kernel_size != (1, 1)) or (
        kind is Pooling and type(first.pool) not in (nn.MaxPool2d, nn.AvgPool2d)
    ):
        kind = Called
    return kind(operations)


class Same(Branch):
    """The state as it is, or with a BatchNorm."""

    def __init__(self, operations: Sequence[nn.Module]) -> None:
        super().__init__()
        self.norms = [operation for operation in operations if isinstance(operation, nn.BatchNorm2d)]

    def forward(self, x: Tensor, statistics: Statistics) -> None:
        """Compute the term of a state."""
        if self.norms:
            self.moments = kernels.dots(x, [x])
        self.tensors = [x]

    def backward(self, incoming: Incoming) -> Sequence[Tensor | None]:
        """Write the state's gradient."""
        if incoming.into is not None:
            _mix_into(incoming.into, incoming, self.term if self.norms else None, add=incoming.add)
        return ()


class Pooling(Branch):
    """A pool; a BatchNorm may follow."""

    def __init__(self, operations: Sequence[Pool]) -> None:
        super().__init__()
        self.norms = [operation.norm for operation in operations if isinstance(operation.norm, nn.BatchNorm2d)]
        pool: Any = operations[0].pool
        self.largest = isinstance(pool, nn.MaxPool2d)
        self.geometry = Geometry(pool.kernel_size, pool.stride, pool.padding)

    def forward(self, x: Tensor, statistics: Statistics) -> None:
        """Compute the term of a state, once for all edges."""
        pooled = kernels.pool(x, self.geometry, largest=self.largest)
        if self.norms:
            self.moments = kernels.dots(pooled, [pooled])
        self.tensors = [pooled]

    def backward(self, incoming: Incoming) -> Sequence[Tensor | None]:
        """Write the state's gradient."""
        if incoming.into is not None:
            pooled_grad = torch.empty_like(self.term)
            _mix_into(pooled_grad, incoming, self.term if self.norms else None, add=False)
            kernels.pool_backward(
                pooled_grad, incoming.x, self.geometry, largest=self.largest, into=incoming.into, add=incoming.add
            )
        return ()


def _mix_into(into: Tensor, incoming: Incoming, term: Tensor | None, *, add: bool) -> None:
    """Write, or add, the gradient of a term that the edges share; without norms it does not depend on the term."""
    of_grads, of_term, constant = incoming.mix
    terms, factors = [*incoming.grads.split(1)], of_grads
    if term is not None:
        terms, factors = [*terms, term], torch.cat([of_grads, of_term.sum(0, keepdim=True)])
    kernels.combine(into, terms, factors[:, None], constant.sum(0, keepdim=True), add=add)


class _Layers:
    """K convolutions of one geometry, depthwise (or none) and pointwise, after a ReLU."""

    def __init__(self, depthwise: Sequence[nn.Conv2d] | None, pointwise: Sequence[nn.Conv2d]) -> None:
        self.geometry = Geometry()
        self.depthwise = self.pointwise = [convolution.weight for convolution in pointwise]
        self.parameters: list[Tensor] = [*self.pointwise]
        if depthwise is None:
            self.depthwise = None
        else:
            first: Any = depthwise[0]
            self.geometry = Geometry(first.kernel_size[0], first.stride[0], first.padding[0], first.dilation[0])
            self.depthwise = [convolution.weight for convolution in depthwise]
            self.parameters = [*self.depthwise, *self.pointwise]

    def forward(self, x: Tensor, rescale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z (K, N, C, H, W) and its moments."""
        return kernels.convolve(x, rescale, self.depthwise, self.pointwise, self.geometry)

    def backward(
        self, incoming: Incoming, z: Tensor, rescale: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
        """Return what `convolve_backward` does of images, and the gradients of `parameters`.

        The images' gradient goes to incoming.into, or is returned where x is rescaled.
        """
        grads, mix, x, into, add, needs_weights = incoming
        needs_images = into is not None or rescale is not None
        x_grad, sums, depthwise, pointwise = kernels.convolve_backward(
            grads, z, mix, x, rescale, self.depthwise, self.pointwise, self.geometry,
            into=into, add=add, needs_images=needs_images, needs_weights=needs_weights,
        )  # fmt: skip
        return x_grad, sums, [*depthwise, *pointwise] or [None] * len(self.parameters)


class Convolution(Branch):
    """ReLU, depthwise and pointwise convolution: a dilated convolution."""

    def __init__(self, operations: Sequence[DilatedConv]) -> None:
        super().__init__()
        self.layers, self.norms = _depthwise_separable(operations)
        self.parameters = self.layers.parameters

    def forward(self, x: Tensor, statistics: Statistics) -> None:
        """Compute the term of a state."""
        z, self.moments = self.layers.forward(x)
        self.tensors = [z]

    def backward(self, incoming: Incoming) -> Sequence[Tensor | None]:
        """Return the gradients of `parameters`, and write that of the state."""
        return self.layers.backward(incoming, self.term)[2]


class Separable(Branch):
    """Two such in a row, with a BatchNorm between them."""

    def __init__(self, operations: Sequence[SeparableConv]) -> None:
        super().__init__()
        self.first, self.middle_norms = _depthwise_separable([operation[0] for operation in operations])
        self.second, self.norms = _depthwise_separable([operation[1] for operation in operations])
        self.middle_affine = affine_parameters(self.middle_norms)
        self.parameters = [*self.first.parameters, *self.second.parameters, *self.middle_affine]
        self.normal: Normal

    def forward(self, x: Tensor, statistics: Statistics) -> None:
        """Compute the term of a state."""
        middle, moments = self.first.forward(x)
        self.normal = Normal.of(self.middle_norms, moments, middle, statistics)
        z, self.moments = self.second.forward(middle, self.normal.rescale())
        self.tensors = [z, middle]

    def backward(self, incoming: Incoming) -> Sequence[Tensor | None]:
        """Return the gradients of `parameters`, and write that of the state."""
        z, middle = self.tensors
        middle_grads, sums, second = self.second.backward(
            incoming._replace(x=middle, into=None), z, self.normal.rescale()
        )
        assert middle_grads is not None
        assert sums is not None
        total, centred = sums[0], self.normal.centred(sums[0], sums[1])
        affine = self.normal.affine_grads(total, centred) if self.middle_affine else []
        mix = self.normal.mix(torch.ones_like(total[:, :1]), total, centred)
        *_, first = self.first.backward(incoming._replace(grads=middle_grads, mix=mix), middle)
        return [*first, *second, *affine]


def _depthwise_separable(layers: Sequence[Any]) -> tuple[_Layers, list[nn.BatchNorm2d]]:
    return _Layers([layer[1] for layer in layers], [layer[2] for layer in layers]), [layer[3] for layer in layers]


class Pointwise(Branch):
    """ReLU and a 1x1 convolution."""

    def __init__(self, operations: Sequence[Any]) -> None:
        super().__init__()
        self.layers = _Layers(None, [operation[1] for operation in operations])
        self.norms = [operation[2] for operation in operations]
        self.parameters = self.layers.parameters

    def forward(self, x: Tensor, statistics: Statistics) -> None:
        """Compute the term of a state."""
        z, self.moments = self.layers.forward(x)
        self.tensors = [z]

    def backward(self, incoming: Incoming) -> Sequence[Tensor | None]:
        """Return the gradients of `parameters`, and write that of the state."""
        return self.layers.backward(incoming, self.term)[2]


class Reduce(Branch):
    """FactorizedReduce: half of the channels from pixels of even row and column, half from those of odd ones."""

    geometry = Geometry(stride=2)

    def __init__(self, operations: Sequence[FactorizedReduce]) -> None:
        super().__init__()
        self.weights = [operation.even.weight for operation in operations], [o.odd.weight for o in operations]
        self.parameters = [*self.weights[0], *self.weights[1]]
        self.norms = [operation.norm for operation in operations]

    def forward(self, x: Tensor, statistics: Statistics) -> None:
        """Compute the term of a state."""
        x = self._padded(x)
        _, count, _, height, width = x.shape
        z = kernels.empty((len(self.norms), count, self.norms[0].num_features, height // 2, width // 2), like=x)
        moments = [
            kernels.convolve(view, None, self._taps(), weights, self.geometry, out=half)[1]
            for view, weights, half in zip(self._views(x), self.weights, self._halves(z), strict=True)
        ]
        self.moments = torch.cat(moments, dim=2)
        self.tensors = [z]

    def backward(self, incoming: Incoming) -> Sequence[Tensor | None]:
        """Return the gradients of `parameters`, and write that of the state."""
        grads, mix, x, into, add, needs_weights = incoming
        padded = self._padded(x)
        target, add_first = into, add
        if into is not None and padded is not x:
            target, add_first = torch.empty_like(padded), False
        parameter_grads: list[Tensor | None] = []
        for i, view in enumerate(self._views(padded)):
            *_, weight_grads = kernels.convolve_backward(
                self._halves(grads)[i], self._halves(self.term)[i], self._halves(mix)[i], view, None,
                self._taps(), self.weights[i], self.geometry,
                into=None if target is None else self._views(target)[i], add=add_first or i > 0,
                needs_images=target is not None, needs_weights=needs_weights,
            )  # fmt: skip
            parameter_grads += weight_grads or [None] * len(self.norms)
        if into is not None and target is not None and target is not into:
            within = target[..., : into.shape[3], : into.shape[4]]
            into.add_(within) if add else into.copy_(within)
        return parameter_grads

    def _taps(self) -> list[Tensor]:
        """Return depthwise weights that pick a pixel."""
        weight = self.parameters[0]
        return [weight.new_ones(weight.shape[1], 1, 1, 1)] * len(self.norms)

    def _halves(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the channels, dimension 2, that come from even and from odd pixels."""
        split = len(self.parameters[0])
        return images[:, :, :split], images[:, :, split:]

    @staticmethod
    def _padded(x: Tensor) -> Tensor:
        """Return images with zeros at the end of odd sides."""
        missing = (0, x.shape[4] % 2, 0, x.shape[3] % 2)
        return as_edges(F.pad(x[0], missing)) if any(missing) else x

    @staticmethod
    def _views(x: Tensor) -> tuple[Tensor, Tensor]:
        """Return images that begin with an even, and with an odd pixel."""
        return x, x[..., 1:, 1:]


class Called(Branch):
    """Operations without a form of their own: autograd goes through them."""

    def __init__(self, operations: Sequence[nn.Module]) -> None:
        super().__init__()
        self.operations = operations
        self.parameters = [parameter for operation in operations for parameter in operation.parameters()]
        self.leaf: Tensor
        self.outputs: list[Tensor]

    def forward(self, x: Tensor, statistics: Statistics) -> None:
        """Compute the term of a state."""
        with torch.enable_grad():
            self.leaf = x[0].clone().requires_grad_()  # x shares memory with nodes that are still being added up
            self.outputs = [operation(self.leaf) for operation in self.operations]
        channels_innermost = [output.detach().permute(0, 2, 3, 1) for output in self.outputs]
        self.tensors = [torch.stack(channels_innermost).permute(0, 1, 4, 2, 3)]

    def backward(self, incoming: Incoming) -> Sequence[Tensor | None]:
        """Return the gradients of `parameters`, and write that of the state."""
        factors = incoming.mix[0].to(incoming.grads.dtype)[:, None, :, None, None]
        output_grads = (incoming.grads * factors).unbind()
        leaves = [self.leaf, *(self.parameters if incoming.needs_weights else ())]
        # The graph stays as long as that of the call: it may be gone through twice.
        x_grad, *parameter_grads = torch.autograd.grad(
            self.outputs, leaves, output_grads, allow_unused=True, retain_graph=True
        )
        if incoming.into is not None:
            x_grad = torch.zeros_like(self.leaf) if x_grad is None else x_grad
            incoming.into.add_(x_grad) if incoming.add else incoming.into.copy_(x_grad[None])
        return parameter_grads or [None] * len(self.parameters)


@dataclass(frozen=True)
class Normal:
    """What BatchNorms do to images t: weight * scale * (t - mean) + bias, channel by channel.

    Attributes:
        values: (5, ..., K, C): mean, scale, share, weight, bias. `share` is that of a pixel in the batch's statistics:
            1 / pixels, or 0 where they do not depend on t, as in eval mode.
        processes: over how many processes the batch is spread.
    """

    values: Tensor
    processes: int

    @classmethod
    def of(cls, norms: Sequence[nn.BatchNorm2d], moments: Tensor, images: Tensor, statistics: Statistics) -> Normal:
        """Return what `norms`, one an edge, do to images (K, N, C, H, W) whose moments are (2, K, C)."""
        first = norms[0]
        processes = processes_joined_by(first)
        if first.training:
            pixels = images.shape[1] * images.shape[3] * images.shape[4] * processes
            mean, squares = joined(moments, processes) / pixels
            variance = (squares - mean * mean).clamp_(min=0)
            statistics.add(norms, mean, variance * (pixels / max(1, pixels - 1)))
            share = torch.full_like(mean, 1 / pixels)
        else:
            mean, variance = (
                torch.stack([cast(Tensor, getattr(norm, name)) for norm in norms]).to(moments.dtype)
                for name in ("running_mean", "running_var")
            )
            share = torch.zeros_like(mean)
        weight, bias = torch.ones_like(mean), torch.zeros_like(mean)
        for row, norm in enumerate(norms):
            if norm.weight is not None:
                weight[row], bias[row] = norm.weight, norm.bias
        return cls(torch.stack([mean, (variance + first.eps).rsqrt(), share, weight, bias]), processes)

    @classmethod
    def none(cls, edges: int, channels: int) -> Normal:
        """Return that of no BatchNorm."""
        zero = torch.zeros(edges, channels, dtype=kernels.SUMS)
        return cls(torch.stack([zero, zero + 1, zero, zero + 1, zero]), 1)

    @classmethod
    def stack(cls, normals: Sequence[Normal]) -> Normal:
        """Return M as one, (5, M, K, C)."""
        values = torch.stack([normal.values for normal in normals], dim=1)
        return cls(values, max(normal.processes for normal in normals))

    def split(self, edges: int) -> list[Normal]:
        """Return the parts of `edges` edges each."""
        return [Normal(values, self.processes) for values in self.values.split(edges, dim=-2)]

    @property
    def mean(self) -> Tensor:
        """Mean of t."""
        return self.values[0]

    @property
    def scale(self) -> Tensor:
        """1 / sqrt(variance of t + eps)."""
        return self.values[1]

    @property
    def share(self) -> Tensor:
        """See above."""
        return self.values[2]

    @property
    def weight(self) -> Tensor:
        """The BatchNorms' own factor, or 1."""
        return self.values[3]

    @property
    def bias(self) -> Tensor:
        """The BatchNorms' own addend, or 0."""
        return self.values[4]

    def rescale(self) -> Tensor:
        """Return factor and constant, (2, ..., K, C): factor * t + constant is the normalised t."""
        factor = self.weight * self.scale
        return torch.stack([factor, self.bias - factor * self.mean])

    def centred(self, total: Tensor, products: Tensor) -> Tensor:
        """Return the sum over pixels of g * (t - mean), given those of g and of g * t."""
        return products - self.mean * total

    def affine_grads(self, total: Tensor, centred: Tensor) -> list[Tensor]:
        """Return the gradients of K weights and of K biases, (C,) each; g is that of the normalised t."""
        return [*(self.scale * centred), *total]

    def mix(self, alphas: Tensor, total: Tensor, centred: Tensor) -> Tensor:
        """Return the factors of g and of t, and the constant, of which the gradient of t is the sum: (3, ..., K, C).

        g is the gradient of alphas * normalised t, `total` its sum over pixels, `centred` as above.
        """
        everywhere = joined(torch.stack([total.expand_as(centred), centred]), self.processes)
        of_grad = alphas * self.weight * self.scale
        of_term = -of_grad * self.scale.square() * self.share * everywhere[1]
        return torch.stack([of_grad, of_term, -of_grad * self.share * everywhere[0] - of_term * self.mean])


def affine_parameters(norms: Sequence[nn.BatchNorm2d]) -> list[Tensor]:
    """Return the weights, then the biases, of norms that have them."""
    if not norms or norms[0].weight is None:
        return []
    return [*(norm.weight for norm in norms), *(norm.bias for norm in norms)]


class Statistics:
    """The statistics of a batch that BatchNorms of one momentum are to remember; three operators update all of them."""

    def __init__(self) -> None:
        self.norms: list[nn.BatchNorm2d] = []
        self.means: list[Tensor] = []
        self.variances: list[Tensor] = []

    def add(self, norms: Sequence[nn.BatchNorm2d], means: Tensor, variances: Tensor) -> None:
        """Note means and unbiased variances (K, C) for K norms."""
        dtype = cast(Tensor, norms[0].running_mean).dtype
        self.norms.extend(norms)
        self.means.extend(means.to(dtype))
        self.variances.extend(variances.to(dtype))

    @torch.no_grad()
    def update_norms(self) -> None:
        """Move the running statistics, in place: they may be buffers that torch.func.functional_call put there."""
        if self.norms:
            momentum = cast(float, self.norms[0].momentum)
            torch._foreach_lerp_([cast(Tensor, norm.running_mean) for norm in self.norms], self.means, momentum)
            torch._foreach_lerp_([cast(Tensor, norm.running_var) for norm in self.norms], self.variances, momentum)
            torch._foreach_add_([cast(Tensor, norm.num_batches_tracked) for norm in self.norms], 1)


def as_edges(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) as (1, N, C, H, W), channels_last."""
    return images.contiguous(memory_format=torch.channels_last)[None]
