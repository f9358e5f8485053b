"""Penalties: functions of the alphas alone that are added to the loss on the arch half.

Their gradient is added to the hypergradient. It is exact for both orders, since no weights are in it, and costs no pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from src.methods.relaxations import concentration
from src.methods.schedules import Linear, Progress, Schedule, not_negative_at
from src.spaces.relaxed import by_size


class Penalty(Protocol):
    """What a method asks of a penalty. `fits` are the kinds of relaxations that it makes sense with."""

    fits: ClassVar[frozenset[str]]

    def __call__(self, alphas: Mapping[str, Tensor], progress: Progress) -> Tensor:
        """Return a scalar, given {key: (candidates,)}.

        Raises:
            ConfigError: the penalty's weight is negative in this epoch.
        """
        ...


@dataclass(frozen=True)
class BetaDecay:
    """lambda * mean over keys of log sum exp(alpha): Beta-DARTS.

    Its gradient is lambda * softmax(alpha) / keys. Implements equation 12 of arXiv 2203.01665 in the form of the official
    code (optimizers/darts/architect.py), which has lambda = 50 epoch / 100 in its 100 epochs. That code has the penalty
    on NAS-Bench-201 only, and none in its unrolled step; here it is the same for every space and both orders.

    Attributes:
        weight: lambda; from 0 towards 50 over the epochs.
    """

    weight: Schedule = Linear(0.0, 50.0, reaches_last=False)
    fits: ClassVar[frozenset[str]] = frozenset({"softmax", "gumbel", "gumbel_soft"})

    def __call__(self, alphas: Mapping[str, Tensor], progress: Progress) -> Tensor:
        """Return lambda * mean over keys of log sum exp(alpha)."""
        weight = not_negative_at("weight", self.weight, progress)
        return weight * torch.stack([alpha.logsumexp(0) for alpha in alphas.values()]).mean()


@dataclass(frozen=True)
class RelativeEntropy:
    """weight * sum over keys of sum_k p_k log(p_k K), the relative entropy of a key's mixing weights p to equal ones.

    What weight decay is for alphas of a softmax: exponentiated gradient descent then takes p to the power of 1 - lr *
    weight in each step. It is in the official code of GAEA (cnn/architect/architect_edarts.py), whose configs have the
    weight 0.

    Attributes:
        weight: of the sum.
    """

    weight: Schedule
    fits: ClassVar[frozenset[str]] = frozenset({"simplex"})

    def __call__(self, alphas: Mapping[str, Tensor], progress: Progress) -> Tensor:
        """Return the weighted sum."""
        total = torch.stack([(p * (p * len(p)).log()).sum() for p in alphas.values()]).sum()
        return not_negative_at("weight", self.weight, progress) * total


@dataclass(frozen=True)
class ZeroOne:
    """weight * L01, L01 = -mean((sigmoid(alpha) - 0.5)^2) over all alphas: FairDARTS.

    It drives each candidate's weight to 0 or 1. Implements equation 5 of arXiv 1911.12126, with the weight of the official
    code (fairdarts/separate_loss.py). That code adds it to the loss of the weights' step too, where it changes nothing: no
    weight is in it.

    Attributes:
        weight: of the loss; 10 in the official code.
    """

    weight: Schedule = 10.0
    fits: ClassVar[frozenset[str]] = frozenset({"sigmoid"})

    def __call__(self, alphas: Mapping[str, Tensor], progress: Progress) -> Tensor:
        """Return the weighted loss."""
        weights = torch.cat([alpha.sigmoid() for alpha in alphas.values()])
        return -not_negative_at("weight", self.weight, progress) * ((weights - 0.5) ** 2).mean()


@dataclass(frozen=True)
class DirichletDivergence:
    """weight * sum over keys of KL(Dirichlet(elu(alpha) + 1), Dirichlet(1)): DrNAS.

    Implements the penalty of arXiv 2006.10355 as in the official code (DARTS-space/model_search.py,
    `_get_kl_reg`), which has it with `--reg_type kl` and then no weight decay of the alphas. By default that code has the
    weight decay instead (architect.py, `--reg_type l2`), and so has method=drnas.

    Attributes:
        weight: of the sum.
    """

    weight: Schedule = 1e-3
    fits: ClassVar[frozenset[str]] = frozenset({"dirichlet"})

    def __call__(self, alphas: Mapping[str, Tensor], progress: Progress) -> Tensor:
        """Return the weighted sum of the divergences."""
        divergences = []
        for keys in by_size(alphas):
            shape = concentration(torch.stack([alphas[key] for key in keys]))
            drawn, flat = (Dirichlet(c, validate_args=False) for c in (shape, torch.ones_like(shape)))
            divergences.append(kl_divergence(drawn, flat).sum())
        return (not_negative_at("weight", self.weight, progress) * torch.stack(divergences).sum()).to(
            next(iter(alphas.values()))
        )
