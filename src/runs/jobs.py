"""Many runs of a command that starts runs: side by side in processes of their own, each in its folder, resumable."""

from __future__ import annotations

import importlib
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import torch

from src.common import terminal
from src.common.errors import ConfigError, Interrupted, must_be
from src.common.files import lock_file
from src.common.shell import override, pastable
from src.runs import workers
from src.runs.folder import Folder, RunFolder
from src.runs.following import overrides_of
from src.runs.record import status_of
from src.runs.resume import present_command, read_settings

DONE, STOPPED, FAILED = "ok", "interrupted", "failed"


@dataclass(frozen=True)
class Job:
    """A run of a command, in a folder of its own.

    Attributes:
        command: `search` or `retrain`.
        folder: of the run.
        overrides: of its command line, without the folder.
    """

    command: str
    folder: Path
    overrides: tuple[str, ...]

    @property
    def is_done(self) -> bool:
        """Whether the run has finished."""
        return status_of(self.folder) == DONE

    def arguments(self) -> list[str]:
        """Return what starts the run, or resumes it where it was begun."""
        if RunFolder(self.folder).config.exists():
            return [override("resume", self.folder)]
        return [*self.overrides, override("folder", self.folder)]

    def check(self) -> None:
        """Check that the folder holds this run or none.

        Raises:
            ConfigError: it holds a run with other settings.
        """
        if not RunFolder(self.folder).config.exists():
            return
        _, commands = read_settings(self.folder)
        # The folder may have been moved, and the search of a genotype with it.
        own, expected = (
            [text for text in overrides_of(present_command(line)) if not text.startswith("genotype=")]
            for line in (commands, [pastable(self.command, self.overrides)])
        )
        if own != expected:
            raise ConfigError(
                f"{self.folder} holds another run ({commands[0]}); choose another folder (folder=...) or the settings that "
                "it was started with"
            )


class Ended(NamedTuple):
    """How a job ended.

    Attributes:
        job: the job.
        status: `ok`, `failed` or `interrupted`.
        reason: one line; empty if it finished.
        seconds: that it took now.
    """

    job: Job
    status: str
    reason: str
    seconds: float


class Side(NamedTuple):
    """How many jobs run side by side, and what each of them has.

    Attributes:
        jobs: how many.
        threads: of each job.
        gpus: of the machine; each job has one of its own.
    """

    jobs: int
    threads: int
    gpus: int

    def __str__(self) -> str:
        devices = f"a GPU of {self.gpus} each" if self.gpus else f"{self.threads} thread{'s' * (self.threads > 1)} each"
        return f"{self.jobs} side by side, {devices}" if self.jobs > 1 else f"one after another, {devices}"


