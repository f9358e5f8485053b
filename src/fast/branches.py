"""Operations in the form that src/fast/fused.py evaluates: a term from a kernel, with its BatchNorm kept apart.

A branch is one candidate on the K edges that leave one state. Its forward pass gives a term t and the moments of t from
which its BatchNorms follow; what a node adds up is factor * t + constant, channel by channel, and the mixing weight and
the scale and shift of the BatchNorm are in the two. So a normalised image is never written. The backward pass starts from
the gradient g of the nodes; the gradient of t is a mix of g, t and a constant (`Normal.mix`), computed where it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F

from src.common.batch_norm import joined, processes_joined_by
from src.fast import kernels
from src.fast.kernels import Geometry
from src.fast.known import Known
from src.fast.layout import PlainFormNeededError
from src.fast.norms import Setting, Statistics, setting_of
from src.spaces.cnn.modules import DilatedConv, FactorizedReduce, Pool, ReLUConvBN, SeparableConv


class Incoming(NamedTuple):
    """What the backward pass of a branch starts from."""

    grads: Tensor  # of the nodes, (K, N, C, H, W)
    mix: Tensor  # (3, K, C): factors of grads and of the term, and a constant, whose sum is the term's gradient
    x: Tensor  # the state, (1, N, C, H, W)
    into: Tensor | None  # where the state's gradient is written; None if it is not needed
    add: bool  # whether it is added to what is there
    needs_weights: bool


class Branch:
    """One candidate on K edges. A branch lives for one call; `tensors` are those its backward pass needs, the term first."""

    norms: Sequence[nn.BatchNorm2d] = ()  # of the term, one an edge
    middle_norms: Sequence[nn.BatchNorm2d] = ()  # of what lies within the branch
    channels: int | None = None  # of the states it takes; None if it takes any

    def __init__(self) -> None:
        self.parameters: Sequence[Tensor] = ()  # without those of `norms`
        self.moments: Tensor  # of the term (kernels.moments), (3, K or 1, C); where there are norms
        self.about: Tensor | None = None  # (1, C): near the mean of a term that has norms and is not near 0
        self.setting: Setting | None = None  # of `norms`
        self.middle_setting: Setting | None = None
        self.tensors: list[Tensor] = []

    def can_compute(self, dtype: torch.dtype) -> bool:
        """Return whether the branch computes in this dtype what its operations compute with the tensors they now have."""
        self.setting, self.middle_setting = _setting(self.norms, dtype), _setting(self.middle_norms, dtype)
        return not ((self.norms and self.setting is None) or (self.middle_norms and self.middle_setting is None))

    @property
    def term(self) -> Tensor:
        """What the nodes add up, before its BatchNorms: (K or 1, N, C, H, W)."""
        return self.tensors[0]

    def forward(self, x: Tensor, statistics: Statistics) -> None:
        """Compute the term of a state (1, N, C, H, W).

        Raises:
            PlainFormNeededError: the plain form raises an error, or the fused form cannot tell.
        """
        raise NotImplementedError

    def backward(self, incoming: Incoming) -> Sequence[Tensor | None]:
        """Return the gradients of `parameters`, and write that of the state."""
        raise NotImplementedError


def _setting(norms: Sequence[nn.BatchNorm2d], dtype: torch.dtype) -> Setting | None:
    """Return the setting of all norms; None if they have none in common, or not one of a CPU and of this dtype."""
    setting = setting_of(norms)
    if setting is None or setting.dtype != dtype or setting.device.type != "cpu":
        return None
    return setting


def branch_of(operations: Sequence[nn.Module], known: Sequence[Known | None], dtype: torch.dtype) -> Branch:
    """Return the branch of K operations, of which `known` tells what src/fast/known.py says.

    Operations without a fast form, of different geometries, or with parameters that the kernels cannot read, are called.
    The others are not: their parameters are read.
    """
    first = known[0]
    if first is not None and first.kind in _BRANCHES and all(other == first for other in known):
        branch = _BRANCHES[first.kind](operations)
        if branch.can_compute(dtype):
            return branch
    return Called(operations)


class Same(Branch):
    """The state as it is, or with a BatchNorm."""

    def __init__(self, operations: Sequence[nn.Module]) -> None:
        super().__init__()
        self.norms = [operation for operation in operations if isinstance(operation, nn.BatchNorm2d)]
        if self.norms:
            self.channels = self.norms[0].num_features

    def forward(self, x: Tensor, statistics: Statistics) -> None:
        """Compute the term of a state."""
        if self.norms:
            self.about = x[:, 0, :, x.shape[3] // 2].mean(dim=2).nan_to_num(0, 0, 0)
            self.moments = kernels.moments(x, about=self.about)
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
        if self.norms:
            self.channels = self.norms[0].num_features
        pool: Any = operations[0].pool
        self.largest = isinstance(pool, nn.MaxPool2d)
        self.geometry = Geometry(pool.kernel_size, pool.stride, pool.padding)

    def forward(self, x: Tensor, statistics: Statistics) -> None:
        """Compute the term of a state, once for all edges."""
        _check_size(self.geometry, x)
        pooled, moments = kernels.pool(x, self.geometry, largest=self.largest, centre=len(self.norms) > 0)
        if moments is not None:
            self.moments = moments
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


def _check_size(geometry: Geometry, x: Tensor) -> None:
    """Leave it to the plain form to refuse a state that is smaller than the kernel."""
    if min(geometry.size(*x.shape[3:])) < 1:
        raise PlainFormNeededError


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
        self.channels = pointwise[0].in_channels
        self.convolutions = [*(depthwise or ()), *pointwise]
        self.parameters = weights_of(self.convolutions)
        self.depthwise, self.pointwise = None, self.parameters
        if depthwise is not None:
            first: Any = depthwise[0]
            self.geometry = Geometry(first.kernel_size[0], first.stride[0], first.padding[0], first.dilation[0])
            self.depthwise, self.pointwise = self.parameters[: len(depthwise)], self.parameters[len(depthwise) :]

    def forward(self, x: Tensor, rescale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z (K, N, C, H, W) and its moments."""
        _check_size(self.geometry, x)
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


