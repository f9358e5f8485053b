"""The fast forms of the supernet and of the network against the plain ones, which are their specification."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from src.bench.measuring import operator_calls
from src.bilevel.hypergradient import Bilevel, Exact
from src.bilevel.unroll import VirtualStep
from src.common.errors import ConfigError
from src.fast import fused, kernels
from src.fast.forms import IMPLEMENTATIONS, form_for, form_of, name_of_form
from src.fast.fused import FusedNetwork, FusedSupernet
from src.fast.kernels.build import library
from src.fast.kernels.cells import Graph
from src.fast.layout import plain_form
from src.fast.merged import MergedSupernet
from src.runs.build import build_network
from src.spaces.check import check_space
from src.spaces.cnn import modules, operations
from src.spaces.cnn.cells import Supernet
from src.spaces.cnn.formats import load_cells
from src.spaces.cnn.genotypes import CANDIDATES
from src.spaces.cnn.network import Network
from src.spaces.relaxed import RelaxedSpace

TOLERANCE = 1e-10
FORMS: list[type[Supernet]] = [FusedSupernet, MergedSupernet]
each_form = pytest.mark.parametrize("form", FORMS)


pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler: the plain form is used")


def relaxed(
    supernet: type[Supernet],
    *,
    size: int = 8,
    candidates: Sequence[str] = CANDIDATES,
    dtype: torch.dtype = torch.float64,
) -> RelaxedSpace:
    """Return a small supernet with alphas far from uniform, and different running statistics in all BatchNorms."""
    torch.manual_seed(0)
    space = supernet(
        input_shape=(3, size, size),
        num_classes=3,
        channels=4,
        cells=3,
        nodes=2,
        stem_multiplier=2,
        candidates=candidates,
    )
    for module in space.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    return RelaxedSpace(space, init_scale=1.0).to(dtype)


def pair(form: type[Supernet] = FusedSupernet, **options: Any) -> tuple[RelaxedSpace, RelaxedSpace]:
    plain, fast = relaxed(Supernet, **options), relaxed(form, **options)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def batch(size: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)
    return images, torch.randint(3, (4,), generator=generator)


def loss(net: RelaxedSpace, size: int = 8, parameters: dict[str, Tensor] | None = None) -> Tensor:
    images, labels = batch(size, next(net.parameters()).dtype)
    logits = net(images) if parameters is None else functional_call(net, parameters, (images,))
    return F.cross_entropy(logits, labels)


def gradients(net: RelaxedSpace, size: int = 8) -> dict[str, Tensor]:
    names, parameters = zip(*net.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss(net, size), parameters, allow_unused=True), strict=True))


def check_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = TOLERANCE) -> None:
    """Assert that each tensor agrees relative to its norm, or to a thousandth of the largest norm where it vanishes."""
    assert actual.keys() == expected.keys()
    floor = max(value.double().norm() for value in expected.values()) / 1000
    for name, value in expected.items():
        error = (actual[name].double() - value.double()).norm() / max(value.double().norm(), floor)
        assert error <= tolerance, f"{name}: relative error {error:.2e}"


def names_of_weights(net: RelaxedSpace) -> list[str]:
    return [name for name, _ in net.named_parameters() if not name.startswith("alphas.")]


SUBSETS = [
    CANDIDATES,
    tuple(reversed(CANDIDATES)),
    ("skip_connect", "sep_conv_3x3"),
    ("none", "max_pool_3x3", "avg_pool_3x3"),
    ("dil_conv_5x5", "none", "sep_conv_5x5"),
]


@each_form
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [8, 7, 5])
def test_output_gradients_and_statistics_equal_the_plain_supernets(
    size: int, training: bool, form: type[Supernet]
) -> None:
    plain, fast = pair(form, size=size)
    for net in (plain, fast):
        net.train(training)
    torch.testing.assert_close(loss(fast, size), loss(plain, size), rtol=TOLERANCE, atol=0)
    check_same(gradients(fast, size), gradients(plain, size))
    check_same(dict(fast.named_buffers()), dict(plain.named_buffers()))


@each_form
@pytest.mark.parametrize("candidates", SUBSETS)
def test_candidate_lists(candidates: tuple[str, ...], form: type[Supernet]) -> None:
    plain, fast = pair(form, candidates=candidates)
    check_same(gradients(fast), gradients(plain))
    check_same(dict(fast.named_buffers()), dict(plain.named_buffers()))


class Scaled(nn.Module):
    """An operation that the fused supernet knows nothing of."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x[:, :, :: self.stride, :: self.stride] * self.weight)


