"""What both training modules share: epoch metrics that survive a stop, averages over processes, a watch for nan."""

from __future__ import annotations

import copy
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple, SupportsFloat, cast

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from src.common import processes
from src.common.errors import Diverged, must_be
from src.common.seeding import seed_step
from src.data.tasks import Task
from src.training.graphs import CudaGraphs, Graphs

CHECKPOINT_FORMAT = 1
WEIGHTS_PART = "weights"  # of a step: what `Graphs` records
AUTO = "auto"  # a choice of `graphs`
Batch = tuple[Tensor, Tensor]  # inputs (N, ...), targets (N, ...)
_OWN_PACKAGES = (__name__.partition(".")[0], "torch")
_UNREAD = 2  # checks of gradients on a GPU whose values the host has not read yet: those of one search step


class _Check(NamedTuple):
    """A norm of a gradient, and where it was taken."""

    what: str
    epoch: int
    step: int
    rates: list[float]
    remedy: str

    def pass_or_raise(self, gradient_norm: Tensor, loss: Tensor) -> None:
        """Raise `Diverged` if the norm is not finite."""
        if not bool(gradient_norm.isfinite()):
            rates = ", ".join(f"{rate:.3g}" for rate in self.rates)
            raise Diverged(
                f"the gradient of the {self.what} is {float(gradient_norm)} in epoch {self.epoch}, "
                f"step {self.step} (loss {float(loss):.4g}, learning rates {rates}); {self.remedy} may help"
            )


class Mean(Metric):
    """The mean over samples. (torchmetrics' own looks for nan in every value, or else leaves the weights out.)"""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("samples", torch.tensor(0.0), dist_reduce_fx="sum")
        self.total: Tensor
        self.samples: Tensor

    def update(self, value: Tensor, samples: int) -> None:
        """Add the mean over some samples."""
        self.total += value.to(self.total.dtype) * samples
        self.samples += samples

    def compute(self) -> Tensor:
        """Return the mean over all."""
        return self.total / self.samples


