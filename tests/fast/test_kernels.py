"""The kernels against torch's operators and autograd."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.fast import kernels
from src.fast.kernels import Geometry, build

needs_compiler = pytest.mark.skipif(build.library() is None, reason="no C++ compiler")


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return (K, N, C, H, W) as the kernels have them."""
    return kernels.empty(shape, like=torch.empty(0, dtype=dtype)).normal_()


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


def case(index: int, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    geometry, edges, channels, channels_out, height, width, own = CASES[index]
    torch.manual_seed(index)
    g = geometry or Geometry()
    return {
        "x": images(edges if own else 1, 3, channels, height, width, dtype=dtype),
        "rescale": random(2, edges, channels, dtype=dtype) if own else None,
        "depthwise": [random(channels, 1, g.kernel, g.kernel, dtype=dtype) for _ in range(edges)] if geometry else None,
        "pointwise": [random(channels_out, channels, 1, 1, dtype=dtype) for _ in range(edges)],
        "g": g,
    }


def check_shifted(z: Tensor, moments: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    """Assert that z is `expected` less the shift, and that its moments are those of what it is."""
    shift = moments[2][:, None, :, None, None]
    close(z.double() + shift, expected, tolerance)
    mean = expected.double().mean((1, 3, 4))
    close(moments[0] + moments[2], mean, tolerance)
    close(moments[1], (expected.double() - mean[:, None, :, None, None]).square().sum((1, 3, 4)), tolerance)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)
    assert error < tolerance, f"relative error {error:.2e}"


@needs_compiler
@pytest.mark.parametrize("index", range(len(CASES)))
def test_convolve_and_its_gradients(index: int) -> None:
    given = case(index)
    x, rescale, depthwise, pointwise, g = given.values()
    z, moments = kernels.convolve(*given.values())
    weights = [*(depthwise or ()), *pointwise]
    for weight in weights:
        weight.requires_grad_()
    if rescale is None:
        leaf = x.clone().requires_grad_()
        expected = plain(leaf, *list(given.values())[1:])
    else:  # the gradient is that of what is rectified
        leaf = (x * rescale[0][:, None, :, None, None] + rescale[1][:, None, :, None, None]).requires_grad_()
        expected = plain(leaf, None, *list(given.values())[2:])
    check_shifted(z, moments, expected)

    grad, mix = images(*z.shape), random(3, *z.shape[::2][:1], z.shape[2])
    of_grad, of_z, constant = mix[:, :, None, :, None, None]
    z_grad = of_grad * grad + of_z * z + constant
    x_grad, *weight_grads = torch.autograd.grad(expected, [leaf, *weights], z_grad)
    into = images(*x.shape) if rescale is None else None
    before = torch.zeros_like(x) if into is None else into.clone()
    own, sums, *actual = kernels.convolve_backward(
        grad, z, mix, x, rescale, depthwise, pointwise, g, into=into, add=True, needs_images=True, needs_weights=True
    )
    if into is not None:
        close(into - before, x_grad)
        kernels.convolve_backward(
            grad, z, mix, x, rescale, depthwise, pointwise, g,
            into=into.fill_(torch.nan), add=False, needs_images=True, needs_weights=False,
        )  # fmt: skip
        close(into, x_grad)
        assert own is None
        assert sums is None
    else:
        assert own is not None
        assert sums is not None
        close(own, x_grad)
        close(sums, torch.stack([x_grad.sum((1, 3, 4)), (x_grad * x).sum((1, 3, 4))]))
    assert len(actual[0]) == len(depthwise or ())
    for value, truth in zip([*actual[0], *actual[1]], weight_grads, strict=True):
        close(value, truth)


@needs_compiler
def test_what_is_not_wanted_is_not_computed() -> None:
    x, _, depthwise, pointwise, g = case(0).values()
    z, _ = kernels.convolve(x, None, depthwise, pointwise, g)
    mix = random(3, 2, 4)
    into = torch.zeros_like(x)
    results = kernels.convolve_backward(
        z, z, mix, x, None, depthwise, pointwise, g, into=into, add=True, needs_images=False, needs_weights=False
    )
    assert results == (None, None, [], [])
    assert not into.any()


@needs_compiler
def test_views_are_read_and_written() -> None:
    """Nodes lie side by side in an output, and FactorizedReduce begins with another pixel."""
    torch.manual_seed(0)
    wide = images(1, 3, 12, 8, 6)
    x = wide[..., 1:, 1:]
    pointwise = [random(5, 12, 1, 1)]
    ones = [torch.ones(12, 1, 1, 1, dtype=torch.float64)]
    target = images(1, 3, 9, 4, 3)
    _, moments = kernels.convolve(x, None, ones, pointwise, Geometry(stride=2), out=target[:, :, 4:])
    check_shifted(target[:, :, 4:], moments, F.conv2d(F.relu(x[0, :, :, ::2, ::2]), pointwise[0])[None])
    nodes = wide[0].unflatten(1, (3, 4)).movedim(1, 0)
    before, term, factors = nodes.clone(), images(2, 3, 4, 8, 6), random(1, 2, 4)
    kernels.combine(nodes[1:], [term], factors, random(2, 4) * 0, add=True)
    close(nodes[1:], before[1:] + factors[0][:, None, :, None, None] * term)
    close(nodes[:1], before[:1])


@needs_compiler
@pytest.mark.parametrize("add", [True, False])
def test_combine_and_dots(add: bool) -> None:
    torch.manual_seed(0)
    for channels, width in itertools.product((1, 4, 7), (1, 5, 8)):
        out = images(3, 2, channels, 4, width)
        terms = [images(edges, 2, channels, 4, width) for edges in (1, 3, 3, 1)]
        factors, constant = random(4, 3, channels), random(3, channels)
        expected = (out if add else 0) + constant[:, None, :, None, None]
        for term, factor in zip(terms, factors, strict=True):
            expected = expected + factor[:, None, :, None, None] * term
        sums = torch.stack([t.expand_as(out) for t in (torch.ones_like(out), *terms)])
        close(kernels.dots(out, terms), (sums * out).sum((2, 4, 5)))
        kernels.combine(out, terms, factors, constant, add=add)
        close(out, expected)


POOLS = [Geometry(3, 1, 1), Geometry(3, 2, 1), Geometry(2, 2), Geometry(5, 1, 2)]


@needs_compiler
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("g", POOLS)
def test_pools(g: Geometry, largest: bool) -> None:
    torch.manual_seed(0)
    for channels, height, width in ((4, 7, 8), (3, 6, 5), (9, 2, 3)):
        x = images(1, 2, channels, height, width)
        x.round_()  # so that many pixels are the largest of a window, of which the first has the gradient
        leaf = x[0].clone().requires_grad_()
        expected = (
            F.max_pool2d(leaf, g.kernel, g.stride, g.padding)
            if largest
            else F.avg_pool2d(leaf, g.kernel, g.stride, g.padding, count_include_pad=False)
        )
        pooled, _ = kernels.pool(x, g, largest=largest)
        close(pooled, expected[None])
        grad, into = images(*pooled.shape), images(*x.shape)
        before = into.clone()
        kernels.pool_backward(grad, x, g, largest=largest, into=into, add=True)
        x_grad = torch.autograd.grad(expected, leaf, grad[0])[0][None]
        close(into - before, x_grad)
        kernels.pool_backward(grad, x, g, largest=largest, into=into.fill_(torch.nan), add=False)
        close(into, x_grad)


@needs_compiler
def test_nan_is_not_lost() -> None:
    x = images(1, 1, 4, 5, 5)
    x[0, 0, 1, 2, 2] = float("nan")
    for largest in (True, False):
        assert kernels.pool(x, Geometry(3, 1, 1), largest=largest)[0][0, 0, 1, 1:4, 1:4].isnan().all()
    z, _ = kernels.convolve(x, None, None, [torch.ones(1, 4, 1, 1, dtype=torch.float64)], Geometry())
    assert z[0, 0, 0, 2, 2].isnan()
    assert z.isnan().sum() == 1


@needs_compiler
@pytest.mark.parametrize("index", range(0, len(CASES), 3))
def test_float32(index: int) -> None:
    x, rescale, depthwise, pointwise, g = case(index, torch.float32).values()
    z, moments = kernels.convolve(x, rescale, depthwise, pointwise, g)
    wide = [None if weights is None else [weight.double() for weight in weights] for weights in (depthwise, pointwise)]
    exact = plain(x.double(), None if rescale is None else rescale.double(), wide[0], wide[1] or [], g)
    check_shifted(z, moments, exact, 1e-6)


@needs_compiler
@pytest.mark.parametrize(("dtype", "ratio", "tolerance"), [(torch.float32, 1e3, 1e-3), (torch.float64, 1e6, 1e-9)])
@pytest.mark.parametrize("pixels", [(2, 1, 1), (1, 2, 3), (4, 16, 16)])
def test_moments_of_images_whose_mean_is_large(
    dtype: torch.dtype, ratio: float, tolerance: float, pixels: tuple[int, int, int]
) -> None:
    """The sum of squares less the square of the sum would lose all digits of the variance."""
    torch.manual_seed(0)
    count, height, width = pixels
    x = images(1, count, 4, height, width, dtype=dtype) + ratio
    exact = x.double()
    mean = exact.mean((1, 3, 4))
    squares = (exact - mean[:, None, :, None, None]).square().sum((1, 3, 4))
    eye = [torch.eye(4, dtype=dtype)[:, :, None, None]]
    pooled, of_pool = kernels.pool(x, Geometry(), largest=False, centre=True)
    assert of_pool is not None
    z, of_z = kernels.convolve(x, None, None, eye, Geometry())
    about = x[:, 0, :, 0, 0]
    for moments in (of_z, of_pool, kernels.moments(x, about=about)):
        close(moments[0] + moments[2], mean, 1e-2 * tolerance)
        close(moments[1], squares, tolerance)
    for images_less, moments in ((z, of_z), (pooled, of_pool)):
        close(images_less.double() + moments[2][:, None, :, None, None], exact, torch.finfo(dtype).eps)
        assert images_less.abs().max() < 20


@needs_compiler
def test_products_of_terms_whose_mean_is_large() -> None:
    torch.manual_seed(0)
    grads, term = images(2, 3, 4, 5, 6, dtype=torch.float32), images(1, 3, 4, 5, 6, dtype=torch.float32) + 3000
    shifts = torch.zeros(2, 2, 4)
    shifts[1] = term[:, 0, :, 0, 0]
    sums = kernels.dots(grads, [term], shifts)
    close(sums[1], (grads.double() * (term - shifts[1, :1, None, :, None, None][0]).double()).sum((1, 3, 4)), 1e-6)


@needs_compiler
def test_the_number_of_threads_changes_no_bit() -> None:
    given = case(0, torch.float32)
    x, _, depthwise, pointwise, g = given.values()
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            z, moments = kernels.convolve(*given.values())
            into = torch.zeros_like(x)
            _, _, *grads = kernels.convolve_backward(
                z, z, torch.ones(3, 2, 4), x, None, depthwise, pointwise, g,
                into=into, add=True, needs_images=True, needs_weights=True,
            )  # fmt: skip
            results.append([z, moments, into, kernels.dots(z, [z]), *grads[0], *grads[1]])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class TestBuilding:
    @pytest.fixture(autouse=True)
    def _own_cache(self, tmp_path, monkeypatch) -> Iterator[None]:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
        build.library.cache_clear()
        yield
        build.library.cache_clear()

    @needs_compiler
    def test_built_once(self, tmp_path) -> None:
        path = build.built()
        made = path.stat().st_mtime_ns
        assert build.built() == path
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
    def test_without_a_compiler_nothing_fits_and_one_line_says_so(self, settings, reason, monkeypatch, capsys) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        assert not kernels.fit(torch.ones(1))
        assert not kernels.fit(torch.ones(1))
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("space.impl=fused: no kernels, the plain form is used, several times slower: ")
        assert reason in line

    def test_a_cache_that_cannot_be_written(self, tmp_path, monkeypatch, capsys) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert not kernels.fit(torch.ones(1))
        assert "file" in capsys.readouterr().err


@needs_compiler
def test_which_images_fit() -> None:
    assert kernels.fit(torch.ones(1))
    assert kernels.fit(torch.ones(1, dtype=torch.float64))
    assert not kernels.fit(torch.ones(1, dtype=torch.bfloat16))
    assert not kernels.fit(torch.ones(1, device="meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not kernels.fit(torch.ones(1))
    with kernels.disabled():
        assert not kernels.fit(torch.ones(1))
