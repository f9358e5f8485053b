from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from studies.made import made_with_scores, made_with_table, made_without_table

from src.architectures.architecture import Architecture
from src.benchmarks.nas_bench_201 import nas_bench_201
from src.common.intervals import interval_of_mean
from src.studies import inference
from src.studies.analysis import analyse
from src.studies.outcomes import TABLE, Metric, Outcome


def test_a_study_is_plain_json() -> None:
    found = analyse(made_with_table(seeds=3, epochs=3), table=nas_bench_201())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    found = analyse(made_without_table(seeds=3, drawn=4))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_one_arm_and_seed_is_one_search() -> None:
    with pytest.raises(ValueError, match="the same arm and seed twice: a, seed 0"):
        analyse([*made_without_table({"a": 0.9}, seeds=1), *made_without_table({"a": 0.9}, seeds=1, drawn=0)])


def test_random_architectures_are_101_quantiles_from_the_worst_to_the_best() -> None:
    table = nas_bench_201()
    values = analyse(made_with_table(seeds=2, epochs=2), table=table)["results"]["table"]["random"]["distribution"]
    assert len(values) == 101
    assert (values[0], values[-1]) == (table.accuracies.min(), table.accuracies.max())
    assert values == sorted(values)


def test_answers_are_counted_over_the_seeds() -> None:
    answers = analyse(made_without_table(seeds=5, drawn=0))["searches"]["darts, order 1"]["answers"]
    assert set(answers) == {"first", "second", "third", "fourth"}
    assert all(sum(counts.values()) == 5 for counts in answers.values())


@pytest.fixture(scope="module")
def with_table() -> tuple[list[Outcome], dict[str, Any]]:
    outcomes = made_with_table(seeds=8, epochs=4)
    rules = {"first": lambda rows: 0, "mute": lambda rows: None}
    return outcomes, analyse(outcomes, table=nas_bench_201(), training_seconds=30.0, rules=rules)


@pytest.fixture(scope="module")
def without_table() -> tuple[list[Outcome], dict[str, Any]]:
    outcomes = made_without_table(seeds=8, drawn=12)
    return outcomes, analyse(outcomes)


def test_an_arm_is_summed_up_by_its_scores_in_the_table(with_table: tuple[list[Outcome], dict[str, Any]]) -> None:
    outcomes, study = with_table
    own = [outcome for outcome in outcomes if outcome.arm == "darts, order 1"]
    found = study["results"]["table"]["arms"]["darts, order 1"]
    standings = [nas_bench_201().standing(outcome.architecture) for outcome in own]
    accuracies = np.array([standing.accuracy for standing in standings])
    assert found["seeds"] == list(range(8))
    assert (found["n"], found["missing"]) == (8, 0)
    assert found["scores"]["values"] == accuracies.tolist()
    assert found["scores"]["mean"] == pytest.approx(accuracies.mean())
    assert found["scores"]["sd"] == pytest.approx(accuracies.std(ddof=1))
    assert found["scores"]["interval"] == list(inference.mean_interval(accuracies))
    assert (found["best"], found["worst"]) == (accuracies.max(), accuracies.min())
    assert found["regret"]["values"] == pytest.approx([standing.regret for standing in standings])
    assert found["percentile"]["values"] == pytest.approx([standing.percentile for standing in standings])
    against = found["against_random"]
    assert against["chance"] == pytest.approx(np.mean([standing.percentile for standing in standings]))
    assert against["difference"] == pytest.approx(accuracies.mean() - nas_bench_201().accuracies.mean())
    assert study["results"]["table"]["order"] == ["clever", "darts, order 1", "darts, order 2"]


def test_arms_are_better_and_worse_than_random_architectures(
    with_table: tuple[list[Outcome], dict[str, Any]],
) -> None:
    arms = with_table[1]["results"]["table"]["arms"]
    assert [found["against_random"]["better"] for found in arms.values()] == [True, None, False]
    p_values = [found["against_random"]["p"] for found in arms.values()]
    assert [found["against_random"]["p_holm"] for found in arms.values()] == pytest.approx(inference.holm(p_values))
    assert arms["clever"]["worth"]["value"] > 5
    assert arms["darts, order 2"]["worth"]["value"] < 1


def test_the_budget_is_of_how_many_random_architectures_the_best_is_taken() -> None:
    outcomes = made_with_table({"clever": (0.9, 1.0)}, seeds=6, epochs=2)
    table = nas_bench_201()
    against = analyse(outcomes, table=table, budget=5)["results"]["table"]["arms"]["clever"]["against_random"]
    scores = np.array([outcome.scores[TABLE] for outcome in outcomes])
    below, upto = (
        np.array([np.mean(table.accuracies < x) for x in scores]),
        np.array([np.mean(table.accuracies <= x) for x in scores]),
    )
    assert against["budget"] == 5
    assert against["chance"] == pytest.approx(np.mean((below**5 + upto**5) / 2))
    assert against["p_better"] == pytest.approx(inference.test_of_uniform_mean(below**5, upto**5).greater)
    assert against["difference"] == pytest.approx(scores.mean() - inference.expected_best(table.accuracies, 5))