class Largest(Metric):
    """The largest value so far."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("largest", torch.tensor(-torch.inf), dist_reduce_fx="max")
        self.largest: Tensor

    def update(self, value: Tensor) -> None:
        """Take a value into account."""
        self.largest = torch.maximum(self.largest, value.to(self.largest))

    def compute(self) -> Tensor:
        """Return the largest."""
        return self.largest


class TrainingModule(L.LightningModule):
    """A LightningModule with `net`, the network that is trained, in the layout of images that its device has.

    Metrics are means over all samples of an epoch, on all processes. Those of the training epoch go into checkpoints,
    so that an epoch that was cut in two has the metrics of a whole one.

    Args:
        net: the network.
        task: its loss, and its metrics.
        splits: what is measured: `train` and others; each has a loss and the task's metrics, `{split}_{name}`.
        training_means: names of further means over a training epoch.
        training_maxima: names of values of which a training epoch has the largest.
        gradient_clip: largest norm of the weights' gradient.
        seed: of the run.
        graphs: whether gradients are recorded and replayed as CUDA graphs, where that can be done; `auto` leaves out
            what holds code of others, of which a recording might miss something.

    Attributes:
        graphs: the recordings, or None if there are none.
        parts: the names of what is recorded, in the order of a step.

    Raises:
        ConfigError: an argument is none of the allowed ones.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        task: Task,
        splits: Sequence[str],
        training_means: Iterable[str] = (),
        training_maxima: Iterable[str] = (),
        gradient_clip: float,
        seed: int,
        graphs: bool | str = False,
    ) -> None:
        super().__init__()
        if graphs not in (AUTO, True, False):
            raise must_be("graphs", "auto, true or false", graphs)
        if gradient_clip <= 0:
            raise must_be("gradient_clip", "a number above 0", gradient_clip)
        self.net = net
        self.task = task
        lay_out(net)
        self.gradient_clip = gradient_clip
        self.seed = seed
        self._task_metrics = tuple(task.metrics())
        metrics: dict[str, Metric] = {}
        for split in splits:
            metrics[f"{split}_loss"] = Mean()
            metrics |= {f"{split}_{name}": metric for name, metric in task.metrics().items()}
        metrics |= {name: Mean() for name in training_means}
        metrics |= {name: Largest() for name in training_maxima}
        self.metrics = nn.ModuleDict(metrics)
        own = {*training_means, *training_maxima}
        self._of_training = tuple(name for name in metrics if name.startswith("train_") or name in own)
        # What the latest step measured on this process, for loggers.
        self.step_values: dict[str, Tensor | SupportsFloat] = {}
        self.step_samples = 0
        self.graphs: Graphs | None = None
        self.parts: tuple[str, ...] = (WEIGHTS_PART,)
        self._wants_graphs = graphs
        self._step = 0  # of the epoch
        self._epochs = 1
        self._optimizers: list[torch.optim.Optimizer] = []
        self._period: int | None = None
        self._schedule_began = 0  # the epoch
        self._schedule_at_first: dict[str, Any] = {}
        self._unread = deque[tuple[_Check, Tensor, torch.cuda.Event]]()

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """Move, and take the layout of images that the new device has."""
        moved = super()._apply(fn, *args, **kwargs)
        lay_out(self.net)
        return moved

    def measure(self, split: str, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch to the loss and the metrics of a split."""
        self.measure_mean(f"{split}_loss", loss, len(targets))
        for name in self._task_metrics:
            metric = self._metric(f"{split}_{name}")
            metric.update(outputs, targets)
            self._log(f"{split}_{name}", metric)

    def measure_mean(self, name: str, value: Tensor, samples: int) -> None:
        """Add to a mean over the samples of an epoch."""
        metric = self._metric(name)
        metric.update(value, samples)
        self._log(name, metric)

    def measure_largest(self, name: str, value: Tensor) -> None:
        """Take a value into account of which an epoch has the largest."""
        metric = self._metric(name)
        metric.update(value)
        self._log(name, metric)

    def _log(self, name: str, metric: Metric) -> None:
        """Log the epoch's value. Those of the training go to the loggers by src/callbacks/scalars.py.

        Lightning would log them after the callbacks, of which one may stop the run at an epoch's end.
        """
        self.log(name, metric, on_step=False, on_epoch=True, logger=name not in self._of_training)

    def on_fit_start(self) -> None:
        """Remember how many epochs the run has."""
        self._epochs = self.trainer.max_epochs or 1
        if self._wants_graphs and self.graphs is None:
            self.start_graphs()

    def start_graphs(self) -> None:
        """Record the gradients of the steps that follow.

        Where that cannot be done, one line says so. With `auto` it does only where `graphs=true` would record them.
        """
        is_auto, why_not = self._wants_graphs == AUTO, self.no_graphs()
        setting = "graphs=auto" if is_auto else "graphs=true"
        if is_auto and why_not is not None:
            return
        if is_auto:
            why_not = self._foreign()
        if why_not is None:
            self.graphs = Graphs(CudaGraphs(self.device), self.parts, setting)
        elif processes.rank() == 0:
            print(f"{setting}: {why_not}; all steps run without graphs", file=sys.stderr)

    def _foreign(self) -> str | None:
        """Return what takes part in a step and belongs neither to this project nor to PyTorch, or None.

        What such code does besides tensor operations, a recording would freeze without an error.
        """
        for one in (self, *self.net.modules(), *self._collaborators()):
            package = (getattr(one, "__module__", None) or _OWN_PACKAGES[0]).partition(".")[0]
            if package not in _OWN_PACKAGES:
                name = getattr(one, "__qualname__", type(one).__qualname__)
                return f"{name} is code of your own, which graphs=true would record"
        return None

    def _collaborators(self) -> Iterator[object]:
        """Yield what computes in a step besides the network."""
        yield self.task

    def no_graphs(self) -> str | None:
        """Return why there are no graphs for this module, or None."""
        if self.device.type != "cuda":
            return f"CUDA graphs need a GPU, this run is on {self.device.type}"
        if processes.world_size() > 1:
            return f"CUDA graphs need one process, this run has {processes.world_size()}"
        return None

    def _recorded(self, part: str, program: Callable[..., Any], *arguments: Any, frozen: object) -> Any:
        """Return `program(*arguments)`, from a recording if there are any.

        `frozen` is what the program depends on besides its arguments, the network, and the epoch.
        """
        if self.graphs is None:
            return program(*arguments)
        self.seed_pass()
        return self.graphs.run(part, program, *arguments, frozen=(self._frozen(), frozen))

    def _frozen(self) -> object:
        """Return what every recording holds: numbers, flags, and the addresses of the network's tensors."""
        # Thousands, in each step: a list is filled faster than a generator is read.
        tensors = [group[key] for group, key in self._tensor_places if group[key] is not None]
        kind = self.device.type
        return (
            (self.current_epoch, self._epochs, self.gradient_clip),
            (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)),
            [module.training for module in self._net_modules],
            list(map(Tensor.data_ptr, tensors)),
        )

    @cached_property
    def _net_modules(self) -> list[nn.Module]:
        return list(self.net.modules())

    @cached_property
    def _tensor_places(self) -> list[tuple[dict[str, Any], str]]:
        """Where the network keeps its parameters and buffers."""
        groups = (group for module in self._net_modules for group in (module._parameters, module._buffers))
        return [(group, key) for group in groups for key in group]

    def on_train_start(self) -> None:
        """Let a schedule that a checkpoint restored end with the epochs that this run was told.

        What an optimiser keeps for a weight takes the weight's layout: the checkpoint may be of another device.
        """
        self.lay_out_optimizers()
        self._set_periods()

    def lay_out_optimizers(self) -> None:
        """Give what the optimisers have loaded from a checkpoint the layout of their weights."""
        for optimizer in self.trainer.optimizers:
            for weight, kept in optimizer.state.items():
                for name, value in kept.items():
                    if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                        kept[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)

    def _set_periods(self) -> None:
        for config in self.trainer.lr_scheduler_configs:
            if hasattr(config.scheduler, "T_max") and self._period is not None:
                left = self._period - self._schedule_began
                config.scheduler.T_max = left if left > 0 else self._period  # pyright: ignore[reportAttributeAccessIssue]

    def note_schedule(self, scheduler: Any) -> Any:
        """Remember a schedule as configured, and return it."""
        self._period = getattr(scheduler, "T_max", None)
        self._schedule_at_first = copy.deepcopy(scheduler.state_dict())
        return scheduler

    def restart_schedule(self, epoch: int) -> None:
        """Let the schedule of the learning rate begin anew with an epoch; one with a period has the rest of it left."""
        (config,) = self.trainer.lr_scheduler_configs
        scheduler = cast(Any, config.scheduler)
        scheduler.load_state_dict(copy.deepcopy(self._schedule_at_first))
        for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        self._schedule_began = epoch
        self._set_periods()

    def weight_decay(self) -> float:
        """Return the weight decay of the weights' optimiser; 0 where it has none."""
        return float(self._optimizers[0].param_groups[0].get("weight_decay") or 0.0)

    def set_weight_decay(self, value: float) -> None:
        """Set the weight decay of the weights' optimiser."""
        for group in self._optimizers[0].param_groups:
            group["weight_decay"] = value

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make whatever randomness an operation uses a function of the place in the run."""
        self.at_step(batch_idx)

    def at_step(self, step: int) -> None:
        """Take the place of a step of the present epoch, whose random numbers come next."""
        self._step = step
        self.seed_pass()

    def seed_pass(self) -> None:
        """Seed PyTorch's generators for this step: each pass of a step that calls it draws the same numbers.

        A pass that is being recorded has been seeded before.
        """
        if self.graphs is None or self.graphs.begin_pass():
            seed_step(self.seed, self.current_epoch, self._step, self.global_rank)

    def average_step(self, weights: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the gradients' means over the processes; the running statistics become theirs, in the same message.

        So the processes' networks stay exactly equal, and any of them can write the checkpoint. A weight that no process
        used has no gradient (None): its optimiser leaves it as it is.
        """
        if processes.world_size() == 1:
            return list(gradients)
        buffers = [buffer for buffer in self.net.buffers() if buffer.is_floating_point()]
        averaged, moved = average_gradients(weights, gradients, buffers)
        if buffers:
            torch._foreach_copy_(buffers, moved)
        return averaged

    def check_finite(
        self,
        what: str,
        gradient_norm: Tensor,
        loss: Tensor,
        *,
        remedy: str = "a smaller learning rate of the weights",
    ) -> None:
        """Raise `Diverged` if a gradient, averaged over the processes, is not finite, with what may help against it.

        On a GPU the host does not wait for the norm. It is read in the next step, and before anything is written.
        """
        rates = [group["lr"] for optimizer in self._optimizers for group in optimizer.param_groups]
        check = _Check(what, self.current_epoch, self._step, rates, remedy)
        if gradient_norm.device.type != "cuda" or processes.world_size() > 1:  # processes have to fail together
            check.pass_or_raise(gradient_norm, loss)
            return
        values = torch.stack([gradient_norm.detach().double(), loss.detach().double()]).to("cpu", non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._unread.append((check, values, copied))
        while len(self._unread) > _UNREAD:
            self._read_check()

    def confirm(self) -> None:
        """Wait for the gradients of all steps so far, and raise `Diverged` if one was not finite.

        Whoever writes what a step came to calls this first.
        """
        while self._unread:
            self._read_check()

    def _read_check(self) -> None:
        check, values, copied = self._unread.popleft()
        copied.synchronize()
        check.pass_or_raise(*values)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Confirm the last step of an epoch, before its validation and its files."""
        if self.trainer.is_last_batch or self.trainer.should_stop:
            self.confirm()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the sums of the training epoch so far, of every process; none at an epoch's end."""
        self.confirm()
        checkpoint["format"] = CHECKPOINT_FORMAT
        checkpoint["schedule_began"] = self._schedule_began
        within_epoch = not self.trainer.is_last_batch
        sums = {
            name: {key: cast(Tensor, value).cpu() for key, value in self._metric(name).metric_state.items()}
            for name in self._of_training
        }
        checkpoint["epoch_sums"] = processes.gather(sums) if within_epoch else []

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the sums of an epoch that was cut in two, and when the schedule began."""
        self._schedule_began = int(checkpoint.get("schedule_began", 0))
        sums = checkpoint["epoch_sums"]
        assert len(sums) in (0, processes.world_size())
        for name, states in (sums[processes.rank()] if sums else {}).items():
            metric = self._metric(name)
            for key, value in states.items():
                setattr(metric, key, value.to(metric.device))

    def _metric(self, name: str) -> Metric:
        metric = self.metrics[name]
        assert isinstance(metric, Metric)
        return metric


class Untrained(L.LightningModule):
    """The module of a run that trains nothing: its trainer has the loggers and the device, and is never asked to train."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def average_gradients(
    weights: Sequence[Tensor], gradients: Sequence[Tensor | None], others: Sequence[Tensor] = ()
) -> tuple[list[Tensor | None], list[Tensor]]:
    """Return the means over the processes of gradients and of other tensors, in one message.

    A weight that no process used has no gradient, one that some did not use has their gradients as 0.
    """
    if processes.world_size() == 1:
        return list(gradients), list(others)
    used = torch.tensor([gradient is not None for gradient in gradients], dtype=weights[0].dtype)
    filled = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)]
    *averaged, used = processes.average([*filled, *others, used.to(weights[0].device)])
    own = [g if use else None for g, use in zip(averaged[: len(filled)], used.tolist(), strict=True)]
    return own, averaged[len(filled) :]


