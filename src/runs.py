"""The folder of a run: claimed before it starts, and left with one `result.json`, whatever happens to the run."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
import torchvision
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from src import kernels
from src.architecture import Architecture
from src.callbacks.checkpoint import Checkpoints
from src.checkpoints import WholeCheckpoints, newest
from src.errors import Diverged, Interrupted, unknown
from src.files import lock_file, write_whole
from src.resume import SETTINGS, read_settings, settings_text
from src.spaces.batch_norm import synchronise
from src.training.parallel import Averaging

RESULT, LOCK = "result.json", ".lock"
IMPLEMENTATIONS = ("fused", "reference")  # of space.impl
FUSED_FORMS = {
    "src.spaces.cells.Supernet": "src.spaces.fused.FusedSupernet",
    "src.spaces.network.Network": "src.spaces.fused.FusedNetwork",
}


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


def _is_first_process() -> bool:
    # As the environment says: the commands ask before the processes are joined, too.
    return rank_zero_only.rank == 0  # pyright: ignore[reportFunctionMemberAccess]


class RunFailed(Exception):
    """A run ended for a reason that is known and said in one line; `result.json` has it, too."""


@dataclass
class Run:
    """A folder that is this process's own, and the checkpoint to go on from, if it goes on.

    Of several processes the first alone writes into the folder and holds its lock.
    """

    folder: Path
    config: DictConfig
    record: Record
    trainer: L.Trainer
    checkpoint: Path | None = None
    lock: int | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process is the first of the run: always, unless the run has several."""
        return _is_first_process()


def claim(folder: Path, config: DictConfig, record: Record, trainer: L.Trainer, module: L.LightningModule) -> Run:
    """Make a folder this run's own by locking it and writing `config.yaml` into it, or take up the run in it.

    Raises:
        ValueError: another process is at it; or it already holds a run, and `config.resume` does not ask to go on with
            it; or it does, and there is nothing to go on from, or nothing left to do.
    """
    run = Run(folder, config, record, trainer)
    if run.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        run.lock = lock_file(folder / LOCK)
        if run.lock is None:
            raise ValueError(f"{folder} is in use by another process, allowed is a folder of its own (folder=...)")
    try:
        if config.resume is None:
            for name, what in ((RESULT, "a finished run"), (SETTINGS, "a run that was begun")):
                if run.is_first and (folder / name).exists():
                    raise ValueError(
                        f"{folder} already holds {what} ({name}), allowed are a folder without one (folder=...) and "
                        f"resume={folder}"
                    )
        else:
            _, record.command = read_settings(folder)
            found = newest(folder / "checkpoints", module)
            if found is not None:
                run.checkpoint, checkpoint = found
                _check_can_go_on(folder, checkpoint, trainer)
        if run.is_first:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            (folder / RESULT).unlink(missing_ok=True)
            write_whole(folder / SETTINGS, settings_text(config, record.command))
    except BaseException:
        _unlock(run)
        raise
    return run


def _check_can_go_on(folder: Path, checkpoint: dict[str, Any], trainer: L.Trainer) -> None:
    begun_by = len(checkpoint["epoch_sums"])
    if begun_by not in (0, trainer.world_size):
        raise ValueError(
            f"the checkpoint in {folder} was written within an epoch by {begun_by} process(es), not {trainer.world_size}, "
            f"allowed are as many to go on (trainer.devices={begun_by})"
        )
    if status_of(folder) == "ok" and trainer.max_epochs is not None and checkpoint["epoch"] + 1 >= trainer.max_epochs:
        raise ValueError(
            f"{folder} has finished its {trainer.max_epochs} epochs, allowed is epochs={trainer.max_epochs + 1} or more"
        )


