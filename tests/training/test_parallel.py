"""Two processes that share a batch take the step of one process that has all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from training import two_processes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes came to, for every case."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(two_processes.__file__)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    running = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), "2", str(folder / "store"), str(folder / f"{rank}.pt")],
            env=environment,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize(("space", "hypergradient", "synced", "method"), two_processes.CASES)
def test_search_equals_one_process(
    space: str, hypergradient: str, synced: bool, method: str, ranks: list[dict[str, Any]]
) -> None:
    one = two_processes.search(space, hypergradient, method, synced=False)
    for rank in ranks:
        own = rank[f"{space} {hypergradient} {synced} {method}"]
        assert_close(own["gradient"], one["gradient"])
        assert_close(own["state"], one["state"])
        assert own["genotype"] == one["genotype"]


@pytest.mark.parametrize("synced", [True, False])
def test_retrain_equals_one_process(synced: bool, ranks: list[dict[str, Any]]) -> None:
    one = two_processes.retrain(synced=False)
    for rank in ranks:
        assert_close(rank[f"retrain {synced}"]["state"], one["state"])


def test_ranks_are_equal_to_the_bit(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    for case in first:
        for name, tensor in first[case]["state"].items():
            assert torch.equal(tensor, second[case]["state"][name]), (case, name)
