"""The operations of the CNN cell space (arXiv 1806.09055, section 3.1.1), and all that is known of each.

An operation of your own is one registration, here or in any module of yours that is imported before the space is built:

    @operation("gated_conv", words="gated conv 3x3", meaning="filters its input, then gates it with a sigmoid")
    def gated_conv(channels: int, stride: int, searching: bool) -> nn.Module:
        return GatedConv(channels, stride=stride, affine=not searching)

`space.candidates` can then list `gated_conv`; it is searched, derived, retrained and drawn like the paper's operations.

Builders import their modules when they are called, so that whoever needs only the names, such as `python -m src.report`,
does not wait for torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections import UserDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from src.common.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

Builder = Callable[[int, int, bool], "nn.Module"]
Built = TypeVar("Built", bound=Builder)


@dataclass(frozen=True)
class Operation:
    """An operation: how its module is built, and what reports and files of other programs call it.

    Attributes:
        build: returns the module for (channels, stride, searching). The module maps (N, C, H, W) to
            (N, C, ceil(H / stride), ceil(W / stride)); stride is 1 or 2. While searching, no BatchNorm may have
            parameters: they would rescale the operation's output, which undoes the mixing weight.
        words: its name in pictures; by default the registered name with spaces.
        family: the entry of a picture's legend that it shares with operations of its kind; by default `words`.
        meaning: what it does to its input, for the report; by default the first line of the docstring of `build`.
        colour: `#rrggbb`; by default one that no registered operation has.
        foreign: its name in the files of other programs, by the name of the format.
        takes_stride: whether `build` takes stride 2. If not, a `FactorizedReduce` halves the input of a module that is
            built with stride 1.
    """

    build: Builder
    words: str = ""
    family: str = ""
    meaning: str = ""
    colour: str = ""
    foreign: Mapping[str, str] = field(default_factory=dict)
    takes_stride: bool = True

    def __call__(self, channels: int, stride: int, searching: bool) -> nn.Module:
        """Return the module of `channels` channels, in the form that is searched or that is retrained."""
        if stride == 1 or self.takes_stride:
            return self.build(channels, stride, searching)
        from torch import nn

        from src.spaces.cnn.modules import FactorizedReduce

        reduce = FactorizedReduce(channels, channels, affine=not searching)
        return nn.Sequential(reduce, self.build(channels, 1, searching))


class Operations(UserDict[str, Operation]):
    """The registry: name -> operation. What an entry leaves open is filled in when it is registered."""

    @classmethod
    def of(cls, operations: Mapping[str, Operation]) -> Operations:
        """Return a registry of operations whose names need no check, for which torch would have to be imported."""
        registry = cls()
        for name, operation in operations.items():
            registry._add(name, operation)
        return registry

    def __setitem__(self, name: str, operation: Operation | Builder) -> None:
        """Register an operation, or only its builder, under `name`, in place of any other of that name."""
        from torch import nn

        if not name.isidentifier() or hasattr(nn.ModuleDict, name):
            raise ValueError(
                f"the name of an operation must be an identifier that nn.ModuleDict does not use: {name!r}"
            )
        self._add(name, operation if isinstance(operation, Operation) else Operation(operation))

    def _add(self, name: str, operation: Operation) -> None:
        words = operation.words or name.replace("_", " ")
        lines = (getattr(operation.build, "__doc__", None) or "").strip().splitlines()
        self.data[name] = replace(
            operation,
            words=words,
            family=operation.family or words,
            meaning=operation.meaning or (lines[0] if lines else ""),
            colour=operation.colour or self._unused_colour(name),
        )

    def _unused_colour(self, name: str) -> str:
        used = {operation.colour for other, operation in self.items() if other != name}
        free = [colour for colour in SPARE_COLOURS if colour not in used]
        return free[0] if free else SPARE_COLOURS[len(self) % len(SPARE_COLOURS)]


def operation(
    name: str,
    *,
    words: str = "",
    family: str = "",
    meaning: str = "",
    colour: str = "",
    foreign: Mapping[str, str] | None = None,
    takes_stride: bool = True,
) -> Callable[[Built], Built]:
    """Register the decorated function or class as the operation `name`. Arguments as the attributes of `Operation`.

    Raises:
        ValueError: other code has registered the name.
    """

    def register(build: Built) -> Built:
        known = OPERATIONS.get(name)
        if known is not None and _origin(known.build) != _origin(build):
            raise ValueError(f"the operation {name!r} is already registered, by {'.'.join(_origin(known.build))}")
        OPERATIONS[name] = Operation(build, words, family, meaning, colour, foreign or {}, takes_stride)
        return build

    return register


def _origin(build: Builder) -> tuple[str, str]:
    """Return where a builder was written; a notebook's cell that runs again gives the same."""
    return getattr(build, "__module__", ""), getattr(build, "__qualname__", type(build).__qualname__)


