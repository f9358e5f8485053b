"""What a few searches allow one to say: intervals, tests and effect sizes, of arrays alone.

Throughout, larger values are better, a p-value is for a difference in either direction unless it says otherwise, and an
interval is one of 95 %. SciPy has the distributions; what it lacks is here: exact tests with ties and zeros, which are
common where a search has few architectures to find.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from src.common.intervals import interval_of_mean

Floats = NDArray[np.float64]

LEVEL = 0.05  # of a test; intervals have 1 - LEVEL
POWER = 0.8  # chance to find a difference, where one is asked what would be needed
_RESAMPLES = 4000
_BATCH = 500  # resamples at a time, for the memory
_FEWEST_RESAMPLED = 5
_LARGEST_EXACT = 3e7  # additions that an exact rank sum test may take: some 0.1 s


class Interval(NamedTuple):
    """From where to where a number is, with 95 % confidence."""

    low: float
    high: float


class Test(NamedTuple):
    """The p-values of a test.

    Attributes:
        greater: the chance of such a result or one that is more in favour, if there were no difference.
        less: the chance of such a result or one that is more against.
    """

    __test__ = False  # for pytest

    greater: float
    less: float

    @property
    def p(self) -> float:
        """For a difference in either direction: twice the smaller one."""
        return min(1.0, 2 * min(self.greater, self.less))


# Means.


def mean_intervals(samples: ArrayLike, *, seed: int = 0) -> tuple[Floats, Floats]:
    """Return the 95 % bootstrap intervals of the means of several samples of one size.

    It is SciPy's percentile bootstrap, expanded for small n (Hesterberg, The American Statistician 69, 2015, 371-386): its
    quantiles are those that make the interval of a normal sample as wide as Student's t has it, and it stays within the
    smallest and the largest value. tests/studies/test_inference.py has what it covers. Of samples of n = 10, from what
    the best of 5 random architectures of NAS-Bench-201 reach, it covers the mean 94 times in 100, where the bias-corrected
    and accelerated bootstrap does 88 times.

    No interval knows of what n searches have not shown. Where one in twenty collapses, ten show no collapse 6 times in 10.
    Single random architectures of NAS-Bench-201, of which 2 in 100 are hardly better than chance, are such a case: the
    interval of 10 of them covers the mean of all 76 times in 100.

    Args:
        samples: (samples, n), n >= 1. Below n = 5, where too few resamples differ, the intervals are Student's.
        seed: of the resampling.

    Returns:
        The lower and the upper ends, (samples,). They are nan for n = 1, and both the value where all n are equal.
    """
    samples = np.asarray(samples, dtype=np.float64)
    n = samples.shape[1]
    low, high = (np.full(len(samples), math.nan) for _ in range(2))
    if n < 2:
        return low, high
    least, largest = samples.min(axis=1), samples.max(axis=1)
    varies = least < largest
    low[~varies] = high[~varies] = least[~varies]
    if not varies.any():
        return low, high
    if n < _FEWEST_RESAMPLED:
        ends = np.array([interval_of_mean(row.tolist()) for row in samples[varies]])
        low[varies], high[varies] = ends[:, 0], ends[:, 1]
        return low, high
    outside = 2 * float(stats.norm.sf(math.sqrt(n / (n - 1)) * stats.t.isf(LEVEL / 2, n - 1)))
    found = stats.bootstrap(
        (samples[varies],),
        np.mean,
        axis=1,
        method="percentile",
        confidence_level=1 - outside,
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    low[varies], high[varies] = found.low, found.high
    return low, high


def mean_interval(values: ArrayLike, *, seed: int = 0) -> Interval:
    """Return the 95 % bootstrap interval of the mean of n >= 1 values, (n,), as `mean_intervals` has it."""
    low, high = mean_intervals(np.asarray(values, dtype=np.float64)[None], seed=seed)
    return Interval(float(low[0]), float(high[0]))


# Against random architectures, all of which are known.


def beaten(population: ArrayLike, values: ArrayLike, k: float = 1) -> tuple[Floats, Floats]:
    """Return the chance that the best of k random architectures is worse than a value, and that it is not better.

    The first is P(random < x)^k and the second P(random <= x)^k: they differ where values of the population are equal.

    Args:
        population: of all architectures, (architectures,), each equally likely.
        values: (n,).
        k: how many are drawn, independently; it may be a fraction.
    """
    ordered = np.sort(np.asarray(population, dtype=np.float64))
    below = np.searchsorted(ordered, values, side="left") / len(ordered)
    upto = np.searchsorted(ordered, values, side="right") / len(ordered)
    return np.asarray(below**k), np.asarray(upto**k)


def test_of_uniform_mean(below: ArrayLike, upto: ArrayLike) -> Test:
    """Test whether n values are as good as random ones, by the mean of the chances that `beaten` returns.

    If they were, each chance were uniform on [0, 1], and their sum had the Irwin-Hall distribution, which is exact for each
    n. A step of the population counts against the claim: `greater` takes `below` and `less` takes `upto`.

    Args:
        below: (n,), in [0, 1].
        upto: (n,), in [0, 1], none of them less than those of `below`.
    """
    below, upto = np.asarray(below, dtype=np.float64), np.asarray(upto, dtype=np.float64)
    n = len(below)
    return Test(_irwin_hall(n - math.fsum(below), n), _irwin_hall(math.fsum(upto), n))


test_of_uniform_mean.__test__ = False  # pyright: ignore[reportFunctionMemberAccess] (for pytest)


def _irwin_hall(total: float, n: int) -> float:
    """Return the chance that the sum of n uniform numbers is at most `total`."""
    return min(1.0, max(0.0, float(stats.irwinhall.cdf(min(max(total, 0.0), n), n))))


def expected_best(population: ArrayLike, k: float) -> float:
    """Return the expectation of the best of k independent draws from a population, (architectures,); k > 0."""
    ordered = np.sort(np.asarray(population, dtype=np.float64))
    reached = (np.arange(len(ordered) + 1) / len(ordered)) ** k
    return float(ordered @ np.diff(reached))


def expected_best_of_sample(sample: ArrayLike, k: int) -> float:
    """Return an unbiased estimate of the expected best of k draws from where a sample, (m,), is from; 1 <= k <= m.

    It is the mean over all subsets of size k.
    """
    ordered = np.sort(np.asarray(sample, dtype=np.float64))
    m = len(ordered)
    if not 1 <= k <= m:
        raise ValueError(f"the best of {k} cannot be estimated from {m}")
    return math.fsum(x * math.comb(i, k - 1) for i, x in enumerate(ordered)) / math.comb(m, k)


def worth(population: ArrayLike, value: float, most: float = 1e6) -> float:
    """Return how many random architectures have `value` as the expectation of their best, a fraction between.

    It is below 1 for a value that is worse than the mean of the population, and 0 for one that is worse than all, and
    `most` for one that even so many do not reach.
    """
    ordered = np.sort(np.asarray(population, dtype=np.float64))
    reached, steps = np.arange(1, len(ordered)) / len(ordered), np.diff(ordered)

    def lacking(log_k: float) -> float:
        """Return by how much the expected best of exp(log_k) is above the value."""
        return float(ordered[-1] - reached ** math.exp(log_k) @ steps) - value

    least, largest = math.log(1e-6), math.log(most)
    if value <= ordered[0] or lacking(least) >= 0:
        return 0.0
    if lacking(largest) <= 0:
        return most
    return math.exp(float(optimize.brentq(lacking, least, largest, xtol=1e-9)))  # pyright: ignore[reportArgumentType]


# Against a sample of random architectures.


def rank_sum_test(first: ArrayLike, second: ArrayLike) -> Test:
    """Return Mann and Whitney's test of two independent samples, (n,) and (m,), with ties as they are.

    It is the permutation test of the sum of midranks. All divisions of the n + m values into two groups are counted, one
    rank at a time, so that it is exact with ties as well. Of large samples, such as 25 against 200, it is
    `scipy.stats.mannwhitneyu` with the normal distribution.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    n, m = len(first), len(second)
    if n > m:
        other = rank_sum_test(second, first)
        return Test(other.less, other.greater)
    ranks = np.rint(2 * stats.rankdata(np.concatenate([first, second]))).astype(np.int64)
    size = int(np.sort(ranks)[-n:].sum()) + 1
    if float(n) * size * (n + m) > _LARGEST_EXACT:
        one_sided = [
            float(stats.mannwhitneyu(first, second, alternative=side, method="asymptotic").pvalue)
            for side in ("greater", "less")
        ]
        return Test(*one_sided)
    ways = np.zeros((n + 1, size))  # of so many values with such a sum, among those seen
    ways[0, 0] = 1
    for rank in ranks:
        ways[1:, rank:] += ways[:-1, : size - rank].copy()
    return _tails(ways[n], int(ranks[:n].sum()))


