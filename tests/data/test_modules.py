from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from src.data.images import Images
from src.data.modules import RetrainData, SearchData
from src.data.sources import Source
from src.data.split import indices_hash, split_halves

pytestmark = [
    # Lightning 2.6 walks its loaders with a class that torch 2.14 calls deprecated.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    # What Lightning says of a validation that there is none of, and of a resumed run in the folder it began in.
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty:UserWarning"),
]


def images(count: int, *, seed: int = 0, shape: tuple[int, int, int] = (2, 6, 5), classes: int = 3) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % classes, tuple("abcdefgh"[:classes]))


class Small(Source):
    """A source of 48 train images that counts what is read of it."""

    name = "small"

    def __init__(self, *, validation: Images | None = None, test: Images | None = None) -> None:
        self.reads: list[str] = []
        self._validation = validation
        self._test = test

    def train(self) -> Images:
        self.reads.append("train")
        return images(48)

    def validation(self) -> Images | None:
        self.reads.append("validation")
        return self._validation

    def test(self) -> Images:
        self.reads.append("test")
        if self._test is None:
            raise AssertionError("nobody may ask for the test split")
        return self._test


def search_data(source: Source | None = None, **changes: Any) -> SearchData:
    arguments = {"batch_size": 4, "arch_fraction": 0.5, "crop_padding": 1, "flip": True, "seed": 0}
    return SearchData(source or Small(), **{**arguments, **changes})


def retrain_data(source: Source | None = None, **changes: Any) -> RetrainData:
    arguments = {"batch_size": 4, "crop_padding": 1, "flip": True, "cutout": None, "seed": 0}
    return RetrainData(source or Small(), **{**arguments, **changes})


class Watcher(L.LightningModule):
    """Trains nothing to speak of and keeps all that it is fed, by the stage it is fed in."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.fed: dict[str, list[Any]] = {"train": [], "val": [], "test": []}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.fed["train"].append(batch)
        return self.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.fed["val"].append(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.fed["test"].append(batch)


def trainer(epochs: int = 1, **options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"enable_checkpointing": False, "num_sanity_val_steps": 0, "accelerator": "cpu"}
    return L.Trainer(max_epochs=epochs, **{**quiet, **defaults, **options})


def equal(a: Any, b: Any) -> bool:
    """Whether two nested containers of tensors are equal, bit for bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


# --- Search


def test_a_search_is_served_without_the_test_split() -> None:
    source = Small()
    data = search_data(source)
    data.setup("fit")
    data.setup("fit")
    assert source.reads == ["train", "validation"]
    assert data.num_classes == 3
    assert data.classes == ("a", "b", "c")
    assert data.input_shape == (2, 6, 5)

    steps = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    assert len(steps) == 6
    for step in steps:
        for part, labels in step.values():
            assert part.dtype == torch.float32
            assert part.shape == (4, 2, 6, 5)
            assert labels.shape == (4,)
    assert sum(len(batch.labels) for batch in data.val_dataloader()) == 24
    for ask in (data.test_dataloader, data.predict_dataloader):
        with pytest.raises(RuntimeError, match="no way to the test split"):
            ask()
    assert "test" not in source.reads


def test_the_halves_are_those_of_the_split_and_its_hash_is_recorded() -> None:
    data = search_data(arch_fraction=0.25, seed=9)
    data.setup("fit")
    whole = images(48)
    weight, arch = split_halves(whole.labels, arch_fraction=0.25, seed=9)
    validated = torch.cat([batch.pixels for batch in data.val_dataloader()])
    assert torch.equal(validated, whole.pixels[arch])
    record = data.record()
    assert json.loads(json.dumps(record)) == record
    assert record == {
        "name": "small",
        "num_classes": 3,
        "input_shape": [2, 6, 5],
        "weights_images": 36,
        "arch_images": 12,
        "validation_images": 0,
        "split_sha256": indices_hash(weight, arch),
    }


