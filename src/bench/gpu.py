"""One command for a GPU that is lent for minutes: `python -m src.bench gpu --json gpu.json --minutes 9`.

Rows come in the order of what they tell, each is printed and written as soon as it is measured, and a row that fails (out
of memory, an error of a capture) is a row with its message. They are measured in a process of their own, since an error of
CUDA can spoil all that follows in its process; another one takes the row after.

- ms: median of the steps after warm-up, each between two waits for the device; least and most: of them. There are as many
  as asked for, and more of short ones.
- kernels, busy ms: of one step, by the profiler: how many kernels ran, and for how long in all. Where the busy time is much
  less than the time of a step, the host is what one waits for.
- GB: the peak of allocated memory during the steps and the warm-up: a replay allocates nothing.
- gradient error, in rows of their own at the end: of the alphas' gradient at the start of a search of digits, relative to
  that of the reference form in float64 on the same device. Where PyTorch's default lets convolutions compute in TF32, so do the rows in fp32.

On a CPU (`--device cpu`) it measures time and gradients only.
"""

from __future__ import annotations

import gc
import multiprocessing
import statistics
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from src.bench.forms import (
    DATA_BATCHES,
    HYPERGRADIENTS,
    OurSearch,
    RecordedRetrain,
    Sizes,
    Step,
    data_step,
    digit_batches,
    in_double,
    laid_out,
    noise,
    our_search,
    retrain_step,
    search_form,
)
from src.bench.measuring import Row, Rows, timed, wait
from src.common.errors import shorten
from src.training.graphs import Graphs

SECONDS, MOST = 1.0, 20  # short steps are repeated for so long, at most so often
WARM_UP = 3  # steps before those that count; with graphs, the third is recorded
ROW_SECONDS = 120  # after which a row has failed
ERROR_BATCH = 32  # images of the gradient whose error is measured, or fewer: the float64 graph has to fit
LARGE_BATCH = 256


@dataclass(frozen=True)
class Case:
    """What one row measures.

    Attributes:
        what: `search`, `retrain`, `data` or `gradient`.
        form: as in src/bench/forms.py.
        hypergradient: a name in `HYPERGRADIENTS`, of a search.
        precision: `fp32` or `bf16`.
        graphs: whether the gradients are replayed as CUDA graphs; on a CPU such a case is left out.
        batch: images in a batch, or None for that of the sizes.
    """

    what: str
    form: str
    hypergradient: str = ""
    precision: str = "fp32"
    graphs: bool = False
    batch: int | None = None


def gpu(sizes: Sizes) -> Rows:
    """All rows, those that tell most first."""
    worker = Worker()
    rows: list[tuple[Case, Row]] = []
    try:
        for case in cases():
            if case.graphs and sizes.device != "cuda":
                continue
            rows.append((case, worker.measure(case, sizes)))
            yield rows[-1][1]
        for case in (*larger(rows), *gradients()):
            yield worker.measure(case, sizes)
    finally:
        worker.close()


def cases() -> Iterator[Case]:
    """Yield what is measured, but for the larger batches and the gradients."""
    orders = ("finite_difference", "first_order")
    for graphs in (True, False):
        yield from (Case("search", "merged", order, graphs=graphs) for order in orders)
    yield from (Case("search", "merged", order, precision="bf16", graphs=True) for order in orders)
    for precision in ("fp32", "bf16"):
        yield from (Case("retrain", "reference", precision=precision, graphs=graphs) for graphs in (True, False))
    yield from (Case("search", "merged", order, precision="bf16") for order in reversed(orders))
    yield Case("search", "published", "first_order")
    yield from (Case("data", form) for form in ("this code", "published"))
    yield from (Case("search", "merged", "exact", graphs=graphs) for graphs in (True, False))
    yield Case("search", "merged", "float64_difference", graphs=True)
    yield Case("search", "published", "finite_difference")
    yield from (Case("retrain", "published", precision=precision) for precision in ("fp32", "bf16"))
    yield Case("search", "reference", "first_order")
    yield from (Case("search", "reference", order, graphs=True) for order in orders)
    yield Case("search", "reference", "finite_difference")
    yield Case("search", "reference", "exact")
    for form in ("reference", "published"):
        yield from (Case("search", form, order, precision="bf16") for order in reversed(orders))
    for precision in ("fp32", "bf16"):
        yield from (
            Case("search", "published, channels_last", order, precision=precision) for order in reversed(orders)
        )
    yield from (Case("search", "reference", order, precision="bf16", graphs=True) for order in orders)


