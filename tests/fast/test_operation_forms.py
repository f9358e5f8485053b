"""A fused or merged cell of operations with any attributes does what the plain cell does, or raises the same exception."""

from __future__ import annotations

import copy
import functools
import gc
import statistics
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from src.common.batch_norm import synchronise
from src.fast import branches, fused
from src.fast.fused import FusedCell
from src.fast.kernels.build import library
from src.fast.known import Memory, known
from src.fast.merged import MergedCell
from src.spaces.choices import InputChoice, LayerChoice
from src.spaces.cnn import operations
from src.spaces.cnn.cells import Cell, CellPlan
from src.spaces.cnn.modules import DilatedConv, FactorizedReduce, Pool, ReLUConvBN, SeparableConv, Zero

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler: the plain form is used")

TOLERANCE = 1e-10
FORMS = (FusedCell, MergedCell)
Make = Callable[[int, int], nn.Module]  # of channels and stride
Result = Exception | dict[str, Tensor]


# Operations of one's own


class Scaled(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.linspace(-1, 1, channels)[:, None, None])
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x[:, :, :: self.stride, :: self.stride] * self.weight) * self.frozen


class Constant(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(x[:, :, :: self.stride, :: self.stride]) * self.weight


class Ones(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(x[:, :, :: self.stride, :: self.stride])


class Broadcasts(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3), keepdim=True) * self.weight


class Twice(Scaled):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), super().forward(x)


class Double(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(torch.float32)


class InPlace(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5))


