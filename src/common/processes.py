"""What the processes of one run tell each other. In a single process every function here hands its argument back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch import distributed as dist


def world_size() -> int:
    """Return the number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among those of the run, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def total(tensor: Tensor) -> Tensor:
    """Return the sum of the processes' tensors, as a new tensor without a graph."""
    tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def average(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the mean over the processes of each tensor; all travel in one flat buffer, so as one collective."""
    if world_size() == 1:
        return list(tensors)
    flat = total(torch.cat([tensor.detach().reshape(-1) for tensor in tensors])).div_(world_size())
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def largest(values: Sequence[int], device: torch.device) -> list[int]:
    """Return the largest of the processes' values, place by place."""
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(list(values), device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def gather(thing: Any) -> list[Any]:
    """Return the processes' things (primitives and tensors), in the order of their ranks."""
    if world_size() == 1:
        return [thing]
    things: list[Any] = [None] * world_size()
    dist.all_gather_object(things, thing)
    return things


def shared(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return tensors, the same on all processes, whose gradient is the mean of the processes' gradients."""
    return tensors if world_size() == 1 else cast(Sequence[Tensor], _Shared.apply(*tensors))


class _Shared(torch.autograd.Function):
    """The same tensors; backward, one message for all of them."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(average(grads))


class Total(torch.autograd.Function):
    """`total` with a gradient, which may be differentiated again.

    If L is the sum of the processes' losses, the gradient of L by each process's tensor is the sum of what the
    processes send back.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """Sum over the processes."""
        return total(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Sum what the processes send back."""
        return cast(Tensor, Total.apply(grad))

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Sum the tangents: the sum is linear."""
        return cast(Tensor, Total.apply(tangent))
