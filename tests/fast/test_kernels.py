"""The kernels against torch's operators and autograd."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
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
    *((None, k, 3, 9, 5, 4, own) for k in (2, 3) for own in (False, True)),
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


ARGUMENTS = case(0)
Z = images(2, 3, 4, 9, 8)
REFUSED: dict[str, Callable[[], Any]] = {
    "x of other edges": lambda: kernels.convolve(**{**CONVOLVE, "x": images(3, 3, 4, 9, 8)}),
    "x of other channels": lambda: kernels.convolve(**{**CONVOLVE, "x": images(1, 3, 5, 9, 8)}),
    "x without pixels": lambda: kernels.convolve(**{**CONVOLVE, "x": images(1, 3, 4, 0, 8)}),
    "x without images": lambda: kernels.convolve(**{**CONVOLVE, "x": images(1, 0, 4, 9, 8)}),
    "x of another layout": lambda: kernels.convolve(**{**CONVOLVE, "x": random(1, 3, 4, 9, 8)}),
    "x of four dimensions": lambda: kernels.convolve(**{**CONVOLVE, "x": random(3, 4, 9, 8)}),
    "x of integers": lambda: kernels.convolve(**{**CONVOLVE, "x": images(1, 3, 4, 9, 8).long()}),
    "x on another device": lambda: kernels.convolve(**{**CONVOLVE, "x": images(1, 3, 4, 9, 8).to("meta")}),
    "weights of another dtype": lambda: kernels.convolve(**{**CONVOLVE, "x": images(1, 3, 4, 9, 8).float()}),
    "rescale where edges share x": lambda: kernels.convolve(**{**CONVOLVE, "rescale": random(2, 2, 4)}),
    "rescale of other channels": lambda: kernels.convolve(
        **{**CONVOLVE, "x": images(2, 3, 4, 9, 8), "rescale": random(2, 2, 5)}
    ),
    "fewer depthwise weights": lambda: kernels.convolve(**{**CONVOLVE, "depthwise": [random(4, 1, 3, 3)]}),
    "smaller depthwise weights": lambda: kernels.convolve(**{**CONVOLVE, "depthwise": [random(4, 1, 2, 2)] * 2}),
    "strided weights": lambda: kernels.convolve(**{**CONVOLVE, "depthwise": [random(4, 1, 3, 6)[..., ::2]] * 2}),
    "a geometry without depthwise weights": lambda: kernels.convolve(**{**CONVOLVE, "depthwise": None}),
    "pointwise weights of other channels": lambda: kernels.convolve(
        **{**CONVOLVE, "pointwise": [random(4, 5, 1, 1)] * 2}
    ),
    "pointwise weights that differ": lambda: kernels.convolve(
        **{**CONVOLVE, "pointwise": [random(4, 4, 1, 1), random(3, 4, 1, 1)]}
    ),
    "no stride": lambda: kernels.convolve(**{**CONVOLVE, "geometry": Geometry(3, 0, 1)}),
    "a negative padding": lambda: kernels.convolve(**{**CONVOLVE, "geometry": Geometry(3, 1, -1)}),
    "a kernel that does not fit": lambda: kernels.convolve(**{**CONVOLVE, "geometry": Geometry(3, 1, 0, 5)}),
    "sizes beyond all memory": lambda: kernels.convolve(**{**CONVOLVE, "geometry": Geometry(3, 2**40, 2**40)}),
    "out of another size": lambda: kernels.convolve(**CONVOLVE, out=images(2, 3, 4, 8, 8)),
    "out that is expanded": lambda: kernels.convolve(**CONVOLVE, out=images(1, 3, 4, 9, 8).expand(2, 3, 4, 9, 8)),
    "grad of another size": lambda: backward(grad=images(2, 3, 4, 8, 8)),
    "z of another dtype": lambda: backward(z=Z.float()),
    "mix of other edges": lambda: backward(mix=random(3, 1, 4)),
    "into of another size": lambda: backward(into=images(1, 3, 4, 9, 7)),
    "into of edges": lambda: backward(into=images(2, 3, 4, 9, 8)),
    "no into where edges share x": lambda: backward(into=None),
    "into where they do not": lambda: backward(x=images(2, 3, 4, 9, 8)),
    "a pool of edges": lambda: kernels.pool(images(2, 3, 4, 9, 8), Geometry(3, 1, 1), largest=True),
    "a pool of much padding": lambda: kernels.pool(images(1, 3, 4, 9, 8), Geometry(3, 1, 2), largest=True),
    "a dilated pool": lambda: kernels.pool(images(1, 3, 4, 9, 8), Geometry(3, 1, 1, 2), largest=True),
    "a pool that does not fit": lambda: kernels.pool(images(1, 3, 4, 2, 8), Geometry(3, 1, 0), largest=False),
    "a pool's grad of another size": lambda: kernels.pool_backward(
        images(1, 3, 4, 9, 8), images(1, 3, 4, 9, 8), Geometry(3, 2, 1), largest=True, into=images(1, 3, 4, 9, 8),
        add=False,
    ),
    "a pool's into of another size": lambda: kernels.pool_backward(
        images(1, 3, 4, 5, 4), images(1, 3, 4, 9, 8), Geometry(3, 2, 1), largest=True, into=images(1, 3, 4, 5, 4),
        add=False,
    ),
    "a term of another size": lambda: combine(terms=[Z, images(2, 3, 4, 5, 4)]),
    "a term that broadcasts": lambda: combine(terms=[Z, images(2, 3, 4, 1, 1)]),
    "a term of other edges": lambda: combine(terms=[Z, images(3, 3, 4, 9, 8)]),
    "a term of another dtype": lambda: combine(terms=[Z, Z.float()]),
    "coefficients of fewer terms": lambda: combine(coefficients=random(1, 2, 4)),
    "a constant of other channels": lambda: combine(constant=random(2, 3)),
    "a sum that is expanded": lambda: combine(out=images(1, 3, 4, 9, 8).expand(2, 3, 4, 9, 8)),
    "products of another size": lambda: kernels.dots(Z, [images(2, 3, 4, 9, 7)]),
    "products of another dtype": lambda: kernels.dots(Z, [Z.float()]),
    "products of other channels": lambda: kernels.dots(Z, [images(1, 3, 5, 9, 8)]),
    "shifts of fewer terms": lambda: kernels.dots(Z, [Z], random(1, 2, 4)),
}  # fmt: skip
CONVOLVE = {"geometry" if name == "g" else name: value for name, value in ARGUMENTS.items()}


def backward(**changes: Any) -> Any:
    arguments = {**CONVOLVE, "grad": Z, "z": Z, "mix": random(3, 2, 4), "into": images(1, 3, 4, 9, 8), **changes}
    return kernels.convolve_backward(**arguments, add=False, needs_images=True, needs_weights=True)


def combine(**changes: Any) -> None:
    arguments = {"out": Z.clone(), "terms": [Z, Z[:1]], "coefficients": random(2, 2, 4), "constant": random(2, 4)}
    kernels.combine(**{**arguments, **changes}, add=False)


@needs_compiler
@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_together_is_refused_before_memory_is_read(name: str) -> None:
    backward()
    combine()
    with pytest.raises(ValueError, match="must"):
        REFUSED[name]()


@needs_compiler
def test_scratch_memory_that_cannot_be_had_is_an_error() -> None:
    """In a thread, an exception would end the process."""
    far = Geometry(3, 1, 3 * 10**6, 3 * 10**6)
    with pytest.raises(MemoryError, match=r"kernel convolve$"):
        kernels.convolve(**{**CONVOLVE, "geometry": far})
    with pytest.raises(MemoryError, match="convolve_backward"):
        backward(geometry=far)
    x, pool = images(1, 3, 4, 9, 8), Geometry(8 * 10**6, 1, 4 * 10**6)
    small = kernels.empty((1, 3, 4, 10, 9), like=x)
    for centre in (False, True):
        with pytest.raises(MemoryError, match="pool"):
            kernels.pool(x, pool, largest=True, centre=centre)
    with pytest.raises(MemoryError, match="pool_backward"):
        kernels.pool_backward(small, x, pool, largest=True, into=x, add=False)


SANITIZERS = "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined"


def libraries_of_sanitizers(compiler: str) -> list[str] | None:
    """Return the libraries that have to be loaded first, or None where the compiler has none."""
    found = []
    for names in (("libasan.so", "libclang_rt.asan.so", "libclang_rt.asan-x86_64.so"), ("libstdc++.so.6",)):
        for name in names:
            command = [*compiler.split(), f"-print-file-name={name}"]
            path = Path(subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip())
            if path.is_absolute() and path.exists():
                found.append(str(path))
                break
        else:
            return None
    return found


@pytest.mark.slow
@needs_compiler
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """Run the tests of this folder with kernels that were built with AddressSanitizer and UBSan."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, build.COMPILERS))
    libraries = libraries_of_sanitizers(compiler)
    if libraries is None:
        pytest.skip(f"{compiler} has no AddressSanitizer")
    wrapper = tmp_path / "compiler"  # its flags come last, so that they win: -O3 would take a quarter of an hour
    wrapper.write_text(f'#!/bin/sh\nexec {compiler} "$@" {SANITIZERS}\n')
    wrapper.chmod(0o755)
    here = Path(__file__).parent
    environment = {**os.environ, "CXX": str(wrapper), "XDG_CACHE_HOME": str(tmp_path)}
    run = functools.partial(subprocess.run, cwd=here.parents[1], capture_output=True, text=True, check=False)
    built = run([sys.executable, "-c", "from src.fast.kernels import build; print(build.built())"], env=environment)
    assert str(tmp_path) in built.stdout, built.stderr
    environment |= {
        "LD_PRELOAD": " ".join(libraries),
        # A MemoryError is tested; what Python itself leaks is not looked at.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    tests = [str(here / name) for name in ("test_kernels.py", "test_forms.py", "test_operation_forms.py")]
    # Building would compile under the sanitizers, and -O1 rounds otherwise than -O3.
    options = [
        "-n",
        "0",
        "-x",
        "-p",
        "no:cacheprovider",
        "--capture=sys",
        "-rs",
        "-k",
        "not TestBuilding and not large_means",
    ]
    done = run([sys.executable, "-m", "pytest", *options, *tests], env=environment)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert "SKIPPED" not in done.stdout


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
        monkeypatch.delenv("CXXFLAGS", raising=False)
        build.library.cache_clear()
        yield
        build.library.cache_clear()

    @pytest.mark.slow
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
        assert line.startswith("no kernels for space.impl=fused, the plain form runs, several times slower: ")
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