class Squared(modules.DilatedConv):
    """A subclass of a known operation, whose own forward must be used."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) ** 2


@each_form
def test_operations_without_a_form_of_their_own_are_called(
    monkeypatch: pytest.MonkeyPatch, form: type[Supernet]
) -> None:
    own = {
        "scaled": lambda channels, stride, searching: Scaled(channels, stride),
        "squared": lambda channels, stride, searching: Squared(channels, 3, stride=stride, dilation=1, affine=False),
        "affine": lambda channels, stride, searching: modules.DilatedConv(
            channels, 3, stride=stride, dilation=2, affine=True
        ),
        # fused at one stride only
        "some": lambda channels, stride, searching: (
            Scaled(channels, 2) if stride == 2 else modules.SeparableConv(channels, 7, stride=1, affine=False)
        ),
    }
    for name, operation in own.items():
        monkeypatch.setitem(operations.OPERATIONS, name, operation)
    plain, fast = pair(form, candidates=("none", *own, "dil_conv_3x3"))
    for net in (plain, fast):
        for name, parameter in net.named_parameters():
            if name.endswith("affine.3.weight"):
                parameter.data.normal_(generator=torch.Generator().manual_seed(2))
    check_same(gradients(fast), gradients(plain))


@each_form
def test_float32_agrees_within_its_rounding(form: type[Supernet]) -> None:
    plain, fast = relaxed(Supernet), relaxed(form, dtype=torch.float32)
    fast.load_state_dict(plain.state_dict())
    expected = {name: value for name, value in gradients(plain).items() if name.startswith("alphas.")}
    actual = {name: value for name, value in gradients(fast).items() if name in expected}
    check_same(actual, expected, tolerance=1e-4)


@each_form
def test_state_dicts_interchange(form: type[Supernet]) -> None:
    plain, fast = relaxed(Supernet), relaxed(form)
    assert {name: value.shape for name, value in plain.state_dict().items()} == {
        name: value.shape for name, value in fast.state_dict().items()
    }
    plain.load_state_dict(fast.state_dict())
    assert plain.spec == fast.spec


def spy(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[bool], list[bool]]]:
    """Return a list that gets, of the backward pass of each cell, which inputs' and sources' gradients it computes."""
    asked: list[tuple[list[bool], list[bool]]] = []
    backward = Graph.backward

    def noting(*arguments: Any, needs_inputs: list[bool], needs_weights: list[bool]) -> Any:
        asked.append((list(needs_inputs), list(needs_weights)))
        results = backward(*arguments, needs_inputs=needs_inputs, needs_weights=needs_weights)
        assert [grad is not None for grad in results[0]] == asked[-1][0]
        assert (results[2] is not None) == any(needs_weights)
        return results

    monkeypatch.setattr(Graph, "backward", noting)
    return asked


def test_alpha_only_pass_computes_no_weight_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fast = pair()
    expected = gradients(fast)
    asked = spy(monkeypatch)
    detached = {name: value.detach() for name, value in fast.named_parameters() if not name.startswith("alphas.")}
    alphas = dict(fast.alphas.named_parameters())
    grads = torch.autograd.grad(loss(fast, parameters=detached), list(alphas.values()))
    assert len(asked) == 3  # none for the stem
    assert not any(any(weights) for _, weights in asked)
    assert asked[-1][0] == [False, False]  # nothing asks for the gradient of the stem
    check_same(
        dict(zip(alphas, grads, strict=True)), {name: expected[f"alphas.{name}"] for name in alphas}, tolerance=1e-12
    )


def test_a_cell_of_fast_operations_is_one_call_forward_and_one_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fast = pair()
    called: list[str] = []
    call = Graph._call
    monkeypatch.setattr(Graph, "_call", lambda self, name, *values: (called.append(name), call(self, name, *values))[1])
    monkeypatch.setattr(fused._Graph, "apply", None)
    for _ in range(2):
        called.clear()
        gradients(fast)
        assert called == ["forward"] * 4 + ["backward"] * 4  # with the norm of the stem


@pytest.mark.parametrize("count", [3, 8, 11])
def test_batches_that_fill_no_vector(count: int) -> None:
    """Vectors have eight images in float32; sums must leave out the others."""
    plain, fast = relaxed(Supernet), relaxed(FusedSupernet, dtype=torch.float32)
    fast.load_state_dict(plain.state_dict())
    images = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for net in (fast, plain):
        value = net(images.to(next(net.parameters()).dtype)).square().sum()
        names, parameters = zip(*net.named_parameters(), strict=True)
        grads = torch.autograd.grad(value, parameters, allow_unused=True)
        results.append(dict(zip(names, grads, strict=True)))
        results.append({name: value for name, value in net.named_buffers() if "tracked" not in name})
    check_same(results[0], results[2], tolerance=1e-3)
    check_same(results[1], results[3], tolerance=1e-4)


def test_the_number_of_threads_changes_no_bit() -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            net = relaxed(FusedSupernet, dtype=torch.float32)
            images = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))
            output = net(images)
            # torch's own convolution, of the stem, has no such gradient.
            parameters = [value for name, value in net.named_parameters() if not name.startswith("space.stem.0")]
            results.append([output, *torch.autograd.grad(output.square().sum(), parameters), *net.buffers()])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_weight_only_pass() -> None:
    _, fast = pair()
    detached = {name: value.detach() for name, value in fast.named_parameters() if name.startswith("alphas.")}
    weights = {name: fast.get_parameter(name) for name in names_of_weights(fast)}
    grads = torch.autograd.grad(loss(fast, parameters=detached), list(weights.values()))
    expected = gradients(fast)
    check_same(dict(zip(weights, grads, strict=True)), {name: expected[name] for name in weights})


@each_form
def test_functional_call_uses_the_given_weights_and_buffers(form: type[Supernet]) -> None:
    plain, fast = pair(form)
    moved = {
        name: (value + 0.1 * torch.sin(value + 1)).detach().requires_grad_() for name, value in plain.named_parameters()
    }
    results = []
    for net in (plain, fast):
        before = copy.deepcopy(dict(net.named_buffers()))
        buffers = {name: value.clone() for name, value in net.named_buffers()}
        grads = torch.autograd.grad(loss(net, parameters={**moved, **buffers}), list(moved.values()), allow_unused=True)
        check_same(dict(net.named_buffers()), before, tolerance=0)
        results.append((dict(zip(moved, grads, strict=True)), buffers))
    check_same(results[1][0], results[0][0])
    check_same(results[1][1], results[0][1])
    assert not torch.equal(
        *(buffers["space.cells.0.preprocess1.2.running_mean"] for buffers in (results[1][1], before))
    )


def test_images_without_kernels_go_through_the_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = (net.to(torch.float32) for net in pair())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_same(gradients(fast), gradients(plain), tolerance=0)
    with torch.device("meta"):
        images = torch.empty(4, 3, 8, 8)
    assert fast.to("meta")(images).shape == (4, 3)
    for net in (plain, fast):
        net.to_empty(device="cpu")
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.data.fill_(0.5)
    monkeypatch.setattr(kernels, "library", lambda: None)
    check_same(gradients(fast), gradients(plain), tolerance=0)


def test_second_derivatives_are_refused() -> None:
    _, fast = pair()
    alphas = list(fast.alphas.parameters())
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(loss(fast), alphas, create_graph=True)


def test_a_graph_can_be_gone_through_twice() -> None:
    _, fast = pair(candidates=("skip_connect", "sep_conv_3x3", "max_pool_3x3"))
    names, parameters = zip(*fast.named_parameters(), strict=True)
    value = loss(fast)
    first = torch.autograd.grad(value, parameters, retain_graph=True)
    second = torch.autograd.grad(value, parameters)
    check_same(dict(zip(names, second, strict=True)), dict(zip(names, first, strict=True)), tolerance=0)


def test_weights_changed_before_the_backward_pass_are_noticed() -> None:
    _, fast = pair()
    value = loss(fast)
    with torch.no_grad():
        fast.get_parameter("space.cells.0.nodes.0.edges.0.candidates.sep_conv_3x3.0.1.weight").mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        value.backward()


@each_form
def test_evaluation_needs_no_graph(form: type[Supernet]) -> None:
    plain, fast = pair(form)
    with torch.no_grad():
        torch.testing.assert_close(loss(fast), loss(plain), rtol=TOLERANCE, atol=0)


@each_form
def test_operators_are_counted_in_the_plain_form(form: type[Supernet]) -> None:
    plain, fast = pair(form)
    counts = []
    for net in (plain, fast):
        with torch.no_grad(), plain_form(), FlopCounterMode(display=False) as counter:
            loss(net)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


SPARSE = (
    "Genotype(normal=[('sep_conv_3x3', 2, 0), ('max_pool_3x3', 4, 0), ('dil_conv_3x3', 4, 2), ('skip_connect', 5, 3)], "
    "normal_concat=range(2, 6), reduce=[('avg_pool_3x3', 2, 1), ('sep_conv_5x5', 3, 0)], reduce_concat=range(2, 6))"
)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("genotype", ["DARTS_V1", "DARTS_V2", SPARSE])
def test_network_of_a_genotype(genotype: str, training: bool) -> None:
    results = []
    for kind in (Network, FusedNetwork):
        torch.manual_seed(0)
        network = kind(load_cells(genotype), input_shape=(3, 9, 9), num_classes=3, channels=6, cells=6)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                for values in (module.weight.data, module.bias.data, module.running_mean):
                    values.normal_()
                module.running_var.uniform_(0.5, 1.5)
        network.to(torch.float64).train(training)
        network.drop_path = 0.3
        torch.manual_seed(1)
        images, labels = batch(9)
        logits, auxiliary = network(images)
        value = F.cross_entropy(logits, labels)
        if auxiliary is not None:
            value = value + F.cross_entropy(auxiliary, labels)
        names, parameters = zip(*network.named_parameters(), strict=True)
        grads = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        results.append((dict(zip(names, grads, strict=True)), dict(network.named_buffers()), {"loss": value}))
    for actual, expected in zip(*reversed(results), strict=True):
        check_same(actual, expected)


# The merged form


def problem_of(net: RelaxedSpace) -> Bilevel:
    images, labels = batch(dtype=next(net.parameters()).dtype)
    weights: dict[str, Tensor] = {name: net.get_parameter(name) for name in names_of_weights(net)}
    alphas: dict[str, Tensor] = {name: value for name, value in net.named_parameters() if name not in weights}

    def loss_of(weights: dict[str, Tensor], alphas: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(net, {**weights, **alphas}, (images,)), labels)

    return Bilevel(loss_of, loss_of, weights, alphas, VirtualStep(lr=0.1))


@pytest.mark.parametrize("forward", [True, False])
def test_second_derivatives_of_the_merged_form(forward: bool) -> None:
    """In both modes, and with an operation that is called."""
    plain, merged = pair(MergedSupernet)
    expected, actual = Exact(forward=False)(problem_of(plain)), Exact(forward=forward)(problem_of(merged))
    check_same(actual.correction, expected.correction)
    check_same(actual.total, expected.total)


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("form", [Supernet, MergedSupernet])
def test_second_derivatives_under_autocast(form: type[Supernet], forward: bool) -> None:
    """They are taken in full precision, of operations that autocast would give inputs of two types."""
    net = relaxed(form, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = Exact(forward=forward)(problem_of(net))
    for correction in found.correction.values():
        assert correction.dtype == torch.float32
        assert correction.isfinite().all()
        assert correction.norm() > 0


def test_the_merged_form_under_autocast_agrees_with_the_plain_one_within_its_rounding() -> None:
    exact, _ = pair(MergedSupernet)
    plain, merged = (net.to(torch.float32) for net in pair(MergedSupernet))
    expected = {name: value for name, value in gradients(exact).items() if name.startswith("alphas.")}
    errors = []
    for net in (plain, merged):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(net)
        assert value.dtype == torch.float32
        names, parameters = zip(*net.named_parameters(), strict=True)
        found = dict(zip(names, torch.autograd.grad(value, parameters), strict=True))
        total = torch.cat([found[name].double() - value for name, value in expected.items()])
        errors.append(float(total.norm() / torch.cat([*expected.values()]).norm()))
    assert errors[1] < 2 * errors[0] + 0.01, errors


def test_the_merged_form_takes_few_operators() -> None:
    """At the paper's candidates and nodes: a pass, forward and backward, takes at most 375 operators a cell."""
    space = MergedSupernet(input_shape=(3, 8, 8), num_classes=3, channels=2, cells=3)
    net = RelaxedSpace(space)
    images, labels = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    parameters = list(net.parameters())
    calls = operator_calls(lambda: torch.autograd.grad(F.cross_entropy(net(images), labels), parameters))
    assert 300 < calls.without_views < 3 * 480, calls


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 2 * grad


