"""Recorded steps against steps as usual. The recorder is the twin of CUDA graphs on a CPU, in taped.py."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import SEARCH, run
from omegaconf import OmegaConf
from taped import HostWaitsError, NoWaiting, Taped
from test_search_step import CLASSES, SHAPE, batches, fit, search_module
from torch import Tensor, nn

from src.bilevel.hypergradient import Exact, FirstOrder, OneSided, of_order
from src.common.errors import ConfigError
from src.data.tasks import Classification
from src.methods.method import Method
from src.methods.penalties import BetaDecay
from src.methods.perturbations import RandomSmoothing
from src.methods.relaxations import GumbelHard, Softmax
from src.runs.resume import experiment_of, first_difference
from src.spaces.choices import LayerChoice
from src.spaces.cnn.cells import Supernet
from src.training import graphs, module
from src.training.graphs import WARM_UP, Graphs
from src.training.module import WEIGHTS_PART
from src.training.search import ALPHAS_PART, TOGETHER_PART, SearchModule

PARTS = (ALPHAS_PART, WEIGHTS_PART)
STEPS = 5  # of an epoch


class Small(nn.Module):
    """Two choices between a convolution and a skip, with BatchNorm."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(SHAPE[0], 4, 3, stride=2, bias=False)
        self.choices = nn.ModuleList(LayerChoice(self._candidates(), key=key) for key in ("first", "second"))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(4, CLASSES))

    def _candidates(self) -> dict[str, nn.Module]:
        conv = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        return {"conv": conv, "skip": nn.Identity()}

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for choice in self.choices:
            x = choice(x)
        return self.head(x.mean(dim=(2, 3)))


@dataclass(frozen=True)
class SoftGumbel(Softmax):
    """A relaxation with noise in every step."""

    def draw(self, alphas: Any, generator: torch.Generator) -> dict[str, Tensor]:
        return {key: torch.rand(alpha.shape, generator=generator).to(alpha) for key, alpha in alphas.items()}

    def mixing_weights(self, alphas: Any, noise: Any, progress: Any) -> dict[str, Tensor]:
        return {key: (alpha - (-noise[key].log()).log()).softmax(0) for key, alpha in alphas.items()}


