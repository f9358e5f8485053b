from __future__ import annotations

import random
from copy import deepcopy

import pytest
import torch
from conformance.space import SpaceConformance, all_have_gradients, drawn_architecture, one_hot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from src.architectures.architecture import Architecture
from src.common.errors import ConfigError
from src.methods.discretizers import Strongest
from src.spaces.check import check_space
from src.spaces.choices import InputChoice, LayerChoice, choices_of, fix
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


class TestPerceptron(SpaceConformance):
    outputs = 3

    def space(self) -> nn.Module:
        return Perceptron()

    def inputs(self) -> tuple[Tensor, ...]:
        return (torch.randn(4, 6, generator=torch.Generator().manual_seed(0)),)


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


def test_a_space_may_itself_be_a_choice() -> None:
    def space() -> LayerChoice:
        inner = LayerChoice({"one": nn.Linear(3, 3), "two": nn.Linear(3, 3)}, key="inner")
        return LayerChoice({"inner": inner, "skip": nn.Identity()}, key="outer")

    net = RelaxedSpace(space())
    assert all_have_gradients(net, torch.randn(2, 3))
    fixed = fix(space(), Architecture({"outer": "inner", "inner": "two"}))
    assert isinstance(fixed, nn.Linear)


def test_one_choice_in_two_places() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = LayerChoice({"wide": nn.Linear(3, 3), "skip": nn.Identity()}, key="k")
            self.second = self.first  # of the same parent, which `named_children` lists once
            self.inner = nn.Sequential(self.first)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.second(self.first(x)))

    net = RelaxedSpace(Twice(), mixed_op=lambda choice: nn.Sequential(choice, nn.Tanh()))
    assert net.space.get_submodule("first") is net.space.get_submodule("second") is net.space.get_submodule("inner.0")
    assert all_have_gradients(net, torch.randn(2, 3))
    fixed = fix(Twice(), Architecture({"k": "wide"}))
    assert not list(choices_of(fixed))
    assert fixed.get_submodule("first") is fixed.get_submodule("second") is fixed.get_submodule("inner.0")
    assert sum(parameter.numel() for parameter in fixed.parameters()) == 12
    assert fixed(torch.randn(2, 3)).shape == (2, 3)


def test_a_registered_choice_may_be_called_through_a_list() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = LayerChoice({"wide": nn.Linear(3, 3), "skip": nn.Identity()}, key="a")
            self.pick = InputChoice(["x", "y"], n_chosen=1, key="pick")
            self.layers = [self.a, self.pick]

        def forward(self, x: Tensor) -> Tensor:
            a, pick = self.layers
            return pick([a(x), x])

    assert all_have_gradients(RelaxedSpace(Listed()), torch.randn(2, 3))
    fixed = deepcopy(fix(Listed(), Architecture({"a": "skip", "pick": ("x",)})))
    x = torch.randn(2, 3)
    assert torch.equal(fixed(x), x)
    assert not list(fixed.parameters())


class Edges(nn.Module):
    """Two nodes; one edge leads into both."""

    def __init__(self, calls: list[str] | None = None) -> None:
        super().__init__()

        def edge(key: str) -> LayerChoice:
            wide = nn.Linear(3, 3)
            wide.register_forward_hook(lambda *_: None if calls is None else calls.append(key))
            return LayerChoice({"none": Nothing(), "wide": wide}, key=key)

        self.a, self.b, self.c = edge("a"), edge("b"), edge("c")
        self.first = InputChoice(["a", "b"], n_chosen=1, key="first")
        self.second = InputChoice(["b", "c"], n_chosen=1, key="second")

    def forward(self, x: Tensor) -> Tensor:
        b = self.b(x)
        return self.second([b, self.c(self.first([self.a(x), b]))])


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_an_edge_into_two_nodes_is_kept_if_either_keeps_it() -> None:
    net = RelaxedSpace(Edges())
    with torch.no_grad():
        for key, strength in (("a", 2.0), ("b", 1.0), ("c", 0.0)):
            net.alphas[key].copy_(torch.tensor([0.0, strength]))
    architecture = Strongest()(net.by_name(net.softmax()), net.spec)
    assert architecture.choices == {"a": "wide", "b": "wide", "c": None, "first": ("a",), "second": ("b",)}
    assert Architecture.parse(architecture.to_plain(), net.spec) == architecture


def test_dropped_edges_do_not_run() -> None:
    calls: list[str] = []
    fixed = fix(Edges(calls), Architecture({"a": None, "b": "wide", "c": "wide", "first": ("b",), "second": ("c",)}))
    fixed(torch.randn(2, 3))
    assert calls == ["b", "c"]
    assert sum(parameter.numel() for parameter in fixed.parameters()) == 2 * 12