def side_by_side(jobs: int | None, threads: int | None) -> Side:
    """Return how jobs run side by side on this machine.

    Args:
        jobs: how many; None is one for each GPU, or for each core where there is none.
        threads: of each job; None shares the cores among the jobs.

    Raises:
        ConfigError: a number is not 1 or more, or there are fewer GPUs than jobs.
    """
    for name, value in (("jobs", jobs), ("threads", threads)):
        if value is not None and value < 1:
            raise must_be(name, "1 or more", value)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = torch.cuda.device_count()
    count = jobs or gpus or cores
    if gpus and count > gpus:
        raise must_be("jobs", f"{gpus} or fewer, the number of GPUs", count)
    return Side(count, threads or max(1, cores // count), gpus)


class JobPool:
    """Processes that run jobs side by side, to be used in a `with` block. They start with their first jobs.

    After Ctrl-C or SIGTERM (to be handled by `workers.stopped_together`) running jobs stop with a checkpoint, and no other
    begins.

    Args:
        side: how many processes, and what each of them has.
    """

    def __init__(self, side: Side) -> None:
        self.side = side
        self._slots = [_Slot(number, side) for number in range(side.jobs)]

    def __enter__(self) -> JobPool:
        return self

    def __exit__(self, *_: object) -> None:
        for slot in self._slots:
            slot.close()

    def run(self, jobs: Iterable[Job]) -> Iterator[Ended]:
        """Run jobs; yield how each ended, as they end. What they print goes into `log.txt` of their folders.

        A job that fails costs no other one.
        """
        free: SimpleQueue[_Slot] = SimpleQueue()
        for slot in self._slots:
            free.put(slot)

        def run(job: Job) -> Ended:
            slot = free.get()
            try:
                return slot.run(job)
            finally:
                free.put(slot)

        with ThreadPoolExecutor(self.side.jobs) as threads:
            waiting = {threads.submit(run, job) for job in jobs}
            try:
                while waiting:
                    # A wait without end would keep the main thread from handling signals on some platforms.
                    ended, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
                    for future in ended:
                        yield future.result()
            finally:
                for future in waiting:
                    future.cancel()


class _Slot:
    """A process that runs one job after another; a new one where the last has died."""

    def __init__(self, number: int, side: Side) -> None:
        self.number, self.side = number, side
        self.pool: ProcessPoolExecutor | None = None

    def run(self, job: Job) -> Ended:
        began = time.monotonic()

        def ended(status: str, reason: str = "") -> Ended:
            return Ended(job, status, reason, time.monotonic() - began)

        if workers.stopped_by():
            return ended(STOPPED, "not begun")
        if self.pool is None:
            self.pool = ProcessPoolExecutor(
                1, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(self.number, self.side)
            )
        try:
            code, reason = self.pool.submit(_run, job).result()
        except BrokenProcessPool:
            self.close()
            if workers.stopped_by():
                return ended(STOPPED, "stopped before it began")
            return ended(FAILED, "its process was killed; out of memory is the usual reason")
        except Interrupted as stop:  # before the run had begun, or after it had ended
            return ended(STOPPED, f"stopped by {stop.by}")
        if code == 0:
            return ended(DONE)
        return ended(STOPPED if code > 128 else FAILED, reason)

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            self.pool = None


def _begin(number: int, side: Side) -> None:
    """Prepare a process for its jobs, before it uses a device."""
    if side.gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(gpu) for gpu in range(side.gpus)]
        os.environ["CUDA_VISIBLE_DEVICES"] = names[number]
    torch.set_num_threads(side.threads)


def _run(job: Job) -> tuple[int, str]:
    """Run a job in this process; return its exit code and, unless that is 0, in one line why."""

    def command() -> int:
        terminal.shared_by(None)  # it has the log to itself
        sys.argv = [job.command, *job.arguments()]
        return importlib.import_module(f"src.{job.command}").main()

    job.folder.mkdir(parents=True, exist_ok=True)
    log = RunFolder(job.folder).log
    with _written_to(log):
        code = workers.run(command, job.folder.name)
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {code}"
    return code, "" if code == 0 else last.removeprefix("error: ")


@contextmanager
def _written_to(path: Path) -> Iterator[None]:
    """Let all that this process prints, libraries in other languages included, go to the end of a file."""
    with path.open("a") as file:
        kept = [os.dup(number) for number in (1, 2)]
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)


@contextmanager
def owned(folder: Folder) -> Iterator[None]:
    """Make the folder of a command that starts jobs, and keep other processes from it during the block.

    Raises:
        ConfigError: another process has it.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    descriptor = lock_file(folder.lock)
    if descriptor is None:
        raise ConfigError(f"{folder} is in use by another process; choose another folder (folder=...)")
    try:
        yield
    finally:
        folder.lock.unlink(missing_ok=True)
        os.close(descriptor)


def run_missing(jobs: Sequence[Job], pool: JobPool, name: Callable[[Job], str]) -> list[Ended]:
    """Run the jobs that have not finished, say how each ends, and return that. After a signal none begins.

    Args:
        jobs: of which some may have finished before.
        pool: that runs them.
        name: what a job is called.
    """
    missing = [job for job in jobs if not job.is_done]
    if not missing or workers.stopped_by():
        return []
    progress = Progress(missing, name)
    ended = []
    for end in pool.run(missing):
        progress.say(end)
        ended.append(end)
    return ended


class Progress:
    """Says how jobs end, a line each, and when the last one will.

    Args:
        jobs: that are to be run.
        names: what a job is called.
    """

    def __init__(self, jobs: Sequence[Job], names: Callable[[Job], str]) -> None:
        self.count, self.names = len(jobs), names
        self.width = max((len(names(job)) for job in jobs), default=0)
        self.ended = 0
        self.began = time.monotonic()

    def say(self, end: Ended) -> None:
        """Say how a job ended."""
        if end.reason == "not begun":
            return
        self.ended += 1
        # From the pace so far: jobs of one kind take turns, so that the last are not the slowest ones.
        left = (time.monotonic() - self.began) / self.ended * (self.count - self.ended)
        number = f"{self.ended}/{self.count}".rjust(2 * len(str(self.count)) + 1)
        text = f"{number}  {self.names(end.job).ljust(self.width)}  {terminal.duration(end.seconds):>12}"
        if end.status != DONE:
            terminal.say(f"{text}  {end.status}: {end.reason}")
        else:
            terminal.say(f"{text}{f'  left: {terminal.duration(math.ceil(left))}' if self.ended < self.count else ''}")
