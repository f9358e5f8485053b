"""Why the finite difference is as poor as it is: its error along a real search, over epsilon, and what causes it.

The mixed product of equation 7 (arXiv 1806.09055) is the derivative of g(t) = grad_a L_w(w + t v, a) at t = 0. The finite
difference (equation 8) is [g(e) - g(-e)] / 2e with e = epsilon / |v|. Its error is a sum of three vectors:

- rounding: the difference in float32, less the same difference in float64;
- kinks: the latter, less a difference in float64 with frozen patterns: each ReLU lets through what it lets through at w,
  and each max pool takes the pixel that it takes at w. Where a unit changes between w - e v and w + e v, g jumps;
- truncation: the frozen difference, less the exact product. It is smooth in e, so that this is O(e^2).

All norms are relative to that of the exact product in float64, and since they are norms, they need not add up.

The exact product knows nothing of kinks: it is the slope within one piece of a piecewise smooth function. So there is a
second measure that does not start from it. `prediction` takes random directions of the alphas, moves the alphas by a length
of 0.1 both ways, and looks how much L_a after the virtual step really changes; it is the relative error of the change that
a hypergradient predicts, over all directions. (With Adam's 3e-4 a step, 224 alphas move by 0.1 in some 20 steps.)
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from src.bench.forms import Sizes, digit_batches, in_double, our_search
from src.bench.measuring import Row, Rows
from src.bilevel.hypergradient import Bilevel, Exact, FiniteDifference, norm
from src.bilevel.unroll import Tensors

FACTOR = 10**0.5  # from one epsilon to the next
EPSILONS = tuple(1e-4 * FACTOR**power for power in range(9))  # to 1
TINY = 1e-9  # so small, in float64, that hardly any unit changes
DIRECTIONS = 16  # of the alphas
LENGTH = 0.1  # of a move of the alphas
RELUS = (F.relu, torch.relu)
MAX_POOLS = (F.max_pool2d, torch.max_pool2d)


def difference(sizes: Sizes) -> Rows:
    """The errors of the finite difference at several points of a search: a row for each epsilon, medians over seeds."""
    searches = [Errors(sizes, seed) for seed in range(sizes.seeds)]
    for step in (0, sizes.steps, 4 * sizes.steps, 10 * sizes.steps):
        points = [search.at(step) for search in searches]
        for epsilon in EPSILONS:
            yield {"step": step, "difference": f"{epsilon:.2g}", **_medians([p.errors(epsilon) for p in points])}
        tiny = [p.judged(p.central(p.double.fast, TINY)) for p in points]
        yield {"step": step, "difference": f"{TINY:.2g} in float64", **_medians(tiny)}
        yield {"step": step, "difference": "exact", **_medians([p.judged(p.exact) for p in points])}
        yield {"step": step, "difference": "none", **_medians([p.judged(0 * p.exact) for p in points])}


def _medians(rows: list[Row]) -> Row:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


class Errors:
    """A search of digits of order 2, and its points."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        kinds = "fused", "fused", "merged", "merged"
        self._search, *twins = (our_search(kind, sizes, FiniteDifference(), seed=10 * seed) for kind in kinds)
        self._double, self._plain, self._plain_double = twins
        self._double.module.double()
        self._plain_double.module.double()
        self._batches = digit_batches(sizes, seed=2 + seed)
        self._done = 0

    def at(self, step: int) -> Point:
        """Search on until so many steps are done, and return the point there."""
        while self._done < step:
            self._search(next(self._batches))
            self._done += 1
        batch = next(self._batches)
        for twin in (self._double, self._plain, self._plain_double):
            twin.copy_state(self._search)
        exact = in_double(batch)
        return Point.of(
            Problems(self._search.problem(batch), self._plain.problem(batch)),
            Problems(self._double.problem(exact), self._plain_double.problem(exact)),
        )


@dataclass(frozen=True)
class Problems:
    """The bilevel problem at one point, in two forms of the supernet."""

    fast: Bilevel
    plain: Bilevel


