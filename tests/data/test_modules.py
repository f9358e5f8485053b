from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance.data_module import Watcher, equal, saving, trainer
from torch import Tensor

from src.common.errors import ConfigError, must_be
from src.data.modules import RetrainData, SearchData
from src.data.samples import Samples
from src.data.sources import Source
from src.data.split import indices_hash, split_halves
from src.data.tasks import Classification, Regression

pytestmark = [
    # Lightning 2.6 walks its loaders with a class that torch 2.14 calls deprecated.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    # What Lightning says of a validation that there is none of, and of a resumed run in the folder it began in.
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty:UserWarning"),
]


def images(count: int, *, seed: int = 0, shape: tuple[int, int, int] = (2, 6, 5), classes: int = 3) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
    return Samples(pixels, torch.arange(count) % classes, Classification("abcdefgh"[:classes]))


class Small(Source):
    """A source of 48 train images, or of samples given, that counts what is read of it."""

    name = "small"

    def __init__(
        self, train: Samples | None = None, *, validation: Samples | None = None, test: Samples | None = None
    ) -> None:
        self.reads: list[str] = []
        self._train = train or images(48)
        self._validation = validation
        self._test = test

    def train(self) -> Samples:
        self.reads.append("train")
        return self._train

    def validation(self) -> Samples | None:
        self.reads.append("validation")
        return self._validation

    def test(self) -> Samples:
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


def recorded_alike(train: Samples) -> dict[str, Any]:
    """Return what both commands record of `Small` with these train images."""
    statistics = train.statistics()
    assert statistics is not None
    return {
        "name": "small",
        "task": "classification",
        "outputs": 3,
        "classes": ["a", "b", "c"],
        "input_shape": [2, 6, 5],
        "input_type": "uint8",
        "mean": statistics[0].tolist(),
        "std": statistics[1].tolist(),
    }


# --- Search


def test_a_search_is_served_without_the_test_split() -> None:
    source = Small()
    data = search_data(source)
    data.setup("fit")
    data.setup("fit")
    assert source.reads == ["train", "validation"]
    assert isinstance(data.task, Classification)
    assert data.task.classes == ("a", "b", "c")
    assert data.num_classes == 3
    assert data.input_shape == (2, 6, 5)
    assert data.input_dtype == torch.float32

    steps = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    assert len(steps) == 6
    for step in steps:
        for part, labels in step.values():
            assert part.dtype == torch.float32
            assert part.shape == (4, 2, 6, 5)
            assert labels.shape == (4,)
    assert sum(len(batch.targets) for batch in data.val_dataloader()) == 24
    for ask in (data.test_dataloader, data.predict_dataloader):
        with pytest.raises(RuntimeError, match="no way to the test split"):
            ask()
    assert "test" not in source.reads


def test_the_halves_are_those_of_the_split_and_its_hash_is_recorded() -> None:
    data = search_data(arch_fraction=0.25, seed=9)
    data.setup("fit")
    whole = images(48)
    weight, arch = split_halves(whole.targets, arch_fraction=0.25, seed=9)
    validated = torch.cat([batch.inputs for batch in data.val_dataloader()])
    assert torch.equal(validated, whole.inputs[arch])
    alike = recorded_alike(whole)
    record = data.record()
    assert json.loads(json.dumps(record)) == record
    assert record == {
        **alike,
        "weights_samples": 36,
        "arch_samples": 12,
        "validation_samples": 0,
        "split_sha256": indices_hash(weight, arch),
    }


def test_a_validation_split_is_preferred_to_the_arch_half() -> None:
    validation = images(10, seed=5)
    data = search_data(Small(validation=validation))
    data.setup("fit")
    statistics, shape = images(48).statistics(), (-1, 1, 1)
    assert statistics is not None
    mean, std = statistics
    fed = torch.cat([data.on_after_batch_transfer(batch, 0)[0] for batch in data.val_dataloader()])
    assert torch.equal(fed, (validation.inputs.float() / 255 - mean.view(shape)) / std.view(shape))
    assert data.record()["validation_samples"] == 10


def test_a_search_under_lightning_is_augmented_in_training_only() -> None:
    module, data = Watcher(), search_data(Small())
    trainer(epochs=2, num_sanity_val_steps=1).fit(module, datamodule=data)
    assert len(module.fed["train"]) == 12
    assert set(module.fed["train"][0]) == {"weights", "arch"}
    assert data.augmentation is not None

    halves = {
        name: data.augmentation.normalize(half.take(torch.arange(len(half)))[0])
        for name, half in data._training.items()
    }
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
    assert torch.equal(tested, data.augmentation.normalize(images(9, seed=7).inputs))
    assert data.record() == {
        **recorded_alike(images(48)),
        "train_samples": 48,
        "validation_samples": 0,
    }


