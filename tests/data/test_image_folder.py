from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from src.common.errors import ConfigError
from src.data import image_folder
from src.data.image_folder import ImageFolder
from src.data.samples import Samples
from src.data.sources import Source
from src.data.tasks import Classification


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def classes(samples: Samples) -> tuple[str, ...]:
    assert isinstance(samples.task, Classification)
    return samples.task.classes


def one_line(error: pytest.ExceptionInfo[ConfigError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


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
    assert classes(train) == classes(test) == ("cat", "dog")
    assert train.shape == (3, 5, 6)
    assert train.targets.tolist() == [0, 0, 1, 1]
    assert test.targets.tolist() == [0, 1]
    for index, seed in enumerate((0, 1, 10, 11)):
        assert np.array_equal(train.inputs[index].permute(1, 2, 0).numpy(), noise(5, 6, 3, seed=seed))
    assert source.validation() is None
    assert source.name == f"image_folder:{folder.name}"
    source.check_test()


def test_hidden_files_and_folders_are_ignored(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train" / ".DS_Store").write_bytes(b"x")
    (folder / "train" / "cat" / ".hidden.png").write_bytes(b"x")
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    (folder / "train" / "dog" / ".trash").mkdir()
    (folder / "train" / "dog" / ".trash" / "0.png").write_bytes(b"x")
    assert len(ImageFolder(folder).train()) == 4
    assert capsys.readouterr().err == ""


def test_files_that_are_no_images_of_a_class_are_counted_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train" / "labels.csv").write_text("x")
    (folder / "train" / "cat" / "Thumbs.db").write_text("x")
    (folder / "train" / "cat" / "README").write_text("x")
    save(folder / "train" / "0.png", noise(5, 6, 3))
    source = ImageFolder(folder)
    assert len(source.train()) == 4
    source.check_test()
    line = capsys.readouterr().err
    assert line == f"{folder / 'train'}: skipped 4 files that are not images of a class, such as 0.png\n"


def test_images_in_folders_within_a_class_folder_are_read(folder: Path) -> None:
    from torchvision.datasets import ImageFolder as Theirs

    for place in ("train/cat/more", "train/cat/more/and more", "train/cat/Z"):
        save(folder / place / "1.PNG", noise(5, 6, 3, seed=len(place)))
    (folder / "train" / "cat" / "circle").symlink_to(folder / "train")
    (folder / "train" / "dog" / "linked").symlink_to(folder / "train" / "cat" / "Z")
    train = ImageFolder(folder).train()
    assert train.targets.tolist() == [0] * 5 + [1] * 3

    (folder / "train" / "cat" / "circle").unlink()  # torchvision would follow it for ever
    theirs = Theirs(str(folder / "train"))
    assert theirs.targets == train.targets.tolist()
    for index, ours in enumerate(train.inputs):
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), np.asarray(theirs[index][0]))


def test_a_folder_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(place: str) -> None:
        raise PermissionError(13, "Permission denied", place)

    source = ImageFolder(folder)
    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(ConfigError, match=r"cannot read .*cat: Permission denied"):
        source.train()


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_a_validation_folder_is_read(name: str, folder: Path) -> None:
    for label in ("cat", "dog"):
        save(folder / name / label / "0.png", noise(5, 6, 3))
    validation = ImageFolder(folder).validation()
    assert validation is not None
    assert validation.targets.tolist() == [0, 1]


def test_two_validation_folders_are_refused(folder: Path) -> None:
    for name in ("val", "validation"):
        (folder / name).mkdir()
    with pytest.raises(ConfigError, match=r"must have one validation folder at most, got validation and val$"):
        ImageFolder(folder).train()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(suffix: str, orientation: int, tmp_path: Path) -> None:
    upright = Image.fromarray(np.repeat(np.repeat(noise(3, 2, 3), 16, 0), 16, 1))
    # How the picture is stored for each of the EXIF orientations.
    undo = [None, *(getattr(Image.Transpose, name) for name in UNDONE_BY)][orientation - 1]
    stored = upright if undo is None else upright.transpose(undo)
    tag = Image.Exif()
    tag[0x0112] = orientation
    for place, image in (("train/a", upright), ("train/b", upright), ("test/a", stored), ("test/b", stored)):
        (tmp_path / place).mkdir(parents=True)
        options: dict[str, Any] = {"quality": 100} if suffix in ("jpg", "webp") else {}
        image.save(tmp_path / place / f"0.{suffix}", **options, exif=tag if "test" in place else b"")
    source = ImageFolder(tmp_path)
    source.check_test()
    difference = source.test().inputs[0].int() - torch.from_numpy(np.array(upright)).permute(2, 0, 1).int()
    assert difference.float().abs().mean() < 12


UNDONE_BY = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270")


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "bmp", "webp", "ppm", "gif", "tif"])
def test_any_format_that_pil_reads_will_do(suffix: str, tmp_path: Path) -> None:
    colours = {"black": 0, "white": 255}
    for name, value in colours.items():
        save(tmp_path / "train" / name / f"0.{suffix}", np.full((8, 8, 3), value, np.uint8))
    train = ImageFolder(tmp_path).train()
    assert train.shape == (3, 8, 8)
    assert train.inputs[0].max() <= 3
    assert train.inputs[1].min() >= 252


