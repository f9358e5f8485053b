from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.bilevel.unroll import VirtualStep


@given(
    lr=st.floats(1e-4, 1.0),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    decay=st.sampled_from([0.0, 3e-4, 0.1]),
    steps=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_the_virtual_step_is_the_real_one(lr: float, momentum: float, decay: float, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weights = {name: torch.nn.Parameter(draw(shape)) for name, shape in {"a": (3,), "b": (2, 2)}.items()}
    optimizer = torch.optim.SGD(weights.values(), lr=lr, momentum=momentum, weight_decay=decay)

    def give_gradients() -> dict[str, torch.Tensor]:
        for weight in weights.values():
            weight.grad = draw(tuple(weight.shape))
        return {name: weight.grad.clone() for name, weight in weights.items() if weight.grad is not None}

    for _ in range(steps):
        give_gradients()
        optimizer.step()
    gradients = give_gradients()
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    virtual = VirtualStep.of(optimizer, weights)({name: weight.detach() for name, weight in weights.items()}, gradients)
    assert all(torch.equal(weights[name], start[name]) for name in weights)
    optimizer.step()
    for name, weight in weights.items():
        torch.testing.assert_close(virtual[name], weight.detach(), rtol=1e-12, atol=1e-12)


def test_xi_is_the_current_learning_rate() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.1)
    weight.grad = torch.ones(1)
    optimizer.step()
    scheduler.step()
    assert VirtualStep.of(optimizer, {"w": weight}).lr == pytest.approx(0.05)


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.Adam,
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
        lambda p: torch.optim.SGD([{"params": [p[0]]}, {"params": [p[1]]}], lr=0.1),
    ],
)
def test_other_optimisers_are_refused(make) -> None:
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    with pytest.raises(ValueError, match=r"must be torch\.optim\.SGD with one group"):
        VirtualStep.of(make(parameters), {"a": parameters[0], "b": parameters[1]})
