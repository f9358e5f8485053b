"""What a study came to, written into its folder: all numbers as JSON, and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from src.common.files import write_whole
from src.common.terminal import table
from src.runs.jobs import Job, Side
from src.runs.launch import command_of_job
from src.runs.record import git_commit, versions
from src.runs.saved import read_run
from src.studies.outcomes import Outcome, outcome_of
from src.studies.plan import Plan

Key = tuple[str, int]  # name of an arm, seed


class Failure(NamedTuple):
    """A job that did not finish.

    Attributes:
        name: of the job.
        folder: of its run.
        reason: one line.
    """

    name: str
    folder: str
    reason: str


def write_conclusion(
    config: DictConfig,
    plan: Plan,
    side: Side,
    searches: Mapping[Key, Job],
    trainings: Mapping[Key, Mapping[str, Sequence[Job]]],
    failures: Sequence[Failure],
) -> str:
    """Write study.json and study.html; return what the terminal says.

    Args:
        config: of the study.
        plan: what it ran.
        side: how its jobs ran.
        searches: that have finished.
        trainings: of what each of them found.
        failures: jobs that did not finish.
    """
    outcomes = [
        outcome
        for (arm, seed), search in searches.items()
        if (
            outcome := outcome_of(
                arm,
                seed,
                str(search.folder.relative_to(plan.folder.path)),
                search,
                trainings[arm, seed],
                plan.table,
            )
        )
        is not None
    ]
    facts = {
        "name": config.name,
        "command": command_of_job("study"),
        "settings": OmegaConf.to_container(config, resolve=True),
        "jobs": str(side),
        "machines": machines(searches.values()),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    result: dict[str, Any] = {
        "study": facts,
        "statement": [],
        "analysis": {},
        "outcomes": [_plain(outcome) for outcome in outcomes],
        "failures": [failure._asdict() for failure in failures],
    }
    write_whole(plan.folder.result, json.dumps(result, indent=2) + "\n")
    return table([("numbers", str(plan.folder.result))])


def machines(searches: Sequence[Job] | Any) -> list[dict[str, Any]]:
    """Return the different machines that searches ran on, as their records have them."""
    found: list[dict[str, Any]] = []
    for search in searches:
        machine = read_run(search.folder).result.get("machine")
        if isinstance(machine, dict) and machine not in found:
            found.append(machine)
    return found


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {
        "arm": outcome.arm,
        "seed": outcome.seed,
        "folder": outcome.folder,
        "architecture": outcome.architecture.to_plain(),
        "scores": dict(outcome.scores),
        "seconds": outcome.seconds,
        "evaluation_seconds": dict(outcome.evaluation_seconds),
        "metrics": dict(outcome.metrics),
    }
