"""python -m src.study: compare settings of a search over seeds, with each other and with random architectures.

    python -m src.study                                       a small space of which every architecture was trained
    python -m src.study study=nas_bench_201                   NAS-Bench-201, with its published accuracies
    python -m src.study methods=[darts,gdas] orders=[1,2] seeds=20
    python -m src.study space=darts data=digits seeds=5 'search=["space.cells=3"]'    architectures are retrained

Every search and every retrain is a run in the study's folder, as src.search and src.retrain make it. They run side by side.
Killed and started again with the same command, the study runs what is missing. It ends with a statement in words, a page
(study.html) and all numbers (study.json).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from omegaconf import DictConfig

from src.common.errors import ConfigError
from src.common.files import lock_file
from src.common.terminal import say, table
from src.runs import workers
from src.runs.jobs import DONE, Ended, Job, JobPool, Progress, Side, side_by_side
from src.runs.launch import launch_jobs, mistakes
from src.studies.conclusion import write_conclusion
from src.studies.folder import StudyFolder
from src.studies.plan import Plan, plan_of

FAILED = 1


def study(config: DictConfig) -> int:
    """Run what is missing of a study and write what it came to; return the exit code."""
    with mistakes():
        side = side_by_side(config.jobs, config.threads)
        plan = plan_of(config)
        searches = plan.searches()
        trainings = {key: plan.retrains(*key, search) for key, search in searches.items()}
        every = [*searches.values(), *(job for by in trainings.values() for jobs in by.values() for job in jobs)]
        for job in every:
            job.check()
        say_plan(config, plan, side, every)
        if config.plan:
            return 0
    with owned(plan.folder), JobPool(side) as pool:
        ended = run_missing(list(searches.values()), pool, plan)
        found = {key: search for key, search in searches.items() if search.is_done}
        ended += run_missing([job for key in found for jobs in trainings[key].values() for job in jobs], pool, plan)
        if workers.stopped_by():
            print("the study was stopped; the same command continues it", file=sys.stderr)
            return 0  # the command's exit code says by what
        failures = [end for end in ended if end.status != DONE]
        say(write_conclusion(config, plan, side, found, {key: trainings[key] for key in found}, failures))
    return FAILED if failures else 0


@contextmanager
def owned(folder: StudyFolder) -> Iterator[None]:
    """Make the folder of a study, and keep other processes from it during the block."""
    with mistakes():
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = lock_file(folder.lock)
        if lock is None:
            raise ConfigError(f"{folder} is in use by another process; choose another folder (folder=...)")
    try:
        yield
    finally:
        folder.lock.unlink(missing_ok=True)
        os.close(lock)


def say_plan(config: DictConfig, plan: Plan, side: Side, every: Sequence[Job]) -> None:
    """Say what the study compares, and how many runs it takes."""
    missing = [job for job in every if not job.is_done]
    count = {command: sum(job.command == command for job in missing) for command in ("search", "retrain")}
    work = ", ".join(f"{number} {command}{_plural(command, number)}" for command, number in count.items() if number)
    rows = [
        ("folder", str(plan.folder)),
        ("compares", "\n".join(arm.name for arm in plan.arms)),
        ("seeds", f"{plan.seeds} of each"),
        ("judged by", _judge(config, plan)),
        (
            "to run",
            f"{work or 'nothing'}{f' ({len(every) - len(missing)} finished before)' * (len(every) > len(missing))}",
        ),
        ("jobs", str(side)),
    ]
    if plan.left_out:
        rows.insert(2, ("left out", "\n".join(f"{name}: {reason}" for name, reason in plan.left_out)))
    say(f"study: {config.name}, {config.space} on {config.data}")
    say(table(rows))


def _judge(config: DictConfig, plan: Plan) -> str:
    found = []
    if plan.table is not None:
        found.append(f"a table of all {len(plan.table.accuracies):,} architectures")
    for setting in plan.retrain:
        found.append(f"{plan.repeats} training{'s' * (plan.repeats > 1)} of what was found ({setting})")
    return "\n".join(found)


def _plural(command: str, number: int) -> str:
    return "" if number == 1 else "es" if command == "search" else "s"


def run_missing(jobs: Sequence[Job], pool: JobPool, plan: Plan) -> list[Ended]:
    """Run the jobs that have not finished, and say how each ends."""
    missing = [job for job in jobs if not job.is_done]
    if not missing or workers.stopped_by():
        return []
    progress = Progress(missing, lambda job: plan.folder.name_of(job.folder))
    ended = []
    for end in pool.run(missing):
        progress.say(end)
        ended.append(end)
    return ended


def main() -> int:
    """Run the command; return its exit code."""
    return launch_jobs("study", study)


if __name__ == "__main__":
    sys.exit(main())
