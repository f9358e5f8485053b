"""A space, data and callbacks of one's own, from a package beside the current folder, by `X._target_=...` alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, SHORT, contents, read_csv, read_json, refused, run
from omegaconf import OmegaConf

PACKAGE = '''
import torch
from torch import nn

from src.common.errors import must_be
from src.data.sources import Digits
from src.spaces.choices import LayerChoice


class MySpace(nn.Module):
    def __init__(self, *, input_shape, num_classes: int, depth: int = 2):
        super().__init__()
        if depth < 1:
            raise must_be("depth", "1 or more", depth)
        if depth == 13:
            raise ValueError("a mistake in code")
        layers = [nn.Conv2d(input_shape[0], 4, 3, padding=1)]
        for index in range(depth):
            candidates = {"conv": nn.Conv2d(4, 4, 3, padding=1), "skip": nn.Identity()}
            layers.append(LayerChoice(candidates, key=f"layer{index}"))
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(self.layers(x).mean((2, 3)))


class MySource(Digits):
    """The same digits under another name."""

    def __init__(self):
        super().__init__()
        self.name = "mine"
'''
QUICK = ["data=digits", *SHORT, "callbacks=none"]
SPACE = "space._target_=my_own_package.MySpace"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the current one, with a package in it."""
    (tmp_path / "my_own_package").mkdir()
    (tmp_path / "my_own_package" / "__init__.py").write_text(PACKAGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for command in ("search", "retrain"):
        monkeypatch.setattr(f"src.{command}.write_report", lambda folder: folder / "report.html")
    for name in [name for name in sys.modules if name.startswith("my_own_")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_a_space_in_a_sweep_and_resumed(here: Path) -> None:
    done = run("search", "-m", *QUICK, SPACE, "space.depth=1,2", "folder=sweep")
    assert (done.code, done.err) == (0, "")
    for depth in (1, 2):
        folder = here / "sweep" / f"space.depth={depth}"
        assert OmegaConf.load(folder / "config.yaml").space == {"_target_": SPACE.partition("=")[2], "depth": depth}
        assert set(read_json(folder / "genotype.json")) == {f"layer{index}" for index in range(depth)}
        assert f"{SPACE} space.depth={depth}" in read_json(folder / "result.json")["command"]
    done = run("search", "resume=sweep/space.depth=1", "epochs=2")
    assert (done.code, done.err) == (0, "")
    assert len(read_csv(here / "sweep" / "space.depth=1" / "metrics.csv")) == 2


def test_a_source_and_optimisers(here: Path) -> None:
    done = run(
        "search", *QUICK, SPACE, "data.source._target_=my_own_package.MySource",
        "optimizer.weights._target_=torch.optim.Adam", "optimizer.weights.lr=0.01",
        "optimizer.schedule._target_=torch.optim.lr_scheduler.StepLR", "optimizer.schedule.step_size=1",
        "optimizer.alphas._target_=torch.optim.SGD",
        "callbacks.extra._target_=lightning.pytorch.callbacks.Timer", "epochs=2", "folder=run",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert read_json(here / "run" / "result.json")["data"]["name"] == "mine"
    assert [float(row["lr"]) for row in read_csv(here / "run" / "metrics.csv")] == pytest.approx([0.01, 0.001])


def test_no_schedule_is_a_constant_rate(here: Path) -> None:
    done = run("search", *QUICK, SPACE, "optimizer.schedule=null", "epochs=3", "folder=run")
    assert (done.code, done.err) == (0, "")
    assert {float(row["lr"]) for row in read_csv(here / "run" / "metrics.csv")} == {0.025}
    assert run("search", "resume=run", "epochs=4").code == 0


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("space.dept=3", "unknown key 'dept' in space, did you mean 'depth'? (allowed: depth)"),
        ("space.depth=ten", "space.depth must be a whole number, got 'ten'"),
        ("space.depth=0", "space.depth must be 1 or more, got 0"),
        ("space.channels=4", "unknown key 'channels' in space (allowed: depth)"),
        (
            "space._target_=my_own_package.MySpce",
            "my_own_package has no 'MySpce', did you mean my_own_package.MySpace?",
        ),
        ("space._target_=my_own_pakage.MySpace", "there is no module 'my_own_pakage' in the current folder"),
        (
            "optimizer.weights._target_=torch.optim.LBFGSS",
            "torch.optim has no 'LBFGSS', did you mean torch.optim.LBFGS?",
        ),
        ("optimizer.weights.lr=-1", "optimizer.weights: Invalid learning rate: -1.0"),
        (
            "optimizer.schedule._target_=torch.optim.lr_scheduler.StepLR",
            "optimizer.schedule: StepLR.__init__() missing 1 required positional argument: 'step_size'",
        ),
        (
            "optimizer.schedule._target_=torch.optim.lr_scheduler.ReduceLROnPlateau",
            "optimizer.schedule must be a function of the epoch, ReduceLROnPlateau needs a metric",
        ),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches=2 is not supported: a search steps"),
        ("trainer.gradient_clip_val=1", "trainer.gradient_clip_val=1 is not supported: set optimizer.gradient_clip"),
        ("trainer.max_steps=4", "trainer.max_steps=4 is not supported: Lightning counts the steps of both optimisers"),
        ("trainer.fast_dev_run=true", "trainer.fast_dev_run=true is not supported: it leaves out checkpoints"),
        ("trainer.precision=foo", "trainer.precision must be 64 or 32 or 16 or transformer-engine"),
        ("trainer.logger=true", "trainer.logger is set by the command, remove it"),
        (
            "logger=none callbacks.own._target_=lightning.pytorch.callbacks.LearningRateMonitor",
            "callbacks.own: LearningRateMonitor needs a logger, such as logger=tensorboard",
        ),
        (
            "+callbacks.own={_target_:lightning.pytorch.callbacks.StochasticWeightAveraging,swa_lrs:0.1}",
            "callbacks.own: a search cannot use StochasticWeightAveraging, which works with one optimiser",
        ),
    ],
)
def test_refused_in_one_line(typed: str, line: str, here: Path) -> None:
    before = contents(here)
    assert line in refused(run("search", *QUICK, SPACE, *typed.split(), "folder=run"))
    assert contents(here) == before
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("typed", "text", "last"),
    [
        (["space.depth=13"], 'raise ValueError("a mistake in code")', "ValueError: a mistake in code"),
        (
            ["space._target_=my_own_broken.Space"],
            "import no_such_module_here",
            "ModuleNotFoundError: No module named 'no_such_module_here'",
        ),
    ],
)
def test_a_mistake_in_code_keeps_its_traceback(typed: list[str], text: str, last: str, here: Path) -> None:
    (here / "my_own_broken.py").write_text("import no_such_module_here\n")
    done = run("search", *QUICK, SPACE, *typed, "folder=run")
    assert (done.code, done.out) == (1, "")
    lines = done.err.splitlines()
    assert (lines[0], lines[-2].strip(), lines[-1]) == ("Traceback (most recent call last):", text, last)
    assert len([line for line in lines if line.startswith("  File ")]) == 1
    assert not (here / "run").exists()
    done = run("search", "-m", *QUICK, SPACE, *typed, "seed=0", "folder=sweep")
    assert done.code == 1
    assert read_json(here / "sweep" / "0" / "result.json")["error"] == last.partition(": ")[2]


@pytest.mark.slow
def test_the_current_folder_counts_for_a_console_script(here: Path) -> None:
    # As such a script does it: the folder of the script comes first on the path, not the current one.
    script = f"import sys; sys.path[:1] = [{str(ROOT)!r}]; from src.search import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, *QUICK, SPACE, "folder=run", "space.depth=1"],
        cwd=here, env={**os.environ, "PYTHONSAFEPATH": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(read_json(here / "run" / "genotype.json")) == {"layer0"}
