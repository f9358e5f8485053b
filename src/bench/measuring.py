"""How it is measured.

- Time: the forms take turns (A B C A B C ...), so that a slow phase of the machine slows all of them. Times are medians,
  and ratios are medians over turns.
- Memory: the peak of a separate process that takes one step.
- Operator calls: of one step, backward passes included; counted on two images of 8x8, since their number does not depend
  on the sizes. Those without views leave out calls whose result shares the memory of an argument: they compute nothing.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from src.bench.forms import Sizes, Step
from src.runs.devices import resident

Row = dict[str, Any]
Rows = Generator[Row, None, None]


def in_turn(steps: dict[str, Step], pairs: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of each step, taken in turn after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(pairs + 1):
        for name, step in steps.items():
            own = timed(step, device)
            if turn:
                seconds[name].append(own)
    return seconds


def timed(step: Step, device: str) -> float:
    """Return the seconds of one step, waiting for the device before and after."""
    wait(device)
    start = time.perf_counter()
    step()
    wait(device)
    return time.perf_counter() - start


def wait(device: str) -> None:
    """Wait for all work on a device."""
    if device == "cuda":
        torch.cuda.synchronize()


def compare(steps: dict[str, Step], sizes: Sizes) -> list[Row]:
    """Return a row for each form: median seconds, and how many times faster than the first it is, turn by turn."""
    seconds = in_turn(steps, sizes.pairs, sizes.device)
    first = seconds[next(iter(steps))]
    return [
        {
            "form": name,
            "seconds": statistics.median(own),
            "times faster": statistics.median(a / b for a, b in zip(first, own, strict=True)),
        }
        for name, own in seconds.items()
    ]


class Calls(NamedTuple):
    """Numbers of operator calls."""

    all: int
    without_views: int


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = self.views = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        self.views += _is_view(func)
        return func(*args, **(kwargs or {}))


def _is_view(operator: Any) -> bool:
    """Return whether an operator only gives another view of its argument, as its schema says."""
    schema = operator._schema
    shares = any(returned.alias_info is not None for returned in schema.returns)
    return (shares and not schema.is_mutable) or schema.name == "aten::_unsafe_view"


def operator_calls(step: Step) -> Calls:
    """Return the number of operator calls of one step, those of its backward passes included."""
    step()
    with _Counting() as counting:
        step()
    return Calls(counting.calls, counting.calls - counting.views)


def counted(sizes: Sizes) -> Sizes:
    """Return sizes at which operator calls are quickly counted; their number is the same."""
    return replace(sizes, batch=2, image=8)


def peak_memory(arguments: Sequence[str], device: str) -> float:
    """Return the peak memory in GB of `python -m src.bench --measure ...`: a process that takes a step and ends."""
    command = [sys.executable, "-m", "src.bench", "--device", device, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def measure_memory(step: Step, device: str) -> float:
    """Take a step and return the peak memory in GB above what was there before: the device's, or the process's."""
    if device == "cuda":
        step()
        return torch.cuda.max_memory_allocated() / 1e9
    before = resident("VmRSS")
    step()
    return (resident("VmHWM") - before) / 1e9


def size_arguments(sizes: Sizes) -> list[str]:
    """Return the options of a process that measures a search step of these sizes."""
    names = ("channels", "cells", "nodes", "batch", "image", "precision")
    return [text for name in names for text in (f"--{name}", str(getattr(sizes, name)))]
