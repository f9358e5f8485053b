from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from studies.made import made_with_scores, made_with_table, made_without_table

from src.architectures.architecture import Architecture
from src.benchmarks.nas_bench_201 import nas_bench_201
from src.reports.numbers import p_value
from src.studies.analysis import analyse
from src.studies.outcomes import Metric, Outcome
from src.studies.statement import statement


def quantiles(*shares: float) -> list[float]:
    """Return the accuracies that so large shares of the table's architectures do not reach."""
    return np.quantile(nas_bench_201().accuracies, shares).tolist()


GOOD = quantiles(0.99, 0.98, 0.995, 0.97, 0.96, 0.985, 0.999, 0.95, 0.975, 0.965)
MIDDLE = quantiles(0.5, 0.2, 0.9, 0.4, 0.7, 0.1, 0.6, 0.3, 0.8, 0.45)


def said(outcomes: list[Outcome], **options: Any) -> str:
    return "\n".join(statement(analyse(outcomes, **options)))


def in_table(**scores: list[float]) -> str:
    return said(made_with_scores(scores), table=nas_bench_201())


def test_a_clear_win() -> None:
    text = in_table(clever=GOOD, plain=MIDDLE)
    first, second, third, *_ = text.splitlines()
    pattern = (
        r"Better than a random architecture more often than not: clever \(probability 0\.98 \[0\.9\d, 0\.99\], n = 10, p < 0\.001; "
        r"mean accuracy 90\.7 %, above that of a random architecture by 7\.00 points \[6\.7\d, 7\.\d\d\]; this mean is that of the "
        r"best of 38 random ones \[2\d, \d\d\]\)\."
    )
    assert re.fullmatch(pattern, first), first
    assert second.startswith("Not shown to be better or worse than a random architecture: plain (probability 0.50 [")
    assert third == "With n = 10, no probability below 0.68 shows as better, and none above 0.32 as worse."
    assert "clever is better than plain by " in text
    assert "too few" not in text


def test_clearly_nothing() -> None:
    text = in_table(one=MIDDLE, other=MIDDLE[::-1])
    assert "Better than" not in text
    assert "Worse than" not in text
    assert "is better than" not in text
    assert "Not shown to be better or worse than a random architecture: one (" in text
    assert "Not shown to differ: one and other (" in text
    assert "4 find a mean difference of " in text


def test_too_few_seeds_for_pairs() -> None:
    text = in_table(a=GOOD[:5], b=MIDDLE[:5])
    assert (
        "n = 5 is too few to tell apart: a and b. The smallest p that 5 such pairs can give is 0.0625; at least 6 are needed, and "
        "more for a difference that not every seed shows."
    ) in text
    assert "is better than" not in text
    text = in_table(a=GOOD[:5], b=MIDDLE[:5], c=MIDDLE[5:])
    assert "is 0.0625, and 0.188 after the correction; at least 7 are needed" in text


def test_too_few_seeds_for_random_architectures() -> None:
    text = said(made_without_table({"a": 0.99}, seeds=2, drawn=3, settings=["short"]))
    assert (
        "n = 2 and the random architectures of this study are too few to tell: the smallest p that they can give is 0.2."
        in text
    )
    assert "Better than" not in text


def test_one_seed_says_nothing_however_good_it_is() -> None:
    text = in_table(a=quantiles(1.0))
    assert "Better than" not in text
    assert "n = 1 says nothing of how searches vary." in text


def test_collapse_is_worse_than_random() -> None:
    table = nas_bench_201()
    skips = Architecture(dict.fromkeys(table.options, "skip_connect"))
    outcomes = [
        Outcome("a", seed, f"a/{seed}", skips, {"table": table.standing(skips).accuracy}, [], {}, 1.0, {})
        for seed in range(10)
    ]
    assert statement(analyse(outcomes, table=table))[0] == (
        "Worse than a random architecture more often than not: a (probability 0.03, n = 10, all with the same score, p < 0.001; "
        "mean accuracy 39.8 %, below that of a random architecture by 43.9 points; 100 % of its operations are skip connections, "
        "of random ones 20 %)."
    )


def test_how_often_and_by_how_much_may_differ() -> None:
    """Most random architectures of the table are better than these, but those that are not pull their mean down."""
    text = in_table(a=quantiles(0.2, 0.25, 0.22, 0.3, 0.28, 0.31, 0.27, 0.29, 0.33, 0.26))
    assert "Worse than a random architecture more often than not: a (probability 0.27 " in text
    assert "above that of a random architecture by " in text
    assert "the mean points the other way: the test is of how often, not of how much" in text


def test_good_or_bad_by_chance_is_not_better() -> None:
    text = in_table(a=quantiles(0.99, 0.98, 0.999, 0.97, 0.995, 0.01, 0.02, 0.99, 0.99, 0.95, 0.03, 0.985, 0.97))
    assert "Better than" not in text
    assert "p < 0.001" in text
    assert "the interval has 0.5 in it, and p is small since the seeds differ more than random architectures do" in text


