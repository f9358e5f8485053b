"""The names of a run's files. They are written here and nowhere else."""

from __future__ import annotations

from pathlib import Path


class RunFolder:
    """The folder of a run; every property is the path of one of its files, whether it is there or not."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> Path:
        """Every setting, below the command that began the run."""
        return self.path / "config.yaml"

    @property
    def result(self) -> Path:
        """The record of the run, written once, at its end."""
        return self.path / "result.json"

    @property
    def metrics(self) -> Path:
        """A row an epoch."""
        return self.path / "metrics.csv"

    @property
    def alphas(self) -> Path:
        """The mixing weights after every epoch of a search."""
        return self.path / "alphas.csv"

    @property
    def genotype(self) -> Path:
        """The architecture that a search ended with, or that a retrain trains."""
        return self.path / "genotype.json"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def lock(self) -> Path:
        """Held by the process that writes into the folder."""
        return self.path / ".lock"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints and of the architectures of all epochs."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.checkpoints / "last.ckpt"

    @property
    def previous(self) -> Path:
        """The checkpoint before the newest."""
        return self.checkpoints / "previous.ckpt"

    def epoch(self, number: int | str) -> Path:
        """Return the path of the architecture derived after an epoch, counted from 0."""
        return self.checkpoints / f"epoch_{number}.json"
