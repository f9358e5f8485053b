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
