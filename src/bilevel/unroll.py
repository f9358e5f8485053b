"""The virtual step: where the weights would be after one step of their optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from src.common.errors import ConfigError

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class VirtualStep:
    """One step of SGD with momentum, as a function: w' = w - lr (momentum * velocity + gradient + weight_decay * w).

    Equation 6 of arXiv 1806.09055 with the momentum and the weight decay of the real step, as in the paper's code.
    `lr` is the inner learning rate xi, `velocity` SGD's momentum buffers; a weight has none before its first step.
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    velocity: Mapping[str, Tensor] | None = None

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor]) -> VirtualStep:
        """Return the step that `optimizer` would take now, at its current learning rate, before any clipping.

        Raises:
            ConfigError: the optimiser is not plain SGD over one group of parameters.
        """
        check_unrollable(optimizer)
        group = optimizer.param_groups[0]
        velocity = {
            name: buffer
            for name, weight in weights.items()
            if (buffer := optimizer.state.get(weight, {}).get("momentum_buffer")) is not None
        }
        return cls(
            lr=float(group["lr"]),
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            velocity=velocity or None,
        )

    def __call__(self, weights: Tensors, gradients: Tensors) -> Tensors:
        """Return w' as new tensors; `weights` and `gradients` share their names and stay as they are."""
        start = list(weights.values())
        direction = torch._foreach_add([gradients[name] for name in weights], start, alpha=self.weight_decay)
        if self.velocity:
            moving = {name: move for name, move in zip(weights, direction, strict=True) if name in self.velocity}
            torch._foreach_add_(list(moving.values()), [self.velocity[name] for name in moving], alpha=self.momentum)
        return dict(zip(weights, torch._foreach_add(start, direction, alpha=-self.lr), strict=True))


def check_unrollable(optimizer: torch.optim.Optimizer) -> None:
    """Raise a `ConfigError` unless the virtual step can say exactly what `optimizer` does."""
    groups = optimizer.param_groups
    plain = isinstance(optimizer, torch.optim.SGD) and len(groups) == 1
    if not plain or groups[0]["nesterov"] or groups[0]["dampening"] or groups[0]["maximize"]:
        raise ConfigError(
            "order 2 unrolls the weights' optimiser, which must be torch.optim.SGD with one group of parameters and "
            f"without nesterov, dampening or maximize, got {_summary(optimizer)}"
        )


def _summary(optimizer: torch.optim.Optimizer) -> str:
    groups = optimizer.param_groups
    flags = [name for name in ("nesterov", "dampening", "maximize") if groups[0].get(name)]
    several = [f"{len(groups)} groups"] if len(groups) > 1 else []
    return " with ".join([type(optimizer).__name__, *[", ".join([*flags, *several])][: bool(flags or several)]])
