"""Checkpoint files: written whole, read without executing anything in them, refused in one line if they do not fit.

`last.ckpt` is the newest; `previous.ckpt` is the one before it, in case the newest is damaged later.
"""

from __future__ import annotations

import io
import math
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor, nn

from src.common.errors import ConfigError, shorten
from src.common.files import write_whole
from src.runs.folder import RunFolder
from src.training.module import CHECKPOINT_FORMAT

# What a checkpoint must hold; all are primitives, tensors and containers of them.
PARTS: dict[str, type] = {
    "format": int,
    "epoch": int,
    "global_step": int,
    "state_dict": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "callbacks": dict,
    "loops": dict,
    "epoch_sums": list,
}


class WholeCheckpoints(CheckpointIO):
    """Reads and writes checkpoint files for Lightning, and makes their folders."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint whole or not at all. `storage_options`: where a file that is there already is kept."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(path, buffer.getvalue(), previous=storage_options)

    def load_checkpoint(
        self, path: Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint without executing anything in it, whatever `weights_only` says."""
        return load(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


def load(path: Path, *, largest: int | None = None) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Its checksums are verified first, and nothing in it is executed.

    Args:
        path: the file.
        largest: bytes that it may hold, packed or unpacked; None is no limit.

    Raises:
        ConfigError: the file cannot be read, is damaged or too large, or was not written by this code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            held = max(path.stat().st_size, sum(member.file_size for member in archive.infolist()))
            too_large = largest is not None and held > largest
            damaged = None if too_large else archive.testzip()
        checkpoint = None if too_large or damaged else torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"there is no checkpoint {path}") from None
    except Exception as error:  # zipfile, pickle and torch raise a dozen kinds for files that are not theirs
        raise ConfigError(f"{path} is a damaged checkpoint, or not a checkpoint ({shorten(error, 100)})") from None
    if too_large:
        raise ConfigError(f"checkpoint {path} must hold {largest} bytes or fewer to fit this run, got {held}")
    if damaged:
        raise ConfigError(f"checkpoint {path} is damaged: {shorten(damaged)} fails its checksum")
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != CHECKPOINT_FORMAT:
        found = checkpoint.get("format") if isinstance(checkpoint, dict) else None
        raise ConfigError(
            f"checkpoint {path} must have format {CHECKPOINT_FORMAT} to be read by this version, got {shorten(found)}"
        )
    for name, kind in {**PARTS, **({"run": dict} if "run" in checkpoint else {})}.items():  # older ones have no facts
        if not isinstance(checkpoint.get(name), kind):
            raise ConfigError(f"checkpoint {path} was not written by this code: it holds no {kind.__name__} {name!r}")
    return checkpoint


def newest(
    folder: RunFolder, module: nn.Module, *, data: Mapping[str, Any] | None = None
) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest whole checkpoint in a run's folder, or None if there is none at all.

    A damaged one is reported on stderr, and the one before it is used.

    Args:
        folder: of the run.
        module: that the checkpoint is to be loaded into.
        data: what the record says of the run's data; None does not compare them.

    Raises:
        ConfigError: no checkpoint there is whole, or it was written for other data or another network.
    """
    parameters = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    # The weights, their momentum or Adam's two averages; the rest is small.
    found = newest_whole(folder, largest=4 * parameters + (64 << 20))
    if found is not None:
        path, checkpoint = found
        _check_same_data(folder, checkpoint.get("run", {}), data or {})
        check_fits(path, checkpoint["state_dict"], module.state_dict())
    return found


def newest_whole(folder: RunFolder, *, largest: int) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest whole checkpoint in a run's folder and its content, or None if there is none at all.

    A damaged one is reported on stderr, and the one before it is used.

    Raises:
        ConfigError: no checkpoint there is whole and holds `largest` bytes or fewer.
    """
    damage: list[str] = []
    for path in (folder.last, folder.previous):
        if not path.exists():
            continue
        try:
            checkpoint = load(path, largest=largest)
        except ConfigError as error:
            damage.append(str(error))
            continue
        if damage:
            print(f"{damage[0]}; using {path.name}", file=sys.stderr)
        return path, checkpoint
    if damage:
        raise ConfigError("; ".join(damage))
    return None


def _check_same_data(folder: RunFolder, facts: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` that names the first difference between a run's data and those that it is resumed with."""
    before = facts.get("data")
    for name, value in data.items():
        # The name may follow the place of the data, which may change.
        if name == "name" or not isinstance(before, dict) or name not in before or _alike(before[name], value):
            continue
        raise ConfigError(
            f"the data must be those that the run in {folder} was trained on: {name} was {shorten(before[name])}, got "
            f"{shorten(value)}"
        )


def _alike(one: Any, other: Any) -> bool:
    """Return whether two values of a record are equal, numbers up to rounding on another machine."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return one == other


def check_fits(path: Path, saved: Mapping[Any, Any], own: Mapping[str, Tensor]) -> None:
    """Raise a `ConfigError` that names the first difference."""
    for name in [*own, *saved]:
        ours, theirs = own.get(name), saved.get(name)
        if ours is None or theirs is None:
            what = "lacks" if theirs is None else "has"
            raise ConfigError(f"checkpoint {path} is for another network: it {what} {shorten(name)!r}")
        if not isinstance(theirs, Tensor) or theirs.shape != ours.shape:
            shape = tuple(theirs.shape) if isinstance(theirs, Tensor) else type(theirs).__name__
            raise ConfigError(
                f"checkpoint {path} is for another network: {name!r} must have shape {tuple(ours.shape)}, got {shape}"
            )
