"""A dry pass through a search space: what is wrong with the space is said before the search begins, in one line."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from src.common.errors import ConfigError, shorten
from src.common.seeding import preserved_randomness
from src.spaces.choices import Choice, InputChoice, LayerChoice, choices_of, words
from src.spaces.relaxed import RelaxedSpace


def check_space(
    space: nn.Module, *inputs: Tensor, outputs: int | None = None, differentiated_twice: bool = False
) -> None:
    """Run a copy of `space` in training mode, with equal mixing weights, and refuse what a search could not use.

    Neither the space nor any random number generator is changed.

    Args:
        space: a module with choices, not relaxed yet.
        inputs: of the space; of two samples or more, since BatchNorm may need them.
        outputs: the number of values that the space must return for a sample, such as the number of classes; None is
            any.
        differentiated_twice: whether the candidates must have second derivatives.

    Raises:
        ConfigError: choices that clash, a choice that is not registered, never called or without influence, candidates
            or inputs that differ in shape, a candidate that writes into its input, an edge that is used elsewhere, another number of outputs, or a candidate
            without the derivatives.
        Exception: an error of any other kind in the space's own code is raised as it is.
    """
    with preserved_randomness(), torch.enable_grad():
        trial = _Trial(space)
        output = _checked(trial.run(*inputs), len(inputs[0]), outputs)
        trial.check_influence(output)
        trial.check_edges_are_not_used_elsewhere(*inputs)
        if differentiated_twice:
            trial.check_second_derivatives(*inputs)


class _Trial:
    """A copy of a space that notes what its choices return."""

    def __init__(self, space: nn.Module) -> None:
        self.space = deepcopy(space).train()
        for name, parameter in self.space.named_parameters():
            if is_lazy(parameter):
                raise ConfigError(f"the parameter {name} has no size yet; a space must not hold lazy modules")
        RelaxedSpace(self.space)  # checks the keys, and tells InputChoices whether they are over edges
        self.returned: dict[Choice, list[Tensor]] = {choice: [] for choice in choices_of(self.space)}
        self.leaves: dict[Choice, Tensor] = {}
        self.detaching = False
        kind = next((p for p in self.space.parameters() if p.is_floating_point()), torch.zeros(()))
        for choice in self.returned:
            choice.register_forward_hook(self._note)
            if isinstance(choice, LayerChoice):
                for name, candidate in choice.candidates.items():
                    _watch_writing(choice, name, candidate)
            if isinstance(choice, InputChoice):
                choice.register_forward_pre_hook(self._detach)
            if isinstance(choice, LayerChoice) or not choice.over_edges:
                size = len(choice.candidates) if isinstance(choice, LayerChoice) else len(choice.spec.inputs)
                leaf = kind.detach().new_full((size,), 1 / size).requires_grad_()
                choice.weights = self.leaves[choice] = leaf

    def run(self, *inputs: Tensor) -> object:
        """Return what the space returns."""
        for outputs in self.returned.values():
            outputs.clear()
        return self.space(*inputs)

    def check_influence(self, output: Tensor) -> None:
        """Raise a `ConfigError` for a choice on which the output of the space does not depend."""
        for choice, gradient in zip(self.leaves, _gradients(output, list(self.leaves.values())), strict=True):
            if gradient is None and self.returned[choice]:
                raise ConfigError(
                    f"the output of the space does not depend on {words(choice)}, whose output is not used"
                )
            if gradient is None:
                raise ConfigError(f"{words(choice)} is never called in the space's forward; call it or remove it")

    def check_edges_are_not_used_elsewhere(self, *inputs: Tensor) -> None:
        """Raise a `ConfigError` for an edge, which `fix` may drop, whose output is used outside of InputChoices."""
        switches = {name: choice for choice in self.returned if _may_drop_edges(choice) for name in choice.spec.inputs}
        if not switches:
            return
        self.detaching = True
        output = self.run(*inputs)
        assert isinstance(output, Tensor)
        edges = [(choice, term) for choice, terms in self.returned.items() if choice.key in switches for term in terms]
        for (edge, _), gradient in zip(edges, _gradients(output, [term for _, term in edges]), strict=True):
            if gradient is not None:
                switch = words(switches[edge.key])
                raise ConfigError(
                    f"the output of {words(edge)} is an edge of {switch} and is used elsewhere too, which is not possible "
                    "once the edge is dropped"
                )

    def check_second_derivatives(self, *inputs: Tensor) -> None:
        """Raise a `ConfigError` for a candidate that cannot be differentiated twice."""
        given: dict[tuple[str, str], tuple[nn.Module, tuple[Any, ...]]] = {}  # to the first candidate of each name

        def note(place: tuple[str, str], candidate: nn.Module, args: tuple[Any, ...]) -> None:
            given.setdefault(place, (candidate, args))

        for choice in self.returned:
            if isinstance(choice, LayerChoice):
                for name, candidate in choice.candidates.items():
                    candidate.register_forward_pre_hook(partial(note, (choice.key, name)))
        self.run(*inputs)
        for (key, name), (candidate, args) in list(given.items()):
            reason = _no_second_derivative(candidate, args)
            if reason is not None:
                raise ConfigError(
                    f"candidate {name!r} of LayerChoice {key!r} cannot be differentiated twice, which an exact hypergradient "
                    f"needs: {shorten(reason, 120)}"
                )

    def _note(self, choice: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
        assert isinstance(choice, Choice)
        self.returned[choice].append(output)
        if not self.detaching and _may_drop_edges(choice):
            (terms,) = inputs
            assert isinstance(terms, list | tuple)
            for name, term in zip(choice.spec.inputs, terms, strict=True):
                if not any(term is out for edge, outs in self.returned.items() if edge.key == name for out in outs):
                    raise ConfigError(
                        f"input {name!r} of {words(choice)} must be what LayerChoice {name!r} returns, since the key makes "
                        "it an edge; give the input another name if it is none"
                    )

    def _detach(self, choice: nn.Module, inputs: tuple[list[Tensor], ...]) -> tuple[list[Tensor], ...] | None:
        assert isinstance(choice, Choice)
        return ([term.detach() for term in inputs[0]],) if self.detaching and _may_drop_edges(choice) else None


def _watch_writing(choice: LayerChoice, name: str, candidate: nn.Module) -> None:
    """Have a candidate raise a `ConfigError` when it writes into its input."""
    versions: list[tuple[Tensor, int]] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        versions[:] = [(arg, arg._version) for arg in args if isinstance(arg, Tensor)]

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if any(arg._version != version for arg, version in versions):
            raise ConfigError(
                f"candidate {name!r} of {words(choice)} writes into its input, which the other candidates read too; a "
                "module in it may have inplace=True"
            )

    candidate.register_forward_pre_hook(before)
    candidate.register_forward_hook(after)


def _may_drop_edges(choice: nn.Module) -> TypeGuard[InputChoice]:
    return (
        isinstance(choice, InputChoice) and bool(choice.over_edges) and choice.spec.n_chosen < len(choice.spec.inputs)
    )


def _gradients(output: Tensor, of: list[Tensor]) -> list[Tensor | None]:
    """Return the gradients of the output's sum; None where it does not depend on a tensor."""
    if not output.requires_grad or not of:
        return [None] * len(of)
    return list(torch.autograd.grad(output.sum(), of, allow_unused=True, retain_graph=True))