def set_gradients(parameters: Iterable[Tensor], gradients: Iterable[Tensor | None]) -> None:
    """Set each `grad`, with the same order of elements in memory as in its parameter; None leaves a parameter without.

    `backward` sees to that itself. torch's fused optimisers rely on it, and mix up elements without a word where it does
    not hold (seen in 2.14.1 on a CPU).
    """
    formats = torch.contiguous_format, torch.channels_last
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            parameter.grad = None
            continue
        alike = any(
            parameter.is_contiguous(memory_format=f) and gradient.is_contiguous(memory_format=f) for f in formats
        )
        parameter.grad = gradient if alike else torch.empty_like(parameter).copy_(gradient)


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give zero momentum to weights that get their first gradient after others did, as those of a sampled operation may.

    torch's fused SGD raises an error (2.14.1) unless all weights with a gradient have a momentum buffer, or none has.
    From zeros it computes exactly the first step of such a weight: momentum * 0 + gradient.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        if not group["fused"] or not group["momentum"] or group["dampening"]:
            continue
        stepped = [weight for weight in group["params"] if weight.grad is not None]
        late = [w for w in stepped if optimizer.state.get(w, {}).get("momentum_buffer") is None]
        if len(late) < len(stepped):
            for weight in late:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)


@contextmanager
def in_eval_mode(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put modules into eval mode within the block, each by itself, and back into the mode that it was in."""
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def has_channels_last(device: torch.device) -> bool:
    """Return whether images have their channels innermost in memory on a device.

    It is faster on a CPU. On a GPU, the gradient of a padded average pool is wrong in that layout, without an error, in
    PyTorch 2.11 and others (pytorch/pytorch#188344): the alphas' gradient in the plain cells was off by 22 %.
    """
    return device.type != "cuda"


def in_layout(inputs: Tensor) -> Tensor:
    """Return images (N, C, H, W) in the layout of their device; other inputs stay as they are."""
    if inputs.dim() != 4:
        return inputs
    channels_last = has_channels_last(inputs.device)
    return inputs.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def lay_out(net: nn.Module) -> None:
    """Give the weights and buffers of a network the layout of their device."""
    tensors = [*net.parameters(), *net.buffers()]
    if not tensors or has_channels_last(tensors[0].device):
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return
    for tensor in tensors:
        if tensor.dim() == 4:
            # Of a single channel, both layouts are contiguous, and cuDNN goes by the strides: those are set anew.
            tensor.data = tensor.data.contiguous().flatten().view(tensor.shape)