def test_at_equal_time_random_architectures_are_trained_as_long_as_a_search_takes(
    with_table: tuple[list[Outcome], dict[str, Any]],
) -> None:
    outcomes, study = with_table
    seconds = np.mean([outcome.seconds for outcome in outcomes if outcome.arm == "clever"])
    found = study["results"]["table"]["arms"]["clever"]["at_equal_time"]
    assert found["budget"] == pytest.approx(1 + seconds / 30)
    assert found["p"] > study["results"]["table"]["arms"]["clever"]["against_random"]["p"]


def test_pairs_are_of_one_seed_and_corrected_together(with_table: tuple[list[Outcome], dict[str, Any]]) -> None:
    outcomes, study = with_table
    pairs = study["results"]["table"]["pairs"]
    assert [(pair["first"], pair["second"]) for pair in pairs] == [
        ("clever", "darts, order 1"),
        ("clever", "darts, order 2"),
        ("darts, order 1", "darts, order 2"),
    ]
    scores = {(outcome.arm, outcome.seed): outcome.scores[TABLE] for outcome in outcomes}
    differences = [scores["clever", seed] - scores["darts, order 2", seed] for seed in range(8)]
    assert pairs[1]["differences"]["values"] == pytest.approx(differences)
    assert pairs[1]["p"] == pytest.approx(stats.wilcoxon(differences)[1])
    assert [pair["p_holm"] for pair in pairs] == pytest.approx(inference.holm([pair["p"] for pair in pairs]))
    assert pairs[1]["better"] == "first"


def test_a_seed_that_one_arm_lacks_is_in_no_pair() -> None:
    outcomes = made_with_scores({"a": [0.5, 0.6, math.nan, 0.7], "b": [0.4, math.nan, 0.6, 0.5]}, "short")
    results = analyse(outcomes)["results"]["short"]
    assert (results["arms"]["a"]["n"], results["arms"]["a"]["missing"], results["arms"]["a"]["seeds"]) == (
        3,
        1,
        [0, 1, 3],
    )
    assert results["pairs"][0]["seeds"] == [0, 3]
    assert results["pairs"][0]["differences"]["values"] == pytest.approx([0.1, 0.2])


def test_of_an_error_the_smaller_is_the_better() -> None:
    """The same study in accuracies and in errors comes to the same."""
    scores = {
        "a": [0.91, 0.93, 0.94, 0.92, 0.95, 0.935],
        "b": [0.90, 0.91, 0.925, 0.90, 0.93, 0.92],
        "random": [0.9, 0.88, 0.93],
    }
    accuracy = analyse(made_with_scores(scores, "short"))
    errors = {arm: [1 - score for score in values] for arm, values in scores.items()}
    error = analyse(made_with_scores(errors, "short"), metric=Metric("error", higher_is_better=False))
    one, other = accuracy["results"]["short"], error["results"]["short"]
    assert one["order"] == other["order"] == ["a", "b"]
    for key in ("chance", "p", "p_better", "p_worse", "better"):
        assert one["arms"]["a"]["against_random"][key] == pytest.approx(other["arms"]["a"]["against_random"][key])
    assert one["arms"]["a"]["against_random"]["difference"] == pytest.approx(
        -other["arms"]["a"]["against_random"]["difference"]
    )
    assert one["arms"]["a"]["against_random"]["difference_interval"] == pytest.approx(
        [-end for end in reversed(other["arms"]["a"]["against_random"]["difference_interval"])]
    )
    assert one["arms"]["a"]["worth"]["value"] == pytest.approx(other["arms"]["a"]["worth"]["value"], rel=1e-6)
    assert one["pairs"][0]["p"] == other["pairs"][0]["p"] == 0.03125
    assert one["pairs"][0]["better"] == other["pairs"][0]["better"] == "first"
    assert other["random"]["best"] == pytest.approx(0.07)
    assert other["random"]["expected_best"]["2"] == pytest.approx(1 - one["random"]["expected_best"]["2"])


