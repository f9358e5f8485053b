"""What a search and a retrain are fed: the contract of a data module, and the two modules over samples in memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor

from src.common.errors import ConfigError, must_be, shorten
from src.data.augment import Augmentation
from src.data.loader import Batch, EvalLoader, TrainLoader
from src.data.samples import Part, Samples
from src.data.sources import Source, as_source
from src.data.split import indices_hash, split_halves
from src.data.tasks import Task


class DataModule(Protocol):
    """What the commands ask of a data module, a `LightningDataModule` named by `data._target_`.

    One class serves both commands. It is called with the settings below `data`, and with `purpose` ("search" or
    "retrain") and `seed` where its signature has them. `tests/conformance/data_module.py` holds a class to all of this:

    - `setup("fit")` reads the data. From then on the attributes are there, and so are `record()` and the loaders.
    - After `on_after_batch_transfer`, a batch is (inputs, targets), and in the training of a search
      {"weights": (inputs, targets), "arch": (inputs, targets)} from two disjoint halves of the train split. Floating
      inputs have the precision of the run.
    - The batches are a function of the arguments, of `trainer.current_epoch` and of the step. Processes
      (`trainer.global_rank` of `trainer.world_size`) get different samples.
    - The loader of `train_dataloader` has a length, and `state_dict` and `load_state_dict`, with which Lightning resumes
      an epoch at the step where it stopped.
    - A search has no way to the test split: its `test_dataloader` raises an error. A retrain reads the test split in
      `setup("test")`. What is wrong with it should be found in `setup("fit")`, which is before the training.
    - What the user can put right is a `ConfigError`, which names an argument.

    Attributes:
        task: the loss and the metrics.
        input_shape: of one sample.
        input_dtype: of the network's inputs. May be left out where it is float32.
    """

    task: Task
    input_shape: tuple[int, ...]

    def setup(self, stage: str) -> None:
        """Read what the stage ("fit" or "test") needs; may be called any number of times."""

    def record(self) -> dict[str, Any]:
        """Return what a run's record says of its data, in primitives: at least `name`, `input_shape`, and sizes."""
        ...

    def train_dataloader(self) -> Any:
        """Return the loader of the training."""

    def val_dataloader(self) -> Any:
        """Return the loader of the validation; an empty list is none."""

    def test_dataloader(self) -> Any:
        """Return the loader of the test split."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn a batch of a loader into what the network is fed; a `LightningDataModule` returns it as it is.

        A search also calls it before there is a trainer, for its dry pass.
        """


