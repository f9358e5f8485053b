"""The hypergradient: how the loss on the arch half changes with alpha, through the weights as well.

Everything here is a function of two losses, each a function of (weights, alphas); no network is known. With w' the
weights after a virtual step and v = grad_w' L_a(w', a),

    h = grad_a L_a(w', a) - xi * (d^2 L_w(w, a) / da dw) v          (equation 7 of arXiv 1806.09055)

The two terms are called direct and mixed. The losses are called on new leaves or on detached views, so nothing is
perturbed in place and no `.grad` is touched, and each pass differentiates only by what it needs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from src.bilevel.precision import full_precision
from src.bilevel.unroll import Tensors, VirtualStep
from src.common.errors import must_be

Loss = Callable[[Tensors, Tensors], Tensor]  # (weights, alphas) -> scalar


def _single_process(tensors: list[Tensor]) -> list[Tensor]:
    return tensors


@dataclass(frozen=True)
class Bilevel:
    """The bilevel problem at one point of the search.

    `weight_loss` is L_w on a batch of the weight half, `arch_loss` L_a on one of the arch half, `step` the step that
    the weights' optimiser would take. `average` maps gradients to their mean over all processes; it is called once a pass.
    """

    weight_loss: Loss
    arch_loss: Loss
    weights: Tensors
    alphas: Tensors
    step: VirtualStep
    average: Callable[[list[Tensor]], list[Tensor]] = _single_process

    def virtual_weights(self, gradients: Tensors) -> Tensors:
        """Return w', given grad_w L_w(w, a)."""
        return self.step(_detached(self.weights), gradients)

    def moved_weights(self, direction: Tensors, distance: Tensor) -> Tensors:
        """Return w + distance * direction."""
        like = next(iter(self.weights.values()))
        steps = torch._foreach_mul([direction[name].to(like.dtype) for name in self.weights], distance.to(like.dtype))
        return dict(zip(self.weights, torch._foreach_add(steps, list(_detached(self.weights).values())), strict=True))

    def gradients(self, loss: Tensor, *groups: Tensors) -> list[Tensors]:
        """Differentiate by all groups in one pass, averaged in one go; what the loss does not use has gradient 0."""
        inputs = [tensor for group in groups for tensor in group.values()]
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        averaged = iter(self.average(list(gradients)))
        return [{name: next(averaged) for name in group} for group in groups]

    def at(self, virtual: Tensors) -> tuple[Tensors, Tensors, Tensor]:
        """Return v = grad_w' L_a(w', a), the direct term grad_a L_a(w', a), and L_a."""
        weights, alphas = _leaves(virtual), _leaves(self.alphas)
        loss = self.arch_loss(weights, alphas)
        v, direct = self.gradients(loss, weights, alphas)
        return v, direct, loss.detach()

    def alpha_gradient(self, weights: Tensors) -> Tensors:
        """Return grad_a L_w at some weights, in full precision: the difference of two such gradients is small."""
        alphas = _leaves(self.alphas)
        with self.full_precision():
            return self.gradients(self.weight_loss(weights, alphas), alphas)[0]

    def in_float64(self) -> Bilevel:
        """Return the same problem with weights and alphas in float64; the losses must take them."""
        return replace(self, weights=_in_float64(self.weights), alphas=_in_float64(self.alphas))

    def full_precision(self) -> AbstractContextManager[None]:
        """Return a context without autocast and without TF32, for passes that a difference is taken of."""
        return full_precision(next(iter(self.weights.values())).device.type)


@dataclass(frozen=True)
class AlphaGradient:
    """A hypergradient and what it is made of, each with the alphas' names and shapes.

    `total` = `direct` + `correction`, where `correction` is - xi * mixed product and empty for order 1. `distance` is
    the factor of v by which a finite difference moves the weights, epsilon / |v|; None without a finite difference.
    """

    total: Tensors
    direct: Tensors
    correction: Tensors
    arch_loss: Tensor
    distance: Tensor | None = None


