"""What only a GPU can show: `python -m pytest -m gpu -n 0 -W default -rx`, under three minutes, without data.

Warnings are no errors here: those of a GPU's libraries differ with their versions.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from commands import FEW, SMALL, begin, read_csv
from torch import Tensor, nn

from src.bilevel import precision
from src.bilevel.hypergradient import (
    AlphaGradient,
    Bilevel,
    Exact,
    FiniteDifference,
    FirstOrder,
    Hypergradient,
    OneSided,
    of_order,
)
from src.common.errors import Diverged
from src.data.tasks import Classification
from src.spaces.choices import LayerChoice
from src.spaces.cnn.cells import Supernet, searched_operations
from src.spaces.cnn.genotypes import CANDIDATES, NAMED_GENOTYPES
from src.spaces.cnn.network import Network
from src.training.module import WEIGHTS_PART
from src.training.retrain import RetrainModule
from src.training.search import ALPHAS_PART, SearchModule

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

CUDA = torch.device("cuda")
ACCELERATOR = "gpu"
CLASSES, SHAPE, BATCH = 10, (3, 16, 16), 16
PARTS = {ALPHAS_PART, WEIGHTS_PART}
FORMS: dict[str, type[Supernet]] = {"reference": Supernet}
if importlib.util.find_spec("src.fast.merged"):
    FORMS["merged"] = importlib.import_module("src.fast.merged").MergedSupernet
HYPERGRADIENTS: dict[str, Hypergradient] = {
    "first_order": FirstOrder(),
    "finite_difference": FiniteDifference(),
    "one_sided": OneSided(),
    "exact": Exact(),
}
Batches = list[dict[str, tuple[Tensor, Tensor]]]


@pytest.fixture(autouse=True)
def memory_of_its_own() -> Iterator[None]:
    """Leave nothing of a test that failed to the next."""
    yield
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode(0)
        torch.cuda.empty_cache()


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Use kernels that compute the same bits in every run, where there are such."""
    filling: Any = torch.utils.deterministic
    before = torch.backends.cudnn.deterministic, filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic, filling.fill_uninitialized_memory = True, False
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, filling.fill_uninitialized_memory = before


def batches(count: int, *, size: int = BATCH, dtype: torch.dtype = torch.float32, seed: int = 7) -> Batches:
    generator = torch.Generator().manual_seed(seed)

    def one() -> tuple[Tensor, Tensor]:
        images = torch.randn(size, *SHAPE, generator=generator, dtype=torch.float64).to(dtype)
        return images, torch.randint(CLASSES, (size,), generator=generator)

    return [{"weights": one(), "arch": one()} for _ in range(count)]


def on(device: torch.device, data: Batches, dtype: torch.dtype | None = None) -> Batches:
    return [
        {half: (inputs.to(device, dtype), targets.to(device)) for half, (inputs, targets) in batch.items()}
        for batch in data
    ]


SOME = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5")


def supernet(form: str = "reference", **settings: Any) -> Supernet:
    arguments: dict[str, Any] = {"channels": 8, "cells": 3, "nodes": 2, "stem_multiplier": 1} | settings
    return FORMS[form](input_shape=SHAPE, num_classes=CLASSES, **arguments)


class WithDropout(nn.Module):
    """A choice of two layers with dropout between them and the head."""

    def __init__(self) -> None:
        super().__init__()
        size = SHAPE[0] * SHAPE[1] * SHAPE[2]
        self.layer = LayerChoice({"one": nn.Linear(size, 64), "two": nn.Linear(size, 64)}, key="layer")
        self.head = nn.Sequential(nn.Tanh(), nn.Dropout(0.5), nn.Linear(64, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.flatten(1)))


class Reading(Classification):
    """A task whose loss reads a value, always or only while a graph is captured."""

    def __init__(self, *, only_in_a_capture: bool) -> None:
        super().__init__([str(label) for label in range(CLASSES)])
        self.only_in_a_capture = only_in_a_capture

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not self.only_in_a_capture or torch.cuda.is_current_stream_capturing():
            outputs.detach().sum().item()
        return super().loss(outputs, targets)


