"""The names of the files of a study. They are written here and nowhere else."""

from __future__ import annotations

from pathlib import Path

from src.runs.folder import Folder


class StudyFolder(Folder):
    """The folder of a study. Every property is the path of one of its files, whether the file exists or not."""

    @property
    def result(self) -> Path:
        """All numbers, the statement, and what they were computed from."""
        return self.path / "study.json"

    @property
    def page(self) -> Path:
        """The page."""
        return self.path / "study.html"

    def search(self, arm: str, seed: int) -> Path:
        """Return the folder of a search."""
        return self.path / "search" / arm / f"seed={seed}"

    def retrain(self, setting: str, arm: str, seed: int, repeat: int) -> Path:
        """Return the folder of a training of what a search found."""
        return self.path / "retrain" / setting / arm / f"seed={seed},repeat={repeat}"

    def name_of(self, path: Path) -> str:
        """Return a path within the folder relative to it."""
        return path.relative_to(self.path).as_posix()