def test_grey_images_keep_one_channel_unless_a_train_image_has_colour(folder: Path) -> None:
    grey = noise(5, 6, seed=3)
    save(folder / "test" / "cat" / "0.png", grey)
    in_colour = ImageFolder(folder).test()
    assert in_colour.shape == (3, 5, 6)
    assert np.array_equal(in_colour.inputs[0].numpy(), np.stack([grey] * 3))

    for name in ("cat", "dog"):
        for n in range(2):
            save(folder / "train" / name / f"{n}.png", grey)
    Image.fromarray(grey > 127).save(folder / "train" / "dog" / "1.png")  # mode 1: a bit a pixel
    source = ImageFolder(folder)
    train = source.train()
    assert train.shape == source.test().shape == (1, 5, 6)
    assert np.array_equal(train.inputs[0, 0].numpy(), grey)
    assert np.array_equal(train.inputs[3, 0].numpy(), np.where(grey > 127, 255, 0))


def test_image_size_resizes_the_short_side_and_cuts_out_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 15:25] = 255  # the middle square
    save(tmp_path / "train" / "a" / "wide.png", wide)
    save(tmp_path / "train" / "b" / "tall.png", wide.transpose(1, 0, 2))
    train = ImageFolder(tmp_path, image_size=5).train()
    assert train.shape == (3, 5, 5)
    assert train.inputs[:, :, 1:4, 1:4].min() > 250
    assert torch.equal(train.inputs[0], train.inputs[1].transpose(1, 2))


def test_images_of_different_sizes_need_an_image_size(folder: Path) -> None:
    save(folder / "train" / "dog" / "0.png", noise(7, 8, 3))
    with pytest.raises(
        ConfigError, match=r"0\.png is 6x5 and .*0\.png is 8x7; set image_size to resize all images$"
    ) as error:
        ImageFolder(folder).train()
    one_line(error)
    assert ImageFolder(folder, image_size=4).train().shape == (3, 4, 4)


def test_missing_folders_are_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^root must be a folder that holds train/CLASS/, got .*nowhere$"):
        ImageFolder(folder / "nowhere")
    with pytest.raises(ConfigError, match=r"cat has no folder 'train': train/CLASS/ is needed$"):
        ImageFolder(folder / "train" / "cat")
    with pytest.raises(ConfigError, match=r"^image_size must be null or a whole number from 1, got 0$"):
        ImageFolder(folder, image_size=0)


def test_a_search_needs_no_test_folder_and_a_retrain_says_so_early(folder: Path) -> None:
    (folder / "test").rename(folder / "elsewhere")
    source = ImageFolder(folder)
    assert len(source.train()) == 4
    for ask in (source.test, source.check_test):
        with pytest.raises(ConfigError, match=r"has no folder 'test': a retrain needs test/CLASS/$"):
            ask()
    (folder / "elsewhere").rename(folder / "val")
    with pytest.raises(ConfigError, match=r"a retrain needs test/CLASS/, and 'val' is used for validation alone$"):
        ImageFolder(folder).check_test()


def damaged(path: Path) -> None:
    path.write_text("no image")


def larger(path: Path) -> None:
    save(path, noise(7, 8, 3))