def import_operations(modules: Iterable[str]) -> None:
    """Import `modules`, which register operations; the current folder counts where Python's path has it.

    Raises:
        ConfigError: there is no such module. An error inside a module keeps its traceback.
    """
    for name in modules:
        try:
            found = importlib.util.find_spec(name)
        except (ModuleNotFoundError, ValueError):  # a parent package is missing, or the name is no name
            found = None
        if found is None:
            raise ConfigError(f"operations must name modules that Python finds, got {name!r}", argument="operations")
        importlib.import_module(name)


def _none(channels: int, stride: int, searching: bool) -> nn.Module:
    from src.spaces.cnn.modules import Zero

    return Zero(stride)


def _skip(channels: int, stride: int, searching: bool) -> nn.Module:
    from torch import nn

    from src.spaces.cnn.modules import FactorizedReduce

    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine=not searching)


def _max_pool(channels: int, stride: int, searching: bool) -> nn.Module:
    from torch import nn

    from src.spaces.cnn.modules import Pool

    return Pool(nn.MaxPool2d(3, stride=stride, padding=1), channels, searching=searching)


def _average_pool(channels: int, stride: int, searching: bool) -> nn.Module:
    from torch import nn

    from src.spaces.cnn.modules import Pool

    pool = nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False)
    return Pool(pool, channels, searching=searching)


def _row_and_column(channels: int, stride: int, searching: bool) -> nn.Module:
    from src.spaces.cnn.modules import RowColumnConv

    return RowColumnConv(channels, 7, stride=stride, affine=not searching)


def _plain(channels: int, stride: int, searching: bool) -> nn.Module:
    from src.spaces.cnn.modules import ReLUConvBN

    return ReLUConvBN(channels, channels, 3, stride=stride, affine=not searching)


def _separable(kernel: int, *, colour: str, nni: str | None = None) -> Operation:
    def build(channels: int, stride: int, searching: bool) -> nn.Module:
        from src.spaces.cnn.modules import SeparableConv

        return SeparableConv(channels, kernel, stride=stride, affine=not searching)

    return Operation(
        build,
        words=f"separable conv {kernel}x{kernel}",
        family="separable convolution",
        meaning="filters each channel by itself, then mixes the channels with a 1x1 convolution; both twice",
        colour=colour,
        foreign={"nni": nni} if nni else {},
    )


def _dilated(kernel: int, *, colour: str, nni: str) -> Operation:
    def build(channels: int, stride: int, searching: bool) -> nn.Module:
        from src.spaces.cnn.modules import DilatedConv

        return DilatedConv(channels, kernel, stride=stride, dilation=2, affine=not searching)

    return Operation(
        build,
        words=f"dilated conv {kernel}x{kernel}",
        family="dilated convolution",
        meaning="filters each channel by itself, with gaps between the filter's points so that it sees more of the "
        "image, then mixes the channels",
        colour=colour,
        foreign={"nni": nni},
    )


# Colours of operations that choose none.
SPARE_COLOURS = ("#0f8b8d", "#8d6e3f", "#d4849b", "#5c6b1f", "#c9a100", "#9fb04a", "#7a1f1f", "#57c7c9")

# The paper's, in the order of its alphas. NNI 2.1 has its own names for them, and no others.
_PAPERS = {
    "none": Operation(
        _none,
        family="none: passes nothing on",
        meaning="passes nothing on; searched, but never part of a derived cell",
        colour="#8b949c",
    ),
    "max_pool_3x3": Operation(
        _max_pool,
        words="max pool 3x3",
        family="max pooling",
        meaning="takes the largest of 3x3 neighbouring values",
        colour="#19754a",
        foreign={"nni": "maxpool"},
    ),
    "avg_pool_3x3": Operation(
        _average_pool,
        words="average pool 3x3",
        family="average pooling",
        meaning="takes the mean of 3x3 neighbouring values",
        colour="#70bf90",
        foreign={"nni": "avgpool"},
    ),
    "skip_connect": Operation(
        _skip,
        words="skip",
        family="skip: passed on unchanged",
        meaning="passes its input on as it is; where a reduction cell halves the image, through a 1x1 convolution",
        colour="#c2185b",
        foreign={"nni": "skipconnect"},
    ),
    "sep_conv_3x3": _separable(3, colour="#1f5fa8", nni="sepconv3x3"),
    "sep_conv_5x5": _separable(5, colour="#74a9df", nni="sepconv5x5"),
    "dil_conv_3x3": _dilated(3, colour="#b9540a", nni="dilconv3x3"),
    "dil_conv_5x5": _dilated(5, colour="#f0a458", nni="dilconv5x5"),
}
# Others that published cells have; NASNet and AmoebaNet use the first two.
_OTHERS = {
    "sep_conv_7x7": _separable(7, colour="#12305c"),
    "conv_7x1_1x7": Operation(
        _row_and_column,
        words="conv 1x7, 7x1",
        meaning="filters along the rows, then along the columns, and mixes the channels each time",
        colour="#b08fd8",
    ),
    "conv_3x3": Operation(
        _plain,
        words="conv 3x3",
        meaning="filters its input and mixes the channels in one step",
        colour="#6b4fa0",
    ),
}

OPERATIONS = Operations.of(_PAPERS | _OTHERS)
CANDIDATES = tuple(_PAPERS)  # the default; `none` is searched but never derived
