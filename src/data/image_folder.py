"""Folders of images, one for each class, as a source."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_only
from PIL import ExifTags, Image
from torch import Tensor

from src.common.errors import ConfigError, must_be
from src.data.images import check_depth, decode, unreadable, walk
from src.data.samples import Samples
from src.data.sources import Source
from src.data.tasks import Classification

VALIDATION = ("validation", "valid", "val")  # names of the validation folder


class ImageFolder(Source):
    """Folders of images: `train/CLASS/`, `test/CLASS/` and, if there is one, `validation/CLASS/` (or `valid`, `val`).

    The images of a class may be in folders within its folder. Any format that PIL reads will do. Images are turned
    upright, as their EXIF orientation says, and become RGB; they stay grey if all of the train split are. Files and
    folders whose names begin with a dot are ignored. Files that are not images, by their extension, are counted in a
    line on stderr. All images of a split are kept in memory, uncompressed.

    Args:
        root: the folder that holds `train`.
        image_size: the short side is resized to this and the centre cut out; None leaves images as they are, and then
            all must have one size.

    Raises:
        ConfigError: a folder is missing, or (when a split is read) holds no images, one class only, other classes than
            the train split, images of different sizes, more images than fit into memory, or a file that is not a
            readable image.
    """

    def __init__(self, root: str | Path, image_size: int | None = None) -> None:
        if image_size is not None and not (isinstance(image_size, int) and image_size >= 1):
            raise must_be("image_size", "null or a whole number from 1", image_size)
        self.root = Path(root).expanduser()
        self.image_size = image_size
        self.name = f"image_folder:{self.root.resolve().name}"
        self._listed: dict[str, _Listing] = {}
        if not self.root.is_dir():
            raise ConfigError(f"root must be a folder that holds train/CLASS/, got {root}", argument="root")
        self._folder("train")

    def train(self) -> Samples:
        """Read the train split."""
        self._check_memory(["train", *self._validation_name])
        return self._read("train")

    def validation(self) -> Samples | None:
        """Read the validation split, or return None where there is no such folder."""
        return self._read(self._validation_name[0]) if self._validation_name else None

    def test(self) -> Samples:
        """Read the test split."""
        return self._read("test")

    def check_test(self) -> None:
        """Raise the `ConfigError` that `test()` would, as far as names and the headers of files tell."""
        test, first = self._files("test"), self._files("train").paths[0]
        size = None if self.image_size is not None else _header(first).size

        def check(path: Path) -> None:
            header = _header(path)
            # A few PNG files have their orientation behind the pixels, where reading the header does not find it.
            if size is not None and header.size != size and _size(self._decode(path)) != size:
                raise _different_sizes({first: size, path: header.size})

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(check, test.paths):
                pass
        self._check_memory(["train", *self._validation_name, "test"])

    @cached_property
    def _validation_name(self) -> list[str]:
        """The name of the validation folder, if there is one."""
        found = [name for name in VALIDATION if (self.root / name).is_dir()]
        if len(found) > 1:
            raise ConfigError(f"{self.root} must have one validation folder at most, got {' and '.join(found)}")
        return found

    def _folder(self, split: str) -> Path:
        folder = self.root / split
        if not folder.is_dir():
            needed = f"{split}/CLASS/ is needed" if split == "train" else f"a retrain needs {split}/CLASS/"
            hint = "".join(f", and {name!r} is used for validation alone" for name in self._validation_name)
            raise ConfigError(f"{self.root} has no folder {split!r}: {needed}{hint}")
        return folder

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        folder = self._folder("train")
        classes = _subfolders(folder)
        if len(classes) < 2:
            found = f"one class only ({classes[0]})" if classes else "no folder"
            raise ConfigError(f"{folder} must have a folder of images for each of two or more classes, got {found}")
        return classes

    def _files(self, split: str) -> _Listing:
        if split not in self._listed:
            self._listed[split] = self._list(split)
        return self._listed[split]

    def _list(self, split: str) -> _Listing:
        folder = self._folder(split)
        for name in sorted(set(self._classes) ^ set(_subfolders(folder))):
            where = ("train", split) if name in self._classes else (split, "train")
            raise ConfigError(f"class {name!r} is in {self.root / where[0]} but not in {self.root / where[1]}")
        paths: list[Path] = []
        labels: list[int] = []
        others = sorted(path for path in folder.iterdir() if not path.is_dir() and not path.name.startswith("."))
        for label, name in enumerate(self._classes):
            images, skipped = walk(folder / name)
            if not images:
                found = f" ({len(skipped)} other files, such as {skipped[0].name})" if skipped else ""
                raise ConfigError(f"{folder / name} has no images{found}: each class needs one or more")
            paths += images
            labels += [label] * len(images)
            others += skipped
        if others:
            _say(f"{folder}: skipped {len(others)} files that are not images of a class, such as {others[0].name}")
        return _Listing(paths, labels)

    @cached_property
    def _mode(self) -> str:
        """The mode of PIL that all splits are read in; it follows from the train split alone."""
        grey = all(_header(path).mode in ("1", "L") for path in self._files("train").paths)
        return "L" if grey else "RGB"

    def _check_memory(self, splits: Sequence[str]) -> None:
        """Raise a `ConfigError` unless all images of some splits fit into memory together."""
        available = _available_memory()
        if available is None:
            return
        count = sum(len(self._files(split).paths) for split in splits)
        channels = 1 if self._mode == "L" else 3
        side = self.image_size
        width, height = _header(self._files("train").paths[0]).size if side is None else (side, side)
        needed = count * channels * width * height
        if needed > available:
            fits = int((0.9 * available / (count * channels)) ** 0.5)
            hint = f"; image_size={fits} or less would fit" if fits else ""
            raise ConfigError(
                f"{count:,} images of {width}x{height} need {_gigabytes(needed)} of memory, and "
                f"{_gigabytes(available)} are available{hint}"
            )

    def _read(self, split: str) -> Samples:
        paths, labels = self._files(split)
        first = self._decode(paths[0])
        pixels = torch.empty(len(paths), *first.shape, dtype=torch.uint8)

        def read_into(index: int) -> None:
            image = self._decode(paths[index])
            if image.shape != first.shape:
                raise _different_sizes({paths[0]: _size(first), paths[index]: _size(image)})
            pixels[index] = image

        with ThreadPoolExecutor() as pool:  # PIL decodes outside of Python's lock
            for _ in pool.map(read_into, range(len(paths))):
                pass
        return Samples(pixels, torch.tensor(labels), Classification(self._classes))

    def _decode(self, path: Path) -> Tensor:
        """Return an image as uint8 (C, H, W)."""
        return decode(path, self._mode, None if self.image_size is None else (self.image_size, self.image_size))


class _Listing(NamedTuple):
    """The image files of a split, sorted by class, folder and name, and their labels."""

    paths: list[Path]
    labels: list[int]


class _Header(NamedTuple):
    """What can be known of an image without decoding it."""

    mode: str  # of PIL
    size: tuple[int, int]  # (width, height), upright


def _header(path: Path) -> _Header:
    try:
        with Image.open(path) as file:
            check_depth(file)
            width, height = file.size
            # PIL turns a TIFF's size by itself, and decodes all of a PNG in search of an orientation.
            turns = file.format != "TIFF" and (file.format != "PNG" or "exif" in file.info)
            if turns and file.getexif().get(ExifTags.Base.Orientation, 1) >= 5:
                width, height = height, width
            return _Header(file.mode, (width, height))
    except Exception as error:
        raise unreadable(path, error) from error


def _subfolders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


@rank_zero_only
def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _different_sizes(sizes: dict[Path, tuple[int, int]]) -> ConfigError:
    found = " and ".join(f"{path} is {width}x{height}" for path, (width, height) in sizes.items())
    return ConfigError(f"{found}; set image_size to resize all images")


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[2], image.shape[1]


def _available_memory() -> int | None:
    """Return how many bytes can be had, by the machine and by this process's control group; None where unknown."""
    found: list[int] = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup") / Path("/proc/self/cgroup").read_text().split("::/", 1)[1].strip()
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["file"]
        found += [] if limit == "max" else [int(limit) - int(used) + int(cached)]
    except (OSError, LookupError):  # another system, or another version of control groups
        pass
    return min(found, default=None)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
