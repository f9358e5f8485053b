"""Image files: which of them there are, and what is in one."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import functional as TF

from src.common.errors import ConfigError, shorten

MODES = {1: "L", 3: "RGB"}  # of PIL, by the number of channels


def decode(path: Path, mode: str, size: tuple[int, int] | None = None) -> Tensor:
    """Return the pixels of an image file, turned upright as its EXIF orientation says, uint8 (C, H, W).

    Args:
        path: the file.
        mode: of PIL, to which the image is converted: `L` (grey) or `RGB`.
        size: (H, W); the image is resized until it covers this, and the centre is cut out. None leaves it as it is.

    Raises:
        ConfigError: it is not a readable image, or has more than 8 bits per channel.
    """
    try:
        with Image.open(path) as file:
            check_depth(file)
            image: Any = ImageOps.exif_transpose(file).convert(mode)
            if size is not None:
                image = _covering(image, *size)
    except Exception as error:  # PIL's readers raise OSError, SyntaxError, ValueError and more
        raise unreadable(path, error) from error
    return torch.from_numpy(np.array(image).reshape(image.height, image.width, -1)).permute(2, 0, 1)


def _covering(image: Any, height: int, width: int) -> Any:
    """Return the centre of an image, resized until one of its sides fits and the other is as long or longer."""
    if height * image.width >= width * image.height:
        sides = [height, int(height * image.width / image.height)]
    else:
        sides = [int(width * image.height / image.width), width]
    return TF.center_crop(TF.resize(image, sides), [height, width])


def check_depth(file: Image.Image) -> None:
    """Raise a `ConfigError` for an image with more than 8 bits per channel."""
    if file.mode.startswith(("I", "F")):
        raise ConfigError("it has more than 8 bits per channel")


def unreadable(path: Path, error: Exception) -> ConfigError:
    """Return the error of a file that cannot be read as an image."""
    # PIL's own message for what is not an image repeats the path
    reason = "" if str(path) in str(error) else f" ({shorten(error, 100)})"
    return ConfigError(f"{path} is not a readable image{reason}")


def walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the image files in a folder and in the folders within it, and the other files, sorted."""

    def refuse(error: OSError) -> None:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}")

    images: list[Path] = []
    others: list[Path] = []
    for name, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        place = Path(name)
        if place.is_symlink() and place.parent.resolve().is_relative_to(place.resolve()):
            folders.clear()  # a link to a folder that it is in
            continue
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        for file in files:
            if not file.startswith("."):
                (images if Path(file).suffix.lower() in _extensions() else others).append(place / file)
    for paths in (images, others):
        paths.sort(key=lambda path: (str(path.parent), path.name))
    return images, others


@cache
def _extensions() -> set[str]:
    """Return the extensions, in lower case, of the formats that PIL reads."""
    Image.init()
    return {extension for extension, name in Image.EXTENSION.items() if name in Image.OPEN}
