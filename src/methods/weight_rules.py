"""Weight rules: what becomes of the weights' gradients in their step. DARTS takes them as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from src.bilevel.precision import full_precision
from src.common.errors import ConfigError, must_be
from src.methods.schedules import Linear, Progress, Schedule, not_negative_at, value_at
from src.spaces.choices import LayerChoice, choices_of
from src.spaces.relaxed import WEIGHTS, RelaxedSpace

Tensors = dict[str, Tensor]
Gradients = list[Tensor | None]  # one a weight; None leaves a weight as it is, its momentum and its decay included


@dataclass(frozen=True)
class WeightsPoint:
    """Where a step of the weights is taken, and what a rule may ask there. All gradients are means over the processes.

    Attributes:
        rows: the mixing weights that the rule asked to differentiate by.
        row_gradients: the gradient of the step's loss by them.
        gradients_at: returns the gradients of the step's loss by the weights, with some mixing weights replaced. A pass.
        arch_gradients: returns the gradients of the arch batch's loss by the weights, at the step's mixing weights. A pass.
        progress: of the search.
    """

    rows: Tensors
    row_gradients: Tensors
    gradients_at: Callable[[Tensors], Gradients]
    arch_gradients: Callable[[], Gradients]
    progress: Progress


class Rule(nn.Module):
    """A rule at work on a network. What it remembers are its buffers, so that checkpoints have them.

    This one is that of DARTS.
    """

    @property
    def frozen(self) -> frozenset[str]:
        """The names of weights that no step moves any more."""
        return frozenset()

    def rows(self, mixing: Mapping[str, Tensor]) -> Tensors:
        """Return mixing weights for the step to take the gradient by; (places, candidates) gives places rows of their own."""
        return {}

    def forward(self, gradients: Gradients, point: WeightsPoint) -> Gradients:
        """Return the gradients that the step takes, before they are clipped."""
        return gradients

    def values(self) -> Tensors:
        """Return what the latest step is to be logged with."""
        return {}


class WeightRule(Protocol):
    """What a method asks of a weight rule.

    Attributes:
        needs_all_candidates: whether it makes no sense where a step runs one candidate of each choice only.
        means: those of its values of which an epoch has the mean.
        maxima: those of its values of which an epoch has the largest.
    """

    needs_all_candidates: ClassVar[bool]
    means: ClassVar[tuple[str, ...]]
    maxima: ClassVar[tuple[str, ...]]

    def start(self, net: RelaxedSpace) -> Rule:
        """Return the rule at work on a network.

        Raises:
            ConfigError: it has nothing to work on.
        """
        ...

    def check(self, progress: Progress) -> None:
        """Raise a `ConfigError` if a value is out of range in an epoch."""
        ...


@dataclass(frozen=True)
class OperationStopping:
    """Stops the training of operations whose gradients on the two halves disagree: OLES.

    For each operation, the cosine between the gradients of the weight batch's and of the arch batch's loss, its mean over
    the operation's tensors, and the mean of that over `every` steps. Where it is below `patience`, the operation's weights
    are frozen for good; it is mixed, and searched, as before. An operation is a candidate of a LayerChoice that has
    weights, each at each place. Implements operation-level early stopping of "OLES: Operation-Level Early Stopping for
    Robustifying DARTS" (NeurIPS 2023) by its text.

    The official code (PasaLab/oles, train_search.py) does something else. Its alpha step adds to the weights' gradients
    of the step before, which are zeroed only later, so that it compares g_train + g_val with g_train, which are always
    alike; it takes cosines along the first dimension of each tensor, and their mean; and it divides sums of 21 steps by 20.

    The gradient on the arch batch takes a pass of its own, at the weights and mixing weights of the step: it is the same
    whatever the hypergradient, and in epochs that train the weights only.

    Attributes:
        patience: 0.4 in the official code.
        every: number of steps between two decisions; 20 in the official code.
    """

    patience: float = 0.4
    every: int = 20
    needs_all_candidates: ClassVar[bool] = False
    means: ClassVar[tuple[str, ...]] = ()
    maxima: ClassVar[tuple[str, ...]] = ("frozen_operations",)

    def __post_init__(self) -> None:
        if not -1 <= self.patience <= 1:
            raise must_be("patience", "between -1 and 1", self.patience)
        if self.every < 1:
            raise must_be("every", "1 or more", self.every)

    def start(self, net: RelaxedSpace) -> Rule:
        """Return the rule for the operations of a network."""
        return _Stopping(net, self)

    def check(self, progress: Progress) -> None:
        """Nothing changes over the epochs."""


class _Stopping(Rule):
    """The running sums of each operation, and which are frozen."""

    def __init__(self, net: RelaxedSpace, settings: OperationStopping) -> None:
        super().__init__()
        self.settings = settings
        owner: dict[int, tuple[int, str]] = {}
        for place, choice in enumerate(choices_of(net.space)):
            if isinstance(choice, LayerChoice):
                for name, candidate in choice.candidates.items():  # of choices within candidates, the innermost counts
                    owner |= {id(parameter): (place, name) for parameter in candidate.parameters()}
        found: dict[tuple[int, str], list[int]] = {}
        self._names: list[str] = []
        for index, (name, parameter) in enumerate(_weights_of(net)):
            self._names.append(name)
            if id(parameter) in owner:
                found.setdefault(owner[id(parameter)], []).append(index)
        if not found:
            raise ConfigError(f"{type(settings).__name__} needs a LayerChoice with a candidate that has weights")
        self._tensors = list(found.values())  # of each operation, their places among the weights
        count = len(self._tensors)
        self.sums: Tensor
        self.counts: Tensor
        self.stopped: Tensor
        self.steps: Tensor
        self.register_buffer("sums", torch.zeros(count))
        self.register_buffer("counts", torch.zeros(count, dtype=torch.int64))  # of the steps that had gradients
        self.register_buffer("stopped", torch.zeros(count, dtype=torch.bool))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # since the latest decision
        self._known: tuple[int, list[int], frozenset[str]] | None = None
        self.register_load_state_dict_post_hook(_forget)

    @property
    def frozen(self) -> frozenset[str]:
        """The names of the weights of operations that are frozen."""
        return self._on_host()[2]

    def forward(self, gradients: Gradients, point: WeightsPoint) -> Gradients:
        """Compare with the gradients on the arch batch; those of frozen operations become None."""
        self._add(gradients, point.arch_gradients())
        steps, indices, frozen = self._on_host()
        self.steps += 1
        self._known = steps + 1, indices, frozen
        if steps + 1 == self.settings.every:
            mean = self.sums / self.counts.clamp_min(1)
            self.stopped |= (self.counts > 0) & (mean < self.settings.patience)
            for buffer in (self.sums, self.counts, self.steps):
                buffer.zero_()
            self._known = None
        result = list(gradients)
        for operation in self._on_host()[1]:
            for index in self._tensors[operation]:
                result[index] = None
        return result

    def values(self) -> Tensors:
        """Return how many operations are frozen."""
        return {"frozen_operations": self.stopped.sum()}

    def _add(self, gradients: Gradients, others: Gradients) -> None:
        """Add a step to the sums. Tensors without a gradient in it, or with one of zeros, take no part."""
        ones, twos, lengths = [], [], []
        for indices in self._tensors:
            both = [(one, two) for i in indices if (one := gradients[i]) is not None and (two := others[i]) is not None]
            ones += [one for one, _ in both]
            twos += [two for _, two in both]
            lengths.append(len(both))
        if not ones:
            return
        dots = torch.stack([product.sum() for product in torch._foreach_mul(ones, twos)])
        size = torch.stack(torch._foreach_norm(ones)) * torch.stack(torch._foreach_norm(twos))
        has = size > 0
        cosine = torch.where(has, dots / size, 0.0)
        sections = torch.tensor(lengths, device=dots.device)
        total, count = (
            torch.segment_reduce(values.to(dots.dtype), "sum", lengths=sections, unsafe=True)
            for values in (cosine, has)
        )
        self.sums += torch.where(count > 0, total / count.clamp_min(1), 0.0).to(self.sums.dtype)
        self.counts += count > 0

    def _on_host(self) -> tuple[int, list[int], frozenset[str]]:
        """Return the steps since the latest decision, the frozen operations, and the names of their weights."""
        if self._known is None:  # read from the device once a decision, or after a checkpoint was loaded
            indices = self.stopped.nonzero().flatten().tolist()
            names = frozenset(self._names[i] for operation in indices for i in self._tensors[operation])
            self._known = int(self.steps), indices, names
        return self._known


def _forget(rule: nn.Module, keys: object) -> None:
    assert isinstance(rule, _Stopping)
    rule._known = None


@dataclass(frozen=True)
class LayerAlignment:
    """Makes the cells that share their alphas agree on them: Lambda-DARTS.

    With g_l the gradient of the weights' loss by the mixing weights of cell l of n, it maximises the mean cosine
    Lambda = 2 / (n (n - 1)) sum_{i<j} cos(g_i, g_j): it adds -lambda * dLambda / dw to the weights' gradient, where
    dLambda / dw = sum_l (d^2 L / dw dp_l) u_l with u_l = dLambda / dg_l
    = 2 / (n (n - 1) |g_l|) (I - ghat_l ghat_l^T) sum_j ghat_j. The product is a central difference: two more passes with
    the rows p_l moved by epsilon / |u| along u_l, both ways. Implements Lambda-DARTS (arXiv 2210.07998) as the official
    code does (dr-faustus/Lambda-DARTS, sota/cnn/model_search.py and train_search.py, `corr`). There the two passes move
    BatchNorms' running statistics as well; here they do not.

    Which cells: keys of choices that occur at the same places of a space are one cell, repeated. Of several such groups
    the one with most places is aligned. In the paper's supernet of 8 cells those are the 6 normal cells, and its 2 reduction
    cells are left alone, as in the official code, which names normal cells. Weights of edges take no part.

    Attributes:
        weight: lambda; from 0 to 0.125 over the epochs (the official script has 0.25).
        epsilon: distance by which the rows of all cells together move; 1e-4 (the official script has 1e-3).
    """

    weight: Schedule = Linear(0.0, 0.125)
    epsilon: float = 1e-4
    needs_all_candidates: ClassVar[bool] = True
    means: ClassVar[tuple[str, ...]] = ("cell_cosine",)
    maxima: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < float("inf"):
            raise must_be("epsilon", "a number above 0", self.epsilon)

    def start(self, net: RelaxedSpace) -> Rule:
        """Return the rule for the repeated cells of a network."""
        groups = [(keys, places) for keys, places in repeated(net) if places > 1]
        if not groups:
            raise ConfigError(f"{type(self).__name__} needs choices that share a key, as those of repeated cells do")
        return _Alignment(self, *max(groups, key=lambda group: group[1]))

    def check(self, progress: Progress) -> None:
        """Raise a `ConfigError` if lambda is negative in an epoch."""
        not_negative_at("weight", self.weight, progress)


class _Alignment(Rule):
    """Aligns the cells that have the choices of some keys."""

    def __init__(self, settings: LayerAlignment, keys: Sequence[str], places: int) -> None:
        super().__init__()
        self.settings, self.keys, self.places = settings, tuple(keys), places
        self._cosine: Tensor | None = None

    def rows(self, mixing: Mapping[str, Tensor]) -> Tensors:
        """Return the mixing weights of each cell, (places, candidates) for each key."""
        return {key: mixing[key].expand(self.places, -1).clone() for key in self.keys}

    def forward(self, gradients: Gradients, point: WeightsPoint) -> Gradients:
        """Return the gradients less lambda times that of the mean cosine."""
        cells = torch.cat([point.row_gradients[key] for key in self.keys], dim=1)
        self._cosine, direction = alignment(cells)
        e = self.settings.epsilon / direction.norm().clamp_min(torch.finfo(direction.dtype).tiny)
        sizes = [point.rows[key].shape[1] for key in self.keys]
        moves = dict(zip(self.keys, (e * direction).split(sizes, dim=1), strict=True))
        with full_precision(cells.device.type):
            ahead, behind = (
                point.gradients_at({key: row + sign * moves[key] for key, row in point.rows.items()})
                for sign in (1, -1)
            )
        factor = value_at(self.settings.weight, point.progress) / (2 * e)
        return [
            g if g is None or p is None or n is None else g - factor * (p - n)
            for g, p, n in zip(gradients, ahead, behind, strict=True)
        ]

    def values(self) -> Tensors:
        """Return the mean cosine between the gradients of two cells."""
        return {} if self._cosine is None else {"cell_cosine": self._cosine}


def alignment(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cosine between two of the rows of (n, entries), and its gradient, which is 0 for rows of zeros."""
    count = len(cells)
    lengths = cells.norm(dim=1, keepdim=True)
    inverse = torch.where(lengths > 0, 1 / lengths, 0.0)
    units = cells * inverse
    total = units.sum(dim=0)
    pairs = count * (count - 1)
    cosine = (total.square().sum() - units.square().sum()) / pairs
    return cosine, 2 / pairs * inverse * (total - units * (units @ total)[:, None])


def repeated(net: RelaxedSpace) -> list[tuple[list[str], int]]:
    """Return the groups of keys with alphas whose choices repeat together, each with the number of its places.

    The place of a choice is the outermost module that has no other choice of its key: for a cell's edges, the cell.
    """
    paths: dict[str, list[tuple[str, ...]]] = {key: [] for key in net.alphas}
    names = {module: name for name, module in net.named_modules()}
    for choice in choices_of(net.space):
        if choice.key in paths:
            paths[choice.key].append(tuple(names[choice].split(".")))
    groups: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for key, found in paths.items():
        depth = 1
        while len({path[:depth] for path in found}) < len(found):
            depth += 1
        groups.setdefault(tuple(path[:depth] for path in found), []).append(key)
    return [(keys, len(places)) for places, keys in groups.items()]


def _weights_of(net: RelaxedSpace) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in net.named_parameters() if name.startswith(WEIGHTS)]