class Noisy(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


class Normed(nn.Sequential):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(Scaled(channels, stride), nn.BatchNorm2d(channels, momentum=0.3, eps=0.1))


class Refuses(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("refused")


class Squared(DilatedConv):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) ** 2


def dilated(kernel: int, dilation: int = 1, *, affine: bool = False, stride: int | None = None) -> Make:
    return lambda c, s: DilatedConv(c, kernel, stride=s if stride is None else stride, dilation=dilation, affine=affine)


def separable(kernel: int, *, affine: bool = False, stride: int | None = None) -> Make:
    return lambda c, s: SeparableConv(c, kernel, stride=s if stride is None else stride, affine=affine)


def pooled(kind: type[nn.Module], kernel: Any = 3, *, searching: bool = True, **options: Any) -> Make:
    def make(channels: int, stride: int) -> nn.Module:
        return Pool(kind(kernel, **{"stride": stride, "padding": 1, **options}), channels, searching=searching)

    return make


largest, mean = functools.partial(pooled, nn.MaxPool2d), functools.partial(pooled, nn.AvgPool2d)


# Edits: of an operation that is made already


@dataclass(frozen=True)
class Edit:
    """What changes an operation that holds a module of this kind."""

    edit: Callable[[nn.Module], object]
    kind: type[nn.Module] = nn.Module

    def __call__(self, operation: nn.Module) -> None:
        self.edit(operation)

    def changes(self, make: Make) -> bool:
        """Return whether an edit has an effect on the operations that are made so."""
        return any(isinstance(module, self.kind) for module in make(2, 2).modules())


def each(kind: type[nn.Module], edit: Callable[[Any], object]) -> Edit:
    """Return an edit of all modules of a kind within an operation."""
    return Edit(lambda operation: [edit(module) for module in operation.modules() if type(module) is kind], kind)


def replace(kind: type[nn.Module], by: Callable[[], nn.Module]) -> Edit:
    def edit(operation: nn.Module) -> None:
        for parent in [*operation.modules()]:
            for name, child in [*parent.named_children()]:
                if type(child) is kind:
                    setattr(parent, name, by())

    return Edit(edit, kind)


def settings_of(**values: Any) -> Callable[[nn.Module], None]:
    def edit(module: nn.Module) -> None:
        for name, value in values.items():
            setattr(module, name, value)

    return edit


def circular(convolution: nn.Conv2d) -> None:
    convolution.padding_mode = "circular"
    sides = [convolution.padding[1]] * 2 + [convolution.padding[0]] * 2  # pyright: ignore[reportOperatorIssue]
    convolution._reversed_padding_repeated_twice = sides  # pyright: ignore[reportAttributeAccessIssue]


def without_statistics(norm: nn.BatchNorm2d) -> None:
    norm.track_running_stats = False
    norm.running_mean = norm.running_var = norm.num_batches_tracked = None


def tripled(module: nn.Module, args: Any, output: Any) -> Any:
    return output * 3 if isinstance(output, Tensor) else output


def doubled(module: nn.Module, *inputs: Tensor) -> Tensor:
    return type(module).forward(module, *inputs) * 2


def own_forward(operation: nn.Module) -> None:
    operation.forward = functools.partial(doubled, operation)


def biased(convolution: nn.Conv2d) -> None:
    convolution.bias = nn.Parameter(torch.linspace(0.5, 1, convolution.out_channels))


def normalised(operation: nn.Module) -> None:
    for module in [*operation.modules()]:
        if type(module) is nn.Conv2d:
            parametrizations.weight_norm(module)


def strided_weights(convolution: nn.Conv2d) -> None:
    shape = convolution.weight.shape
    convolution.weight = nn.Parameter(torch.randn(*shape, 2)[..., 0])


EDITS: dict[str, Edit] = {
    "eps": each(nn.BatchNorm2d, settings_of(eps=0.1)),
    "momentum": each(nn.BatchNorm2d, settings_of(momentum=0.3)),
    "average": each(nn.BatchNorm2d, settings_of(momentum=None)),
    "no statistics": each(nn.BatchNorm2d, without_statistics),
    "norms frozen": each(nn.BatchNorm2d, lambda norm: norm.eval()),
    "norms kept": replace(nn.BatchNorm2d, nn.Identity),
    "activation": replace(nn.ReLU, nn.SiLU),
    "slope": replace(nn.ReLU, lambda: nn.LeakyReLU(0.2)),
    "in place": each(nn.ReLU, settings_of(inplace=True)),
    "circular": each(nn.Conv2d, circular),
    "bias": each(nn.Conv2d, biased),
    "dilation": each(nn.Conv2d, settings_of(dilation=(2, 2))),
    "uneven stride": each(nn.Conv2d, settings_of(stride=(1, 2))),
    "uneven padding": each(nn.Conv2d, settings_of(padding=(0, 1))),
    "frozen": Edit(lambda operation: operation.requires_grad_(False)),
    "frozen convolutions": each(nn.Conv2d, lambda convolution: convolution.requires_grad_(False)),
    "hook": Edit(lambda operation: operation.register_forward_hook(tripled)),
    "inner hook": each(nn.Conv2d, lambda convolution: convolution.register_forward_hook(tripled)),
    "hook before": Edit(lambda operation: operation.register_forward_pre_hook(lambda _, args: (args[0] * 2,))),
    "forward": Edit(own_forward),
    "weight norm": Edit(normalised, nn.Conv2d),
    "strided weights": each(nn.Conv2d, strided_weights),
    "ceiling": each(nn.MaxPool2d, settings_of(ceil_mode=True)),
    "wide": each(nn.MaxPool2d, settings_of(dilation=2)),
    "indices": each(nn.MaxPool2d, settings_of(return_indices=True)),
    "border": each(nn.AvgPool2d, settings_of(count_include_pad=True)),
    "divisor": each(nn.AvgPool2d, settings_of(divisor_override=2)),
    "mean ceiling": each(nn.AvgPool2d, settings_of(ceil_mode=True)),
}


def edited(make: Make, *edits: str, only_first: bool = False) -> Make:
    """Return the making of an operation with edits, of all edges or of the first only."""
    made = 0

    def edited_make(channels: int, stride: int) -> nn.Module:
        nonlocal made
        made += 1
        operation = make(channels, stride)
        if made == 1 or not only_first:
            for edit in edits:
                EDITS[edit](operation)
        return operation

    return edited_make


# Cells


def make_cell(candidates: Mapping[str, Make], *, kind: str, channels: int, nodes: int, wide: int) -> Cell:
    """Return a plain cell of these candidates, with BatchNorms that are no longer as they were made."""
    torch.manual_seed(0)
    plan = CellPlan(kind, channels, wide, wide + 1, False, nodes)
    own = {name: lambda c, s, searching, make=make: make(c, s) for name, make in candidates.items()}
    with pytest.MonkeyPatch.context() as patch:
        for name, make in own.items():
            patch.setitem(operations.OPERATIONS, name, make)
        cell = Cell(plan, nodes=nodes, candidates=tuple(own))
    for module in cell.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if name == "running_var":
                    tensor.data.uniform_(0.5, 1.5)
                elif tensor.is_floating_point():
                    tensor.data.normal_()
    return cell.double()


def as_form(cell: Cell, form: type[Cell]) -> Any:
    """Return a copy that is a cell of another form."""
    twin: Any = copy.deepcopy(cell)
    twin.__class__ = form
    twin._memory = Memory()
    return twin


def as_fused(cell: Cell) -> FusedCell:
    """Return a copy that is a fused cell."""
    return as_form(cell, FusedCell)


def set_mixing_weights(cell: Cell, *, with_edges: bool = False) -> dict[str, Tensor]:
    """Give all choices mixing weights, as RelaxedSpace does, and return the leaves they come from."""
    generator = torch.Generator().manual_seed(1)
    leaves = {}
    for name, module in cell.named_modules():
        if isinstance(module, LayerChoice):
            leaves[name] = torch.randn(len(module.candidates), generator=generator, dtype=torch.float64)
        elif isinstance(module, InputChoice):
            module.over_edges = True
            if not with_edges:
                continue
            leaves[name] = torch.randn(len(module.spec.inputs), generator=generator, dtype=torch.float64)
    for name, leaf in leaves.items():
        choice: Any = cell.get_submodule(name)
        choice.weights = leaf.requires_grad_().softmax(dim=0)
    return leaves


def result_of(
    cell: Cell,
    size: tuple[int, int, int],
    *,
    mode: str = "grad",
    with_edges: bool = False,
    ratio: float = 0.0,
    seed: int = 2,
) -> Result:
    """Return the output, all gradients and all buffers of one pass, or the exception it ends in.

    The inputs have a mean of `ratio` and a deviation of 1, rounded to float32.
    """
    dtype = next(cell.parameters()).dtype
    leaves = set_mixing_weights(cell, with_edges=with_edges)
    generator = torch.Generator().manual_seed(seed)
    count, height, width = size
    wide = cast_in(cell.preprocess0)
    inputs = {
        name: (torch.randn(count, channels, height, width, generator=generator) + ratio)
        .to(dtype)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for name, channels in (("before_last", wide), ("last", wide + 1))
    }
    torch.manual_seed(3)
    try:
        if mode == "inference":
            with torch.inference_mode():
                output = cell(*inputs.values())
            values = {"output": output.clone()}
        elif mode == "no_grad":
            with torch.no_grad():
                output = cell(*inputs.values())
            values = {"output": output}
        else:
            if mode == "eval":
                cell.eval()
            output = cell(*inputs.values())
            asked = {name: tensor for name, tensor in (*cell.named_parameters(), *leaves.items(), *inputs.items())
                     if tensor.requires_grad}  # fmt: skip
            cotangent = torch.randn(output.shape, generator=generator).to(dtype)
            grads = torch.autograd.grad(output, [*asked.values()], cotangent, allow_unused=True, materialize_grads=True)
            values = {"output": output.detach(), **dict(zip(asked, grads, strict=True))}
    except Exception as error:
        return error
    finally:
        for name in leaves:
            choice: Any = cell.get_submodule(name)
            choice.weights = None
    buffers = {f"buffer {name}": buffer.double() for name, buffer in cell.named_buffers()}
    return {**values, **buffers, "random": torch.get_rng_state().double()}


def cast_in(module: Any) -> int:
    return module[1].in_channels


def check_alike(actual: Result, expected: Result, tolerance: float = TOLERANCE) -> None:
    """Assert that tensors agree relative to their norms, or to a thousandth of the largest, or that exceptions do."""
    if isinstance(expected, Exception) or isinstance(actual, Exception):
        assert type(actual) is type(expected), (actual, expected)
        return
    assert actual.keys() == expected.keys()
    floor = max(float(value.nan_to_num().norm()) for name, value in expected.items() if name != "random") / 1000
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        assert torch.equal(actual[name].isnan(), value.isnan()), name
        error = float((actual[name] - value).nan_to_num().norm())
        assert error <= tolerance * max(float(value.nan_to_num().norm()), floor), f"{name}: off by {error:.2e}"


def check_cells(
    candidates: Mapping[str, Make],
    *,
    size: tuple[int, int, int] = (2, 6, 5),
    kind: str = "normal",
    channels: int = 3,
    nodes: int = 2,
    mode: str = "grad",
    with_edges: bool = False,
) -> tuple[Result, FusedCell]:
    """Assert that all forms give one result, also in a second pass; return the first, and the fused cell."""
    plain = make_cell(candidates, kind=kind, channels=channels, nodes=nodes, wide=2)
    forms = [as_form(plain, form) for form in FORMS]
    results = []
    for _ in range(2):
        expected = result_of(plain, size, mode=mode, with_edges=with_edges)
        for form in forms:
            check_alike(result_of(form, size, mode=mode, with_edges=with_edges), expected)
        results.append(expected)
    return results[0], forms[0]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets, of each fused cell's pass, the class of each branch."""
    noted: list[str] = []
    make = fused.branch_of

    def noting(*arguments: Any) -> branches.Branch:
        branch = make(*arguments)
        noted.append(type(branch).__name__)
        return branch

    monkeypatch.setattr(fused, "branch_of", noting)
    return noted


# Each known failure, beside an operation of the paper

FAILURES: dict[str, tuple[Make, str]] = {
    "a convolution with a stride": (lambda c, s: ReLUConvBN(c, c, 1, stride=s, affine=False), "reduce"),
    "a convolution with a stride that halves too much": (lambda c, s: ReLUConvBN(c, c, 1, stride=2, affine=False), "normal"),
    "a 3x3 convolution": (lambda c, s: ReLUConvBN(c, c, 3, stride=s, affine=False), "reduce"),
    "a pool without padding": (largest(padding=0), "normal"),
    "a large pool without padding": (largest(9, padding=0), "normal"),
    "a mean without padding": (mean(padding=0, count_include_pad=False), "normal"),
    "too much padding": (largest(2, padding=2), "normal"),
    "an even kernel": (dilated(4), "normal"),
    "an even kernel that halves": (dilated(2), "reduce"),
    "two even kernels": (separable(2), "normal"),
    "an operation that halves too much": (separable(3, stride=2), "normal"),
    "one that does not halve": (separable(3, stride=1), "reduce"),
    "none that does not halve": (lambda c, s: Zero(1), "reduce"),
    "none that halves too much": (lambda c, s: Zero(3), "reduce"),
    "another number of channels": (lambda c, s: ReLUConvBN(c, 1, 1, affine=False), "normal"),
    "a mean over the border": (mean(), "normal"),
    "a mean with a divisor": (mean(count_include_pad=False, divisor_override=2), "reduce"),
    "a rounded up pool": (largest(2, padding=0, ceil_mode=True), "reduce"),
    "a dilated pool": (largest(dilation=2, padding=1), "normal"),
    "a pool of tuples": (largest((3, 3), stride=(1, 1), padding=(1, 1)), "normal"),
    "a flat pool": (mean((1, 3), stride=1, padding=(0, 1), count_include_pad=False), "normal"),
    "a pool that tells places": (largest(return_indices=True), "normal"),
    "a pool without a norm": (largest(searching=False), "reduce"),
    "a pool of another kind": (lambda c, s: Pool(nn.LPPool2d(2, 3, stride=s), c, searching=True), "reduce"),
    "a norm alone": (lambda c, s: nn.BatchNorm2d(c), "normal"),
    "a convolution alone": (lambda c, s: nn.Conv2d(c, c, 3, stride=s, padding=1), "reduce"),
    "a subclass": (lambda c, s: Squared(c, 3, stride=s, dilation=1, affine=False), "reduce"),
    "reduction without a stride": (lambda c, s: FactorizedReduce(c, c, affine=True), "normal"),
    "a choice": (lambda c, s: LayerChoice({"a": Scaled(c, s), "b": Constant(c, s)}, key="inner"), "reduce"),
    **{
        kind.__name__: (kind, "reduce")
        for kind in (Scaled, Constant, Ones, Broadcasts, Twice, Double, InPlace, Noisy, Normed, Refuses)
    },
    **{
        f"{name} of {of}": (edited(make, name, only_first=of == "one edge"), kind)
        for of, make, kind in (
            ("dilated", dilated(3, 2, affine=True), "reduce"),
            ("separable", separable(3), "normal"),
            ("max pools", largest(), "reduce"),
            ("means", mean(count_include_pad=False), "normal"),
            ("one edge", separable(3, affine=True), "normal"),
        )
        for name, edit in EDITS.items()
        if edit.changes(make)
    },
}  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES)
def test_an_operation_with_other_attributes_does_what_it_does_in_the_plain_cell(failure: str) -> None:
    make, kind = FAILURES[failure]
    result, _ = check_cells({"none": lambda c, s: Zero(s), "own": make, "dilated": dilated(3)}, kind=kind)
    alone, _ = check_cells({"own": make}, kind=kind, nodes=1, mode="no_grad")
    if failure in ("Constant", "Scaled", "Normed", "a subclass", "bias of dilated"):
        assert isinstance(result, dict)
        assert isinstance(alone, dict)


