"""What becomes of jobs that run side by side when their processes are stopped."""

from __future__ import annotations

import signal
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from src.common.errors import Interrupted
from src.runs.jobs import STOPPED, Job, Side, _Slot


class Stopping:
    """A pool whose process gets a signal within a job, but outside of its run."""

    def submit(self, *_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(Interrupted("SIGTERM", signal.SIGTERM))
        return future


def test_a_signal_before_or_after_the_run_of_a_job_is_no_failure(tmp_path: Path) -> None:
    slot = _Slot(0, Side(1, 1, 0))
    slot.pool = Stopping()  # pyright: ignore[reportAttributeAccessIssue]
    end = slot.run(Job("retrain", tmp_path, ()))
    assert (end.status, end.reason) == (STOPPED, "stopped by SIGTERM")