def mean_difference(first: ArrayLike, second: ArrayLike) -> tuple[float, Interval]:
    """Return the mean of the first sample less that of the second, and its 95 % interval by Welch's t.

    The interval is nan where a sample has fewer than two values.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    difference = float(first.mean() - second.mean())
    if min(len(first), len(second)) < 2:
        return difference, Interval(math.nan, math.nan)
    errors = [float(sample.var(ddof=1)) / len(sample) for sample in (first, second)]
    if sum(errors) == 0:
        return difference, Interval(difference, difference)
    freedom = sum(errors) ** 2 / sum(e**2 / (len(s) - 1) for e, s in zip(errors, (first, second), strict=True))
    half = float(stats.t.isf(LEVEL / 2, freedom)) * math.sqrt(sum(errors))
    return difference, Interval(difference - half, difference + half)


def superiority(first: ArrayLike, second: ArrayLike) -> tuple[float, Interval]:
    """Return the chance that a value of the first sample is better than one of the second, and its 95 % interval.

    Equal values count half. Cliff's delta is twice the chance less 1. The interval is Newcombe's method 5 (Statistics in
    Medicine 25, 2006, 559-573), which is not empty where all values of one sample are better than all of the other.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    n, m = len(first), len(second)
    difference = first[:, None] - second[None, :]
    chance = float(np.mean((np.sign(difference) + 1) / 2))
    more = (n + m) / 2 - 1
    z = float(stats.norm.isf(LEVEL / 2))

    def deviation(theta: float) -> float:
        spread = 1 + more * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return math.sqrt(theta * (1 - theta) * spread / (n * m))

    def end(inside: float, outside: float) -> float:
        """Bisect between a chance that the sample agrees with and one that it does not."""
        for _ in range(60):
            middle = (inside + outside) / 2
            agrees = abs(middle - chance) <= z * deviation(middle)
            inside, outside = (middle, outside) if agrees else (inside, middle)
        return inside

    return chance, Interval(end(chance, 0.0), end(chance, 1.0))


