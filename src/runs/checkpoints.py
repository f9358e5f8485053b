"""Checkpoint files: written whole, read without executing anything, and refused in one line if they do not fit.

`last.ckpt` is the newest; `previous.ckpt` the one before it, for the case that the newest is damaged later.
"""

from __future__ import annotations

import io
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

# What a checkpoint of this code holds besides Lightning's own; all are primitives, tensors and containers of them.
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
    """Lightning's way to the disk: whole files, and the previous one kept until the new one is whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; an existing one is kept as `previous.ckpt` beside it."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(Path(path), buffer.getvalue(), previous=Path(path).with_name(RunFolder("").previous.name))

    def load_checkpoint(
        self, path: Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, whatever `weights_only` says without executing anything in it."""
        return load(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


def load(path: Path, *, largest: int | None = None) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Its checksums are verified first, and nothing in it is executed.

    Args:
        path: the file.
        largest: bytes that it may hold, packed or unpacked; None is no bound.

    Raises:
        ConfigError: the file cannot be read, is damaged, too large, or no checkpoint of this code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            held = max(path.stat().st_size, sum(member.file_size for member in archive.infolist()))
            too_large = largest is not None and held > largest
            damaged = None if too_large else archive.testzip()
        checkpoint = None if too_large or damaged else torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"there is no checkpoint {path}") from None
    except Exception as error:  # zipfile, pickle and torch raise a dozen kinds for files that are none of theirs
        raise ConfigError(f"checkpoint {path} is damaged or no checkpoint ({shorten(error, 100)})") from None
    if too_large:
        raise ConfigError(f"checkpoint {path} holds {held} bytes, allowed are {largest} for this run")
    if damaged:
        raise ConfigError(f"checkpoint {path} is damaged: {shorten(damaged)} fails its checksum")
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != CHECKPOINT_FORMAT:
        found = checkpoint.get("format") if isinstance(checkpoint, dict) else None
        raise ConfigError(
            f"checkpoint {path} has the format {shorten(found)}, this version reads the format {CHECKPOINT_FORMAT}"
        )
    for name, kind in PARTS.items():
        if not isinstance(checkpoint.get(name), kind):
            raise ConfigError(f"checkpoint {path} holds no {kind.__name__} {name!r}, it is none of this code's")
    return checkpoint


def newest(folder: RunFolder, module: nn.Module) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest whole checkpoint in a run's folder, or None if there is none at all.

    A damaged one is reported on stderr, and the one before it is used.

    Raises:
        ConfigError: no checkpoint there is whole, or it is of another network than `module`.
    """
    paths = [path for path in (folder.last, folder.previous) if path.exists()]
    parameters = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    damage: list[str] = []
    for path in paths:
        try:
            # Weights, momentum and two of Adam's; the rest is small.
            checkpoint = load(path, largest=4 * parameters + (64 << 20))
        except ConfigError as error:
            damage.append(str(error))
            continue
        _check_fits(path, checkpoint["state_dict"], module.state_dict())
        if damage:
            print(f"{damage[0]}; going on from {path.name}", file=sys.stderr)
        return path, checkpoint
    if damage:
        raise ConfigError("; ".join(damage))
    return None


def _check_fits(path: Path, saved: Mapping[Any, Any], own: Mapping[str, Tensor]) -> None:
    """Raise a `ConfigError` that names the first difference."""
    for name in [*own, *saved]:
        ours, theirs = own.get(name), saved.get(name)
        if ours is None or theirs is None:
            what = "does not have" if theirs is None else "has"
            raise ConfigError(f"checkpoint {path} is of another network: it {what} {shorten(name)!r}")
        if not isinstance(theirs, Tensor) or theirs.shape != ours.shape:
            shape = tuple(theirs.shape) if isinstance(theirs, Tensor) else type(theirs).__name__
            raise ConfigError(
                f"checkpoint {path} is of another network: {name!r} is {shape} there, {tuple(ours.shape)} here"
            )
