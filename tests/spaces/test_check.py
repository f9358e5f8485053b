"""What the dry pass finds wrong with a space, and that it leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from src.common.errors import ConfigError
from src.spaces.check import check_space
from src.spaces.choices import InputChoice, LayerChoice


def layer(key: str = "k", **candidates: nn.Module) -> LayerChoice:
    return LayerChoice(candidates or {"wide": nn.Linear(3, 3), "skip": nn.Identity()}, key=key)


class Space(nn.Module):
    """A space of the given modules, whose forward is the given function."""

    def __init__(self, run: Callable[..., object], **modules: object) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.run = run

    def forward(self, *inputs: Tensor) -> object:
        return self.run(self, *inputs)


class Rows(nn.Module):
    """Returns one column: a shape that would broadcast."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1]


def pick(*names: str) -> InputChoice:
    return InputChoice(names, n_chosen=1, key="pick")


WRONG = {
    "another shape": (
        Space(lambda space, x: space.a(x), a=layer(wide=nn.Linear(3, 3), narrow=nn.Linear(3, 2))),
        r"candidate 'narrow' of LayerChoice 'k' must have the shape of candidate 'wide', \(2, 3\), got \(2, 2\)",
    ),
    "a shape that broadcasts": (
        Space(lambda space, x: space.a(x), a=layer(wide=nn.Linear(3, 3), rows=Rows())),
        r"candidate 'rows' of LayerChoice 'k' must have the shape of candidate 'wide', \(2, 3\), got \(2, 1\)",
    ),
    "no tensor": (
        Space(lambda space, x: space.a(x)[0], a=layer(lstm=nn.LSTM(3, 3), gru=nn.GRU(3, 3))),
        "candidate 'lstm' of LayerChoice 'k' must be a tensor, got tuple",
    ),
    "inputs of two shapes": (
        Space(lambda space, x: space.pick([x, x[:, :1]]), pick=pick("all", "first")),
        r"input 'first' of InputChoice 'pick' must have the shape of input 'all', \(2, 3\), got \(2, 1\)",
    ),
    "too few inputs": (
        Space(lambda space, x: space.pick([x]), pick=pick("all", "first")),
        "InputChoice 'pick' must be called with a list of 2 tensors, got 1",
    ),
    "one input": (
        Space(lambda space, x: space.pick(x), pick=pick("all", "first")),
        "InputChoice 'pick' must be called with a list of 2 tensors, got one tensor",
    ),
    "never called": (
        Space(lambda space, x: space.a(x), a=layer("a"), b=layer("b")),
        "LayerChoice 'b' is never called",
    ),
    "never called, though its key is": (
        Space(lambda space, x: space.a(x), a=layer("a"), b=layer("a")),
        "LayerChoice 'a' is never called",
    ),
    "output not used": (
        Space(lambda space, x: (space.b(x), space.a(x))[1], a=layer("a"), b=layer("b")),
        "the output of the space does not depend on LayerChoice 'b'",
    ),
    "made in forward": (
        Space(lambda space, x: layer("late")(space.a(x)), a=layer()),
        r"LayerChoice 'late' was called, but no RelaxedSpace holds it; .* must be made in __init__ \(not in forward\)",
    ),
    "in a plain list": (
        Space(lambda space, x: space.more[0](space.a(x)), a=layer(), more=[layer("hidden")]),
        r"LayerChoice 'hidden' was called, but no RelaxedSpace holds it; .* \(not in a list or dict\)",
    ),
    "inputs in a plain dict": (
        Space(lambda space, x: space.more["pick"]([space.a(x), x]), a=layer(), more={"pick": pick("one", "two")}),
        r"InputChoice 'pick' was called, but no RelaxedSpace holds it",
    ),
    "all in a plain list": (
        Space(lambda space, x: space.more[0](x), more=[layer()]),
        "there is nothing to search; a choice must be an attribute of a module",
    ),
    "keys that clash": (
        Space(lambda space, x: space.b(space.a(x)), a=layer(), b=layer(other=nn.Identity())),
        "choices that share the key 'k' must have the same options",
    ),
    "an input that looks like an edge": (
        Space(lambda space, x: space.pick([x, space.a(x)]), a=layer(), pick=pick("x", "k")),
        "must be keys of LayerChoices .edges. or other names, not both, got the keys k and the names x",
    ),
    "an edge that is none": (
        Space(lambda s, x: s.pick([s.a(x), s.b(x).relu()]), a=layer("a"), b=layer("b"), pick=pick("a", "b")),
        "input 'b' of InputChoice 'pick' must be what LayerChoice 'b' returns",
    ),
    "edges in another order": (
        Space(lambda s, x: s.pick([s.a(x), s.b(x)]), a=layer("a"), b=layer("b"), pick=pick("b", "a")),
        "input 'b' of InputChoice 'pick' must be what LayerChoice 'b' returns",
    ),
    "an edge used elsewhere": (
        Space(lambda s, x: s.pick([s.a(x), b := s.b(x)]) + b, a=layer("a"), b=layer("b"), pick=pick("a", "b")),
        "the output of LayerChoice 'b' is an edge of InputChoice 'pick' and is used elsewhere too",
    ),
    "too many outputs": (
        Space(lambda space, x: torch.cat([space.a(x)] * 2, dim=1), a=layer()),
        r"the output of the space must have 3 values for each sample \(num_classes\), the shape \(2, 3\), got \(2, 6\)",
    ),
    "one output": (
        Space(lambda space, x: space.a(x)[:, 0], a=layer()),
        r"must have 3 values for each sample .* got \(2,\)",
    ),
    "no batch": (
        Space(lambda space, x: space.a(x).sum(0), a=layer()),
        r"the output of the space must have 2 rows for 2 samples, got the shape \(3,\)",
    ),
    "two outputs": (
        Space(lambda space, x: (space.a(x), x), a=layer()),
        "the output of the space must be a tensor, got tuple",
    ),
    "lazy modules": (
        Space(lambda space, x: space.lazy(space.a(x)), a=layer(), lazy=nn.LazyLinear(3)),
        "the parameter lazy.weight has no size yet",
    ),
}


@pytest.mark.parametrize(("space", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(space: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_space(space, torch.randn(2, 3), outputs=3)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_the_space_keeps_its_traceback() -> None:
    def run(space: nn.Module, x: Tensor) -> Tensor:
        return space.get_submodule("a")(x) + x.undefined  # pyright: ignore[reportAttributeAccessIssue]

    with pytest.raises(AttributeError, match="undefined"):
        check_space(Space(run, a=layer()), torch.randn(2, 3))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        check_space(Space(lambda space, x: space.a(x), a=layer()), torch.randn(2, 4))


def test_a_regression_may_return_one_value_a_sample_without_a_column() -> None:
    check_space(Space(lambda space, x: space.a(x)[:, 0], a=layer()), torch.randn(2, 3), outputs=1)


def test_it_leaves_no_trace() -> None:
    def run(space: nn.Module, x: Tensor) -> Tensor:
        random.random()
        np.random.rand()  # noqa: NPY002
        return space.get_submodule("dropout")(space.get_submodule("norm")(space.get_submodule("a")(x)))

    space = Space(run, a=layer(), norm=nn.BatchNorm1d(3), dropout=nn.Dropout()).eval()
    before = {name: value.clone() for name, value in space.state_dict().items()}
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    expected = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    check_space(space, torch.randn(2, 3, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.rand(3), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]  # noqa: NPY002
    assert not space.training
    assert all(torch.equal(value, before[name]) for name, value in space.state_dict().items())
    assert all(parameter.grad is None for parameter in space.parameters())
