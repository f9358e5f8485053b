"""python -m src.retrain: train a genotype from scratch on the whole train split, and test it.

    python -m src.retrain genotype=runs/search/RUN                     what a search found
    python -m src.retrain genotype=runs/search/RUN/checkpoints/epoch_49.json
    python -m src.retrain genotype=DARTS_V2                            what the paper found
    python -m src.retrain -m genotype=DARTS_V2 seed=0,1,2,3            the mean of several is what compares
    python -m src.retrain resume=runs/retrain/RUN                      go on with a run that was stopped

The run's folder ends up with curves (metrics.csv), the architecture (genotype.json), a report (report.html) and a
record with the test accuracy (result.json).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, OmegaConf

from src.architectures.architecture import Architecture
from src.callbacks.record import EpochMetrics
from src.data.modules import RetrainData
from src.report import write_report
from src.runs.build import (
    RETRAIN_KEYS,
    build_data,
    build_network,
    build_schedule,
    build_trainer,
    check_optimizers,
    count_macs,
    count_params,
)
from src.runs.claim import claim, recorded
from src.runs.folder import RunFolder, genotype_in
from src.runs.launch import command_of_job, launch, mistakes
from src.runs.record import Record
from src.runs.targets import build, fit, plain
from src.spaces.cnn.formats import load_cells
from src.spaces.cnn.operations import import_operations
from src.training.retrain import RetrainModule


def build_module(config: DictConfig, data: RetrainData, architecture: Architecture) -> RetrainModule:
    """Return the retrain module of a composed config: the network of an architecture, and its optimiser."""
    L.seed_everything(config.seed, verbose=False)
    network: dict[str, Any] = plain(config.space)
    training = fit(RetrainModule, "space", {name: network.pop(name) for name in RETRAIN_KEYS if name in network})
    return RetrainModule(
        build_network(network, architecture=architecture, input_shape=data.input_shape, num_classes=data.num_classes),
        task=data.task,
        optimizer=build(config.optimizer.weights, "optimizer.weights"),
        scheduler=build_schedule(config.optimizer.schedule),
        gradient_clip=config.optimizer.gradient_clip,
        seed=config.seed,
        **training,
    )


def retrain(config: DictConfig, folder: Path) -> None:
    """Run one retrain into `folder`."""
    with mistakes():
        # A run that goes on has its own genotype: the file it began with may have changed since.
        own = RunFolder(folder).genotype
        import_operations(OmegaConf.select(config, "space.operations", default=()))
        architecture = load_cells(
            str(own) if config.resume is not None and own.exists() else genotype_in(config.genotype)
        )
        data = build_data(config)
        module = build_module(config, data, architecture)
        check_optimizers(module)
        metrics = EpochMetrics(folder)
        trainer = build_trainer(config, folder, module, last=[metrics])
        record = Record(
            kind="retrain",
            command=command_of_job("retrain"),
            seed=config.seed,
            data=data.record(),
            architecture=architecture,
            params=count_params(module.net),
            macs=count_macs(module.net, data.input_shape),
        )
        run = claim(folder, config, record, trainer, module)
    with recorded(run):
        if run.is_first:
            architecture.write(RunFolder(folder).genotype)
        run.fit(module, data)
        record.metrics = metrics.latest()
        trainer.test(module, datamodule=data, verbose=False)
        record.metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    if run.is_first:
        print(f"test accuracy: {record.metrics['test_accuracy']:.2%}")
        print(f"report:        {write_report(folder)}")


def main() -> int:
    """Run the command; return its exit code."""
    return launch("retrain", retrain)


if __name__ == "__main__":
    sys.exit(main())
