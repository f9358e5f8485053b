"""Choices: they make any `nn.Module` a search space.

A space is a module that holds `LayerChoice`s (one operation of several) and `InputChoice`s (some inputs of several)
anywhere within it, each with a key. It may be a choice itself. Choices that share a key share their alphas: that is how
all normal cells are one cell. `RelaxedSpace` owns the alphas and makes the choices continuous; `fix` replaces the choices
with an architecture's answers. A space needs no code about alphas, gradients or files: examples/signal_space has one of
twenty-five lines, and `check_space` (src/spaces/check.py) says what is wrong with one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from src.architectures.architecture import ZERO, Answer, Architecture, InputSpec, LayerSpec, Spec
from src.common.errors import ConfigError, shorten


class LayerChoice(nn.Module):
    """One operation of several. During a search, the weighted sum of their outputs, which must have one shape.

    Implements equation 2 of arXiv 1806.09055.

    Attributes:
        weights: the mixing weights, (candidates,), while a `RelaxedSpace` runs; else None.
        path: the index of the only candidate that runs, where a method samples one; else None.
        width: the number of channels that `of_width` was given, else None.
        auxiliary: a module whose output is added while searching, times `auxiliary_weight`, where a method has one; it is
            no candidate, and `fix` drops it. `auxiliary_of` is the candidate that it is like.
        auxiliary_weight: a scalar while a `RelaxedSpace` runs with one; None adds nothing.
    """

    def __init__(self, candidates: Mapping[str, nn.Module], *, key: str) -> None:
        super().__init__()
        _check_key(key)
        self.key = key
        self.path: int | None = None
        self.width: int | None = None
        self._build: Callable[[int], Mapping[str, nn.Module]] | None = None
        taken = nn.ModuleDict()
        for name in candidates:
            if not name.isidentifier() or hasattr(taken, name):
                raise ConfigError(
                    f"the name of a candidate of LayerChoice {key!r} must be an identifier that is not the name of an "
                    f"attribute of modules, got {name!r}"
                )
        self.candidates = nn.ModuleDict(candidates)
        self.spec: LayerSpec = LayerSpec(tuple(name for name in candidates if name != ZERO))
        self.weights: Tensor | None = None
        self.auxiliary: nn.Module | None = None
        self.auxiliary_of = ""
        self.auxiliary_weight: Tensor | None = None
        self._answer: tuple[nn.Module, ...] = ()  # of `fix`; a tuple, so that it is not registered twice
        if not self.spec.candidates:
            raise ConfigError(f"LayerChoice {key!r} must have a candidate besides {ZERO!r}")

    @classmethod
    def of_width(cls, build: Callable[[int], Mapping[str, nn.Module]], width: int, *, key: str) -> LayerChoice:
        """Return the choice among the candidates `build(width)`, which methods may rebuild with fewer channels.

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
        """Return the weighted sum of the candidates' outputs on `inputs`; of one candidate, where a path is chosen.

        Raises:
            ConfigError: the outputs differ in shape, or the choice is not part of a `RelaxedSpace`.
        """
        if self._answer:
            return self._answer[0](*inputs)
        if self.weights is None:
            raise _not_relaxed(self)
        if self.path is not None:
            chosen = self.weights[self.path] * list(self.candidates.values())[self.path](*inputs)
            return self._with_auxiliary(chosen, *inputs)
        total: Tensor | None = None
        for weight, (name, operation) in zip(self.weights, self.candidates.items(), strict=True):
            output = operation(*inputs)
            _check_shape(self, name, output, next(iter(self.candidates)), total)
            total = weight * output if total is None else total + weight * output
        assert total is not None
        return self._with_auxiliary(total, *inputs)

    def _with_auxiliary(self, total: Tensor, *inputs: Tensor) -> Tensor:
        if self.auxiliary is None or self.auxiliary_weight is None:
            return total
        return total + self.auxiliary_weight * self.auxiliary(*inputs)


