"""python -m src.search: find an architecture by gradient descent.

    python -m src.search                                   first order, CIFAR-10, the paper's settings
    python -m src.search order=2 seed=1                    second order (unrolled), another seed
    python -m src.search -m order=1,2 seed=0,1,2,3         a sweep: eight runs
    python -m src.search method=random                     an architecture by chance, the baseline: nothing is trained
    python -m src.search order=2 plan=true                 what it will take, measured on a few steps
    python -m src.search resume=runs/search/RUN            resume a run that was stopped

The run's folder ends up with the architecture of every epoch (checkpoints/epoch_{N}.json), the final one
(genotype.json), curves (metrics.csv, alphas.csv), a report (report.html) and a record (result.json).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig
from torch import Tensor, nn

from src.callbacks.guard import guard_of
from src.callbacks.lookup import Lookup, metrics_of
from src.callbacks.ranking import rankings_of
from src.callbacks.record import EpochAlphas, EpochArchitectures, EpochMetrics
from src.common.errors import ConfigError
from src.common.seeding import preserved_randomness
from src.data.modules import DataModule
from src.fast.layout import plain_form
from src.report import report_sweep, write_report
from src.runs.alphas import with_own_optimizer
from src.runs.build import (
    build_data,
    build_diagnostics,
    build_network,
    build_schedule,
    build_trainer,
    check_optimizers,
    circumstances,
    count_macs,
    count_params,
    input_dtype,
    record_of,
    watching_a_search,
)
from src.runs.claim import claim, recorded
from src.runs.folder import RunFolder
from src.runs.launch import command_of_job, launch, mistakes
from src.runs.plan import say_plan, say_plan_without_training
from src.runs.record import Record, status_of
from src.runs.summary import Opening, say_drawn, say_found
from src.runs.targets import build, within
from src.spaces.check import check_space
from src.spaces.choices import spec_of
from src.training.module import Untrained
from src.training.search import SearchModule, check_precision


def build_module(config: DictConfig, data: DataModule) -> SearchModule:
    """Return the search module of a composed config: supernet, alphas, hypergradient, optimisers."""
    L.seed_everything(config.seed, verbose=False)
    hypergradient = build(config.hypergradient, "hypergradient")
    if hypergradient.order != config.order:
        raise ConfigError(
            f"hypergradient {type(hypergradient).__name__} is of order {hypergradient.order} but order is {config.order}; "
            f"set order={hypergradient.order} or hypergradient=auto"
        )
    method = build(config.method, "method")
    method.check_hypergradient(hypergradient)
    module = SearchModule(
        build_space(config, data, differentiated_twice=hypergradient.differentiates_twice),
        method=method,
        hypergradient=hypergradient,
        **settings_of_steps(config, data),
        graphs=config.get("graphs", False),  # older runs have saved no such setting
    )
    try:
        module.method.check_epochs(config.epochs, module.alphas())
    except ConfigError as error:
        raise error.within("method") from None
    return module


def settings_of_steps(config: DictConfig, data: DataModule) -> dict[str, Any]:
    """Return what a search and a selection give their modules alike: task, optimisers, schedule, clipping, seed."""
    return {
        "task": data.task,
        "weight_optimizer": build(config.optimizer.weights, "optimizer.weights"),
        "alpha_optimizer": build(config.optimizer.alphas, "optimizer.alphas"),
        "weight_scheduler": build_schedule(config.optimizer.schedule),
        "gradient_clip": config.optimizer.gradient_clip,
        "seed": config.seed,
    }


def record_of_training(kind: str, config: DictConfig, module: SearchModule, data: DataModule) -> Record:
    """Return the record that a search or a selection begins with."""
    return Record(
        kind=kind,
        command=command_of_job(kind),
        seed=config.seed,
        order=config.order,
        method=module.method.name,
        data=record_of(data),
        params=count_params(module.net.space),
        macs=count_macs(module.net, data.input_shape, input_dtype(data)),
    )


def lookups(space: nn.Module) -> list[Lookup]:
    """Return what looks the search's architectures up, where its space has a table."""
    table = getattr(space, "table", None)
    return [] if table is None else [Lookup(table)]


