"""What a data module must hold. Inherit `DataModuleConformance`, and pytest checks a module of your own:

class TestMyData(DataModuleConformance):
    def data(self, purpose, seed):
        return MyData(purpose=purpose, seed=seed, batch_size=4)

The contract is that of `src.data.modules.DataModule`. Several epochs are run, so the data should be small.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn

from src.data.tasks import Task


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
    """Return a trainer that says and writes nothing unless told otherwise."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"enable_checkpointing": False, "num_sanity_val_steps": 0, "accelerator": "cpu"}
    return L.Trainer(max_epochs=epochs, **{**quiet, **defaults, **options})


def saving(folder: Path, **when: Any) -> dict[str, Any]:
    """Return the options of a trainer that keeps a checkpoint for every step, or whenever told."""
    every = ModelCheckpoint(folder, filename="{epoch}-{step}", save_top_k=-1, **(when or {"every_n_train_steps": 1}))
    return {"enable_checkpointing": True, "callbacks": [every]}


def equal(a: Any, b: Any) -> bool:
    """Return whether two nested containers of tensors are exactly equal."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


def pairs(batches: list[Any], name: str = "weights") -> list[tuple[Tensor, Tensor]]:
    """Return the (inputs, targets) of batches; of those of a search's training, of the half `name`."""
    return [batch[name] if isinstance(batch, dict) else batch for batch in batches]


def samples(batches: list[Any], name: str = "weights") -> list[bytes]:
    """Return the inputs of the samples in some batches, each as something that can be compared."""
    return [sample.numpy().tobytes() for inputs, _ in pairs(batches, name) for sample in inputs]


def share_in_common(one: list[bytes], other: list[bytes]) -> float:
    """Return the share of the samples of the smaller list that are in the other."""
    smaller, larger = sorted((one, other), key=len)
    return sum(sample in set(larger) for sample in smaller) / max(1, len(smaller))


