from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from src.benchmarks.nas_bench_201 import nas_bench_201
from src.common.intervals import interval_of_mean
from src.studies import inference
from src.studies.inference import Test

FEW = hypothesis_settings(max_examples=40)
SMALL = st.integers(-3, 3).map(float)  # few values, so that ties and zeros are common


def nearly(test: Test, greater: float, less: float) -> None:
    assert test.greater == pytest.approx(greater, rel=1e-9)
    assert test.less == pytest.approx(less, rel=1e-9)


# Means.


def test_the_interval_of_a_mean_is_the_same_each_time_and_moves_with_the_values() -> None:
    values = np.random.default_rng(0).exponential(size=12)
    low, high = inference.mean_interval(values)
    assert low < values.mean() < high
    assert inference.mean_interval(values) == (low, high)
    assert inference.mean_interval(values, seed=1) != (low, high)
    assert inference.mean_interval(10 + 100 * values) == pytest.approx((10 + 100 * low, 10 + 100 * high))


def test_intervals_of_many_samples_are_those_of_each() -> None:
    samples = np.random.default_rng(0).random((3, 8))
    samples[1] = 0.25
    low, high = inference.mean_intervals(samples)
    assert (low[1], high[1]) == (0.25, 0.25)  # searches that find the same
    assert (low[0], high[0]) == tuple(inference.mean_interval(samples[0]))


def test_the_interval_of_few_values_is_students() -> None:
    values = [0.1, 0.4, 0.2]
    assert inference.mean_interval(values) == pytest.approx(interval_of_mean(values))
    assert all(map(math.isnan, inference.mean_interval([0.5])))


def test_the_interval_of_normal_values_is_as_wide_as_students() -> None:
    values = stats.norm.ppf((np.arange(10) + 0.5) / 10)
    low, high = inference.mean_interval(values)
    student = interval_of_mean(values.tolist())
    assert high - low == pytest.approx(student[1] - student[0], rel=0.1)


