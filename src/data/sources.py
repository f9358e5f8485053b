"""Where images come from. A source reads one split when it is asked for it, and nothing before."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.datasets import CIFAR10, FashionMNIST
from torchvision.transforms import functional as TF

from src.common.errors import ConfigError, shorten
from src.data.images import Images
from src.data.split import split_halves


class Source(ABC):
    """A data set: a train split, a test split, and perhaps a validation split of its own.

    Attributes:
        name: what a run's record calls the data set.
    """

    name: str

    @abstractmethod
    def train(self) -> Images:
        """Read the train split; no file of the test split is opened."""

    def validation(self) -> Images | None:
        """Read the validation split, or return None where there is none."""
        return None

    @abstractmethod
    def test(self) -> Images:
        """Read the test split."""

    def check_test(self) -> None:  # noqa: B027 (most sources know nothing earlier)
        """Raise the `ConfigError` that `test()` would, as far as file names tell, before a long training."""


class _CifarTrain(CIFAR10):
    test_list: ClassVar[list[list[str]]] = []  # torchvision would check the sums of the test files, too


class _CifarTest(CIFAR10):
    train_list: ClassVar[list[list[str]]] = []


class Cifar10(Source):
    """CIFAR-10: 50,000 and 10,000 images of 32x32x3 in ten classes; downloaded to `root` on first use."""

    name = "cifar10"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()

    def train(self) -> Images:
        """Read the train split."""
        return self._read(_CifarTrain, train=True)

    def test(self) -> Images:
        """Read the test split."""
        return self._read(_CifarTest, train=False)

    def _read(self, dataset: type[CIFAR10], *, train: bool) -> Images:
        def read() -> Images:
            data = dataset(self.root, train=train, download=True)
            pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
            return Images(pixels, torch.tensor(data.targets), tuple(data.classes))

        return _obtain(read, what="CIFAR-10", files=CIFAR10.url, unpacked=self.root / CIFAR10.base_folder)


class FashionMnist(Source):
    """Fashion-MNIST: 60,000 and 10,000 images of 28x28x1 in ten classes; downloaded to `root` on first use."""

    name = "fashion_mnist"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()

    def train(self) -> Images:
        """Read the train split."""
        return self._read(train=True)

    def test(self) -> Images:
        """Read the test split."""
        return self._read(train=False)

    def _read(self, *, train: bool) -> Images:
        def read() -> Images:
            data = FashionMNIST(self.root, train=train, download=True)
            return Images(data.data[:, None], data.targets, tuple(data.classes))

        files = f"the four .gz files of {FashionMNIST.mirrors[0]}"
        return _obtain(read, what="Fashion-MNIST", files=files, unpacked=self.root / "FashionMNIST" / "raw")


def _obtain(read: Callable[[], Images], *, what: str, files: str, unpacked: Path) -> Images:
    try:
        return read()
    except Exception as error:  # network, disk, archive and parser each fail with kinds of their own
        reason = shorten(error, 200) or type(error).__name__
        raise ConfigError(
            f"{what} could not be downloaded or read ({reason}); its files may be put there by hand: "
            f"{files}, unpacked in {unpacked}"
        ) from error


class Digits(Source):
    """The 1,797 handwritten digits of 8x8x1 pixels that come with scikit-learn.

    They have no official test split: a fifth of each class is it, always the same one, whatever the run's seed.
    Their 17 grey levels are spread over 0 to 255.
    """

    name = "digits"

    def train(self) -> Images:
        """Return the train split, 1,438 images."""
        return self._parts()[0]

    def test(self) -> Images:
        """Return the test split, 359 images."""
        return self._parts()[1]

    def _parts(self) -> tuple[Images, Images]:
        digits: Any = load_digits()
        pixels = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))[:, None]
        labels = torch.from_numpy(digits.target).long()
        images = Images(pixels, labels, tuple(str(name) for name in digits.target_names))
        train, test = split_halves(labels, arch_fraction=0.2, seed=0)
        return images.select(train), images.select(test)


class ImageFolder(Source):
    """Folders of images: `train/CLASS/*`, `test/CLASS/*` and, if there is one, `validation/CLASS/*`.

    Any format that PIL reads will do. Images become RGB, or stay grey if all of the train split are. Files and folders
    whose names begin with a dot are passed over.

    Args:
        root: the folder that holds `train`.
        image_size: the short side is resized to this and the centre cut out; None leaves images as they are, and then
            all must have one size.

    Raises:
        ConfigError: a folder is missing, or (when a split is read) holds no images, one class only, other classes than
            the train split, images of different sizes, or a file that is no readable image.
    """

    def __init__(self, root: str | Path, image_size: int | None = None) -> None:
        if image_size is not None and not (isinstance(image_size, int) and image_size >= 1):
            raise ConfigError(f"data.source.image_size={image_size}, allowed are null and whole numbers from 1")
        self.root = Path(root).expanduser()
        self.image_size = image_size
        self.name = f"image_folder:{self.root.resolve().name}"
        if not self.root.is_dir():
            raise ConfigError(f"data.source.root={root} is not a folder, allowed is one that holds train/CLASS/*")
        self._folder("train")

    def train(self) -> Images:
        """Read the train split."""
        return self._read("train")

    def validation(self) -> Images | None:
        """Read the validation split, or return None where there is no such folder."""
        return self._read("validation") if (self.root / "validation").is_dir() else None

    def test(self) -> Images:
        """Read the test split."""
        return self._read("test")

    def check_test(self) -> None:
        """Raise a `ConfigError` if the test folder is missing or its classes are not those of the train folder."""
        self._files("test")

    def _folder(self, split: str) -> Path:
        folder = self.root / split
        if not folder.is_dir():
            raise ConfigError(f"{self.root} has no folder {split!r}, needed is {split}/CLASS/*")
        return folder

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        folder = self._folder("train")
        classes = _subfolders(folder)
        if len(classes) < 2:
            found = f"one class only ({classes[0]})" if classes else "no class folders"
            raise ConfigError(f"{folder} has {found}, needed are two or more folders of images")
        return classes

    def _files(self, split: str) -> tuple[list[Path], list[int]]:
        """Return the image files of a split, sorted by class and name, and their labels."""
        folder = self._folder(split)
        for name in sorted(set(self._classes) ^ set(_subfolders(folder))):
            where = ("train", split) if name in self._classes else (split, "train")
            raise ConfigError(f"class {name!r} is in {self.root / where[0]} but not in {self.root / where[1]}")
        paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(self._classes):
            with os.scandir(folder / name) as entries:
                found = sorted(entry.name for entry in entries if entry.is_file() and not entry.name.startswith("."))
            if not found:
                raise ConfigError(f"{folder / name} holds no images, needed is one or more for each class")
            paths += [folder / name / file for file in found]
            labels += [label] * len(found)
        return paths, labels

    @cached_property
    def _mode(self) -> str:
        """The mode of PIL that all splits are read in; it follows from the train split alone."""
        paths, _ = self._files("train")
        return "L" if all(_mode_of(path) in ("1", "L") for path in paths) else "RGB"

    def _read(self, split: str) -> Images:
        paths, labels = self._files(split)
        first = self._decode(paths[0])
        pixels = torch.empty(len(paths), *first.shape, dtype=torch.uint8)

        def read_into(index: int) -> None:
            image = self._decode(paths[index])
            if image.shape != first.shape:
                sizes = [f"{path} is {_size(size)}" for path, size in ((paths[0], first), (paths[index], image))]
                raise ConfigError(f"{' and '.join(sizes)}; to resize all images set data.source.image_size=N")
            pixels[index] = image

        with ThreadPoolExecutor() as pool:  # PIL decodes outside of Python's lock
            for _ in pool.map(read_into, range(len(paths))):
                pass
        return Images(pixels, torch.tensor(labels), self._classes)

    def _decode(self, path: Path) -> Tensor:
        """Return an image as uint8 (C, H, W)."""
        mode = self._mode
        try:
            with Image.open(path) as file:
                if file.mode.startswith(("I", "F")):
                    raise ConfigError("more than 8 bits a channel")
                image: Any = file.convert(mode)
                if self.image_size is not None:
                    image = TF.center_crop(TF.resize(image, [self.image_size]), [self.image_size])
        except Exception as error:  # PIL's readers raise OSError, SyntaxError, ValueError and more
            raise _unreadable(path, error) from error
        return torch.from_numpy(np.array(image).reshape(image.height, image.width, -1)).permute(2, 0, 1)


def _subfolders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


def _mode_of(path: Path) -> str:
    try:
        with Image.open(path) as file:
            return file.mode
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ConfigError:
    # PIL's own message for what is no image repeats the path
    reason = "" if str(path) in str(error) else f" ({shorten(error, 100)})"
    return ConfigError(f"{path} is not a readable image{reason}")


def _size(image: Tensor) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"