def search_of(
    space: nn.Module, hypergradient: Hypergradient, *, graphs: bool = False, task: Classification | None = None
) -> SearchModule:
    torch.manual_seed(1)
    return SearchModule(
        space,
        task=task or Classification([str(label) for label in range(CLASSES)]),
        hypergradient=hypergradient,
        weight_optimizer=functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=3e-4, fused=True),
        alpha_optimizer=functools.partial(torch.optim.Adam, lr=3e-2, betas=(0.5, 0.999), fused=True),
        weight_scheduler=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=2, eta_min=0.01),
        graphs=graphs,
    )


State = dict[str, Tensor]


class Steps:
    """A search that is stepped without a trainer."""

    def __init__(
        self, order: int, *, graphs: bool, form: str = "reference", space: nn.Module | None = None, task: Any = None
    ) -> None:
        torch.manual_seed(0)
        space = supernet(form, candidates=SOME) if space is None else space
        self.search = search_of(space, of_order(order), graphs=graphs, task=task).to(CUDA)
        self.search.train()
        (self.weights, self.alphas), _ = self.search.configure_optimizers()
        if graphs:
            self.search.start_graphs()

    def take(self, data: Batches) -> Steps:
        for batch in data:
            self.search.step_alphas(batch, self.weights, self.alphas)
            self.search.step_weights(batch["weights"], self.weights)
        self.search.confirm()
        return self

    @property
    def state(self) -> State:
        return {name: value.detach().clone() for name, value in self.search.net.state_dict().items()}

    @property
    def replays(self) -> dict[str, int]:
        return dict(recorded(self.search).replays)


def usual_state(data: Batches, *, order: int = 2) -> State:
    """Return what a search without graphs comes to."""
    return Steps(order, graphs=False).take(data).state