def test_a_validation_split_is_preferred_to_the_arch_half() -> None:
    validation = images(10, seed=5)
    data = search_data(Small(validation=validation))
    data.setup("fit")
    (mean, std), shape = images(48).statistics(), (-1, 1, 1)
    fed = torch.cat([data.on_after_batch_transfer(batch, 0)[0] for batch in data.val_dataloader()])
    assert torch.equal(fed, (validation.pixels.float() / 255 - mean.view(shape)) / std.view(shape))
    assert data.record()["validation_images"] == 10


def test_a_search_under_lightning_is_augmented_in_training_only() -> None:
    module, data = Watcher(), search_data(Small())
    trainer(epochs=2, num_sanity_val_steps=1).fit(module, datamodule=data)
    assert len(module.fed["train"]) == 12
    assert set(module.fed["train"][0]) == {"weights", "arch"}
    assert data.augmentation is not None

    halves = {name: data.augmentation.normalize(half.pixels) for name, half in data._training.items()}
    known = {name: {image.numpy().tobytes() for image in half} for name, half in halves.items()}
    validated = [image.numpy().tobytes() for part, _ in module.fed["val"][-6:] for image in part]
    assert set(validated) == known["arch"]
    trained = [image.numpy().tobytes() for step in module.fed["train"] for image in step["weights"][0]]
    unchanged = sum(image in known["weights"] for image in trained)
    assert 0 < unchanged < len(trained) / 4  # a crop in the middle and no flip: one in eighteen


def test_overfitting_sees_the_same_batches_in_every_epoch() -> None:
    module = Watcher()
    trainer(epochs=3, overfit_batches=2, limit_val_batches=0).fit(module, datamodule=search_data())
    assert len(module.fed["train"]) == 6
    assert equal(module.fed["train"][:2], module.fed["train"][2:4])
    assert equal(module.fed["train"][:2], module.fed["train"][4:])


def test_images_take_the_precision_of_the_run() -> None:
    module = Watcher()
    trainer(precision="64-true", limit_train_batches=1, limit_val_batches=1).fit(module, datamodule=search_data())
    assert module.fed["train"][0]["arch"][0].dtype == torch.float64
    assert module.fed["val"][0][0].dtype == torch.float64


# --- Resuming


def saving(folder: Path, **when: Any) -> dict[str, Any]:
    """Options of a trainer that keeps a checkpoint for every step, or whenever told."""
    every = ModelCheckpoint(folder, filename="{epoch}-{step}", save_top_k=-1, **(when or {"every_n_train_steps": 1}))
    return {"enable_checkpointing": True, "callbacks": [every]}


@pytest.mark.parametrize("stop", [2, 6, 9, 12], ids=["mid-epoch", "epoch's end", "later", "second epoch's end"])
def test_a_resumed_run_is_fed_what_the_straight_one_was(stop: int, tmp_path: Path) -> None:
    straight, resumed = Watcher(), Watcher()
    trainer(epochs=3, **saving(tmp_path)).fit(straight, datamodule=search_data())
    (checkpoint,) = tmp_path.glob(f"*-step={stop}.ckpt")
    trainer(epochs=3, **saving(tmp_path)).fit(resumed, datamodule=search_data(), ckpt_path=checkpoint)
    assert len(straight.fed["train"]) == 18
    assert equal(resumed.fed["train"], straight.fed["train"][stop:])


@pytest.mark.parametrize("limit", [1.0, 4])
@pytest.mark.parametrize("on_train_epoch_end", [True, False])
def test_a_checkpoint_of_an_epoch_s_end_leads_to_a_fresh_epoch(
    limit: float, on_train_epoch_end: bool, tmp_path: Path
) -> None:
    straight, resumed = Watcher(), Watcher()
    when = {"save_on_train_epoch_end": on_train_epoch_end}
    options: dict[str, Any] = {"epochs": 3, "limit_train_batches": limit}
    trainer(**options, **saving(tmp_path, **when)).fit(straight, datamodule=search_data())
    (checkpoint,) = tmp_path.glob("epoch=1-*.ckpt")
    trainer(**options, **saving(tmp_path, **when)).fit(resumed, datamodule=search_data(), ckpt_path=checkpoint)
    steps = 6 if limit == 1.0 else 4
    assert len(straight.fed["train"]) == 3 * steps
    assert equal(resumed.fed["train"], straight.fed["train"][2 * steps :])


