"""What the network of a run reaches on a test split: its own, or that of another data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities import move_data_to_device
from omegaconf import DictConfig
from torch import Tensor

from src.common.errors import ConfigError, shorten
from src.common.intervals import interval_of_share
from src.common.seeding import derive_seed
from src.common.shell import override
from src.common.terminal import percent
from src.data.modules import RetrainData, SearchData
from src.data.samples import Samples
from src.data.sources import as_source
from src.data.tasks import Classification, Task
from src.runs.build import record_of
from src.runs.commandline import ready
from src.runs.composition import composed
from src.runs.folder import RunFolder
from src.runs.schema import register_schemas
from src.runs.searched import with_searched_settings
from src.runs.targets import TARGET, build, check, locate, within
from src.runs.trained import Facts, as_raw, trained_network

if TYPE_CHECKING:
    from src.runs.opened import OpenedRun

_DRAWS = 1000  # of the bootstrap
_ONLY = "data"  # the group that may be set


@dataclass(frozen=True)
class Measured:
    """A metric with its 95 % interval over the choice of the test samples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """What a network reaches. Prints as a table.

    Attributes:
        data: the name of the data set, of which the test split was read; None for samples that were given.
        samples: how many.
        metrics: the task's, and its `loss`.
    """

    data: str | None
    samples: int
    metrics: dict[str, Measured]

    def __str__(self) -> str:
        lines = [f"{self.samples:,} samples" + (f" of the test split of {self.data}" if self.data else "")]
        for name, measured in self.metrics.items():
            value, low, high = (
                percent(number, 2) if name == "accuracy" else f"{number:.4g}"
                for number in (measured.value, measured.low, measured.high)
            )
            lines.append(f"  {name:10} {value:>9}   (95 % interval: {low} to {high})")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Split:
    """A test split, ready for a network."""

    name: str | None  # of its data set
    task: Task
    batches: Iterator[tuple[Tensor, Tensor]]  # inputs and targets
    raw: bool  # whether inputs are as the data set has them, so that the run's normalisation comes first


def evaluate(
    run: OpenedRun,
    overrides: Sequence[str] = (),
    *,
    samples: Samples | None = None,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
) -> Evaluation:
    """Measure the network of a retrain; see `OpenedRun.evaluate`.

    Inputs are normalised as in the run's training, whatever data they are of.
    """
    run.check_usable()
    network, facts = trained_network(RunFolder(run.folder), run.kind)
    network.to(device)
    if samples is not None:
        split = _Split(None, samples.task, _cut(samples, facts, batch_size), raw=True)
    else:
        split = _test_split(_config(run, overrides), overrides, facts, batch_size)
    _check_like(split, facts)
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    with torch.inference_mode():
        for inputs, wanted in split.batches:
            found = (network if split.raw else network.bare)(move_data_to_device(inputs, device))
            outputs.append(found.cpu())
            targets.append(wanted.cpu())
    return Evaluation(split.name, sum(map(len, targets)), _measure(split.task, torch.cat(outputs), torch.cat(targets)))


def _config(run: OpenedRun, overrides: Sequence[str]) -> DictConfig:
    """Return the settings of a retrain on a run's data, with overrides."""
    for text in overrides:
        key, equals, _ = text.lstrip("+~").partition("=")
        if not equals or key.partition(".")[0] != _ONLY:
            raise ConfigError(f"only {_ONLY} can be set, as in data=digits or data.source.root=PATH, got {text!r}")
    given = [override("genotype", run.folder), *overrides]
    register_schemas()
    # Data are chosen by an override; Hydra may remember an earlier command of this process.
    return with_searched_settings(composed("retrain", given), ready(given), choices={})


def _check_used(overrides: Sequence[str]) -> None:
    """Raise a `ConfigError` for settings that only a training has a use for."""
    for text in overrides:
        key = text.lstrip("+~").partition("=")[0]
        if key not in (_ONLY, f"{_ONLY}.{TARGET}") and not key.startswith(f"{_ONLY}.source."):
            raise ConfigError(
                f"{key} has no use here, where inputs are normalised as in the run's training and nothing is trained; only "
                f"{_ONLY} and {_ONLY}.source can be set"
            )


def _test_split(config: DictConfig, overrides: Sequence[str], facts: Facts, batch_size: int) -> _Split:
    check(config.data, _ONLY)
    if locate(config.data.get(TARGET, "???"), _ONLY) in (RetrainData, SearchData):
        _check_used(overrides)
        with within("data.source"):
            source = as_source(build(config.data.source, "data.source"))
            samples = source.test()
        return _Split(source.name, samples.task, _cut(samples, facts, batch_size), raw=True)
    data: Any = build(config.data, _ONLY, seed=config.seed, purpose="retrain")
    with within(_ONLY):
        data.setup("fit")
        data.setup("test")
    record = record_of(data)
    if list(record["input_shape"]) != list(facts.input_shape):
        raise _must_have("inputs of shape", facts.input_shape, tuple(record["input_shape"]))
    batches = (data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader())
    return _Split(str(record["name"]), data.task, batches, raw=False)


def _cut(samples: Samples, facts: Facts, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield raw inputs and targets of at most `size` samples at a time."""
    for start in range(0, len(samples), size):
        targets = samples.targets[start : start + size]
        inputs = as_raw(samples.inputs[start : start + size], facts)
        yield inputs, targets.float() if targets.is_floating_point() else targets


def _check_like(split: _Split, facts: Facts) -> None:
    if split.task.outputs != facts.outputs:
        raise ConfigError(f"data must have {facts.outputs} outputs as the run's have, got {split.task.outputs}")
    classes = getattr(split.task, "classes", None)
    if classes is not None and facts.classes is not None and tuple(classes) != facts.classes:
        raise _must_have("the classes", ", ".join(facts.classes), ", ".join(classes))


def _must_have(what: str, needed: object, found: object) -> ConfigError:
    return ConfigError(f"data must have {what} {shorten(needed, 100)} as the run's have, got {shorten(found, 100)}")


def _measure(task: Task, outputs: Tensor, targets: Tensor) -> dict[str, Measured]:
    count = len(targets)
    generator = torch.Generator().manual_seed(derive_seed("bootstrap"))
    draws = [torch.randint(count, (count,), generator=generator) for _ in range(_DRAWS)]

    def bootstrapped(metric: Callable[[Tensor, Tensor], float]) -> Measured:
        drawn = torch.tensor([metric(outputs[draw], targets[draw]) for draw in draws]).double()
        low, high = drawn.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        return Measured(metric(outputs, targets), low, high)

    measured: dict[str, Measured] = {}
    for name, metric in task.metrics().items():

        def value(some: Tensor, wanted: Tensor, metric: Any = metric) -> float:
            metric.reset()
            metric.update(some, wanted)
            return float(metric.compute())

        if name == "accuracy" and isinstance(task, Classification):
            share = value(outputs, targets)
            measured[name] = Measured(share, *interval_of_share(share, count))
        else:
            measured[name] = bootstrapped(value)
    measured["loss"] = bootstrapped(lambda some, wanted: float(task.loss(some, wanted)))
    return measured
