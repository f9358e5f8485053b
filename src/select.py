"""python -m src.select: select an architecture from a finished search by perturbation, DARTS-PT.

    python -m src.select resume=runs/search/RUN                        from the supernet of a search
    python -m src.select resume=runs/search/RUN criterion=loss seed=1  by the loss, in another random order
    python -m src.select resume=runs/select/RUN                        resume a selection that was stopped
    python -m src.retrain genotype=runs/select/RUN                     train what it selected

Choice by choice in random order, it leaves out each candidate in turn, keeps the one without which the supernet is worst,
and tunes the supernet before the next round (src/methods/selection.py). The search stays as it is. The selection has a
folder of its own with the decisions and their scores (decisions.csv), the architecture (genotype.json), curves, a report
(report.html) and a record (result.json).
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
from omegaconf import DictConfig

from src.callbacks.record import EpochAlphas, EpochMetrics
from src.callbacks.selection import SelectionFiles
from src.data.modules import DataModule
from src.methods.schedules import Progress
from src.report import report_sweep, write_report
from src.runs.build import build_data, build_trainer, check_optimizers
from src.runs.claim import claim, recorded
from src.runs.folder import RunFolder
from src.runs.launch import launch, mistakes
from src.runs.searched import load_searched, search_to_select_from, with_settings_to_select
from src.runs.summary import Opening, say_selected
from src.runs.targets import build
from src.search import build_space, record_of_training, settings_of_steps
from src.training.search import check_precision
from src.training.select import SelectModule, tuning_epochs


def build_module(config: DictConfig, data: DataModule) -> SelectModule:
    """Return the module of a composed config, and set its number of epochs, which depends on the space."""
    L.seed_everything(config.seed, verbose=False)
    hypergradient = build(config.hypergradient, "hypergradient")
    space = build_space(config, data, differentiated_twice=hypergradient.differentiates_twice)
    config.epochs = tuning_epochs(space, config.tune_epochs)
    return SelectModule(
        space,
        method=build(config.method, "method"),
        criterion=config.criterion,
        tune_epochs=config.tune_epochs,
        train_alphas=config.train_alphas,
        progress=Progress(config.searched.epochs - 1, config.searched.epochs),
        hypergradient=hypergradient,
        **settings_of_steps(config, data),
    )


def select(config: DictConfig, folder: Path) -> None:
    """Run one selection into `folder`."""
    with mistakes():
        check_precision(config.trainer.get("precision", "32-true"))
        data = build_data(config)
        module = build_module(config, data)
        check_optimizers(module)
        record = record_of_training("select", config, module, data)
        metrics = EpochMetrics(folder)
        trainer = build_trainer(
            config,
            folder,
            module,
            data=data.record()["name"],
            first=[Opening(folder, record), EpochAlphas(folder)],
            last=[metrics, SelectionFiles(folder)],
        )
        if not RunFolder(folder).last.exists():
            load_searched(RunFolder(config.search), module, record.data)
        run = claim(folder, config, record, trainer, module)
    with recorded(run):
        run.fit(module, data)
        record.metrics = metrics.after()
        record.architecture = module.derive()
        if run.is_first:
            record.architecture.write(RunFolder(folder).genotype)
    if run.is_first:
        say_selected(run, module, write_report(folder))


def main() -> int:
    """Run the command; return its exit code."""
    sys.argv[1:] = map(search_to_select_from, sys.argv[1:])
    return launch("select", select, with_settings_to_select, after_sweep=report_sweep)


if __name__ == "__main__":
    sys.exit(main())
