"""From a composed config to objects: data, network, schedule, trainer."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import ProgressBar
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, ReduceLROnPlateau
from torch.utils.flop_counter import FlopCounterMode

from src.architectures.architecture import Architecture
from src.callbacks.checkpoint import Checkpoints
from src.callbacks.guard import Guard
from src.callbacks.loggers import OfRun
from src.callbacks.ranking import Ranking
from src.callbacks.scalars import Scalars
from src.common.batch_norm import synchronise
from src.common.errors import ConfigError, must_be, unknown
from src.data.modules import DataModule
from src.fast.forms import IMPLEMENTATIONS, REFERENCE, form_for, form_of, has_forms
from src.fast.layout import plain_form
from src.runs.alphas import is_of_method
from src.runs.checkpoints import WholeCheckpoints
from src.runs.devices import device_type, own_gpu
from src.runs.loggers import identity_of
from src.runs.sweeps import is_job
from src.runs.targets import TARGET, build, check, fit, locate, plain, within
from src.runs.values import show
from src.spaces.evaluation import fixed_network, training_settings_of
from src.training.parallel import Averaging
from src.training.retrain import RetrainModule
from src.training.search import SchedulerFactory
from src.training.select import SelectModule


def check_targets(command: str, config: DictConfig) -> None:
    """Check everything in a composed config that has a `_target_` against the signature of that target.

    Raises:
        ConfigError: a key that has to name a target does not, there is no such target, or it does not take an argument.
    """
    for key in ("data", "space", "hypergradient", "optimizer.weights", "optimizer.alphas", "trainer"):
        group, _, name = key.rpartition(".")
        parent = config[group] if group else config
        if parent.get(name) is None and is_of_method(config, key):
            continue
        if name in parent and not (isinstance(parent[name], DictConfig) and TARGET in parent[name]):
            raise ConfigError(f"{key}._target_ is not set, set it with {key}._target_=MODULE.CLASS")
    space, _ = _space(config.space)
    if command == "retrain":
        space, training = split_training(space)
        fit(RetrainModule, "space", training)
    for key in config:
        check(space if key == "space" else config[key], str(key))


def build_data(config: DictConfig) -> Any:
    """Return the data module of a composed config, with its train split read and cut."""
    purpose = "retrain" if "genotype" in config else "search"
    searched = config.get("searched")  # a selection has the halves of its search
    seed = config.seed if searched is None else searched.seed
    data = build(config.data, "data", seed=seed, purpose=purpose)
    with within("data"):
        data.setup("fit")
    return data


def record_of(data: DataModule) -> dict[str, Any]:
    """Return what a run's record says of its data: with the task, also where the data module leaves it out."""
    return data.task.record() | data.record()


def build_network(
    space: Any, *, device: str = "cpu", autocast: bool = False, differentiated_twice: bool = False, **supplied: Any
) -> nn.Module:
    """Return the network of a config's `space`, in the form that `space.impl` asks for; say where it cannot be had.

    Args:
        space: the node.
        device: the type of device that it is to run on, for space.impl=auto.
        autocast: whether it runs under autocast, in which the kernels of a fused form do not compute.
        differentiated_twice: whether the run takes second derivatives, which a fused form does not have.
        supplied: what the space is told besides its own settings, where it takes it: `input_shape`, `num_classes`.
    """
    settings, impl = _space(space)
    kind = locate(settings[TARGET], "space")
    suited = form_for(kind, device, autocast=autocast, differentiated_twice=differentiated_twice)
    if impl == "auto":
        impl = suited
    elif impl == "fused" and (differentiated_twice or autocast):
        why = "autocast is not for its kernels"
        if differentiated_twice:
            why = "an exact hypergradient differentiates twice"
        print(f"space.impl=fused: {why}, space.impl={suited} is used", file=sys.stderr)
        impl = suited
    if impl not in (None, REFERENCE):
        form = form_of(kind, impl)
        if form is None:
            print(f"space.impl={impl}: {settings[TARGET]} has no {impl} form, its own is used", file=sys.stderr)
        else:
            settings[TARGET] = f"{form.__module__}.{form.__qualname__}"
    return build(settings, "space", **supplied)


def circumstances(config: DictConfig) -> dict[str, Any]:
    """Return what of a composed config's trainer `build_network` chooses a form by: the device, and whether it autocasts."""
    trainer = config.trainer
    return {
        "device": device_type(trainer.get("accelerator", "auto")),
        "autocast": "mixed" in str(trainer.get("precision")),
    }