class RandomSpace(nn.Module):
    """A space drawn by a seed, on vectors or signals: nested choices, shared keys and modules, edges, several inputs."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.conv = draw.random() < 0.5
        self.widths = (2, 3)
        keys = [f"k{number}" for number in range(draw.randint(1, 3))]
        nests = draw.random() < 0.5
        self.layers = nn.ModuleList(self.layer(draw.choice(keys), nests=nests) for _ in range(draw.randint(1, 4)))
        if draw.random() < 0.5:
            self.layers.append(self.layers[0])  # one module in two places
        self.edges = nn.ModuleList(self.layer(f"e{number}", none=True) for number in range(draw.randint(2, 4)))
        names = [f"e{number}" for number in range(len(self.edges))]
        self.node = InputChoice(names, n_chosen=draw.randint(1, len(names)), key="node")
        self.read = InputChoice(["x", "other", "node"], n_chosen=draw.randint(1, 3), key="read")
        self.head = LayerChoice({"linear": nn.Linear(3, 2), "scaled": nn.Linear(3, 2, bias=False)}, key="head")

    def layer(self, key: str, *, none: bool = False, nests: bool = False) -> LayerChoice:
        mix = nn.Conv1d(3, 3, 1) if self.conv else nn.Linear(3, 3)
        norm = nn.BatchNorm1d(3)
        candidates: dict[str, nn.Module] = {"none": Nothing()} if none else {}
        candidates |= {"mix": mix, "norm": nn.Sequential(norm, nn.Tanh()), "skip": nn.Identity()}
        if nests:
            candidates["nested"] = self.layer(f"{key}_nested")
        return LayerChoice(candidates, key=key)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        node = self.node([edge(states[min(i, len(states) - 1)]) for i, edge in enumerate(self.edges)])
        out = self.read([states[-1], other, node])
        return self.head(out.mean(2) if self.conv else out)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.booleans())
@settings(max_examples=60)
def test_fix_equals_one_hot_mixing_weights(space_seed: int, seed: int, training: bool) -> None:
    torch.manual_seed(seed)
    space = RandomSpace(space_seed).double().train(training)
    shape = (4, 3, 5) if space.conv else (4, 3)
    inputs = [torch.randn(shape, dtype=torch.float64) for _ in range(2)]
    net = RelaxedSpace(deepcopy(space)).double()
    check_space(space, *inputs, outputs=2)
    assert all_have_gradients(net, *inputs)
    net = RelaxedSpace(deepcopy(space))
    architecture = drawn_architecture(net, seed)
    expected = net(*inputs, mixing=one_hot(net, architecture))
    fixed = fix(space, architecture)
    assert not list(choices_of(fixed))
    assert not [name for name, _ in fixed.named_parameters() if "alphas" in name]
    torch.testing.assert_close(fixed(*inputs), expected, rtol=1e-12, atol=1e-12)


def test_spaces_that_make_no_sense_are_refused() -> None:
    class Holds(nn.Module):
        def __init__(self, *choices: nn.Module) -> None:
            super().__init__()
            self.choices = nn.ModuleList(choices)

    def layer(*names: str) -> LayerChoice:
        return LayerChoice({name: nn.Identity() for name in names}, key="k")

    with pytest.raises(ConfigError, match="nothing to search; a choice must be an attribute"):
        RelaxedSpace(Holds())
    same = "choices that share the key 'k' must have the same options"
    with pytest.raises(ConfigError, match=f"{same}, got the candidates a, b and the candidates a, c"):
        RelaxedSpace(Holds(layer("a", "b"), layer("a", "c")))
    with pytest.raises(ConfigError, match=same):  # of which an architecture could name the same
        RelaxedSpace(Holds(layer("a", "b"), layer("none", "a", "b")))
    with pytest.raises(ConfigError, match=f"{same}, got the candidates a, b and 1 of the inputs x, y"):
        RelaxedSpace(Holds(layer("a", "b"), InputChoice(["x", "y"], n_chosen=1, key="k")))
    with pytest.raises(ConfigError, match="not both, got the keys k and the names other"):
        RelaxedSpace(Holds(layer("a", "b"), InputChoice(["k", "other"], n_chosen=1, key="pick")))
    with pytest.raises(ConfigError, match="must have a candidate besides 'none'"):
        layer("none")
    for name in ("double", "training", "a b"):
        with pytest.raises(ConfigError, match=f"name of an attribute of modules, got '{name}'"):
            layer(name)
    for key in ("a.b", "values", "training"):
        with pytest.raises(ConfigError, match=f"key of a choice must be an identifier .* got '{key}'"):
            LayerChoice({"a": nn.Identity()}, key=key)
    with pytest.raises(ConfigError, match="n_chosen of InputChoice 'pick' must be 1 to 1, got 2"):
        InputChoice(["a"], n_chosen=2, key="pick")
    with pytest.raises(ConfigError, match="must have different names, got a, a"):
        InputChoice(["a", "a"], n_chosen=1, key="pick")


@pytest.mark.parametrize(
    "choice", [LayerChoice({"a": nn.Identity()}, key="k"), InputChoice(["a"], n_chosen=1, key="k")]
)
def test_a_choice_runs_within_a_relaxed_space_only(choice: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"Choice 'k' was called, but no RelaxedSpace holds it"):
        choice([torch.ones(1)])