class Hypergradient(Protocol):
    """What the search step asks for.

    Attributes:
        order: 1 or 2, as the config has it.
        unrolls: whether it takes a virtual step, so that the weights' optimiser must be one that `VirtualStep` knows.
        differentiates_twice: whether the space must have second derivatives, which its fused form has not.
    """

    order: ClassVar[int]
    unrolls: ClassVar[bool]
    differentiates_twice: ClassVar[bool]

    def __call__(self, problem: Bilevel) -> AlphaGradient:
        """Return the alphas' gradient at one point of the search."""
        ...


@dataclass(frozen=True)
class FirstOrder:
    """xi = 0: the direct term at the present weights. Two passes a search step."""

    order: ClassVar[int] = 1
    unrolls: ClassVar[bool] = False
    differentiates_twice: ClassVar[bool] = False
    is_direct: ClassVar[bool] = True  # the direct term alone, which a method of one level has from the weights' pass

    def __call__(self, problem: Bilevel) -> AlphaGradient:
        """Return grad_a L_a(w, a)."""
        alphas = _leaves(problem.alphas)
        loss = problem.arch_loss(_detached(problem.weights), alphas)
        (direct,) = problem.gradients(loss, alphas)
        return AlphaGradient(total=direct, direct=direct, correction={}, arch_loss=loss.detach())


@dataclass(frozen=True)
class FiniteDifference:
    """The paper's second order: the mixed product by a central difference (equation 8). Five passes a search step.

    The weights are moved by `epsilon` / |v| along v, both ways. The error is O(epsilon^2) where the losses are smooth. With
    ReLUs and max pools they are not: those that switch on the way make nearly all of the error, which grows as epsilon
    falls, until none switches. That takes an epsilon that only float64 can tell from 0 (docs/hypergradients.md).

    Attributes:
        epsilon: the length by which the weights move.
        in_float64: whether the two passes that are subtracted are computed in float64.
    """

    epsilon: float = 0.01
    in_float64: bool = False
    order: ClassVar[int] = 2
    unrolls: ClassVar[bool] = True
    differentiates_twice: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)

    def __call__(self, problem: Bilevel) -> AlphaGradient:
        """Return h with the mixed product [grad_a L_w(w + e v, a) - grad_a L_w(w - e v, a)] / 2e."""
        weights = _leaves(problem.weights)
        (gradients,) = problem.gradients(problem.weight_loss(weights, _detached(problem.alphas)), weights)
        v, direct, loss = problem.at(problem.virtual_weights(gradients))
        around = problem.in_float64() if self.in_float64 else problem
        e = _distance(self.epsilon, v)
        ahead = around.alpha_gradient(around.moved_weights(v, e))
        behind = around.alpha_gradient(around.moved_weights(v, -e))
        mixed = {name: ((ahead[name] - behind[name]) / (2 * e)).to(term.dtype) for name, term in direct.items()}
        return _combine(direct, mixed, problem.step.lr, loss, distance=e)


@dataclass(frozen=True)
class OneSided:
    """Second order by a forward difference. Four passes: grad_a L_w(w, a) falls out of the virtual step's own pass.

    The error is O(epsilon), against O(epsilon^2) of the central difference.
    """

    epsilon: float = 0.01
    order: ClassVar[int] = 2
    unrolls: ClassVar[bool] = True
    differentiates_twice: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)

    def __call__(self, problem: Bilevel) -> AlphaGradient:
        """Return h with the mixed product [grad_a L_w(w + e v, a) - grad_a L_w(w, a)] / e."""
        weights, alphas = _leaves(problem.weights), _leaves(problem.alphas)
        with problem.full_precision():
            gradients, here = problem.gradients(problem.weight_loss(weights, alphas), weights, alphas)
        v, direct, loss = problem.at(problem.virtual_weights(gradients))
        e = _distance(self.epsilon, v)
        ahead = problem.alpha_gradient(problem.moved_weights(v, e))
        mixed = {name: (ahead[name] - here[name]) / e for name in direct}
        return _combine(direct, mixed, problem.step.lr, loss, distance=e)


# What torch says where an operation has no forward derivative, or where (2.14) it adds to a derivative that is zero.
_NO_FORWARD = ("forward AD", "forward mode AD", "ZeroTensors are immutable")