def test_a_sample_of_random_architectures_is_compared_by_ranks(
    without_table: tuple[list[Outcome], dict[str, Any]],
) -> None:
    outcomes, study = without_table
    results = study["results"]["long"]
    assert study["arms"] == ["darts, order 1", "darts, order 2"]  # the random arm is what they are compared with
    assert (results["random"]["kind"], results["random"]["count"]) == ("sample", 12)
    first = [outcome.scores["long"] for outcome in outcomes if outcome.arm == "darts, order 1"]
    drawn = [outcome.scores["long"] for outcome in outcomes if outcome.arm == "random"]
    against = results["arms"]["darts, order 1"]["against_random"]
    assert against["p"] == pytest.approx(stats.mannwhitneyu(first, drawn, method="exact").pvalue)
    assert against["chance"] == pytest.approx(stats.mannwhitneyu(first, drawn).statistic / 96)
    assert results["arms"]["darts, order 1"]["regret"] is None
    assert results["arms"]["darts, order 1"]["at_equal_time"]["budget"] == 2  # a search takes as long as a training
    two = [max(drawn[i : i + 2]) for i in range(0, 12, 2)]
    assert results["arms"]["darts, order 1"]["at_equal_time"]["p"] == pytest.approx(
        inference.rank_sum_test(first, two).p
    )


def test_the_order_of_arms_in_two_settings() -> None:
    scores = {"a": [0.5, 0.6], "b": [0.7, 0.8], "c": [0.9, 0.9]}
    other = {"a": [0.6, 0.7], "b": [0.5, 0.6], "c": [0.9, 0.9]}
    outcomes = [
        replace(one, scores={**one.scores, **two.scores})
        for one, two in zip(made_with_scores(scores, "short"), made_with_scores(other, "long"), strict=True)
    ]
    (settings,) = analyse(outcomes)["settings"]
    assert settings["evaluations"] == ["short", "long"]
    assert settings["tau"] == pytest.approx(1 / 3)
    assert (settings["same_order"], settings["swapped"]) == (False, [["a", "b"]])


def test_epochs_are_compared_with_the_best_and_with_those_that_rules_pick(
    with_table: tuple[list[Outcome], dict[str, Any]],
) -> None:
    outcomes, study = with_table
    regrets = np.array([[row["table_regret"] for row in o.epochs] for o in outcomes if o.arm == "darts, order 2"])
    search = study["searches"]["darts, order 2"]
    assert search["epochs"]["last"]["values"] == pytest.approx(regrets[:, -1])
    assert search["epochs"]["best"]["values"] == pytest.approx(regrets.min(axis=1))
    assert search["epochs"]["best_epochs"] == regrets.argmin(axis=1).tolist()
    assert search["epochs"]["lost"]["mean"] == pytest.approx((regrets[:, -1] - regrets.min(axis=1)).mean())
    assert list(search["rules"]) == ["first"]  # the other one never tells
    rule = search["rules"]["first"]
    assert rule["epochs"] == [0] * 8
    assert rule["regret"]["values"] == pytest.approx(regrets[:, 0])
    assert rule["gain"]["values"] == pytest.approx(regrets[:, -1] - regrets[:, 0])
    assert rule["p"] == pytest.approx(stats.wilcoxon(regrets[:, -1] - regrets[:, 0])[1])
    assert rule["p_holm"] == rule["p"]  # the only test of the arm
    over = study["rules"]["first"]
    gains = [study["searches"][arm]["rules"]["first"]["gain"]["values"] for arm in study["arms"]]
    assert over["arms"] == study["arms"]
    assert over["gain"]["values"] == pytest.approx(np.mean(gains, axis=0))
    assert over["p"] == pytest.approx(stats.wilcoxon(np.mean(gains, axis=0))[1])


def test_rules_are_corrected_together_but_for_those_that_pick_the_last_epoch() -> None:
    rules = {"first": lambda rows: 0, "last": lambda rows: 5, "third": lambda rows: 2}
    outcomes = made_with_table({"a": (0.0, 0.9)}, seeds=6, epochs=6)
    search = analyse(outcomes, table=nas_bench_201(), rules=rules)["searches"]["a"]["rules"]
    tested = [search["first"]["p"], search["third"]["p"]]
    assert [search["first"]["p_holm"], search["third"]["p_holm"]] == pytest.approx(inference.holm(tested))
    assert (search["last"]["different"], search["last"]["p_holm"]) == (0, 1)


def test_a_seed_that_one_arm_lacks_is_not_in_the_mean_over_the_arms() -> None:
    outcomes = made_with_table({"a": (0.0, 0.9), "b": (0.0, 0.9)}, seeds=4, epochs=3)
    kept = [outcome for outcome in outcomes if (outcome.arm, outcome.seed) != ("b", 1)]
    found = analyse(kept, table=nas_bench_201(), rules={"first": lambda rows: 0})["rules"]["first"]
    assert found["seeds"] == [0, 2, 3]


