"""What a study comes to in numbers: per arm, against random architectures, and between arms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from src.architectures.architecture import ZERO
from src.benchmarks.table import Table
from src.methods.decision import SKIPS
from src.studies import inference
from src.studies.inference import LEVEL, Floats
from src.studies.outcomes import RANDOM, TABLE, Metric, Outcome
from src.studies.stopping import EIGENVALUES

Rule = Callable[[Sequence[Mapping[str, float]]], int | None]
"""From the rows of a search's metrics.csv to the epoch whose architecture is taken, or None where it cannot tell."""

YARDSTICK = (1, 2, 5, 10, 20, 100)  # how many random architectures the best is of
CURVES = {
    "regret": ("table_regret",),
    "percentile": ("table_percentile",),
    "entropy": ("alpha_entropy",),
    "skips": ("skip_count",),
    "eigenvalue": EIGENVALUES,
    "exact_cosine": ("exact_cosine",),
    "finite_difference_cosine": ("finite_difference_cosine",),
    "ranking_tau": ("ranking_tau",),
    "ranking_tau_top": ("ranking_tau_top",),
}
"""Name -> columns of metrics.csv that may have it, the first that does is taken; `validation` is that of the metric."""

_RANKINGS = ("ranking_tau", "ranking_tau_top")
_NOTHING = frozenset({ZERO, "zeroize"})