@pytest.mark.parametrize("mode", ["grad", "no_grad", "eval", "inference"])
@pytest.mark.parametrize(
    "name", ["none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]
)  # fmt: skip
def test_the_papers_operations_have_fast_forms(name: str, mode: str, calls: list[str]) -> None:
    make = operations.OPERATIONS[name]
    for kind in ("normal", "reduce"):
        result, _ = check_cells({"own": lambda c, s: make(c, s, True), "other": dilated(3)}, kind=kind, mode=mode)
        assert isinstance(result, dict)
    assert calls
    assert "Called" not in calls


def test_one_pixel_is_refused_as_by_the_plain_cell() -> None:
    for make in (dilated(3), separable(3), largest(), mean(count_include_pad=False)):
        error, _ = check_cells({"own": make}, size=(1, 1, 1))
        assert isinstance(error, ValueError)
        assert "Expected more than 1 value per channel" in str(error)
        result, _ = check_cells({"own": make}, size=(1, 1, 1), mode="eval")
        assert isinstance(result, dict)


def test_norms_of_several_settings(calls: list[str]) -> None:
    """They stay fast as long as those of one candidate agree."""
    own = {
        "a": edited(separable(3), "eps"),
        "b": edited(dilated(3, affine=True), "momentum"),
        "c": edited(largest(), "norms frozen"),
        "d": mean(count_include_pad=False),
    }
    check_cells(own, kind="reduce")
    assert "Called" not in calls


@pytest.mark.parametrize("mode", ["grad", "no_grad", "eval"])
def test_edge_weights(mode: str, calls: list[str]) -> None:
    """A node may weigh its edges (PC-DARTS); the gradient goes to both kinds of weights."""
    own = {"none": lambda c, s: Zero(s), "own": separable(3), "called": Scaled}
    result, _ = check_cells(own, nodes=3, mode=mode, with_edges=True)
    assert isinstance(result, dict)
    if mode != "no_grad":
        assert result["nodes.1.switch"].norm() > 0
        assert result["nodes.1.edges.0"].norm() > 0
    assert {"Separable", "Called"} <= {*calls}


class Wrapped(nn.Module):
    """An edge that is no plain choice."""

    def __init__(self, choice: nn.Module) -> None:
        super().__init__()
        self.choice = choice

    def forward(self, x: Tensor) -> Tensor:
        return self.choice(x) + x


def two_cells(kind: str = "normal") -> tuple[Cell, FusedCell]:
    own = {"none": lambda c, s: Zero(s), "own": dilated(3), "pool": largest()}
    plain = make_cell(own, kind=kind, channels=3, nodes=2, wide=2)
    return plain, as_fused(plain)


def test_edges_that_are_no_plain_choices(calls: list[str]) -> None:
    cells = two_cells()
    for cell in cells:
        node: Any = cell.nodes[0]
        node.edges[1] = Wrapped(node.edges[1])
    plain, fast = (result_of(cell, (2, 5, 5)) for cell in cells)
    check_alike(fast, plain)
    assert not calls


def test_edges_with_one_path_take_the_plain_form(calls: list[str]) -> None:
    """GDAS runs one candidate of an edge."""
    cells = two_cells()
    for cell in cells:
        node: Any = cell.nodes[1]
        node.edges[0].path = 1
    plain, fast = (result_of(cell, (2, 5, 5)) for cell in cells)
    check_alike(fast, plain)
    assert not calls
    last_node: Any = cells[1].nodes[1]
    last_node.edges[0].path = None
    result_of(cells[1], (2, 5, 5))
    assert "Convolution" in calls


def edit_node_forward(cell: Any) -> None:
    cell.nodes[0].forward = lambda states: states[0]


class Halved(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / 2


def hook_on(path: str) -> Callable[[Any], object]:
    return lambda cell: cell.get_submodule(path).register_forward_hook(tripled)


def assign(path: str, name: str, value: Any) -> Callable[[Any], object]:
    return lambda cell: setattr(cell.get_submodule(path), name, value)


OWN = "nodes.1.edges.0.candidates.own"
LATER_EDITS: dict[str, Callable[[Any], object]] = {
    "hook on an operation": hook_on(OWN),
    "hook on a convolution": hook_on(f"{OWN}.1"),
    "hook on an edge": hook_on("nodes.1.edges.0"),
    "hook on a switch": hook_on("nodes.1.switch"),
    "hook on a node": hook_on("nodes.1"),
    "hook on an input": hook_on("preprocess1"),
    "hook before": lambda cell: cell.get_submodule(OWN).register_forward_pre_hook(lambda _, args: (args[0] * 2,)),
    "hook behind": lambda cell: cell.get_submodule(OWN).register_full_backward_hook(lambda m, i, o: (i[0] * 2,)),
    "forward of a node": edit_node_forward,
    "forward of an operation": lambda cell: own_forward(cell.get_submodule(OWN)),
    "forward of an edge": lambda cell: own_forward(cell.get_submodule("nodes.1.edges.0")),
    "activation": lambda cell: setattr(cell.get_submodule(OWN), "0", nn.SiLU()),
    "class of an activation": lambda cell: setattr(cell.get_submodule(f"{OWN}.0"), "__class__", Halved),
    "norm": lambda cell: setattr(cell.get_submodule(OWN), "3", nn.Identity()),
    "operation": lambda cell: setattr(cell.get_submodule("nodes.1.edges.0.candidates"), "own", Scaled(3, 1).double()),
    "input": lambda cell: setattr(cell, "preprocess0", nn.Sequential(nn.Tanh(), nn.Conv2d(2, 3, 1)).double()),
    "stride": assign(f"{OWN}.1", "stride", (2, 2)),
    "padding": assign(f"{OWN}.1", "padding_mode", "reflect"),
    "dilation of a pool": assign("nodes.1.edges.0.candidates.pool.pool", "dilation", 2),
    "eps": assign(f"{OWN}.3", "eps", 0.5),
    "eps of an input": assign("preprocess0.2", "eps", 0.5),
    "momentum": assign(f"{OWN}.3", "momentum", 0.5),
    "bias": lambda cell: cell.get_submodule(f"{OWN}.2").register_parameter("bias", nn.Parameter(torch.ones(3).double())),
    "training": lambda cell: cell.get_submodule(f"{OWN}.3").eval(),
    "more edges": lambda cell: cell.get_submodule("nodes.1.edges").append(copy.deepcopy(cell.nodes[1].edges[0])),
    "a candidate less": lambda cell: cell.get_submodule("nodes.1.edges.0.candidates").pop("pool"),
    "shared": lambda cell: setattr(
        cell.get_submodule("nodes.1.edges.0.candidates"), "own", cell.get_submodule("nodes.0.edges.0.candidates.own")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LATER_EDITS)
def test_an_edit_after_the_first_pass_is_noticed(name: str) -> None:
    unedited, fast = two_cells()
    plain = copy.deepcopy(unedited)
    for cell in (unedited, plain, fast):
        result_of(cell, (2, 5, 5))
    for cell in (plain, fast):
        torch.manual_seed(0)
        LATER_EDITS[name](cell)
    expected = result_of(plain, (2, 5, 5))
    check_alike(result_of(fast, (2, 5, 5)), expected)
    with pytest.raises(AssertionError):  # of an edit that has no effect, nothing could be noticed
        check_alike(result_of(unedited, (2, 5, 5)), expected)


@pytest.mark.parametrize(
    "kind", [nn.ReLU, nn.BatchNorm2d, nn.Conv2d, nn.Sequential, DilatedConv, Pool, LayerChoice, InputChoice, Cell]
)
def test_a_forward_that_is_edited_in_its_class_is_used(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = two_cells()
    before = [result_of(cell, (2, 5, 5)) for cell in cells]
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, *inputs: forward(self, *inputs) * 2)
    plain, fast = (result_of(cell, (2, 5, 5)) for cell in cells)
    check_alike(fast, plain)
    assert isinstance(plain, dict)
    assert isinstance(before[0], dict)
    assert not torch.equal(plain["output"], before[0]["output"])


def test_a_hook_on_all_modules_runs() -> None:
    cells = two_cells()
    counts = []
    for cell in cells:
        called: list[str] = []
        handle = nn.modules.module.register_module_forward_hook(
            lambda m, *_, called=called: called.append(type(m).__name__)
        )
        try:
            result_of(cell, (2, 5, 5))
        finally:
            handle.remove()
        counts.append([name for name in called if name != type(cell).__name__])
    assert counts[0] == counts[1]
    assert counts[0]


def test_an_edit_that_is_taken_back_is_fast_again(calls: list[str]) -> None:
    _, fast = two_cells()
    operation = fast.get_submodule(OWN)
    handle = operation.register_forward_hook(tripled)
    result_of(fast, (2, 5, 5))
    assert "Called" in calls
    handle.remove()
    calls.clear()
    result_of(fast, (2, 5, 5))
    assert calls
    assert "Called" not in calls


def test_attributes_that_no_forward_reads_are_no_edits() -> None:
    operation: Any = DilatedConv(3, 3, stride=1, dilation=1, affine=False)
    same = known(operation)
    assert same is not None
    operation.note = operation[1].note = "mine"
    operation.register_state_dict_post_hook(lambda *_: None)
    assert known(operation) == same
    operation[1]._conv_forward = lambda *inputs: inputs[0]
    assert known(operation) is None


def test_looking_at_operations_draws_no_random_numbers() -> None:
    operation = SeparableConv(11, 9, stride=2, affine=True)
    before = torch.get_rng_state()
    assert known(operation) is not None
    assert torch.equal(torch.get_rng_state(), before)


def test_norms_over_all_processes_are_known() -> None:
    operation = SeparableConv(4, 3, stride=1, affine=True)
    synchronise(operation)
    assert known(operation) == known(SeparableConv(4, 3, stride=1, affine=True))


def test_copies_do_not_share_what_was_found() -> None:
    plain, fast = two_cells()
    result_of(fast, (2, 5, 5))
    twin = copy.deepcopy(fast)
    twin.load_state_dict(plain.state_dict())
    for cell in (plain, twin):
        EDITS["activation"](cell)
    check_alike(result_of(twin, (2, 5, 5)), result_of(plain, (2, 5, 5)))


def test_cells_are_not_kept_alive() -> None:
    _, fast = two_cells()
    result_of(fast, (2, 5, 5))
    reference = weakref.ref(fast)
    del fast
    gc.collect()
    assert reference() is None


def test_a_pass_over_many_sizes() -> None:
    """What one size needs the plain form for, another does not."""
    own = {"own": largest(3, padding=0), "even": dilated(4), "scaled": Scaled}
    for size in ((2, 2, 2), (2, 3, 3), (2, 6, 6), (1, 1, 1)):
        check_cells(own, size=size, kind="reduce")


# Large means


def errors(cell: Cell, exact: dict[str, Tensor], ratio: float, dtype: torch.dtype, **options: Any) -> dict[str, float]:
    """Return the largest relative errors of the output and of each kind of gradient, in this dtype."""
    result = result_of(copy.deepcopy(cell).to(dtype), ratio=ratio, **options)
    assert isinstance(result, dict)
    largest_norm = max(value.norm() for name, value in exact.items() if name != "random")
    found: dict[str, float] = {}
    for name, value in exact.items():
        if value.norm() > 1e-6 * largest_norm:
            group = name.split(".", maxsplit=1)[0] if "weight" not in name else "weights"
            error = float((result[name].double() - value).norm() / value.norm())
            found[group] = max(found.get(group, 0.0), error)
    return found


PAPERS: dict[str, Make] = {
    name: lambda c, s, make=operations.OPERATIONS[name]: make(c, s, True)
    for name in ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3")
}


@pytest.mark.parametrize("kind", ["normal", "reduce"])
@pytest.mark.parametrize("ratio", [1.0, 100.0, 3000.0])
def test_large_means_lose_no_more_digits_than_in_the_plain_cell(ratio: float, kind: str) -> None:
    """Medians of several inputs: rounding may make another pixel the largest of a window, or turn the sign of one."""
    plain = make_cell(PAPERS, kind=kind, channels=8, nodes=2, wide=2)
    fast = as_fused(plain)
    of_plain, of_fast = [], []
    for seed in range(5):
        options: dict[str, Any] = {"size": (4, 8, 8), "seed": seed}
        exact = result_of(copy.deepcopy(plain), ratio=ratio, **options)
        assert isinstance(exact, dict)
        of_plain.append(errors(plain, exact, ratio, torch.float32, **options))
        of_fast.append(errors(fast, exact, ratio, torch.float32, **options))
        in_float64 = errors(fast, exact, ratio, torch.float64, **options)
        assert all(error < 1e-14 * ratio**2 + 1e-12 for error in in_float64.values())
    for group in of_plain[0]:
        plain_error, fast_error = (
            statistics.median(found[group] for found in errors) for errors in (of_plain, of_fast)
        )
        assert fast_error <= 1.5 * plain_error + 1e-6, (group, of_fast, of_plain)


@pytest.mark.parametrize("size", [(1, 1, 2), (2, 2, 2), (4, 16, 16)])
@pytest.mark.parametrize(("dtype", "ratio", "tolerance"), [(torch.float32, 3000, 4e-3), (torch.float64, 1e6, 1e-8)])
def test_a_norm_of_images_of_a_large_mean(
    dtype: torch.dtype, ratio: float, tolerance: float, size: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(size[0], 5, *size[1:], dtype=torch.float64) + ratio).to(dtype)
    cotangent = torch.randn_like(x)
    results = []
    forms = {
        "steps": lambda norm, x: fused.evaluate(norm, known(norm), x),
        "whole": lambda norm, x: fused.Single(norm).output(x),
    }
    for wide, form in ((torch.float64, "exact"), (dtype, "steps"), (dtype, "whole"), (dtype, "plain")):
        norm = nn.BatchNorm2d(5).to(wide)
        leaf = x.to(wide).contiguous(memory_format=torch.channels_last).requires_grad_()
        if form == "exact":  # by hand: torch's own loses digits too
            mean = leaf.mean((0, 2, 3), keepdim=True)
            output = (leaf - mean) / ((leaf - mean).square().mean((0, 2, 3), keepdim=True) + norm.eps).sqrt()
        else:
            output = forms[form](norm, leaf) if form in forms else norm(leaf)
        (grad,) = torch.autograd.grad(output, leaf, cotangent.to(wide))
        results.append((output.detach().double(), grad.double()))
    for exact, *actual, plain in zip(*results, strict=True):
        for tensor in actual:
            error = (tensor - exact).norm() / cotangent.norm()
            assert error <= max(tolerance, float((plain - exact).norm() / cotangent.norm()))


# Anything

SIDES = st.integers(1, 7)
POOLS = st.builds(
    lambda kind, kernel, options, searching: pooled(kind, kernel, searching=searching, **options),
    st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]),
    st.one_of(st.integers(1, 5), st.tuples(st.integers(1, 3), st.integers(1, 3))),
    st.fixed_dictionaries(
        {},
        optional={
            "padding": st.one_of(st.integers(0, 2), st.just((1, 0))),
            "stride": st.one_of(st.integers(1, 3), st.just((2, 1))),
            "ceil_mode": st.booleans(),
        },
    ),
    st.booleans(),
)
STRIDES = st.sampled_from([None, None, None, 1, 2, 3])
CONVOLUTIONS = st.one_of(
    st.builds(
        lambda kernel, dilation, affine, stride: dilated(kernel, dilation, affine=affine, stride=stride),
        st.integers(1, 6), st.integers(1, 3), st.booleans(), STRIDES,
    ),
    st.builds(
        lambda kernel, affine, stride: separable(kernel, affine=affine, stride=stride),
        st.integers(1, 5), st.booleans(), STRIDES,
    ),
    st.builds(
        lambda kernel, affine, stride: lambda c, s: ReLUConvBN(c, c, kernel, stride=stride or s, affine=affine),
        st.integers(1, 3), st.booleans(), STRIDES,
    ),
    st.builds(lambda affine: lambda c, s: FactorizedReduce(c, c, affine=affine), st.booleans()),
)  # fmt: skip
OWN_KINDS = st.sampled_from([Scaled, Constant, Ones, Broadcasts, Twice, InPlace, Noisy, Normed, Refuses, Squared])
OTHERS = st.one_of(
    OWN_KINDS.map(
        lambda kind: (lambda c, s: Squared(c, 3, stride=s, dilation=1, affine=True)) if kind is Squared else kind
    ),
    st.just(lambda c, s: nn.Identity()),
    st.just(lambda c, s: nn.BatchNorm2d(c)),
    STRIDES.map(lambda stride: lambda c, s: Zero(stride or s)),
    st.sampled_from(sorted(operations.OPERATIONS)).map(
        lambda name: lambda c, s: operations.OPERATIONS[name](c, s, True)
    ),
)
OPERATIONS = st.builds(
    lambda make, edits, only_first: edited(make, *edits, only_first=only_first),
    st.one_of(POOLS, CONVOLUTIONS, OTHERS, OTHERS),
    st.one_of(st.just(()), st.lists(st.sampled_from(sorted(EDITS)), max_size=2)),
    st.booleans(),
)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    own=st.lists(OPERATIONS, min_size=1, max_size=3),
    size=st.tuples(st.sampled_from([1, 2, 3, 5]), SIDES, SIDES),
    kind=st.sampled_from(["normal", "reduce"]),
    channels=st.integers(2, 5),
    nodes=st.integers(1, 2),
    mode=st.sampled_from(["grad", "grad", "no_grad", "eval", "inference"]),
    with_edges=st.booleans(),
)
def test_any_operations(own: list[Make], size: tuple[int, int, int], **options: Any) -> None:
    check_cells({f"own{index}": make for index, make in enumerate(own)}, size=size, **options)
