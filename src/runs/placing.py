"""Where a run goes: a new folder of its own, or the one that it is told."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

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


def _first(*keys: str, _root_: DictConfig) -> Any:
    """Return the first of some settings that is not null, without looking up the others."""
    return next((value for key in keys if (value := OmegaConf.select(_root_, key)) is not None), None)


# conf/ has the folder of a run, or of a sweep, from these. A launcher that starts processes of its own imports this
# module there.
OmegaConf.register_new_resolver("first", _first, replace=True)
OmegaConf.register_new_resolver("new_folder", new_folder, replace=True, use_cache=True)