def best_of_five(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """What the best of 5 random architectures of NAS-Bench-201 reach: skewed, as what searches find."""
    return rng.choice(nas_bench_201().accuracies, (5, *shape)).max(axis=0)


def collapsing(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Three in ten collapse to skip connections, the others are good."""
    good = np.sort(nas_bench_201().accuracies)[-3000:]
    return np.where(rng.random(shape) < 0.3, 0.3977, rng.choice(good, shape))


def single(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.choice(nas_bench_201().accuracies, shape)


COVERAGE: list[tuple[Callable[[np.random.Generator, tuple[int, int]], np.ndarray], int, float]] = [
    (best_of_five, 10, 0.943),
    (best_of_five, 20, 0.940),
    (collapsing, 10, 0.964),
    (collapsing, 20, 0.950),
    (lambda rng, shape: rng.random(shape) ** 0.5, 10, 0.945),
    (lambda rng, shape: rng.exponential(size=shape), 10, 0.901),
    (single, 10, 0.760),
    (single, 20, 0.786),
]
"""Distribution, n, the share of 95 % intervals that cover its mean, in 4,000 samples."""


@pytest.mark.parametrize(("distribution", "n", "covered"), COVERAGE[:3])
def test_coverage_of_the_interval_of_a_mean(distribution: Callable, n: int, covered: float) -> None:
    check_coverage(distribution, n, covered, samples=400)


@pytest.mark.slow
@pytest.mark.parametrize(("distribution", "n", "covered"), COVERAGE)
def test_coverage_of_the_interval_of_a_mean_in_many_samples(distribution: Callable, n: int, covered: float) -> None:
    check_coverage(distribution, n, covered, samples=4000)


@pytest.mark.slow
def test_the_accelerated_bootstrap_covers_less_of_few_values() -> None:
    """Why it is not the one that is used."""
    rng = np.random.default_rng(5)
    mean = best_of_five(rng, (1_000, 400)).mean()
    samples = best_of_five(rng, (2000, 10))
    found = stats.bootstrap((samples,), np.mean, axis=1, n_resamples=2000, batch=500, rng=rng).confidence_interval
    covered = float(np.mean((found.low <= mean) & (mean <= found.high)))
    assert covered == pytest.approx(0.884, abs=4 * math.sqrt(0.884 * 0.116 * (1 / 2000 + 1 / 4000)))


def check_coverage(distribution: Callable, n: int, covered: float, samples: int) -> None:
    rng = np.random.default_rng(5)
    mean = distribution(rng, (1_000, 400)).mean()
    low, high = inference.mean_intervals(distribution(rng, (samples, n)))
    found = float(np.mean((low <= mean) & (mean <= high)))
    limit = 4 * math.sqrt(covered * (1 - covered) * (1 / samples + 1 / 4000))
    assert found == pytest.approx(covered, abs=limit)


# Against random architectures, all of which are known.


def irwin_hall(total: float, n: int) -> float:
    """The textbook's sum, of fractions: it alternates, so that floats cancel."""
    x = Fraction(total)
    return float(sum((-1) ** k * math.comb(n, k) * (x - k) ** n for k in range(math.floor(x) + 1)) / math.factorial(n))


@pytest.mark.parametrize("n", [1, 2, 5, 20, 100, 150])
def test_the_mean_of_uniform_chances_has_the_distribution_of_irwin_and_hall(n: int) -> None:
    for mean in (0.05, 0.25, 0.5, 0.75, 0.95):
        chances = np.full(n, mean)
        expected = irwin_hall(math.fsum(chances), n), irwin_hall(n - math.fsum(chances), n)
        nearly(inference.test_of_uniform_mean(chances, chances), greater=expected[1], less=expected[0])


def test_one_and_two_uniform_chances() -> None:
    nearly(inference.test_of_uniform_mean([0.9], [0.95]), greater=0.1, less=0.95)
    nearly(inference.test_of_uniform_mean([0.9, 0.7], [0.9, 0.7]), greater=0.4**2 / 2, less=1 - 0.4**2 / 2)
    assert inference.test_of_uniform_mean([1.0], [1.0]) == (0.0, 1.0)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_what_beats_the_best_of_k_by_all_draws(k: int) -> None:
    population = [1.0, 2.0, 2.0, 5.0]
    best = [max(draw) for draw in product(population, repeat=k)]
    values = [0.0, 1.0, 2.0, 3.0, 5.0]
    below, upto = inference.beaten(population, values, k)
    assert below == pytest.approx([np.mean([b < value for b in best]) for value in values])
    assert upto == pytest.approx([np.mean([b <= value for b in best]) for value in values])
    assert inference.expected_best(population, k) == pytest.approx(np.mean(best))


@pytest.mark.parametrize("k", [1, 2])
def test_the_level_against_random_is_at_most_what_it_says_with_ties(k: int) -> None:
    """By all outcomes of three searches that find the best of k random architectures."""
    population = [1.0, 2.0, 2.0, 2.0, 5.0, 6.0]
    best = sorted(max(draw) for draw in product(population, repeat=k))
    tests = {}
    for found in product(sorted(set(best)), repeat=3):
        below, upto = inference.beaten(population, found, k)
        tests[found] = inference.test_of_uniform_mean(below, upto)
    weights = {found: math.prod(best.count(x) / len(best) for x in found) for found in tests}
    for side in ("greater", "less", "p"):
        for level in {getattr(test, side) for test in tests.values()}:
            reached = math.fsum(w for found, w in weights.items() if getattr(tests[found], side) <= level)
            assert reached <= level + 1e-12, (side, level)


def test_the_level_against_random_architectures_of_a_table() -> None:
    accuracies = nas_bench_201().accuracies
    rng = np.random.default_rng(0)
    found = [
        inference.test_of_uniform_mean(*inference.beaten(accuracies, rng.choice(accuracies, (5, 10)).max(axis=0), 5)).p
        for _ in range(300)
    ]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 300))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_expected_best_of_a_sample_is_the_mean_over_its_subsets(k: int) -> None:
    sample = [4.0, 1.0, 2.0, 2.0]
    assert inference.expected_best_of_sample(sample, k) == pytest.approx(
        np.mean([max(subset) for subset in combinations(sample, k)])
    )


def test_the_best_of_more_than_a_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="the best of 3 cannot be estimated from 2"):
        inference.expected_best_of_sample([1.0, 2.0], 3)


@given(st.floats(0.05, 200))
@FEW
def test_what_a_value_is_worth_is_the_inverse_of_the_expected_best(k: float) -> None:
    population = np.arange(1000.0) ** 0.5
    assert inference.worth(population, inference.expected_best(population, k)) == pytest.approx(k, rel=1e-6)


def test_what_values_beyond_the_population_are_worth() -> None:
    assert inference.worth([1.0, 2.0, 3.0], 3.0, most=500) == 500
    assert inference.worth([1.0, 2.0, 3.0], 0.5) == 0
    assert inference.worth([1.0, 2.0, 3.0], 2.0) == pytest.approx(1)


# Against a sample of random architectures.


@given(st.lists(SMALL, min_size=1, max_size=5), st.lists(SMALL, min_size=1, max_size=5))
@FEW
def test_the_rank_sum_test_counts_all_divisions(first: list[float], second: list[float]) -> None:
    ranks = stats.rankdata(first + second)
    sums = [sum(ranks[list(places)]) for places in combinations(range(len(ranks)), len(first))]
    own = sum(ranks[: len(first)])
    nearly(
        inference.rank_sum_test(first, second),
        greater=float(np.mean([x >= own for x in sums])),
        less=float(np.mean([x <= own for x in sums])),
    )