# Between two methods, by pairs of one seed.


def signed_rank_test(differences: ArrayLike) -> Test:
    """Return Wilcoxon's signed rank test of differences (n,), with ties and zeros as they are.

    Differences of 0 take part in the ranking, and then have no sign (Pratt's way). The chances are exact for each n: all
    signs of the others are counted, one rank at a time. Without a difference other than 0 all p-values are 1.
    """
    differences = np.asarray(differences, dtype=np.float64)
    ranks = np.rint(2 * stats.rankdata(np.abs(differences))).astype(np.int64)[differences != 0]
    positive = differences[differences != 0] > 0
    chances = np.zeros(int(ranks.sum()) + 1)
    chances[0] = 1
    for rank in ranks:
        chances /= 2
        chances[rank:] += chances[:-rank].copy()
    return _tails(chances, int(ranks[positive].sum()))


def _tails(weights: Floats, place: int) -> Test:
    """Return the shares of weights from a place on, and up to it; each is a sum of what is not negative."""
    total = math.fsum(weights)
    return Test(min(1.0, math.fsum(weights[place:]) / total), min(1.0, math.fsum(weights[: place + 1]) / total))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's method, in their order.

    The chance that any of them is at most a level by chance alone is at most that level.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


# What n can show at all.


def smallest_p_of_pairs(n: int) -> float:
    """Return the smallest p-value that the signed rank test can give to n differences other than 0."""
    return min(1.0, 2.0 ** (1 - n))