def test_arms_that_find_the_same() -> None:
    text = in_table(a=MIDDLE, b=MIDDLE)
    assert "The same score with each seed, so that nothing tells them apart: a and b (n = 10)." in text
    text = in_table(a=MIDDLE, b=[*GOOD[:3], *MIDDLE[3:]])
    assert (
        "3 of 10 seeds with different scores are too few to tell apart: a and b. The smallest p that 3 such pairs"
        in text
    )


def test_one_arm_only() -> None:
    text = in_table(a=GOOD)
    assert text.count("\n") == 1
    assert "tell apart" not in text
    assert "differ" not in text


def test_no_table_and_no_random_arm() -> None:
    text = said(made_with_scores({"a": GOOD, "b": MIDDLE}, "short"))
    assert text.startswith(
        "Whether these searches are better than chance is not known: there is no table, and no score of an arm `random`."
    )
    assert "a is better than b by " in text


def test_several_settings_are_told_apart() -> None:
    text = said(made_without_table())
    assert text.startswith("short: Better than a random architecture more often than not: darts, order 1 (")
    assert "\nlong: Better than" in text
    assert "\nshort: At equal time, against the best of N random architectures, " in text
    assert "\nshort and long put the means of the arms into the same order.\n" in text
    assert "Holm's method, for each evaluation by itself." in text


def test_a_budget() -> None:
    text = said(made_with_table({"clever": (0.9, 1.0)}, epochs=2), table=nas_bench_201(), budget=5)
    assert text.startswith("Better than the best of 5 random architectures more often than not: clever (")
    assert "above that of the best of 5 random architectures by " in text


def test_errors_have_their_own_unit() -> None:
    errors = {
        "a": [1.0, 1.1, 1.2, 1.15, 1.05, 1.05],
        "b": [1.5, 1.7, 1.75, 1.6, 1.62, 1.64],
        "random": [1.9, 2.1, 2.2, 1.8, 2.3, 2.0],
    }
    text = said(made_with_scores(errors, "short"), metric=Metric("mae", higher_is_better=False))
    assert "mean mae 1.09, below that of a random architecture by 0.96 mae [0." in text
    assert "a is better than b by 0.54 mae [" in text
    assert "%;" not in text.replace("95 %", "")
    assert "points" not in text


def test_a_difference_that_most_seeds_show_and_the_mean_does_not() -> None:
    one = quantiles(0.99, 0.98, 0.999, 0.97, 0.995, 0.96, 0.001, 0.99, 0.99, 0.95, 0.985, 0.97)
    text = in_table(a=one, b=quantiles(*[0.9] * 12))
    assert "a is better than b with most seeds (n = 12, p = " in text
    assert "; the means do not show it, b is ahead by " in text


def test_many_pairs_are_named_without_their_numbers() -> None:
    names = [f"arm {i}" for i in range(5)]
    steps = {name: [0.8 + 0.01 * i + 0.0001 * i * seed for seed in range(12)] for i, name in enumerate(names)}
    text = said(made_with_scores(steps, "short"))
    assert (
        "10 of 10 pairs of arms differ (p <= 0.0049): arm 1 is better than arm 0; arm 2 is better than arm 0 / arm 1; "
        in text
    )
    rng = np.random.default_rng(0)
    equal = {name: rng.choice(nas_bench_201().accuracies, 12).tolist() for name in names}
    text = said(made_with_scores(equal, "short"))
    assert (
        "10 of 10 pairs of arms are not shown to differ; with as many seeds, 4 of 5 studies find a mean difference of "
        in text
    )
    text = said(made_with_scores({name: scores[:5] for name, scores in steps.items()}, "short"))
    assert "n = 5 is too few to tell apart: 10 of 10 pairs of arms." in text


def test_rules_that_pick_an_epoch() -> None:
    outcomes = made_with_table({"a": (0.0, 0.9)}, epochs=10)
    rules = {"first": lambda rows: 0, "last": lambda rows: 9, "mostly": lambda rows: 8 if rows[0]["lr"] < 0 else 9}
    text = said(outcomes, table=nas_bench_201(), rules=rules)
    assert "A rule picks an epoch with a better architecture than the last one's: first (" in text
    assert "less regret, n = 10, p = 0.0" in text
    assert "mostly" not in text  # nor is it said that the last epoch is like itself


def test_rules_and_seeds_that_are_too_few() -> None:
    outcomes = made_with_table({"a": (0.0, 0.9), "b": (0.0, 0.9)}, seeds=5, epochs=10)
    text = said(outcomes, table=nas_bench_201(), rules={"first": lambda rows: 0})
    assert (
        "Rules that are not shown to pick a better or a worse architecture than the last epoch's: first. The seeds are too few "
        "to tell."
    ) in text


def test_what_has_no_score() -> None:
    assert statement(analyse([])) == ["No search of this study has a score."]
    text = said(made_with_scores({"a": [0.9, 0.91, float("nan")]}, "short"))
    assert text.startswith("Seeds without a score are left out: a (1 of 3).")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0004, "p < 0.001"),
        (0.0312, "p = 0.031"),
        (0.0496, "p = 0.0496"),
        (0.05, "p = 0.05"),
        (0.0502, "p = 0.0502"),
        (1.0, "p = 1"),
    ],
)
def test_p_values_are_not_rounded_onto_the_level(value: float, text: str) -> None:
    assert p_value(value) == text