class OnceDifferentiable(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, Once.apply(super().forward(x)))


def test_an_operation_that_cannot_be_differentiated_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch alone, its part of the second derivative would be left out without a word."""
    monkeypatch.setitem(
        operations.OPERATIONS, "once", lambda channels, stride, searching: OnceDifferentiable(channels, stride)
    )
    space = relaxed(Supernet, candidates=("dil_conv_3x3", "once")).space
    images, _ = batch()
    check_space(space, images, outputs=3)
    with (
        plain_form(),
        pytest.raises(ConfigError, match=r"'once' of LayerChoice '\w+' cannot be differentiated twice.*once_"),
    ):
        check_space(space, images, outputs=3, differentiated_twice=True)
    for names in (CANDIDATES, ("scaled", "sep_conv_3x3")):
        monkeypatch.setitem(
            operations.OPERATIONS, "scaled", lambda channels, stride, searching: Scaled(channels, stride)
        )
        check_space(relaxed(Supernet, candidates=names).space, images, outputs=3, differentiated_twice=True)


def test_an_operation_without_a_forward_derivative_is_differentiated_in_reverse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Reversed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return 2 * ctx.saved_tensors[0] * grad

    class InReverse(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return cast(Tensor, Reversed.apply(super().forward(x)))

    monkeypatch.setitem(operations.OPERATIONS, "own", lambda channels, stride, searching: InReverse(channels, stride))
    plain, merged = pair(MergedSupernet, candidates=("own", "dil_conv_3x3"))
    hypergradient = Exact()
    expected = Exact(forward=False)(problem_of(plain))
    for _ in range(2):
        check_same(hypergradient(problem_of(merged)).total, expected.total)


# Which form


def test_forms_are_chosen_by_the_device() -> None:
    choices = [
        (form_for(kind, device, differentiated_twice=twice), kind, device, twice)
        for kind in (Supernet, Network)
        for device in ("cpu", "cuda")
        for twice in (False, True)
    ]
    assert [form for form, *_ in choices] == [
        "fused", "merged", "merged", "merged", "fused", "reference", "reference", "reference",
    ]  # fmt: skip
    assert form_for(Supernet, "cpu", autocast=True) == "merged"
    for name in IMPLEMENTATIONS[1:]:
        kind = form_of(Supernet, name) if name != "reference" else Supernet
        assert kind is not None
        space = kind(input_shape=(3, 8, 8), num_classes=2, channels=2, cells=3)
        assert name_of_form(space) == name
    assert name_of_form(nn.Identity()) is None


def test_an_unknown_form_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    node = {"_target_": "src.spaces.cnn.cells.Supernet", "channels": 2, "cells": 3}
    with pytest.raises(
        ConfigError, match=r"unknown space.impl 'merge', did you mean 'merged'\? \(allowed: auto, fused"
    ):
        build_network({**node, "impl": "merge"}, input_shape=(3, 8, 8), num_classes=2)
    network = build_network({**node, "impl": "auto"}, device="cuda", input_shape=(3, 8, 8), num_classes=2)
    assert type(network) is MergedSupernet
    assert capsys.readouterr().err == ""
