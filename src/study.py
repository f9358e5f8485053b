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

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from omegaconf import DictConfig

from src.common.shell import pastable
from src.common.terminal import say, table
from src.runs import workers
from src.runs.jobs import DONE, Job, JobPool, Side, owned, run_missing, side_by_side
from src.runs.launch import FAILED, launch_jobs, mistakes
from src.studies.conclusion import write_conclusion
from src.studies.plan import Plan, plan_of


def study(config: DictConfig, command: str) -> int:
    """Run what is missing of a study, write what it came to and the command that continues it; return the exit code."""
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

    def name(job: Job) -> str:
        return plan.folder.name_of(job.folder)

    with ExitStack() as stack:
        with mistakes():
            stack.enter_context(owned(plan.folder))
        pool = stack.enter_context(JobPool(side))
        ended = run_missing(list(searches.values()), pool, name)
        found = {key: search for key, search in searches.items() if search.is_done}
        ended += run_missing([job for key in found for jobs in trainings[key].values() for job in jobs], pool, name)
        if workers.stopped_by():
            print("the study was stopped; the same command continues it", file=sys.stderr)
            return 0  # the command's exit code says by what
        failures = [end for end in ended if end.status != DONE]
        trained = {key: trainings[key] for key in found}
        say(write_conclusion(config, plan, side, found, trained, failures, command))
    return FAILED if failures else 0


def say_plan(config: DictConfig, plan: Plan, side: Side, every: Sequence[Job]) -> None:
    """Say what the study compares, and how many runs it takes."""
    missing = [job for job in every if not job.is_done]
    count = {command: sum(job.command == command for job in missing) for command in ("search", "retrain")}
    work = ", ".join(f"{number} {command}{_plural(command, number)}" for command, number in count.items() if number)
    rows = [
        ("folder", str(plan.folder)),
        ("compares", "\n".join(arm.name for arm in plan.arms)),
        ("seeds", f"{plan.seeds} of each"),
        ("search", " ".join(config.search) or "with the defaults of src.search"),
        ("judged by", _judge(plan)),
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


def _judge(plan: Plan) -> str:
    found = []
    if plan.table is not None:
        found.append(f"a table of all {len(plan.table.accuracies):,} architectures")
    for setting in plan.retrain:
        found.append(f"{plan.repeats} training{'s' * (plan.repeats > 1)} of what was found ({setting})")
    return "\n".join(found)


def _plural(command: str, number: int) -> str:
    return "" if number == 1 else "es" if command == "search" else "s"


def main() -> int:
    """Run the command; return its exit code."""
    return launch_jobs("study", partial(study, command=pastable("study", sys.argv[1:])))


if __name__ == "__main__":
    sys.exit(main())