# --- Retrain


def test_a_retrain_sees_the_whole_train_split_and_the_test_split_when_it_is_tested() -> None:
    source = Small(test=images(9, seed=7))
    module, data = Watcher(), retrain_data(source)
    data.setup("fit")
    run = trainer()
    run.fit(module, datamodule=data)
    assert source.reads == ["train", "validation"]
    assert len(module.fed["train"]) == 12
    assert module.fed["val"] == []
    part, labels = module.fed["train"][0]
    assert part.shape == (4, 2, 6, 5)
    assert labels.shape == (4,)

    run.test(module, datamodule=data, verbose=False)
    run.test(module, datamodule=data, verbose=False)
    assert source.reads == ["train", "validation", "test"]
    assert data.augmentation is not None
    tested = torch.cat([part for part, _ in module.fed["test"][:3]])
    assert torch.equal(tested, data.augmentation.normalize(images(9, seed=7).pixels))
    assert data.record() == {
        "name": "small",
        "num_classes": 3,
        "input_shape": [2, 6, 5],
        "train_images": 48,
        "validation_images": 0,
    }


def test_a_retrain_is_validated_where_the_source_has_a_split_for_it() -> None:
    module = Watcher()
    trainer().fit(module, datamodule=retrain_data(Small(validation=images(6, seed=2))))
    assert sum(len(labels) for _, labels in module.fed["val"]) == 6


@pytest.mark.parametrize(("cutout", "side"), [(None, 2), (0, 0), (4, 4), (5, 5)])
def test_cutout_is_half_of_the_side_unless_told_otherwise(cutout: int | None, side: int) -> None:
    data = retrain_data(cutout=cutout)
    data.setup("fit")
    assert data.augmentation is not None
    assert data.augmentation.cutout == side


def test_a_test_split_that_will_be_missing_is_missed_before_the_training() -> None:
    class Headless(Small):
        def check_test(self) -> None:
            raise ValueError("no test folder")

    source = Headless()
    with pytest.raises(ValueError, match="no test folder"):
        retrain_data(source).setup("fit")
    assert source.reads == []
    search_data(source).setup("fit")


# --- What is refused


@pytest.mark.parametrize("build", [search_data, retrain_data])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size=0, allowed are 1 and more"),
        ({"batch_size": 49}, r"data\.batch_size=49 is more than the (48|24) images of .* at most (48|24)$"),
        ({"crop_padding": -1}, r"data\.crop_padding=-1, allowed are 0 and more"),
        ({"crop_padding": 5}, r"data\.crop_padding=5 for images with a side of 5, allowed are 0 to 4"),
    ],
)
def test_values_out_of_range_are_refused_at_setup(build: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes).setup("fit")


@pytest.mark.parametrize("cutout", [-1, 6])
def test_a_cutout_that_does_not_fit_is_refused(cutout: int) -> None:
    with pytest.raises(
        ValueError, match=rf"data\.cutout={cutout} for images with a side of 5, allowed are 0 \(none\) to 5"
    ):
        retrain_data(cutout=cutout).setup("fit")


@pytest.mark.parametrize("fraction", [0.0, 1.0, 0.001])
def test_a_fraction_that_leaves_no_half_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"data\.arch_fraction={fraction}"):
        search_data(arch_fraction=fraction).setup("fit")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (images(6, classes=2), r"the {} split has the classes a, b, allowed are .*: a, b, c"),
        (images(6, shape=(1, 6, 5)), r"the {} split has images of shape \(1, 6, 5\) .*: \(2, 6, 5\)"),
    ],
)
def test_splits_must_be_alike(other: Images, message: str) -> None:
    with pytest.raises(ValueError, match=message.format("validation")):
        search_data(Small(validation=other)).setup("fit")
    data = retrain_data(Small(test=other))
    data.setup("fit")
    with pytest.raises(ValueError, match=message.format("test")):
        data.setup("test")
