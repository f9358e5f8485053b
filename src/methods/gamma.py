"""Gamma variables as functions of their shape: the same uniform number, the same variable, moved along with the shape.

With F(c, x) the distribution function of Gamma(c), x(c) solves F(c, x) = u for a fixed uniform u. Its derivative,
- (dF/dc) / (dF/dx), is that of implicit reparameterisation (arXiv 1805.08498), which torch's `_standard_gamma_grad`
approximates to 2e-4 and only once. Here F is a sum of operations that torch differentiates any number of times. All is in
logarithms, so that variables of small shapes do not underflow, and in float64.
"""

from __future__ import annotations

import torch
from scipy.special import gammaincinv
from torch import Tensor

_TERMS = 128  # of the series: enough for shapes up to about 50; derivatives at larger ones become inexact
_SMALL = -40.0  # below this logarithm of x, F(c, x) is x^c / Gamma(c + 1) to all digits


def log_quantile(shape: Tensor, uniform: Tensor) -> Tensor:
    """Return log x with F(c, x) = u, without a graph. All tensors are float64, on the CPU, and of one size."""
    low = (uniform.log() + (shape + 1).lgamma()) / shape
    high = torch.from_numpy(gammaincinv(shape.numpy(), uniform.numpy())).log()
    return torch.where(low < _SMALL, low, high)


def moved(start: Tensor, level: Tensor, shape: Tensor) -> Tensor:
    """Return log x with log F(c, x) = `level`, for shapes c near those of `start`, where it is log x.

    One step of Chebyshev's method: exact at the shapes of `start` in value, first and second derivative, so off by the
    third power of a distance to them.

    Args:
        start: of `log_quantile`.
        level: `log_distribution` at `start` and its shapes.
        shape: float64, positive.
    """
    here = log_distribution(shape, start)
    slope = (shape * start - start.exp() - shape.lgamma() - here).exp()  # d log F / d log x
    step = (here - level) / slope
    return start - step - step**2 * (shape - start.exp() - slope) / 2


def log_distribution(shape: Tensor, log_x: Tensor) -> Tensor:
    """Return log F(c, x): log of x^c exp(-x) sum_k x^k / Gamma(c + k + 1)."""
    k = torch.arange(1, _TERMS, dtype=shape.dtype, device=shape.device)
    terms = k * log_x.unsqueeze(-1) - (shape.unsqueeze(-1) + k).log().cumsum(-1)
    series = torch.cat([torch.zeros_like(terms[..., :1]), terms], dim=-1).logsumexp(-1)
    return shape * log_x - log_x.exp() + series - (shape + 1).lgamma()
