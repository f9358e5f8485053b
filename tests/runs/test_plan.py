"""What `plan=true` says, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from commands import FEW, RETRAIN, SEARCH, SMALL, Done, refused, run

from src.runs import devices, plan
from src.runs.following import retrain_overrides
from src.runs.plan import _Probe, _Taken

ENOUGH = ["data=digits", "trainer=cpu", *SMALL, *FEW, "epochs=3", "data.batch_size=64", "trainer.limit_train_batches=9"]


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_SECONDS", 0.0)


def lines(done: Done) -> dict[str, str]:
    """Return what was printed, by the names of the lines; those that go on belong to the one before."""
    assert (done.code, done.err) == (0, "")
    return dict(re.findall(r"^  (\w+) +(.*(?:\n {4,}.*)*)", done.out, re.MULTILINE))


def test_of_a_search_and_its_retrain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "retrain_overrides", lambda command: [*retrain_overrides(command), *SMALL])
    done = run("search", *ENOUGH, "method.frozen_epochs=1", "plan=true", f"folder={tmp_path / 'run'}")
    own, after = done.out.split("then, for an architecture at random:\n")
    assert own.startswith("plan of a search: digits, darts, order 1, seed 0\n")
    assert after.startswith("plan of a retrain: digits, seed 0\n")
    said = lines(done._replace(out=own))
    number, size = r"[\d.]+", r"[\d.]+ [MG]B"
    assert said["training"] == "3 epochs (0 to 2) of 9 steps, and 12 validation batches"
    frozen = "in the first epochs, which train the weights only"
    assert re.fullmatch(rf"{number} s; {number} s {frozen}; {number} s a validation batch", said["step"])
    assert re.fullmatch(rf"{size} at most, of {size} that can be had", said["memory"])
    assert re.fullmatch(r"about .*\d s", said["time"])
    assert re.fullmatch(rf"about {size}, mostly two checkpoints", said["disk"])
    assert "3,853,760" not in after  # the retrain's network is its own
    assert lines(done._replace(out=after)).keys() == said.keys()
    assert not any(tmp_path.iterdir())


def test_of_a_run_with_fewer_steps_than_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_plan_of_retrain", lambda *args: "")
    said = lines(run("search", *SEARCH, "plan=true", f"folder={tmp_path / 'run'}"))
    assert said["training"] == "1 epoch (0) of 2 steps, and 1 validation batches"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("typed", "part"),
    [
        (["-m", "seed=0,1"], "plan is for a single run, without --multirun"),
        (["resume=nowhere"], "plan=true is for a run that has not begun; leave out resume=..."),
        (["trainer=ddp_cpu"], "plan=true needs one process (trainer.devices=1), got 2"),
        (["plan=maybe"], "plan must be true or false, got 'maybe'"),
    ],
)
def test_refused(typed: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert part in refused(run("search", *SEARCH, "plan=true", "folder=run", *typed))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_does_not_fit_is_refused_with_what_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A process of 1 GB, and 1 MB a sample: a batch of 360 is too much for 1.3 GB.
    sizes: list[int] = []
    monkeypatch.setattr(plan, "memory_limit", lambda device: 1_300_000_000)
    monkeypatch.setattr(plan, "peak_memory", lambda device: 1_000_000_000 + 1_000_000 * sizes[-1])
    score = plan._Probe.on_train_batch_end

    def end(self: _Probe, *args: Any) -> None:
        assert self._next is not None
        sizes.append(self._next[0])
        score(self, *args)

    monkeypatch.setattr(plan._Probe, "on_train_batch_end", end)
    line = refused(
        run("retrain", *RETRAIN, "genotype=DARTS_V1", "data.batch_size=360", "plan=true", f"folder={tmp_path / 'run'}")
    )
    assert (
        "data.batch_size=360 needs about 1.36 GB of memory, 1.3 GB can be had; data.batch_size=168 fits, with about 1.17 GB"
        in line
    )
    assert sizes == [2, 8, 32], "a batch that does not fit is not tried"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (3000, "needs about 0.00324 MB of memory, 0.003 MB can be had; data.batch_size=32 fits, with about 0.00196 MB"),
        (900, "needs about 0.00324 MB of memory, 0.0009 MB can be had; data.batch_size=3 fits, with about 0.0008 MB"),
        (
            700,
            "needs about 0.00324 MB of memory, 0.0007 MB can be had; a smaller network is needed, such as with fewer "
            "space.channels",
        ),
    ],
)  # fmt: skip
def test_the_batch_that_fits(limit: int, text: str) -> None:
    probe = _Probe(cast(Any, SimpleNamespace()), cast(Any, None))
    probe.whole, probe.limit = 64, limit
    probe.taken = [_Taken(size, False, 1.0, used) for size, used in ((2, 100), (8, 1000), (32, 1960))]
    needed = probe._memory_of(64)
    assert str(probe._does_not_fit(needed)) == f"data.batch_size=64 {text}"
    with pytest.raises(ValueError, match=r"data.batch_size=64 needs about"):
        probe._check()


def test_memory_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("max", "1000\n"), ("current", "700\n"), ("stat", "anon 600\ninactive_file 50\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert devices._left_in_group(tmp_path) == 1000 - 700 + 50
    (tmp_path / "memory.max").write_text("max\n")
    assert devices._left_in_group(tmp_path) == float("inf")
    assert devices._left_in_group(tmp_path / "none") == float("inf")
