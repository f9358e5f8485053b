"""Jobs of a sweep in processes that a launcher has started: they share a terminal, and a signal stops all of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from src.common import terminal
from src.common.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_stopped = 0  # the signal that ended a job of this process, after which it begins no other
_is_in_job = False


@contextmanager
def stopped_together() -> Iterator[None]:
    """Pass SIGTERM and Ctrl-C on to the processes that a launcher has started, and wait until they have stopped.

    A job finishes its step, writes a checkpoint and its record, and can be resumed; jobs that wait do not begin. Without
    such processes the signals do what they always do.
    """
    global _stopped  # noqa: PLW0603
    _stopped = 0
    previous: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}

    def stop(number: int, frame: FrameType | None) -> None:
        global _stopped  # noqa: PLW0603
        workers = [] if _is_in_job else _children()
        if not workers:
            signal.signal(number, previous[number])
            signal.raise_signal(number)
            return
        if not _stopped:
            print("\nstopping all jobs after their steps, with checkpoints; repeat to stop at once", file=sys.stderr)
        _stopped = number
        for worker in workers:
            os.kill(worker, signal.SIGTERM)

    try:
        for number in SIGNALS:
            signal.signal(number, stop)
    except ValueError:  # not the main thread, which alone may handle signals
        yield
        return
    try:
        yield
    except Exception:
        if not _stopped:  # else it is a launcher's complaint about a worker that had not begun its job
            raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run(job: Callable[[], int], name: str) -> int:
    """Run a job in a process that a launcher has started, and return its exit code; none begins after a signal.

    The lines on the terminal begin with `name`. Ctrl-C reaches the command alone, which passes it on.
    """
    global _is_in_job, _stopped  # noqa: PLW0603
    if _stopped:
        return 128 + _stopped
    terminal.shared_by(name)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, _on_signal)
    _is_in_job = True
    try:
        return job()
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 1
        _stopped = max(0, code - 128)
        return code
    finally:
        _is_in_job = False


@contextmanager
def run_here() -> Iterator[None]:
    """Run a job of a sweep in the process of the command, where signals do what they do to a single run."""
    global _is_in_job  # noqa: PLW0603
    _is_in_job = True
    try:
        yield
    finally:
        _is_in_job = False


def stopped_by() -> int:
    """Return the number of the signal that has stopped the jobs, or 0."""
    return _stopped


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _stopped  # noqa: PLW0603
    _stopped = number
    if _is_in_job:
        raise Interrupted(signal.Signals(number).name, number)


def _children() -> list[int]:
    """Return the processes that this one has started and that still run."""
    threads = Path("/proc/self/task")
    if threads.is_dir():
        texts = [path.read_text() for path in threads.glob("*/children")]
        return [int(pid) for text in texts for pid in text.split()]
    return [process.pid for process in multiprocessing.active_children() if process.pid is not None]
