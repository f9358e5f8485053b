from __future__ import annotations

import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, FashionMNIST, cifar, mnist

from src.common.errors import ConfigError
from src.data.samples import Samples
from src.data.sources import Cifar10, Digits, FashionMnist, InMemory, Source, as_source
from src.data.split import split_halves
from src.data.tasks import Classification, Regression


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(cifar, "download_and_extract_archive", fail)
    monkeypatch.setattr(mnist, "download_and_extract_archive", fail)


def classes(samples: Samples) -> tuple[str, ...]:
    assert isinstance(samples.task, Classification)
    return samples.task.classes


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# --- CIFAR-10 and Fashion-MNIST, from small files in their real formats


@pytest.fixture
def cifar_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with five train files of four images each and a test file of three."""
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()

    def write(name: str, content: dict[str, Any]) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    train = [
        write(f"data_batch_{n}", {"data": noise(4, 3072, seed=n), "labels": [n, 0, 9, 4]}) for n in (1, 2, 3, 4, 5)
    ]
    test = write("test_batch", {"data": noise(3, 3072, seed=6), "labels": [3, 2, 1]})
    _, md5 = write("batches.meta", {"label_names": [f"class{n}" for n in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [test])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5})
    return tmp_path


@pytest.mark.usefixtures("no_network")
def test_cifar_images_are_read_in_the_order_of_the_files(cifar_root: Path) -> None:
    source = Cifar10(cifar_root)
    train, test = source.train(), source.test()
    assert len(train) == 20
    assert train.shape == (3, 32, 32)
    assert train.targets[:8].tolist() == [1, 0, 9, 4, 2, 0, 9, 4]
    assert classes(train) == classes(test) == tuple(f"class{n}" for n in range(10))
    assert np.array_equal(train.inputs[5].numpy(), noise(4, 3072, seed=2)[1].reshape(3, 32, 32))
    assert test.targets.tolist() == [3, 2, 1]
    assert source.validation() is None


@pytest.mark.usefixtures("no_network")
def test_the_train_split_of_cifar_needs_no_test_file(cifar_root: Path) -> None:
    (cifar_root / CIFAR10.base_folder / "test_batch").unlink()
    assert len(Cifar10(cifar_root).train()) == 20
    with pytest.raises(ValueError, match=r"CIFAR-10 could not be downloaded or read \(.*no network") as error:
        Cifar10(cifar_root).test()
    assert str(cifar_root / CIFAR10.base_folder) in one_line(error)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def fashion_root(tmp_path: Path) -> Path:
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in (("train", 6), ("t10k", 4)):
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(noise(count, 28, 28, seed=count)))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8)))
    return tmp_path


@pytest.mark.usefixtures("no_network")
def test_fashion_images_have_one_channel(fashion_root: Path) -> None:
    source = FashionMnist(fashion_root)
    train, test = source.train(), source.test()
    assert train.shape == test.shape == (1, 28, 28)
    assert np.array_equal(train.inputs[:, 0].numpy(), noise(6, 28, 28, seed=6))
    assert train.targets.tolist() == [0, 1, 2, 3, 4, 5]
    assert test.targets.tolist() == [0, 1, 2, 3]
    assert classes(train) == tuple(FashionMNIST.classes)
    assert source.validation() is None


@pytest.mark.usefixtures("no_network")
def test_a_broken_test_file_of_fashion_is_met_by_the_test_split_only(fashion_root: Path) -> None:
    (fashion_root / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03 cut off")
    assert len(FashionMnist(fashion_root).train()) == 6
    with pytest.raises(ValueError, match="Fashion-MNIST could not be downloaded or read") as error:
        FashionMnist(fashion_root).test()
    one_line(error)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("kind", "what"), [(Cifar10, "CIFAR-10"), (FashionMnist, "Fashion-MNIST")])
def test_a_failed_download_says_where_files_may_be_put(kind: type[Cifar10 | FashionMnist], what: str, tmp_path: Path):
    source = kind(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(
        ValueError, match=rf"{what} could not be downloaded .*no network.*get its files by hand"
    ) as error:
        source.train()
    assert str(tmp_path / "new") in one_line(error)


# --- Digits


def test_digits_are_the_wheel_s_images_in_a_fixed_balanced_split() -> None:
    train, test = Digits().train(), Digits().test()
    assert (len(train), len(test)) == (1438, 359)
    assert train.shape == test.shape == (1, 8, 8)
    assert classes(train) == tuple("0123456789")
    both = train.targets.bincount() + test.targets.bincount()
    assert ((test.targets.bincount() - both * 0.2).abs() < 1).all()
    levels = torch.cat([train.inputs, test.inputs]).unique().tolist()
    assert levels == [round(level * 255 / 16) for level in range(17)]
    torch.manual_seed(7)
    assert torch.equal(Digits().test().inputs, test.inputs)
    assert Digits().validation() is None


def test_the_split_of_digits_keeps_images_with_their_labels() -> None:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    _, chosen = split_halves(torch.from_numpy(digits.target).long(), arch_fraction=0.2, seed=0)
    test = Digits().test()
    assert np.array_equal(test.targets.numpy(), digits.target[chosen.numpy()])
    assert np.abs(test.inputs[:, 0].numpy() - digits.images[chosen.numpy()] * 255 / 16).max() <= 0.5


# --- A source of one's own


def numbers(count: int) -> Samples:
    return Samples(torch.arange(float(count))[:, None], torch.arange(float(count)), Regression())


def test_a_fifth_of_samples_alone_is_held_back_as_the_test_split() -> None:
    source = as_source(numbers(50))
    train, test = source.train(), source.test()
    assert (len(train), len(test)) == (40, 10)
    assert sorted([*train.targets.tolist(), *test.targets.tolist()]) == list(range(50))
    assert torch.equal(test.inputs[:, 0], test.targets)
    assert torch.equal(as_source(numbers(50)).test().targets, test.targets)
    assert source.validation() is None
    assert source.name == "in_memory"


def test_splits_can_be_given_by_name() -> None:
    splits = {"train": numbers(9), "test": numbers(4), "validation": numbers(3)}
    source = as_source(splits)
    assert source.train() is splits["train"]
    assert source.test() is splits["test"]
    assert source.validation() is splits["validation"]
    named = InMemory(numbers(10), name="numbers")
    assert as_source(named) is named
    assert named.name == "numbers"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "source must be a Source, Samples, or a dictionary of Samples by split, got builtins.int"),
        ({"train": torch.zeros(3, 2)}, "source must be a Source, Samples, or a dictionary of Samples by split, got .*"),
        ({"train": numbers(3), "tset": numbers(2)}, r"unknown split of the source: 'tset', did you mean 'test'\? .*"),
        ({"test": numbers(3)}, "source must have a train split, got test"),
    ],
)
def test_anything_else_is_no_source(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        as_source(given)


def test_a_source_is_named_after_its_class_unless_it_says_otherwise() -> None:
    class Mine(Source):
        def train(self) -> Samples:
            return numbers(3)

        test = train

    class Renamed(Mine):
        name = "other"

    assert (Mine().name, Renamed().name, Digits().name) == ("Mine", "other", "digits")
