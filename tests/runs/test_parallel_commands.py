"""The commands on two processes, `trainer=ddp_cpu`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from commands import RETRAIN, SEARCH, assert_same, begin, contents, read_csv, read_json, run, state_of, until

# Float64 and no augmentation, which differs between processes: two halves of a batch are then one whole batch.
PLAIN = ["trainer.precision=64-true", "data.flip=false", "data.crop_padding=0", "callbacks=none"]
TWO = ["trainer=ddp_cpu", "trainer.limit_train_batches=3", "trainer.limit_val_batches=null", "data.batch_size=32"]
LONG = [*SEARCH, *TWO, "order=2", "epochs=2", "checkpoint_minutes=0", "callbacks=none"]
FILES = {"genotype.json", "metrics.csv", "alphas.csv"}


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


def finish(command: str, *overrides: str) -> str:
    process = begin(command, *overrides)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        finish("search", *LONG, f"folder={folder}")
    return folder


def assert_rows_close(one: Path, other: Path) -> None:
    for left, right in zip(read_csv(one), read_csv(other), strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            try:
                assert float(value) == pytest.approx(float(right[name]), rel=1e-5), name  # metrics are float32
            except ValueError:
                assert value == right[name]


@pytest.mark.slow
def test_search_on_halves_of_batches_equals_one_process(tmp_path: Path) -> None:
    out = finish(
        "search", *SEARCH, *TWO, *PLAIN, "order=2", "trainer.sync_batchnorm=true", f"folder={tmp_path / 'two'}"
    )
    one = run(
        "search", *SEARCH, *PLAIN, "order=2", "data.batch_size=64", "trainer.limit_train_batches=3",
        "trainer.limit_val_batches=null", f"folder={tmp_path / 'one'}",
    )  # fmt: skip
    assert one.code == 0, one.err
    assert out.count("search: digits") == out.count("genotype  ") == 1
    assert set(contents(tmp_path / "two")) == set(contents(tmp_path / "one"))
    assert read_json(tmp_path / "two" / "genotype.json") == read_json(tmp_path / "one" / "genotype.json")
    for name in ("metrics.csv", "alphas.csv"):
        assert_rows_close(tmp_path / "two" / name, tmp_path / "one" / name)


@pytest.mark.slow
def test_retrain_on_halves_of_batches_equals_one_process(tmp_path: Path) -> None:
    plain = [*PLAIN, "data.cutout=0", "genotype=DARTS_V2", "trainer.limit_test_batches=null"]
    two, one = tmp_path / "two", tmp_path / "one"
    finish("retrain", *RETRAIN, *TWO, *plain, "trainer.sync_batchnorm=true", f"folder={two}")
    done = run("retrain", *RETRAIN, *plain, "data.batch_size=64", "trainer.limit_train_batches=3", f"folder={one}")
    assert done.code == 0, done.err
    assert read_json(two / "result.json")["metrics"] == pytest.approx(
        read_json(one / "result.json")["metrics"], rel=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_and_resumed(number: int, straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = begin("search", *LONG, f"folder={folder}")
    until((folder / "checkpoints" / "last.ckpt").exists, process)
    process.send_signal(number)
    _, err = process.communicate()
    if number == signal.SIGTERM:
        assert process.returncode == 143, err
        assert read_json(folder / "result.json")["status"] == "interrupted"
    finish("search", f"resume={folder}")
    assert_same(state_of(folder), state_of(straight))


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed if b"src.search" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.slow
def test_killed_worker_ends_the_run_with_a_result(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = begin("search", *LONG, "epochs=100", f"folder={folder}")
    until((folder / "checkpoints" / "last.ckpt").exists, process)
    (worker,) = children(process.pid)
    os.kill(worker, signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode not in (0, None), err
    assert read_json(folder / "result.json")["status"] == "failed"
    assert (folder / "checkpoints" / "last.ckpt").exists()
    time.sleep(0.5)
    assert not Path(f"/proc/{worker}/cmdline").exists() or not Path(f"/proc/{worker}/cmdline").read_bytes()


def test_job_of_a_sweep_has_one_device(tmp_path: Path) -> None:
    done = run("search", "--multirun", *SEARCH, "trainer=ddp_cpu", "seed=0", f"folder={tmp_path / 'sweep'}")
    assert done.code == 2
    assert "a job of a sweep must use one device (trainer.devices=1)" in done.err


def test_lightnings_own_ddp_is_refused(tmp_path: Path) -> None:
    done = run("search", *SEARCH, "trainer.devices=2", "trainer.strategy=ddp", f"folder={tmp_path / 'run'}")
    assert done.code == 2
    assert "trainer=ddp_cpu" in done.err


@pytest.mark.slow
def test_two_processes_roll_back_together(tmp_path: Path) -> None:
    """The run itself checks after each epoch that the processes have the same alphas."""
    guard = ["callbacks=robust", "callbacks.pictures=null", "callbacks.alphas=null", "callbacks.guard.action=roll_back"]
    guard += ["callbacks.guard.earliest_epoch=0", "callbacks.guard.entropy=1.2", "optimizer.alphas.lr=0.3"]
    finish("search", *LONG, *guard, "order=1", "epochs=3", f"folder={tmp_path}")
    result = read_json(tmp_path / "result.json")
    first = result["guard"]["events"][0]
    assert (first["epoch"], first["signals"], first["action"], first["returned_to"]) == (1, ["entropy"], "roll_back", 0)
    assert (result["status"], result["epochs"]) == ("ok", 3)
    assert len(result["guard"]["signals"]["eigenvalue"]["values"]) == 3
