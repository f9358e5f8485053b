"""Sweeps whose jobs run in processes of their own, through Hydra's launchers."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
import torch
from commands import SEARCH, begin, read_json, start, until

from src.runs import devices
from src.runs.folder import RunFolder

SWEEP = ["-m", "src.search", "--multirun", *SEARCH, "callbacks=none"]


@pytest.mark.parametrize(
    ("plugin", "settings"),
    [
        ("hydra_plugins.hydra_joblib_launcher", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
        ("hydra_plugins.hydra_submitit_launcher", ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]),
    ],
)
@pytest.mark.slow
def test_a_refused_job_does_not_cost_the_other(plugin: str, settings: list[str], tmp_path: Path) -> None:
    pytest.importorskip(plugin)
    done = start(*SWEEP, *settings, "data.batch_size=0,96", f"folder={tmp_path}")
    assert done.code == 2, done
    refused, ok = (read_json(tmp_path / f"data.batch_size={size}" / "result.json") for size in (0, 96))
    assert (refused["status"], ok["status"]) == ("failed", "ok")
    assert "batch_size must be 1 or more, got 0" in refused["error"]


@pytest.mark.slow
def test_sigterm_stops_the_jobs_too(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    folder = tmp_path / "sweep"
    longer = ["--multirun", *SEARCH, "epochs=1000", "seed=0,1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = begin("search", *longer, f"folder={folder}")
    first = [RunFolder(folder / f"seed={seed}") for seed in (0, 1)]
    until(lambda: all(run.metrics.exists() for run in first), process)
    process.terminate()
    out, err = process.communicate(timeout=300)  # the pipes end with the last of the processes that write into them
    assert process.returncode == 143, err
    assert "the sweep was stopped" in err
    assert "Traceback" not in err
    for run in first:
        assert read_json(run.result)["status"] == "interrupted"
        assert run.last.exists()
        assert f"[{run.path.name}] search: digits" in out
    assert not RunFolder(folder / "seed=2").config.exists()


@pytest.mark.parametrize(("inside", "says"), [(1, True), (3, False)])
def test_a_job_with_fewer_threads_says_so(
    inside: int, says: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: inside)
    devices.say_threads(3)
    err = capsys.readouterr().err
    assert ("this job has 1 thread(s), the command that started it 3" in err) == says
    assert err.count("\n") == says


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="GPUs are told apart by flock, which Windows does not have")
def test_jobs_side_by_side_have_a_gpu_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert devices.own_gpu(2) == 0
    assert devices.own_gpu(2) == 0  # this process's next job
    (other,) = tmp_path.glob("darts-gpu-*-0.lock")
    with open(str(other).replace("-0.lock", "-1.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert devices.own_gpu(2) == 0
        monkeypatch.setattr(devices, "_gpu_lock", None)  # as in another process
        with pytest.raises(ValueError, match="all 2 GPUs are in use by jobs of a sweep"):
            devices.own_gpu(2)
    assert devices.own_gpu(2) == 1