class Synchronising(Classification):
    """A task whose loss reads a value."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets) * (1.0 if float(outputs.detach().sum()) < 1e9 else 0.0)


def small(
    hypergradient: Any = 2, *, recorded: bool, kind: type[SearchModule] = SearchModule, **settings: Any
) -> SearchModule:
    torch.manual_seed(0)
    space = settings.pop("space", None) or Small(settings.pop("dropout", 0.0))
    torch.manual_seed(1)
    search = kind(
        space,
        task=settings.pop("task", Classification([str(label) for label in range(CLASSES)])),
        hypergradient=of_order(hypergradient) if isinstance(hypergradient, int) else hypergradient,
        weight_optimizer=functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=3e-4, fused=True),
        alpha_optimizer=functools.partial(torch.optim.Adam, lr=3e-2, fused=True),
        weight_scheduler=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=2, eta_min=0.01),
        gradient_clip=1.0,
        **settings,
    )
    if recorded:
        search.graphs = Graphs(Taped(), PARTS)
    return search


def state(search: SearchModule) -> dict[str, Tensor]:
    """Return what a fit came to: parameters, buffers, and the metrics of the last epoch."""
    return {**search.net.state_dict(), **search.trainer.callback_metrics}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def replays(search: SearchModule) -> Counter[str]:
    assert search.graphs is not None
    assert search.graphs.why_not is None
    return search.graphs.replays


# Not Exact() itself: the twin does not see the operators by which TorchScript makes some forward derivatives.
@pytest.mark.parametrize("hypergradient", [1, 2, OneSided(), Exact(forward=False)])
def test_replayed_steps_equal_usual_ones(hypergradient: Any) -> None:
    data = batches(STEPS)
    usual, recorded = (fit(small(hypergradient, recorded=on), data) for on in (False, True))
    assert same(state(usual), state(recorded))
    # Momentum is there after the first step. Each epoch has its own recordings.
    assert replays(recorded) == dict.fromkeys(PARTS, 2 * STEPS - WARM_UP - 2)
    assert recorded.graphs is not None
    assert recorded.graphs.records == dict.fromkeys(PARTS, 2)


def test_replayed_steps_of_one_level() -> None:
    data, method = batches(STEPS), Method(relaxation=SoftGumbel(), one_level=True)
    usual, recorded = (small(1, recorded=on, method=method) for on in (False, True))
    recorded.graphs = Graphs(Taped(), recorded.parts)
    assert same(state(fit(usual, data)), state(fit(recorded, data)))
    assert replays(recorded) == {TOGETHER_PART: 2 * STEPS - WARM_UP - 2}


def test_replayed_steps_in_bfloat16() -> None:
    data = [{half: (x.float(), y) for half, (x, y) in batch.items()} for batch in batches(STEPS)]
    usual, recorded = (fit(small(2, recorded=on), data, precision="bf16-mixed") for on in (False, True))
    assert same(state(usual), state(recorded))
    assert replays(recorded)[ALPHAS_PART] > 0


def test_the_papers_cells() -> None:
    def search(recorded: bool) -> SearchModule:
        torch.manual_seed(0)
        candidates = ("none", "max_pool_3x3", "skip_connect", "dil_conv_3x3")
        space = Supernet(
            input_shape=SHAPE, num_classes=CLASSES, channels=2, cells=3, nodes=2, stem_multiplier=1, candidates=candidates
        )  # fmt: skip
        return fit(small(2, recorded=recorded, space=space), batches(4), epochs=1)

    usual, recorded = search(False), search(True)
    assert same(state(usual), state(recorded))
    assert replays(recorded) == dict.fromkeys(PARTS, 1)


METHODS = {
    "noise in the mixing weights": Method(relaxation=SoftGumbel()),
    "a perturbation": Method(perturbation=RandomSmoothing()),
    "a penalty": Method(penalty=BetaDecay()),
    "frozen epochs": Method(frozen_epochs=1),
}


@pytest.mark.parametrize("method", METHODS)
def test_methods(method: str) -> None:
    usual, recorded = (fit(small(2, recorded=on, method=METHODS[method]), batches(STEPS)) for on in (False, True))
    assert same(state(usual), state(recorded))
    assert replays(recorded)[ALPHAS_PART] > 0


def _stale_arguments(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(graphs._Recording, "take", lambda self, arguments: None)


def _nothing_frozen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SearchModule, "_frozen", lambda self: None)
    patch.setattr(SearchModule, "_unrolled", lambda self, optimizer: None)


def _a_recording_before_there_is_momentum(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(graphs, "WARM_UP", 0)
    _nothing_frozen(patch)


@pytest.mark.parametrize("trap", [_stale_arguments, _nothing_frozen, _a_recording_before_there_is_momentum])
def test_what_a_recording_would_miss_is_noticed(trap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = batches(STEPS)
    usual = fit(small(2, recorded=False), data)
    trap(monkeypatch)
    assert not same(state(usual), state(fit(small(2, recorded=True), data)))


def test_recordings_that_share_memory_are_made_in_the_order_of_a_step() -> None:
    """Where the alphas' part is recorded anew, and the weights' part is not, its replay would write over the alphas'."""

    class AnotherRate(SearchModule):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_start(batch, batch_idx)
            if batch_idx == STEPS - 2:
                self._optimizers[0].param_groups[0]["lr"] /= 2

    usual, recorded = (fit(small(2, recorded=on, kind=AnotherRate), batches(STEPS), epochs=1) for on in (False, True))
    assert same(state(usual), state(recorded))
    assert recorded.graphs is not None
    assert recorded.graphs.records == dict.fromkeys(PARTS, 2)


def test_an_odd_batch_runs_as_usual() -> None:
    data = batches(STEPS)
    data.insert(3, batches(1, size=5)[0])
    usual, recorded = (fit(small(2, recorded=on), data) for on in (False, True))
    assert same(state(usual), state(recorded))
    assert recorded.graphs is not None
    assert recorded.graphs.records == dict.fromkeys(PARTS, 2)


def test_two_sizes_in_turn_do_not_replace_each_other() -> None:
    data = [batch for pair in zip(batches(STEPS), batches(STEPS, size=4), strict=True) for batch in pair]
    usual, recorded = (fit(small(2, recorded=on), data, epochs=1) for on in (False, True))
    assert same(state(usual), state(recorded))
    assert recorded.graphs is not None
    assert recorded.graphs.records == dict.fromkeys(PARTS, 1)


class Stepped:
    """Steps without a trainer."""

    def __init__(self, *, recorded: bool) -> None:
        self.search = small(2, recorded=recorded).double()
        self.search.train()
        (self.weights, self.alphas), _ = self.search.configure_optimizers()

    def take(self, data: list[dict[str, Any]]) -> None:
        for batch in data:
            self.search.step_alphas(batch, self.weights, self.alphas)
            self.search.step_weights(batch["weights"], self.weights)

    def restore(self, other: Stepped) -> None:
        self.search.net.load_state_dict(other.search.net.state_dict())
        for own, its in ((self.weights, other.weights), (self.alphas, other.alphas)):
            own.load_state_dict(copy.deepcopy(its.state_dict()))
        self.search._step = other.search._step


def test_a_run_that_is_restored_is_recorded_anew() -> None:
    """A checkpoint brings its own momentum, which a recording made before would not read."""
    data = batches(8)
    straight, restored, other = Stepped(recorded=False), Stepped(recorded=True), Stepped(recorded=False)
    straight.take(data)
    other.take(data[:4])
    restored.take(data[4:])
    restored.restore(other)
    restored.take(data[4:])
    assert same(straight.search.net.state_dict(), restored.search.net.state_dict())
    assert replays(restored.search)[ALPHAS_PART] == 1 + 3