def test_the_rank_sum_test_of_values_without_ties_is_scipys() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(10) + 0.2, rng.random(20)
    for side, found in zip(("greater", "less"), inference.rank_sum_test(first, second), strict=True):
        assert found == pytest.approx(stats.mannwhitneyu(first, second, alternative=side, method="exact").pvalue)


def test_the_rank_sum_test_of_large_samples_goes_over_into_the_normal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 20, 20) + 3, rng.integers(0, 20, 60)
    exact = inference.rank_sum_test(first, second)
    monkeypatch.setattr(inference, "_LARGEST_EXACT", 0)
    assert inference.rank_sum_test(first, second) == pytest.approx(exact, abs=2e-3)
    assert inference.rank_sum_test(second, first) == pytest.approx((exact.less, exact.greater), abs=2e-3)


@given(st.lists(SMALL, min_size=1, max_size=8), st.lists(SMALL, min_size=1, max_size=8))
@FEW
def test_superiority_is_the_share_of_pairs(first: list[float], second: list[float]) -> None:
    chance, (low, high) = inference.superiority(first, second)
    assert chance == pytest.approx(np.mean([(x > y) + (x == y) / 2 for x in first for y in second]))
    assert 0 <= low <= chance <= high <= 1
    assert low < high
    assert inference.superiority(second, first)[1] == pytest.approx((1 - high, 1 - low))


def test_the_interval_of_superiority_solves_newcombes_equation() -> None:
    chance, ends = inference.superiority([5.0, 6, 7, 1, 9, 4], [2.0, 3, 8, 1])
    for theta in ends:
        variance = theta * (1 - theta) * (1 + 4 * ((1 - theta) / (2 - theta) + theta / (1 + theta))) / 24
        assert abs(theta - chance) == pytest.approx(stats.norm.ppf(0.975) * math.sqrt(variance))


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_coverage_of_the_interval_of_superiority(shift: float) -> None:
    rng = np.random.default_rng(0)
    true = float(stats.norm.cdf(shift / math.sqrt(2)))
    intervals = [inference.superiority(rng.normal(shift, size=10), rng.normal(size=20))[1] for _ in range(400)]
    found = np.mean([low <= true <= high for low, high in intervals])
    assert found >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / 400)


def test_the_difference_of_two_means_is_welchs() -> None:
    first, second = [1.0, 2.0, 4.0], [0.0, 0.5, 0.25, 0.75]
    mean, ends = inference.mean_difference(first, second)
    assert mean == pytest.approx(7 / 3 - 0.375)
    assert ends == pytest.approx(stats.ttest_ind(first, second, equal_var=False).confidence_interval())
    assert inference.mean_difference([2.0, 2.0], [1.0, 1.0]) == (1.0, (1.0, 1.0))
    assert all(map(math.isnan, inference.mean_difference([2.0], [1.0, 3.0])[1]))


# Between two methods.


@given(st.lists(SMALL, min_size=1, max_size=8))
@FEW
def test_the_signed_rank_test_counts_all_signs(differences: list[float]) -> None:
    values = np.array(differences)
    ranks = stats.rankdata(np.abs(values))
    free = ranks[values != 0]
    sums = [
        sum(rank for rank, sign in zip(free, signs, strict=True) if sign) for signs in product((0, 1), repeat=len(free))
    ]
    own = sum(ranks[values > 0])
    nearly(
        inference.signed_rank_test(values),
        greater=float(np.mean([x >= own for x in sums])),
        less=float(np.mean([x <= own for x in sums])),
    )


@given(st.lists(SMALL, min_size=1, max_size=6))
@FEW
def test_the_level_of_the_signed_rank_test_is_at_most_what_it_says(differences: list[float]) -> None:
    """By all signs of differences of these sizes, which are equally likely where two methods are alike."""
    signs = list(product((-1, 1), repeat=len(differences)))
    found = [inference.signed_rank_test(np.multiply(differences, sign)).p for sign in signs]
    for level in set(found):
        assert np.mean(np.array(found) <= level) <= level + 1e-12


def test_the_signed_rank_test_of_values_without_ties_is_scipys() -> None:
    differences = np.random.default_rng(0).normal(0.4, size=40)
    for side, found in zip(("greater", "less"), inference.signed_rank_test(differences), strict=True):
        assert found == pytest.approx(stats.wilcoxon(differences, alternative=side, method="exact")[1])


def test_differences_of_zero_are_ranked_and_have_no_sign() -> None:
    assert inference.signed_rank_test([0.0, 0.0, 0.0]) == (1, 1)
    nearly(inference.signed_rank_test([0.0, 0.0, 2.0, 3.0]), greater=1 / 4, less=1)
    # Ranks 3 and 4 instead of 1 and 2: the same order, so the same chances.
    nearly(inference.signed_rank_test([0.0, 0.0, -2.0, 3.0]), greater=1 / 2, less=3 / 4)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
