"""Which operations have a fast form, and whether that still holds.

A fast form reads the parameters of an operation and does not call it. So it takes an operation only if no attribute that
the forward pass could read differs from what the constructor in src/spaces/cnn/modules.py sets: the classes of the
operation and of all its children, their settings, their hooks, their `forward`. What a pass may change (parameters,
buffers, `training`, and the eps and momentum of a BatchNorm) is read in every pass instead, by src/fast/branches.py.

Comparing all of that takes longer than a pass over a small cell, so `Watch` remembers what a decision rests on, and
notices in a few microseconds a cell whether something of it was edited since.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import nn

from src.common.batch_norm import SyncedBatchNorm
from src.methods.mixed_ops import PartialChoice
from src.spaces.choices import InputChoice, LayerChoice
from src.spaces.cnn.cells import Cell, Node, Supernet
from src.spaces.cnn.modules import DilatedConv, FactorizedReduce, Pool, ReLUConvBN, SeparableConv, Zero

Finding = TypeVar("Finding")

# Read in every pass, compared apart, or of no use to a forward pass.
_NOT_COMPARED = {
    "training", "_parameters", "_buffers", "_modules", "eps", "momentum", "_non_persistent_buffers_set",
    "_is_full_backward_hook", "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
}  # fmt: skip
_SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    type(module): tuple(sorted(vars(module).keys() - _NOT_COMPARED))
    for module in (
        nn.ReLU(), nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.MaxPool2d(1), nn.AvgPool2d(1), Zero(1),
        PartialChoice(LayerChoice({"same": nn.Identity()}, key="edge"), 2),
    )
}  # fmt: skip
_SETTINGS[SyncedBatchNorm] = _SETTINGS[nn.BatchNorm2d]
_HOOKS = tuple(sorted(vars(nn.Module()).keys() - _NOT_COMPARED))
_FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {
    kind: kind.forward
    for kind in (
        *_SETTINGS, nn.Identity, nn.Sequential, DilatedConv, FactorizedReduce, Pool, ReLUConvBN, SeparableConv,
        Supernet, Cell, Node, LayerChoice, InputChoice,
    )
}  # fmt: skip


class Known(NamedTuple):
    """An operation that has a fast form: its class, and the arguments that make one with the same attributes."""

    kind: type[nn.Module]
    arguments: tuple[Hashable, ...]


def known(operation: nn.Module) -> Known | None:
    """Return what an operation is, or None unless it is one of those of the paper in every attribute."""
    kind = _plain(type(operation))
    if kind not in _CONSTRUCTORS:
        return None
    read, build = _CONSTRUCTORS[kind]
    try:
        arguments = read(operation)
    except (AttributeError, IndexError, TypeError):  # a child is of another class
        return None
    if not all(type(argument) in (bool, type) or (type(argument) is int and argument >= 0) for argument in arguments):
        return None
    example = build(*arguments)
    return Known(kind, arguments) if example is not None and _alike(operation, example) else None


def is_original(kind: type[nn.Module]) -> bool:
    """Return whether a class has the `forward` that it had when this module was imported."""
    return kind.forward is _FORWARDS[kind]


def is_unedited(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a module is of this very class, with its original `forward` and without hooks."""
    attributes = vars(module)
    return (
        type(module) is kind
        and is_original(kind)
        and "forward" not in attributes
        and not any(attributes[name] for name in _HOOKS)
    )


