"""The names of a run's files. They are written here and nowhere else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_EPOCH = "epoch_{}.json"
_STATE = "epoch_{}.ckpt"


class Folder:
    """A folder that a command writes into, and that belongs to it while it holds the lock."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def lock(self) -> Path:
        """Held by the process that writes into the folder."""
        return self.path / ".lock"


class RunFolder(Folder):
    """The folder of a run. Every property is the path of one of its files, whether the file exists or not.

    `OVERVIEW` and `RUNS` are the names of what reports write into a folder of runs, such as that of a sweep.
    """

    OVERVIEW = "index.html"
    RUNS = "runs.csv"

    @classmethod
    def of(cls, path: Path | str) -> RunFolder:
        """Return the folder of the run that `path` names: the folder itself, its `checkpoints`, or a checkpoint there.

        Other paths are taken as the folder itself.
        """
        path, absolute = Path(path), Path(path).absolute()
        for checkpoint in (cls(absolute.parent.parent).last, cls(absolute.parent.parent).previous):
            if absolute == checkpoint:
                return cls(path.parent.parent if len(path.parts) > 2 else absolute.parent.parent)
        if absolute == cls(absolute.parent).checkpoints and not cls(absolute).config.exists():
            return cls(path.parent if len(path.parts) > 1 else absolute.parent)
        return cls(path)

    @property
    def config(self) -> Path:
        """All settings, below the commands that started and resumed the run."""
        return self.path / "config.yaml"

    @property
    def result(self) -> Path:
        """The record of the run, written once, at its end."""
        return self.path / "result.json"

    @property
    def log(self) -> Path:
        """What a run printed that another command started."""
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """One row per epoch."""
        return self.path / "metrics.csv"

    @property
    def steps(self) -> Path:
        """One row per training step that was logged."""
        return self.path / "steps.csv"

    @property
    def alphas(self) -> Path:
        """The mixing weights after each epoch of a search."""
        return self.path / "alphas.csv"

    @property
    def decisions(self) -> Path:
        """What a selection has decided, one row for each option that it left out to see what happens."""
        return self.path / "decisions.csv"

    @property
    def ranking(self) -> Path:
        """What the supernet of a search scored architectures, beside what a table has for them."""
        return self.path / "ranking.csv"

    @property
    def genotype(self) -> Path:
        """The architecture that a search found, or that a retrain trains."""
        return self.path / "genotype.json"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def wandb(self) -> Path:
        """Which run of Weights & Biases this run is."""
        return self.path / "wandb.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints and of the architectures after each epoch."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.checkpoints / "last.ckpt"

    @property
    def previous(self) -> Path:
        """The checkpoint before the newest."""
        return self.checkpoints / "previous.ckpt"

    def epoch(self, number: int) -> Path:
        """Return the path of the architecture derived after an epoch, counted from 0."""
        return self.checkpoints / _EPOCH.format(number)

    def epochs(self) -> Iterator[tuple[int, Path]]:
        """Yield (epoch, path) for each architecture of an epoch that exists, in no particular order."""
        return self._numbered(_EPOCH)

    def state(self, number: int) -> Path:
        """Return the path of the checkpoint after an epoch that a guard may return to."""
        return self.checkpoints / _STATE.format(number)

    def states(self) -> Iterator[tuple[int, Path]]:
        """Yield (epoch, path) for each checkpoint of an epoch that exists, in no particular order."""
        return self._numbered(_STATE)

    def _numbered(self, name: str) -> Iterator[tuple[int, Path]]:
        pattern = re.compile(re.escape(name).replace(r"\{\}", "([0-9]{1,9})"))
        for path in self.checkpoints.glob(name.format("*")):
            match = pattern.fullmatch(path.name)
            if match:
                yield int(match[1]), path


def genotype_in(given: str) -> str:
    """Return what was given as a genotype, and for a folder the path of the genotype in it."""
    return str(RunFolder(given).genotype) if os.path.isdir(given) else given


def read_wandb(run: RunFolder) -> dict[str, Any]:
    """Return which run of Weights & Biases a run is: `id`, `entity`, `project`, `url`, `offline`; empty if it is none."""
    try:
        facts = json.loads(run.wandb.read_bytes())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
