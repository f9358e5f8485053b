"""Stopping and resuming: the end is exactly that of a run that was never stopped."""

from __future__ import annotations

import fcntl
import math
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import RETRAIN, SEARCH, assert_same, begin, contents, read_csv, read_json, refused, run, state_of, until
from lightning.pytorch.callbacks import Timer
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from src.common.shell import override
from src.runs import checkpoints
from src.runs.checkpoints import newest
from src.runs.folder import RunFolder
from src.runs.resume import present_command
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
    @pytest.mark.parametrize("steps", [1, 4, 11])  # after the first, between epochs, before the last
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

    @pytest.mark.slow
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
        assert "epochs must be 4 or more" in refused(run(command, f"resume={folder}"))
        assert (folder / "result.json").exists()
        done = run(command, f"resume={folder}", "epochs=4")
        assert done.code == 0, done.err
        result = read_json(folder / "result.json")
        assert (result["status"], result["epochs"], result["planned_epochs"]) == ("ok", 4, 4)
        words = shlex.split(result["command"])
        assert "epochs=4" in words
        assert not [word for word in words if word.startswith(("epochs=3", "resume="))]
        first, second = result["commands"]
        assert "epochs=3" in first
        assert second == f"python -m src.{command} resume={folder} epochs=4"
        before, after = (contents(path)["metrics.csv"].decode().splitlines() for path in (straight[command], folder))
        assert after[: len(before)] == before
        assert len(after) == len(before) + 1