def build_evaluated(
    space: Any,
    genotype: str,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    architecture: Architecture | None,
    weights: Mapping[str, Tensor] | None = None,
    device: str = "cpu",
    autocast: bool = False,
) -> tuple[nn.Module, Architecture]:
    """Return the network that a genotype is trained as, and its architecture.

    Args:
        space: the node of the config. It names an evaluation network, or a space whose choices are fixed.
        genotype: the path of its file.
        input_shape: of one sample.
        num_classes: the size of the last layer.
        architecture: of the evaluation network; None for a space, which reads the genotype itself.
        weights: of the space to start from; None starts from new ones.
        device: the type of device that it is to run on.
        autocast: whether it runs under autocast.
    """
    settings, _ = split_training(space)
    supplied: dict[str, Any] = {"input_shape": tuple(input_shape), "num_classes": num_classes}
    supplied |= {"device": device, "autocast": autocast}
    if architecture is not None:
        return build_network(settings, architecture=architecture, **supplied), architecture
    return fixed_network(lambda: build_network(settings, **supplied), genotype, weights=weights)


def split_training(space: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of a retrain's `space` that are the network's, and those that its training takes."""
    settings = dict(plain(space))
    names = training_settings_of(locate(settings.get(TARGET), "space"))
    return settings, {name: settings.pop(name) for name in names if name in settings}


def _space(node: Any) -> tuple[dict[str, Any], str | None]:
    """Return the settings of a space's own, and the form that it is wanted in."""
    settings = dict(plain(node))
    if not has_forms(locate(settings.get(TARGET), "space")):
        return settings, None
    impl = settings.pop("impl", None)
    if impl not in (None, *IMPLEMENTATIONS):
        raise unknown("space.impl", impl, IMPLEMENTATIONS)
    return settings, impl


def build_schedule(node: Any) -> SchedulerFactory:
    """Return the learning rate schedule of a config's node, stepped once an epoch; null is a constant rate."""
    if node is None:
        return partial(ConstantLR, factor=1.0)
    return build(node, "optimizer.schedule")


def build_diagnostics(config: DictConfig) -> list[L.Callback]:
    """Return the diagnostics of a search; none where the config has none."""
    node = plain(config.get("diagnostics"))
    if node and TARGET not in node:
        raise ConfigError(f"diagnostics=none has no settings, got {', '.join(f'diagnostics.{name}' for name in node)}")
    return [build(node, "diagnostics")] if node else []


def build_trainer(
    config: DictConfig,
    folder: Path,
    module: L.LightningModule,
    *,
    data: str = "",
    first: Sequence[L.Callback] = (),
    last: Sequence[L.Callback] = (),
) -> L.Trainer:
    """Return the trainer of a composed config; callbacks run in the order `first`, the config's, `last`, checkpoints.

    `data` is the name of the data, for loggers.

    With `trainer.sync_batchnorm`, the BatchNorms in `module` take the joined batch of all processes from now on.

    Raises:
        ConfigError: settings that `module` cannot be trained with; several processes without the strategy that averages,
            or in a job of a sweep.
    """
    chosen = _all(config.callbacks, "callbacks")
    settings = plain(config.trainer)
    if settings.pop("sync_batchnorm", False):
        synchronise(module)
    loggers = _all(config.logger, "logger")
    for logger in loggers:
        if isinstance(logger, OfRun):
            logger.of_run(identity_of(config, folder, data))
    _check_fits(module, settings, config.callbacks or {}, chosen, loggers)
    if is_job() and settings.get("devices") == 1 and settings.get("accelerator", "auto") in ("auto", "gpu", "cuda"):
        gpus = torch.cuda.device_count()
        if gpus > 1:  # jobs may run side by side
            settings["devices"] = [own_gpu(gpus)]
    wanted = settings.get("accelerator")
    if not torch.cuda.is_available() and (
        wanted == "cuda" or (wanted == "gpu" and not torch.backends.mps.is_available())
    ):
        raise must_be("trainer.accelerator", "auto or cpu, since PyTorch finds no GPU on this machine", wanted)
    trainer: L.Trainer = build(
        settings,
        "trainer",
        callbacks=[
            *first,
            *chosen,
            *last,
            *([Scalars()] if loggers else []),
            Checkpoints(folder, config.checkpoint_minutes),
        ],
        plugins=[WholeCheckpoints()],
        logger=loggers,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in chosen),
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    if trainer.world_size > 1:
        if not isinstance(trainer.strategy, Averaging):
            raise ConfigError(
                f"trainer.strategy must be one that averages the gradients of a search (trainer=ddp for GPUs, or "
                f"trainer=ddp_cpu) with {trainer.world_size} processes, got {config.trainer.get('strategy', 'auto')}"
            )
        if is_job():
            raise ConfigError(
                f"a job of a sweep must use one device (trainer.devices=1), got {trainer.world_size} processes, each of "
                "which would start the whole sweep; a single run, without --multirun, may use several"
            )
    return trainer


def _all(nodes: Any, key: str) -> list[Any]:
    """Return what the nodes below a key describe, without those that are null."""
    built = [build(node, f"{key}.{name}") for name, node in (nodes or {}).items()]
    return [thing for thing in built if thing is not None]


# What Lightning, or this code, would refuse once the run has begun, or do something else with than its user expects.
_REFUSED_SETTINGS = {
    "fast_dev_run": (False, "it leaves out checkpoints and callbacks; use debug=fdr"),
    "gradient_clip_val": (None, "set optimizer.gradient_clip"),
    "gradient_clip_algorithm": (None, "gradients are clipped by their norm, see optimizer.gradient_clip"),
}
_REFUSED_SETTINGS_OF_A_SEARCH = {
    "max_steps": (-1, "Lightning counts the steps of both optimisers, two a batch; set trainer.limit_train_batches"),
    "accumulate_grad_batches": (1, "a search steps weights and alphas in turn; set data.batch_size"),
}
_REFUSED_CALLBACKS_OF_A_SEARCH = (
    callbacks.StochasticWeightAveraging,
    callbacks.GradientAccumulationScheduler,
    callbacks.LearningRateFinder,
    callbacks.BatchSizeFinder,
)


def _check_fits(
    module: L.LightningModule,
    settings: Mapping[Any, Any],
    nodes: Mapping[Any, Any],
    chosen: Sequence[L.Callback],
    loggers: Sequence[Any],
) -> None:
    searches = not module.automatic_optimization
    refused = {**_REFUSED_SETTINGS, **(_REFUSED_SETTINGS_OF_A_SEARCH if searches else {})}
    for name, (default, reason) in refused.items():
        if settings.get(name) not in (None, default):
            raise ConfigError(f"trainer.{name}={show(settings[name])} is not supported: {reason}")
    guards = sum(isinstance(callback, Guard) for callback in chosen)
    if guards > 1:
        raise must_be("the number of guards among the callbacks", "1 or 0; one guard can watch several signals", guards)
    watching = watching_a_search(chosen)
    if watching and (not searches or isinstance(module, SelectModule)):
        raise ConfigError(f"callbacks: {watching[0]} watches a search, and this is none")
    for callback in chosen:
        kind = type(callback).__name__
        keys = ", ".join(f"callbacks.{name}" for name, node in nodes.items() if kind in str(node))
        if searches and isinstance(callback, _REFUSED_CALLBACKS_OF_A_SEARCH):
            raise ConfigError(
                f"{keys}: a search cannot use {kind}, which works with one optimiser that Lightning steps"
            )
        if isinstance(callback, callbacks.LearningRateMonitor) and not loggers:
            raise ConfigError(f"{keys}: {kind} needs a logger, such as logger=tensorboard")


def watching_a_search(chosen: Sequence[L.Callback]) -> list[str]:
    """Return in words which of some callbacks can only watch a search that trains."""
    kinds = {Guard: "a guard", Ranking: "a ranking"}
    return [words for kind, words in kinds.items() if any(isinstance(callback, kind) for callback in chosen)]


def check_optimizers(module: L.LightningModule) -> None:
    """Build the optimisers and the schedule once, so that what they do not take is refused before anything is written.

    Raises:
        ConfigError: they refuse a value, or the schedule needs a metric.
    """
    _, schedules = cast(tuple[Any, Any], module.configure_optimizers())
    if any(isinstance(schedule, ReduceLROnPlateau) for schedule in schedules):
        raise ConfigError("optimizer.schedule must be a function of the epoch, ReduceLROnPlateau needs a metric")


def count_params(module: nn.Module) -> int:
    """Return the number of weights in `module`."""
    return sum(parameter.numel() for parameter in module.parameters())


def input_dtype(data: DataModule) -> torch.dtype:
    """Return the type of the network's inputs."""
    return getattr(data, "input_dtype", torch.float32)


def count_macs(module: nn.Module, input_shape: Sequence[int], dtype: torch.dtype = torch.float32) -> int:
    """Return the multiply-adds of convolutions and linear layers for one sample of a shape and type."""
    training = module.training
    module.eval()
    parameter = next(module.parameters())
    with torch.no_grad(), plain_form(), FlopCounterMode(display=False) as counter:
        kind = parameter.dtype if dtype.is_floating_point else dtype
        module(torch.zeros(1, *input_shape, device=parameter.device, dtype=kind))
    module.train(training)
    return counter.get_total_flops() // 2