def smallest_p_of_samples(n: int, m: int) -> float:
    """Return the smallest p-value that the rank sum test can give to n values against m."""
    return min(1.0, 2 / math.comb(n + m, n))


def smallest_p_of_uniforms(n: int) -> float:
    """Return the smallest p-value that the mean of n uniform chances can have, to four digits: of a mean above 0.9999."""
    return min(1.0, 2 * _irwin_hall(1e-4 * n, n))


def critical_chance(n: int, m: int | None = None, *, comparisons: int = 1) -> float:
    """Return the chance of being better that n values need, on the mean, for a test against random architectures to show it.

    It is infinite where no chance is enough. One value is never: nothing is known of how searches vary.

    Args:
        n: how many values.
        m: of how many random architectures; None for all, where it is exact. Else it is that of the normal distribution.
        comparisons: how many tests are corrected together.
    """
    side = LEVEL / comparisons / 2
    if n < 2:
        return math.inf
    if m is None:
        return 1 - float(stats.irwinhall.ppf(side, n)) / n
    if comparisons * smallest_p_of_samples(n, m) > LEVEL:
        return math.inf
    return min(1.0, 0.5 + float(stats.norm.isf(side)) * math.sqrt((n + m + 1) / (12 * n * m)))


def pairs_needed(comparisons: int = 1, level: float = LEVEL) -> int:
    """Return from how many pairs on the signed rank test can find a difference, after Holm's correction.

    Args:
        comparisons: how many tests are corrected together.
        level: of them all.
    """
    n = 1
    while comparisons * smallest_p_of_pairs(n) > level:
        n += 1
    return n


def detectable_difference(deviation: float, n: int, *, comparisons: int = 1) -> float:
    """Return the mean difference that n pairs would find in 4 of 5 studies.

    It is that of a two-sided t test at the level of 5 % divided by `comparisons`, and a guide for the signed rank test, which
    needs about as many pairs. It is infinite for n < 2 and where n pairs are fewer than `pairs_needed`.

    Args:
        deviation: standard deviation of the differences.
        n: how many pairs.
        comparisons: how many tests are corrected together.
    """
    if n < pairs_needed(comparisons):
        return math.inf
    return deviation * _detectable(n, LEVEL / comparisons) / math.sqrt(n)


def pairs_for(difference: float, deviation: float, *, comparisons: int = 1, most: int = 10_000) -> int | None:
    """Return how many pairs would find a mean difference in 4 of 5 studies; None for more than `most`.

    Args:
        difference: the mean that is to be found.
        deviation: standard deviation of the differences.
        comparisons: how many tests are corrected together.
        most: the number from which on the answer is None.
    """
    low, high = pairs_needed(comparisons), most
    if detectable_difference(deviation, high, comparisons=comparisons) > abs(difference):
        return None
    while low < high:
        middle = (low + high) // 2
        if detectable_difference(deviation, middle, comparisons=comparisons) > abs(difference):
            low = middle + 1
        else:
            high = middle
    return low


def _detectable(n: int, level: float) -> float:
    """Return the noncentrality at which a two-sided t test of n values finds a difference with a chance of `POWER`."""
    critical = float(stats.t.isf(level / 2, n - 1))
    return float(special.nctdtrinc(n - 1, 1 - POWER, critical))


# Choices.


def agreement(answers: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of choices that two searches answer equally, the mean over all pairs of searches.

    Args:
        answers: key -> answer of each search, two or more, with the same keys.
    """
    keys = list(answers[0])
    shares = [sum(one[key] == other[key] for key in keys) / len(keys) for one, other in combinations(answers, 2)]
    return math.fsum(shares) / len(shares)


def expected_agreement(options: Sequence[int]) -> float:
    """Return the agreement of searches that answer at random: the mean of 1 / options over the choices."""
    return math.fsum(1 / count for count in options) / len(options)
