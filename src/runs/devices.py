"""Which devices a run may use, and what its last digits depend on."""

from __future__ import annotations

import math
import os
import platform
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch

from src.common.errors import ConfigError
from src.common.files import lock_file

DEVICE = "cpu or cuda (default: cuda where there is one)"  # the help of an option --device
_gpu_lock: int | None = None


def own_gpu(count: int) -> int:
    """Return the number of a GPU that no other job of a sweep on this machine uses.

    The GPU belongs to this process until it ends or asks again.

    Raises:
        ConfigError: all `count` GPUs are in use.
    """
    global _gpu_lock  # noqa: PLW0603
    if _gpu_lock is not None:
        os.close(_gpu_lock)
        _gpu_lock = None
    user = getattr(os, "getuid", int)()  # Windows has a temporary folder for each user
    for index in range(count):
        _gpu_lock = lock_file(Path(tempfile.gettempdir()) / f"darts-gpu-{user}-{index}.lock")
        if _gpu_lock is not None:
            return index
    raise ConfigError(f"all {count} GPUs are in use by jobs of a sweep; hydra.launcher.n_jobs must be {count} or fewer")


def say_threads(outside: int) -> None:
    """Say so if this process, in which a launcher runs a job, has another number of threads than the command."""
    inside = torch.get_num_threads()
    if inside != outside:
        print(
            f"this job has {inside} thread(s), the command that started it {outside}: results differ in the last digits from "
            "those of the same seed run alone (OMP_NUM_THREADS sets both)",
            file=sys.stderr,
        )


def machine(trainer: L.Trainer) -> dict[str, Any]:
    """Return what the last digits of a run's results depend on besides its settings, in primitives."""
    device = trainer.strategy.root_device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {_cpu_name()}",
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def resident(what: str) -> int:
    """Return this process's resident memory in bytes, now (`VmRSS`) or at most since `reset_peak_memory` (`VmHWM`).

    Not by getrusage: its maximum outlives exec, so that a new process begins with that of the one that started it.

    Raises:
        OSError: this is not Linux.
    """
    return _kibibytes(Path("/proc/self/status"), what)


def reset_peak_memory(device: torch.device) -> None:
    """Let the peak of memory begin anew, where it can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Wait for a device, and return the peak of its memory in bytes; of this process's for a CPU; None if not known."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_reserved(device)
    try:
        return resident("VmHWM")
    except OSError:
        return None


def memory_limit(device: torch.device) -> int | None:
    """Return how many bytes the peak of memory can be, given what other processes use; None if not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    try:
        return resident("VmRSS") + int(min(_kibibytes(Path("/proc/meminfo"), "MemAvailable"), _left_in_group()))
    except OSError:
        return None


def _kibibytes(path: Path, name: str) -> int:
    """Return the bytes that a line `name: count kB` of a file in /proc tells."""
    (line,) = (line for line in path.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _left_in_group(group: Path = Path("/sys/fs/cgroup")) -> float:
    """Return how many bytes the limit of a container leaves, as version 2 of cgroups shows it within the container."""
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        files = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return math.inf
    return math.inf if limit == "max" else int(limit) - used + int(files.get("inactive_file", 0))


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def device_type(accelerator: Any) -> str:
    """Return the type of device that a Trainer's argument `accelerator` names: `cpu`, `cuda`, or what it says itself."""
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda" if accelerator == "gpu" else str(accelerator)


def device_of(name: str | None) -> torch.device:
    """Return the device that an option `--device` names; None is a GPU where there is one.

    Raises:
        ConfigError: there is no such device.
    """
    has_gpu = torch.cuda.is_available()
    name = name or ("cuda" if has_gpu else "cpu")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"--device must be cpu or cuda, got {name}")
    if name == "cuda" and not has_gpu:
        raise ConfigError("--device must be cpu, since PyTorch finds no CUDA device on this machine, got cuda")
    return torch.device(name)
