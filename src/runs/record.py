"""The record that every run leaves, whatever happens to it: one `result.json`."""

from __future__ import annotations

import functools
import json
import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torchvision
from omegaconf import DictConfig, OmegaConf

from src.architectures.architecture import Architecture
from src.common.files import write_whole
from src.runs.folder import RunFolder


@dataclass
class Record:
    """What `result.json` says of a run; the command fills it in during the run."""

    kind: str
    command: str
    """It starts a run with the present settings."""
    seed: int
    order: int | None = None
    method: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    params: int | None = None
    macs: int | None = None
    epochs: int = 0
    """How many were trained."""
    stopped_by: str | None = None
    """What ended the training before its last epoch."""
    metrics: dict[str, float] = field(default_factory=dict)
    architecture: Architecture | None = None
    remark: str | None = None
    """What a user has to know of how the architecture was derived."""
    machine: dict[str, Any] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    """Those that started and resumed the run, as they were typed."""
    planned_epochs: int | None = None
    architecture_epoch: int | None = None
    """The epoch of a search, counted from 0, after which the architecture was derived, and of which the metrics are."""
    guard: dict[str, Any] | None = None
    """What the guard of a search has measured and done."""
    table: str | None = None
    """The data that architectures were trained on for the table that a search looks its own up in."""


def record_refusal(folder: Path, kind: str, command: str, config: DictConfig, error: str) -> None:
    """Write a `result.json` for a refused job of a sweep, unless the folder holds another run."""
    files = RunFolder(folder)
    if not (files.result.exists() or files.config.exists()):
        record = Record(
            kind=kind,
            command=command,
            commands=[command],
            seed=config.seed,
            order=config.get("order"),
            method=OmegaConf.select(config, "method.name"),
            planned_epochs=config.epochs,
        )
        write_result(folder, record, "failed", error, 0.0)


def write_result(folder: Path, record: Record, status: str, error: str | None, seconds: float) -> dict[str, Any]:
    """Write `result.json`, whole or not at all, and return what it holds."""
    result = {
        "status": status,
        "error": error,
        "kind": record.kind,
        "command": record.command,
        "commands": record.commands,
        "seed": record.seed,
        "order": record.order,
        "method": record.method,
        "epochs": record.epochs,
        "planned_epochs": record.planned_epochs,
        "stopped_by": record.stopped_by,
        "data": record.data,
        "metrics": record.metrics,
        "genotype": record.architecture.to_plain() if record.architecture else None,
        "architecture_epoch": record.architecture_epoch,
        "guard": record.guard,
        "table": record.table,
        "remark": record.remark,
        "params": record.params,
        "macs": record.macs,
        "seconds": round(seconds, 3),
        "machine": record.machine,
        "versions": versions(),
        "git_commit": git_commit(),
    }
    write_whole(RunFolder(folder).result, json.dumps(result, indent=2) + "\n")
    return result


def versions() -> dict[str, str]:
    """Return the versions of Python and the libraries that compute."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "lightning": L.__version__,
    }


@functools.cache  # it is that of the code which this process has read
def git_commit() -> str | None:
    """Return the commit of this code, with `-dirty` if files differ from it, or None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def status_of(folder: Path) -> str | None:
    """Return the status in a run's `result.json`, or None if there is none that can be read."""
    try:
        return str(json.loads(RunFolder(folder).result.read_bytes())["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
