from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from small_search import fit

from src.callbacks import progress
from src.callbacks.progress import Progress
from src.callbacks.record import EpochAlphas


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Tick(Progress):
    """A progress bar in whose world a batch takes 30 seconds."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def on_train_batch_end(self, *args, **kwargs) -> None:
        self.clock.now += 30.0
        super().on_train_batch_end(*args, **kwargs)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_line_an_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, Progress(), epochs=2)
    out, err = capsys.readouterr()
    number = r"\d+\.\d{3}"
    share = r"\d+\.\d%"
    for epoch, line in enumerate(out.splitlines(), start=1):
        parts = line.split(" | ")
        assert parts[0] == f"epoch {epoch}/2"
        assert re.fullmatch(f"train loss {number} accuracy {share}", parts[1])
        assert re.fullmatch(f"validation loss {number} accuracy {share}", parts[2])
        assert re.fullmatch(r"\d+ s elapsed, \d+ s left", parts[3])
    assert len(out.splitlines()) == 2
    assert err == ""  # no bar where nobody looks


def test_the_numbers_are_the_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, _ = fit(tmp_path, EpochAlphas(tmp_path), Progress(), epochs=1)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    line = capsys.readouterr().out
    assert f"train loss {metrics['train_loss']:.3f} accuracy {metrics['train_accuracy']:.1%}" in line
    assert f"validation loss {metrics['val_loss']:.3f} accuracy {metrics['val_accuracy']:.1%}" in line
    assert f"alpha entropy {metrics['alpha_entropy']:.3f}" in line


def test_time_gone_and_left(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, Tick(clock), epochs=3)  # three epochs of four batches
    ends = [line.split(" | ")[-1] for line in capsys.readouterr().out.splitlines()]
    assert ends == [
        "2 min 00 s elapsed, 4 min 00 s left",
        "4 min 00 s elapsed, 2 min 00 s left",
        "6 min 00 s elapsed, 0 s left",
    ]


def test_a_resumed_run_counts_its_own_time(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, Tick(clock), epochs=2)
    clock.now += 1e6
    capsys.readouterr()
    fit(tmp_path, Tick(clock), epochs=4, resume=tmp_path / "last.ckpt")
    ends = [line.split(" | ")[-1] for line in capsys.readouterr().out.splitlines()]
    assert ends == ["2 min 00 s elapsed, 2 min 00 s left", "4 min 00 s elapsed, 0 s left"]


def test_a_bar_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = Progress()
    trainer, module = fit(tmp_path, bar, epochs=1)
    shown = bar.get_metrics(trainer, module)
    assert list(shown) == ["loss", "accuracy", "left"]
    assert re.fullmatch(r"\d+\.\d{3}", str(shown["loss"]))
    assert re.fullmatch(r"\d+\.\d%", str(shown["accuracy"]))
    assert shown["left"] == "0 s"
    out, err = capsys.readouterr()
    assert "accuracy=" in out + err
    assert "left=" in out + err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (90061, "25 h 01 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert progress._duration(seconds) == text
