"""What a study runs: its arms, and the jobs of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from omegaconf import DictConfig

from src.architectures.architecture import Spec
from src.benchmarks.table import Table
from src.common.errors import ConfigError, must_be
from src.common.shell import override
from src.runs.alphas import with_own_optimizer
from src.runs.build import build_data, check_targets
from src.runs.composition import composed
from src.runs.jobs import Job
from src.runs.schema import check
from src.runs.targets import build
from src.search import build_module
from src.spaces.choices import spec_of
from src.studies.folder import StudyFolder
from src.studies.outcomes import RANDOM, Metric


@dataclass(frozen=True)
class Arm:
    """A setting that is compared.

    Attributes:
        name: as people read it, such as `darts, order 2`.
        overrides: of src.search, without the seed.
    """

    name: str
    overrides: tuple[str, ...]

    @property
    def slug(self) -> str:
        """The name as that of a folder."""
        return re.sub(r"[^\w.+-]+", "-", self.name.replace("order ", "order"))


@dataclass(frozen=True)
class Plan:
    """What a study runs.

    Attributes:
        folder: of the study.
        arms: what is compared.
        left_out: combinations that there are not, with the reason: (name, one line).
        seeds: of each arm, from 0 on.
        random: architectures that are drawn by chance and trained.
        retrain: setting -> overrides of src.retrain.
        repeats: trainings of each architecture with each setting.
        table: what architectures reach, or None.
        spec: of the choices that are searched.
        metric: what architectures are judged by.
    """

    folder: StudyFolder
    arms: Sequence[Arm]
    left_out: Sequence[tuple[str, str]]
    seeds: int
    random: int
    retrain: dict[str, tuple[str, ...]]
    repeats: int
    table: Table | None
    spec: Spec
    metric: Metric

    def searches(self) -> dict[tuple[str, int], Job]:
        """Return (name of an arm, seed) -> its search, such that the seeds of all arms advance together."""
        jobs = {
            (arm.name, seed): Job("search", self.folder.search(arm.slug, seed), (*arm.overrides, f"seed={seed}"))
            for seed in range(self.seeds)
            for arm in self.arms
            if not _is_random(arm)
        }
        for arm in filter(_is_random, self.arms):
            for seed in range(self.random):
                jobs[arm.name, seed] = Job(
                    "search", self.folder.search(arm.slug, seed), (*arm.overrides, f"seed={seed}")
                )
        return jobs

    def retrains(self, arm: str, seed: int, search: Job) -> dict[str, list[Job]]:
        """Return setting -> the trainings of what a search found."""
        slug = search.folder.parent.name
        return {
            setting: [
                Job(
                    "retrain",
                    self.folder.retrain(setting, slug, seed, repeat),
                    (override("genotype", search.folder), *overrides, f"seed={seed * self.repeats + repeat}"),
                )
                for repeat in range(self.repeats)
            ]
            for setting, overrides in self.retrain.items()
        }


def _is_random(arm: Arm) -> bool:
    return arm.name == RANDOM


def plan_of(config: DictConfig) -> Plan:
    """Return what a study's config asks for. Every arm is built once, so that a mistake shows before anything runs.

    Raises:
        ConfigError: a setting is out of its range, or an arm cannot be searched.
    """
    for name in ("seeds", "repeats", "random", "budget"):
        if config[name] < 1:
            raise must_be(name, "1 or more", config[name])
    shared = [f"space={config.space}", f"data={config.data}", *config.search]
    for text in [*shared, *(text for overrides in config.variants.values() for text in overrides)]:
        if text.partition("=")[0].lstrip("+") in ("seed", "folder", "resume"):
            raise ConfigError(f"search cannot set {text.partition('=')[0]}, which the study sets for each of its runs")
    arms, left_out = _arms(config, shared)
    if not arms:
        reasons = "; ".join(reason for _, reason in left_out)
        raise ConfigError(f"methods, orders and hypergradients leave nothing to compare: {reasons}")
    table, spec, metric = _checked(arms)
    table = table if config.table else None
    retrain: dict[str, tuple[str, ...]] = {str(name): tuple(texts) for name, texts in config.retrain.items()}
    if table is None:
        retrain = retrain or {"retrain": ()}
        arms.append(Arm(RANDOM, (*shared, f"method={RANDOM}")))
    return Plan(
        folder=StudyFolder(config.folder),
        arms=arms,
        left_out=left_out,
        seeds=config.seeds,
        random=config.random,
        retrain=retrain,
        repeats=config.repeats,
        table=table,
        spec=spec,
        metric=metric,
    )


def _arms(config: DictConfig, shared: Sequence[str]) -> tuple[list[Arm], list[tuple[str, str]]]:
    """Return the arms, and (name, reason) for the combinations that no method allows."""
    for name in ("methods", "orders", "hypergradients"):
        if not config[name]:
            raise must_be(name, "a list with one or more", "[]")
        if len(set(config[name])) < len(config[name]):
            raise must_be(name, "a list without repetitions", list(config[name]))
    arms: list[Arm] = []
    left_out: list[tuple[str, str]] = []
    variants = {str(name): list(texts) for name, texts in config.variants.items()} or {"": []}
    for method, order in product(config.methods, config.orders):
        if method == RANDOM:
            raise ConfigError(f"methods cannot hold {RANDOM}: every study has it as what the others are compared with")
        settled = composed("search", [*shared, f"method={method}"])
        try:
            build(settled.method, "method").check_order(unrolls=order == 2)
        except ConfigError as error:
            left_out.append((f"{method}, order {order}", str(error)))
            continue
        for hypergradient in config.hypergradients if order == 2 else ["auto"]:
            for variant, texts in variants.items():
                exact = () if hypergradient == "auto" else (hypergradient,)
                name = ", ".join((method, f"order {order}", *exact, *((variant,) if variant else ())))
                choice = [f"method={method}", f"order={order}", *(f"hypergradient={text}" for text in exact)]
                arms.append(Arm(name, (*shared, *choice, *texts)))
    return arms, left_out


def _checked(arms: Sequence[Arm]) -> tuple[Table | None, Spec, Metric]:
    """Build every arm as its searches will be built; return the table, the choices and the metric that they share.

    Raises:
        ConfigError: an arm cannot be built; or they search different spaces.
    """
    found: tuple[Table | None, Spec, Metric] | None = None
    data, of = None, None
    for arm in arms:
        try:
            config = with_own_optimizer(composed("search", arm.overrides), arm.overrides)
            check("search", config)
            check_targets("search", config)
            if data is None or of != config.data:
                data, of = build_data(config), config.data
            space = build_module(config, data).net.space
        except ConfigError as error:
            raise ConfigError(f"{arm.name}: {error}") from None
        spec = spec_of(space)
        if found is None:
            judge = data.task.metrics()[data.task.metric]
            metric = Metric(data.task.metric, getattr(judge, "higher_is_better", True) is not False)
            found = getattr(space, "table", None), spec, metric
        elif spec != found[1]:
            raise ConfigError(f"{arm.name} searches other choices than {arms[0].name}: they cannot be compared")
    assert found is not None
    return found