def build_space(config: DictConfig, data: DataModule, *, differentiated_twice: bool = False) -> nn.Module:
    """Return the space of a composed config, after a dry pass that finds what is wrong with it."""
    space = build_network(
        config.space,
        **circumstances(config),
        differentiated_twice=differentiated_twice,
        input_shape=data.input_shape,
        num_classes=data.task.outputs,
    )
    with within("space"), plain_form():  # which calls its choices
        check_space(space, two_samples(data), outputs=data.task.outputs, differentiated_twice=differentiated_twice)
    return space


def two_samples(data: DataModule) -> Tensor:
    """Return the inputs of two training samples, (2, ...). No random number generator changes."""
    with preserved_randomness():
        batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    inputs, _ = batch["weights"]
    return inputs[:2] if len(inputs) > 1 else inputs.expand(2, *inputs.shape[1:])


def search(config: DictConfig, folder: Path) -> None:
    """Run one search into `folder`."""
    with mistakes():
        trains = build(config.method, "method").trains
    (search_by_training if trains else search_without_training)(config, folder)


def search_by_training(config: DictConfig, folder: Path) -> None:
    """Train a supernet and its alphas, and derive the architecture from them."""
    with mistakes():
        check_precision(config.trainer.get("precision", "32-true"))
        data = build_data(config)
        module = build_module(config, data)
        check_optimizers(module)
        record = record_of_training("search", config, module, data)
        if config.get("plan"):
            say_plan(config, record, module, data)
            return
        metrics, looked_up = EpochMetrics(folder), lookups(module.net.space)
        record.table = next((lookup.table.data for lookup in looked_up), None)
        trainer = build_trainer(
            config,
            folder,
            module,
            data=data.record()["name"],
            first=[
                Opening(folder, record),
                EpochAlphas(folder),
                *looked_up,
                *build_diagnostics(config),
            ],
            last=[metrics, EpochArchitectures(folder)],
        )
        guard = guard_of(trainer)
        if guard is not None:
            with within("callbacks.guard"):
                guard.check(module, trainer)
            record.guard = guard.facts
        for ranking in rankings_of(trainer):
            with within("callbacks.ranking"):
                ranking.check(module, trainer)
        run = claim(folder, config, record, trainer, module)
    with recorded(run):
        run.fit(module, data)
        returned_to = None if guard is None else guard.facts["returned_to"]
        record.architecture_epoch = run.checkpoints.epochs - 1 if returned_to is None else returned_to
        record.metrics = metrics.after(record.architecture_epoch)
        record.architecture = module.derive()
        record.remark = module.remark()
        if run.is_first:
            record.architecture.write(RunFolder(folder).genotype)
    if run.is_first:
        say_found(run, module, write_report(folder))


def search_without_training(config: DictConfig, folder: Path) -> None:
    """Take the architecture that the method names for the space; it leaves the files of a search, without epochs."""
    with mistakes():
        if config.resume is not None and status_of(folder) == "ok":
            raise ConfigError(f"{folder} has finished, and a search without training has no epochs to add")
        data = build_data(config)
        method = build(config.method, "method")
        space = build_space(config, data)
        architecture = method.draw(spec_of(space), config.seed)
        record = Record(
            kind="search",
            command=command_of_job("search"),
            seed=config.seed,
            method=method.name,
            data=record_of(data),
        )
        if config.get("plan"):
            say_plan_without_training(config, record, architecture)
            return
        module = Untrained()
        trainer = build_trainer(config, folder, module, data=data.record()["name"])
        for what in watching_a_search(trainer.callbacks):  # pyright: ignore[reportAttributeAccessIssue]
            print(f"callbacks: {what} has nothing to watch, the method {method.name} trains nothing", file=sys.stderr)
        run = claim(folder, config, record, trainer, module)
    with recorded(run):
        run.skip_training()
        record.architecture = architecture
        for lookup in lookups(space):
            record.table = lookup.table.data
            record.metrics |= metrics_of(lookup.table.standing(architecture))
        if run.is_first:
            EpochMetrics(folder).append()
            EpochAlphas(folder).append()
            for path in (RunFolder(folder).epoch(0), RunFolder(folder).genotype):
                architecture.write(path)
    if run.is_first:
        say_drawn(run, write_report(folder))


def main() -> int:
    """Run the command; return its exit code."""
    return launch("search", search, with_own_optimizer, after_sweep=report_sweep)


if __name__ == "__main__":
    sys.exit(main())
