"""What a run leaves behind: one `result.json`, whatever happens to it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torchvision
from omegaconf import DictConfig

from src.architectures.architecture import Architecture
from src.common.files import write_whole
from src.runs.folder import RunFolder


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
    files = RunFolder(folder)
    if not (files.result.exists() or files.config.exists()):
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
    write_whole(RunFolder(folder).result, json.dumps(result, indent=2) + "\n")


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


def status_of(folder: Path) -> str | None:
    """Return the status that a run's `result.json` says, or None if it has none that can be read."""
    try:
        return str(json.loads(RunFolder(folder).result.read_bytes())["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