def recorded(search: Any) -> Any:
    """Return the graphs of a search, which must have been recorded without an error."""
    graphs = search.graphs
    assert graphs is not None
    if graphs.why_not is not None:
        raise AssertionError(graphs.why_not) from graphs.error
    return graphs


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest difference, relative to the largest value of its tensor."""
    assert one.keys() == other.keys()
    found = 0.0
    for name, value in one.items():
        a, b = value.double().cpu(), other[name].double().cpu()
        if a.numel():
            found = max(found, float((a - b).abs().max()) / (1e-12 + float(b.abs().max())))
    return found


def assert_same(usual: State, found: State, again: Callable[[], State]) -> None:
    """Check that a search equals another in every bit, or as closely as that one equals itself when repeated."""
    error = distance(usual, found)
    if error:
        spread = distance(usual, again())
        print(f"two runs without graphs differ by {spread:.3g}, one with graphs by {error:.3g}")
        assert error <= 20 * spread, f"{error:.3g} with graphs, {spread:.3g} between two runs without"


def relative_error(found: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    difference = torch.cat([(found[name].double().cpu() - right[name].double().cpu()).flatten() for name in right])
    return float(difference.norm() / torch.cat([value.double().cpu().flatten() for value in right.values()]).norm())


# The same functions on a GPU.


@pytest.mark.parametrize("form", FORMS)
def test_a_form_equals_the_reference_in_float64(form: str) -> None:
    """Outputs, gradients of all weights and alphas, and running statistics, against the reference on the CPU."""
    (batch,) = batches(1, dtype=torch.float64)
    results = []
    for name, device in (("reference", torch.device("cpu")), (form, CUDA)):
        torch.manual_seed(0)
        search = search_of(supernet(name, nodes=3), FirstOrder()).double().to(device).train()
        inputs, targets = on(device, [batch])[0]["weights"]
        outputs = search._call_with({}, inputs, search.method.mixing_weights(search.alphas(), {}, search.progress))
        parameters = search.weights() | search.alphas()
        gradients = torch.autograd.grad(
            search.task.loss(outputs, targets), list(parameters.values()), allow_unused=True, materialize_grads=True
        )
        buffers = {name: buffer.double() for name, buffer in search.net.named_buffers()}
        results.append((outputs.detach(), dict(zip(parameters, gradients, strict=True)), buffers))
    (right, right_gradients, right_buffers), (outputs, gradients, buffers) = results
    largest = max(float(value.abs().max()) for value in right_gradients.values())
    scaled = [{n: g.cpu() / largest for n, g in group.items()} for group in (gradients, right_gradients)]
    assert float((outputs.cpu() - right).abs().max()) < 1e-10
    assert max(float((scaled[0][n] - scaled[1][n]).abs().max()) for n in right_gradients) < 1e-10
    assert max(float((buffers[n].cpu() - right_buffers[n]).abs().max()) for n in right_buffers) < 1e-10


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("operation", CANDIDATES)
def test_an_operation_computes_in_float32_what_it_does_in_float64(operation: str, layout: str) -> None:
    """Kernels that compute something else are found here by their sizes, against float64 in the usual layout.

    Networks have that layout on a GPU (`has_channels_last` in src/training/module.py says why); what is wrong in the other
    is the reason of an expected failure (`pytest -rx`).
    """
    wrong = []
    for channels, stride, side in itertools.product((4, 16, 36), (1, 2), (8, 16, 32)):
        results = []
        for is_found, dtype in ((False, torch.float64), (True, torch.float32)):
            torch.manual_seed(0)
            module = searched_operations([operation], stride, channels)[operation].to(CUDA, dtype)
            memory = torch.channels_last if is_found and layout == "channels_last" else torch.contiguous_format
            if memory is torch.channels_last:
                module.to(memory_format=memory)  # pyright: ignore[reportCallIssue]
            x = torch.randn(16, channels, side, side, dtype=torch.float64).to(CUDA, dtype)
            x = x.contiguous(memory_format=memory).requires_grad_()
            with precision.full_precision(CUDA.type):
                output = module(x)
                into = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
                loss = (output * into.to(output)).sum() + 0 * x.sum()
                wanted = {"input": x, **dict(module.named_parameters())}
                gradients = torch.autograd.grad(loss, list(wanted.values()))
            results.append({"output": output.detach(), **dict(zip(wanted, gradients, strict=True))})
        right, found = results
        for name, value in right.items():
            error = float((found[name].double() - value).norm() / value.norm().clamp_min(1e-12))
            if error > 1e-3:
                wrong.append(f"{name} {error:.2g} ({channels} channels, stride {stride}, side {side})")
    if wrong and layout == "channels_last":
        pytest.xfail("; ".join(wrong))
    assert not wrong, "\n".join(wrong)


def gradient_of(
    hypergradient: Hypergradient, form: str, device: torch.device, dtype: torch.dtype, **settings: Any
) -> dict[str, Tensor]:
    """Return the alphas' gradient at the start of a search, but with a velocity, by a hypergradient."""
    torch.manual_seed(0)
    search = search_of(supernet(form, **settings), hypergradient).to(dtype).to(device).train()
    (weights, _), _ = search.configure_optimizers()
    (batch,) = on(device, batches(1, dtype=torch.float64), dtype)
    for weight in search.weights().values():
        generator = torch.Generator().manual_seed(weight.numel())
        velocity = 0.01 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        weights.state[weight]["momentum_buffer"] = velocity.to(weight)
    found = search.alpha_gradients(batch, {}, weights if hypergradient.unrolls else None)
    return {name: value.detach().cpu() for name, value in found.total.items()}


@functools.cache
def on_a_cpu(name: str) -> tuple[dict[str, Tensor], float]:
    """Return a gradient in float64, and the error of the one in float32."""
    right, rounded = (
        gradient_of(HYPERGRADIENTS[name], "reference", torch.device("cpu"), dtype, channels=4)
        for dtype in (torch.float64, torch.float32)
    )
    return right, relative_error(rounded, right)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", HYPERGRADIENTS)
