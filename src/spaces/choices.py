"""Choices: they make any `nn.Module` a search space.

A space is a module that somewhere holds `LayerChoice`s (one operation of several) and `InputChoice`s (some inputs of
several), each with a key. Choices that share a key share their alphas; that is how all normal cells are one cell.
`RelaxedSpace` owns the alphas and makes the choice continuous; `fix` puts an architecture's answers in place of the
choices. A space of one's own needs no code about alphas, gradients or files: tests/spaces/test_choices.py has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from src.architecture import Answer, Architecture, InputSpec, LayerSpec, Spec

ZERO = "none"  # the candidate that contributes nothing; an architecture never names it


class LayerChoice(nn.Module):
    """One operation of several. While searching, their sum weighted by softmax(alpha).

    Implements equation 2 of arXiv 1806.09055.
    """

    def __init__(self, candidates: Mapping[str, nn.Module], *, key: str) -> None:
        super().__init__()
        _check_key(key)
        self.key = key
        for name in candidates:
            if not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise ValueError(
                    f"candidate {name!r} of LayerChoice {key!r}: allowed are identifiers no module attribute has"
                )
        self.candidates = nn.ModuleDict(candidates)
        self.spec: LayerSpec = LayerSpec(tuple(name for name in candidates if name != ZERO))
        self.weights: Tensor | None = None
        if not self.spec.candidates:
            raise ValueError(f"LayerChoice {key!r} has no candidate besides {ZERO!r}, at least one is needed")

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the weighted sum of all candidates' outputs on `inputs`."""
        assert self.weights is not None, "a choice is only called through RelaxedSpace"
        outputs = (
            weight * operation(*inputs) for weight, operation in zip(self.weights, self._operations(), strict=True)
        )
        total = next(outputs)
        for output in outputs:
            total = total + output
        return total

    def _operations(self) -> Iterator[nn.Module]:
        return iter(self.candidates.values())


class InputChoice(nn.Module):
    """`n_chosen` inputs of several, added up.

    Inputs named by keys of LayerChoices are edges: they have no alphas of their own, all are added while searching, and
    those with the strongest operations are kept (the paper's cells). Inputs of any other names have alphas: they are
    weighted by softmax(alpha) while searching and the largest are kept.
    """

    def __init__(self, inputs: Sequence[str], *, n_chosen: int, key: str) -> None:
        super().__init__()
        _check_key(key)
        if not 1 <= n_chosen <= len(inputs) or len(set(inputs)) != len(inputs):
            raise ValueError(
                f"InputChoice {key!r}: n_chosen={n_chosen} of inputs {list(inputs)}, allowed are 1 to all, each once"
            )
        self.key = key
        self.spec: InputSpec = InputSpec(tuple(inputs), n_chosen)
        self.weights: Tensor | None = None

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the (weighted) sum of `inputs`, which come in the order of the names."""
        terms = inputs if self.weights is None else [w * x for w, x in zip(self.weights, inputs, strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total


Choice = LayerChoice | InputChoice


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


def choices_of(space: nn.Module) -> Iterator[Choice]:
    """Yield the choices in `space`, outer before inner, in the order of registration."""
    return (module for module in space.modules() if isinstance(module, LayerChoice | InputChoice))


def spec_of(space: nn.Module) -> Spec:
    """Return what an architecture of `space` has to answer.

    Raises:
        ValueError: there is no choice, choices that share a key differ, or an InputChoice mixes edges with others.
    """
    spec: dict[str, LayerSpec | InputSpec] = {}
    for choice in choices_of(space):
        if spec.setdefault(choice.key, choice.spec) != choice.spec:
            raise ValueError(
                f"choices with the key {choice.key!r} differ in their candidates, sharing a key needs the same"
            )
    if not spec:
        raise ValueError("the space holds no LayerChoice and no InputChoice, there is nothing to search")
    for key, rule in spec.items():
        if isinstance(rule, InputSpec) and len({isinstance(spec.get(name), LayerSpec) for name in rule.inputs}) > 1:
            raise ValueError(
                f"InputChoice {key!r} mixes keys of LayerChoices with other names, allowed is one or the other"
            )
    return spec


class _Dropped(nn.Module):
    """Stands where an edge was dropped; costs nothing."""

    def forward(self, *inputs: Tensor) -> None:
        return None


class _Chosen(nn.Module):
    """Adds up the inputs that were kept."""

    def __init__(self, positions: tuple[int, ...]) -> None:
        super().__init__()
        self.positions = positions

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        total = inputs[self.positions[0]]
        for position in self.positions[1:]:
            total = total + inputs[position]
        return total


def fix(space: nn.Module, architecture: Architecture) -> nn.Module:
    """Put the architecture's answers in place of the choices in `space`, which is changed and returned.

    Raises:
        ValueError: the architecture is not one of this space.
    """
    answers = Architecture.parse(architecture.to_plain(), spec_of(space)).choices

    def fixed(choice: Choice) -> nn.Module:
        answer = answers[choice.key]
        if isinstance(choice, InputChoice):
            assert isinstance(answer, tuple)
            inputs = choice.spec.inputs
            return _Chosen(tuple(inputs.index(name) for name in answer))
        return _Dropped() if answer is None else choice.candidates[str(answer)]

    for parent in list(space.modules()):
        for name, child in list(parent.named_children()):
            while isinstance(child, LayerChoice | InputChoice):  # a candidate may itself be a choice
                child = fixed(child)  # noqa: PLW2901
            setattr(parent, name, child)
    return space


def _check_key(key: str) -> None:
    if not key.isidentifier():
        raise ValueError(f"the key {key!r} of a choice is not an identifier (letters, digits and _, no digit first)")