class Patterns(TorchFunctionMode):
    """Within it, ReLUs and max pools note what they let through, or let through what they noted before.

    Passes must call them in the same order, on images of the same size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[Tensor] = []
        self._frozen = False
        self._place = 0

    def freeze(self) -> Patterns:
        """Let the next pass keep to what was noted."""
        self._frozen, self._place = True, 0
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in RELUS:
            x = args[0]
            return x * self._pattern(lambda: x.detach() > 0)
        if func in MAX_POOLS:
            x = args[0]
            kwargs.pop("return_indices", None)
            where = self._pattern(lambda: F.max_pool2d(x.detach(), *args[1:], **kwargs, return_indices=True)[1])
            return x.flatten(2).gather(2, where.flatten(2)).view(where.shape)
        return func(*args, **kwargs)

    def _pattern(self, note: Callable[[], Tensor]) -> Tensor:
        if not self._frozen:
            self.noted.append(note())
        self._place += 1
        return self.noted[self._place - 1]


@dataclass(frozen=True)
class Point:
    """A point of a search, with what all differences there have in common.

    Attributes:
        single: the problem in float32.
        double: the same problem in float64.
        v: the direction, by the weights' names, in float64.
        direct: the first term of the hypergradient, as one vector.
        exact: the mixed product, as one vector.
        patterns: those at w.
        directions: of the alphas, unit vectors (D, A).
        slopes: how L_a after the virtual step really changes along them, by a length of 0.1 both ways (D,).
        gradients: those computed so far.
    """

    single: Problems
    double: Problems
    v: Tensors
    direct: Tensor
    exact: Tensor
    patterns: Patterns
    directions: Tensor
    slopes: Tensor
    gradients: dict[Any, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, single: Problems, double: Problems) -> Point:
        """Return the point at which problems are."""
        plain = double.plain
        weights = {name: weight.detach().requires_grad_() for name, weight in plain.weights.items()}
        with Patterns() as patterns:
            loss = plain.weight_loss(weights, plain.alphas)
        (gradients,) = plain.gradients(loss, weights)
        v, direct, _ = plain.at(plain.virtual_weights(gradients))
        exact = flat(Exact()(plain).correction) / -plain.step.lr
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(DIRECTIONS, len(exact), generator=generator, dtype=torch.float64)
        directions /= directions.norm(dim=1, keepdim=True)
        slopes = torch.tensor([_slope(double.fast, direction) for direction in directions], dtype=torch.float64)
        return cls(single, double, v, flat(direct), exact, patterns, directions, slopes)

    def errors(self, epsilon: float) -> Row:
        """Return the errors of differences at an epsilon."""
        single, double = (self.central(problems.fast, epsilon) for problems in (self.single, self.double))
        frozen = self.central(self.double.plain, epsilon, frozen=True)
        wider = self.central(self.single.fast, epsilon * FACTOR)
        return {
            **self.judged(single),
            "rounding": self.relative(single - double),
            "kinks": self.relative(double - frozen),
            "truncation": self.relative(frozen - self.exact),
            "units that change": self.changed(epsilon),
            "one-sided": self.relative(self.one_sided(self.single.fast, epsilon) - self.exact),
            "Richardson": self.relative((FACTOR**2 * single - wider) / (FACTOR**2 - 1) - self.exact),
            "frozen, float32": self.relative(self.central(self.single.plain, epsilon, frozen=True) - self.exact),
        }

    def judged(self, mixed: Tensor) -> Row:
        """Return how good a mixed product is, and the hypergradient made of it."""
        whole, exact = (self.direct - self.double.plain.step.lr * product for product in (mixed, self.exact))
        misses = self.directions @ whole - self.slopes
        return {
            "error": self.relative(mixed - self.exact),
            "cosine": float(F.cosine_similarity(mixed, self.exact, dim=0)),
            "whole gradient": float((whole - exact).norm() / exact.norm()),
            "its cosine": float(F.cosine_similarity(whole, exact, dim=0)),
            "prediction": float(misses.norm() / self.slopes.norm()),
        }

    def relative(self, vector: Tensor) -> float:
        """Return a vector's norm relative to the exact product's."""
        return float(vector.norm() / self.exact.norm())

    def central(self, problem: Bilevel, epsilon: float, *, frozen: bool = False) -> Tensor:
        """Return the central difference."""
        ahead, behind = (self.gradient(problem, sign * epsilon, frozen=frozen) for sign in (1, -1))
        return (ahead - behind) / (2 * epsilon / float(norm(self.v)))

    def one_sided(self, problem: Bilevel, epsilon: float) -> Tensor:
        """Return the forward difference."""
        return (self.gradient(problem, epsilon) - self.gradient(problem, 0.0)) / (epsilon / float(norm(self.v)))

    def gradient(self, problem: Bilevel, epsilon: float, *, frozen: bool = False) -> Tensor:
        """Return g as one vector in float64, computed in the dtype of the problem; several differences share it."""
        key = id(problem), f"{epsilon:.6g}", frozen
        if key not in self.gradients:
            with self.patterns.freeze() if frozen else nullcontext():
                self.gradients[key] = flat(problem.alpha_gradient(self.moved(problem, epsilon))).double()
        return self.gradients[key]

    def moved(self, problem: Bilevel, epsilon: float) -> Tensors:
        """Return the weights moved by a length of epsilon along v."""
        dtype = next(iter(problem.weights.values())).dtype
        distance = (epsilon / norm(self.v)).to(dtype)
        return problem.moved_weights({name: x.to(dtype) for name, x in self.v.items()}, distance)

    def changed(self, epsilon: float) -> float:
        """Return the share of ReLUs and max pools, of all pixels, that change between both sides."""
        sides = []
        for sign in (1, -1):
            with torch.no_grad(), Patterns() as patterns:
                plain = self.double.plain
                plain.weight_loss(self.moved(plain, sign * epsilon), plain.alphas)
            sides.append(patterns.noted)
        changes = sum(int((a != b).sum()) for a, b in zip(*sides, strict=True))
        return changes / sum(pattern.numel() for pattern in sides[0])


def _slope(problem: Bilevel, direction: Tensor) -> float:
    """Return the central difference of L_a after the virtual step, along a direction of the alphas."""
    sides = []
    for length in (LENGTH, -LENGTH):
        moves = direction.split([alpha.numel() for alpha in problem.alphas.values()])
        alphas = {
            name: alpha.detach() + length * move.view_as(alpha)
            for (name, alpha), move in zip(problem.alphas.items(), moves, strict=True)
        }
        weights = {name: weight.detach().requires_grad_() for name, weight in problem.weights.items()}
        (gradients,) = problem.gradients(problem.weight_loss(weights, alphas), weights)
        with torch.no_grad():
            sides.append(float(problem.arch_loss(problem.virtual_weights(gradients), alphas)))
    return (sides[0] - sides[1]) / (2 * LENGTH)


def flat(tensors: Tensors) -> Tensor:
    """Return all tensors as one vector."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors.values()])