@FEW
def test_holms_correction_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    places = range(len(p_values))
    sets = [s for size in range(1, len(p_values) + 1) for s in combinations(places, size)]
    expected = [max(min(1.0, len(s) * min(p_values[place] for place in s)) for s in sets if one in s) for one in places]
    assert inference.holm(p_values) == pytest.approx(expected)


def test_holms_correction_by_hand() -> None:
    assert inference.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert inference.holm([]) == []


def test_methods_that_are_alike_are_found_different_in_at_most_one_study_of_twenty() -> None:
    rng = np.random.default_rng(0)
    studies = 500
    wrong = 0
    for _ in range(studies):
        scores = best_of_five(rng, (3, 10))
        tests = [inference.signed_rank_test(scores[i] - scores[j]).p for i, j in combinations(range(3), 2)]
        wrong += min(inference.holm(tests)) <= 0.05
    assert wrong / studies <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)


# What n can show at all.


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_the_smallest_p_is_that_of_the_clearest_result(n: int) -> None:
    assert inference.smallest_p_of_pairs(n) == pytest.approx(inference.signed_rank_test(np.arange(1.0, n + 1)).p)
    assert inference.smallest_p_of_samples(n, 4) == pytest.approx(
        inference.rank_sum_test(np.arange(n) + 10.0, np.arange(4.0)).p
    )


def test_pairs_needed() -> None:
    assert inference.smallest_p_of_pairs(5) == 0.0625
    assert inference.pairs_needed() == 6
    assert inference.pairs_needed(3) == 7
    assert inference.smallest_p_of_pairs(0) == 1


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    assert inference.detectable_difference(1, 10) == pytest.approx(0.996, abs=1e-3)  # G*Power: dz = 0.9960
    assert inference.detectable_difference(2, 10) == pytest.approx(2 * 0.996, abs=2e-3)
    assert inference.detectable_difference(1, 5) == math.inf
    rng = np.random.default_rng(0)
    for n, comparisons in ((10, 1), (20, 3)):
        shift = inference.detectable_difference(1, n, comparisons=comparisons)
        found = [comparisons * inference.signed_rank_test(rng.normal(shift, size=n)).p <= 0.05 for _ in range(400)]
        assert np.mean(found) == pytest.approx(0.8, abs=0.1)  # the signed rank test has a little less


def test_the_chance_that_shows_is_the_one_whose_p_is_at_the_level() -> None:
    for n, comparisons in ((2, 1), (10, 1), (10, 3)):
        critical = inference.critical_chance(n, comparisons=comparisons)
        assert comparisons * inference.test_of_uniform_mean([critical] * n, [critical] * n).p == pytest.approx(0.05)
    assert inference.critical_chance(1) == math.inf
    assert inference.critical_chance(3, 3) == math.inf  # the smallest p is 0.1


def test_the_chance_that_shows_against_a_sample_is_about_that_of_the_exact_test() -> None:
    n, m = 10, 20
    critical = inference.critical_chance(n, m)
    first, second = np.arange(n) * 2.0, np.arange(m) + 0.5
    chances = {}
    for shift in range(0, 20):
        moved = first + shift
        chances[inference.superiority(moved, second)[0]] = inference.rank_sum_test(moved, second).p
    assert all(p > 0.05 for chance, p in chances.items() if 0.5 <= chance < critical - 0.02)
    assert all(p <= 0.05 for chance, p in chances.items() if chance > critical + 0.02)


def test_how_many_pairs_find_a_difference() -> None:
    assert inference.pairs_for(1.0, 1.0) == 10
    assert inference.pairs_for(-1.0, 1.0) == 10
    for n in (9, 10):
        assert (inference.detectable_difference(1.0, n) <= 1.0) == (n == 10)
    assert inference.pairs_for(100.0, 1.0, comparisons=3) == inference.pairs_needed(3)
    assert inference.pairs_for(0.0, 1.0) is None


# Choices.


def test_agreement_between_seeds() -> None:
    same = {"a": "conv", "b": ("x", "y"), "c": None}
    assert inference.agreement([same, dict(same)]) == 1
    # Pairs: 1 of 2 choices, 0 of 2, 1 of 2.
    found = [{"a": "x", "b": "x"}, {"a": "x", "b": "y"}, {"a": "z", "b": "y"}]
    assert inference.agreement(found) == pytest.approx((0.5 + 0 + 0.5) / 3)


def test_the_agreement_of_random_answers_is_the_mean_over_all_pairs_of_architectures() -> None:
    everything = [{"a": a, "b": b} for a in range(2) for b in range(3)]
    pairs = [inference.agreement([one, other]) for one in everything for other in everything]
    assert inference.expected_agreement([2, 3]) == pytest.approx(np.mean(pairs))
