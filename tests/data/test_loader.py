from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.data.loader import Batch, EvalLoader, TrainLoader
from src.data.samples import Part, Samples
from src.data.tasks import Classification


def numbered(count: int) -> Samples:
    """Return images whose label is their number, and whose pixels say the same."""
    labels = torch.arange(count)
    pixels = (labels % 256).to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    return Samples(pixels, labels, Classification([str(number) for number in range(count)]))


def loader(sizes: dict[str, int], *, batch_size: int = 4, seed: int = 0, epoch: int = 0, **place: int) -> TrainLoader:
    images = {name: numbered(size) for name, size in sizes.items()}
    return TrainLoader(images, batch_size=batch_size, seed=seed, epoch=lambda: epoch, **place)


def seen(batches: list[dict[str, Batch]]) -> list[dict[str, tuple[list[int], int]]]:
    return [{name: (batch.targets.tolist(), batch.seed) for name, batch in step.items()} for step in batches]


def order(batches: list[dict[str, Batch]], name: str = "weights") -> list[int]:
    return [label for step in batches for label in step[name].targets.tolist()]


def test_an_epoch_is_whole_batches_of_the_first_set_without_repeats() -> None:
    train = loader({"weights": 19})
    steps = list(train)
    assert len(steps) == len(train) == 4
    assert len(set(order(steps))) == 16
    for step in steps:
        pixels, labels, _ = step["weights"]
        assert torch.equal(pixels[:, 0, 0, 0].long(), labels)


def test_each_epoch_seed_and_set_has_an_order_of_its_own() -> None:
    orders = [
        order(list(loader({"weights": 40}, epoch=0))),
        order(list(loader({"weights": 40}, epoch=1))),
        order(list(loader({"weights": 40}, seed=1))),
        order(list(loader({"weights": 40, "arch": 40})), "arch"),
    ]
    assert len({tuple(o) for o in orders}) == 4
    assert all(sorted(o) == list(range(40)) for o in orders)
    torch.manual_seed(123)
    assert order(list(loader({"weights": 40}, epoch=0))) == orders[0]


@pytest.mark.parametrize("arch", [9, 40, 101])
def test_other_sets_are_repeated_as_often_as_needed(arch: int) -> None:
    steps = list(loader({"weights": 40, "arch": arch}))
    assert len(steps) == 10
    labels = order(steps, "arch")
    a_pass = arch // 4 * 4
    passes = [labels[start : start + a_pass] for start in range(0, len(labels), a_pass)]
    assert all(len(set(one)) == len(one) for one in passes)
    assert len({tuple(one) for one in passes}) == len(passes)


@given(
    world=st.integers(1, 4),
    batch_size=st.integers(1, 5),
    sizes=st.tuples(st.integers(20, 70), st.integers(20, 70)),
    epoch=st.integers(0, 3),
)
def test_the_ranks_together_see_what_one_process_sees(
    world: int, batch_size: int, sizes: tuple[int, int], epoch: int
) -> None:
    named = {"weights": sizes[0], "arch": sizes[1]}
    one = list(loader(named, batch_size=batch_size * world, epoch=epoch))
    ranks = [
        list(loader(named, batch_size=batch_size, epoch=epoch, rank=rank, world_size=world)) for rank in range(world)
    ]
    assert {len(steps) for steps in ranks} == {len(one)}
    for name in named:
        for step, joined in enumerate(one):
            parts = [label for steps in ranks for label in steps[step][name].targets.tolist()]
            assert parts == joined[name].targets.tolist()
    seeds = Counter(batch.seed for steps in ranks for step in steps for batch in step.values())
    assert max(seeds.values()) == 1


@given(stop=st.integers(0, 10), batches=st.integers(1, 3))
def test_a_loader_resumes_where_another_stopped(stop: int, batches: int) -> None:
    sizes = {"weights": 40, "arch": 12 * batches}
    straight = seen(list(loader(sizes, epoch=3)))
    stopped = loader(sizes, epoch=3)
    done = seen(list(islice(stopped, stop)))
    state = stopped.state_dict()
    resumed = loader(sizes, epoch=3)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    if stop < 10:
        assert state == {"epoch": 3, "step": stop}
        assert done + seen(list(resumed)) == straight
    else:
        assert state == {"epoch": 4, "step": 0}
        assert done == straight


def test_a_saved_place_is_used_once_and_only_in_its_own_epoch() -> None:
    train = loader({"weights": 40}, epoch=3)
    whole = seen(list(train))
    train.load_state_dict({"epoch": 3, "step": 7})
    iter(train)  # asked for and never used, as Lightning does
    assert seen(list(train)) == whole[7:]
    assert seen(list(train)) == whole
    train.load_state_dict({"epoch": 2, "step": 7})
    assert seen(list(train)) == whole


def test_the_epoch_is_asked_for_with_the_first_batch() -> None:
    now = {"epoch": 0}
    train = TrainLoader({"weights": numbered(40)}, batch_size=4, seed=0, epoch=lambda: now["epoch"])
    iterator = iter(train)
    now["epoch"] = 5
    assert seen(list(iterator)) == seen(list(loader({"weights": 40}, epoch=5)))
    assert train.state_dict() == {"epoch": 6, "step": 0}


def test_a_batch_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^batch_size must be at most 3 for the 3 samples of 'arch', got 4$"):
        loader({"weights": 40, "arch": 3})
    with pytest.raises(
        ValueError, match=r"^batch_size must be at most 3 for the 11 samples of .* on 3 processes, got 4$"
    ):
        loader({"weights": 11}, world_size=3)
    assert len(loader({"weights": 12}, world_size=3)) == 1


@given(count=st.integers(1, 60), batch_size=st.integers(1, 9), world=st.integers(1, 5), mixed=st.booleans())
def test_evaluation_sees_every_sample_once_in_equally_many_batches(
    count: int, batch_size: int, world: int, mixed: bool
) -> None:
    if count < world:
        with pytest.raises(ValueError, match=f"{count} samples cannot be shared among {world} processes"):
            EvalLoader(numbered(count), batch_size=batch_size, rank=0, world_size=world)
        return
    settings: Any = {"batch_size": batch_size, "world_size": world, "mixed": mixed}
    loaders = [EvalLoader(numbered(count), rank=rank, **settings) for rank in range(world)]
    ranks = [list(one) for one in loaders]
    assert {len(batches) for batches in ranks} == {len(one) for one in loaders}
    assert len({len(batches) for batches in ranks}) == 1
    labels = [[label for batch in batches for label in batch.targets.tolist()] for batches in ranks]
    assert mixed or all(part == sorted(part) for part in labels)
    assert sorted(label for part in labels for label in part) == list(range(count))
    for batches in ranks:
        for batch in batches:
            assert 1 <= len(batch.targets) <= max(batch_size, 2 if world > 1 else 1)
            assert batch.seed == 0
            assert torch.equal(batch.inputs[:, 0, 0, 0].long(), batch.targets)


@pytest.mark.parametrize("world", [1, 2])
def test_the_first_mixed_batches_hold_the_classes_of_a_sorted_split_in_proportion(world: int) -> None:
    labels = torch.arange(5).repeat_interleave(torch.tensor([40, 40, 40, 40, 80]))
    whole = Samples(torch.zeros(260, 1), torch.cat([labels, torch.zeros(20).long()]), Classification("abcde"))
    part = Part(whole, torch.arange(240))  # class after class
    first = [
        next(iter(EvalLoader(part, batch_size=24 // world, rank=rank, world_size=world, mixed=True))).targets
        for rank in range(world)
    ]
    assert torch.cat(first).bincount().tolist() == [4, 4, 4, 4, 8]