def weights_of(convolutions: Sequence[nn.Conv2d]) -> list[Tensor]:
    """Return the weight of each convolution."""
    return [cast(Tensor, convolution._parameters["weight"]) for convolution in convolutions]


class _Convolutions(Branch):
    """A branch that reads the weights of convolutions."""

    convolutions: Sequence[nn.Conv2d]

    def can_compute(self, dtype: torch.dtype) -> bool:
        """Return whether the branch computes in this dtype what its operations compute with the tensors they now have."""
        return super().can_compute(dtype) and all(
            convolution._parameters["bias"] is None
            and type(weight) in (Tensor, nn.Parameter)
            and weight.dtype == dtype
            and weight.is_cpu
            and kernels.dense(weight)
            for convolution, weight in zip(self.convolutions, weights_of(self.convolutions), strict=True)
        )


class _OneConvolution(_Convolutions):
    """ReLU and one convolution, whose output is the term."""

    def __init__(self, layers: _Layers, norms: Sequence[nn.BatchNorm2d]) -> None:
        super().__init__()
        self.layers, self.norms = layers, norms
        self.channels, self.convolutions, self.parameters = layers.channels, layers.convolutions, layers.parameters

    def forward(self, x: Tensor, statistics: Statistics) -> None:
        """Compute the term of a state."""
        z, self.moments = self.layers.forward(x)
        self.tensors = [z]

    def backward(self, incoming: Incoming) -> Sequence[Tensor | None]:
        """Return the gradients of `parameters`, and write that of the state."""
        return self.layers.backward(incoming, self.term)[2]


class Convolution(_OneConvolution):
    """ReLU, depthwise and pointwise convolution: a dilated convolution."""

    def __init__(self, operations: Sequence[DilatedConv]) -> None:
        super().__init__(*_depthwise_separable(operations))


