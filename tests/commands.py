"""Running the commands as a user types them."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
SHORT = ["trainer=cpu", "epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
SMALL = ["space.channels=4", "space.cells=3"]
FEW = ["space.nodes=2", "space.candidates=[none,max_pool_3x3,skip_connect,sep_conv_3x3]"]
SEARCH = ["data=digits", *SHORT, *SMALL, *FEW, "diagnostics=none"]
RETRAIN = ["data=digits", *SHORT, *SMALL, "trainer.limit_test_batches=2"]


class Done(NamedTuple):
    code: object
    out: str
    err: str


def run(command: str, *overrides: str) -> Done:
    """Run a command in this process, as `python -m src.COMMAND OVERRIDES` would."""
    main = importlib.import_module(f"src.{command}").main
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", [command, *overrides])
        patch.setenv("HYDRA_FULL_ERROR", "0")  # the command sets it; it goes back with the rest
        # No power fails.
        patch.setattr("os.fsync", lambda file: None)
        # The objects of all tests would be gone through before each run.
        patch.setattr("src.runs.claim.unwatched_objects", contextlib.nullcontext)
        try:
            code: object = main()
        except SystemExit as leave:
            code = leave.code
    return Done(code, out.getvalue(), err.getvalue())


def start(*arguments: str, **environment: str) -> Done:
    """Run `python ARGUMENTS` as a process of its own, in the repository."""
    process = _python(*arguments, env={**os.environ, **environment})
    out, err = process.communicate()
    return Done(process.returncode, out, err)


def _python(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def begin(command: str, *overrides: str, **options: Any) -> subprocess.Popen[str]:
    """Start a command as a process of its own."""
    return _python("-m", f"src.{command}", *overrides, **options)


def refused(done: Done) -> str:
    """Check that a command was refused in one line, and return the line."""
    assert done.code == 2, done
    assert done.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", done.err), done.err
    return done.err


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of each file under a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def until(condition: Any, process: subprocess.Popen[str]) -> None:
    while not condition() and process.poll() is None:
        time.sleep(0.01)


def state_of(folder: Path) -> dict[str, Any]:
    """Return what a finished run came to, without what tells time."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    callbacks = {name: state for name, state in checkpoint["callbacks"].items() if "Checkpoints" not in name}
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "epoch_sums")
    files = {
        name: content
        for name, content in contents(folder).items()
        if name.endswith((".csv", ".json")) and name not in ("result.json", "steps.csv")
    }
    result = read_json(folder / "result.json")
    return {
        **{name: checkpoint[name] for name in kept},
        "callbacks": callbacks,
        "files": files,
        "metrics": result["metrics"],
        "genotype": result["genotype"],
        "status": result["status"],
    }


def assert_same(one: Any, other: Any, path: str = "") -> None:
    """Compare; every bit must be the same."""
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{path}/{index}")
    elif isinstance(one, Tensor):
        assert torch.equal(one, other), path
    else:
        assert one == other, path