class SamplesData(L.LightningDataModule):
    """What both data modules over samples in memory share: reads the splits once, and turns batches into inputs.

    Floating inputs and pixels are standardised with the mean and the deviation of the whole train split, per channel or
    feature, unless `normalize` is off. Other inputs, such as tokens, stay as they are; see `Samples`.
    """

    task: Task
    input_shape: tuple[int, ...]
    input_dtype: torch.dtype

    def __init__(
        self, source: Source | Any, *, batch_size: int, crop_padding: int, flip: bool, normalize: bool, seed: int
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise must_be("batch_size", "1 or more", batch_size)
        if crop_padding < 0:
            raise must_be("crop_padding", "0 or more", crop_padding)
        self.source = as_source(source)
        self.batch_size = batch_size
        self.crop_padding = crop_padding
        self.flip = flip
        self.normalize = normalize
        self.seed = seed
        self.augmentation: Augmentation | None = None
        self._training: dict[str, Samples | Part] = {}  # by the name of its batches
        self._validation: Samples | Part | None = None
        self._input_type = ""  # before it is normalised

    @property
    def num_classes(self) -> int:
        """The size of the network's last layer."""
        return self.task.outputs

    def setup(self, stage: str) -> None:
        """Read the train split, and the validation split if there is one."""
        if self._training:
            return
        with _source_errors():
            train = self.source.train()
            validation = self.source.validation()
            if validation is not None:
                _check_like(validation, train, "validation")
        self._validation = validation
        self.task, self.input_shape = train.task, train.shape
        self._input_type = str(train.inputs.dtype).removeprefix("torch.")
        self.augmentation = self._augmentation(train)
        self.input_dtype = self.augmentation.normalize(train.inputs[:1]).dtype
        self._training = self._cut(train)
        self.train_dataloader()  # refuses a batch size that is too large before a run begins

    @abstractmethod
    def _cut(self, train: Samples) -> dict[str, Samples | Part]:
        """Return the sets of samples that are trained on."""

    def _augmentation(self, train: Samples) -> Augmentation:
        if not train.are_images:
            for name, asked in (("crop_padding", self.crop_padding), ("flip", self.flip)):
                if asked:
                    raise must_be(name, f"{'false' if name == 'flip' else 0} for {_not_images(train)}", asked)
        elif self.crop_padding >= (side := min(train.shape[1:])):
            raise must_be("crop_padding", f"0 to {side - 1} for images with a side of {side}", self.crop_padding)
        statistics = train.statistics() if self.normalize else None
        mean, std = statistics or (None, None)
        if mean is not None and not bool(mean.isfinite().all()):
            raise ConfigError("source: inputs of the train split must be finite, got nan or inf", argument="source")
        cutout = self._cutout_side(train)
        return Augmentation(mean, std, padding=self.crop_padding, flip=self.flip, cutout=cutout)

    def _cutout_side(self, train: Samples) -> int:
        """Return the side of the square to cut out of training images."""
        return 0

    def record(self) -> dict[str, Any]:
        """Return what a run's record says of its data, in primitives: also what raw inputs are, and how they are normalised."""
        assert self.augmentation is not None
        mean, std = self.augmentation.mean, self.augmentation.std
        return {
            "name": self.source.name,
            **self.task.record(),
            "input_shape": list(self.input_shape),
            "input_type": self._input_type,
            **{f"{name}_samples": len(samples) for name, samples in self._training.items()},
            "validation_samples": 0 if self._validation is None else len(self._validation),
            "mean": None if mean is None else mean.tolist(),
            "std": None if std is None else std.tolist(),
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

    def _eval_loader(self, samples: Samples | Part, limit: str) -> EvalLoader:
        """Return the loader of a split; where the trainer's `limit` cuts it short, its order is mixed."""

        def loader(*, mixed: bool) -> EvalLoader:
            return EvalLoader(samples, batch_size=self.batch_size, mixed=mixed, **self._processes())

        whole = loader(mixed=False)
        most: int | float = 1.0 if self.trainer is None else getattr(self.trainer, limit)
        cut = most < len(whole) if isinstance(most, int) else most < 1.0
        # A whole split keeps its order: any order has the same metrics, but for the last bits of their sums.
        return loader(mixed=True) if cut else whole

    def _processes(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn a `Batch`, or each of {name: Batch}, into (inputs, targets): augmented in training, normalised always."""
        if isinstance(batch, dict):
            return {name: self._to_input(part) for name, part in batch.items()}
        return self._to_input(batch)

    def _to_input(self, batch: Batch) -> tuple[Tensor, Tensor]:
        assert self.augmentation is not None
        if self.trainer is not None and self.trainer.training:
            inputs = self.augmentation(batch.inputs, seed=batch.seed)
        else:
            inputs = self.augmentation.normalize(batch.inputs)
        targets = batch.targets.float() if batch.targets.is_floating_point() else batch.targets
        if self.trainer is not None:
            # Lightning converted the batch to the run's precision before it was normalised.
            inputs, targets = map(self.trainer.precision_plugin.convert_input, (inputs, targets))
        return inputs, targets


class SearchData(SamplesData):
    """The train split in two halves; a training batch is {"weights": (inputs, targets), "arch": (inputs, targets)}.

    The halves of a classification hold every class in proportion; those of another task are drawn at random.
    Validation is on the source's own validation split or, where it has none, on the arch half without augmentation.
    There is no way to the test split.

    Args:
        source: the data set: a `Source`, or what `as_source` makes one of.
        batch_size: samples of each half in a batch of one process.
        arch_fraction: share of the train split that goes to the alphas.
        crop_padding: of the random crop of training images; 0 is no crop.
        flip: whether training images are mirrored at random.
        normalize: whether pixels and floating inputs are standardised.
        seed: of the run: of the split, the order and the augmentation.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        source: Source | Any,
        *,
        batch_size: int,
        arch_fraction: float = 0.5,
        crop_padding: int = 0,
        flip: bool = False,
        normalize: bool = True,
        seed: int,
    ) -> None:
        super().__init__(
            source, batch_size=batch_size, crop_padding=crop_padding, flip=flip, normalize=normalize, seed=seed
        )
        self.arch_fraction = arch_fraction
        self._split_hash = ""

    def _cut(self, train: Samples) -> dict[str, Samples | Part]:
        weight, arch = split_halves(train.strata(), arch_fraction=self.arch_fraction, seed=self.seed)
        self._split_hash = indices_hash(weight, arch)
        return {"weights": Part(train, weight), "arch": Part(train, arch)}

    def record(self) -> dict[str, Any]:
        """Return what a run's record says of its data: also the SHA-256 of the halves' indices."""
        return {**super().record(), "split_sha256": self._split_hash}

    def val_dataloader(self) -> EvalLoader:
        """Return the loader of the validation split, or of the arch half."""
        samples = self._training["arch"] if self._validation is None else self._validation
        return self._eval_loader(samples, "limit_val_batches")

    def test_dataloader(self) -> None:
        """Refuse: a search that saw the test split would choose by it."""
        raise RuntimeError("a search has no way to the test split; `python -m src.retrain` tests what it found")

    predict_dataloader = test_dataloader


class RetrainData(SamplesData):
    """The train split, and the test split; a batch is (inputs, targets).

    The test split is read when the stage "test" is set up, not before; whether it can be read is checked before the
    training, as far as its source can tell. Validation is on the source's own validation split. A source without one has
    no validation, and all of its train split is trained on, unless `validation_fraction` holds a part of it back.

    Args:
        source: the data set: a `Source`, or what `as_source` makes one of.
        batch_size: samples in a batch of one process.
        crop_padding: of the random crop of training images; 0 is no crop.
        flip: whether training images are mirrored at random.
        cutout: side of the square that is cut out of training images; 0 is none, None is half of their side, which is
            the paper's 16 for CIFAR-10. Samples other than images have none.
        normalize: whether pixels and floating inputs are standardised.
        validation_fraction: share of the train split that is validated on instead of trained on. The two parts are the
            halves that a `SearchData` with this as its `arch_fraction`, and with the same seed, has. 0 is none.
        seed: of the run: of the order, the augmentation and the part for validation.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        source: Source | Any,
        *,
        batch_size: int,
        crop_padding: int = 0,
        flip: bool = False,
        cutout: int | None = None,
        normalize: bool = True,
        validation_fraction: float = 0.0,
        seed: int,
    ) -> None:
        if not 0 <= validation_fraction < 1:
            raise must_be("validation_fraction", "0 or more, and below 1", validation_fraction)
        super().__init__(
            source, batch_size=batch_size, crop_padding=crop_padding, flip=flip, normalize=normalize, seed=seed
        )
        self.cutout = cutout
        self.validation_fraction = validation_fraction
        self._train: Samples | None = None
        self._test: Samples | None = None

    def setup(self, stage: str) -> None:
        """Read the train split and, for the stage "test", the test split."""
        if self._train is None:
            with _source_errors():
                self.source.check_test()
        super().setup(stage)
        if stage == "test" and self._test is None:
            assert self._train is not None
            with _source_errors():
                test = self.source.test()
                _check_like(test, self._train, "test")
            self._test = test

    def _cut(self, train: Samples) -> dict[str, Samples | Part]:
        self._train = train
        if not self.validation_fraction:
            return {"train": train}
        if self._validation is not None:
            needed = "0 for a source with a validation split of its own"
            raise must_be("validation_fraction", needed, self.validation_fraction)
        if int(len(train) * self.validation_fraction + 0.5) in (0, len(train)):
            needed = f"such that {len(train)} samples leave one for each part"
            raise must_be("validation_fraction", needed, self.validation_fraction)
        kept, held_back = split_halves(train.strata(), arch_fraction=self.validation_fraction, seed=self.seed)
        self._validation = Part(train, held_back)
        return {"train": Part(train, kept)}

    def _cutout_side(self, train: Samples) -> int:
        if not train.are_images:
            if self.cutout:
                raise must_be("cutout", f"0 or null for {_not_images(train)}", self.cutout)
            return 0
        side = min(train.shape[1:])
        if self.cutout is None:
            return side // 2
        if not 0 <= self.cutout <= side:
            needed = f"0 (none) to {side} for images with a side of {side}, or null (half of the side)"
            raise must_be("cutout", needed, self.cutout)
        return self.cutout

    def val_dataloader(self) -> EvalLoader | list[EvalLoader]:
        """Return the loader of the validation split, or an empty list where there is none."""
        return [] if self._validation is None else self._eval_loader(self._validation, "limit_val_batches")

    def test_dataloader(self) -> EvalLoader:
        """Return the loader of the test split."""
        assert self._test is not None
        return self._eval_loader(self._test, "limit_test_batches")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn a batch into (inputs, targets)."""
        return super().on_after_batch_transfer(batch["train"] if isinstance(batch, dict) else batch, dataloader_idx)


def _not_images(samples: Samples) -> str:
    return f"samples of shape {samples.shape}, which are no images (channels, height, width)"


@contextmanager
def _source_errors() -> Iterator[None]:
    """Let a source's errors name its arguments as `source.NAME`."""
    try:
        yield
    except ConfigError as error:
        raise error.within("source") from error


def _check_like(samples: Samples, train: Samples, split: str) -> None:
    """Raise a `ConfigError` unless a split has the task, the shape and the type of the train split."""
    given, needed = (
        {**some.task.record(), "shape": some.shape, "type": some.inputs.dtype} for some in (samples, train)
    )
    for name in reversed(needed):
        if given.get(name) != needed[name]:
            must, got = (
                shorten(", ".join(value) if isinstance(value, list) else value, 100)
                for value in (needed[name], given.get(name))
            )
            raise ConfigError(f"{name} of the {split} split must be {must} as in the train split, got {got}")