def analyse(
    outcomes: Sequence[Outcome],
    *,
    table: Table | None = None,
    metric: Metric | None = None,
    budget: int = 1,
    training_seconds: float | None = None,
    rules: Mapping[str, Rule] | None = None,
) -> dict[str, Any]:
    """Return the numbers of a study, as plain JSON values: what could not be computed is None, never nan.

    Scores are compared as the metric has them: a difference is first less second, whichever direction is better; regrets,
    percentiles and chances are of how good something is. An interval is [low, high], of 95 %. All numbers that come from a
    sample of seeds are in the form of a *summary*: `{"n", "mean", "sd", "interval", "values"}`, with one value for each seed
    in the order of "seeds"; see `inference.mean_intervals` for the interval.

    With a table, random architectures are all of the table, each equally likely, and what is said about them is exact.
    Without one they are the arm `random`, a sample.

    Layout::

        {"metric": {"name": "accuracy", "higher_is_better": true},
         "level": 0.05,                  # of the tests, after Holm's correction
         "budget": 1,                    # random architectures whose best an arm is compared with
         "arms": [NAME, ...],            # in the order of the outcomes, without `random`
         "evaluations": [NAME, ...],     # "table", or the names of retrain settings
         "results": {EVALUATION: {
           "random": null, where nothing is known of random architectures, or {
             "kind": "table" | "sample", "count": 15625,
             "mean", "sd", "median", "best", "worst",
             "quantiles": {"0.1": ..., "0.25", "0.5", "0.75", "0.9"},     # of how good they are: 0.9 is good
             "interval": [low, high] | null,                              # of the mean, of a sample
             "expected_best": {"1": ..., "2", "5", "10", "20", "100"},    # of so many; a sample has fewer
             "values": [...] | null,                                      # of a sample
             "distribution": [...],                                       # 101 quantiles, from the worst to the best
             "training_seconds": float | null},
           "arms": {ARM: {
             "n": 10, "missing": 0,      # seeds with a score, and without
             "seeds": [0, 1, ...], "scores": SUMMARY, "median", "best", "worst",
             "regret": SUMMARY | null, "percentile": SUMMARY | null,      # with a table
             "worth": {"value", "interval"} | null,   # random architectures whose best is expected to be as good as the mean
             "against_random": COMPARISON | null,     # at the budget of the study
             "at_equal_time": COMPARISON | null}},    # with as many as could be trained in the time of the search
           "pairs": [{
             "first", "second": ARM, "seeds": [...],
             "differences": SUMMARY,     # of the scores, first less second, by seed
             "different": 8,             # how many are not 0
             "p", "p_holm",              # of Wilcoxon's signed rank test
             "of",                       # by what the correction multiplies the smallest p that shows nothing yet
             "smallest_p",               # that so many pairs can give, before the correction
             "pairs_needed",             # from which number on a difference can be found, after the correction
             "detectable",               # the mean difference that so many pairs find in 4 of 5 studies, or null
             "needed",                   # how many would find one as large as the mean, or null for more than 10,000
             "better": "first" | "second" | null}, ...],
           "order": [ARM, ...]}},        # by their means, the best first
         "settings": [{"evaluations": [A, B], "tau": 0.8, "same_order": false, "swapped": [[ARM, ARM], ...]}, ...],
         "searches": {ARM: {             # what does not depend on an evaluation; `random` is among them if it was run
           "seeds": [...], "seconds": SUMMARY,
           "agreement": {"value", "expected", "distinct": 7, "most_common": 3} | null,   # between seeds
           "answers": {CHOICE: {ANSWER: 3, ...}, ...},                   # how many seeds gave each
           "skips": SUMMARY, "parameter_free": SUMMARY,                  # shares of the answers of the architecture
           "skips_expected": 0.2 | null, "parameter_free_expected": 0.6 | null,          # of random answers
           "ranking": {"ranking_tau": SUMMARY, "ranking_tau_top": SUMMARY},               # those that were measured
           "curves": {NAME: {"epochs", "n", "mean", "low", "high": [...]}},              # names: CURVES, "validation"
           "epochs": {"last": SUMMARY, "best": SUMMARY, "best_epochs": [...], "lost": SUMMARY} | null,  # regrets
           "rules": {RULE: {"seeds", "epochs": [...], "regret": SUMMARY, GAIN}}}},  # those that pick an epoch
         "rules": {RULE: {"arms": [ARM, ...], "seeds": [...], GAIN}}}    # on the mean over the arms

    A COMPARISON with the best of `budget` random architectures is::

        {"budget": 1, "n": 10,
         "chance": 0.93, "interval",     # of an architecture of the arm to be better; a tie counts half
         "cliffs_delta": 0.86,
         "difference", "difference_interval",     # of the mean score, less what is expected of the best of them
         "p", "p_holm", "p_better", "p_worse",    # two-sided, corrected over the arms, and of each direction
         "of",                           # by what the correction multiplies the smallest p that shows nothing yet
         "smallest_p",                   # that so many seeds can give, before the correction
         "critical": 0.68,               # from which chance on so many seeds are shown to be better; null: they cannot be
         "better": true | false | null}  # null: neither is shown

    With a table the test is of the mean chance over the seeds, by its exact distribution; with a sample, Mann and Whitney's,
    and for a budget above 1 the sample is divided into groups of so many, in the order of the seeds. Both compare with the
    best by the score that is reported, which nobody could pick without looking: it is a little harder to beat than the
    best by a validation.

    The p-values are of the hypothesis that the arm's architectures are drawn at random, too. Searches that are very good with
    some seeds and very bad with others contradict it without being better, or worse, more often than not. So "better" asks
    for more than a small p_holm: the interval of the chance must not contain 1/2. With one seed there is none.

    "epochs" and "rules" look up every epoch's architecture, so they need a table. "best" is what an oracle would have stopped
    at; "lost" is the regret of the last less that of the best. A GAIN is `"gain": SUMMARY, "different", "p", "p_holm", "of",
    "smallest_p"`: the regret of the last epoch's architecture less that of the one that the rule picks, positive where the rule
    helps, with the signed rank test as of pairs. It is corrected over the rules that ever pick another epoch, for each arm by
    itself; over the arms, it is the mean of the arms for each seed that is tested.

    Args:
        outcomes: of all searches. Scores that are not finite count as missing.
        table: of the space.
        metric: what scores are; accuracy by default.
        budget: how many random architectures an arm's is compared with the best of: as many as were evaluated to the end
            to find it, 1 for a search that returns one.
        training_seconds: of one training of an architecture on the machine that searched, where a table is used; else it
            is taken from the outcomes.
        rules: name -> a rule that picks an epoch.

    Raises:
        ValueError: two outcomes have the same arm and seed.
    """
    metric = metric or Metric()
    counts = Counter((outcome.arm, outcome.seed) for outcome in outcomes)
    twice = [f"{arm}, seed {seed}" for (arm, seed), count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"the same arm and seed twice: {'; '.join(twice)}")
    everything = list(dict.fromkeys(outcome.arm for outcome in outcomes))
    by_arm = {arm: [outcome for outcome in outcomes if outcome.arm == arm] for arm in everything}
    arms = [arm for arm in everything if arm != RANDOM]
    evaluations = list(dict.fromkeys(name for outcome in outcomes for name in outcome.scores))
    results = {
        name: _Evaluation(name, by_arm, table, metric, budget, training_seconds).results(arms) for name in evaluations
    }
    searches = {arm: _search(found, table, metric, rules or {}) for arm, found in by_arm.items()}
    for search in searches.values():
        _correct_rules(search["rules"])
    return _plain(
        {
            "metric": {"name": metric.name, "higher_is_better": metric.higher_is_better},
            "level": LEVEL,
            "budget": budget,
            "arms": arms,
            "evaluations": evaluations,
            "results": results,
            "settings": [_settings(one, other, results, arms, metric) for one, other in combinations(evaluations, 2)],
            "rules": _over_arms(searches),
            "searches": searches,
        }
    )