class Pointwise(_OneConvolution):
    """ReLU and a 1x1 convolution."""

    def __init__(self, operations: Sequence[Any]) -> None:
        super().__init__(_Layers(None, [operation[1] for operation in operations]), [o[2] for o in operations])


class Separable(_Convolutions):
    """Two such in a row, with a BatchNorm between them."""

    def __init__(self, operations: Sequence[SeparableConv]) -> None:
        super().__init__()
        self.first, self.middle_norms = _depthwise_separable([operation[0] for operation in operations])
        self.second, self.norms = _depthwise_separable([operation[1] for operation in operations])
        self.channels = self.first.channels
        self.convolutions = [*self.first.convolutions, *self.second.convolutions]
        self.middle_affine = affine_parameters(self.middle_norms)
        self.parameters = [*self.first.parameters, *self.second.parameters, *self.middle_affine]
        self.normal: Normal

    def forward(self, x: Tensor, statistics: Statistics) -> None:
        """Compute the term of a state."""
        middle, moments = self.first.forward(x)
        assert self.middle_setting is not None
        self.normal = Normal.of(self.middle_norms, self.middle_setting, moments, middle, statistics)
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


class Reduce(_Convolutions):
    """FactorizedReduce: half of the channels from pixels of even row and column, half from those of odd ones."""

    geometry = Geometry(stride=2)

    def __init__(self, operations: Sequence[FactorizedReduce]) -> None:
        super().__init__()
        self.channels = operations[0].even.in_channels
        self.convolutions = [
            *(operation.even for operation in operations),
            *(operation.odd for operation in operations),
        ]
        self.parameters = weights_of(self.convolutions)
        self.weights = self.parameters[: len(operations)], self.parameters[len(operations) :]
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
    """Operations without a fast form: they are called, and autograd goes through them."""

    def __init__(self, operations: Sequence[nn.Module]) -> None:
        super().__init__()
        self.operations = operations
        parameters = {id(p): p for operation in operations for p in operation.parameters() if p.requires_grad}
        self.parameters = [*parameters.values()]
        self.keeps_graph = torch.is_grad_enabled()  # where the call is prepared: within a Function it never is
        self.leaf: Tensor
        self.outputs: list[Tensor]

    def forward(self, x: Tensor, statistics: Statistics) -> None:
        """Compute the term of a state."""
        with torch.inference_mode(mode=False), torch.set_grad_enabled(self.keeps_graph):
            # A copy, since x shares memory with nodes that are still being added up.
            self.leaf = x[0].detach().requires_grad_() if self.keeps_graph else x[0]
            given = self.leaf.clone(memory_format=torch.channels_last)
            version = given._version
            try:
                self.outputs = [operation(given) for operation in self.operations]
            except Exception as error:  # of several errors, the plain form raises that which comes first in its order
                raise PlainFormNeededError from error
        # The plain form gives all candidates one tensor: what one of them writes into it, the next ones read.
        if given._version != version or not all(self._is_image(output, x) for output in self.outputs):
            raise PlainFormNeededError
        if self.keeps_graph and self._reaches_further():
            raise PlainFormNeededError
        if len({output.shape for output in self.outputs}) > 1:
            raise PlainFormNeededError
        channels_innermost = [output.detach().permute(0, 2, 3, 1) for output in self.outputs]
        self.tensors = [torch.stack(channels_innermost).permute(0, 1, 4, 2, 3)]

    def backward(self, incoming: Incoming) -> Sequence[Tensor | None]:
        """Return the gradients of `parameters`, and write that of the state."""
        factors = incoming.mix[0].to(incoming.grads.dtype)[:, None, :, None, None]
        # In the layout of the outputs: the backward pass of torch's BatchNorm (2.14, CPU) gives wrong numbers for gradients
        # whose batch stride, where the batch is 1, is another.
        output_grads = [
            torch.empty_like(output).copy_(grad * factor)
            for output, grad, factor in zip(self.outputs, incoming.grads, factors, strict=True)
        ]
        differentiable = [index for index, output in enumerate(self.outputs) if output.requires_grad]
        leaves = [self.leaf, *(self.parameters if incoming.needs_weights else ())]
        x_grad, *parameter_grads = [None] * len(leaves)
        if differentiable:
            # The graph stays as long as that of the call: it may be gone through twice.
            x_grad, *parameter_grads = torch.autograd.grad(
                [self.outputs[index] for index in differentiable], leaves,
                [output_grads[index] for index in differentiable], allow_unused=True, retain_graph=True,
            )  # fmt: skip
        if incoming.into is not None:
            x_grad = torch.zeros_like(self.leaf) if x_grad is None else x_grad
            incoming.into.add_(x_grad) if incoming.add else incoming.into.copy_(x_grad[None])
        return parameter_grads or [None] * len(self.parameters)

    @staticmethod
    def _is_image(output: object, x: Tensor) -> bool:
        return (
            type(output) in (Tensor, nn.Parameter)
            and isinstance(output, Tensor)
            and output.dim() == 4
            and output.numel() > 0
            and (output.dtype, output.device, output.layout) == (x.dtype, x.device, x.layout)
        )

    def _reaches_further(self) -> bool:
        """Return whether a gradient goes to tensors other than the state and `parameters`, such as alphas of inner choices."""
        ends = {get_gradient_edge(tensor).node for tensor in (self.leaf, *self.parameters)}
        open_ends: list[Any] = [output.grad_fn for output in self.outputs]
        seen: set[Any] = {None, *ends}
        while open_ends:
            node = open_ends.pop()
            if node in seen:
                continue
            if hasattr(node, "variable"):  # where the gradient of a leaf is accumulated
                return True
            seen.add(node)
            open_ends += [further for further, _ in node.next_functions]
        return False