def test_curves_are_means_over_the_seeds_that_have_an_epoch(with_table: tuple[list[Outcome], dict[str, Any]]) -> None:
    outcomes, study = with_table
    curves = study["searches"]["clever"]["curves"]
    assert set(curves) == {"regret", "percentile", "entropy", "skips", "exact_cosine", "validation"}
    regrets = np.array([[row["table_regret"] for row in o.epochs] for o in outcomes if o.arm == "clever"])
    assert curves["regret"]["epochs"] == [0, 1, 2, 3]
    assert curves["regret"]["mean"] == pytest.approx(regrets.mean(axis=0))
    ends = inference.mean_intervals(regrets.T)
    assert curves["regret"]["low"] == pytest.approx(ends[0])
    assert curves["regret"]["high"] == pytest.approx(ends[1])
    shorter = [replace(outcomes[0], epochs=outcomes[0].epochs[:2]), *outcomes[1:8]]  # a search that a guard ended
    short = analyse(shorter, table=nas_bench_201())["searches"]["clever"]
    assert short["curves"]["regret"]["n"] == [8, 8, 7, 7]
    assert short["curves"]["regret"]["mean"][3] == pytest.approx(regrets[1:, 3].mean())
    assert short["epochs"]["last"]["values"][0] == pytest.approx(regrets[0, 1])


def test_collapse_and_agreement_are_counted_from_the_architectures() -> None:
    table = nas_bench_201()
    skips = Architecture(dict.fromkeys(table.options, "skip_connect"))
    mixed = Architecture({**skips.choices, "n1_p0": "zeroize", "n2_p0": "avg_pool_3x3", "n2_p1": "nor_conv_3x3"})
    base = made_with_scores({"a": [table.standing(a).accuracy for a in (skips, skips, mixed)]})
    found = [replace(o, architecture=a) for o, a in zip(base, (skips, skips, mixed), strict=True)]
    search = analyse(found, table=table)["searches"]["a"]
    assert search["skips"]["values"] == [1, 1, 0.5]
    assert search["parameter_free"]["values"] == pytest.approx([1, 1, 5 / 6])
    assert (search["skips_expected"], search["parameter_free_expected"]) == pytest.approx((0.2, 0.6))
    assert search["agreement"] == pytest.approx(
        {"value": (1 + 0.5 + 0.5) / 3, "expected": 0.2, "distinct": 2, "most_common": 2}
    )


def test_searches_that_vary_more_than_random_ones_are_not_called_better() -> None:
    """Half are among the best and half among the worst: no distribution of random architectures, but no better, either."""
    accuracies = np.sort(nas_bench_201().accuracies)
    rng = np.random.default_rng(0)
    shown = small = 0
    for _ in range(20):
        found = np.where(rng.random(10) < 0.5, rng.choice(accuracies[:100], 10), rng.choice(accuracies[-100:], 10))
        study = analyse(made_with_scores({"a": found.tolist()}), table=nas_bench_201())
        against = study["results"]["table"]["arms"]["a"]["against_random"]
        small += against["p"] <= 0.05
        shown += against["better"] is not None
    assert small >= 5  # the p-value alone is far from 1 in 20
    assert shown <= 2


def test_a_study_of_one_search() -> None:
    study = analyse(made_with_table({"clever": (0.9, 1.0)}, seeds=1, epochs=1), table=nas_bench_201())
    arm = study["results"]["table"]["arms"]["clever"]
    assert (arm["scores"]["sd"], arm["scores"]["interval"], arm["worth"]["interval"]) == (None, None, None)
    assert (arm["against_random"]["better"], arm["against_random"]["critical"]) == (None, None)
    assert (study["results"]["table"]["pairs"], study["searches"]["clever"]["agreement"]) == ([], None)


def test_a_study_without_outcomes() -> None:
    study = analyse([])
    assert (study["arms"], study["results"], study["searches"]) == ([], {}, {})


def test_a_sample_of_random_architectures_knows_no_more_than_its_size() -> None:
    scores = {"a": [0.99, 0.98, 0.985], "random": [0.9, 0.8, 0.7, 0.85]}
    found = analyse(made_with_scores(scores, "short"))["results"]["short"]["arms"]["a"]["worth"]
    assert found == {"value": 4, "interval": [4, 4]}


def test_intervals_of_few_seeds_stay_where_values_can_be() -> None:
    accuracies = nas_bench_201().accuracies
    outcomes = made_with_scores({"a": [float(accuracies.max()), float(np.median(accuracies))]})
    found = analyse(outcomes, table=nas_bench_201())["results"]["table"]["arms"]["a"]
    for name in ("regret", "percentile"):
        student = interval_of_mean(found[name]["values"])
        assert student[0] < 0
        assert found[name]["interval"] == pytest.approx([0, min(student[1], 1)])
    assert found["against_random"]["interval"] == [0, 1]