def gradients() -> Iterator[Case]:
    """Yield the gradients whose errors are measured; that of a replay is that of the same form without graphs."""
    for precision in ("fp32", "bf16"):
        for name in ("first_order", "finite_difference", "exact"):
            for form in ("merged", "reference", "published"):
                if (form, name) != ("published", "exact"):
                    yield Case("gradient", form, name, precision=precision)


def larger(rows: list[tuple[Case, Row]]) -> Iterator[Case]:
    """Yield the fastest case of each hypergradient, and the fastest without graphs, with more images in a batch."""
    for name in ("finite_difference", "first_order", "exact"):
        for graphs in (True, False):
            own = [(row["ms"], case) for case, row in rows if case.hypergradient == name and "ms" in row]
            chosen = [(ms, case) for ms, case in own if case.graphs == graphs]
            if chosen:
                yield replace(min(chosen, key=lambda pair: pair[0])[1], batch=LARGE_BATCH)


class Worker:
    """A process that measures rows, and is replaced when it dies, hangs or has lost its device."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Connection | None = None

    def measure(self, case: Case, sizes: Sizes) -> Row:
        """Return the row of a case."""
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_work, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        row = _named(case, sizes)
        try:
            self._pipe.send((case, sizes))
            while self._pipe.poll(ROW_SECONDS):
                found, usable = self._pipe.recv()
                if found is not None:
                    row = found
                    continue
                if not usable:
                    self.close()
                return row
            error = f"no answer in {ROW_SECONDS} seconds"
        except (EOFError, OSError):
            error = "the process died"
        self.close()
        return {**row, "error": error}

    def close(self) -> None:
        """End the process."""
        if self._pipe is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
            self._pipe = None


def _work(pipe: Connection) -> None:
    """Answer cases with rows, until the pipe is closed."""
    with suppress(EOFError):
        while True:
            case, sizes = pipe.recv()
            for row in measure(case, sizes):
                pipe.send((row, True))
            pipe.send((None, _release(sizes.device)))


def measure(case: Case, sizes: Sizes) -> Rows:
    """Yield the row of a case, longer each time, so that a process that dies later has told the first figures."""
    sizes = replace(sizes, precision=case.precision, batch=case.batch or sizes.batch)
    kinds: dict[str, Callable[[Case, Sizes], Rows]] = {
        "search": _search,
        "retrain": _retrain,
        "data": _data,
        "gradient": _gradient,
    }
    row = _named(case, sizes)
    try:
        for figures in kinds[case.what](case, sizes):
            row |= figures
            yield dict(row)
    except Exception as error:  # it is what the row has to tell
        yield {**row, "error": shorten(f"{type(error).__name__}: {error}", 200)}


def _named(case: Case, sizes: Sizes) -> Row:
    batch = sizes.retrain_batch if case.what == "retrain" else case.batch or sizes.batch
    mode = "graphs" if case.graphs else "eager"
    return {
        "step": case.what,
        "form": case.form,
        "hypergradient": case.hypergradient or None,
        "precision": case.precision,
        "mode": mode,
        "batch": batch,
    }


def _search(case: Case, sizes: Sizes) -> Rows:
    hypergradient = HYPERGRADIENTS[case.hypergradient]
    search = search_form(case.form, sizes, hypergradient)
    if case.graphs:
        assert isinstance(search, OurSearch)
        search.module.start_graphs()
    yield from _measured(partial(search, laid_out(case.form, noise(sizes))), sizes)
    if case.graphs:
        assert isinstance(search, OurSearch)
        _check_recorded(search.module.graphs)


def _check_recorded(graphs: Graphs | None) -> None:
    """Raise an error if steps that were to be replayed ran as usual."""
    assert graphs is not None
    if graphs.why_not is not None:
        raise RuntimeError(graphs.why_not)


def _retrain(case: Case, sizes: Sizes) -> Rows:
    step = retrain_step(case.form, sizes, graphs=case.graphs)
    yield from _measured(step, sizes)
    if isinstance(step, RecordedRetrain):
        _check_recorded(step.module.graphs)


def _data(case: Case, sizes: Sizes) -> Rows:
    step = data_step(case.form, sizes)
    seconds = statistics.median([timed(step, sizes.device) for _ in range(sizes.pairs + 1)][1:])
    yield {"ms": 1e3 * seconds, "images a second": round(DATA_BATCHES * sizes.batch / seconds)}


def _measured(step: Step, sizes: Sizes) -> Rows:
    """Yield what the steps of a case took."""
    on_gpu = sizes.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP):
        step()
    wait(sizes.device)
    seconds: list[float] = []
    while len(seconds) < sizes.pairs or (sum(seconds) < SECONDS and len(seconds) < MOST):
        seconds.append(timed(step, sizes.device))
    middle, least, most = (1e3 * of(seconds) for of in (statistics.median, min, max))
    yield {"ms": middle, "least": least, "most": most, "steps": len(seconds)}
    if on_gpu:
        yield {"GB": torch.cuda.max_memory_allocated() / 1e9}
        yield _kernels(step)


def _kernels(step: Step) -> Row:
    """Return how many kernels a step runs, and how long all of them take."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        step()
        torch.cuda.synchronize()
    assert profile.profiler is not None
    results = profile.profiler.kineto_results  # `events()` would build a tree of Python objects, for seconds
    assert results is not None
    nanoseconds = [
        event.duration_ns()
        for event in results.events()
        if event.device_type() == torch.autograd.DeviceType.CUDA and not _is_no_kernel(event.name())
    ]
    return {"kernels": len(nanoseconds), "busy ms": sum(nanoseconds) / 1e6}


