"""The auxiliary skip connection of DARTS-: it takes the place of the skip that a supernet needs in order to be trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from src.common.errors import ConfigError
from src.methods.decision import SKIPS
from src.methods.schedules import Linear, Progress, Schedule, not_negative_at
from src.spaces.choices import LayerChoice, choices_of


@dataclass(frozen=True)
class AuxiliarySkip:
    """beta * skip(x) is added to what a choice computes, with beta the same for all choices: DARTS-.

    A skip connection among the candidates helps training as well as it serves as an operation, and wins for the former.
    The auxiliary skip takes over the help, and fades. It is dropped from the architecture, takes no part in deriving, and
    has no alpha. Implements the mixed operation of arXiv 2009.01027.

    The auxiliary of a choice is a copy of its skip candidate with weights of its own, newly drawn: of nn.Identity another
    one, which has none, and of FactorizedReduce (stride 2 in the CNN cell space) another one, as in the official code
    (src/search/model_search.py). Choices without a skip candidate have nothing to take over and stay as they are.

    With partial channels the auxiliary is part of the choice: it sees the channels that the candidates see, the others
    have their own way past them. With a sampled path it runs beside the sampled candidate, always.

    The supernet is validated with the auxiliary skip of the epoch, as in the official code.

    Attributes:
        weight: beta; from 1 towards 0 over the epochs. The official code's line reaches 0 in the epoch after the last
            (src/utils.py), and its default, without an option, is no decay at all; this is the paper's.
    """

    weight: Schedule = Linear(1.0, 0.0, reaches_last=False)

    def value(self, progress: Progress) -> float:
        """Return beta.

        Raises:
            ConfigError: it is negative in this epoch.
        """
        return not_negative_at("weight", self.weight, progress)

    def attach(self, space: nn.Module) -> None:
        """Give each choice in `space` that has a skip candidate its auxiliary.

        Raises:
            ConfigError: no choice has a skip candidate, or one holds choices itself.
        """
        choices = [choice for choice in choices_of(space) if isinstance(choice, LayerChoice)]
        found = [(choice, name) for choice in choices for name in _skips(choice)]
        if not found:
            names = dict.fromkeys(name for choice in choices for name in choice.candidates)
            raise ConfigError(
                f"{type(self).__name__} needs a candidate named {' or '.join(sorted(SKIPS))}, got the candidates "
                f"{', '.join(names) or 'of no choice'}"
            )
        for choice, name in found:
            skip = choice.candidates[name]
            if any(True for _ in choices_of(skip)):
                raise ConfigError(
                    f"{type(self).__name__} needs a candidate {name!r} without choices of its own, that of "
                    f"{choice.key!r} has some"
                )
            choice.auxiliary, choice.auxiliary_of = _drawn_anew(skip), name


def _skips(choice: LayerChoice) -> Iterator[str]:
    """Yield the name of the skip candidate, if there is one."""
    yield from [name for name in choice.candidates if name in SKIPS][:1]


def _drawn_anew(module: nn.Module) -> nn.Module:
    """Return a copy with its weights as they are at the start; those of a module without `reset_parameters` are copied."""
    result = copy.deepcopy(module)
    for part in result.modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
    return result
