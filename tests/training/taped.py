"""The twin of a CUDA graph on a CPU: it records the operators of a program and replays them on the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves


class HostWaitsError(RuntimeError):
    """An operator for which the host would wait for a GPU."""


class NoWaiting(TorchDispatchMode):
    """Raises for an operator whose result the host needs to know, a value or a size, and for a tensor of host numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        depends = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        if depends or func is torch.ops.aten.lift_fresh.default:
            raise HostWaitsError(f"the host would wait for {func}")
        return func(*args, **(kwargs or {}))


class _Tape(NoWaiting):
    """Notes the operators that run within it, with the very tensors that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[tuple[int, Tensor]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = super().__torch_dispatch__(func, types, args, kwargs)
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = [
            (index, leaf)
            for index, leaf in enumerate(tree_leaves(result))
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given  # no view, not in place
        ]
        self.calls.append((func, args, kwargs, made))
        return result

    def play(self) -> None:
        """Run all operators again; each writes where it wrote before."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):  # their casts are operators of the tape
            for func, args, kwargs, made in self.calls:
                again = tree_leaves(func(*args, **kwargs))
                for index, tensor in made:
                    if tensor._is_zerotensor():  # of forward derivatives; it cannot be written
                        continue
                    tensor.detach().copy_(again[index])


class Taped:
    """A `Recorder`. As with graphs that share memory, a replay writes over the results of recordings made after it."""

    def __init__(self) -> None:
        self.results: list[Any] = []

    def warm(self, program: Callable[[], Any]) -> tuple[Any, str | None]:
        return program(), None

    def record(self, program: Callable[[], Any]) -> tuple[Any, Callable[[], object]]:
        with _Tape() as tape:
            result = program()
        self.results.append(result)
        place = len(self.results)

        def replay() -> None:
            tape.play()
            for later in self.results[place:]:
                for leaf in tree_flatten(later)[0]:
                    if isinstance(leaf, Tensor) and leaf.is_floating_point():
                        leaf.detach().fill_(float("nan"))

        return result, replay
