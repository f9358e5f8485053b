"""What loggers are told of a run besides its scalars: what it is called, its settings, what came of it."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from src.architectures.architecture import Architecture
from src.callbacks.alphas import architecture_text
from src.callbacks.loggers import Identity
from src.common.processes import rank
from src.common.shell import shell_word
from src.runs.folder import RunFolder, genotype_in, read_wandb
from src.runs.record import Record, git_commit, versions
from src.runs.saved import score_of
from src.runs.searched import run_of
from src.runs.sweeps import is_job
from src.runs.targets import plain
from src.spaces.cnn.genotypes import NAMED_GENOTYPES

ARTIFACT = "genotype"  # the type of the artifact that a search leaves and a retrain uses
_IN_THE_NAME = ("order", "seed", "data", "method", "genotype")  # settings that a run's name has


def identity_of(config: DictConfig, folder: Path, data: str) -> Identity:
    """Return what a run is called in Weights & Biases, such as `search-o2-s0-digits`, and in which group it is.

    The jobs of a sweep are a group by the name of the sweep's folder; their names end with what else the folder's
    name says of the job.

    Args:
        config: composed.
        folder: of the run.
        data: the name of the data.
    """
    kind = "retrain" if "genotype" in config else "select" if "searched" in config else "search"
    data = data.partition(":")[0]
    method = OmegaConf.select(config, "method.name")
    parts = [kind, *([f"o{config.order}"] if "order" in config else []), f"s{config.seed}", data]
    parts += [method] if method not in (None, "darts") else []
    tags = [kind, data, *([f"order {config.order}", str(method)] if "order" in config else [])]
    if kind == "retrain":
        parts.append(_short(config.genotype))
    if not is_job():
        return Identity(folder, "-".join(parts), kind, None, tuple(tags))
    # The name of a job's folder says what sets it apart (`order=2,space.channels=8`), or is its number.
    further = [part for part in folder.name.split(",") if part.partition("=")[0] not in _IN_THE_NAME]
    group = Path(HydraConfig.get().sweep.dir).absolute().name
    return Identity(folder, "-".join([*parts, *further])[:128], kind, group, tuple(tags))


def begin(loggers: Iterable[Logger], folder: Path, config: DictConfig, record: Record) -> None:
    """Tell the loggers a run's settings, composed and resolved, and what is known of it before it trains."""
    loggers = list(loggers)
    if rank() > 0 or not loggers:
        return
    settings: dict[str, Any] = {str(key): plain(config[key]) for key in config if key not in ("resume", "sweep")}
    settings |= {
        "kind": record.kind,
        "command": record.command,
        "folder": str(folder.absolute()),
        "params": record.params,
        "macs": record.macs,
        "data_record": record.data,
        "machine": record.machine,
        "versions": versions(),
        "git_commit": git_commit(),
    }
    origin = _genotype_origin(str(config.genotype), folder) if record.kind == "retrain" else None
    if origin is not None:
        settings["genotype_origin"] = origin
    for logger in loggers:
        logger.log_hyperparams(settings)
        if origin is not None and isinstance(logger, WandbLogger) and not logger.experiment.offline:
            # Weights & Biases finds an artifact by its name and content: this is the one that the search has logged.
            logger.experiment.use_artifact(_artifact(origin["artifact"], Path(origin["path"]), origin))


def finish(loggers: Iterable[Logger], folder: Path, result: dict[str, Any]) -> None:
    """Tell the loggers what came of a run: `result`, as result.json has it, and the genotype that a search has found."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            score = score_of(result["metrics"])
            if score is not None:
                logger.log_metrics({"hp_metric": score.value})
                logger.save()
        elif isinstance(logger, WandbLogger):
            _finish_wandb(logger, folder, result)


def _finish_wandb(logger: WandbLogger, folder: Path, result: dict[str, Any]) -> None:
    run = logger.experiment
    answers = result["genotype"]
    told = ("status", "epochs", "architecture_epoch", "params", "macs", "seconds", "error", "stopped_by")
    facts = {name: result[name] for name in told}
    facts["genotype"] = architecture_text(Architecture(answers)) if answers else None
    run.summary.update({name: value for name, value in {**facts, **result["metrics"]}.items() if value is not None})
    path = RunFolder(folder).genotype
    if result["kind"] != "retrain" and result["status"] == "ok" and path.exists():
        origin = {name: result[name] for name in ("order", "method", "seed", "metrics", "command")}
        run.log_artifact(_artifact(f"{ARTIFACT}-{run.id}", path, origin), aliases=["final"])
    where = f"kept here; to upload it: wandb sync {shell_word(str(Path(run.dir).parent))}" if run.offline else run.url
    print(f"wandb:    {where}")


def _genotype_origin(genotype: str, folder: Path) -> dict[str, Any]:
    """Return where the genotype of a retrain comes from, and the name of its artifact in Weights & Biases."""
    run = run_of(genotype)
    path = Path(genotype_in(genotype)) if run is not None else RunFolder(folder).genotype
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    wandb_run = None if run is None else read_wandb(run).get("id")
    return {
        "given": genotype,
        "path": str(path.absolute()),
        "sha256": digest,
        "wandb_run": wandb_run,
        "artifact": f"{ARTIFACT}-{wandb_run or digest[:12]}",
    }


def _artifact(name: str, path: Path, metadata: dict[str, Any]) -> Any:
    import wandb  # noqa: PLC0415 (slow, and only here)

    artifact = wandb.Artifact(name, type=ARTIFACT, metadata=metadata)
    artifact.add_file(str(path), name=RunFolder("").genotype.name)
    return artifact


def _short(genotype: str) -> str:
    """Return a short name for what a retrain was given as its genotype."""
    if genotype in NAMED_GENOTYPES:
        return genotype
    run = run_of(genotype)
    if run is None:
        return Path(genotype).stem[:40] if os.path.exists(genotype) else "genotype"
    last = run.path.absolute().name
    return (
        last if os.path.isdir(genotype) or Path(genotype).name == run.genotype.name else f"{last}-{Path(genotype).stem}"
    )


@contextmanager
def own_loggers() -> Iterator[None]:
    """End a job's run of Weights & Biases with the job: `wandb` keeps it in the process, where the next job finds it.

    So it does with WANDB_MODE, which Lightning's own WandbLogger sets.
    """
    mode = os.environ.get("WANDB_MODE")
    failed = True
    try:
        yield
        failed = False
    finally:
        wandb = sys.modules.get("wandb")  # there only if the job used it
        if wandb is not None and wandb.run is not None:
            wandb.finish(exit_code=int(failed))
        if mode is None:
            os.environ.pop("WANDB_MODE", None)
        else:
            os.environ["WANDB_MODE"] = mode
