"""What an architecture is retrained as: the space with its choices fixed, or the evaluation network that the space names.

A space whose architectures are to be retrained as another network than itself, as the paper's cells are in a deeper stack,
names it in a class attribute:

    class MySpace(nn.Module):
        evaluation = MyNetwork

A space that is retrained as itself, but with other settings than in its search, names them with their values:

    class MySpace(nn.Module):
        retrained_with = {"affine": True}

The command line comes first, and weights that are taken from a search keep its settings (init=search).

An evaluation network is a module that takes an argument `architecture`, an `Architecture`; it is called with that, with
its own settings, and with those of `input_shape` and `num_classes` that it takes. It may have, as class attributes:

- `load(genotype: str) -> Architecture`, a static method that reads what the command was given as `genotype`: a name, a
  text or a path. It is also given those of the network's settings that it takes. Without it, a JSON file is read, and
  the answers are taken as they are.
- `settings_of_the_space`: the names of settings that a retrain takes from the searched space, such as `operations`.
- `training_settings`: those of `auxiliary_weight` and `drop_path` that it makes use of. With the first, it returns a pair
  of its outputs and an auxiliary head's while it is trained; with the second, it has an attribute `drop_path`, which the
  training sets.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from src.architectures.architecture import Answer, Architecture, load_json
from src.common.errors import ConfigError, shorten
from src.spaces.choices import fix, spec_of


def evaluation_of(kind: Any) -> Any:
    """Return the evaluation network of a space's class, `kind` itself if it is one, or None: the fixed space."""
    try:
        takes_architecture = "architecture" in inspect.signature(kind).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        takes_architecture = False
    return kind if takes_architecture else getattr(kind, "evaluation", None)


def changed_settings_of(kind: Any) -> dict[str, Any]:
    """Return the settings that a space's class wants other values of where an architecture is retrained."""
    return dict(getattr(kind, "retrained_with", {})) if evaluation_of(kind) is None else {}


def training_settings_of(kind: Any) -> tuple[str, ...]:
    """Return which settings beside a network's own its training takes; a fixed space has none."""
    return tuple(getattr(kind, "training_settings", ())) if evaluation_of(kind) is kind else ()


def fixed_network(
    build: Callable[..., nn.Module], genotype: str | Path | Architecture, *, weights: Mapping[str, Tensor] | None = None
) -> tuple[nn.Module, Architecture]:
    """Return the network that an architecture of a space is retrained as, and the architecture.

        network, _ = fixed_network(lambda: MySpace(num_classes=10), "found/genotype.json")

    Args:
        build: returns a new space; a class, or a function without arguments.
        genotype: an architecture, or the path of its file.
        weights: of the space, such as after a search; None keeps those that `build` drew.

    Raises:
        ConfigError: the file cannot be read, or the architecture or the weights do not fit the space.
    """
    space = build()
    if weights is not None:
        load_weights(space, weights)
    if not isinstance(genotype, Architecture):
        raw = load_json(Path(genotype))
        try:
            genotype = Architecture.parse(raw, spec_of(space))
        except ConfigError as error:
            raise ConfigError(f"genotype file {genotype}: {error}") from None
    return fix(space, genotype), genotype


def load_weights(space: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put weights into a space.

    Raises:
        ConfigError: they are not this space's; the message names the first that differs.
    """
    own = space.state_dict()
    for name in [*own, *weights]:
        if name not in own or name not in weights:
            raise ConfigError(f"the weights are of another space, which {'has' if name in weights else 'lacks'} {name}")
        if own[name].shape != weights[name].shape:
            raise ConfigError(
                f"the weights are of another space: {name} must have the shape {tuple(own[name].shape)}, got "
                f"{tuple(weights[name].shape)}"
            )
    space.load_state_dict(dict(weights))


def load_answers(path: Path) -> Architecture:
    """Return the architecture in a JSON file, whatever space it is of.

    Raises:
        ConfigError: the file cannot be read, or an answer is neither a name nor a list of names.
    """
    answers: dict[str, Answer] = {}
    for key, answer in load_json(path).items():
        names = answer if isinstance(answer, list) else [answer]
        if not all(isinstance(name, str) for name in names):
            raise ConfigError(f"genotype file {path}: {key} must be a name or a list of names, got {shorten(answer)}")
        answers[key] = (tuple(names) or None) if isinstance(answer, list) else answer
    return Architecture(answers)
