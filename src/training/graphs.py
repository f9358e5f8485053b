"""Recording a part of a training step once and replaying it: CUDA graphs. docs/gpu.md says when they are used.

A step of a search launches thousands of small kernels, and on a GPU Python needs longer to launch them than they take. A
CUDA graph keeps the launches of a part of a step, with the addresses of all tensors, and repeats them at once. So whatever
changes between two steps has to be a tensor at a fixed address: inputs are copied into tensors of the recording, and
weights, alphas, momentum and buffers are updated in place. What is no tensor is frozen in a recording: it is part of its
key, and a part whose key has changed is recorded anew.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from src.common.errors import shorten

Result = TypeVar("Result")

WARM_UP = 2  # runs before the recording: libraries set themselves up in the first, and momentum exists after it


class Recorder(Protocol):
    """What records: `CudaGraphs`, or on a CPU the twin that the tests have."""

    def warm(self, program: Callable[[], Result]) -> tuple[Result, str | None]:
        """Run a program as usual, and return its result and a reason why it cannot be recorded, or None."""
        ...

    def record(self, program: Callable[[], Result]) -> tuple[Result, Callable[[], object]]:
        """Run and record a program, and return its result and a function that runs it again.

        The function writes into the tensors of the result. What an earlier recording replays may overwrite them.
        """
        ...


@dataclass
class _Recording:
    sizes: Hashable
    frozen: object
    inputs: list[Tensor]
    result: Any
    replay: Callable[[], object]

    def take(self, arguments: Sequence[Tensor]) -> None:
        """Copy the arguments of this step to where the recording reads them."""
        torch._foreach_copy_(self.inputs, list(arguments))


class Graphs:
    """The recordings of the parts of a step.

    Args:
        recorder: makes them.
        parts: their names, in the order in which they run in a step.
        setting: what asked for them, for the line that says why there are none.

    Attributes:
        why_not: why the parts run as usual, or None while they are recorded.
        error: the error of the recording that failed, or None.
        records: how often each part was recorded.
        replays: how often each part was replayed after that.
    """

    def __init__(self, recorder: Recorder, parts: Sequence[str], setting: str = "graphs=true") -> None:
        self.recorder = recorder
        self.parts = tuple(parts)
        self.setting = setting
        self.why_not: str | None = None
        self.error: Exception | None = None
        self.records = Counter[str]()
        self.replays = Counter[str]()
        self._seen = {part: Counter[Hashable]() for part in parts}
        self._recordings: dict[str, _Recording] = {}
        self._complaints: dict[Hashable, str | None] = {}
        self._is_recording = False
        self._passes = 0

    def begin_pass(self) -> bool:
        """Note that a pass over the network begins; return whether it may seed the generators of random numbers.

        It may not while it is recorded: a seed is no kernel. The seed before the part then holds for its only pass.
        """
        self._passes += 1
        return not self._is_recording

    def run(self, part: str, program: Callable[..., Result], *arguments: Any, frozen: object) -> Result:
        """Return `program(*arguments)`, replayed from a recording where there is one that fits.

        The result of a replay is valid until an earlier part of the next step runs. The first `WARM_UP` runs are as
        usual, and so are those with arguments of other sizes than most runs had.

        Args:
            part: its name.
            program: a function of tensors, without a wait of the host for the device.
            arguments: tensors, in tuples and dictionaries.
            frozen: all else that the result depends on; compared by ==.
        """
        if self.why_not is not None:
            return program(*arguments)
        leaves, tree = tree_flatten(arguments)
        sizes = (repr(tree), *((leaf.shape, leaf.stride(), leaf.dtype, leaf.device) for leaf in leaves))
        seen = self._seen[part]
        seen[sizes] += 1
        recording = self._recordings.get(part)
        is_up_to_date = recording is not None and recording.frozen == frozen
        if recording is not None and is_up_to_date and recording.sizes == sizes:
            recording.take(leaves)
            recording.replay()
            self.replays[part] += 1
            return recording.result
        if is_up_to_date or seen[sizes] <= WARM_UP or seen[sizes] < max(seen.values()):
            result, self._complaints[part, sizes] = self._warm(partial(program, *arguments), leaves[0].device)
            return result
        complaint = self._complaints.get((part, sizes))
        if complaint is None:
            try:
                return self._record(part, program, leaves, tree, sizes, frozen)
            except Exception as error:
                self.error = error
                first = error.__context__ or error  # ending a failed capture fails in its turn
                complaint = f"{type(first).__name__}: {shorten(first, 200)}"
        self._recordings.clear()
        self.why_not = f"the gradient of the {part} cannot be recorded ({complaint})"
        print(f"{self.setting}: {self.why_not}; all steps run without graphs", file=sys.stderr)
        return program(*arguments)

    def _warm(self, program: Callable[[], Result], device: torch.device) -> tuple[Result, str | None]:
        """Run a program as usual; return its result and a reason why it cannot be recorded, or None."""
        before, self._passes = _random_states(device), 0
        result, complaint = self.recorder.warm(program)
        drawn = [name for name, state in _random_states(device).items() if not torch.equal(state, before[name])]
        if drawn and (self._passes > 1 or drawn != [device.type]):
            # Each pass of a step draws the same numbers, which a recording could not repeat.
            complaint = complaint or "it draws random numbers in more than one pass, or on the CPU"
        return result, complaint

    def _record(
        self,
        part: str,
        program: Callable[..., Result],
        leaves: Sequence[Tensor],
        tree: Any,
        sizes: Hashable,
        frozen: object,
    ) -> Result:
        inputs = [leaf.detach().clone() for leaf in leaves]
        kind = leaves[0].device.type
        # A cache of casts would keep those of the weights as they are now.
        autocast = partial(
            torch.autocast,
            kind,
            dtype=torch.get_autocast_dtype(kind),
            enabled=torch.is_autocast_enabled(kind),
            cache_enabled=False,
        )

        def run() -> Result:
            with autocast():
                return program(*tree_unflatten(inputs, tree))

        self._is_recording = True
        try:
            result, replay = self.recorder.record(run)
        finally:
            self._is_recording = False
        self._recordings[part] = _Recording(sizes, frozen, inputs, result, replay)
        self.records[part] += 1
        for later in self.parts[self.parts.index(part) + 1 :]:  # would write over this result: see `Recorder.record`
            self._recordings.pop(later, None)
        return result


class CudaGraphs:
    """Records CUDA graphs, which share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def warm(self, program: Callable[[], Result]) -> tuple[Result, str | None]:
        """Run a program on the stream of the recordings; a wait of the host for the device is a reason not to record."""
        outside = torch.cuda.current_stream(self.device)
        mode = torch.cuda.get_sync_debug_mode()
        self.stream.wait_stream(outside)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                with torch.cuda.stream(self.stream):
                    result = program()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        outside.wait_stream(self.stream)
        complaint = None
        for warning in caught:
            text = str(warning.message)
            if "called a synchronizing CUDA operation" in text:
                complaint = f"the host waits for the GPU at {Path(warning.filename).name}:{warning.lineno}"
            elif "debug mode is a prototype" not in text:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return result, complaint

    def record(self, program: Callable[[], Result]) -> tuple[Result, Callable[[], object]]:
        """Capture a program, which runs nothing, and replay it."""
        graph = torch.cuda.CUDAGraph()
        outside = torch.cuda.current_stream(self.device)
        try:
            # thread_local: a thread that pins the memory of batches may go on.
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                result = program()
        finally:
            torch.cuda.set_stream(outside)  # a capture that failed leaves its own
        graph.replay()
        return result, graph.replay


def _random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the default generators, by type of device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states
