from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.data.split import indices_hash, mixed_order, split_halves


@given(
    labels=st.lists(st.integers(0, 5), min_size=2, max_size=80),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_halves_are_disjoint_complete_and_balanced(labels: list[int], fraction: float, seed: int) -> None:
    y = torch.tensor(labels)
    total = int(len(labels) * fraction + 0.5)
    if total in (0, len(labels)):
        with pytest.raises(ValueError, match=r"arch_fraction must be such that .* leave one for the"):
            split_halves(y, arch_fraction=fraction, seed=seed)
        return
    weight, arch = split_halves(y, arch_fraction=fraction, seed=seed)
    assert sorted(weight.tolist() + arch.tolist()) == list(range(len(labels)))
    assert weight.tolist() == sorted(weight.tolist())
    assert arch.tolist() == sorted(arch.tolist())
    assert weight.dtype == arch.dtype == torch.int64
    assert len(arch) == total
    for label in set(labels):
        assert abs((y[arch] == label).sum().item() - (y == label).sum().item() * fraction) < 1


def test_the_paper_halves_every_class_exactly() -> None:
    labels = torch.arange(500) % 10
    weight, arch = split_halves(labels, arch_fraction=0.5, seed=3)
    assert labels[weight].bincount().tolist() == [25] * 10
    assert labels[arch].bincount().tolist() == [25] * 10


def test_the_seed_decides_and_nothing_else() -> None:
    labels = torch.arange(60) % 3
    first = split_halves(labels, arch_fraction=0.5, seed=0)
    torch.manual_seed(1)
    torch.rand(5)
    again = split_halves(labels, arch_fraction=0.5, seed=0)
    other = split_halves(labels, arch_fraction=0.5, seed=1)
    assert indices_hash(*first) == indices_hash(*again)
    assert indices_hash(*first) != indices_hash(*other)


def test_the_hash_tells_the_halves_apart() -> None:
    a, b = torch.tensor([0, 1]), torch.tensor([2, 3])
    hashes = {indices_hash(a, b), indices_hash(b, a), indices_hash(torch.tensor([0]), torch.tensor([1, 2, 3]))}
    assert len(hashes) == 3
    assert all(len(value) == 64 for value in hashes)
    assert indices_hash(a, b) == "50b526082ebba12f4833e469476483e3a43aa6c6f8ddc520d647ed7dd2326b16"


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_fraction_that_is_not_one_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"^arch_fraction must be above 0 and below 1, got"):
        split_halves(torch.arange(10), arch_fraction=fraction, seed=0)


@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=120))
def test_every_beginning_of_a_mixed_order_holds_the_strata_in_proportion(labels: list[int]) -> None:
    strata = torch.tensor(labels)
    order = mixed_order(strata)
    assert sorted(order.tolist()) == list(range(len(labels)))
    counts = strata.bincount()
    for length in range(1, len(labels) + 1):
        found = strata[order[:length]].bincount(minlength=len(counts))
        share = counts / len(labels)
        # Within one, and a round more for the strata that take turns.
        assert ((found - length * share).abs() <= 1 + share * (counts > 0).sum()).all()


def test_a_mixed_order_is_random_and_always_the_same() -> None:
    strata = torch.zeros(50, dtype=torch.int64)
    order = mixed_order(strata)
    torch.manual_seed(5)
    assert torch.equal(mixed_order(strata), order)
    assert not torch.equal(order, torch.arange(50))
    rounds = mixed_order(torch.arange(40) // 4).view(4, 10) // 4
    assert all(sorted(one) == list(range(10)) for one in rounds.tolist())
    assert len({tuple(one) for one in rounds.tolist()}) == 4
