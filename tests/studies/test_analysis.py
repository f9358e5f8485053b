from __future__ import annotations

import json

import pytest
from studies.made import made_with_table, made_without_table

from src.benchmarks.nas_bench_201 import nas_bench_201
from src.studies.analysis import analyse


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