def deeper(path: Path) -> None:
    save(path, np.zeros((5, 6), np.uint16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damaged, r"test/dog/9\.png is not a readable image$"),
        (larger, r"train/cat/0\.png is 6x5 and .*test/dog/9\.png is 8x7; set image_size to resize all images$"),
        (deeper, r"test/dog/9\.png is not a readable image \(it has more than 8 bits per channel\)$"),
    ],
)
def test_a_test_image_that_cannot_be_used_is_found_before_the_training(change: Any, message: str, folder: Path) -> None:
    change(folder / "test" / "dog" / "9.png")
    with pytest.raises(ConfigError, match=message) as error:
        ImageFolder(folder).check_test()
    one_line(error)
    assert len(ImageFolder(folder).train()) == 4  # a search does not see it
    if change is larger:
        ImageFolder(folder, image_size=4).check_test()


def test_a_png_with_its_orientation_behind_the_pixels_is_not_refused(folder: Path) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    path = folder / "test" / "cat" / "0.png"
    save(path, noise(6, 5, 3), exif=tag)
    whole = path.read_bytes()
    start = whole.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(whole[start : start + 4], "big")
    end = whole.index(b"IEND") - 4
    path.write_bytes(whole[:start] + whole[stop:end] + whole[start:stop] + whole[end:])
    source = ImageFolder(folder)
    source.check_test()
    assert source.test().shape == (3, 5, 6)


def test_images_that_do_not_fit_into_memory_are_refused_before_they_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    available = 4 * 3 * 30
    monkeypatch.setattr(image_folder, "_available_memory", lambda: available)
    assert len(ImageFolder(folder).train()) == 4  # fits exactly
    with pytest.raises(ConfigError, match=r"^6 images of 6x5 need 0\.0 GB of memory, and .* image_size=4 or less"):
        ImageFolder(folder).check_test()  # the test split is a third more
    available = 10
    with pytest.raises(ConfigError, match=r"^4 images of 9x9 need .* GB are available$"):
        ImageFolder(folder, image_size=9).train()
    monkeypatch.setattr(image_folder, "_available_memory", lambda: None)
    assert len(ImageFolder(folder).train()) == 4


def test_the_available_memory_is_known_here_or_nothing_is() -> None:
    available = image_folder._available_memory()
    assert available is None or 0 < available < 1 << 50


def test_one_class_is_not_enough(folder: Path) -> None:
    for path in (folder / "train" / "cat").iterdir():
        path.rename(path.with_suffix(""))
    with pytest.raises(
        ConfigError, match=r"cat has no images \(2 other files, such as 0\): each class needs one or more$"
    ):
        ImageFolder(folder).train()
    for path in (folder / "train" / "cat").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match=r"cat has no images: each class needs one or more$"):
        ImageFolder(folder).train()
    (folder / "train" / "cat").rmdir()
    with pytest.raises(
        ConfigError, match=r"train must have a folder .* two or more classes, got one class only \(dog\)$"
    ):
        ImageFolder(folder).train()


def test_all_splits_need_the_same_classes(folder: Path) -> None:
    save(folder / "test" / "bird" / "0.png", noise(5, 6, 3))
    for ask in (ImageFolder(folder).test, ImageFolder(folder).check_test):
        with pytest.raises(ConfigError, match=r"class 'bird' is in .*test but not in .*train"):
            ask()
    save(folder / "validation" / "cat" / "0.png", noise(5, 6, 3))
    with pytest.raises(ConfigError, match=r"class 'dog' is in .*train but not in .*validation"):
        ImageFolder(folder).validation()


def test_unreadable_images_are_named(folder: Path) -> None:
    bad = folder / "train" / "dog" / "1.png"
    bad.write_text("no image")
    with pytest.raises(ConfigError, match=r"dog/1\.png is not a readable image$"):
        ImageFolder(folder).train()
    bad.unlink()
    whole = folder / "train" / "dog" / "2.jpg"
    save(whole, noise(64, 64, 3), format="JPEG")
    whole.write_bytes(whole.read_bytes()[:900])
    with pytest.raises(ConfigError, match=r"dog/2\.jpg is not a readable image \(.*truncated"):
        ImageFolder(folder, image_size=5).train()
    whole.unlink()
    save(folder / "train" / "dog" / "3.png", np.zeros((5, 6), np.uint16))
    with pytest.raises(
        ConfigError, match=r"dog/3\.png is not a readable image \(it has more than 8 bits per channel\)"
    ):
        ImageFolder(folder).train()