def test_a_retrain_is_validated_where_the_source_has_a_split_for_it() -> None:
    module = Watcher()
    trainer().fit(module, datamodule=retrain_data(Small(validation=images(6, seed=2))))
    assert sum(len(labels) for _, labels in module.fed["val"]) == 6


def test_a_retrain_holds_back_for_validation_what_a_search_with_its_seed_trains_the_alphas_on() -> None:
    searched, data = search_data(seed=3, arch_fraction=0.25), retrain_data(seed=3, validation_fraction=0.25)
    for one in (searched, data):
        one.setup("fit")
    assert data.record()["train_samples"] == 36
    assert data.record()["validation_samples"] == 12
    loaders: list[Any] = [data.val_dataloader(), searched.val_dataloader()]
    held_back, arch = (torch.cat([batch.inputs for batch in loader]) for loader in loaders)
    assert torch.equal(held_back, arch)
    trained = torch.cat([batch["train"].inputs for batch in data.train_dataloader()])
    assert sorted(map(hash_of, [*trained, *held_back])) == sorted(map(hash_of, images(48).inputs))


def hash_of(image: Tensor) -> int:
    return hash(image.numpy().tobytes())


@pytest.mark.parametrize(
    ("source", "fraction", "needed"),
    [
        (Small(), 1.0, "0 or more, and below 1"),
        (Small(), 0.005, "such that 48 samples leave one for each part"),
        (Small(validation=images(6)), 0.5, "0 for a source with a validation split of its own"),
    ],
)
def test_a_part_for_validation_that_cannot_be_had_is_refused(source: Source, fraction: float, needed: str) -> None:
    with pytest.raises(ConfigError, match=f"^validation_fraction must be {needed}, got {fraction}$"):
        retrain_data(source, validation_fraction=fraction).setup("fit")


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
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"batch_size": 49}, "batch_size must be at most (48|24) for the (48|24) samples of '[a-z]+', got 49"),
        ({"crop_padding": -1}, "crop_padding must be 0 or more, got -1"),
        ({"crop_padding": 5}, "crop_padding must be 0 to 4 for images with a side of 5, got 5"),
    ],
)
def test_values_out_of_range_are_refused_at_setup(build: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        build(**changes).setup("fit")


@pytest.mark.parametrize("cutout", [-1, 6])
def test_a_cutout_that_does_not_fit_is_refused(cutout: int) -> None:
    with pytest.raises(ConfigError, match=rf"^cutout must be 0 \(none\) to 5 for images .* of 5, .*, got {cutout}$"):
        retrain_data(cutout=cutout).setup("fit")


@pytest.mark.parametrize("fraction", [0.0, 1.0, 0.001])
def test_a_fraction_that_leaves_no_half_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match=rf"^arch_fraction must be .*, got {fraction}$"):
        search_data(arch_fraction=fraction).setup("fit")


