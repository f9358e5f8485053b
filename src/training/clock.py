"""Times of parts of a step, on a GPU without a wait of the host for the device."""

from __future__ import annotations

import time

import torch

Mark = float | torch.cuda.Event


class Elapsed:
    """The seconds between two events on a GPU; reading them waits for the second."""

    def __init__(self, first: torch.cuda.Event, last: torch.cuda.Event) -> None:
        self.first, self.last = first, last

    def __float__(self) -> float:
        self.last.synchronize()
        return self.first.elapsed_time(self.last) / 1000


def mark(device: torch.device) -> Mark:
    """Return this moment in the work of a device; on a GPU, that when it has done what it was given so far."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def between(first: Mark, last: Mark) -> float | Elapsed:
    """Return the seconds from one moment to another; on a GPU they can be read as `float(...)` later."""
    if isinstance(first, float) and isinstance(last, float):
        return last - first
    assert isinstance(first, torch.cuda.Event)
    assert isinstance(last, torch.cuda.Event)
    return Elapsed(first, last)
