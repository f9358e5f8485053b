"""What a search and a retrain are fed: the LightningDataModules."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor

from src.common.errors import ConfigError
from src.data.augment import Augmentation
from src.data.images import Images
from src.data.loader import Batch, EvalLoader, TrainLoader
from src.data.sources import Source
from src.data.split import indices_hash, split_halves
from src.data.tasks import Classification


class ImageData(L.LightningDataModule):
    """What both data modules share: reads a source's train split once, and turns batches into a network's input.

    `classes`, `num_classes`, `input_shape` and `record` are there after `setup`, which may be called any number of times.
    The statistics that images are normalised with are those of the whole train split.
    """

    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]  # (C, H, W)

    def __init__(self, source: Source, *, batch_size: int, crop_padding: int, flip: bool, seed: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"data.batch_size={batch_size}, allowed are 1 and more")
        if crop_padding < 0:
            raise ConfigError(f"data.crop_padding={crop_padding}, allowed are 0 and more")
        self.source = source
        self.batch_size = batch_size
        self.crop_padding = crop_padding
        self.flip = flip
        self.seed = seed
        self.augmentation: Augmentation | None = None
        self._training: dict[str, Images] = {}  # by the name of its batches
        self._validation: Images | None = None

    @property
    def task(self) -> Classification:
        """What a network is trained for."""
        return Classification(self.classes)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    def setup(self, stage: str) -> None:
        """Read the train split, and the validation split if there is one."""
        if self._training:
            return
        train = self.source.train()
        self.classes, self.input_shape = train.classes, train.shape
        side = min(train.shape[1:])
        if self.crop_padding >= side:
            raise ConfigError(
                f"data.crop_padding={self.crop_padding} for images with a side of {side}, allowed are 0 to {side - 1}"
            )
        mean, std = train.statistics()
        cutout = self._cutout_side(side)
        self.augmentation = Augmentation(mean, std, padding=self.crop_padding, flip=self.flip, cutout=cutout)
        self._validation = self.source.validation()
        if self._validation is not None:
            self._check_like_train(self._validation, "validation")
        self._training = self._cut(train)
        self.train_dataloader()  # a batch size that is too large is refused here, before a run begins

    def _cut(self, train: Images) -> dict[str, Images]:
        """Return the sets of images that are trained on."""
        raise NotImplementedError

    def _cutout_side(self, side: int) -> int:
        """Return the side of the square to cut out of images of that side."""
        return 0

    def _check_like_train(self, images: Images, split: str) -> None:
        if images.classes != self.classes:
            raise ConfigError(
                f"the {split} split has the classes {', '.join(images.classes)}, "
                f"allowed are those of the train split: {', '.join(self.classes)}"
            )
        if images.shape != self.input_shape:
            raise ConfigError(
                f"the {split} split has images of shape {images.shape} (channels, height, width), "
                f"allowed is that of the train split: {self.input_shape}"
            )

    def record(self) -> dict[str, Any]:
        """Return what a run's record says of its data, in primitives."""
        return {
            "name": self.source.name,
            "num_classes": self.num_classes,
            "input_shape": list(self.input_shape),
            **{f"{name}_images": len(images) for name, images in self._training.items()},
            "validation_images": 0 if self._validation is None else len(self._validation),
        }

    def train_dataloader(self) -> TrainLoader:
        """Return the loader of {name: Batch}."""
        return TrainLoader(
            self._training, batch_size=self.batch_size, seed=self.seed, epoch=self._epoch, **self._processes()
        )

    def _epoch(self) -> int:
        # overfit_batches asks for the same batches in every epoch.
        if self.trainer is None or self.trainer.overfit_batches:  # pyright: ignore[reportAttributeAccessIssue]
            return 0
        return self.trainer.current_epoch

    def _eval_loader(self, images: Images) -> EvalLoader:
        return EvalLoader(images, batch_size=self.batch_size, **self._processes())

    def _processes(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn a `Batch`, or each of {name: Batch}, into (images, labels): augmented in training, normalised always."""
        if isinstance(batch, dict):
            return {name: self._to_input(part) for name, part in batch.items()}
        return self._to_input(batch)

    def _to_input(self, batch: Batch) -> tuple[Tensor, Tensor]:
        assert self.augmentation is not None
        if self.trainer is not None and self.trainer.training:
            images = self.augmentation(batch.pixels, seed=batch.seed)
        else:
            images = self.augmentation.normalize(batch.pixels)
        if self.trainer is not None:
            # Lightning converted the batch to the run's precision while it was still uint8.
            images = self.trainer.precision_plugin.convert_input(images)
        return images, batch.labels


class SearchData(ImageData):
    """The train split in two halves; a training batch is {"weights": (images, labels), "arch": (images, labels)}.

    Validation is on the source's own validation split or, where it has none, on the arch half without augmentation.
    There is no way to the test split.

    Args:
        source: the data set.
        batch_size: images of each half in a batch of one process.
        arch_fraction: share of the train split that goes to the alphas.
        crop_padding: of the random crop; 0 is no crop.
        flip: whether training images are mirrored at random.
        seed: of the run: of the split, the order and the augmentation.

    Raises:
        ConfigError: an argument is out of its range; the message names the config key.
    """

    def __init__(
        self, source: Source, *, batch_size: int, arch_fraction: float, crop_padding: int, flip: bool, seed: int
    ) -> None:
        super().__init__(source, batch_size=batch_size, crop_padding=crop_padding, flip=flip, seed=seed)
        self.arch_fraction = arch_fraction
        self._split_hash = ""

    def _cut(self, train: Images) -> dict[str, Images]:
        weight, arch = split_halves(train.labels, arch_fraction=self.arch_fraction, seed=self.seed)
        self._split_hash = indices_hash(weight, arch)
        return {"weights": train.select(weight), "arch": train.select(arch)}

    def record(self) -> dict[str, Any]:
        """Return what a run's record says of its data: also the SHA-256 of the halves' indices."""
        return {**super().record(), "split_sha256": self._split_hash}

    def val_dataloader(self) -> EvalLoader:
        """Return the loader of the validation split, or of the arch half."""
        return self._eval_loader(self._training["arch"] if self._validation is None else self._validation)

    def test_dataloader(self) -> None:
        """Refuse: a search that saw the test split would choose by it."""
        raise RuntimeError("a search has no way to the test split; `python -m src.retrain` tests what it found")

    predict_dataloader = test_dataloader


class RetrainData(ImageData):
    """The whole train split, and the test split; a batch is (images, labels).

    The test split is read when the stage "test" is set up, not before. Validation is on the source's own validation
    split; where it has none there is no validation.

    Args:
        source: the data set.
        batch_size: images in a batch of one process.
        crop_padding: of the random crop; 0 is no crop.
        flip: whether training images are mirrored at random.
        cutout: side of the square that is cut out of training images; 0 is none, None is half of their side, which is
            the paper's 16 for CIFAR-10.
        seed: of the run: of the order and the augmentation.

    Raises:
        ConfigError: an argument is out of its range; the message names the config key.
    """

    def __init__(
        self, source: Source, *, batch_size: int, crop_padding: int, flip: bool, cutout: int | None = None, seed: int
    ) -> None:
        super().__init__(source, batch_size=batch_size, crop_padding=crop_padding, flip=flip, seed=seed)
        self.cutout = cutout
        self._test: Images | None = None

    def setup(self, stage: str) -> None:
        """Read the train split and, for the stage "test", the test split."""
        if not self._training:
            self.source.check_test()  # a test split that is not there is better missed before the training
        super().setup(stage)
        if stage == "test" and self._test is None:
            test = self.source.test()
            self._check_like_train(test, "test")
            self._test = test

    def _cut(self, train: Images) -> dict[str, Images]:
        return {"train": train}

    def _cutout_side(self, side: int) -> int:
        if self.cutout is None:
            return side // 2
        if not 0 <= self.cutout <= side:
            raise ConfigError(
                f"data.cutout={self.cutout} for images with a side of {side}, "
                f"allowed are 0 (none) to {side}, and null (half of the side)"
            )
        return self.cutout

    def val_dataloader(self) -> EvalLoader | list[EvalLoader]:
        """Return the loader of the validation split, or an empty list where there is none."""
        return [] if self._validation is None else self._eval_loader(self._validation)

    def test_dataloader(self) -> EvalLoader:
        """Return the loader of the test split."""
        assert self._test is not None
        return self._eval_loader(self._test)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn a batch into (images, labels)."""
        return super().on_after_batch_transfer(batch["train"] if isinstance(batch, dict) else batch, dataloader_idx)