def test_the_alphas_gradient_is_as_good_as_on_a_cpu(name: str, form: str) -> None:
    """In float32, against float64 on the CPU. A difference magnifies rounding, on a CPU too."""
    right, usual = on_a_cpu(name)
    with precision.full_precision(CUDA.type):
        error = relative_error(gradient_of(HYPERGRADIENTS[name], form, CUDA, torch.float32, channels=4), right)
    print(f"{name}, {form}: error {error:.3g}, on a CPU {usual:.3g}")
    assert error < 5 * usual + 1e-4


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    """Allow TF32 in convolutions and matrix products."""
    before = [(part, name, getattr(part, name)) for part, name, _ in precision._switches()]
    try:
        for part, name, off in precision._switches():
            setattr(part, name, "tf32" if off == "ieee" else True)
        yield
    finally:
        for part, name, value in before:
            setattr(part, name, value)


def test_differences_are_taken_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = torch.randn(32, 64, 16, 16, device=CUDA), torch.randn(64, 64, 1, 1, device=CUDA)
    exact = nn.functional.conv2d(x.double(), w.double())
    with tf32():
        rounding = float((nn.functional.conv2d(x, w) - exact).norm() / exact.norm())
    if rounding < 1e-5:
        pytest.skip(f"this GPU computes without TF32 (error of a convolution {rounding:.3g})")
    right = gradient_of(Side(), "reference", torch.device("cpu"), torch.float64, channels=16)
    errors = []
    for _ in range(2):
        with tf32():
            found = gradient_of(Side(), "reference", CUDA, torch.float32, channels=16)
        errors.append(relative_error(found, right))
        monkeypatch.setattr(Bilevel, "full_precision", lambda self: contextlib.nullcontext())
    print(f"error {errors[0]:.3g}, {errors[1]:.3g} with TF32")
    assert errors[1] > 10 * errors[0]


class Side:
    """A gradient of which a difference is taken, where the weights are. (The error of a difference has other reasons.)"""

    order: ClassVar[int] = 2
    unrolls: ClassVar[bool] = True
    differentiates_twice: ClassVar[bool] = False

    def __call__(self, problem: Bilevel) -> AlphaGradient:
        side = problem.alpha_gradient(problem.weights)
        return AlphaGradient(total=side, direct=side, correction={}, arch_loss=torch.zeros(()))


# Graphs.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [1, 2])
def test_twenty_steps_with_graphs_equal_those_without(order: int, form: str, deterministic: None) -> None:
    data = on(CUDA, batches(20))

    def steps(*, graphs: bool) -> Steps:
        return Steps(order, graphs=graphs, form=form).take(data)

    found = steps(graphs=True)
    assert_same(steps(graphs=False).state, found.state, lambda: steps(graphs=False).state)
    assert found.replays == dict.fromkeys(PARTS, 17)


