"""Stopping and going on: the end is the same to the bit as that of a run that was never stopped."""

from __future__ import annotations

import fcntl
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import RETRAIN, SEARCH, assert_same, begin, contents, read_json, refused, run, state_of, until
from torch import Tensor

from src.runs import checkpoints
from src.runs.checkpoints import newest
from src.runs.folder import RunFolder
from src.training.module import TrainingModule

STEPS = ["epochs=3", "trainer.limit_train_batches=4", "checkpoint_minutes=0", "callbacks=none"]
LONG_SEARCH = [*SEARCH, "order=2", *STEPS]
LONG_RETRAIN = [*RETRAIN, "genotype=DARTS_V2", *STEPS]


class StoppedError(Exception):
    pass


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the run fail at the beginning of a step, as if it were cut off there."""
    count = 0
    original = TrainingModule.on_train_batch_start

    def counted(self: TrainingModule, batch: Any, batch_idx: int) -> None:
        nonlocal count
        count += 1
        if count > steps:
            raise StoppedError
        original(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "on_train_batch_start", counted)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for command, overrides in (("search", LONG_SEARCH), ("retrain", LONG_RETRAIN)):
        folder = folders[command] = tmp_path_factory.mktemp("straight") / command
        done = run(command, *overrides, f"folder={folder}")
        assert done.code == 0, done.err
    return folders


class TestExact:
    @pytest.mark.parametrize("command", ["search", "retrain"])
    @pytest.mark.parametrize("steps", [1, 3, 4, 6, 8, 11])
    def test_cut_off_and_resumed(
        self, command: str, steps: int, straight: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        overrides = LONG_SEARCH if command == "search" else LONG_RETRAIN
        folder = tmp_path / "run"
        with monkeypatch.context() as patch:
            stop_after(steps, patch)
            assert run(command, *overrides, f"folder={folder}").code == 1
        assert read_json(folder / "result.json")["status"] == "failed"
        done = run(command, f"resume={folder}")
        assert done.code == 0, done.err
        assert_same(state_of(folder), state_of(straight[command]))

    def test_killed_and_resumed(self, straight: dict[str, Path], tmp_path: Path) -> None:
        kill_and_resume(straight["search"], tmp_path / "run", times=2, seed=0)

    @pytest.mark.slow
    def test_killed_twenty_times_and_resumed(self, straight: dict[str, Path], tmp_path: Path) -> None:
        for attempt in range(20):
            kill_and_resume(straight["search"], tmp_path / str(attempt), times=1, seed=attempt)

    @pytest.mark.parametrize("command", ["search", "retrain"])
    def test_more_epochs(self, command: str, straight: dict[str, Path], tmp_path: Path) -> None:
        folder = tmp_path / "run"
        shutil.copytree(straight[command], folder)
        assert "epochs=4" in refused(run(command, f"resume={folder}"))
        assert (folder / "result.json").exists()
        done = run(command, f"resume={folder}", "epochs=4")
        assert done.code == 0, done.err
        assert read_json(folder / "result.json")["status"] == "ok"
        before, after = (contents(path)["metrics.csv"].decode().splitlines() for path in (straight[command], folder))
        assert after[: len(before)] == before
        assert len(after) == len(before) + 1


def kill_and_resume(straight: Path, folder: Path, *, times: int, seed: int) -> None:
    """Kill a search at random moments of its training, go on after each, and compare its end."""
    moments = random.Random(seed)
    for attempt in range(times):
        arguments = [*LONG_SEARCH, f"folder={folder}"] if attempt == 0 else [f"resume={folder}"]
        process = begin("search", *arguments)
        newest_file = folder / "checkpoints" / "last.ckpt"
        seen = newest_file.stat().st_mtime_ns if newest_file.exists() else 0
        until(lambda: newest_file.exists() and newest_file.stat().st_mtime_ns != seen, process)  # noqa: B023
        time.sleep(moments.uniform(0, 1.0))
        process.kill()
        process.communicate()
    if not (folder / "result.json").exists():
        done = run("search", f"resume={folder}")
        assert done.code == 0, done.err
    assert_same(state_of(folder), state_of(straight))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_leaves_a_checkpoint_and_the_command_to_go_on(
    number: int, code: int, straight: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = begin("search", *LONG_SEARCH, f"folder={folder}")
    until((folder / "checkpoints" / "last.ckpt").exists, process)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == code, err
    result = read_json(folder / "result.json")
    assert result["status"] == "interrupted"
    assert f"python -m src.search resume={folder}" in result["error"]
    assert f"python -m src.search resume={folder}" in err
    assert "Traceback" not in out + err
    done = run("search", f"resume={folder}")
    assert done.code == 0, done.err
    assert_same(state_of(folder), state_of(straight["search"]))


class TestFaults:
    @pytest.fixture
    def stopped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A search that was cut off in its second epoch."""
        folder = tmp_path / "run"
        with monkeypatch.context() as patch:
            stop_after(6, patch)
            assert run("search", *LONG_SEARCH, f"folder={folder}").code == 1
        return folder

    @pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
    def test_damaged_last_checkpoint(self, damage: str, stopped: Path, straight: dict[str, Path]) -> None:
        path = stopped / "checkpoints" / "last.ckpt"
        data = bytearray(path.read_bytes())
        if damage == "flipped":  # one bit of a weight
            weights = torch.load(path, weights_only=True)["state_dict"]
            largest = max(weights.values(), key=Tensor.numel)
            data[data.index(largest.numpy().tobytes()) + 5] ^= 1
        path.write_bytes({"truncated": data[:-1000], "flipped": data, "empty": b""}[damage])
        done = run("search", f"resume={stopped}")
        assert done.code == 0, done.err
        assert "last.ckpt is damaged" in done.err
        assert "going on from previous.ckpt" in done.err
        assert_same(state_of(stopped), state_of(straight["search"]))

    def test_both_checkpoints_damaged(self, stopped: Path) -> None:
        for name in ("last.ckpt", "previous.ckpt"):
            (stopped / "checkpoints" / name).write_bytes(b"nothing")
        before = contents(stopped)
        assert "damaged" in refused(run("search", f"resume={stopped}"))
        assert contents(stopped) == before

    def test_no_checkpoint_begins_anew(self, stopped: Path, straight: dict[str, Path]) -> None:
        shutil.rmtree(stopped / "checkpoints")
        assert run("search", f"resume={stopped}").code == 0
        assert_same(state_of(stopped), state_of(straight["search"]))

    def test_checkpoint_of_another_space(self, stopped: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        assert run("search", *SEARCH, "space.channels=2", f"folder={other}").code == 0
        shutil.copy(other / "checkpoints" / "last.ckpt", stopped / "checkpoints" / "last.ckpt")
        assert "is of another network" in refused(run("search", f"resume={stopped}"))

    def test_checkpoint_of_another_version(self, stopped: Path) -> None:
        for name in ("last.ckpt", "previous.ckpt"):
            path = stopped / "checkpoints" / name
            torch.save({**torch.load(path, weights_only=True), "format": 99}, path)
        assert "format 99, this version reads the format 1" in refused(run("search", f"resume={stopped}"))

    def test_pickle_is_not_executed(self, stopped: Path, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "evil"),)

        for name in ("last.ckpt", "previous.ckpt"):
            torch.save({"format": 1, "state_dict": Evil()}, stopped / "checkpoints" / name)
        assert "damaged or no checkpoint" in refused(run("search", f"resume={stopped}"))
        assert not (tmp_path / "evil").exists()

    def test_another_process_is_at_it(self, stopped: Path) -> None:
        with (stopped / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert "in use by another process" in refused(run("search", f"resume={stopped}"))

    def test_disk_full(self, tmp_path: Path) -> None:
        folder = tmp_path / "run"

        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # less than a checkpoint, more than the rest

        process = begin("search", *LONG_SEARCH, f"folder={folder}", preexec_fn=limit)
        _, err = process.communicate()
        assert process.returncode == 1
        assert err.startswith("error: cannot write ")
        assert err.count("\n") == 1, err
        assert read_json(folder / "result.json")["status"] == "failed"
        assert not list((folder / "checkpoints").glob("*.ckpt*"))

    @pytest.mark.parametrize("command", ["search", "retrain"])
    def test_gradient_that_is_not_finite(self, command: str, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        overrides = [*LONG_SEARCH, "order=1"] if command == "search" else LONG_RETRAIN
        done = run(command, *overrides, "optimizer.weights.lr=1e30", f"folder={folder}")
        assert done.code == 1
        assert done.err.startswith("error: the gradient of the ")
        assert "in epoch 0, step " in done.err
        assert done.err.count("\n") == 1
        assert read_json(folder / "result.json")["error"] == done.err.removeprefix("error: ").strip()
        assert (folder / "checkpoints" / "last.ckpt").exists()

    def test_out_of_memory_says_what_would_fit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def exhausted(self: TrainingModule, batch: Any, batch_idx: int) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(TrainingModule, "on_train_batch_start", exhausted)
        done = run("search", *SEARCH, "data.batch_size=96", f"folder={tmp_path / 'run'}")
        assert done.code == 1
        assert "data.batch_size=48 takes about half" in done.err


class TestBadResume:
    def test_typed(self, straight: dict[str, Path], tmp_path: Path) -> None:
        folder = straight["search"]
        before = contents(folder)
        for typed, part in (
            ([f"resume={tmp_path / 'nowhere'}"], "holds no run to go on with"),
            ([f"resume={folder}", "seed=1", "epochs=9"], "seed=1: a run goes on with its own settings"),
            ([f"resume={folder}", "checkpoint_minutes=-1", "epochs=9"], "checkpoint_minutes=-1"),
            ([f"sweep.resume={folder}"], "sweep.resume goes with --multirun"),
        ):
            assert part in refused(run("search", *typed))
        assert "python -m src.search resume=" in refused(run("retrain", f"resume={folder}"))
        assert contents(folder) == before
        assert not (tmp_path / "nowhere").exists()


class TestSweep:
    def test_completed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sweep = ["--multirun", *SEARCH, "callbacks=none", "seed=0,1,2"]
        folder = tmp_path / "sweep"
        assert run("search", *sweep, f"folder={folder}").code == 0
        finished = contents(folder / "1")
        shutil.rmtree(folder / "2")
        with monkeypatch.context() as patch:
            stop_after(1, patch)
            shutil.rmtree(folder / "0")
            assert run("search", *sweep, f"sweep.resume={folder}").code == 1
        assert read_json(folder / "0" / "result.json")["status"] == "failed"
        done = run("search", *sweep, f"sweep.resume={folder}")
        assert done.code == 0, done.err
        assert "1: finished before" in done.out
        assert contents(folder / "1") == finished
        assert [read_json(folder / str(job) / "result.json")["status"] for job in range(3)] == ["ok"] * 3
        assert [read_json(folder / str(job) / "result.json")["seed"] for job in range(3)] == [0, 1, 2]

    def test_of_other_settings(self, tmp_path: Path) -> None:
        folder = tmp_path / "sweep"
        assert run("search", "--multirun", *SEARCH, "callbacks=none", "seed=0", f"folder={folder}").code == 0
        done = run("search", "--multirun", *SEARCH, "callbacks=none", "seed=5", f"sweep.resume={folder}")
        assert done.code == 2
        assert "another seed" in done.err


def test_newest_of_no_folder_is_none(tmp_path: Path) -> None:
    assert newest(RunFolder(tmp_path), torch.nn.Linear(1, 1)) is None


def test_larger_than_the_run_could_write(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"format": 1, "state_dict": {"w": torch.zeros(1000)}}, path)
    with pytest.raises(ValueError, match="allowed are 1000 for this run"):
        checkpoints.load(path, largest=1000)