def test_random_operations_draw_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """One pass is seeded before its replay. Several passes each begin with the seed, which no recording can do."""
    for order in (1, 2):
        usual, recorded = (fit(small(order, recorded=on, dropout=0.5), batches(STEPS)) for on in (False, True))
        assert same(state(usual), state(recorded))
        assert recorded.graphs is not None
        assert (recorded.graphs.why_not is None) == (order == 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "graphs=true: the gradient of the alphas cannot be recorded (it draws random numbers in more than one pass, or "
        "on the CPU); all steps run without graphs"
    )


def test_what_cannot_be_recorded_runs_as_usual(capsys: pytest.CaptureFixture[str]) -> None:
    task = Synchronising([str(label) for label in range(CLASSES)])
    usual, recorded = (fit(small(2, recorded=on, task=task), batches(STEPS)) for on in (False, True))
    assert same(state(usual), state(recorded))
    assert recorded.graphs is not None
    assert isinstance(recorded.graphs.error, HostWaitsError)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("graphs=true: the gradient of the alphas cannot be recorded (HostWaitsError: ")


@pytest.mark.parametrize("hypergradient", [1, 2, OneSided(), Exact()])
def test_the_host_waits_in_no_part(hypergradient: Any) -> None:
    search = search_module(
        1, hypergradient=of_order(hypergradient) if isinstance(hypergradient, int) else hypergradient
    )
    search.double().train()
    (optimizer, _), _ = search.configure_optimizers()
    batch = batches(1)[0]
    mixing = search._weights_step_mixing(batch["weights"])
    with NoWaiting():
        search.alpha_gradients(batch, {}, optimizer)
        search.weight_gradients(batch["weights"], mixing)
        with pytest.raises(HostWaitsError):
            batch["weights"][1].sum().item()


def test_where_there_are_no_graphs_one_line_says_so(tmp_path: Path) -> None:
    done = run("search", *SEARCH, "graphs=true", "callbacks=none", f"folder={tmp_path / 'run'}")
    assert (done.code, done.err) == (
        0,
        "graphs=true: CUDA graphs need a GPU, this run is on cpu; all steps run without graphs\n",
    )


def test_methods_that_choose_on_the_host_have_no_graphs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = small(FirstOrder(), recorded=False, method=Method(relaxation=GumbelHard()))
    monkeypatch.setattr(SearchModule, "device", torch.device("cuda"))
    search.start_graphs()
    assert search.graphs is None
    assert capsys.readouterr().err == (
        "graphs=true: GumbelHard chooses operations on the host in every step; all steps run without graphs\n"
    )


@pytest.mark.parametrize("setting", ["auto", True])
def test_auto_records_what_is_known(
    setting: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a space, a task or a slot of one's own does besides tensor operations, a recording would freeze."""
    monkeypatch.setattr(SearchModule, "device", torch.device("cuda"))
    monkeypatch.setattr(module, "CudaGraphs", lambda device: Taped())

    def said(**settings: Any) -> str:
        search = small(FirstOrder(), recorded=False, graphs=setting, **settings)
        search.start_graphs()
        text = capsys.readouterr().err
        assert (search.graphs is None) == bool(text)
        assert search.graphs is None or search.graphs.setting == f"graphs={setting}".lower()
        return text

    known = Supernet(input_shape=SHAPE, num_classes=CLASSES, channels=2, cells=3, nodes=2)
    assert said(space=known) == ""
    own: dict[str, dict[str, Any]] = {
        "Small": {},
        "Synchronising": {"space": known, "task": Synchronising([str(label) for label in range(CLASSES)])},
        "SoftGumbel": {"space": known, "method": Method(relaxation=SoftGumbel())},
    }
    for name, settings in own.items():
        line = (
            f"graphs=auto: {name} is code of your own, which graphs=true would record; all steps run without graphs\n"
        )
        assert said(**settings) == ("" if setting is True else line)


def test_auto_is_silent_where_there_can_be_no_graphs(capsys: pytest.CaptureFixture[str]) -> None:
    search = small(FirstOrder(), recorded=False, graphs="auto")
    search.start_graphs()
    assert search.graphs is None
    assert capsys.readouterr().err == ""
    with pytest.raises(ConfigError, match=r"^graphs must be auto, true or false, got on$"):
        small(FirstOrder(), recorded=False, graphs="on")


def test_graphs_are_no_part_of_an_experiment() -> None:
    one, other = (OmegaConf.create({"epochs": 2, "graphs": graphs}) for graphs in (False, True))
    assert first_difference(one, other) is None
    one, other = ({"order": 1, "graphs": graphs} for graphs in (False, True))
    assert experiment_of(one, {}) == experiment_of(other, {})
