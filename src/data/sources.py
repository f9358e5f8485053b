"""Where samples come from. A source on disk reads one split when it is asked for it, and nothing before."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torchvision.datasets import CIFAR10, FashionMNIST

from src.common.errors import ConfigError, must_be, shorten, unknown
from src.data.samples import Samples
from src.data.split import split_halves
from src.data.tasks import Classification


class Source(ABC):
    """A data set: a train split, a test split, and perhaps a validation split of its own.

    Name a class of your own with `data=own data.source._target_=my_package.MySource`. A function that returns `Samples`
    will do as well; see `as_source`.

    Attributes:
        name: what a run's record calls the data set; the name of the class unless given.
    """

    name: str

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.name = cls.__dict__.get("name", cls.__name__)

    @abstractmethod
    def train(self) -> Samples:
        """Read the train split; no file of the test split is opened."""

    def validation(self) -> Samples | None:
        """Read the validation split, or return None where there is none."""
        return None

    @abstractmethod
    def test(self) -> Samples:
        """Read the test split."""

    def check_test(self) -> None:  # noqa: B027 (most sources know nothing earlier)
        """Raise the `ConfigError` that `test()` would, as far as can be told quickly, before a long training."""


class InMemory(Source):
    """Samples that are at hand.

    Args:
        train: the train split.
        test: the test split. None holds back a fifth of `train`, of every class in proportion, always the same one
            whatever the run's seed.
        validation: the validation split, if there is one.
        name: what a run's record calls the data set.
    """

    def __init__(
        self, train: Samples, test: Samples | None = None, validation: Samples | None = None, name: str = "in_memory"
    ) -> None:
        self.name = name
        self._validation = validation
        if test is None:
            kept, held_back = split_halves(train.strata(), arch_fraction=0.2, seed=0)
            train, test = train.select(kept), train.select(held_back)
        self._train, self._test = train, test

    def train(self) -> Samples:
        """Return the train split."""
        return self._train

    def validation(self) -> Samples | None:
        """Return the validation split, or None."""
        return self._validation

    def test(self) -> Samples:
        """Return the test split."""
        return self._test


def as_source(given: Any) -> Source:
    """Return a source of what a user gives as one.

    Args:
        given: a `Source`; or `Samples`, which become `InMemory(samples)`; or a dictionary of `Samples` with the keys
            "train", "test" and "validation", of which the first is needed, which becomes `InMemory(**dictionary)`.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(given, Source):
        return given
    splits: Any = {"train": given} if isinstance(given, Samples) else given
    if not isinstance(splits, Mapping) or not all(isinstance(split, Samples) for split in splits.values()):
        needed = "a Source, Samples, or a dictionary of Samples by split"
        raise must_be("source", needed, f"{type(given).__module__}.{type(given).__qualname__}")
    allowed = ("train", "test", "validation")
    for name in splits:
        if name not in allowed:
            raise unknown("split of the source:", name, allowed)
    if "train" not in splits:
        raise ConfigError(f"source must have a train split, got {', '.join(splits) or 'no split'}", argument="source")
    return InMemory(**splits)


class _CifarTrain(CIFAR10):
    test_list: ClassVar[list[list[str]]] = []  # torchvision would check the sums of the test files, too


class _CifarTest(CIFAR10):
    train_list: ClassVar[list[list[str]]] = []


class Cifar10(Source):
    """CIFAR-10: 50,000 and 10,000 images of 32x32x3 in ten classes; downloaded to `root` on first use."""

    name = "cifar10"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()

    def train(self) -> Samples:
        """Read the train split."""
        return self._read(_CifarTrain, train=True)

    def test(self) -> Samples:
        """Read the test split."""
        return self._read(_CifarTest, train=False)

    def _read(self, dataset: type[CIFAR10], *, train: bool) -> Samples:
        def read() -> Samples:
            data = dataset(self.root, train=train, download=True)
            pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
            return Samples(pixels, torch.tensor(data.targets), Classification(data.classes))

        return _obtain(read, what="CIFAR-10", files=CIFAR10.url, unpacked=self.root / CIFAR10.base_folder)


class FashionMnist(Source):
    """Fashion-MNIST: 60,000 and 10,000 images of 28x28x1 in ten classes; downloaded to `root` on first use."""

    name = "fashion_mnist"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()

    def train(self) -> Samples:
        """Read the train split."""
        return self._read(train=True)

    def test(self) -> Samples:
        """Read the test split."""
        return self._read(train=False)

    def _read(self, *, train: bool) -> Samples:
        def read() -> Samples:
            data = FashionMNIST(self.root, train=train, download=True)
            return Samples(data.data[:, None], data.targets, Classification(data.classes))

        files = f"the four .gz files of {FashionMNIST.mirrors[0]}"
        return _obtain(read, what="Fashion-MNIST", files=files, unpacked=self.root / "FashionMNIST" / "raw")


def _obtain(read: Callable[[], Samples], *, what: str, files: str, unpacked: Path) -> Samples:
    try:
        return read()
    except Exception as error:  # network, disk, archive and parser each raise errors of their own kinds
        reason = shorten(error, 200) or type(error).__name__
        raise ConfigError(
            f"{what} could not be downloaded or read ({reason}); you can get its files by hand: "
            f"{files}, unpacked in {unpacked}"
        ) from error


@functools.cache  # of a sweep, each job asks for them
def _digits() -> Any:
    from sklearn.datasets import load_digits  # noqa: PLC0415 (only these data need it, and it takes a while)

    return load_digits()


class Digits(InMemory):
    """The 1,797 handwritten digits of 8x8x1 pixels that come with scikit-learn.

    They have no official test split: a fifth of each class, 359 digits, is held back as one.
    Their 17 grey levels are spread over 0 to 255.
    """

    def __init__(self) -> None:
        digits = _digits()
        pixels = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))[:, None]
        labels = torch.tensor(digits.target).long()
        task = Classification([str(name) for name in digits.target_names])
        super().__init__(Samples(pixels, labels, task), name="digits")
