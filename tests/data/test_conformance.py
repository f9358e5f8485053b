"""Data modules of every kind hold the contract, and the suite notices what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conformance.data_module import DataModuleConformance
from data.own_module import Waves

from src.data.modules import RetrainData, SearchData
from src.data.samples import Samples
from src.data.sources import InMemory, Source
from src.data.tasks import Classification, Regression


def built(source: Source, purpose: str, seed: int, **changes: Any) -> Any:
    kind = SearchData if purpose == "search" else RetrainData
    return kind(source, **{"batch_size": 4, "seed": seed, **changes})


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class TestImages(DataModuleConformance):
    def data(self, purpose: str, seed: int) -> Any:
        pixels = (noise(60, 3, 6, 5) * 50 + 128).clamp(0, 255).to(torch.uint8)
        source = InMemory(Samples(pixels, torch.arange(60) % 3, Classification("abc")))
        return built(source, purpose, seed, crop_padding=1, flip=True)


class TestVectors(DataModuleConformance):
    def data(self, purpose: str, seed: int) -> Any:
        source = InMemory(Samples(noise(60, 7).double(), noise(60, 2).double(), Regression(2)))
        return built(source, purpose, seed)


class TestTokens(DataModuleConformance):
    def data(self, purpose: str, seed: int) -> Any:
        tokens = (noise(60, 9) * 100).long()
        split = Samples(tokens, torch.arange(60) % 2, Classification("ab"))
        return built(InMemory(split, validation=split.select(torch.arange(8))), purpose, seed)


class TestOwnModule(DataModuleConformance):
    def data(self, purpose: str, seed: int) -> Any:
        return Waves(purpose, batch_size=4, seed=seed)


class OneHalf(Waves):
    """Both halves are the same samples."""

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        if self.purpose == "search":
            loader.sets["arch"] = loader.sets["weights"]
        return loader


class NoRanks(Waves):
    """Every process sees all."""

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        loader.rank = 0
        return loader


class StartsAnew(Waves):
    """A resumed epoch begins at its first step."""

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        loader.load_state_dict = lambda state: None
        return loader


class SameOrder(Waves):
    """The order is that of the first epoch, whatever the seed."""

    def train_dataloader(self) -> Any:
        self.seed = 0
        loader = super().train_dataloader()
        loader.data = Waves(self.purpose, self.batch_size, 0)
        loader.data.setup("fit")
        return loader


class OtherShape(Waves):
    """The shape is not that of the samples."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.input_shape = (16,)


class Leaky(Waves):
    """A search can read the test split."""

    def test_dataloader(self) -> Any:
        return self.in_order(slice(48, None))


FAULTS = {
    OneHalf: ("test_the_halves_have_no_sample_in_common",),
    NoRanks: ("test_processes_see_different_samples_in_equally_many_steps", "retrain"),
    StartsAnew: ("test_a_resumed_run_is_fed_what_the_straight_one_was", "search", 1),
    SameOrder: ("test_the_seed_decides_and_nothing_else", "retrain"),
    OtherShape: ("test_a_search_is_fed_pairs_of_both_halves",),
    Leaky: ("test_a_search_has_no_way_to_the_test_split",),
}


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty:UserWarning")
@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero:UserWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
def test_the_suite_notices(kind: type[Waves], tmp_path: Path) -> None:
    class Suite(DataModuleConformance):
        def data(self, purpose: str, seed: int) -> Any:
            return kind(purpose, batch_size=4, seed=seed)

    name, *arguments = FAULTS[kind]
    if "resumed" in name:
        arguments.append(tmp_path)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(Suite(), name)(*arguments)
