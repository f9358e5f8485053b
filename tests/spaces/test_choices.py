from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from src.architectures.architecture import Architecture
from src.methods.discretizers import Strongest
from src.spaces.choices import InputChoice, LayerChoice, fix
from src.spaces.relaxed import RelaxedSpace


class Perceptron(nn.Module):
    """A space of one's own: two layers that share their choice, a third, and a choice of what the head reads."""

    def __init__(self, width: int = 6, classes: int = 3) -> None:
        super().__init__()

        def layer(key: str) -> LayerChoice:
            return LayerChoice(
                {"relu": nn.Sequential(nn.Linear(width, width), nn.ReLU()), "linear": nn.Linear(width, width)}, key=key
            )

        self.first, self.second, self.third = layer("twins"), layer("twins"), layer("third")
        self.read = InputChoice(["early", "middle", "late"], n_chosen=2, key="read")
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        early = self.first(x)
        middle = self.second(early)
        return self.head(self.read([early, middle, self.third(middle)]))


def test_keys_share_alphas_and_inputs_have_their_own() -> None:
    net = RelaxedSpace(Perceptron())
    assert {key: alpha.numel() for key, alpha in net.alphas.items()} == {"twins": 2, "third": 2, "read": 3}
    assert net.candidates()["read"] == ("early", "middle", "late")
    loss = net(torch.randn(4, 6)).square().sum()
    gradients = torch.autograd.grad(loss, list(net.alphas.values()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_the_relaxation_by_hand() -> None:
    space = Perceptron().double()
    net = RelaxedSpace(space, init_scale=1.0).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    twins, third, read = (net.alphas[key].softmax(0) for key in ("twins", "third", "read"))

    def mix(choice: LayerChoice, weights: Tensor, value: Tensor) -> Tensor:
        return weights[0] * choice.candidates["relu"](value) + weights[1] * choice.candidates["linear"](value)

    early = mix(space.first, twins, x)
    middle = mix(space.second, twins, early)
    late = mix(space.third, third, middle)
    expected = space.head(read[0] * early + read[1] * middle + read[2] * late)
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)


def test_derive_and_fix() -> None:
    net = RelaxedSpace(Perceptron())
    with torch.no_grad():
        net.alphas["twins"].copy_(torch.tensor([0.0, 1.0]))
        net.alphas["third"].copy_(torch.tensor([1.0, 0.0]))
        net.alphas["read"].copy_(torch.tensor([0.5, -1.0, 0.2]))
    architecture = Strongest()(net.by_name(net.softmax()), net.spec)
    assert architecture.choices == {"twins": "linear", "third": "relu", "read": ("early", "late")}
    space = Perceptron()
    first, second, third, head = space.first, space.second, space.third, space.head
    fixed = fix(space, architecture)
    assert not any(isinstance(module, LayerChoice | InputChoice) for module in fixed.modules())
    x = torch.randn(4, 6)
    early = first.candidates["linear"](x)
    late = third.candidates["relu"](second.candidates["linear"](early))
    torch.testing.assert_close(fixed(x), head(early + late))


def test_fix_drops_edges() -> None:
    class Edges(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = LayerChoice({"none": nn.Identity(), "pass_on": nn.Identity()}, key="a")
            self.b = LayerChoice({"none": nn.Identity(), "pass_on": nn.Identity()}, key="b")
            self.pick = InputChoice(["a", "b"], n_chosen=1, key="pick")

        def forward(self, x: Tensor) -> Tensor:
            return self.pick([self.a(x), self.b(10 * x)])

    fixed = fix(Edges(), Architecture({"a": None, "b": "pass_on", "pick": ("b",)}))
    assert torch.equal(fixed(torch.ones(2)), torch.full((2,), 10.0))
    with pytest.raises(ValueError, match="no answer for b"):
        fix(Edges(), Architecture({"a": None, "pick": ("b",)}))


def test_a_choice_within_a_choice() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inner = LayerChoice({"one": nn.Linear(3, 3), "two": nn.Linear(3, 3)}, key="inner")
            self.outer = LayerChoice({"inner": inner, "skip": nn.Identity()}, key="outer")

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(x)

    net = RelaxedSpace(Nested())
    assert set(net.alphas) == {"outer", "inner"}
    assert net(torch.randn(2, 3)).shape == (2, 3)
    space = Nested()
    inner = space.outer.candidates["inner"]
    assert isinstance(inner, LayerChoice)
    two = inner.candidates["two"]
    assert fix(space, Architecture({"outer": "inner", "inner": "two"})).outer is two


def test_spaces_that_make_no_sense_are_refused() -> None:
    class Holds(nn.Module):
        def __init__(self, *choices: nn.Module) -> None:
            super().__init__()
            self.choices = nn.ModuleList(choices)

    def layer(*names: str) -> LayerChoice:
        return LayerChoice({name: nn.Identity() for name in names}, key="k")

    with pytest.raises(ValueError, match="nothing to search"):
        RelaxedSpace(Holds())
    with pytest.raises(ValueError, match="'k' differ in their candidates"):
        RelaxedSpace(Holds(layer("a", "b"), layer("a", "c")))
    with pytest.raises(ValueError, match="mixes keys of LayerChoices"):
        RelaxedSpace(Holds(layer("a", "b"), InputChoice(["k", "other"], n_chosen=1, key="pick")))
    with pytest.raises(ValueError, match="no candidate besides 'none'"):
        layer("none")
    with pytest.raises(ValueError, match="candidate 'double'"):
        layer("double")
    with pytest.raises(ValueError, match="is not an identifier"):
        LayerChoice({"a": nn.Identity()}, key="a.b")
    with pytest.raises(ValueError, match="allowed are 1 to all"):
        InputChoice(["a"], n_chosen=2, key="pick")
