"""The fused supernet against the plain one, which is its specification."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from src.spaces import fused, operations
from src.spaces.cells import Supernet
from src.spaces.choices import RelaxedSpace
from src.spaces.fused import FusedSupernet
from src.spaces.genotypes import CANDIDATES

TOLERANCE = 1e-10


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


class Squared(operations.DilatedConv):
    """A subclass of a known operation, whose own forward must be used."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) ** 2


def test_operations_without_a_fused_form_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {
        "scaled": lambda channels, stride, searching: Scaled(channels, stride),
        "squared": lambda channels, stride, searching: Squared(channels, 3, stride=stride, dilation=1, affine=False),
        "affine": lambda channels, stride, searching: operations.DilatedConv(
            channels, 3, stride=stride, dilation=2, affine=True
        ),
        # fused at one stride only
        "some": lambda channels, stride, searching: (
            Scaled(channels, 2) if stride == 2 else operations.SeparableConv(channels, 7, stride=1, affine=False)
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


class Calls(TorchDispatchMode):
    """Counts the kernels that compute weight gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func.name()] += 1
        if func.name() == "aten::convolution_backward" and args[10][1]:
            self.count["weight gradients"] += 1
        return func(*args, **(kwargs or {}))


def test_alpha_only_pass_computes_no_weight_gradient() -> None:
    _, fast = pair()
    detached = {name: value.detach() for name, value in fast.named_parameters() if not name.startswith("alphas.")}
    alphas = dict(fast.alphas.named_parameters())
    with Calls() as calls:
        grads = torch.autograd.grad(loss(fast, parameters=detached), list(alphas.values()))
    with Calls() as calls_of_all:
        expected = gradients(fast)
    assert calls.count["weight gradients"] == 0
    assert calls_of_all.count["weight gradients"] > 0
    assert calls.count.total() < calls_of_all.count.total()
    check_same(
        dict(zip(alphas, grads, strict=True)), {name: expected[f"alphas.{name}"] for name in alphas}, tolerance=1e-12
    )


def test_weight_only_pass_computes_no_alpha_gradient() -> None:
    _, fast = pair()
    detached = {name: value.detach() for name, value in fast.named_parameters() if name.startswith("alphas.")}
    weights = {name: fast.get_parameter(name) for name in names_of_weights(fast)}
    with Calls() as calls:
        grads = torch.autograd.grad(loss(fast, parameters=detached), list(weights.values()))
    assert calls.count["aten::dot"] == 0
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


@pytest.mark.parametrize("backward_inside", [True, False])
def test_bfloat16_autocast_keeps_statistics_in_float32(backward_inside: bool) -> None:
    exact, fast = relaxed(FusedSupernet), relaxed(FusedSupernet, dtype=torch.float32)
    fast.load_state_dict(exact.state_dict())
    expected = torch.cat(torch.autograd.grad(loss(exact), list(exact.alphas.parameters())))
    alphas = list(fast.alphas.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(fast)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=backward_inside):
        grads = torch.autograd.grad(value, alphas)
    actual = torch.cat(list(grads)).double()
    assert F.cosine_similarity(actual, expected, dim=0) > 0.98
    assert all(buffer.dtype in (torch.float32, torch.int64) for buffer in fast.buffers())
    close = dict(exact.named_buffers())
    for name, buffer in fast.named_buffers():
        torch.testing.assert_close(buffer.to(close[name].dtype), close[name], rtol=0.1, atol=0.05)


def test_second_derivatives_are_refused() -> None:
    _, fast = pair()
    alphas = list(fast.alphas.parameters())
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(loss(fast), alphas, create_graph=True)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


GEOMETRIES = [
    *((kernel, 1, dilation, 5, 6) for kernel in (1, 3, 5, 7) for dilation in (1, 2, 3)),
    *((kernel, 2, 1, height, 5) for kernel in (3, 5, 7) for height in (5, 6)),
    (3, 2, 3, 6, 5),
]


@pytest.mark.parametrize(("kernel", "stride", "dilation", "height", "width"), GEOMETRIES)
def test_gradients_of_depthwise(kernel: int, stride: int, dilation: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    geometry = stride, dilation * (kernel // 2), dilation
    x, weights = random(2, 2, height, width), [random(2, 1, kernel, kernel) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *args: fused._Depthwise.apply(geometry, *args), (x, *weights))


def call(norms: int, channels: int, places: list[tuple[int, int]], training: bool) -> fused._Call:
    modules = [nn.BatchNorm2d(channels, affine=False).double().train(training) for _ in range(norms)]
    for module in modules:
        assert module.running_mean is not None
        module.running_mean.normal_()
    return fused._Call(modules, fused._Statistics(), places)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_norm_relu(training: bool) -> None:
    torch.manual_seed(0)
    context = call(2, 3, [], training)
    inputs = random(2, 3, 3), random(2, 3, 4, 3), random(2, 3, 4, 3)
    assert torch.autograd.gradcheck(lambda *args: fused._NormReLU.apply(context, *args), inputs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("plain", "folded"), [(2, 2), (0, 2), (2, 0)])
def test_gradients_of_mix(plain: int, folded: int, training: bool) -> None:
    torch.manual_seed(0)
    context = call(folded, 3, [(0, 1), (1, 2), (1, 1), (2, 0)][: plain + folded], training)
    terms = [random(2, 3, 4, 3) for _ in range(plain + folded)]
    if folded:
        inputs = random(3, 3), random(folded, 3, 3), *terms
        assert torch.autograd.gradcheck(lambda *args: fused._Mix.apply(context, *args), inputs)
    else:
        inputs = random(3, 3), *terms
        assert torch.autograd.gradcheck(lambda rows, *args: fused._Mix.apply(context, rows, None, *args), inputs)


def test_gradients_of_normalise() -> None:
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(lambda x: fused._Normalise.apply(x, 1e-5, 1)[0], random(2, 3, 4, 3))


def test_statistics_in_float32_are_accurate() -> None:
    x = torch.randn(16, 4, 32, 32, generator=torch.Generator().manual_seed(0)) + 1
    x = x.contiguous(memory_format=torch.channels_last)
    _, mean, variance = fused._Normalise.apply(x, 1e-5, 1)
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=5e-7, atol=0)
    torch.testing.assert_close(variance.double(), x.double().var((0, 2, 3)), rtol=5e-7, atol=0)