def status_of(folder: Path) -> str | None:
    """Return the status that a run's `result.json` says, or None if it has none that can be read."""
    try:
        return str(json.loads((folder / RESULT).read_bytes())["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _unlock(run: Run) -> None:
    if run.lock is not None:
        with suppress(OSError):
            (run.folder / LOCK).unlink()
        os.close(run.lock)
        run.lock = None


@contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Write `result.json` once, at the end of the block: status `ok`, `failed` or `interrupted`.

    Raises:
        SystemExit: the run was interrupted; the exit code is 128 and the signal's number.
        RunFailed: it failed for a reason that is known.
    """

    def write(status: str, error: str | None) -> None:
        if run.is_first:
            (clock,) = (callback for callback in run.trainer.callbacks if isinstance(callback, Checkpoints))  # pyright: ignore[reportAttributeAccessIssue]
            write_result(run.folder, run.record, status, error, clock.seconds)

    try:
        yield
        write("ok", None)
    except (Interrupted, KeyboardInterrupt, SystemExit) as stop:  # Lightning turns a KeyboardInterrupt into SystemExit
        number = stop.signal_number if isinstance(stop, Interrupted) else signal.SIGINT
        go_on = f"python -m src.{run.record.kind} resume={run.folder}"
        write("interrupted", f"stopped by {signal.Signals(number).name}; to go on: {go_on}")
        if run.is_first:
            print(f"stopped; to go on: {go_on}", file=sys.stderr)
        raise SystemExit(128 + number) from stop
    except BaseException as failure:
        known = reason(failure, run.config)
        error = known or " ".join("".join(traceback.format_exception_only(failure)).split())
        try:
            write("failed", error)
        except OSError as another:
            raise RunFailed(f"{error}; {RESULT} cannot be written either: {another.strerror}") from failure
        if known:
            raise RunFailed(known) from failure
        raise
    finally:
        _unlock(run)


def reason(failure: BaseException, config: DictConfig) -> str | None:
    """Return in one line why a run failed and what would help, for the failures that are nobody's mistake in code."""
    text = " ".join(str(failure).split())
    if isinstance(failure, Diverged):
        return text
    if isinstance(failure, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        size = config.data.batch_size
        return (
            f"out of memory with data.batch_size={size}, space.channels={config.space.get('channels')}; "
            f"data.batch_size={max(1, size // 2)} takes about half"
        )
    if isinstance(failure, OSError):
        return f"cannot write {failure.filename or 'a file of the run'}: {failure.strerror or text}"
    return None


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
    if not any((folder / name).exists() for name in (RESULT, SETTINGS)):
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
    write_whole(folder / RESULT, json.dumps(result, indent=2) + "\n")


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
        if target not in FUSED_FORMS:
            print(f"space.impl=fused: {target} has no fused form, its own is used", file=sys.stderr)
        elif differentiated_twice:
            print(
                "space.impl=fused: an exact hypergradient differentiates twice, the reference is used", file=sys.stderr
            )
        else:
            settings["_target_"] = FUSED_FORMS[target]
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
        ValueError: several processes without the strategy that averages, or in a job of a sweep.
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
            raise ValueError(
                f"{trainer.world_size} processes with trainer.strategy={config.trainer.strategy}, allowed are "
                "trainer=ddp (GPUs) and trainer=ddp_cpu, which average the gradients of a search"
            )
        if sweeps:
            raise ValueError(
                f"a job of a sweep on {trainer.world_size} processes would start the whole sweep in each of them, "
                "allowed is one device a job (trainer.devices=1), or one run without --multirun"
            )
    return trainer


_gpu_lock: int | None = None


def own_gpu(count: int) -> int:
    """Return the number of a GPU that no other job of a sweep on this machine has; it is this process's until it ends
    or asks again.

    Raises:
        ValueError: all `count` GPUs are taken.
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
    raise ValueError(
        f"all {count} GPUs have a job of a sweep, allowed are as many jobs at once (hydra.launcher.n_jobs={count})"
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
    with torch.no_grad(), kernels.disabled(), FlopCounterMode(display=False) as counter:
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
