"""The kernels: the portable ones against autograd, the compiled ones against the portable ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src import kernels
from src.kernels import Geometry, compiled, portable

needs_compiler = pytest.mark.skipif(compiled.library() is None, reason="no C++ compiler")
BOTH = [portable, pytest.param(compiled, marks=needs_compiler)]
IDS = ["portable", "compiled"]


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def images(kernel: ModuleType, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return (K, N, C, H, W) as the kernels have them."""
    return kernel.empty(shape, like=torch.empty(0, dtype=dtype)).normal_()


def plain(
    x: Tensor, rescale: Tensor | None, depthwise: Sequence[Tensor] | None, pointwise: Sequence[Tensor], g: Geometry
) -> Tensor:
    """Return what `convolve` is to compute, by torch's operators, edge by edge."""
    outputs = []
    for k, matrix in enumerate(pointwise):
        y = x[min(k, len(x) - 1)]
        if rescale is not None:
            y = y * rescale[0, k, :, None, None] + rescale[1, k, :, None, None]
        y = F.relu(y)
        if depthwise is not None:
            y = F.conv2d(y, depthwise[k], None, g.stride, g.padding, g.dilation, y.shape[1])
        outputs.append(F.conv2d(y, matrix))
    return torch.stack(outputs)


GEOMETRIES = [
    *(Geometry(k, 1, d * (k // 2), d) for k in (3, 5) for d in (1, 2)),
    *(Geometry(k, 2, d * (k // 2), d) for k in (3, 5) for d in (1, 2)),
    Geometry(1),
    Geometry(1, 2),
    Geometry(7, 1, 3),
    Geometry(3, 2, 3, 3),
    Geometry(3, 3, 1),
    Geometry(2, 1, 1),
]
CASES = [
    # geometry, edges, channels, channels out, height, width, whether each edge has its own images
    *((g, 2, 4, 4, 9, 8, own) for g in GEOMETRIES for own in (False, True)),
    *((Geometry(3, 1, 1), 2, c, c, 6, 11, own) for c in (1, 3, 5, 8, 12, 17) for own in (False, True)),
    *((Geometry(5, 1, 4, 2), k, 3, 6, 3, 2, own) for k in (1, 3) for own in (False, True)),
    (None, 1, 7, 3, 5, 4, False),
    (None, 2, 3, 9, 5, 4, True),
]


def case(kernel: ModuleType, index: int, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    geometry, edges, channels, channels_out, height, width, own = CASES[index]
    torch.manual_seed(index)
    g = geometry or Geometry()
    return {
        "x": images(kernel, edges if own else 1, 3, channels, height, width, dtype=dtype),
        "rescale": random(2, edges, channels, dtype=dtype) if own else None,
        "depthwise": [random(channels, 1, g.kernel, g.kernel, dtype=dtype) for _ in range(edges)] if geometry else None,
        "pointwise": [random(channels_out, channels, 1, 1, dtype=dtype) for _ in range(edges)],
        "g": g,
    }


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)
    assert error < tolerance, f"relative error {error:.2e}"


@pytest.mark.parametrize("kernel", BOTH, ids=IDS)
@pytest.mark.parametrize("index", range(len(CASES)))
def test_convolve_and_its_gradients(kernel: ModuleType, index: int) -> None:
    given = case(kernel, index)
    x, rescale, depthwise, pointwise, g = given.values()
    z, moments = kernel.convolve(*given.values())
    weights = [*(depthwise or ()), *pointwise]
    for weight in weights:
        weight.requires_grad_()
    if rescale is None:
        leaf = x.clone().requires_grad_()
        expected = plain(leaf, *list(given.values())[1:])
    else:  # the gradient is that of what is rectified
        leaf = (x * rescale[0][:, None, :, None, None] + rescale[1][:, None, :, None, None]).requires_grad_()
        expected = plain(leaf, None, *list(given.values())[2:])
    close(z, expected)
    close(moments, torch.stack([expected.sum((1, 3, 4)), expected.square().sum((1, 3, 4))]))

    grad, mix = images(kernel, *z.shape), random(3, *z.shape[::2][:1], z.shape[2])
    of_grad, of_z, constant = mix[:, :, None, :, None, None]
    z_grad = of_grad * grad + of_z * z + constant
    x_grad, *weight_grads = torch.autograd.grad(expected, [leaf, *weights], z_grad)
    into = images(kernel, *x.shape) if rescale is None else None
    before = torch.zeros_like(x) if into is None else into.clone()
    own, sums, *actual = kernel.convolve_backward(
        grad, z, mix, x, rescale, depthwise, pointwise, g, into=into, needs_images=True, needs_weights=True
    )
    if into is not None:
        close(into - before, x_grad)
        assert own is None
        assert sums is None
    else:
        close(own, x_grad)
        close(sums, torch.stack([x_grad.sum((1, 3, 4)), (x_grad * x).sum((1, 3, 4))]))
    assert len(actual[0]) == len(depthwise or ())
    for value, truth in zip([*actual[0], *actual[1]], weight_grads, strict=True):
        close(value, truth)


@pytest.mark.parametrize("kernel", BOTH, ids=IDS)
def test_what_is_not_wanted_is_not_computed(kernel: ModuleType) -> None:
    x, _, depthwise, pointwise, g = case(kernel, 0).values()
    z, _ = kernel.convolve(x, None, depthwise, pointwise, g)
    mix = random(3, 2, 4)
    into = torch.zeros_like(x)
    results = kernel.convolve_backward(
        z, z, mix, x, None, depthwise, pointwise, g, into=into, needs_images=False, needs_weights=False
    )
    assert results == (None, None, [], [])
    assert not into.any()


@pytest.mark.parametrize("kernel", BOTH, ids=IDS)
def test_views_are_read_and_written(kernel: ModuleType) -> None:
    """Nodes lie side by side in an output, and FactorizedReduce begins with another pixel."""
    torch.manual_seed(0)
    wide = images(kernel, 1, 3, 12, 8, 6)
    x = wide[..., 1:, 1:]
    pointwise = [random(5, 12, 1, 1)]
    ones = [torch.ones(12, 1, 1, 1, dtype=torch.float64)]
    target = images(kernel, 1, 3, 9, 4, 3)
    kernel.convolve(x, None, ones, pointwise, Geometry(stride=2), out=target[:, :, 4:])
    close(target[:, :, 4:], F.conv2d(F.relu(x[0, :, :, ::2, ::2]), pointwise[0])[None])
    nodes = wide[0].unflatten(1, (3, 4)).movedim(1, 0)
    before, term, factors = nodes.clone(), images(kernel, 2, 3, 4, 8, 6), random(1, 2, 4)
    kernel.combine(nodes[1:], [term], factors, random(2, 4) * 0, add=True)
    close(nodes[1:], before[1:] + factors[0][:, None, :, None, None] * term)
    close(nodes[:1], before[:1])


@pytest.mark.parametrize("kernel", BOTH, ids=IDS)
@pytest.mark.parametrize("add", [True, False])
def test_combine_and_dots(kernel: ModuleType, add: bool) -> None:
    torch.manual_seed(0)
    for channels, width in itertools.product((1, 4, 7), (1, 5, 8)):
        out = images(kernel, 3, 2, channels, 4, width)
        terms = [images(kernel, edges, 2, channels, 4, width) for edges in (1, 3, 3, 1)]
        factors, constant = random(4, 3, channels), random(3, channels)
        expected = (out if add else 0) + constant[:, None, :, None, None]
        for term, factor in zip(terms, factors, strict=True):
            expected = expected + factor[:, None, :, None, None] * term
        sums = torch.stack([t.expand_as(out) for t in (torch.ones_like(out), *terms)])
        close(kernel.dots(out, terms), (sums * out).sum((2, 4, 5)))
        kernel.combine(out, terms, factors, constant, add=add)
        close(out, expected)


POOLS = [Geometry(3, 1, 1), Geometry(3, 2, 1), Geometry(2, 2), Geometry(5, 1, 2)]


@pytest.mark.parametrize("kernel", BOTH, ids=IDS)
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("g", POOLS)
def test_pools(kernel: ModuleType, g: Geometry, largest: bool) -> None:
    torch.manual_seed(0)
    for channels, height, width in ((4, 7, 8), (3, 6, 5), (9, 2, 3)):
        x = images(kernel, 1, 2, channels, height, width)
        x.round_()  # so that many pixels are the largest of a window, of which the first has the gradient
        leaf = x[0].clone().requires_grad_()
        expected = (
            F.max_pool2d(leaf, g.kernel, g.stride, g.padding)
            if largest
            else F.avg_pool2d(leaf, g.kernel, g.stride, g.padding, count_include_pad=False)
        )
        pooled = kernel.pool(x, g, largest=largest)
        close(pooled, expected[None])
        grad, into = images(kernel, *pooled.shape), images(kernel, *x.shape)
        before = into.clone()
        kernel.pool_backward(grad, x, g, largest=largest, into=into)
        close(into - before, torch.autograd.grad(expected, leaf, grad[0])[0][None])


@pytest.mark.parametrize("kernel", BOTH, ids=IDS)
def test_nan_is_not_lost(kernel: ModuleType) -> None:
    x = images(kernel, 1, 1, 4, 5, 5)
    x[0, 0, 1, 2, 2] = float("nan")
    for largest in (True, False):
        assert kernel.pool(x, Geometry(3, 1, 1), largest=largest)[0, 0, 1, 1:4, 1:4].isnan().all()
    z, _ = kernel.convolve(x, None, None, [torch.ones(1, 4, 1, 1, dtype=torch.float64)], Geometry())
    assert z[0, 0, 0, 2, 2].isnan()


@needs_compiler
@pytest.mark.parametrize("index", range(0, len(CASES), 3))
def test_float32_of_both_agree(index: int) -> None:
    given = case(compiled, index, torch.float32)
    z, moments = compiled.convolve(*given.values())
    expected, expected_moments = portable.convolve(*given.values())
    close(z, expected, 1e-5)
    close(moments, expected_moments, 1e-5)


@needs_compiler
def test_moments_in_float32_are_accurate() -> None:
    """A variance is a difference of two of them; torch's BatchNorm of channels_last images misses it by 7e-6."""
    torch.manual_seed(0)
    x = images(compiled, 1, 16, 4, 32, 32, dtype=torch.float32) + 1
    _, moments = compiled.convolve(x, None, None, [torch.eye(4)[:, :, None, None]], Geometry())
    exact = F.relu(x[0]).double()
    close(moments[0, 0], exact.sum((0, 2, 3)), 1e-7)
    close(moments[1, 0], exact.square().sum((0, 2, 3)), 1e-7)


@needs_compiler
def test_the_number_of_threads_changes_no_bit() -> None:
    given = case(compiled, 0, torch.float32)
    x, _, depthwise, pointwise, g = given.values()
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            z, moments = compiled.convolve(*given.values())
            into = torch.zeros_like(x)
            _, _, *grads = compiled.convolve_backward(
                z, z, torch.ones(3, 2, 4), x, None, depthwise, pointwise, g,
                into=into, needs_images=True, needs_weights=True,
            )  # fmt: skip
            results.append([z, moments, into, compiled.dots(z, [z]), *grads[0], *grads[1]])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class TestBuilding:
    @pytest.fixture(autouse=True)
    def _own_cache(self, tmp_path, monkeypatch) -> Iterator[None]:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
        compiled.library.cache_clear()
        yield
        compiled.library.cache_clear()

    @needs_compiler
    def test_built_once(self, tmp_path) -> None:
        path = compiled._built()
        made = path.stat().st_mtime_ns
        assert compiled._built() == path
        assert path.stat().st_mtime_ns == made
        assert [entry.name for entry in (tmp_path / "darts-template").iterdir()] == [path.name]

    @pytest.mark.parametrize(
        ("settings", "reason"),
        [
            ({"PATH": ""}, "no C++ compiler found (CXX, c++, g++, clang++)"),
            ({"CXX": "false"}, "false -O3"),
            ({"CXX": "/nowhere/c++"}, "No such file or directory: '/nowhere/c++'"),
        ],
    )
    def test_without_a_compiler_the_portable_ones_serve(self, settings, reason, monkeypatch, capsys) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        assert kernels.of(torch.ones(1)) is portable
        assert kernels.of(torch.ones(1)) is portable
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("the fused form runs without compiled kernels, several times slower: ")
        assert reason in line

    def test_a_cache_that_cannot_be_written(self, tmp_path, monkeypatch, capsys) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert kernels.of(torch.ones(1)) is portable
        assert "file" in capsys.readouterr().err


def test_which_kernels_serve_which_tensors() -> None:
    assert kernels.of(torch.ones(1, dtype=torch.bfloat16)) is portable
    assert kernels.of(torch.ones(1, device="meta")) is portable
    if compiled.library() is not None:
        assert kernels.of(torch.ones(1)) is compiled
        assert kernels.of(torch.ones(1, dtype=torch.float64)) is compiled
