"""What a study came to, written into its folder: all numbers as JSON, and a page."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from omegaconf import DictConfig, OmegaConf

from src.common.files import write_whole
from src.common.terminal import duration, sentences, table
from src.reports.settings import Row
from src.reports.study import StudyRun, render_study
from src.runs.folder import RunFolder
from src.runs.jobs import Ended, Job, Side
from src.runs.record import git_commit, versions
from src.runs.saved import SavedRun, read_run
from src.studies.analysis import analyse
from src.studies.folder import StudyFolder
from src.studies.outcomes import RANDOM, Outcome, outcome_of
from src.studies.plan import Plan
from src.studies.statement import statement
from src.studies.stopping import RULES

Key = tuple[str, int]  # name of an arm, seed


def write_conclusion(
    config: DictConfig,
    plan: Plan,
    side: Side,
    searches: Mapping[Key, Job],
    trainings: Mapping[Key, Mapping[str, Sequence[Job]]],
    failures: Sequence[Ended],
    command: str,
) -> str:
    """Write study.json and study.html; return what the terminal says.

    Args:
        config: of the study.
        plan: what it ran.
        side: how its jobs ran.
        searches: that have finished.
        trainings: of what each of them found.
        failures: jobs that did not finish.
        command: that continues the study.
    """
    folder = plan.folder
    searched = {key: read_run(search.folder) for key, search in searches.items()}
    trained = {
        key: {setting: [read_run(job.folder) for job in jobs] for setting, jobs in trainings[key].items()}
        for key in searches
    }
    found = [
        outcome_of(arm, seed, folder.name_of(run.folder), run, trained[arm, seed], plan.table)
        for (arm, seed), run in searched.items()
    ]
    outcomes = [outcome for outcome in found if outcome is not None]
    if not outcomes:
        return f"no search of {folder} has a result; {RunFolder('').log.name} in their folders says why"
    numbers = analyse(outcomes, table=plan.table, metric=plan.metric, budget=config.budget, rules=RULES)
    said = statement(numbers)
    runs = [
        run
        for (arm, seed), search in searched.items()
        for run in _runs(folder, arm, seed, {"search": [search], **trained[arm, seed]})
    ]
    names = {run.name for run in runs}
    runs += [
        StudyRun("", 0, end.job.command, name, _page(folder, end.job.folder), end.status, None, end.reason)
        for end in failures
        if (name := folder.name_of(end.job.folder)) not in names
    ]
    machines = _machines(searched.values())
    facts: dict[str, Any] = {
        "name": config.name,
        "command": command,
        "settings": OmegaConf.to_container(config, resolve=True),
        "jobs": str(side),
        "machines": machines,
        "versions": versions(),
        "git_commit": git_commit(),
    }
    result = {
        "study": facts,
        "statement": said,
        "analysis": numbers,
        "outcomes": [_plain(outcome) for outcome in outcomes],
        "failures": [{"name": folder.name_of(end.job.folder), "reason": end.reason} for end in failures],
    }
    write_whole(folder.result, json.dumps(result, indent=2) + "\n")
    page = render_study(
        numbers,
        title=f"Study {config.name}",
        statement=said,
        runs=runs,
        command=command,
        summary=_summary(config, plan),
        facts=_facts(facts, runs),
    )
    write_whole(folder.page, page)
    lines = [*said, *(f"failed: {folder.name_of(end.job.folder)}: {end.reason}" for end in failures)]
    return f"{sentences(lines)}\n{table([('page', str(folder.page)), ('numbers', str(folder.result))])}"


def _runs(folder: StudyFolder, arm: str, seed: int, runs: Mapping[str, Sequence[SavedRun]]) -> Iterator[StudyRun]:
    """Yield what the page says of the runs of one seed that have begun; `runs` has them by their kinds."""
    for kind, several in runs.items():
        for run in several:
            if run.result or run.config:
                name, error = folder.name_of(run.folder), str(run.result.get("error") or "")
                yield StudyRun(
                    arm, seed, kind, name, _page(folder, run.folder), run.status, run.number("seconds"), error
                )


def _page(folder: StudyFolder, run: Path) -> str:
    return quote(folder.name_of(RunFolder(run).report))


def _summary(config: DictConfig, plan: Plan) -> str:
    arms = [arm.name for arm in plan.arms if arm.name != RANDOM]
    judge = "a table of all architectures" if plan.table is not None else "retraining what was found"
    what = f"{len(arms)} arms" if len(arms) > 1 else arms[0]
    return f"{what} in {config.space} on {config.data}, {config.seeds} seeds each, judged by {judge}"


def _facts(facts: Mapping[str, Any], runs: Sequence[StudyRun]) -> list[tuple[str, list[Row]]]:
    """Return what the page says of the cost, the machines and the versions."""
    seconds: dict[str, list[float]] = {}
    for run in runs:
        seconds.setdefault(run.kind, []).append(run.seconds or 0.0)
    cost = [
        Row(kind, f"{len(times)} runs, {duration(sum(times))} in all, median {duration(statistics.median(times))}")
        for kind, times in seconds.items()
    ]
    machines = [
        Row(
            f"machine {number}" if len(facts["machines"]) > 1 else "machine",
            f"{one.get('device')}, {one.get('threads')} thread(s)",
        )
        for number, one in enumerate(facts["machines"], 1)
    ]
    known = [Row(name, str(version)) for name, version in facts["versions"].items()]
    return [
        ("Cost", [*cost, Row("jobs", facts["jobs"])]),
        ("Machine and versions", [*machines, *known, Row("git commit", str(facts["git_commit"]))]),
    ]


def _machines(searches: Iterable[SavedRun]) -> list[dict[str, Any]]:
    """Return the different machines that searches ran on, as their records have them."""
    found: list[dict[str, Any]] = []
    for search in searches:
        machine = search.result.get("machine")
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
