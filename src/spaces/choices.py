"""Choices: they make any `nn.Module` a search space.

A space is a module that somewhere holds `LayerChoice`s (one operation of several) and `InputChoice`s (some inputs of
several), each with a key. Choices that share a key share their alphas; that is how all normal cells are one cell.
`RelaxedSpace` owns the alphas and makes the choice continuous; `fix` puts an architecture's answers in place of the
choices. A space of one's own needs no code about alphas, gradients or files: tests/spaces/test_choices.py has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from src.architectures.architecture import Architecture, InputSpec, LayerSpec, Spec
from src.common.errors import ConfigError

ZERO = "none"  # the candidate that contributes nothing; an architecture never names it


class LayerChoice(nn.Module):
    """One operation of several. While searching, their weighted sum.

    Implements equation 2 of arXiv 1806.09055.

    Attributes:
        weights: the mixing weights, (candidates,); there while a `RelaxedSpace` runs.
        path: the place of the candidate that alone runs, where a method samples one; else None.
        width: the number of channels that `of_width` was told, else None.
    """

    def __init__(self, candidates: Mapping[str, nn.Module], *, key: str) -> None:
        super().__init__()
        _check_key(key)
        self.key = key
        self.path: int | None = None
        self.width: int | None = None
        self._build: Callable[[int], Mapping[str, nn.Module]] | None = None
        for name in candidates:
            if not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise ConfigError(
                    f"candidate {name!r} of LayerChoice {key!r}: allowed are identifiers no module attribute has"
                )
        self.candidates = nn.ModuleDict(candidates)
        self.spec: LayerSpec = LayerSpec(tuple(name for name in candidates if name != ZERO))
        self.weights: Tensor | None = None
        if not self.spec.candidates:
            raise ConfigError(f"LayerChoice {key!r} has no candidate besides {ZERO!r}, at least one is needed")

    @classmethod
    def of_width(cls, build: Callable[[int], Mapping[str, nn.Module]], width: int, *, key: str) -> LayerChoice:
        """Return the choice among the candidates `build(width)`, which methods may make anew for fewer channels.

        Args:
            build: returns the candidates for a number of channels.
            width: the number of channels.
            key: of the choice.
        """
        choice = cls(build(width), key=key)
        choice.width, choice._build = width, build
        return choice

    def with_width(self, width: int) -> LayerChoice:
        """Return the same choice for another number of channels, with new weights."""
        assert self._build is not None, "the choice was made by of_width"
        return LayerChoice.of_width(self._build, width, key=self.key)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the weighted sum of the candidates' outputs on `inputs`; of one candidate, where a path is chosen."""
        assert self.weights is not None, "a choice is only called through RelaxedSpace"
        if self.path is not None:
            return self.weights[self.path] * list(self._operations())[self.path](*inputs)
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

    Inputs named by keys of LayerChoices are edges: they have no alphas of their own, all are added while searching (with
    weights, if the method has edge weights), and those with the strongest operations are kept, as in the paper's cells.
    Inputs of any other names have alphas: their weighted sum is taken while searching, and the heaviest are kept.

    Attributes:
        weights: the mixing weights, (inputs,), where there are any; there while a `RelaxedSpace` runs.
    """

    def __init__(self, inputs: Sequence[str], *, n_chosen: int, key: str) -> None:
        super().__init__()
        _check_key(key)
        if not 1 <= n_chosen <= len(inputs) or len(set(inputs)) != len(inputs):
            raise ConfigError(
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


def choices_of(space: nn.Module) -> Iterator[Choice]:
    """Yield the choices in `space`, outer before inner, in the order of registration."""
    return (module for module in space.modules() if isinstance(module, LayerChoice | InputChoice))


def ranks_edges(rule: InputSpec, spec: Spec) -> bool:
    """Return whether the inputs of a choice are edges: keys of LayerChoices."""
    return isinstance(spec.get(rule.inputs[0]), LayerSpec)


def spec_of(space: nn.Module) -> Spec:
    """Return what an architecture of `space` has to answer.

    Raises:
        ConfigError: there is no choice, choices that share a key differ, or an InputChoice mixes edges with others.
    """
    spec: dict[str, LayerSpec | InputSpec] = {}
    for choice in choices_of(space):
        if spec.setdefault(choice.key, choice.spec) != choice.spec:
            raise ConfigError(
                f"choices with the key {choice.key!r} differ in their candidates, sharing a key needs the same"
            )
    if not spec:
        raise ConfigError("the space holds no LayerChoice and no InputChoice, there is nothing to search")
    for key, rule in spec.items():
        if isinstance(rule, InputSpec) and len({isinstance(spec.get(name), LayerSpec) for name in rule.inputs}) > 1:
            raise ConfigError(
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
        ConfigError: the architecture is not one of this space.
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
        raise ConfigError(f"the key {key!r} of a choice is not an identifier (letters, digits and _, no digit first)")
