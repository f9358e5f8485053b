"""A search space made continuous: the space and its alphas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from src.architectures.architecture import ranks_edges
from src.spaces.choices import InputChoice, LayerChoice, choices_of, places_of, spec_of

WEIGHTS, ALPHAS, EDGES = "space.", "alphas.", "edges."  # how the names of a RelaxedSpace's parameters begin
AUXILIARY = "auxiliary skip"  # among mixing weights, that of `LayerChoice.auxiliary`; no key, which is an identifier


class RelaxedSpace(nn.Module):
    """A search space made continuous: the space, and one vector of alphas for each key.

    Parameters are named `space.*` (the network's weights) and `alphas.{key}`. With `edge_weights`, each InputChoice over
    edges has a vector too, `edges.{key}`.

    Args:
        space: a module with choices; it is changed if there is a `mixed_op`.
        init_scale: vectors start at `init_scale` * N(0, 1).
        initial: returns the values, (size,), that a vector of a size starts with instead.
        mixed_op: returns what stands in the place of a LayerChoice; None leaves the choices.
        edge_weights: whether edges have weights of their own.

    Raises:
        ConfigError: see `spec_of`; or the mixed operation does not fit a choice.
    """

    def __init__(
        self,
        space: nn.Module,
        *,
        init_scale: float = 1e-3,
        initial: Callable[[int], Tensor] | None = None,
        mixed_op: Callable[[LayerChoice], nn.Module] | None = None,
        edge_weights: bool = False,
    ) -> None:
        super().__init__()
        self.spec = spec_of(space)
        self.space = space
        if mixed_op is not None:
            self._replace_choices(mixed_op)
        self._choices = list(choices_of(self.space))
        sizes: dict[str, int] = {}
        edges: dict[str, int] = {}
        for choice in self._choices:
            if isinstance(choice, InputChoice):
                choice.over_edges = ranks_edges(choice.spec, self.spec)
            if isinstance(choice, LayerChoice):
                sizes[choice.key] = len(choice.candidates)
            elif not choice.over_edges:
                sizes[choice.key] = len(choice.spec.inputs)
            elif edge_weights:
                edges[choice.key] = len(choice.spec.inputs)
        if initial is None:
            initial = partial(_normal, init_scale)
        self.alphas, self.edges = (
            nn.ParameterDict({key: nn.Parameter(initial(size)) for key, size in group.items()})
            for group in (sizes, edges)
        )

    def forward(self, *inputs: Tensor, mixing: Mapping[str, Tensor] | None = None, one_path: bool = False) -> Tensor:
        """Return the space's output on `inputs`.

        Args:
            inputs: of the space.
            mixing: the weights of the candidates, (candidates,) for each key, or (places, candidates) where the choices that
                share a key have rows of their own, in the order of `choices_of`; and perhaps that of all auxiliaries, a scalar,
                under `AUXILIARY`; None is softmax(alpha).
            one_path: whether `mixing` is one-hot, so that of each LayerChoice only the chosen candidate runs.
        """
        mixing = self.softmax() if mixing is None else mixing
        paths = _paths(mixing) if one_path else {}
        by_place = {key: iter(rows.unbind()) for key, rows in mixing.items() if rows.dim() == 2}
        try:
            for choice in self._choices:
                choice.weights = next(by_place[choice.key]) if choice.key in by_place else mixing.get(choice.key)
                if isinstance(choice, LayerChoice):
                    choice.path = paths.get(choice.key)
                    choice.auxiliary_weight = mixing.get(AUXILIARY)
            return self.space(*inputs)
        finally:
            for choice in self._choices:
                choice.weights = None
                if isinstance(choice, LayerChoice):
                    choice.path = choice.auxiliary_weight = None

    def softmax(self) -> dict[str, Tensor]:
        """Return the softmax of each vector, shape (candidates,) or (edges,)."""
        return softmax(dict(self.alphas.items())) | softmax(dict(self.edges.items()))

    def candidates(self) -> dict[str, tuple[str, ...]]:
        """Return for each key with a vector the names that its entries stand for, in order."""
        names: dict[str, tuple[str, ...]] = {}
        for choice in self._choices:
            if isinstance(choice, LayerChoice):
                names[choice.key] = tuple(choice.candidates)
            else:
                names[choice.key] = choice.spec.inputs
        return {key: names[key] for key in (*self.alphas, *self.edges)}

    def by_name(self, mixing: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        """Return mixing weights as plain numbers: key -> candidate or edge -> weight."""
        return {
            key: dict(zip(names, mixing[key].detach().tolist(), strict=True))
            for key, names in self.candidates().items()
        }

    def _replace_choices(self, mixed_op: Callable[[LayerChoice], nn.Module]) -> None:
        """Replace each LayerChoice with its mixed operation; one that is registered in two places remains one."""
        made: dict[nn.Module, nn.Module] = {}
        for parent, name, child in list(places_of(self)):
            if isinstance(child, LayerChoice):
                if child not in made:
                    made[child] = mixed_op(child)
                setattr(parent, name, made[child])


def by_size(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Yield the keys of vectors of one size, so that one operator can take all of them."""
    groups: dict[int, list[str]] = {}
    for key, tensor in tensors.items():
        groups.setdefault(tensor.numel(), []).append(key)
    yield from groups.values()


def by_row(function: Callable[[Tensor], Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a function of each vector; it takes all those of one size as the rows of a matrix, (keys, candidates)."""
    result: dict[str, Tensor] = {}
    for keys in by_size(tensors):
        rows = function(torch.stack([tensors[key] for key in keys])).unbind()
        result.update(zip(keys, rows, strict=True))
    return result


def softmax(alphas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return softmax(alpha) of each key, shape (candidates,)."""
    return by_row(lambda rows: rows.softmax(dim=1), alphas)


def _normal(scale: float, size: int) -> Tensor:
    return scale * torch.randn(size)


def _paths(mixing: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the place of the largest weight of each key. The host waits for the device once for each size."""
    paths: dict[str, int] = {}
    for keys in by_size({key: row for key, row in mixing.items() if key != AUXILIARY}):
        rows = torch.stack([mixing[key].detach() for key in keys])
        paths.update(zip(keys, rows.argmax(dim=1).tolist(), strict=True))
    return paths