def _no_second_derivative(module: nn.Module, args: tuple[Any, ...]) -> str | None:
    """Return why a module cannot be differentiated twice, or None. The gradients of its parameters change."""
    leaves = [
        arg.detach().requires_grad_() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args
    ]
    output = module(*leaves)
    if not isinstance(output, Tensor) or not output.requires_grad:
        return None
    asked = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    asked += [parameter for parameter in module.parameters() if parameter.requires_grad]
    cotangent = torch.ones_like(output).requires_grad_()
    try:
        first = torch.autograd.grad(output, asked, cotangent, create_graph=True, allow_unused=True)
        # To all leaves: where only some are asked for, torch leaves a path out that ends in an error.
        torch.stack([g.sum() for g in first if g is not None and g.requires_grad]).sum().backward()
    except RuntimeError as error:
        return str(error)
    return None


def _checked(output: object, samples: int, outputs: int | None) -> Tensor:
    if not isinstance(output, Tensor):
        raise ConfigError(f"the output of the space must be a tensor, got {type(output).__name__}")
    shape = tuple(output.shape)
    if shape[:1] != (samples,):
        raise ConfigError(
            f"the output of the space must have {samples} rows for {samples} samples, got the shape {shape}"
        )
    if outputs is not None and outputs not in (shape[1:] or (1,)):
        raise ConfigError(
            f"the output of the space must have {outputs} values for each sample (num_classes), the shape "
            f"{(samples, outputs)}, got {shape}"
        )
    return output
