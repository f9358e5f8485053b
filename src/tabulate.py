"""python -m src.tabulate: train every architecture of a small space, and write what each reaches as a table.

    python -m src.tabulate                                            the table that comes with this code
    python -m src.tabulate space=my_space data=my_data seeds=5        one of your own (docs/benchmarks.md)
    python -m src.tabulate ... plan=true                              say what would run, and stop

With the table, a search of the space is judged without training what it found. Every training is a run in the folder, as
src.retrain makes it; they run side by side. Killed and started again with the same command, it trains what is missing.
Architectures that compute the same, as the space's `canonical` says, are trained once. In the end the table is written
(table.json), whole or not at all, and it is said how far it can be trusted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig

from src.architectures.architecture import Architecture
from src.benchmarks.tabulated import Gate, Runs, count_of, distinct, options_of, table_text
from src.common.errors import ConfigError, must_be
from src.common.files import write_whole
from src.common.shell import override, pastable
from src.common.terminal import say, table
from src.runs import workers
from src.runs.build import build_data, build_network, check_targets, split_training
from src.runs.composition import composed
from src.runs.folder import Folder
from src.runs.jobs import DONE, Job, JobPool, Side, owned, run_missing, side_by_side
from src.runs.launch import FAILED, launch_jobs, mistakes
from src.runs.saved import read_run
from src.runs.schema import check
from src.spaces.choices import spec_of

_SET = ("space", "data", "data.validation_fraction", "genotype", "seed", "folder", "resume")  # by this command


class TableFolder(Folder):
    """The folder in which a table is made. Every property is the path of one of its files, whether it exists or not."""

    @property
    def table(self) -> Path:
        """What all architectures reach."""
        return self.path / "table.json"

    def architecture(self, row: int) -> Path:
        """Return the path of the architecture of a row of the table."""
        return self.path / "architectures" / f"{row}.json"

    def run(self, row: int, seed: int) -> Path:
        """Return the folder of a training."""
        return self.path / "runs" / f"{row}" / f"seed={seed}"


class Entry(NamedTuple):
    """An architecture of the table.

    Attributes:
        row: of the table.
        architecture: that is trained.
        same: others that compute the same.
        jobs: the trainings, one for each seed.
    """

    row: int
    architecture: Architecture
    same: Sequence[Architecture]
    jobs: Sequence[Job]


class Plan(NamedTuple):
    """What is to be trained.

    Attributes:
        folder: of the table.
        options: key -> candidates.
        overrides: of src.retrain for all trainings.
        entries: the architectures that differ.
    """

    folder: TableFolder
    options: dict[str, tuple[str, ...]]
    overrides: tuple[str, ...]
    entries: Sequence[Entry]

    def jobs(self) -> list[Job]:
        """Return all trainings: of every architecture with the first seed, then with the second, and so on."""
        return [job for seed in zip(*(entry.jobs for entry in self.entries), strict=True) for job in seed]


def tabulate(config: DictConfig, command: str) -> int:
    """Train what is missing and write the table with the command that makes it; return the exit code."""
    with mistakes():
        side = side_by_side(config.jobs, config.threads)
        plan = plan_of(config)
        jobs = plan.jobs()
        for job in jobs:
            job.check()
        missing = [job for job in jobs if not job.is_done]
        say_plan(config, plan, missing, side)
        if config.plan:
            return 0
    with ExitStack() as stack:
        with mistakes():
            stack.enter_context(owned(plan.folder))
        plan.folder.architecture(0).parent.mkdir(exist_ok=True)
        for entry in plan.entries:
            entry.architecture.write(plan.folder.architecture(entry.row))
        pool = stack.enter_context(JobPool(side))
        ended = run_missing(jobs, pool, names_of(plan).__getitem__)
    failed = sum(end.status != DONE for end in ended)
    if workers.stopped_by():
        print("stopped; the same command continues", file=sys.stderr)
        return 0  # the exit code says by what
    if failed:
        print(f"error: {failed} of {len(missing)} trainings failed, so no table was written", file=sys.stderr)
        return FAILED
    gate = write_table(config, plan, command)
    say(table([*gate.rows(), ("table", str(plan.folder.table))]))
    return 0


def plan_of(config: DictConfig) -> Plan:
    """Return what a config asks for.

    Raises:
        ConfigError: a setting is out of its range, or there is no such table.
    """
    for name, least in (("seeds", 2), ("at_most", 1)):
        if config[name] < least:
            raise must_be(name, f"{least} or more", config[name])
    settings = composed("retrain", [*overrides_of(config), "genotype="])
    overrides = overrides_of(config, epochs=settings.epochs)
    check("retrain", settings)
    check_targets("retrain", settings)
    data = build_data(settings)
    if data.task.metric != "accuracy":
        raise ConfigError(f"data must be a classification, since a table holds accuracies; {config.data} is none")
    if not data.val_dataloader():
        needed = f"above 0, since {config.data} has no validation split of its own"
        raise must_be("validation_fraction", needed, config.validation_fraction)
    network, _ = split_training(settings.space)
    space = build_network(network, input_shape=data.input_shape, num_classes=data.task.outputs)
    spec = spec_of(space)
    options = options_of(spec)
    if (count := count_of(options)) > config.at_most:
        raise must_be("at_most", f"{count} or more, the number of architectures of {config.space}", config.at_most)
    folder = TableFolder(config.folder)

    def jobs(row: int) -> list[Job]:
        genotype = override("genotype", folder.architecture(row))
        return [
            Job("retrain", folder.run(row, seed), (genotype, *overrides, f"seed={seed}"))
            for seed in range(config.seeds)
        ]

    found = distinct(options, getattr(space, "canonical", None))
    return Plan(folder, options, overrides, [Entry(row, one, same, jobs(row)) for row, (one, same) in found.items()])


def overrides_of(config: DictConfig, epochs: int = 1) -> tuple[str, ...]:
    """Return the overrides of src.retrain for all trainings, which are of `epochs` epochs."""
    given = [text.lstrip("+~").partition("=")[0] for text in config.retrain]
    for key in given:
        if key in _SET:
            raise ConfigError(f"retrain cannot set {key}, which is set for each training")
    # The table needs no more than the last epoch's validation.
    sparing = {"logger": "none", "callbacks": "none", "trainer.check_val_every_n_epoch": epochs}
    fraction = config.validation_fraction
    held_back = [] if fraction is None else [f"data.validation_fraction={fraction}"]
    quiet = [f"{key}={value}" for key, value in sparing.items() if key not in given]
    space = f"space._target_={config.space}" if _is_path(config.space) else f"space={config.space}"
    data = ["data=own", f"data.source._target_={config.data}"] if _is_path(config.data) else [f"data={config.data}"]
    return (space, *data, *held_back, *quiet, *config.retrain)


def _is_path(name: str) -> bool:
    """Return whether a name is that of a class or a function, and not that of an option in conf/."""
    return "." in name


def say_plan(config: DictConfig, plan: Plan, missing: Sequence[Job], side: Side) -> None:
    """Say what is trained."""
    count, trainings = count_of(plan.options), len(plan.jobs())
    differ = "" if len(plan.entries) == count else f", of which {len(plan.entries):,} differ"
    finished = f" ({trainings - len(missing):,} finished before)" if len(missing) < trainings else ""
    say(f"table: {config.space} on {config.data}")
    rows = [
        ("folder", str(plan.folder)),
        ("architectures", f"{count:,}{differ}"),
        (
            "to run",
            f"{f'{len(missing):,}' if missing else 'no'} trainings{finished}, {config.seeds} of each architecture",
        ),
        ("jobs", str(side)),
    ]
    say(table(rows))


def names_of(plan: Plan) -> dict[Job, str]:
    """Return what the trainings are called."""
    return {
        job: f"{', '.join(map(str, entry.architecture.choices.values()))}, seed {seed}"
        for entry in plan.entries
        for seed, job in enumerate(entry.jobs)
    }


def write_table(config: DictConfig, plan: Plan, command: str) -> Gate:
    """Write the table with the command that made it, and return how far it can be trusted."""
    results = [[read_run(job.folder).result for job in entry.jobs] for entry in plan.entries]
    every = [result for of_one in results for result in of_one]
    facts = {
        "command": command,
        "training": pastable("retrain", ["genotype=ARCHITECTURE", *plan.overrides, "seed=SEED"]),
        "space": config.space,
        "data": every[0]["data"],
        "seeds": list(range(config.seeds)),
        **{name: _different(result[name] for result in every) for name in ("machine", "versions", "git_commit")},
    }
    found = [
        (entry.architecture, entry.same, _runs(of_one)) for entry, of_one in zip(plan.entries, results, strict=True)
    ]
    write_whole(plan.folder.table, table_text(facts, plan.options, found))
    return Gate.of(np.array([runs.validation for _, _, runs in found]))


def _runs(results: Sequence[dict[str, Any]]) -> Runs:
    validation, test = (
        [round(result["metrics"][f"{split}_accuracy"], 6) for result in results] for split in ("val", "test")
    )
    return Runs(validation, test, [result["seconds"] for result in results])


def _different(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def main() -> int:
    """Run the command; return its exit code."""
    return launch_jobs("tabulate", partial(tabulate, command=pastable("tabulate", sys.argv[1:])))


if __name__ == "__main__":
    sys.exit(main())