# One evaluation: the table, or one retrain setting.


class _Evaluation:
    """Compares arms by one of their scores. `sign` times a score is the better the larger it is."""

    def __init__(
        self,
        name: str,
        by_arm: Mapping[str, Sequence[Outcome]],
        table: Table | None,
        metric: Metric,
        budget: int,
        training_seconds: float | None,
    ) -> None:
        self.sign = 1.0 if metric.higher_is_better else -1.0
        self.budget = budget
        self.by_arm = by_arm
        self.scores: dict[str, dict[int, float]] = {
            arm: {o.seed: o.scores[name] for o in found if name in o.scores and math.isfinite(o.scores[name])}
            for arm, found in by_arm.items()
        }
        self.population = self.sign * table.accuracies if table is not None and name == TABLE else None
        drawn = list(self.scores.get(RANDOM, {}).values())
        self.sample = self.sign * np.array(drawn) if self.population is None and drawn else None
        measured = [
            o.evaluation_seconds[name] for found in by_arm.values() for o in found if name in o.evaluation_seconds
        ]
        self.training_seconds = float(np.mean(measured)) if measured else training_seconds

    def results(self, arms: Sequence[str]) -> dict[str, Any]:
        """Return what `analyse` has of an evaluation."""
        found = {arm: self._arm(arm) for arm in arms}
        for kind in ("against_random", "at_equal_time"):
            comparisons = [arm[kind] for arm in found.values() if arm[kind] is not None]
            left = _correct(comparisons)
            for comparison in comparisons:
                comparison["of"] = left
                comparison["critical"] = inference.critical_chance(
                    comparison["n"], comparison.pop("drawn"), comparisons=left
                )
                comparison["better"] = _better(comparison)
        means = {arm: self.sign * numbers["scores"]["mean"] for arm, numbers in found.items() if numbers["n"]}
        return {
            "random": self._random(),
            "arms": found,
            "pairs": self._pairs([arm for arm in arms if self.scores[arm]]),
            "order": sorted(means, key=lambda arm: -means[arm]),
        }

    def _random(self) -> dict[str, Any] | None:
        """Return what random architectures reach."""
        known = self.population if self.population is not None else self.sample
        if known is None:
            return None
        exact = self.population is not None
        best = {
            str(k): self.sign
            * (inference.expected_best(known, k) if exact else inference.expected_best_of_sample(known, k))
            for k in YARDSTICK
            if exact or k <= len(known)
        }
        return {
            "kind": "table" if exact else "sample",
            "count": len(known),
            "mean": self.sign * known.mean(),
            "sd": known.std() if exact else known.std(ddof=1) if len(known) > 1 else None,
            "median": self.sign * np.median(known),
            "best": self.sign * known.max(),
            "worst": self.sign * known.min(),
            "quantiles": {str(q): self.sign * np.quantile(known, q) for q in (0.1, 0.25, 0.5, 0.75, 0.9)},
            "interval": None if exact else inference.mean_interval(self.sign * known),
            "expected_best": best,
            "values": None if exact else self.sign * known,
            "distribution": self.sign * np.quantile(known, np.linspace(0, 1, 101)),
            "training_seconds": self.training_seconds,
        }

    def _arm(self, arm: str) -> dict[str, Any]:
        scores = self.scores[arm]
        values = np.array(list(scores.values()))
        good = self.sign * values
        found: dict[str, Any] = {
            "n": len(values),
            "missing": len(self.by_arm[arm]) - len(values),
            "seeds": list(scores),
            "scores": summary(values),
            "median": np.median(values) if len(values) else None,
            "best": self.sign * good.max() if len(values) else None,
            "worst": self.sign * good.min() if len(values) else None,
            **dict.fromkeys(("regret", "percentile", "worth", "against_random", "at_equal_time")),
        }
        if not len(values):
            return found
        if self.population is not None:
            found["regret"] = summary(self.population.max() - good, within=(0, math.inf))
            found["percentile"] = summary(self._chances(good, 1), within=(0, 1))
        if self.population is not None or self.sample is not None:
            found["worth"] = self._worth(good)
            found["against_random"] = self._compare(good, self.budget)
        if self.training_seconds:
            seconds = float(np.mean([outcome.seconds for outcome in self.by_arm[arm]]))
            found["at_equal_time"] = self._compare(good, self.budget + seconds / self.training_seconds)
        return found

    def _chances(self, good: Floats, k: float) -> Floats:
        """Return for each value the chance to be better than the best of k random architectures."""
        assert self.population is not None
        below, upto = inference.beaten(self.population, good, k)
        return (below + upto) / 2

    def _worth(self, good: Floats) -> dict[str, Any]:
        known = self.population if self.population is not None else self.sample
        assert known is not None
        most = 1e6 if self.population is not None else float(len(known))  # a sample knows no more than its size
        ends = inference.mean_interval(good)
        return {
            "value": inference.worth(known, float(good.mean()), most),
            "interval": None if math.isnan(ends.low) else [inference.worth(known, end, most) for end in ends],
        }

    def _compare(self, good: Floats, budget: float) -> dict[str, Any] | None:
        """Return the comparison with the best of `budget` random architectures; None where there are too few of them."""
        n = len(good)
        if self.population is not None:
            chances = self._chances(good, budget)
            chance, interval = (
                float(chances.mean()),
                summary(chances, within=(0, 1))["interval"] or (math.nan, math.nan),
            )
            test = inference.test_of_uniform_mean(*inference.beaten(self.population, good, budget))
            difference = good - inference.expected_best(self.population, budget)
            mean, ends = float(difference.mean()), inference.mean_interval(difference)
            smallest, drawn = inference.smallest_p_of_uniforms(n), None
        elif self.sample is not None:
            budget = max(1, round(budget))
            groups = len(self.sample) // budget
            if groups < 2:
                return None
            best = self.sample[: groups * budget].reshape(groups, budget).max(axis=1)
            chance, interval = inference.superiority(good, best)
            test = inference.rank_sum_test(good, best)
            mean, ends = inference.mean_difference(good, best)
            smallest, drawn = inference.smallest_p_of_samples(n, groups), groups
        else:
            return None
        ordered = ends if self.sign > 0 else (-ends[1], -ends[0])
        return {
            "budget": budget,
            "n": n,
            "drawn": drawn,
            "chance": chance,
            "interval": interval,
            "cliffs_delta": 2 * chance - 1,
            "difference": self.sign * mean,
            "difference_interval": ordered,
            "p": test.p,
            "p_better": test.greater,
            "p_worse": test.less,
            "smallest_p": smallest,
        }

    def _pairs(self, arms: Sequence[str]) -> list[dict[str, Any]]:
        """Return the comparisons of all arms with each other, by seed."""
        pairs: list[dict[str, Any]] = []
        combined = [
            (one, other, [seed for seed in self.scores[one] if seed in self.scores[other]])
            for one, other in combinations(arms, 2)
        ]
        combined = [(one, other, seeds) for one, other, seeds in combined if seeds]
        for one, other, seeds in combined:
            differences = np.array([self.scores[one][seed] - self.scores[other][seed] for seed in seeds])
            test = inference.signed_rank_test(self.sign * differences)
            different = int((differences != 0).sum())
            pairs.append(
                {
                    "first": one,
                    "second": other,
                    "seeds": seeds,
                    "differences": summary(differences),
                    "different": different,
                    "p": test.p,
                    "favours": None if test.greater == test.less else "first" if test.greater < test.less else "second",
                    "smallest_p": inference.smallest_p_of_pairs(different),
                }
            )
        left = _correct(pairs)
        for pair in pairs:
            favoured, mean, deviation = pair.pop("favours"), pair["differences"]["mean"], pair["differences"]["sd"]
            pair["of"] = left
            pair["pairs_needed"] = inference.pairs_needed(left)
            pair["detectable"] = pair["needed"] = None
            if deviation is not None:
                pair["detectable"] = inference.detectable_difference(deviation, len(pair["seeds"]), comparisons=left)
                pair["needed"] = inference.pairs_for(mean, deviation, comparisons=left)
            pair["better"] = favoured if pair["p_holm"] <= LEVEL else None
        return pairs