def kill_and_resume(straight: Path, folder: Path, *, times: int, seed: int) -> None:
    """Kill a search at random moments of its training, resume it after each, and compare its end."""
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


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_signal_leaves_a_checkpoint_and_a_command_that_can_be_pasted(
    number: int, code: int, straight: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "rené's run, lr=0.1 (2)"
    process = begin("search", *LONG_SEARCH, override("folder", folder))
    until((folder / "checkpoints" / "last.ckpt").exists, process)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == code, err
    result = read_json(folder / "result.json")
    assert result["status"] == "interrupted"
    assert result["stopped_by"] == signal.Signals(number).name
    assert result["error"] in err
    assert "Traceback" not in out + err
    command = result["error"].partition("to continue: ")[2]
    pasted = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    python, option, module, *overrides = pasted.stdout.splitlines()
    assert (python, option, module) == ("python", "-m", "src.search")
    done = run("search", *overrides)
    assert done.code == 0, done.err
    assert_same(state_of(folder), state_of(straight["search"]))


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that was cut off in its second epoch."""
    folder = tmp_path_factory.mktemp("cut_off") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(6, patch)
        assert run("search", *LONG_SEARCH, f"folder={folder}").code == 1
    return folder


class TestFaults:
    @pytest.fixture
    def stopped(self, cut_off: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(cut_off, tmp_path / "run"))

    @pytest.mark.parametrize("damage", ["truncated", "flipped"])
    def test_damaged_last_checkpoint(self, damage: str, stopped: Path, straight: dict[str, Path]) -> None:
        path = stopped / "checkpoints" / "last.ckpt"
        data = bytearray(path.read_bytes())
        if damage == "flipped":  # one bit of a weight
            weights = torch.load(path, weights_only=True)["state_dict"]
            largest = max(weights.values(), key=Tensor.numel)
            data[data.index(largest.numpy().tobytes()) + 5] ^= 1
        path.write_bytes({"truncated": data[:-1000], "flipped": data}[damage])
        done = run("search", f"resume={stopped}")
        assert done.code == 0, done.err
        assert "damaged" in done.err
        assert "using previous.ckpt" in done.err
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
        assert "is for another network" in refused(run("search", f"resume={stopped}"))

    def test_checkpoint_of_another_version(self, stopped: Path) -> None:
        for name in ("last.ckpt", "previous.ckpt"):
            path = stopped / "checkpoints" / name
            torch.save({**torch.load(path, weights_only=True), "format": 99}, path)
        assert "must have format 1 to be read by this version, got 99" in refused(run("search", f"resume={stopped}"))

    def test_pickle_is_not_executed(self, stopped: Path, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "evil"),)

        for name in ("last.ckpt", "previous.ckpt"):
            torch.save({"format": 1, "state_dict": Evil()}, stopped / "checkpoints" / name)
        assert "damaged checkpoint, or not a checkpoint" in refused(run("search", f"resume={stopped}"))
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
        assert "data.batch_size=48 needs about half as much" in done.err


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let `trainer.max_time` be reached after so many steps of a process."""
    steps = 0
    original = TrainingModule.on_train_batch_start

    def counted(self: TrainingModule, batch: Any, batch_idx: int) -> None:
        nonlocal steps
        steps += 1
        original(self, batch, batch_idx)

    def limit(number: int) -> None:
        nonlocal steps
        steps = 0
        monkeypatch.setattr(Timer, "time_elapsed", lambda *args: 1e9 if steps >= number else 0.0)

    monkeypatch.setattr(TrainingModule, "on_train_batch_start", counted)
    return limit


class TestCutShort:
    """Runs that end before their last epoch for another reason than a signal or a failure."""

    @pytest.mark.parametrize(("command", "steps", "epochs"), [("search", 6, 1), ("retrain", 4, 1)])
    def test_by_time(
        self,
        command: str,
        steps: int,
        epochs: int,
        straight: dict[str, Path],
        tmp_path: Path,
        limited: Callable[[int], None],
    ) -> None:
        folder = tmp_path / "run"
        settings = LONG_SEARCH if command == "search" else LONG_RETRAIN
        limited(steps)
        done = run(command, *settings, "+trainer.max_time=00:01:00:00", f"folder={folder}")
        assert done.code == 1
        result = read_json(folder / "result.json")
        assert (result["status"], result["epochs"], result["planned_epochs"]) == ("interrupted", epochs, 3)
        assert result["stopped_by"] == "trainer.max_time"
        text = f"stopped by trainer.max_time after {epochs} of 3 epochs; to continue: python -m src.{command} resume={folder}"
        assert result["error"] == text
        assert done.err.splitlines()[-1] == f"error: {text}"
        limited(2)  # the time of a process, not of the run: each resume gets further
        assert run(command, f"resume={folder}").code == 1
        assert read_json(folder / "result.json")["epochs"] == (steps + 2) // 4
        done = run(command, f"resume={folder}", "+trainer.max_time=null")
        assert done.code == 0, done.err
        assert_same(state_of(folder), state_of(straight[command]))

    def test_by_steps(self, straight: dict[str, Path], tmp_path: Path) -> None:
        folder = tmp_path / "run"
        for arguments in ([*LONG_RETRAIN, "trainer.max_steps=3", f"folder={folder}"], [f"resume={folder}"]):
            done = run("retrain", *arguments)
            assert done.code == 1
            assert "stopped by trainer.max_steps=3 after 0 of 3 epochs" in done.err
            assert read_json(folder / "result.json")["status"] == "interrupted"
        done = run("retrain", f"resume={folder}", "trainer.max_steps=-1")
        assert done.code == 0, done.err
        assert_same(state_of(folder), state_of(straight["retrain"]))

    def test_by_early_stopping(self, tmp_path: Path) -> None:
        early = "+callbacks.early={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: train_loss, "
        early += "stopping_threshold: 1000.0}"
        sweep = ["--multirun", *LONG_SEARCH, early, "seed=0"]
        assert run("search", *sweep, f"folder={tmp_path}").code == 0
        result = read_json(tmp_path / "0" / "result.json")
        assert (result["status"], result["epochs"], result["planned_epochs"]) == ("ok", 1, 3)
        assert result["stopped_by"].startswith("EarlyStopping: ")
        assert result["genotype"]
        # It is what the callback decided: a sweep takes the run as finished.
        assert "finished before" in run("search", *sweep, f"sweep.resume={tmp_path}").out

    def test_without_batches(self, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        done = run("search", *LONG_SEARCH, "trainer.limit_train_batches=0", f"folder={folder}")
        assert done.code == 1
        assert "there are no training batches (trainer.limit_train_batches=0)" in done.err
        assert read_json(folder / "result.json")["status"] == "failed"


def test_checkpoints_of_a_callback_leave_those_of_the_run_alone(straight: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    best = "+callbacks.best={_target_: lightning.pytorch.callbacks.ModelCheckpoint, monitor: val_accuracy, mode: max, "
    best += f"dirpath: {tmp_path}/a/best, filename: best, enable_version_counter: false, save_last: true}}"
    done = run("search", *LONG_SEARCH, best, f"folder={folder}")
    assert done.code == 0, done.err
    assert {path.name for path in (tmp_path / "a" / "best").iterdir()} == {"best.ckpt", "last.ckpt"}
    own = [torch.load(folder / "checkpoints" / name, weights_only=True) for name in ("last.ckpt", "previous.ckpt")]
    assert own[0]["global_step"] > own[1]["global_step"]
    state = state_of(folder)
    state["callbacks"] = {name: part for name, part in state["callbacks"].items() if "ModelCheckpoint" not in name}
    assert_same(state, state_of(straight["search"]))


def test_retrain_records_the_rate_that_an_epoch_was_trained_with(straight: dict[str, Path]) -> None:
    for command in ("search", "retrain"):
        weights = OmegaConf.load(straight[command] / "config.yaml").optimizer
        floor = weights.schedule.get("eta_min", 0)
        rates = [floor + (weights.weights.lr - floor) * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in range(3)]
        assert [float(row["lr"]) for row in read_csv(straight[command] / "metrics.csv")] == pytest.approx(rates)


def test_another_number_of_threads_is_said(
    straight: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(straight["search"], folder)
    machine = read_json(folder / "result.json")["machine"]
    assert (machine["processes"], machine["threads"], machine["deterministic"]) == (1, torch.get_num_threads(), False)
    assert machine["device"].startswith("cpu ")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    done = run("search", f"resume={folder}", "epochs=4")
    assert done.code == 0
    (line,) = done.err.splitlines()
    assert line.startswith(
        f"resumed with threads=77 (before: {machine['threads']}): results will differ in the last digits"
    )


class TestData:
    """A resumed run may find its data in another place, but they must be the same data."""

    @pytest.fixture
    def moved(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
        """A run on a folder of images that was given as a relative path; the folder has been moved since."""
        root = tmp_path / "pets"
        for split in ("train", "test"):
            for name, grey in (("cat", 20), ("dog", 200)):
                (root / split / name).mkdir(parents=True)
                for index in range(6):
                    Image.new("L", (8, 8), grey + index).save(root / split / name / f"{index}.png")
        data = ["data=image_folder", "data.source.root=pets", "data.batch_size=4"]
        folder = tmp_path / "run"
        monkeypatch.chdir(tmp_path)
        done = run("search", *SEARCH[1:], *data, "callbacks=none", f"folder={folder}")
        assert done.code == 0, done.err
        return folder, root.rename(tmp_path / "animals")

    def test_in_another_place(self, moved: tuple[Path, Path]) -> None:
        folder, root = moved
        before = contents(folder)
        assert str(root.parent / "pets") in refused(run("search", f"resume={folder}", "epochs=2"))
        assert contents(folder) == before
        done = run("search", f"resume={folder}", "epochs=2", f"data.source.root={root.name}")
        assert done.code == 0, done.err
        assert f"data.source.root={root.name}" in shlex.split(read_json(folder / "result.json")["command"])

    def test_from_another_directory(self, moved: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        folder, root = moved
        root.rename(root.parent / "pets")
        monkeypatch.chdir("/")
        assert run("search", f"resume={folder}", "epochs=2").code == 0

    @pytest.mark.parametrize("change", ["an image less", "another class"])
    def test_other_data(self, change: str, moved: tuple[Path, Path]) -> None:
        folder, root = moved
        if change == "an image less":
            (root / "train" / "cat" / "0.png").unlink()
        else:
            shutil.copytree(root / "train" / "cat", root / "train" / "cow")
            shutil.copytree(root / "test" / "cat", root / "test" / "cow")
        before = contents(folder)
        line = refused(run("search", f"resume={folder}", "epochs=2", f"data.source.root={root}"))
        assert f"the data must be those that the run in {folder} was trained on" in line
        assert contents(folder) == before


@pytest.mark.parametrize(
    ("commands", "present"),
    [
        (["a=1 epochs=6"], "a=1 epochs=6"),
        (["a=1 epochs=6", "resume=x", "resume=x epochs=8"], "a=1 epochs=8"),
        (["trainer=cpu trainer.limit_test_batches=2 +trainer.x=1", "resume=x trainer=gpu"],
         "trainer.limit_test_batches=2 trainer=gpu"),
        (["trainer=cpu", "resume=x +trainer.max_time=1"], "trainer=cpu +trainer.max_time=1"),
        (["seed=0 epochs=1", "seed=0 epochs=2"], "seed=0 epochs=2"),  # a job of a sweep, resumed
        (["data.source.root='a b'", "resume=x data.source.root=c"], "data.source.root=c"),
    ],
)  # fmt: skip
def test_command_of_a_resumed_run(commands: list[str], present: str) -> None:
    assert present_command([f"python -m src.search {text}" for text in commands]) == f"python -m src.search {present}"


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("a/run", "a/run"),
        ("a/run/checkpoints", "a/run"),
        ("a/run/checkpoints/", "a/run"),
        ("a/run/checkpoints/last.ckpt", "a/run"),
        ("a/run/checkpoints/previous.ckpt", "a/run"),
        ("a/run/checkpoints/other.ckpt", "a/run/checkpoints/other.ckpt"),
        ("a/run/last.ckpt", "a/run/last.ckpt"),
    ],
)
def test_folder_of_a_run(path: str, folder: str) -> None:
    assert RunFolder.of(path).path == Path(folder)


def test_folder_of_a_run_seen_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.chdir(tmp_path / "checkpoints")
    assert RunFolder.of("last.ckpt").path == tmp_path
    monkeypatch.chdir(tmp_path)
    assert RunFolder.of("checkpoints").path == tmp_path
    (tmp_path / "checkpoints" / "config.yaml").touch()
    assert RunFolder.of("checkpoints").path == Path("checkpoints")  # a run that is called so


class TestBadResume:
    def test_typed(self, straight: dict[str, Path], tmp_path: Path) -> None:
        folder = straight["search"]
        before = contents(folder)
        (tmp_path / "other.ckpt").touch()
        for typed, part in (
            ([f"resume={tmp_path / 'nowhere'}"], "holds no run to resume"),
            ([f"resume={tmp_path / 'nowhere' / 'checkpoints' / 'last.ckpt'}"], "holds no run to resume"),
            ([f"resume={tmp_path / 'other.ckpt'}"], "resume must be the folder of a run, or its checkpoint"),
            ([f"resume={folder / 'checkpoints' / 'last.ckpt'}"], f"{folder} has finished its 3 epochs"),
            ([f"resume={folder / 'checkpoints'}"], f"{folder} has finished its 3 epochs"),
            ([f"resume={folder}", "seed=1", "epochs=9"], "seed cannot change in a resumed run"),
            ([f"resume={folder}", "experiment=demo"], "experiment cannot change in a resumed run"),
            (
                [f"resume={folder}", "checkpoint_minutes=-1", "epochs=9"],
                "checkpoint_minutes must be 0 (every step) or more",
            ),
            ([f"sweep.resume={folder}"], "sweep.resume needs --multirun"),
        ):
            assert part in refused(run("search", *typed))
        assert "python -m src.search resume=" in refused(run("retrain", f"resume={folder}"))
        assert contents(folder) == before
        assert not (tmp_path / "nowhere").exists()


class TestSweep:
    def test_interrupted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*args: Any) -> None:
            raise KeyboardInterrupt

        folder = tmp_path / "a sweep, of é"
        monkeypatch.setattr(TrainingModule, "on_train_batch_start", interrupt)
        handler = signal.getsignal(signal.SIGINT)
        try:
            done = run("search", "--multirun", *SEARCH, "callbacks=none", "seed=0,1", override("folder", folder))
        finally:
            signal.signal(signal.SIGINT, handler)  # Lightning ignores further ones while it shuts down
        assert done.code == 130
        hint = f"""to continue: the same command with "sweep.resume='{folder}'\""""
        assert hint in done.err
        assert hint in read_json(folder / "seed=0" / "result.json")["error"]
        assert not (folder / "seed=1").exists()

    def test_completed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sweep = ["--multirun", *SEARCH, "callbacks=none", "seed=0,1,2"]
        folder = tmp_path / "sweep"
        assert run("search", *sweep, f"folder={folder}").code == 0
        finished = contents(folder / "seed=1")
        shutil.rmtree(folder / "seed=2")
        with monkeypatch.context() as patch:
            stop_after(1, patch)
            shutil.rmtree(folder / "seed=0")
            assert run("search", *sweep, f"sweep.resume={folder}").code == 1
        assert read_json(folder / "seed=0" / "result.json")["status"] == "failed"
        done = run("search", *sweep, f"sweep.resume={folder}")
        assert done.code == 0, done.err
        assert "seed=1: finished before" in done.out
        assert contents(folder / "seed=1") == finished
        results = [read_json(folder / f"seed={seed}" / "result.json") for seed in range(3)]
        assert [(result["status"], result["seed"]) for result in results] == [("ok", 0), ("ok", 1), ("ok", 2)]

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
    with pytest.raises(ValueError, match="must hold 1000 bytes or fewer"):
        checkpoints.load(path, largest=1000)


@pytest.mark.parametrize("facts", [None, 3, {}, {"machine": 3, "data": 3}, {"machine": {"threads": []}, "data": {}}])
def test_facts_of_a_strangers_checkpoint(facts: Any, tmp_path: Path) -> None:
    module, files = torch.nn.Linear(1, 1), RunFolder(tmp_path)
    parts = {name: kind() for name, kind in checkpoints.PARTS.items()}
    files.checkpoints.mkdir()
    torch.save({**parts, "format": 1, "state_dict": module.state_dict(), "run": facts}, files.last)
    if isinstance(facts, dict):
        assert newest(files, module, data={"classes": ["a"]}) is not None
    else:
        with pytest.raises(ValueError, match="was not written by this code: it holds no dict 'run'"):
            newest(files, module)
