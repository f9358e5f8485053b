from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from small_search import fit

from src.callbacks import progress
from src.callbacks.progress import Progress
from src.callbacks.record import EpochAlphas
from src.common import terminal


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Tick(Progress):
    """A watcher in whose world a training batch takes 30 seconds, and a validation batch 5."""

    def __init__(self, clock: Clock, validation: float = 0.0) -> None:
        super().__init__()
        self.clock = clock
        self.validation = validation

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.clock.now += 30.0
        super().on_train_batch_end(*args, **kwargs)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.clock.now += self.validation
        super().on_validation_batch_end(*args, **kwargs)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def rows(out: str) -> list[list[str]]:
    """Return the cells of the table in what was printed, the names of its columns first."""
    return [re.split(r"  +", line.strip()) for line in out.splitlines() if "," not in line]


def test_a_row_an_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, _ = fit(tmp_path, EpochAlphas(tmp_path), Progress(), epochs=2)
    out, err = capsys.readouterr()
    names, first, last = rows(out)
    assert names == ["epoch", "loss", "accuracy: train", "validation", "decided", "skips", "flips", "left"]
    assert (first[0], last[0]) == ("0/1", "1/1")
    assert (first[6], last[7]) == ("-", "0 s")
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    shown = [f"{metrics['train_loss']:.3f}", *(f"{100 * metrics[f'{s}_accuracy']:.1f} %" for s in ("train", "val"))]
    assert last[1:4] == shown
    assert err == ""  # no bar where nobody looks
    assert all(len(line) == len(out.splitlines()[0]) <= 80 for line in out.splitlines())


def test_time_left(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, Tick(clock, validation=5.0), epochs=3)  # three epochs of four batches, 140 s each
    assert [row[-1] for row in rows(capsys.readouterr().out)] == ["left", "4 min 40 s", "2 min 20 s", "0 s"]


def test_a_resumed_run_counts_its_own_time(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alphas = EpochAlphas(tmp_path)
    fit(tmp_path, alphas, Tick(clock), epochs=2)
    clock.now += 1e6
    capsys.readouterr()
    fit(tmp_path, EpochAlphas(tmp_path), Tick(clock), epochs=4, resume=tmp_path / "last.ckpt")
    _, *table = rows(capsys.readouterr().out)
    assert [row[0] for row in table] == ["2/3", "3/3"]
    assert [row[-1] for row in table] == ["2 min 00 s", "0 s"]
    assert all(row[6].isdigit() for row in table), "flips are counted from the epoch before the resume"


def test_a_line_a_minute_without_a_terminal(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, Tick(clock, validation=60.0), epochs=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if "," in line]
    values = r"loss \d\.\d{3}, accuracy \d+\.\d %"
    expected = [
        f"epoch 0/0, step 2/4: {values}, 1 min 00 s left",
        f"epoch 0/0, step 4/4: {values}, 0 s left",
        *(rf"epoch 0/0, validation: batch {batch}/4" for batch in range(1, 5)),
    ]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line)


def test_the_first_estimate(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, Tick(clock), epochs=3)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "estimated" in line] == [
        "4 min 00 s left, estimated: 8 steps of 30 s, and the validation of each epoch"
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    fit(tmp_path, Progress(), epochs=1)
    shown = screen.getvalue()
    assert re.search(r"epoch 0/0 \|.*\| 0/4", shown)
    assert "s/it" not in shown
    assert "it/s" not in shown, "the only estimate of time is that of the whole run"
    assert shown.endswith("\r"), "the bar leaves nothing behind"
    assert "epoch" in capsys.readouterr().out


def test_no_bar_beside_another_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(terminal, "_job", "order=2,seed=1")
    fit(tmp_path, Progress(), epochs=1)
    assert "|" not in screen.getvalue()
    assert all(line.startswith("[order=2,seed=1] ") for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (90061, "25 h 01 min"),
        (1_000_000, "277 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert terminal.duration(seconds) == text
