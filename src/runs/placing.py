"""Where a run goes: a new folder of its own, or the one that it is told."""

from __future__ import annotations

import hashlib
import os
import re
from itertools import count
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.common.shell import parsed

_LONGEST_NAME = 150  # file systems allow 255 bytes

_made: dict[str, str] = {}
_makes = False


def begin(*, makes: bool) -> None:
    """Forget the folders of earlier runs of this process. With `makes` false, none is made from now on."""
    global _makes  # noqa: PLW0603
    _made.clear()
    _makes = makes


def new_folder(name: str) -> str:
    """Return `name`, or `name_1`, `name_2`, ... if others were faster, as a folder that this process has made.

    Two runs that begin in one second have the same name; making a folder succeeds for one of them only. Asked again, it
    returns the same folder.
    """
    if _makes and name not in _made:
        _made[name] = _make(Path(name))
    return _made.get(name, name)


def _make(path: Path) -> str:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in count():
            folder = path if number == 0 else path.with_name(f"{path.name}_{number}")
            try:
                os.mkdir(folder)
            except FileExistsError:
                continue
            return str(folder)
    except OSError:
        pass  # Hydra will try the same, and say what is wrong
    return str(path)


def _job_name(*keys: str, _root_: DictConfig) -> str:
    """Return what sets a job of a sweep apart from the others, as the name of a folder: `order=2,seed=1`.

    Without keys, or where the job has none of them, it is the job's number.
    """
    overrides = [parsed(text) for text in _root_.hydra.overrides.task]
    values = {one.key_or_group: one.value() for one in overrides if one is not None and not one.is_delete()}
    name = ",".join(f"{key}={_short(values[key])}" for key in keys if key in values)
    if not name:
        return str(_root_.hydra.job.num)
    name = name.replace("/", "-")
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 7]}-{_digest(name)}"


def _short(value: Any) -> str:
    """Return a value in the characters of a file's name; one that had others is told apart by a digest."""
    text = str(value)
    ends = text.rstrip("/").rpartition("/")[2]
    plain = re.sub(r"[^\w.+-]+", "-", ends).strip("-")[:40]
    return plain if plain == text else f"{plain}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=3).hexdigest()


def _first(*keys: str, _root_: DictConfig) -> Any:
    """Return the first of some settings that is not null, without looking up the others."""
    return next((value for key in keys if (value := OmegaConf.select(_root_, key)) is not None), None)


# conf/ has the folder of a run, or of a sweep, from these. A launcher that starts processes of its own imports this
# module there.
OmegaConf.register_new_resolver("first", _first, replace=True)
OmegaConf.register_new_resolver("job_name", _job_name, replace=True)
OmegaConf.register_new_resolver("new_folder", new_folder, replace=True, use_cache=True)
