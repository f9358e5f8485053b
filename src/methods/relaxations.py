"""Relaxations: from alphas to mixing weights. DARTS has the softmax.

Alphas and mixing weights are {key: (candidates,)}. All relaxations work on each key by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from src.methods import gamma
from src.methods.schedules import Linear, Progress, Schedule, positive_at
from src.spaces.relaxed import by_row, by_size, softmax

Tensors = dict[str, Tensor]


class Relaxation(Protocol):
    """What a method asks of a relaxation.

    It may also have a method `initial(size: int) -> Tensor`: the values, (size,), that a vector of alphas starts with,
    and so does a vector of edges' weights. Without it, vectors start at 1e-3 * N(0, 1).

    Attributes:
        kind: `softmax`, `gumbel`, ...: what penalties, perturbations and alpha optimisers say they fit. Of the kind
            `simplex` are those whose alphas are mixing weights: rows of positive numbers with the sum 1. They need an
            alpha optimiser that keeps them so, and then the edges' weights are such rows, too.
        one_path: whether mixing weights are one-hot, so that the chosen candidate alone has to run.
        second_order: whether a second-order hypergradient means something: the mixing weights are a differentiable
            function of the alphas.
    """

    kind: ClassVar[str]
    one_path: ClassVar[bool]
    second_order: ClassVar[bool]

    def draw(self, alphas: Mapping[str, Tensor], generator: torch.Generator) -> Tensors:
        """Return the noise of one search step. All passes of the step, on all processes, share it."""
        ...

    def mixing_weights(self, alphas: Mapping[str, Tensor], noise: Mapping[str, Tensor], progress: Progress) -> Tensors:
        """Return the mixing weights of a pass in training."""
        ...

    def expected(self, alphas: Mapping[str, Tensor]) -> Tensors:
        """Return the mixing weights without noise: for validation, deriving and logging."""
        ...


class _WithoutNoise(ABC):
    """Mixing weights in training are those without noise: a differentiable function of the alphas."""

    one_path: ClassVar[bool] = False
    second_order: ClassVar[bool] = True

    def draw(self, alphas: Mapping[str, Tensor], generator: torch.Generator) -> Tensors:
        """Return no noise."""
        return {}

    def mixing_weights(self, alphas: Mapping[str, Tensor], noise: Mapping[str, Tensor], progress: Progress) -> Tensors:
        """Return the mixing weights without noise."""
        return self.expected(alphas)

    @abstractmethod
    def expected(self, alphas: Mapping[str, Tensor]) -> Tensors:
        """Return the mixing weights without noise."""


class _GumbelNoise:
    """Alphas are logits, to which Gumbel noise is added in training."""

    def draw(self, alphas: Mapping[str, Tensor], generator: torch.Generator) -> Tensors:
        """Return standard Gumbel noise for every alpha, drawn on the CPU, so that every device sees the same."""
        return {key: _gumbel(alpha, generator) for key, alpha in alphas.items()}

    def expected(self, alphas: Mapping[str, Tensor]) -> Tensors:
        """Return softmax(alpha): how often each candidate is drawn, or the heaviest."""
        return softmax(alphas)


@dataclass(frozen=True)
class Softmax(_WithoutNoise):
    """softmax(alpha). Implements equation 2 of arXiv 1806.09055."""

    kind: ClassVar[str] = "softmax"

    def expected(self, alphas: Mapping[str, Tensor]) -> Tensors:
        """Return softmax(alpha)."""
        return softmax(alphas)


@dataclass(frozen=True)
class Sigmoid(_WithoutNoise):
    """sigmoid(alpha): candidates do not compete for a sum of 1. FairDARTS.

    Implements section 4.1 of arXiv 1911.12126. Alphas start at 0, so that each candidate starts with the weight 0.5.
    """

    kind: ClassVar[str] = "sigmoid"

    def initial(self, size: int) -> Tensor:
        """Return zeros."""
        return torch.zeros(size)

    def expected(self, alphas: Mapping[str, Tensor]) -> Tensors:
        """Return sigmoid(alpha)."""
        return by_row(torch.sigmoid, alphas)


@dataclass(frozen=True)
class Simplex(_WithoutNoise):
    """The alphas are the mixing weights: GAEA (arXiv 2004.07802).

    They start at 1 / candidates and stay on the simplex by `ExponentiatedGradient`. The gradient is that by the mixing
    weights, as in the official code.
    """

    kind: ClassVar[str] = "simplex"

    def initial(self, size: int) -> Tensor:
        """Return equal weights."""
        return torch.full((size,), 1 / size)

    def expected(self, alphas: Mapping[str, Tensor]) -> Tensors:
        """Return the alphas."""
        return {key: alpha.clone() for key, alpha in alphas.items()}


@dataclass(frozen=True)
class GumbelHard(_GumbelNoise):
    """One candidate of each choice, drawn by the Gumbel-max trick, with the gradient of the relaxed draw: GDAS.

    With Gumbel noise g and p = softmax((log softmax(alpha) + g) / tau), the mixing weights are the one-hot vector of the
    largest p; their gradient is that of p. Implements equations 3 to 7 of arXiv 1910.04465.

    Of the two gradients in the official code, this is the one of its DARTS space: candidates that were not drawn are not
    called and take no part in the gradient. Its NAS-Bench-201 code adds their weights as zeros and so lets a gradient
    flow into them. The official code draws for the alphas' step and the weights' step separately; here one draw serves
    both, so that all passes of a search step see one network.

    Attributes:
        temperature: tau; the paper's is 10 in the first epoch and 0.1 in the last.
    """

    temperature: Schedule = Linear(10.0, 0.1)
    kind: ClassVar[str] = "gumbel"
    one_path: ClassVar[bool] = True
    second_order: ClassVar[bool] = False

    def mixing_weights(self, alphas: Mapping[str, Tensor], noise: Mapping[str, Tensor], progress: Progress) -> Tensors:
        """Return one-hot weights with the gradient of p.

        Raises:
            ConfigError: the temperature is not above 0 in this epoch.
        """
        tau = positive_at("temperature", self.temperature, progress)
        result: Tensors = {}
        for keys in by_size(alphas):
            alpha = torch.stack([alphas[key] for key in keys])
            gumbel = torch.stack([noise[key] for key in keys])
            p = ((alpha.log_softmax(dim=1) + gumbel) / tau).softmax(dim=1)
            one_hot = torch.zeros_like(p).scatter_(1, p.argmax(dim=1, keepdim=True), 1.0)
            # The difference is exactly zero, so the weights are exactly one-hot.
            result.update(zip(keys, (one_hot + (p - p.detach())).unbind(), strict=True))
        return result


@dataclass(frozen=True)
class GumbelSoft(_GumbelNoise):
    """softmax((alpha + g) / tau) with Gumbel noise g: SNAS. All candidates run.

    Implements the concrete distribution of arXiv 1812.09926, with alpha for its log alpha. The official code
    lowers tau on a line from 1 to 0.03 over the epochs, divided by 150 whatever their number, and is one epoch ahead
    (SNAS/utils.py: 0.9935 in epoch 0, 0.03 in epoch 149); here the line has 1 in the first epoch of any search and 0.03 in
    the last. It keeps tau at 1 unless it is run with `--temp_annealing`, as its README does.

    Attributes:
        temperature: tau.
    """

    temperature: Schedule = Linear(1.0, 0.03)
    kind: ClassVar[str] = "gumbel_soft"
    one_path: ClassVar[bool] = False
    second_order: ClassVar[bool] = True

    def mixing_weights(self, alphas: Mapping[str, Tensor], noise: Mapping[str, Tensor], progress: Progress) -> Tensors:
        """Return softmax((alpha + g) / tau).

        Raises:
            ConfigError: the temperature is not above 0 in this epoch.
        """
        tau = positive_at("temperature", self.temperature, progress)
        return softmax({key: (alpha + noise[key]) / tau for key, alpha in alphas.items()})


_FROM_ONE = 1e-9  # how far uniform numbers stay from 1: closer, a sum of 1e-16 accuracy cannot tell them apart


@dataclass(frozen=True)
class Dirichlet:
    """Mixing weights drawn from Dirichlet(elu(alpha) + 1): DrNAS.

    Implements the relaxation of arXiv 2006.10355. A draw is Gamma variables divided by their sum, each a function of its
    concentration for a fixed uniform number (src/methods/gamma.py), so that all passes of a step see one function of the
    alphas, with derivatives of any order. The official code calls `torch.distributions.Dirichlet.rsample` in every pass:
    another draw for each, and another gradient of the same expectation, without a second derivative.

    A candidate `none` takes part like any other: it is drawn a weight, and the architecture never names it. The space of
    the official code has none (DARTS-space/genotypes.py).
    """

    kind: ClassVar[str] = "dirichlet"
    one_path: ClassVar[bool] = False
    second_order: ClassVar[bool] = True

    def draw(self, alphas: Mapping[str, Tensor], generator: torch.Generator) -> Tensors:
        """Return for each key the logarithms of Gamma variables and their levels, (2, candidates), float64.

        Uniform numbers are drawn on the CPU and do not depend on the alphas, so that a draw after a step of the alphas
        moves along with them.
        """
        result: Tensors = {}
        for keys in by_size(alphas):
            shape = concentration(torch.stack([alphas[key].detach() for key in keys]).cpu())
            uniform = torch.rand(shape.shape, dtype=torch.float64, generator=generator)
            start = gamma.log_quantile(shape, uniform * (1 - _FROM_ONE) + torch.finfo(torch.float64).tiny)
            level = gamma.log_distribution(shape, start)
            noise = torch.stack([start, level], dim=1).to(_of_float64(alphas[keys[0]].device))
            result.update(zip(keys, noise.unbind(), strict=True))
        return result

    def mixing_weights(self, alphas: Mapping[str, Tensor], noise: Mapping[str, Tensor], progress: Progress) -> Tensors:
        """Return the draw, as a function of the alphas."""
        result: Tensors = {}
        for keys in by_size(alphas):
            alpha = torch.stack([alphas[key] for key in keys])
            start, level = torch.stack([noise[key] for key in keys]).unbind(dim=1)
            rows = gamma.moved(start, level, concentration(alpha)).softmax(dim=1)
            result.update(zip(keys, rows.to(alpha).unbind(), strict=True))
        return result

    def expected(self, alphas: Mapping[str, Tensor]) -> Tensors:
        """Return softmax(alpha), with which the official code derives. (The mean of a draw is elu(alpha) + 1 over its sum.)"""
        return softmax(alphas)


_LOWEST = -130.0  # below it exp(alpha) to the third power, as in second derivatives, would leave float64


def concentration(alpha: Tensor) -> Tensor:
    """Return elu(alpha) + 1 > 0, in float64, without the digits that the sum would lose."""
    alpha = alpha.to(_of_float64(alpha.device), torch.float64)
    below = torch.where(alpha > 0, 0.0, alpha)  # so that no exp overflows, whose gradient would be 0 * inf
    return torch.where(alpha > 0, alpha + 1, below.clamp_min(_LOWEST).exp())


def _of_float64(device: torch.device) -> torch.device:
    """Return a device, or the CPU for one that has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def _gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return standard Gumbel noise; an infinite draw is repeated, as in the official code of GDAS."""
    while True:
        exponential = torch.empty(like.shape, dtype=torch.float64).exponential_(generator=generator)
        noise = -exponential.log()
        if bool(noise.isfinite().all()):
            return noise.to(like)
