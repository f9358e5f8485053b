"""From a composed config to objects: data, network, trainer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from lightning.pytorch.callbacks import ProgressBar
from omegaconf import DictConfig
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from src.callbacks.checkpoint import Checkpoints
from src.common.batch_norm import synchronise
from src.common.errors import ConfigError, unknown
from src.fast import kernels
from src.fast.forms import fused_form
from src.runs.checkpoints import WholeCheckpoints
from src.runs.devices import own_gpu
from src.training.parallel import Averaging

IMPLEMENTATIONS = ("fused", "reference")  # of space.impl

Data = TypeVar("Data", bound=L.LightningDataModule)


def build_data(kind: type[Data], config: DictConfig) -> Data:
    """Return the data module of a composed config, with its train split read and cut."""
    data = kind(**{**config.data, "source": instantiate(config.data.source)}, seed=config.seed)
    data.setup("fit")
    return data


def build_network(space: dict[str, Any], *, differentiated_twice: bool = False, **arguments: Any) -> nn.Module:
    """Return the network of a config's `space`, in the form that `space.impl` asks for; say where it cannot be had."""
    settings = dict(space)
    impl, target = settings.pop("impl", None), settings["_target_"]
    if impl not in (None, *IMPLEMENTATIONS):
        raise unknown("form in space.impl:", impl, IMPLEMENTATIONS)
    if impl == "fused":
        fused = fused_form(get_object(target))
        if fused is None:
            print(f"space.impl=fused: {target} has no fused form, its own is used", file=sys.stderr)
        elif differentiated_twice:
            print(
                "space.impl=fused: an exact hypergradient differentiates twice, the reference is used", file=sys.stderr
            )
        else:
            settings["_target_"] = f"{fused.__module__}.{fused.__qualname__}"
    return instantiate(settings, **arguments)


def build_trainer(
    config: DictConfig,
    folder: Path,
    module: L.LightningModule,
    *,
    first: Sequence[L.Callback] = (),
    last: Sequence[L.Callback] = (),
) -> L.Trainer:
    """Return the trainer of a composed config; callbacks run in the order `first`, the config's, `last`, checkpoints.

    With `trainer.sync_batchnorm`, the BatchNorms in `module` take the joined batch of all processes from now on.

    Raises:
        ConfigError: several processes without the strategy that averages, or in a job of a sweep.
    """
    chosen = [instantiate(callback) for callback in (config.callbacks or {}).values()]
    settings = dict(config.trainer)
    if settings.pop("sync_batchnorm", False):
        synchronise(module)
    sweeps = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if sweeps and settings["devices"] == 1 and settings["accelerator"] in ("auto", "gpu", "cuda"):
        gpus = torch.cuda.device_count()
        if gpus > 1:  # jobs may run side by side
            settings["devices"] = [own_gpu(gpus)]
    trainer: L.Trainer = instantiate(
        settings,
        callbacks=[*first, *chosen, *last, Checkpoints(folder, config.checkpoint_minutes)],
        plugins=[WholeCheckpoints()],
        logger=[instantiate(logger) for logger in (config.logger or {}).values()],
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in chosen),
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    if trainer.world_size > 1:
        if not isinstance(trainer.strategy, Averaging):
            raise ConfigError(
                f"{trainer.world_size} processes with trainer.strategy={config.trainer.strategy}, allowed are "
                "trainer=ddp (GPUs) and trainer=ddp_cpu, which average the gradients of a search"
            )
        if sweeps:
            raise ConfigError(
                f"a job of a sweep on {trainer.world_size} processes would start the whole sweep in each of them, "
                "allowed is one device a job (trainer.devices=1), or one run without --multirun"
            )
    return trainer


def check_optimizers(module: L.LightningModule) -> None:
    """Raise a `ConfigError` for settings that the optimisers or schedules do not take, before anything is written."""
    try:
        module.configure_optimizers()
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:  # torch's own words for a key, or a value, that it does not take
        raise ConfigError(
            f"optimizer.weights, optimizer.schedule or optimizer.alphas does not fit its _target_: {error}"
        ) from error


def count_params(module: nn.Module) -> int:
    """Return the number of weights in `module`."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Return the multiply-adds of convolutions and linear layers for one sample of a shape."""
    training = module.training
    module.eval()
    parameter = next(module.parameters())
    with torch.no_grad(), kernels.disabled(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype))
    module.train(training)
    return counter.get_total_flops() // 2
