"""The folder of a run: claimed before it starts, and left with one `result.json`, whatever happens to the run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torchvision
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from src.architecture import Architecture
from src.files import write_whole

INTERRUPTED = 130  # the exit code of a command that Ctrl-C ended


@dataclass
class Record:
    """What `result.json` says of a run; the command fills it in while the run goes on."""

    kind: str
    command: str
    seed: int
    order: int | None = None
    data: dict[str, Any] = field(default_factory=dict)
    params: int | None = None
    macs: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    architecture: Architecture | None = None


def claim(folder: Path, config: DictConfig) -> None:
    """Make a folder this run's own by writing `config.yaml` into it.

    Raises:
        ValueError: the folder already holds a run.
    """
    for name, what in (("result.json", "a finished run"), ("config.yaml", "a run that was begun")):
        if (folder / name).exists():
            raise ValueError(f"{folder} already holds {what} ({name}), allowed is a folder without one (folder=...)")
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))


@contextmanager
def recorded(folder: Path, record: Record) -> Iterator[None]:
    """Write `result.json` once, at the end of the block: status `ok`, `failed` or `interrupted`."""
    start = time.monotonic()
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as signal:  # Lightning turns Ctrl-C within fit into SystemExit
        write_result(folder, record, "interrupted", "stopped by the user", time.monotonic() - start)
        raise SystemExit(INTERRUPTED) from signal
    except BaseException as failure:
        error = " ".join("".join(traceback.format_exception_only(failure)).split())
        write_result(folder, record, "failed", error, time.monotonic() - start)
        raise
    write_result(folder, record, "ok", None, time.monotonic() - start)


@contextmanager
def own_loggers() -> Iterator[None]:
    """End the job's W&B run with the job: W&B keeps it, and its mode, in the process, where the next job would find them."""
    mode = os.environ.get("WANDB_MODE")
    try:
        yield
    finally:
        wandb = sys.modules.get("wandb")  # there only if the job used it
        if wandb is not None and wandb.run is not None:
            wandb.finish()
        if mode is None:
            os.environ.pop("WANDB_MODE", None)
        else:
            os.environ["WANDB_MODE"] = mode


def record_refusal(folder: Path, kind: str, command: str, config: DictConfig, error: str) -> None:
    """Leave a `result.json` for a job of a sweep that was refused, unless the folder holds another run's."""
    if not any((folder / name).exists() for name in ("result.json", "config.yaml")):
        record = Record(kind=kind, command=command, seed=config.seed, order=config.get("order"))
        write_result(folder, record, "failed", error, 0.0)


def write_result(folder: Path, record: Record, status: str, error: str | None, seconds: float) -> None:
    """Write `result.json`, whole or not at all."""
    result = {
        "status": status,
        "error": error,
        "kind": record.kind,
        "command": record.command,
        "seed": record.seed,
        "order": record.order,
        "data": record.data,
        "metrics": record.metrics,
        "genotype": record.architecture.to_plain() if record.architecture else None,
        "params": record.params,
        "macs": record.macs,
        "seconds": round(seconds, 3),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    write_whole(folder / "result.json", json.dumps(result, indent=2) + "\n")


def build_trainer(
    config: DictConfig, folder: Path, *, first: Sequence[L.Callback] = (), last: Sequence[L.Callback] = ()
) -> L.Trainer:
    """Return the trainer of a composed config; callbacks run in the order `first`, the config's, `last`, checkpoint."""
    chosen = [instantiate(callback) for callback in (config.callbacks or {}).values()]
    checkpoint = ModelCheckpoint(
        folder / "checkpoints",
        filename="last",
        save_top_k=1,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    return instantiate(
        config.trainer,
        callbacks=[*first, *chosen, *last, checkpoint],
        logger=[instantiate(logger) for logger in (config.logger or {}).values()],
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in chosen),
        enable_model_summary=False,
        default_root_dir=str(folder),
    )


def check_optimizers(module: L.LightningModule) -> None:
    """Raise a `ValueError` for settings that the optimisers or schedules do not take, before anything is written."""
    try:
        module.configure_optimizers()
    except TypeError as error:
        raise ValueError(
            f"optimizer.weights, optimizer.schedule or optimizer.alphas does not fit its _target_: {error}"
        ) from error


def count_params(module: nn.Module) -> int:
    """Return the number of weights in `module`."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Return the multiply-adds of convolutions and linear layers for one image of shape (C, H, W)."""
    training = module.training
    module.eval()
    parameter = next(module.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype))
    module.train(training)
    return counter.get_total_flops() // 2


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "lightning": L.__version__,
    }


def git_commit() -> str | None:
    """Return the commit of this code, with `-dirty` where files differ from it, or None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