def _better(comparison: Mapping[str, Any]) -> bool | None:
    """Return whether a comparison with random architectures shows that an arm's are better, or worse; None for neither."""
    low, high = comparison["interval"]
    if comparison["p_holm"] <= LEVEL and (low > 0.5 or high < 0.5):
        return low > 0.5
    return None


def _correct(tests: Sequence[dict[str, Any]]) -> int:
    """Add `p_holm` to tests that are made together.

    Returns:
        How many of them show nothing, at least 1. Holm's correction multiplies the smallest p among these by their number, so
        that it is what another one of them has to do with.
    """
    for test, corrected in zip(tests, inference.holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = corrected
    return max(1, sum(test["p_holm"] > LEVEL for test in tests))


def _settings(one: str, other: str, results: Mapping[str, Any], arms: Sequence[str], metric: Metric) -> dict[str, Any]:
    """Return whether two evaluations put the arms into the same order."""
    sign = 1.0 if metric.higher_is_better else -1.0
    both = [arm for arm in arms if all(results[name]["arms"][arm]["n"] for name in (one, other))]
    first, second = ([sign * results[name]["arms"][arm]["scores"]["mean"] for arm in both] for name in (one, other))
    swapped = [
        [both[i], both[j]]
        for i, j in combinations(range(len(both)), 2)
        if (first[i] - first[j]) * (second[i] - second[j]) < 0
    ]
    tau = float(np.asarray(stats.kendalltau(first, second))[0]) if len(both) > 1 else math.nan
    return {"evaluations": [one, other], "tau": tau, "same_order": not swapped, "swapped": swapped}


# What does not depend on an evaluation.


def _search(
    outcomes: Sequence[Outcome], table: Table | None, metric: Metric, rules: Mapping[str, Rule]
) -> dict[str, Any]:
    """Return what is known of the searches of an arm."""
    choices = [outcome.architecture.choices for outcome in outcomes]
    agreement = None
    if len(outcomes) > 1:
        same = Counter(
            tuple(sorted((key, answer) for key, answer in chosen.items())) for chosen in map(_hashable, choices)
        )
        agreement = {
            "value": inference.agreement(choices),
            "expected": None if table is None else inference.expected_agreement([*map(len, table.options.values())]),
            "distinct": len(same),
            "most_common": max(same.values()),
        }
    ranked = {name: [o.metrics[name] for o in outcomes if name in o.metrics] for name in _RANKINGS}
    return {
        "seeds": [outcome.seed for outcome in outcomes],
        "seconds": summary([outcome.seconds for outcome in outcomes]),
        "agreement": agreement,
        "answers": _answers(choices),
        "skips": summary([_share(chosen, is_skip) for chosen in choices], within=(0, 1)),
        "parameter_free": summary([_share(chosen, is_parameter_free) for chosen in choices], within=(0, 1)),
        "skips_expected": _expected_share(table, is_skip),
        "parameter_free_expected": _expected_share(table, is_parameter_free),
        "ranking": {name: summary(values) for name, values in ranked.items() if values},
        "curves": _curves(outcomes, metric),
        "epochs": _epochs(outcomes),
        "rules": _rules(outcomes, rules),
    }


def is_skip(answer: str) -> bool:
    """Return whether a candidate passes its input on as it is, by its name."""
    return answer in SKIPS


def is_parameter_free(answer: str) -> bool:
    """Return whether a candidate has no weights, by its name: a skip connection, nothing, or a pooling."""
    return answer in SKIPS or answer in _NOTHING or "pool" in answer


def _answers(choices: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Return how many architectures have each answer to each choice; a choice that keeps several inputs counts each."""
    found: dict[str, Counter[str]] = {}
    for chosen in choices:
        for key, answer in chosen.items():
            kept = [answer] if isinstance(answer, str) else answer or ()
            found.setdefault(key, Counter()).update(kept)
    return {key: dict(counts) for key, counts in found.items()}


def _share(choices: Mapping[str, Any], of: Callable[[str], bool]) -> float:
    """Return the share of operations of an architecture that are of a kind; nan where it has no operations."""
    operations = [answer for answer in choices.values() if isinstance(answer, str)]
    return sum(map(of, operations)) / len(operations) if operations else math.nan


def _expected_share(table: Table | None, of: Callable[[str], bool]) -> float | None:
    """Return the share among the answers of all architectures of a table."""
    if table is None:
        return None
    return float(np.mean([sum(map(of, names)) / len(names) for names in table.options.values()]))


def _hashable(choices: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(answer) if isinstance(answer, list) else answer for key, answer in choices.items()}


def _curves(outcomes: Sequence[Outcome], metric: Metric) -> dict[str, Any]:
    """Return the mean over the seeds of what was measured after each epoch, with its interval."""
    found: dict[str, Any] = {}
    for name, columns in {**CURVES, "validation": (f"val_{metric.name}",)}.items():
        there = {column for outcome in outcomes for row in outcome.epochs for column in row}
        column = next((column for column in columns if column in there), None)
        if column is None:
            continue
        samples: dict[int, list[float]] = {}
        for outcome in outcomes:
            for row in outcome.epochs:
                if math.isfinite(row.get(column, math.nan)):
                    samples.setdefault(int(row["epoch"]), []).append(row[column])
        low, high = _intervals([samples[epoch] for epoch in sorted(samples)])
        found[name] = {
            "epochs": sorted(samples),
            "n": [len(samples[epoch]) for epoch in sorted(samples)],
            "mean": [np.mean(samples[epoch]) for epoch in sorted(samples)],
            "low": low,
            "high": high,
        }
    return found


def _intervals(samples: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Return the ends of the intervals of samples, those of one size together."""
    low, high = [math.nan] * len(samples), [math.nan] * len(samples)
    for size in {len(sample) for sample in samples}:
        places = [place for place, sample in enumerate(samples) if len(sample) == size]
        for place, *ends in zip(places, *inference.mean_intervals([samples[place] for place in places]), strict=True):
            low[place], high[place] = map(float, ends)
    return low, high


def _regrets(outcome: Outcome) -> dict[int, float]:
    """Return the regret of the architecture of each epoch that was looked up."""
    return {int(row["epoch"]): row["table_regret"] for row in outcome.epochs if "table_regret" in row}


def _epochs(outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """Return the regrets of the last epoch, and of the one that an oracle would have stopped at."""
    regrets = [found for outcome in outcomes if (found := _regrets(outcome))]
    if not regrets:
        return None
    best_epochs = [min(found, key=lambda epoch: (found[epoch], epoch)) for found in regrets]
    last = np.array([found[max(found)] for found in regrets])
    best = np.array([found[epoch] for found, epoch in zip(regrets, best_epochs, strict=True)])
    return {"last": summary(last), "best": summary(best), "best_epochs": best_epochs, "lost": summary(last - best)}


def _rules(outcomes: Sequence[Outcome], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Return the regret of the architectures that rules pick, and whether it is less than that of the last epoch's."""
    looked_up = [(outcome.seed, outcome.epochs, found) for outcome in outcomes if (found := _regrets(outcome))]
    results: dict[str, Any] = {}
    for name, rule in rules.items():
        picked = [(seed, rule(rows), found) for seed, rows, found in looked_up]
        told = [(seed, epoch, found) for seed, epoch, found in picked if epoch is not None and epoch in found]
        if told:
            regrets = np.array([found[epoch] for _, epoch, found in told])
            last = np.array([found[max(found)] for _, _, found in told])
            results[name] = {
                "seeds": [seed for seed, _, _ in told],
                "epochs": [epoch for _, epoch, _ in told],
                "regret": summary(regrets),
                **_gain(last - regrets),
            }
    return results


def _gain(gain: Floats) -> dict[str, Any]:
    """Return how much less regret a rule has than the last epoch, (seeds,), and the p-value of that."""
    different = int((gain != 0).sum())
    return {
        "gain": summary(gain),
        "different": different,
        "p": inference.signed_rank_test(gain).p,
        "smallest_p": inference.smallest_p_of_pairs(different),
    }


def _correct_rules(rules: Mapping[str, dict[str, Any]]) -> None:
    """Add `p_holm` and `of` to the tests of rules; one that always picks the last epoch is no test."""
    tests = [rule for rule in rules.values() if rule["different"]]
    left = _correct(tests)
    for rule in rules.values():
        rule["of"] = left
        rule.setdefault("p_holm", 1.0)


def _over_arms(searches: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what rules gain on the mean over the arms, for each seed that all of these have."""
    results: dict[str, Any] = {}
    for name in dict.fromkeys(rule for search in searches.values() for rule in search["rules"]):
        found = {arm: search["rules"][name] for arm, search in searches.items() if name in search["rules"]}
        gains = [dict(zip(rule["seeds"], rule["gain"]["values"], strict=True)) for rule in found.values()]
        seeds = [seed for seed in gains[0] if all(seed in gain for gain in gains)]
        if seeds:
            mean = np.array([np.mean([gain[seed] for gain in gains]) for seed in seeds])
            results[name] = {"arms": list(found), "seeds": seeds, **_gain(mean)}
    _correct_rules(results)
    return results


# Plain values.


def summary(values: Sequence[float] | Floats, *, within: tuple[float, float] = (-math.inf, math.inf)) -> dict[str, Any]:
    """Return n values with their mean, standard deviation and the interval of the mean; nan among them is left out.

    Args:
        values: of the seeds.
        within: the least and the largest that a value can be. Student's interval, which few values have, does not know it.
    """
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[np.isfinite(kept)]
    n = len(kept)
    return {
        "n": n,
        "mean": float(kept.mean()) if n else None,
        "sd": float(kept.std(ddof=1)) if n > 1 else None,
        "interval": np.clip(inference.mean_interval(kept), *within).tolist() if n > 1 else None,
        "values": [float(value) for value in np.asarray(values, dtype=np.float64)],
    }


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: lists, numbers of Python, and None for what is no finite number."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