# The fast form of each operation.
_BRANCHES: dict[type[nn.Module], Callable[[Any], Branch]] = {
    nn.Identity: Same,
    nn.BatchNorm2d: Same,
    DilatedConv: Convolution,
    SeparableConv: Separable,
    ReLUConvBN: Pointwise,
    FactorizedReduce: Reduce,
    Pool: Pooling,
}


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
    def of(
        cls,
        norms: Sequence[nn.BatchNorm2d],
        setting: Setting,
        moments: Tensor,
        images: Tensor,
        statistics: Statistics,
    ) -> Normal:
        """Return what `norms`, one an edge, do to images (K, N, C, H, W) whose moments are (3, K, C).

        Raises:
            PlainFormNeededError: a batch has one pixel, which has no variance: the plain form raises an error.
        """
        mean, squares, shift = moments
        processes = processes_joined_by(norms[0])
        if setting.training:
            local = images.shape[1] * images.shape[3] * images.shape[4]
            pixels = local * processes
            if pixels == 1:
                raise PlainFormNeededError
            centre = mean + shift
            if processes > 1:
                local_centre = centre
                centre = joined(local_centre, processes) / processes
                squares = joined(squares + local * (local_centre - centre).square(), processes)
            variance = squares / pixels
            statistics.add(norms, centre, squares / (pixels - 1))
            mean = centre - shift if processes > 1 else mean
            share = torch.full_like(mean, 1 / pixels)
        else:
            mean, variance = (
                torch.stack([cast(Tensor, norm._buffers[name]) for norm in norms]).to(moments.dtype)
                for name in ("running_mean", "running_var")
            )
            mean = mean - shift
            share = torch.zeros_like(mean)
        weight, bias = torch.ones_like(mean), torch.zeros_like(mean)
        if setting.affine:
            weight, bias = (
                torch.stack([getattr(n, name) for n in norms]).to(mean.dtype) for name in ("weight", "bias")
            )
        return cls(torch.stack([mean, (variance + setting.eps).rsqrt(), share, weight, bias]), processes)

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

    def centred(self, total: Tensor, products: Tensor, about: Tensor | None = None) -> Tensor:
        """Return the sum over pixels of g * (t - mean), given those of g and of g * (t - about), or of g * t."""
        return products - (self.mean if about is None else self.mean - about) * total

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


def as_edges(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) as (1, N, C, H, W), channels_last."""
    return images.contiguous(memory_format=torch.channels_last)[None]
