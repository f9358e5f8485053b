"""The fused supernet and network against the plain ones, which are their specification."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from src.fast import fused, kernels
from src.fast.fused import FusedNetwork, FusedSupernet
from src.fast.kernels.build import library
from src.fast.kernels.cells import Graph
from src.spaces.cnn import modules, operations
from src.spaces.cnn.cells import Supernet
from src.spaces.cnn.genotypes import CANDIDATES, NAMED_GENOTYPES
from src.spaces.cnn.network import Network
from src.spaces.relaxed import RelaxedSpace

TOLERANCE = 1e-10


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
        nodes=3,
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


def pair(**options: Any) -> tuple[RelaxedSpace, RelaxedSpace]:
    plain, fast = relaxed(Supernet, **options), relaxed(FusedSupernet, **options)
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


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [8, 7, 5])
def test_output_gradients_and_statistics_equal_the_plain_supernets(size: int, training: bool) -> None:
    plain, fast = pair(size=size)
    for net in (plain, fast):
        net.train(training)
    torch.testing.assert_close(loss(fast, size), loss(plain, size), rtol=TOLERANCE, atol=0)
    check_same(gradients(fast, size), gradients(plain, size))
    check_same(dict(fast.named_buffers()), dict(plain.named_buffers()))


@pytest.mark.parametrize("candidates", SUBSETS)
def test_candidate_lists(candidates: tuple[str, ...]) -> None:
    plain, fast = pair(candidates=candidates)
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


def test_operations_without_a_form_of_their_own_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
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
    plain, fast = pair(candidates=("none", *own, "dil_conv_3x3"))
    for net in (plain, fast):
        for name, parameter in net.named_parameters():
            if name.endswith("affine.3.weight"):
                parameter.data.normal_(generator=torch.Generator().manual_seed(2))
    check_same(gradients(fast), gradients(plain))


def test_float32_agrees_within_its_rounding() -> None:
    plain, fast = relaxed(Supernet), relaxed(FusedSupernet, dtype=torch.float32)
    fast.load_state_dict(plain.state_dict())
    expected = {name: value for name, value in gradients(plain).items() if name.startswith("alphas.")}
    actual = {name: value for name, value in gradients(fast).items() if name in expected}
    check_same(actual, expected, tolerance=1e-4)


def test_state_dicts_interchange() -> None:
    plain, fast = relaxed(Supernet), relaxed(FusedSupernet)
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


def test_functional_call_uses_the_given_weights_and_buffers() -> None:
    plain, fast = pair()
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


def test_evaluation_needs_no_graph() -> None:
    plain, fast = pair()
    with torch.no_grad():
        torch.testing.assert_close(loss(fast), loss(plain), rtol=TOLERANCE, atol=0)


def test_without_kernels_operators_can_be_counted() -> None:
    plain, fast = pair()
    counts = []
    for net in (plain, fast):
        with torch.no_grad(), kernels.disabled(), FlopCounterMode(display=False) as counter:
            loss(net)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("genotype", ["DARTS_V1", "DARTS_V2"])
def test_network_of_a_genotype(genotype: str, training: bool) -> None:
    results = []
    for kind in (Network, FusedNetwork):
        torch.manual_seed(0)
        network = kind(
            NAMED_GENOTYPES[genotype].to_architecture(), input_shape=(3, 9, 9), num_classes=3, channels=6, cells=6
        )
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