class Watch:
    """Notices edits of modules after it was made.

    Edits are: another class, another child, another hook, another `forward`, of the module or of its class, and, of the
    classes that operations are made of, another setting. It holds on to the modules.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        by_kind: dict[type[nn.Module], list[nn.Module]] = {}
        for module in modules:
            by_kind.setdefault(type(module), []).append(module)
        self._groups = [_Watched(kind, group) for kind, group in by_kind.items()]

    def holds(self) -> bool:
        """Return whether nothing was edited."""
        return all(group.holds() for group in self._groups)


class Memory:
    """What was found out of modules, until they are edited. A copy remembers nothing."""

    def __init__(self) -> None:
        self._findings: dict[int, tuple[Watch, Any]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Memory:
        return Memory()

    def __reduce__(self) -> tuple[type[Memory], tuple[()]]:
        return Memory, ()

    def recall(self, module: nn.Module, find: Callable[[nn.Module], Finding]) -> Finding:
        """Return find(module), from memory unless a module within it was edited."""
        watch, finding = self._findings.get(id(module), (None, None))
        if watch is None or not watch.holds():
            watch, finding = self._findings[id(module)] = Watch(module.modules()), find(module)
        return cast(Finding, finding)


class _Watched:
    """The modules of one class."""

    def __init__(self, kind: type[nn.Module], modules: list[nn.Module]) -> None:
        self.kind, self.modules, self.kinds = kind, modules, [kind] * len(modules)
        self.attributes = [vars(module) for module in modules]
        self.read = itemgetter("_modules", *_SETTINGS.get(kind, _HOOKS))
        self.forward = kind.forward
        # A copy of each dictionary, which would else be compared with itself.
        self.values = [
            tuple(value.copy() if isinstance(value, dict) else value for value in values)
            for values in map(self.read, self.attributes)
        ]
        # Of other classes, any attribute may come and go.
        self.sizes = [*map(len, self.attributes)] if kind in _FORWARDS else None

    def holds(self) -> bool:
        if self.kind.forward is not self.forward or [*map(type, self.modules)] != self.kinds:
            return False
        if self.sizes is not None and [*map(len, self.attributes)] != self.sizes:
            return False
        try:
            return [*map(self.read, self.attributes)] == self.values
        except KeyError:
            return False


def _alike(module: nn.Module, example: nn.Module) -> bool:
    """Return whether a module and its children have the attributes of an example, values of tensors apart."""
    kind = _plain(type(module))
    mine, theirs = vars(module), vars(example)
    if kind is not type(example) or any(one.forward is not _FORWARDS[one] for one in (kind, type(module))):
        return False
    for name in theirs.keys() - _NOT_COMPARED:
        value, expected = mine.get(name), theirs[name]
        if type(value) is not type(expected) or value != expected:
            return False
    if any(hasattr(kind, name) for name in mine.keys() - theirs.keys()):  # such as `forward`; others are never read
        return False
    for group in ("_parameters", "_buffers"):
        shapes, expected = (
            {name: None if tensor is None else tensor.shape for name, tensor in vars(one)[group].items()}
            for one in (module, example)
        )
        if shapes != expected:
            return False
    children, expected_children = mine["_modules"], theirs["_modules"]
    return list(children) == list(expected_children) and all(
        isinstance(child, nn.Module) and _alike(child, expected)
        for child, expected in zip(children.values(), expected_children.values(), strict=True)
    )


def _plain(kind: type[nn.Module]) -> type[nn.Module]:
    return nn.BatchNorm2d if kind is SyncedBatchNorm else kind


def _example(build: Callable[..., nn.Module | None]) -> Callable[..., nn.Module | None]:
    """Return a function that builds an example once for all modules with the same arguments, without memory for tensors."""

    @functools.lru_cache(maxsize=1024)
    def built(*arguments: Any) -> nn.Module | None:
        with torch.device("meta"):
            return build(*arguments)

    return built


def _convolution(convolution: Any) -> tuple[int, int, int, int]:
    return convolution.in_channels, convolution.kernel_size[0], convolution.stride[0], convolution.dilation[0]


def _separable(operation: Any) -> tuple[Hashable, ...]:
    return *_convolution(operation[0][1])[:3], operation[0][3].affine


def _pool_arguments(operation: Any) -> tuple[Hashable, ...]:
    pool, norm = operation.pool, operation.norm
    channels = 0 if type(norm) is nn.Identity else norm.num_features
    return type(pool), pool.kernel_size, pool.stride, pool.padding, channels


def _pool(kind: type[nn.Module], kernel: int, stride: int, padding: int, channels: int) -> nn.Module | None:
    if kind not in (nn.MaxPool2d, nn.AvgPool2d) or kernel < 1 or stride < 1 or 2 * padding > kernel:
        return None  # a padding that torch refuses when the pool is called
    settings = {"count_include_pad": False} if kind is nn.AvgPool2d else {}
    pool = cast(Any, kind)(kernel, stride=stride, padding=padding, **settings)
    return Pool(pool, max(1, channels), searching=channels > 0)


# Of each class: how the arguments are read from an operation, and how they make one.
_CONSTRUCTORS: dict[type[nn.Module], tuple[Callable[[Any], tuple[Hashable, ...]], Callable[..., nn.Module | None]]] = {
    nn.Identity: (lambda operation: (), _example(nn.Identity)),
    nn.BatchNorm2d: (
        lambda norm: (norm.num_features, norm.affine),
        _example(lambda channels, affine: nn.BatchNorm2d(channels, affine=affine)),
    ),
    Zero: (lambda operation: (operation.stride,), _example(Zero)),
    DilatedConv: (
        lambda operation: (*_convolution(operation[1]), operation[3].affine),
        _example(
            lambda channels, kernel, stride, dilation, affine: DilatedConv(
                channels, kernel, stride=stride, dilation=dilation, affine=affine
            )
        ),
    ),
    SeparableConv: (
        _separable,
        _example(
            lambda channels, kernel, stride, affine: SeparableConv(channels, kernel, stride=stride, affine=affine)
        ),
    ),
    ReLUConvBN: (
        lambda operation: (operation[1].in_channels, operation[1].out_channels, operation[2].affine),
        _example(lambda channels_in, channels_out, affine: ReLUConvBN(channels_in, channels_out, 1, affine=affine)),
    ),
    FactorizedReduce: (
        lambda operation: (operation.even.in_channels, operation.norm.num_features, operation.norm.affine),
        _example(
            lambda channels_in, channels_out, affine: (
                FactorizedReduce(channels_in, channels_out, affine=affine) if channels_out > 1 else None
            )
        ),
    ),
    Pool: (_pool_arguments, _example(_pool)),
}