def take_without_waiting(steps: Steps, data: Sequence[Any]) -> None:
    """Take steps on the batches; a wait of the host for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in data:
            steps.search.step_alphas(batch, steps.weights, steps.alphas)
            steps.search.step_weights(batch["weights"], steps.weights)
    finally:
        torch.cuda.set_sync_debug_mode(0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [1, 2])
def test_the_host_waits_in_no_step(order: int, form: str) -> None:
    steps = Steps(order, graphs=True, form=form)
    data = on(CUDA, batches(8))
    steps.take(data[:4])
    recorded(steps.search)
    take_without_waiting(steps, data[4:])
    assert steps.replays == dict.fromkeys(PARTS, 5)


def test_the_host_waits_in_no_usual_step() -> None:
    steps = Steps(2, graphs=False)
    data = on(CUDA, batches(4))
    steps.take(data[:2])
    take_without_waiting(steps, data[2:])


def test_an_odd_batch_runs_as_usual(deterministic: None) -> None:
    data = on(CUDA, batches(8))
    data.insert(5, on(CUDA, batches(1, size=BATCH - 3))[0])
    found = Steps(2, graphs=True).take(data)
    assert_same(usual_state(data), found.state, lambda: usual_state(data))
    assert found.replays == dict.fromkeys(PARTS, 5)


def test_a_search_that_is_restored_in_mid_epoch_is_recorded_anew(deterministic: None) -> None:
    data = on(CUDA, batches(10))
    first = Steps(2, graphs=True).take(data[:5])
    found = Steps(2, graphs=True).take(data[5:])  # it has recordings of its own before it is restored
    found.search.net.load_state_dict(first.state)
    found.weights.load_state_dict(copy.deepcopy(first.weights.state_dict()))
    found.alphas.load_state_dict(copy.deepcopy(first.alphas.state_dict()))
    found.search._step = 5
    found.take(data[5:])
    assert_same(usual_state(data), found.state, lambda: usual_state(data))
    assert found.replays[ALPHAS_PART] == 2 + 4
    assert recorded(found.search).records[ALPHAS_PART] == 2


def test_each_replay_draws_the_numbers_of_its_step(deterministic: None) -> None:
    data = on(CUDA, batches(8))

    def steps(order: int, graphs: bool) -> Steps:
        torch.manual_seed(0)
        return Steps(order, graphs=graphs, space=WithDropout()).take(data)

    found = steps(1, True)
    assert_same(steps(1, False).state, found.state, lambda: steps(1, False).state)
    assert found.replays == dict.fromkeys(PARTS, 5)


def test_several_passes_that_draw_numbers_have_no_graphs(
    deterministic: None, capsys: pytest.CaptureFixture[str]
) -> None:
    data = on(CUDA, batches(6))

    def steps(graphs: bool) -> Steps:
        torch.manual_seed(0)
        return Steps(2, graphs=graphs, space=WithDropout()).take(data)

    assert_same(steps(False).state, steps(True).state, lambda: steps(False).state)
    assert "random numbers in more than one pass" in capsys.readouterr().err


def test_memory_stays_that_of_a_step() -> None:
    data = on(CUDA, batches(8, size=128))
    peaks = []
    for graphs in (False, True):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved()
        steps = Steps(2, graphs=graphs).take(data)
        peaks.append((torch.cuda.max_memory_reserved() - before) / 2**20)
        del steps
    print(f"without graphs {peaks[0]:.0f} MiB, with graphs {peaks[1]:.0f} MiB")
    assert peaks[1] < 2.5 * peaks[0] + 64


# With a trainer.


class Watch(L.Callback):
    """Forbids the host to wait within training steps after the first, and reads what they measured."""

    def __init__(self, strict_from: int) -> None:
        self.strict_from = strict_from
        self.times: list[float] = []
        self.epochs = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx >= self.strict_from:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        torch.cuda.set_sync_debug_mode(0)
        self.times.append(float(pl_module.step_values["time/alpha_step"]))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.epochs += 1


def fit(order: int, data: Batches, *callbacks: L.Callback, graphs: bool, precision: Any) -> SearchModule:
    torch.manual_seed(0)
    search = search_of(supernet(next(reversed(FORMS)), candidates=SOME), of_order(order), graphs=graphs)
    return fit_module(search, data, *callbacks, precision=precision)


def fit_module(module: Any, data: list[Any], *callbacks: L.Callback, precision: Any) -> Any:
    trainer = L.Trainer(
        max_epochs=2,
        accelerator=ACCELERATOR,
        devices=1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    loader: Any = torch.utils.data.DataLoader(data, batch_size=None)  # pyright: ignore[reportArgumentType]
    trainer.fit(module, train_dataloaders=loader)
    return module


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fit_with_graphs_equals_one_without(precision: str, deterministic: None) -> None:
    data = batches(6)

    def trained(*, graphs: bool) -> tuple[SearchModule, State]:
        watch = Watch(strict_from=99)
        search = fit(2, data, watch, graphs=graphs, precision=precision)
        assert len(watch.times) == 12
        assert min(watch.times) > 0
        metrics = {name: value.detach().reshape(()) for name, value in search.trainer.callback_metrics.items()}
        return search, {name: value.detach().cpu() for name, value in {**search.net.state_dict(), **metrics}.items()}

    search, found = trained(graphs=True)
    assert_same(trained(graphs=False)[1], found, lambda: trained(graphs=False)[1])
    graphs = recorded(search)
    assert (graphs.records, graphs.replays) == (dict.fromkeys(PARTS, 2), dict.fromkeys(PARTS, 2 * 6 - 2 - 2))


@pytest.mark.parametrize("graphs", [False, True])
def test_the_host_waits_in_no_step_of_a_trainer(graphs: bool) -> None:
    """Metrics, Lightning and the check of the step before are part of it."""
    watch = Watch(strict_from=4)
    fit(1, batches(6), watch, graphs=graphs, precision="32-true")
    assert len(watch.times) == 12


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("step", [3, 5])
def test_a_search_that_diverges_ends_before_anything_is_written_of_it(graphs: bool, step: int) -> None:
    data, watch = batches(6), Watch(strict_from=99)
    inputs, targets = data[step]["arch"]
    data[step]["arch"] = inputs * float("inf"), targets
    with pytest.raises(Diverged, match=rf"the gradient of the alphas is nan in epoch 0, step {step} "):
        fit(2, data, watch, graphs=graphs, precision="32-true")
    assert watch.epochs == 0
    assert len(watch.times) <= step + 2


def test_a_retrain_with_graphs_equals_one_without(deterministic: None) -> None:
    """Drop path draws on the GPU."""

    def trained(*, graphs: bool) -> RetrainModule:
        torch.manual_seed(0)
        network = Network(
            NAMED_GENOTYPES["DARTS_V2"].to_architecture(),
            input_shape=SHAPE,
            num_classes=CLASSES,
            channels=8,
            cells=3,
            auxiliary=False,
        )
        module = RetrainModule(
            network,
            task=Classification([str(label) for label in range(CLASSES)]),
            optimizer=functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, fused=True),
            scheduler=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=2),
            drop_path=0.3,
            graphs=graphs,
        )
        return fit_module(module, [batch["weights"] for batch in batches(6)], precision="32-true")

    def state(module: RetrainModule) -> State:
        return {name: value.detach().cpu() for name, value in module.net.state_dict().items()}

    found = trained(graphs=True)
    assert_same(state(trained(graphs=False)), state(found), lambda: state(trained(graphs=False)))
    assert recorded(found).replays == {WEIGHTS_PART: 2 * 6 - 2 - 2}


def test_the_commands(tmp_path: Path) -> None:
    """Unless told otherwise they use graphs, and come to what they do without."""
    for module in ("hydra", "omegaconf"):
        pytest.importorskip(module)
    settings = ["epochs=2", "trainer=gpu", "trainer.limit_train_batches=6", *SMALL, "data=digits"]
    commands = {
        "search": [*settings, *FEW, "order=2", "trainer.limit_val_batches=2"],
        "retrain": [*settings, "genotype=DARTS_V2", "trainer.limit_test_batches=2"],
    }
    choices = {"auto": [], "false": ["graphs=false"]}
    running = {
        (command, graphs): begin(command, *overrides, *choice, f"folder={tmp_path / f'{command}_{graphs}'}")
        for command, overrides in commands.items()
        for graphs, choice in choices.items()
    }
    losses: dict[tuple[str, str], list[float]] = {}
    for (command, graphs), process in running.items():
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert "graphs=" not in err
        assert ("CUDA graphs" in out) == (graphs == "auto"), out
        rows = read_csv(tmp_path / f"{command}_{graphs}" / "metrics.csv")
        losses[command, graphs] = [float(row["train_loss"]) for row in rows]
    for command in commands:
        assert losses[command, "auto"] == pytest.approx(losses[command, "false"], rel=0.05), losses


# Last, since a capture that fails may leave CUDA in a state that other tests would suffer from.


@pytest.mark.parametrize("only_in_a_capture", [False, True])
def test_what_cannot_be_recorded_runs_as_usual(
    only_in_a_capture: bool, deterministic: None, capsys: pytest.CaptureFixture[str]
) -> None:
    data = on(CUDA, batches(6))
    task = Reading(only_in_a_capture=only_in_a_capture)
    found = Steps(1, graphs=True, task=task).take(data)
    assert_same(usual_state(data, order=1), found.state, lambda: usual_state(data, order=1))
    (line,) = capsys.readouterr().err.splitlines()
    print(line)
    assert line.startswith("graphs=true: the gradient of the alphas cannot be recorded (")
    assert line.endswith("); all steps run without graphs")
    if not only_in_a_capture:
        assert "the host waits for the GPU at test_gpu.py:" in line
