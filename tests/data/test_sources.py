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
from PIL import Image
from torchvision.datasets import CIFAR10, FashionMNIST, cifar, mnist

from src.data.sources import Cifar10, Digits, FashionMnist, ImageFolder, Source
from src.data.split import split_halves


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(cifar, "download_and_extract_archive", fail)
    monkeypatch.setattr(mnist, "download_and_extract_archive", fail)


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
    assert train.labels[:8].tolist() == [1, 0, 9, 4, 2, 0, 9, 4]
    assert train.classes == test.classes == tuple(f"class{n}" for n in range(10))
    assert np.array_equal(train.pixels[5].numpy(), noise(4, 3072, seed=2)[1].reshape(3, 32, 32))
    assert test.labels.tolist() == [3, 2, 1]
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
    assert np.array_equal(train.pixels[:, 0].numpy(), noise(6, 28, 28, seed=6))
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert test.labels.tolist() == [0, 1, 2, 3]
    assert train.classes == tuple(FashionMNIST.classes)
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
    with pytest.raises(ValueError, match=rf"{what} could not be downloaded .*no network.*put there by hand") as error:
        source.train()
    assert str(tmp_path / "new") in one_line(error)


# --- Digits


def test_digits_are_the_wheel_s_images_in_a_fixed_balanced_split() -> None:
    train, test = Digits().train(), Digits().test()
    assert (len(train), len(test)) == (1438, 359)
    assert train.shape == test.shape == (1, 8, 8)
    assert train.classes == tuple("0123456789")
    both = train.labels.bincount() + test.labels.bincount()
    assert ((test.labels.bincount() - both * 0.2).abs() < 1).all()
    levels = torch.cat([train.pixels, test.pixels]).unique().tolist()
    assert levels == [round(level * 255 / 16) for level in range(17)]
    torch.manual_seed(7)
    assert torch.equal(Digits().test().pixels, test.pixels)
    assert Digits().validation() is None


def test_the_split_of_digits_keeps_images_with_their_labels() -> None:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    _, chosen = split_halves(torch.from_numpy(digits.target).long(), arch_fraction=0.2, seed=0)
    test = Digits().test()
    assert np.array_equal(test.labels.numpy(), digits.target[chosen.numpy()])
    assert np.abs(test.pixels[:, 0].numpy() - digits.images[chosen.numpy()] * 255 / 16).max() <= 0.5


# --- Folders of images


