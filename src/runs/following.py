"""What to type after a run. Nothing here needs torch, so that a report can say it, too."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from src.common.shell import override, pastable
from src.runs.folder import RunFolder


def config_folder() -> Path:
    """Return the folder of the commands' configs: conf/ of a checkout, or the one that was installed."""
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent / "conf"
    return checkout if (checkout / "search.yaml").is_file() else package / "conf"


CONF = config_folder()


def overrides_of(command: str | None) -> list[str]:
    """Return the overrides of a run's command; none where it is not known."""
    try:
        return shlex.split(command or "")[3:]
    except ValueError:  # quotes that do not close
        return []


def retrain_overrides(command: str | None) -> list[str]:
    """Return the overrides of a retrain that go with those of a search's command: its experiment and its trainer.

    A selection has the experiment of its search.
    """
    kept = []
    for text in overrides_of(command):
        key, _, value = text.partition("=")
        if key == "search":
            kept += [text for text in retrain_overrides(_command_in(value)) if text.startswith("experiment=")]
        elif key == "experiment" and (CONF / key / f"{value}_retrain.yaml").is_file():
            kept.append(f"{text}_retrain")
        elif key == "trainer":
            kept.append(text)
    return kept


def _command_in(folder: str) -> str | None:
    """Return the command of a run; None where it is not known."""
    try:
        return str(json.loads(RunFolder.of(folder).result.read_bytes())["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def retrain_command(command: str | None, folder: object, seeds: str | None = None) -> str:
    """Return what retrains a search's genotype, with the experiment and the trainer that go with the search's.

    Args:
        command: of the search.
        folder: of the search.
        seeds: for a sweep, such as `0,1,2,3`.
    """
    typed = [*retrain_overrides(command), override("genotype", folder)]
    return pastable("retrain", typed if seeds is None else ["-m", *typed, f"seed={seeds}"])


def other_seeds_command(kind: str, command: str | None, seed: object) -> str:
    """Return what runs a run again with those seeds of 0 to 3 that it has not had.

    Args:
        kind: of the run: `search` or `retrain`.
        command: of the run.
        seed: of the run.
    """
    kept = [text for text in overrides_of(command) if text.partition("=")[0] not in ("seed", "folder", "-m")]
    others = ",".join(str(other) for other in range(4) if other != seed)
    return pastable(kind, ["-m", *kept, f"seed={others}"])
