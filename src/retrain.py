"""python -m src.retrain: train a genotype from scratch on the whole train split, and test it.

    python -m src.retrain genotype=runs/search/RUN                     what a search found
    python -m src.retrain genotype=runs/search/RUN/checkpoints/epoch_49.json
    python -m src.retrain genotype=runs/search/RUN init=search         from the weights of the search, not from scratch
    python -m src.retrain genotype=DARTS_V2                            what the paper found
    python -m src.retrain -m genotype=DARTS_V2 seed=0,1,2,3            the mean of several is what compares
    python -m src.retrain resume=runs/retrain/RUN                      resume a run that was stopped

A run's genotype is trained on the run's data, unless `data=...` names others, and as what its space names for it: the
paper's cells as the paper's network, any other space as itself, with its choices fixed.

The run's folder ends up with curves (metrics.csv), the architecture (genotype.json), a report (report.html) and a
record with the test accuracy (result.json).
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
from omegaconf import DictConfig
from torch import nn

from src.architectures.architecture import Architecture
from src.callbacks.record import EpochMetrics
from src.common.terminal import say
from src.data.modules import DataModule
from src.report import report_sweep, write_report
from src.runs.build import (
    build_data,
    build_evaluated,
    build_schedule,
    build_trainer,
    check_optimizers,
    circumstances,
    count_macs,
    count_params,
    input_dtype,
    record_of,
    split_training,
)
from src.runs.claim import claim, recorded
from src.runs.folder import RunFolder, genotype_in
from src.runs.launch import command_of_job, launch, mistakes
from src.runs.plan import say_plan
from src.runs.record import Record
from src.runs.searched import Weights, initial_weights, load_architecture, taken_from, with_searched_settings
from src.runs.summary import Opening, say_tested
from src.runs.targets import build, fit
from src.training.retrain import RetrainModule


def build_retrained(
    config: DictConfig, data: DataModule, architecture: Architecture | None, genotype: str, weights: Weights | None
) -> tuple[nn.Module, Architecture]:
    """Return the network that a genotype is trained as, and its architecture.

    Args:
        config: composed. `space._target_` names an evaluation network, or a space whose choices are fixed.
        data: what is trained on.
        architecture: of the evaluation network; None for a space, which reads the genotype itself.
        genotype: the path of its file.
        weights: of the space to start from; None starts from new ones.
    """
    L.seed_everything(config.seed, verbose=False)
    return build_evaluated(
        config.space,
        genotype,
        input_shape=data.input_shape,
        num_classes=data.task.outputs,
        architecture=architecture,
        weights=weights,
        **circumstances(config),
    )


def build_module(config: DictConfig, data: DataModule, network: nn.Module) -> RetrainModule:
    """Return the retrain module of a composed config: a network, and its optimiser."""
    _, training = split_training(config.space)
    return RetrainModule(
        network,
        task=data.task,
        optimizer=build(config.optimizer.weights, "optimizer.weights"),
        scheduler=build_schedule(config.optimizer.schedule),
        gradient_clip=config.optimizer.gradient_clip,
        seed=config.seed,
        graphs=config.get("graphs", False),  # older runs have saved no such setting
        **fit(RetrainModule, "space", training),
    )


def retrain(config: DictConfig, folder: Path) -> None:
    """Run one retrain into `folder`."""
    with mistakes():
        # A resumed run has its own genotype: the file that it began with may have changed since.
        files = RunFolder(folder)
        is_own = config.resume is not None and files.genotype.exists()
        genotype = str(files.genotype) if is_own else genotype_in(config.genotype)
        architecture = load_architecture(config.space, genotype)
        weights = None if config.resume is not None and files.last.exists() else initial_weights(config)
        data = build_data(config)
        network, architecture = build_retrained(config, data, architecture, genotype, weights)
        module = build_module(config, data, network)
        check_optimizers(module)
        record = Record(
            kind="retrain",
            command=command_of_job("retrain"),
            seed=config.seed,
            data=record_of(data),
            architecture=architecture,
            params=count_params(module.net),
            macs=count_macs(module.net, data.input_shape, input_dtype(data)),
        )
        if config.get("plan"):
            say_plan(config, record, module, data)
            return
        metrics, opening = EpochMetrics(folder), Opening(folder, record)
        trainer = build_trainer(config, folder, module, data=data.record()["name"], first=[opening], last=[metrics])
        run = claim(folder, config, record, trainer, module)
    taken = None if config.resume is not None else taken_from(config)
    if taken is not None and run.is_first:
        say(taken)
    with recorded(run):
        if run.is_first:
            architecture.write(files.genotype)
        run.fit(module, data)
        record.metrics = metrics.after()
        trainer.test(module, datamodule=data, verbose=False)
        record.metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        record.data["test_samples"] = opening.tested
    if run.is_first:
        say_tested(run, data.task.metric, opening.tested, write_report(folder))


def main() -> int:
    """Run the command; return its exit code."""
    return launch("retrain", retrain, with_searched_settings, after_sweep=report_sweep)


if __name__ == "__main__":
    sys.exit(main())
