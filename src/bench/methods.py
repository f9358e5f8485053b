"""The part of `python -m src.bench` that compares methods: all of conf/method that train, against DARTS."""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass, replace
from typing import Any

import torch

from src.bench.forms import CLASSES, SUPERNETS, OurSearch, Sizes, Step, noise
from src.bench.measuring import Row, Rows, in_turn, peak_memory, size_arguments
from src.bench.published import autocast
from src.bilevel.hypergradient import of_order
from src.common.errors import ConfigError
from src.fast.forms import form_for
from src.methods.method import Method
from src.spaces.cnn.cells import Supernet
from src.training.search import SearchModule

EPOCHS = 50  # of the search; the measured steps are of its middle, where no schedule is at an end
DARTS = "darts"  # the method that others are compared with


@dataclass
class _Optimizer:
    """What a Trainer puts around an optimiser."""

    optimizer: torch.optim.Optimizer

    def step(self) -> None:
        self.optimizer.step()


class _Midway(SearchModule):
    """A search in the middle of its epochs, without the Trainer around it."""

    @property
    def current_epoch(self) -> int:
        return EPOCHS // 2

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        return [_Optimizer(optimizer) for optimizer in self._optimizers]

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Leave it: there is no logger."""


def methods(sizes: Sizes) -> Rows:
    """A search step of each method, of both orders where it has them, in the form that the device is best served by.

    The order 1 step of each method, and then the order 2 step, take turns. `time / DARTS` is the median over turns of what
    the step took, as a multiple of DARTS' in the same turn and order.
    """
    names = [DARTS, *(name for name in sorted(_found()) if name != DARTS)]
    for order in (1, 2):
        steps: dict[str, Step] = {}
        refused: list[Row] = []
        for name in names:
            try:
                steps[name] = method_step(name, sizes, order)
            except ConfigError as error:
                refused.append({"order": order, "method": name, "not measured": str(error).partition(": ")[0]})
        seconds = in_turn(steps, sizes.pairs, sizes.device)
        own_memory: dict[str, float] = {}
        for name, own in seconds.items():
            if sizes.memory:
                arguments = ["--method", name, "--order", str(order), *size_arguments(sizes)]
                own_memory[name] = peak_memory(arguments, sizes.device)
            yield {
                "order": order,
                "method": name,
                "seconds": statistics.median(own),
                "time / DARTS": statistics.median(a / b for a, b in zip(own, seconds[DARTS], strict=True)),
                "GB": own_memory.get(name),
                "memory / DARTS": own_memory[name] / own_memory[DARTS] if own_memory else None,
            }
        yield from refused


def method_step(name: str, sizes: Sizes, order: int) -> Step:
    """Return a function of nothing that takes one search step by a method of conf/method.

    Raises:
        ConfigError: the method cannot take a step of this order, or search this space.
    """
    method = replace(_found()[name], frozen_epochs=0)
    form = form_for(Supernet, sizes.device, autocast=sizes.precision == "bf16")
    torch.manual_seed(0)
    space = SUPERNETS[form](
        input_shape=(3, sizes.image, sizes.image),
        num_classes=CLASSES,
        channels=sizes.channels,
        cells=sizes.cells,
        nodes=sizes.nodes,
    )
    module = OurSearch(space, of_order(order), sizes.device, method=method, kind=_Midway).module
    module._epochs = EPOCHS
    batch = noise(sizes)

    def step() -> None:
        with autocast(sizes.device, sizes.precision):
            module.training_step(batch, 0)

    return step


@functools.cache
def _found() -> dict[str, Method]:
    """Return the methods of conf/method by name; what trains nothing has no step and is left out."""
    # Here, since a machine with PyTorch alone can take all other measurements.
    from hydra import compose, initialize_config_dir  # noqa: PLC0415
    from hydra.core.global_hydra import GlobalHydra  # noqa: PLC0415

    from src.runs.following import CONF  # noqa: PLC0415
    from src.runs.schema import register_schemas  # noqa: PLC0415
    from src.runs.targets import build  # noqa: PLC0415

    register_schemas()
    GlobalHydra.instance().clear()
    found: dict[str, Method] = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for path in (CONF / "method").glob("*.yaml"):
            method = build(compose("search", overrides=[f"method={path.stem}"]).method, "method")
            if isinstance(method, Method):
                found[path.stem] = method
    return found
