"""A search space made continuous: the space and its alphas."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from src.architectures.architecture import Answer, Architecture, InputSpec, LayerSpec
from src.spaces.choices import ZERO, LayerChoice, choices_of, spec_of


class RelaxedSpace(nn.Module):
    """A search space made continuous: the space, and one vector of alphas for each key.

    Alphas start at `init_scale` * N(0, 1). Parameters are named `space.*` (the weights) and `alphas.{key}`.
    """

    def __init__(self, space: nn.Module, *, init_scale: float = 1e-3) -> None:
        super().__init__()
        self.space = space
        self._choices = list(choices_of(space))
        self.spec = spec_of(space)
        sizes: dict[str, int] = {}
        for choice in self._choices:
            if isinstance(choice, LayerChoice):
                sizes[choice.key] = len(choice.candidates)
            elif not self._ranks_edges(choice.spec):
                sizes[choice.key] = len(choice.spec.inputs)
        self.alphas = nn.ParameterDict(
            {key: nn.Parameter(init_scale * torch.randn(size)) for key, size in sizes.items()}
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the space's output on `inputs`, every choice mixed by the softmax of its alphas."""
        weights = self.weights()
        try:
            for choice in self._choices:
                choice.weights = weights.get(choice.key)
            return self.space(*inputs)
        finally:
            for choice in self._choices:
                choice.weights = None

    def weights(self) -> dict[str, Tensor]:
        """Return softmax(alpha) of each key, shape (candidates,). Alphas of one size go through one softmax."""
        by_size: dict[int, list[str]] = {}
        for key, alpha in self.alphas.items():
            by_size.setdefault(alpha.numel(), []).append(key)
        result = {}
        for keys in by_size.values():
            rows = torch.stack([self.alphas[key] for key in keys]).softmax(dim=1).unbind()
            result.update(zip(keys, rows, strict=True))
        return result

    def candidates(self) -> dict[str, tuple[str, ...]]:
        """Return for each key with alphas the names its alphas stand for, in order."""
        names = {}
        for choice in self._choices:
            if isinstance(choice, LayerChoice):
                names[choice.key] = tuple(choice.candidates)
            elif choice.key in self.alphas:
                names[choice.key] = choice.spec.inputs
        return {key: names[key] for key in self.alphas}

    @torch.no_grad()
    def derive(self) -> Architecture:
        """Return the discrete architecture by the paper's rule (section 2.4 of arXiv 1806.09055).

        Each LayerChoice keeps its heaviest candidate other than `none`; each InputChoice over edges keeps those whose
        kept candidate is heaviest. The softmax runs over all candidates, `none` too. Ties go to the first.
        """
        weights = {key: row.tolist() for key, row in self.weights().items()}
        strongest: dict[str, tuple[float, str]] = {}
        for key, names in self.candidates().items():
            if isinstance(self.spec[key], LayerSpec):
                pairs = [(weight, name) for weight, name in zip(weights[key], names, strict=True) if name != ZERO]
                strongest[key] = max(pairs, key=lambda pair: pair[0])
        choices: dict[str, Answer] = {key: name for key, (_, name) in strongest.items()}
        dropped: set[str] = set()
        for key, rule in self.spec.items():
            if isinstance(rule, InputSpec):
                over_edges = self._ranks_edges(rule)
                strength = [strongest[name][0] for name in rule.inputs] if over_edges else weights[key]
                order = sorted(range(len(strength)), key=lambda i: -strength[i])
                kept = sorted(order[: rule.n_chosen])
                choices[key] = tuple(rule.inputs[i] for i in kept)
                if over_edges:
                    dropped.update(rule.inputs[i] for i in order[rule.n_chosen :])
        return Architecture({key: None if key in dropped else choices[key] for key in self.spec})

    def _ranks_edges(self, rule: InputSpec) -> bool:
        return isinstance(self.spec.get(rule.inputs[0]), LayerSpec)