FLOATS = torch.rand(6, 2, 6, 5)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (images(6, classes=2), "classes of the {} split must be a, b, c as in the train split, got a, b"),
        (
            images(6, shape=(1, 6, 5)),
            r"shape of the {} split must be \(2, 6, 5\) as in the train split, got \(1, 6, 5\)",
        ),
        (
            Samples(FLOATS, torch.arange(6) % 3, Classification("abc")),
            "type of the {} split must be torch.uint8 as in the train split, got torch.float32",
        ),
        (Samples(FLOATS, torch.rand(6, 3), Regression(3)), "type of the {} split must be .*"),
    ],
)
def test_splits_must_be_alike(other: Samples, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^source: {message.format('validation')}$"):
        search_data(Small(validation=other)).setup("fit")
    data = retrain_data(Small(test=other))
    data.setup("fit")
    with pytest.raises(ConfigError, match=f"^source: {message.format('test')}$"):
        data.setup("test")


def test_a_source_s_own_errors_name_its_arguments() -> None:
    class Picky(Small):
        def train(self) -> Samples:
            raise must_be("root", "a folder", "nothing")

    with pytest.raises(ConfigError) as refused:
        search_data(Picky()).setup("fit")
    assert str(refused.value.within("data")) == "data.source.root must be a folder, got nothing"


# --- Samples of other kinds


def regression(inputs: Tensor) -> Samples:
    generator = torch.Generator().manual_seed(4)
    return Samples(inputs, torch.rand(len(inputs), generator=generator, dtype=torch.float64), Regression())


PLAIN: dict[str, Any] = {"crop_padding": 0, "flip": False}


@pytest.mark.parametrize("shape", [(9,), (3, 16), (2, 3, 4, 4)], ids=["vectors", "signals", "volumes"])
@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_floating_samples_of_any_shape_are_standardised(shape: tuple[int, ...], precision: Any) -> None:
    train = regression(torch.randn(48, *shape, dtype=torch.float64) * 5 + 2)
    module, data = Watcher(), search_data(Small(train), **PLAIN)
    trainer(precision=precision).fit(module, datamodule=data)
    assert data.input_shape == shape
    validated = torch.cat([inputs for inputs, _ in module.fed["val"]])
    expected = torch.float32 if precision == "32-true" else torch.float64
    for inputs, targets in (*module.fed["val"], *(part for step in module.fed["train"] for part in step.values())):
        assert inputs.dtype == targets.dtype == expected
        assert inputs.shape == (4, *shape)
        assert targets.shape == (4,)
    # The statistics are those of the whole train split, of which this is a half.
    assert validated.transpose(0, 1).flatten(1).mean(1).abs().max() < 1
    assert 0.5 < float(validated.std()) < 1.5
    assert len(data.record()["mean"]) == shape[0]


def test_normalisation_can_be_turned_off() -> None:
    train = regression(torch.randn(48, 3) * 5 + 2)
    data = search_data(Small(train), **PLAIN, normalize=False)
    data.setup("fit")
    fed = torch.cat([data.on_after_batch_transfer(batch, 0)[0] for batch in data.val_dataloader()])
    assert {tuple(row) for row in fed.tolist()} <= {tuple(row) for row in train.inputs.tolist()}
    assert data.record()["mean"] is None


def test_tokens_reach_the_network_as_they_are() -> None:
    tokens = torch.randint(1000, (48, 12), generator=torch.Generator().manual_seed(2))
    train = Samples(tokens, torch.arange(48) % 3, Classification("abc"))
    module, data = Watcher(), retrain_data(Small(train), **PLAIN)
    trainer().fit(module, datamodule=data)
    assert (data.input_shape, data.input_dtype) == ((12,), torch.int64)
    fed = torch.cat([inputs for inputs, _ in module.fed["train"]])
    assert fed.dtype == torch.int64
    assert sorted(fed.tolist()) == sorted(tokens.tolist())
    assert data.record()["mean"] is None


def test_floating_images_are_augmented_in_training() -> None:
    train = Samples(images(48).inputs.float(), images(48).targets, Classification("abc"))
    floats, pixels = Watcher(), Watcher()
    trainer().fit(floats, datamodule=retrain_data(Small(train)))
    trainer().fit(pixels, datamodule=retrain_data())
    for (ours, labels), (theirs, same) in zip(floats.fed["train"], pixels.fed["train"], strict=True):
        assert torch.equal(labels, same)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "changes", "message"),
    [
        (
            search_data,
            {"crop_padding": 1, "flip": False},
            r"crop_padding must be 0 for samples of shape \(3, 9\), .* 1",
        ),
        (search_data, {"crop_padding": 0, "flip": True}, r"flip must be false for samples of shape \(3, 9\), .* True"),
        (retrain_data, {**PLAIN, "cutout": 2}, r"cutout must be 0 or null for samples of shape \(3, 9\), .* 2"),
    ],
)
def test_only_images_are_augmented(build: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        build(Small(regression(torch.rand(48, 3, 9))), **changes).setup("fit")


def test_inputs_that_are_not_finite_are_refused() -> None:
    inputs = torch.rand(48, 3)
    inputs[5, 1] = float("nan")
    with pytest.raises(ConfigError, match=r"^source: inputs of the train split must be finite, got nan or inf$"):
        search_data(Small(regression(inputs)), **PLAIN).setup("fit")


# --- Where a limit cuts evaluation short


def sorted_images(count: int) -> Samples:
    """Images of four classes, one class after the other, as a folder lists them."""
    some = images(count)
    return Samples(some.inputs, torch.arange(4).repeat_interleave(count // 4), Classification("abcd"))


@pytest.mark.parametrize("limit", [2, 0.5])
def test_a_limit_measures_all_classes_in_proportion(limit: float) -> None:
    source = Small(sorted_images(48), validation=sorted_images(16), test=sorted_images(16))
    for build in (search_data, retrain_data):
        module, data = Watcher(), build(source)
        run = trainer(limit_val_batches=limit, limit_test_batches=limit)
        run.fit(module, datamodule=data)
        if build is retrain_data:
            run.test(module, datamodule=data, verbose=False)
        for stage in ("val", "test") if build is retrain_data else ("val",):
            labels = torch.cat([targets for _, targets in module.fed[stage]])
            assert labels.bincount().tolist() == [2, 2, 2, 2], (build, stage)


@pytest.mark.parametrize("limit", [4, 1.0])
def test_a_whole_split_keeps_its_order(limit: float) -> None:
    module = Watcher()
    trainer(limit_val_batches=limit).fit(
        module, datamodule=search_data(Small(sorted_images(48), validation=sorted_images(16)))
    )
    labels = torch.cat([targets for _, targets in module.fed["val"]])
    assert labels.tolist() == sorted(labels.tolist())
    assert len(labels) == 16