def _is_no_kernel(name: str) -> bool:
    """Return whether an event on the device is a copy, a filling, or a range that somebody named."""
    return name.startswith(("Memcpy", "Memset", "Optimizer.", "ProfilerStep", "##", "Torch-Compiled Region"))


def _gradient(case: Case, sizes: Sizes) -> Rows:
    """Yield the relative error of the alphas' gradient at the start of a search."""
    small = replace(sizes, batch=min(sizes.batch, ERROR_BATCH))
    truth = _truth(case.hypergradient, replace(small, precision="fp32"))
    hypergradient = HYPERGRADIENTS[case.hypergradient]
    search = search_form(case.form, small, hypergradient)
    batch = laid_out(case.form, next(digit_batches(small)))
    if isinstance(search, OurSearch):
        own, _ = search.alpha_gradient(batch, hypergradient)
    else:
        search.backward_to_alphas(batch)
        own = torch.cat([alpha.grad for alpha in search.alphas if alpha.grad is not None])
    yield {"gradient error": float((own.double() - truth).norm() / truth.norm())}


@cache
def _truth(name: str, sizes: Sizes) -> Tensor:
    """Return the alphas' gradient in float64, by the reference form."""
    search = our_search("reference", sizes, HYPERGRADIENTS[name])
    search.module.double()
    return search.alpha_gradient(in_double(next(digit_batches(sizes))), HYPERGRADIENTS[name])[0]


def _release(device: str) -> bool:
    """Give back memory, and return whether the device can still be used."""
    gc.collect()
    if device == "cuda":
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            return float(torch.ones(2, device=device).sum()) == 2
        except Exception:
            return False
    return True