# Lightning 2.6 walks its loaders with a class that torch 2.14 calls deprecated. The rest is its advice.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero:UserWarning")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty:UserWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
class DataModuleConformance:
    """The suite. `data` is for you to write."""

    def data(self, purpose: str, seed: int) -> Any:
        """Return a new data module for "search" or "retrain", with batches so small that an epoch has two or more."""
        raise NotImplementedError

    def ready(self, purpose: str, seed: int = 0) -> Any:
        """Return a data module that has been set up."""
        data = self.data(purpose, seed)
        data.setup("fit")
        return data

    def fed(self, purpose: str, seed: int = 0, epochs: int = 1, **options: Any) -> Watcher:
        """Return what is fed to a run."""
        module = Watcher()
        trainer(epochs, **options).fit(module, datamodule=self.data(purpose, seed))
        return module

    def plain_epoch(self, purpose: str, rank: int = 0, world_size: int = 1, epoch: int = 0) -> list[Any]:
        """Return the batches of an epoch of training on one of several processes, without augmentation."""
        data = self.ready(purpose)
        data.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=world_size,
            current_epoch=epoch,
            max_epochs=1,
            overfit_batches=0,
            limit_train_batches=1.0,
            limit_val_batches=1.0,
            limit_test_batches=1.0,
            training=False,
            precision_plugin=Precision(),
        )
        return [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]

    def check_pair(self, data: Any, batch: Any) -> None:
        """Assert that a batch is inputs and targets that fit what the data module says of itself."""
        inputs, targets = batch
        assert tuple(inputs.shape) == (len(targets), *data.input_shape)
        assert inputs.dtype == getattr(data, "input_dtype", torch.float32)
        data.task.check(targets)
        outputs = torch.zeros(len(targets), data.task.outputs)
        assert data.task.loss(outputs, targets).isfinite()
        assert data.task.score(outputs, targets).isfinite()
        for metric in data.task.metrics().values():
            metric.update(outputs, targets)
            assert metric.compute().isfinite()

    @pytest.mark.parametrize("purpose", ["search", "retrain"])
    def test_it_says_what_it_feeds(self, purpose: str) -> None:
        data = self.ready(purpose)
        assert isinstance(data.task, Task)
        assert data.task.outputs >= 1
        assert data.task.metric in data.task.metrics()
        assert all(isinstance(size, int) for size in data.input_shape)
        record = data.record()
        assert json.loads(json.dumps(record)) == record
        assert isinstance(record["name"], str)
        assert record["input_shape"] == list(data.input_shape)
        data.setup("fit")
        assert data.record() == record

    def test_a_search_is_fed_pairs_of_both_halves(self) -> None:
        module = self.fed("search")
        assert len(module.fed["train"]) >= 2
        assert module.fed["val"]
        data = self.ready("search")
        for step in module.fed["train"]:
            assert set(step) == {"weights", "arch"}
            for part in step.values():
                self.check_pair(data, part)
        for batch in module.fed["val"]:
            self.check_pair(data, batch)

    def test_a_retrain_is_fed_pairs_and_tested(self) -> None:
        module, data = Watcher(), self.data("retrain", 0)
        run = trainer()
        run.fit(module, datamodule=data)
        run.test(module, datamodule=data, verbose=False)
        assert len(module.fed["train"]) >= 2
        assert module.fed["test"]
        for stage in module.fed:
            for batch in module.fed[stage]:
                self.check_pair(data, batch)

    def test_the_halves_have_no_sample_in_common(self) -> None:
        batches = self.plain_epoch("search")
        assert share_in_common(samples(batches), samples(batches, "arch")) < 0.5  # some data sets repeat samples

    def test_a_search_has_no_way_to_the_test_split(self) -> None:
        data = self.ready("search")
        with pytest.raises(Exception, match="test"):
            data.test_dataloader()

    @pytest.mark.parametrize("purpose", ["search", "retrain"])
    def test_the_seed_decides_and_nothing_else(self, purpose: str) -> None:
        torch.manual_seed(1)
        one = self.fed(purpose)
        torch.manual_seed(2)
        same, other = self.fed(purpose), self.fed(purpose, seed=1)
        assert equal(one.fed, same.fed)
        assert not equal(one.fed["train"], other.fed["train"])

    @pytest.mark.parametrize("purpose", ["search", "retrain"])
    def test_each_epoch_has_an_order_of_its_own(self, purpose: str) -> None:
        batches = self.fed(purpose, epochs=2).fed["train"]
        half = len(batches) // 2
        assert not equal(batches[:half], batches[half:])

    def test_evaluation_is_the_same_in_every_epoch(self) -> None:
        batches = self.fed("search", epochs=2).fed["val"]
        half = len(batches) // 2
        assert equal(batches[:half], batches[half:])

    @pytest.mark.parametrize("purpose", ["search", "retrain"])
    def test_processes_see_different_samples_in_equally_many_steps(self, purpose: str) -> None:
        first, second = (self.plain_epoch(purpose, rank, 2) for rank in range(2))
        assert len(first) == len(second) >= 1
        assert share_in_common(samples(first), samples(second)) < 0.5  # some data sets repeat samples

    @pytest.mark.parametrize("purpose", ["search", "retrain"])
    @pytest.mark.parametrize("steps_of_second_epoch", [0, 1])
    def test_a_resumed_run_is_fed_what_the_straight_one_was(
        self, purpose: str, steps_of_second_epoch: int, tmp_path: Path
    ) -> None:
        straight, resumed = Watcher(), Watcher()
        trainer(2, **saving(tmp_path)).fit(straight, datamodule=self.data(purpose, 0))
        done = len(straight.fed["train"]) // 2 + steps_of_second_epoch
        (checkpoint,) = tmp_path.glob(f"*-step={done}.ckpt")
        trainer(2, **saving(tmp_path)).fit(resumed, datamodule=self.data(purpose, 0), ckpt_path=checkpoint)
        assert equal(resumed.fed["train"], straight.fed["train"][done:])