def save(path: Path, array: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of two colour images of 6x5 (width x height) in `train`, and of one in `test`."""
    for split, count in (("train", 2), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            for n in range(count):
                save(tmp_path / split / name / f"{n}.png", noise(5, 6, 3, seed=10 * label + n))
    return tmp_path


def test_images_come_sorted_by_class_and_name(folder: Path) -> None:
    source: Source = ImageFolder(folder)
    train, test = source.train(), source.test()
    assert train.classes == test.classes == ("cat", "dog")
    assert train.shape == (3, 5, 6)
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert test.labels.tolist() == [0, 1]
    for index, seed in enumerate((0, 1, 10, 11)):
        assert np.array_equal(train.pixels[index].permute(1, 2, 0).numpy(), noise(5, 6, 3, seed=seed))
    assert source.validation() is None
    assert source.name == f"image_folder:{folder.name}"
    source.check_test()


def test_hidden_files_and_stray_files_beside_classes_are_passed_over(folder: Path) -> None:
    (folder / "train" / ".DS_Store").write_bytes(b"x")
    (folder / "train" / "cat" / ".hidden.png").write_bytes(b"x")
    (folder / "train" / "labels.csv").write_text("x")
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    assert len(ImageFolder(folder).train()) == 4


def test_a_validation_folder_is_read(folder: Path) -> None:
    for name in ("cat", "dog"):
        save(folder / "validation" / name / "0.png", noise(5, 6, 3))
    validation = ImageFolder(folder).validation()
    assert validation is not None
    assert validation.labels.tolist() == [0, 1]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "bmp", "webp", "ppm", "gif", "tif"])
def test_any_format_that_pil_reads_will_do(suffix: str, tmp_path: Path) -> None:
    colours = {"black": 0, "white": 255}
    for name, value in colours.items():
        save(tmp_path / "train" / name / f"0.{suffix}", np.full((8, 8, 3), value, np.uint8))
    train = ImageFolder(tmp_path).train()
    assert train.shape == (3, 8, 8)
    assert train.pixels[0].max() <= 3
    assert train.pixels[1].min() >= 252


def test_grey_images_keep_one_channel_unless_a_train_image_has_colour(folder: Path) -> None:
    grey = noise(5, 6, seed=3)
    save(folder / "test" / "cat" / "0.png", grey)
    in_colour = ImageFolder(folder).test()
    assert in_colour.shape == (3, 5, 6)
    assert np.array_equal(in_colour.pixels[0].numpy(), np.stack([grey] * 3))

    for name in ("cat", "dog"):
        for n in range(2):
            save(folder / "train" / name / f"{n}.png", grey)
    Image.fromarray(grey > 127).save(folder / "train" / "dog" / "1.png")  # mode 1: a bit a pixel
    source = ImageFolder(folder)
    train = source.train()
    assert train.shape == source.test().shape == (1, 5, 6)
    assert np.array_equal(train.pixels[0, 0].numpy(), grey)
    assert np.array_equal(train.pixels[3, 0].numpy(), np.where(grey > 127, 255, 0))


def test_image_size_resizes_the_short_side_and_cuts_out_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 15:25] = 255  # the middle square
    save(tmp_path / "train" / "a" / "wide.png", wide)
    save(tmp_path / "train" / "b" / "tall.png", wide.transpose(1, 0, 2))
    train = ImageFolder(tmp_path, image_size=5).train()
    assert train.shape == (3, 5, 5)
    assert train.pixels[:, :, 1:4, 1:4].min() > 250
    assert torch.equal(train.pixels[0], train.pixels[1].transpose(1, 2))


def test_images_of_different_sizes_need_an_image_size(folder: Path) -> None:
    save(folder / "train" / "dog" / "0.png", noise(7, 8, 3))
    with pytest.raises(ValueError, match=r"6x5 and .*8x7; .*data\.source\.image_size") as error:
        ImageFolder(folder).train()
    one_line(error)
    assert ImageFolder(folder, image_size=4).train().shape == (3, 4, 4)


def test_missing_folders_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.source\.root=.*nowhere is not a folder"):
        ImageFolder(folder / "nowhere")
    with pytest.raises(ValueError, match=r"cat has no folder 'train', needed is train/CLASS"):
        ImageFolder(folder / "train" / "cat")
    with pytest.raises(ValueError, match=r"data\.source\.image_size=0, allowed are"):
        ImageFolder(folder, image_size=0)


def test_a_search_needs_no_test_folder_and_a_retrain_says_so_early(folder: Path) -> None:
    (folder / "test").rename(folder / "elsewhere")
    source = ImageFolder(folder)
    assert len(source.train()) == 4
    for ask in (source.test, source.check_test):
        with pytest.raises(ValueError, match="has no folder 'test'"):
            ask()


def test_one_class_is_not_enough(folder: Path) -> None:
    for path in (folder / "train" / "dog").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"dog holds no images, needed is one or more for each class"):
        ImageFolder(folder).train()
    (folder / "train" / "dog").rmdir()
    with pytest.raises(ValueError, match=r"train has one class only \(cat\), needed are two or more"):
        ImageFolder(folder).train()


def test_all_splits_need_the_same_classes(folder: Path) -> None:
    save(folder / "test" / "bird" / "0.png", noise(5, 6, 3))
    for ask in (ImageFolder(folder).test, ImageFolder(folder).check_test):
        with pytest.raises(ValueError, match=r"class 'bird' is in .*test but not in .*train"):
            ask()
    save(folder / "validation" / "cat" / "0.png", noise(5, 6, 3))
    with pytest.raises(ValueError, match=r"class 'dog' is in .*train but not in .*validation"):
        ImageFolder(folder).validation()


def test_unreadable_images_are_named(folder: Path) -> None:
    bad = folder / "train" / "dog" / "1.png"
    bad.write_text("no image")
    with pytest.raises(ValueError, match=r"dog/1\.png is not a readable image$"):
        ImageFolder(folder).train()
    bad.unlink()
    whole = folder / "train" / "dog" / "2.jpg"
    save(whole, noise(64, 64, 3), format="JPEG")
    whole.write_bytes(whole.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"dog/2\.jpg is not a readable image \(.*truncated"):
        ImageFolder(folder, image_size=5).train()
    whole.unlink()
    save(folder / "train" / "dog" / "3.png", np.zeros((5, 6), np.uint16))
    with pytest.raises(ValueError, match=r"dog/3\.png is not a readable image \(more than 8 bits a channel\)"):
        ImageFolder(folder).train()