class InputChoice(nn.Module):
    """`n_chosen` inputs of several, added up. The inputs must have one shape.

    Inputs named by keys of LayerChoices are edges. They have no alphas of their own: during a search all are added (with
    weights, if the method has edge weights), and in the end those with the strongest operations are kept, as in the
    paper's cells. Each must be the output of its LayerChoice, unchanged and used for nothing else, since `fix` removes the
    LayerChoices of the edges that are dropped. An architecture may keep fewer edges than `n_chosen`, but at least one. With
    `may_be_empty` it may keep none: in the fixed network the choice then returns None, for a sum of nothing.

    Inputs with any other names have alphas: during a search their weighted sum is taken, and in the end the heaviest are
    kept. What computes the others remains in the fixed network.

    Attributes:
        weights: the mixing weights, (inputs,), if there are any, while a `RelaxedSpace` runs; else None.
        over_edges: whether the inputs are edges; None until a `RelaxedSpace` holds the choice.
    """

    def __init__(self, inputs: Sequence[str], *, n_chosen: int, key: str, may_be_empty: bool = False) -> None:
        super().__init__()
        _check_key(key)
        if len(set(inputs)) != len(inputs):
            raise ConfigError(f"the inputs of InputChoice {key!r} must have different names, got {', '.join(inputs)}")
        if not 1 <= n_chosen <= len(inputs):
            raise ConfigError(f"n_chosen of InputChoice {key!r} must be 1 to {len(inputs)}, got {n_chosen}")
        self.key = key
        self.spec: InputSpec = InputSpec(tuple(inputs), n_chosen, may_be_empty)
        self.weights: Tensor | None = None
        self.over_edges: bool | None = None
        self._answer: tuple[nn.Module, ...] = ()

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the (weighted) sum of `inputs`, which come in the order of the names.

        Raises:
            ConfigError: the inputs differ in shape, there are more or fewer than names, or the choice is not part of a
                `RelaxedSpace`.
        """
        if self._answer:
            return self._answer[0](inputs)
        if self.weights is None and not self.over_edges:
            raise _not_relaxed(self)
        if isinstance(inputs, Tensor) or len(inputs) != len(self.spec.inputs):
            given = "one tensor" if isinstance(inputs, Tensor) else str(len(inputs))
            raise ConfigError(
                f"{words(self)} must be called with a list of {len(self.spec.inputs)} tensors, got {given}"
            )
        for name, term in zip(self.spec.inputs, inputs, strict=True):
            _check_shape(self, name, term, self.spec.inputs[0], inputs[0])
        terms = inputs if self.weights is None else [w * x for w, x in zip(self.weights, inputs, strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total


Choice = LayerChoice | InputChoice


def choices_of(space: nn.Module) -> Iterator[Choice]:
    """Yield the choices in `space`, outer before inner, in the order of registration."""
    return (module for module in space.modules() if isinstance(module, LayerChoice | InputChoice))


def places_of(space: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield (parent, name, child) for each place in `space` at which a module is registered, one by one.

    Unlike `named_children`, it yields a module that is registered twice at both of its places.
    """
    for parent in list(space.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None:
                yield parent, name, child


def spec_of(space: nn.Module) -> Spec:
    """Return what an architecture of `space` has to answer.

    Raises:
        ConfigError: there is no choice, choices that share a key differ, or an InputChoice mixes edges with others.
    """
    found: dict[str, Choice] = {}
    for choice in choices_of(space):
        first = found.setdefault(choice.key, choice)
        if _options(first) != _options(choice):
            raise ConfigError(
                f"choices that share the key {choice.key!r} must have the same options, got {_options(first)} and "
                f"{_options(choice)}"
            )
    if not found:
        raise ConfigError(
            "the space holds no LayerChoice and no InputChoice, so there is nothing to search; a choice must be an "
            "attribute of a module, or in an nn.ModuleList or nn.ModuleDict, and must be made in __init__"
        )
    spec: dict[str, LayerSpec | InputSpec] = {key: choice.spec for key, choice in found.items()}
    for key, rule in spec.items():
        if not isinstance(rule, InputSpec):
            continue
        edges = [name for name in rule.inputs if isinstance(spec.get(name), LayerSpec)]
        if edges and len(edges) != len(rule.inputs):
            others = [name for name in rule.inputs if name not in edges]
            raise ConfigError(
                f"the inputs of InputChoice {key!r} must be keys of LayerChoices (edges) or other names, not both, got "
                f"the keys {', '.join(edges)} and the names {', '.join(others)}"
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

    def forward(self, inputs: Sequence[Tensor]) -> Tensor | None:
        if not self.positions:
            return None
        total = inputs[self.positions[0]]
        for position in self.positions[1:]:
            total = total + inputs[position]
        return total


def fix(space: nn.Module, architecture: Architecture) -> nn.Module:
    """Return `space` with the architecture's answers in place of its choices; it has no alphas.

    It computes what the relaxed space computes with one-hot mixing weights, and costs what the chosen operations cost:
    those of dropped edges do not run. `space` itself is changed, and is returned unless it is a choice.

    Raises:
        ConfigError: the architecture is not one of this space.
    """
    answers = Architecture.parse(architecture.to_plain(), spec_of(space)).choices
    for choice in list(choices_of(space)):
        choice._answer = (_fixed(choice, answers[choice.key]),)  # for calls through other references, as from a list

    def resolved(module: nn.Module) -> nn.Module:
        while isinstance(module, LayerChoice | InputChoice):  # a candidate may itself be a choice
            (module,) = module._answer
        return module

    for parent, name, child in list(places_of(space)):
        if isinstance(child, LayerChoice | InputChoice):
            setattr(parent, name, resolved(child))
    return resolved(space)


def _fixed(choice: Choice, answer: Answer) -> nn.Module:
    if isinstance(choice, InputChoice):
        assert isinstance(answer, tuple)
        return _Chosen(tuple(choice.spec.inputs.index(name) for name in answer))
    return _Dropped() if answer is None else choice.candidates[str(answer)]


def _options(choice: Choice) -> str:
    """Return what a choice is made among, in words."""
    if isinstance(choice, LayerChoice):
        return f"the candidates {', '.join(choice.candidates)}"
    return f"{choice.spec.n_chosen} of the inputs {', '.join(choice.spec.inputs)}"


def words(choice: Choice) -> str:
    """Return what messages call a choice: its kind and its key."""
    return f"{type(choice).__name__} {choice.key!r}"


def _check_shape(choice: Choice, name: str, term: object, first: str, like: Tensor | None) -> None:
    """Raise a `ConfigError` unless a term of a sum is a tensor of the first one's shape: some others would broadcast."""
    role = "candidate" if isinstance(choice, LayerChoice) else "input"
    if not isinstance(term, Tensor):
        raise ConfigError(f"{role} {name!r} of {words(choice)} must be a tensor, got {type(term).__name__}")
    if like is not None and term.shape != like.shape:
        raise ConfigError(
            f"{role} {name!r} of {words(choice)} must have the shape of {role} {first!r}, {tuple(like.shape)}, "
            f"got {tuple(term.shape)}"
        )


def _not_relaxed(choice: Choice) -> ConfigError:
    return ConfigError(
        f"{words(choice)} was called, but no RelaxedSpace holds it; a choice must be an attribute of a module of the "
        "space, or in an nn.ModuleList or nn.ModuleDict (not in a list or dict), must be made in __init__ (not in "
        "forward), and runs within RelaxedSpace(space)"
    )


def _check_key(key: str) -> None:
    if not key.isidentifier() or hasattr(nn.ParameterDict(), key):
        raise ConfigError(
            f"the key of a choice must be an identifier (letters, digits and _) that is not the name of an attribute of "
            f"modules, got {shorten(key)!r}"
        )