@dataclass(frozen=True)
class Exact:
    """Second order with the mixed product itself. No epsilon, so it judges the others.

    The product is the derivative of grad_a L_w(w, a) along v: forward over reverse, a pass for the alphas with tangents.
    Where an operation has no forward derivative, it is grad_a <grad_w L_w(w, a), v>, by double backward, which takes more
    time and gives the same up to rounding.

    Attributes:
        forward: whether to go forward over reverse where that can be done.
    """

    forward: bool = True
    order: ClassVar[int] = 2
    unrolls: ClassVar[bool] = True
    differentiates_twice: ClassVar[bool] = True
    _without_forward: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def __call__(self, problem: Bilevel) -> AlphaGradient:
        """Return h up to rounding. The losses must have second derivatives: `check_space` looks whether they do."""
        if self.forward and not self._without_forward:
            try:
                return self._forward_over_reverse(problem)
            except RuntimeError as error:
                if not any(words in str(error) for words in _NO_FORWARD):
                    raise
                self._without_forward.append(str(error))
        return self._reverse_over_reverse(problem)

    def _forward_over_reverse(self, problem: Bilevel) -> AlphaGradient:
        weights = _leaves(problem.weights)
        (gradients,) = problem.gradients(problem.weight_loss(weights, _detached(problem.alphas)), weights)
        v, direct, loss = problem.at(problem.virtual_weights(gradients))
        alphas = _leaves(problem.alphas)
        with warnings.catch_warnings(), problem.full_precision(), forward_ad.dual_level():
            # torch makes some of its forward derivatives by a function that it has itself declared outdated.
            warnings.filterwarnings("ignore", message="`torch.jit.script", category=FutureWarning)
            moving = {
                name: forward_ad.make_dual(w, torch.empty_like(w).copy_(v[name]))
                for name, w in _detached(problem.weights).items()
            }
            of_alphas = torch.autograd.grad(
                problem.weight_loss(moving, alphas), list(alphas.values()), allow_unused=True, materialize_grads=True
            )
            tangents = [forward_ad.unpack_dual(gradient).tangent for gradient in of_alphas]
        known = [torch.zeros_like(a) if t is None else t for a, t in zip(of_alphas, tangents, strict=True)]
        mixed = dict(zip(alphas, problem.average(known), strict=True))
        return _combine(direct, mixed, problem.step.lr, loss)

    def _reverse_over_reverse(self, problem: Bilevel) -> AlphaGradient:
        weights, alphas = _leaves(problem.weights), _leaves(problem.alphas)
        weight_loss = problem.weight_loss(weights, alphas)
        leaves = list(weights.values())
        graph = torch.autograd.grad(weight_loss, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
        averaged = problem.average([gradient.detach() for gradient in graph])
        v, direct, loss = problem.at(problem.virtual_weights(dict(zip(weights, averaged, strict=True))))
        product = torch.stack([(g * v[name]).sum() for name, g in zip(weights, graph, strict=True)]).sum()
        (mixed,) = problem.gradients(product, alphas)
        return _combine(direct, mixed, problem.step.lr, loss)


def of_order(order: int) -> Hypergradient:
    """Return the paper's hypergradient of an order: 1 is `FirstOrder`, 2 is `FiniteDifference`."""
    assert order in (1, 2)
    return FirstOrder() if order == 1 else FiniteDifference()


def norm(tensors: Tensors) -> Tensor:
    """Return the 2-norm over all tensors."""
    return torch.stack(torch._foreach_norm(list(tensors.values()))).norm()


def _distance(epsilon: float, v: Tensors) -> Tensor:
    """Return epsilon / |v|. Where v vanishes so does the mixed product, and any finite distance will do."""
    length = norm(v)
    return epsilon / length.clamp_min(torch.finfo(length.dtype).eps)


def _leaves(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}


def _detached(tensors: Tensors) -> Tensors:
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _in_float64(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().double() for name, tensor in tensors.items()}


def _combine(
    direct: Tensors, mixed: Tensors, lr: float, loss: Tensor, *, distance: Tensor | None = None
) -> AlphaGradient:
    correction = {name: -lr * product for name, product in mixed.items()}
    total = {name: direct[name] + correction[name] for name in direct}
    return AlphaGradient(total=total, direct=direct, correction=correction, arch_loss=loss, distance=distance)


def _check_epsilon(epsilon: float) -> None:
    if not 0 < epsilon < float("inf"):
        raise must_be("epsilon", "a number above 0", epsilon)
