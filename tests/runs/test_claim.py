"""What surrounds the training of a run."""

from __future__ import annotations

import gc

import pytest

from src.runs.claim import unwatched_objects


def test_what_exists_before_a_fit_is_left_alone_during_it_and_collected_again_after_it() -> None:
    before = gc.get_freeze_count()

    def fit() -> None:
        with unwatched_objects():
            assert gc.get_freeze_count() > before
            raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        fit()
    assert gc.get_freeze_count() == 0
