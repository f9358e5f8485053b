"""The search step: alphas and weights in turn, one mini-batch each (algorithm 1 of arXiv 1806.09055).

A method of one level steps both together, on both mini-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from src.architectures.architecture import Architecture
from src.bilevel.hypergradient import AlphaGradient, Bilevel, Hypergradient, Loss, norm
from src.bilevel.unroll import Tensors, VirtualStep, check_unrollable
from src.common import processes
from src.common.errors import must_be, unknown
from src.common.seeding import derive_seed
from src.data.tasks import Task
from src.methods.method import Method
from src.methods.schedules import Progress
from src.methods.weight_rules import Gradients, WeightsPoint
from src.spaces.relaxed import WEIGHTS, RelaxedSpace
from src.training.clock import Elapsed, between, mark
from src.training.module import (
    WEIGHTS_PART,
    Batch,
    TrainingModule,
    average_gradients,
    in_eval_mode,
    in_layout,
    set_gradients,
    start_momentum,
)

OptimizerFactory = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]

PRECISIONS = ("32-true", "64-true", "bf16-mixed")
ALPHAS_PART = "alphas"  # of a step, before that of the weights
TOGETHER_PART = "alphas and weights"  # of a step of one level


class AlphaStep(NamedTuple):
    """What a search step computes for the alphas, all in tensors: the hypergradient's terms, and what is made of them.

    `stepped` is what their optimiser gets, the hypergradient and the penalty's gradient, and `length` its norm; `values`
    are for loggers, by the names that they have there.
    """

    total: Tensors
    direct: Tensors
    correction: Tensors
    distance: Tensor | None
    arch_loss: Tensor
    stepped: Tensors
    length: Tensor
    values: Tensors

    @property
    def hypergradient(self) -> AlphaGradient:
        """The hypergradient alone."""
        return AlphaGradient(self.total, self.direct, self.correction, self.arch_loss, self.distance)


class WeightStep(NamedTuple):
    """What a search step computes for the weights: their clipped gradients, the norm before, loss and outputs."""

    gradients: list[Tensor | None]
    length: Tensor
    loss: Tensor
    outputs: Tensor


class Step(NamedTuple):
    """What a search step came to: of the alphas (None while they are frozen), and of the weights before their step.

    `times` are the seconds of its parts, by the names that loggers have them under.
    """

    gradient: AlphaGradient | None
    loss: Tensor
    outputs: Tensor
    targets: Tensor
    times: dict[str, float | Elapsed]


class SearchModule(TrainingModule):
    """Searches a space: holds the supernet and its alphas, and optimises both.

    A batch is {"weights": (inputs, targets), "arch": (inputs, targets)} from the two halves of the train split. What
    differs between methods is in `method`. There are two kinds of steps: in turn, each on its half (bilevel, as in DARTS),
    and together, on both halves (a method of one level). `alpha_optimizer` may be None for a method that has its own,
    which is used in any case.

    Raises:
        ConfigError: the method does not go with the hypergradient or the space, or has no optimiser for its alphas.
    """

    def __init__(
        self,
        space: nn.Module,
        *,
        task: Task,
        hypergradient: Hypergradient,
        weight_optimizer: OptimizerFactory,
        weight_scheduler: SchedulerFactory,
        alpha_optimizer: OptimizerFactory | None = None,
        method: Method | None = None,
        gradient_clip: float = 5.0,
        seed: int = 0,
        graphs: bool | str = False,
    ) -> None:
        method = method or Method()
        method.check_hypergradient(hypergradient)
        super().__init__(
            method.relax(space),
            task=task,
            splits=("train", "val"),
            training_means=("arch_loss", "hypergradient_norm", "correction_ratio", *method.rule_means),
            training_maxima=method.rule_maxima,
            gradient_clip=gradient_clip,
            seed=seed,
            graphs=graphs,
        )
        self.net: RelaxedSpace
        self.automatic_optimization = False
        self.parts = (TOGETHER_PART if method.one_level else ALPHAS_PART, WEIGHTS_PART)
        self.hypergradient = hypergradient
        self.method = method
        self.rule = method.start_rule(self.net)
        self.step_gradient: AlphaGradient | None = None  # of the latest step; None while the alphas are frozen
        self._alpha_values: Tensors = {}
        self._weight_optimizer = weight_optimizer
        self._alpha_optimizer = alpha_optimizer if method.alpha_optimizer is None else method.alpha_optimizer
        if self._alpha_optimizer is None:
            raise must_be("alpha_optimizer", f"set for the method {method.name}, which has none of its own", None)
        self._weight_scheduler = weight_scheduler

    def weights(self) -> Tensors:
        """Return the network's weights by name, all parameters but the alphas."""
        return dict(self._parameters_by_name[0])

    def alphas(self) -> Tensors:
        """Return the alphas by name, one vector for each key, and the edges' weights where the method has them."""
        return dict(self._parameters_by_name[1])

    def mixing_weights(self) -> Tensors:
        """Return the mixing weights without noise, (candidates,) for each key."""
        return self.method.expected(_detached(self.alphas()))

    def remark(self) -> str | None:
        """Return what a user has to know of how the method makes the architecture of the present alphas, or None."""
        return self.method.remark(self.net.by_name(self.mixing_weights()), self.net.spec)

    def derive(self) -> Architecture:
        """Return the architecture that the method makes of the present alphas."""
        return self.method.derive(self.net.by_name(self.mixing_weights()), self.net.spec)

    # Looked up once: walks through a supernet's thousands of modules, a dozen a step, took a tenth of the step.

    @cached_property
    def _parameters_by_name(self) -> tuple[Tensors, Tensors]:
        """Weights and alphas."""
        groups: tuple[Tensors, Tensors] = ({}, {})
        for name, parameter in self.net.named_parameters():
            groups[not name.startswith(WEIGHTS)][name] = parameter
        return groups

    @cached_property
    def _buffers_by_name(self) -> list[tuple[str, nn.Module, str]]:
        """The name, the module and its name for each buffer; a buffer itself changes when it moves to a device."""
        return [
            (f"{prefix}{'.' if prefix else ''}{key}", module, key)
            for prefix, module in self.net.named_modules()
            for key, buffer in module._buffers.items()
            if buffer is not None
        ]

    @cached_property
    def _places(self) -> dict[str, list[tuple[dict[str, Any], str]]]:
        """Where the module keeps each weight, alpha and buffer, by name; a tied weight has several places."""
        names = {id(parameter): name for group in self._parameters_by_name for name, parameter in group.items()}
        places: dict[str, list[tuple[dict[str, Any], str]]] = {}
        for module in self.net.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    places.setdefault(names[id(parameter)], []).append((module._parameters, key))
        return places | {name: [(module._buffers, key)] for name, module, key in self._buffers_by_name}

    def _call_with(self, state: Tensors, inputs: Tensor, mixing: Tensors, *, one_path: bool | None = None) -> Tensor:
        """Return the network's outputs with some weights and buffers replaced, for some mixing weights.

        `one_path` says whether they are one-hot, so that one candidate of each choice runs; None is as the method has it.

        `torch.func.functional_call` does the same, but looks up each of thousands of names in each pass.
        """
        replaced: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for name, tensor in state.items():
                for owner, key in self._places[name]:
                    replaced.append((owner, key, owner[key]))
                    owner[key] = tensor
            one_path = self.method.relaxation.one_path if one_path is None else one_path
            return self.net(in_layout(inputs), mixing=mixing, one_path=one_path)
        finally:
            for owner, key, tensor in replaced:
                owner[key] = tensor

    def configure_optimizers(self) -> Any:
        """Return the weights' optimiser with its schedule, and the alphas' optimiser."""
        weight_optimizer = self._weight_optimizer(iter(self.weights().values()))  # pyright: ignore[reportArgumentType]
        assert self._alpha_optimizer is not None
        alpha_optimizer = self._alpha_optimizer(iter(self.alphas().values()))  # pyright: ignore[reportArgumentType]
        if self.hypergradient.unrolls:
            check_unrollable(weight_optimizer)
        self._optimizers = [weight_optimizer, alpha_optimizer]
        return [weight_optimizer, alpha_optimizer], [self.note_schedule(self._weight_scheduler(weight_optimizer))]

    def on_fit_start(self) -> None:
        """Refuse a precision in which the hypergradient would be wrong."""
        super().on_fit_start()
        check_precision(self.trainer.precision)

    def _collaborators(self) -> Iterator[object]:
        """Yield what computes in a step besides the network."""
        method = self.method
        yield from (*super()._collaborators(), self.hypergradient, method)
        yield from (method.relaxation, method.penalty, method.perturbation, method.hypergradient)

    def no_graphs(self) -> str | None:
        """Return why there are no graphs for this search, or None."""
        if self.method.relaxation.one_path:
            return f"{type(self.method.relaxation).__name__} chooses operations on the host in every step"
        if self.method.weight_rule is not None:
            return f"{type(self.method.weight_rule).__name__} takes further passes for the weights"
        return super().no_graphs()

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> dict[str, Tensor]:
        """Take a search step, and measure it.

        Returns the loss and score of the weights' batch, for callbacks.
        """
        weight_optimizer, alpha_optimizer = self.optimizers()  # pyright: ignore[reportGeneralTypeIssues]
        gradient, loss, outputs, targets, times = self.take_step(batch, weight_optimizer, alpha_optimizer)
        count = len(targets)
        self.measure("train", loss, outputs, targets)
        metric, score = self.task.metric, self.task.score(outputs, targets)
        self.step_values = {"step/train_loss": loss, f"step/train_{metric}": score}
        if gradient is not None:
            values = self._alpha_values
            self.measure_mean("arch_loss", gradient.arch_loss, count)
            self.measure_mean("hypergradient_norm", values["hypergradient/total"], count)
            if gradient.correction:
                self.measure_mean("correction_ratio", values["hypergradient/ratio"], count)
            self.step_values |= {"step/arch_loss": gradient.arch_loss, **values}
        for name, value in self.rule.values().items():
            self.step_values[f"step/{name}"] = value
            if name in self.method.rule_means:
                self.measure_mean(name, value, count)
            else:
                self.measure_largest(name, value)
        self.step_values |= times
        self.step_samples, self.step_gradient = count, gradient
        return {"loss": loss, metric: score}

    def take_step(self, batch: dict[str, Batch], weight_optimizer: Any, alpha_optimizer: Any) -> Step:
        """Step alphas (unless this epoch trains the weights only) and weights, as the method does.

        Args:
            batch: of both halves.
            weight_optimizer: of the weights, by itself or as Lightning wraps it.
            alpha_optimizer: of the alphas.
        """
        step = self._step_together if self.method.one_level else self._step_in_turn
        return step(batch, weight_optimizer, alpha_optimizer)

    def _step_in_turn(self, batch: dict[str, Batch], weight_optimizer: Any, alpha_optimizer: Any) -> Step:
        """Step the alphas on the arch batch, then the weights on the weight batch, with the new alphas."""
        start, gradient, times = mark(self.device), None, {}
        middle = start
        if not self.is_frozen:
            gradient = self.step_alphas(
                batch, getattr(weight_optimizer, "optimizer", weight_optimizer), alpha_optimizer
            )
            middle = mark(self.device)
            times["time/alpha_step"] = between(start, middle)
        loss, outputs = self.step_weights(batch["weights"], weight_optimizer, arch=batch["arch"])
        times["time/weight_step"] = between(middle, mark(self.device))
        return Step(gradient, loss, outputs, batch["weights"][1], times)

    def _step_together(self, batch: dict[str, Batch], weight_optimizer: Any, alpha_optimizer: Any) -> Step:
        """Step alphas and weights on both batches as one, with one pass: both gradients are taken at the same point."""
        start, joined = mark(self.device), _joined(batch)
        if self.is_frozen:
            loss, outputs = self.step_weights(joined, weight_optimizer)
            return Step(None, loss, outputs, joined[1], {"time/weight_step": between(start, mark(self.device))})
        of_alphas, of_weights = self._recorded(
            TOGETHER_PART, self.gradients_together, joined, self._noise(), frozen=self._of_method
        )
        gradient = self._apply_to_alphas(of_alphas, alpha_optimizer)
        loss, outputs = self._apply_to_weights(of_weights, weight_optimizer)
        return Step(gradient, loss, outputs, joined[1], {"time/joint_step": between(start, mark(self.device))})

    def step_alphas(self, batch: dict[str, Batch], weight_optimizer: Any, alpha_optimizer: Any) -> AlphaGradient:
        """Step the alphas along the hypergradient and the penalty's gradient, and return the hypergradient.

        The weights, their gradients and all buffers stay as they are.
        """
        unrolled = weight_optimizer if self.hypergradient.unrolls else None
        found = self._recorded(
            ALPHAS_PART,
            lambda batch, noise: self.alpha_gradients(batch, noise, unrolled),
            {name: batch[name] for name in ("weights", "arch")},
            self._noise(),
            frozen=(self._of_method, None if unrolled is None else self._unrolled(unrolled)),
        )
        return self._apply_to_alphas(found, alpha_optimizer)

    def _apply_to_alphas(self, found: AlphaStep, alpha_optimizer: Any) -> AlphaGradient:
        """Step the alphas along what was computed for them."""
        alphas = self.alphas()
        if self.method.penalty is None:
            self.check_finite("alphas", found.length, found.arch_loss)
        else:
            remedy = "a smaller weight of the penalty, or smaller learning rates,"
            self.check_finite("alphas, with the penalty's,", found.length, found.arch_loss, remedy=remedy)
        set_gradients(alphas.values(), (found.stepped[name] for name in alphas))
        alpha_optimizer.step()
        self._alpha_values = found.values
        return found.hypergradient

    def alpha_gradients(
        self, batch: Mapping[str, Batch], noise: Tensors, weight_optimizer: torch.optim.Optimizer | None
    ) -> AlphaStep:
        """Return what a search step computes for the alphas. Nothing changes, and the host does not wait for a device.

        Args:
            batch: of both halves.
            noise: of the search step.
            weight_optimizer: whose step is unrolled; None for a hypergradient that does not unroll.
        """
        scores: list[Tensor] = []
        problem = self.problem(batch, weight_optimizer, noise=noise, scores=scores)
        gradient = self.method.alpha_gradient(self.hypergradient, problem)
        return self._alpha_step(gradient, scores)

    def _alpha_step(self, gradient: AlphaGradient, scores: list[Tensor]) -> AlphaStep:
        """Add the penalty's gradient to a hypergradient; the last of `scores` is the one to log."""
        penalty = self.method.penalty_gradient(self.alphas(), self.progress)
        stepped = {name: grad + penalty[name] if name in penalty else grad for name, grad in gradient.total.items()}
        values = _of_gradient(gradient)
        if scores:
            values[f"step/arch_{self.task.metric}"] = scores[0]  # further ones are at other alphas
        return AlphaStep(
            gradient.total,
            gradient.direct,
            gradient.correction,
            gradient.distance,
            gradient.arch_loss,
            stepped,
            norm(stepped),
            values,
        )

    def problem(
        self,
        batch: Mapping[str, Batch],
        weight_optimizer: torch.optim.Optimizer | None,
        *,
        noise: Tensors | None = None,
        scores: list[Tensor] | None = None,
    ) -> Bilevel:
        """Return the bilevel problem of this search step; with one level, both losses are on both batches as one.

        Args:
            batch: of both halves.
            weight_optimizer: whose step is unrolled; None for a hypergradient that does not unroll.
            noise: of the search step; drawn if None.
            scores: gets the task's score on the arch batch, each time that its loss is computed.
        """
        weights = {name: weight for name, weight in self.weights().items() if name not in self.rule.frozen}
        if not weights:  # nothing moves in a step
            weights, weight_optimizer = self.weights(), None
        of_weights, of_alphas = [_joined(batch)] * 2 if self.method.one_level else (batch["weights"], batch["arch"])
        return Bilevel(
            weight_loss=self.loss_on(of_weights, noise=noise),
            arch_loss=self.loss_on(of_alphas, noise=noise, scores=scores),
            weights=weights,
            alphas=self.alphas(),
            step=VirtualStep(lr=0.0) if weight_optimizer is None else VirtualStep.of(weight_optimizer, weights),
            average=processes.average,
        )

    def step_weights(self, batch: Batch, weight_optimizer: Any, *, arch: Batch | None = None) -> tuple[Tensor, Tensor]:
        """Step the weights along their clipped gradient, and return the loss and the outputs before the step.

        `arch` is the arch batch, which some weight rules ask for.
        """
        mixing = self._weights_step_mixing(batch)
        program = partial(self.weight_gradients, arch=arch)
        found = self._recorded(WEIGHTS_PART, program, batch, mixing, frozen=self._of_method)
        return self._apply_to_weights(found, weight_optimizer)

    def _apply_to_weights(self, found: WeightStep, weight_optimizer: Any) -> tuple[Tensor, Tensor]:
        """Step the weights along what was computed for them."""
        for weight, gradient in zip(self.weights().values(), found.gradients, strict=True):
            weight.grad = gradient
        self.check_finite("weights", found.length, found.loss)
        start_momentum(getattr(weight_optimizer, "optimizer", weight_optimizer))
        weight_optimizer.step()
        self._step += 1  # for whoever takes steps without a trainer, which sets it itself
        return found.loss, found.outputs

    def weight_gradients(self, batch: Batch, mixing: Tensors, *, arch: Batch | None = None) -> WeightStep:
        """Return what a search step computes for the weights, for some mixing weights. The host waits for no device.

        The gradients are set, too, and the running statistics move.
        """
        inputs, targets = batch
        weights = list(self.weights().values())
        rows = {key: row.requires_grad_() for key, row in self.rule.rows(mixing).items()}
        self.seed_pass()
        outputs = self._call_with({}, inputs, mixing | rows)
        loss = self.task.loss(outputs, targets)
        by_weights, by_rows = _split(torch.autograd.grad(loss, [*weights, *rows.values()], allow_unused=True), weights)
        point = WeightsPoint(
            rows=_detached(rows),
            row_gradients=self._mean_by_rows(rows, by_rows),
            gradients_at=lambda other: self._mean_by_weights(batch, mixing | other),
            arch_gradients=lambda: self._mean_by_weights(arch, mixing),
            progress=self.progress,
        )
        return self._weight_step(self.rule(self.average_step(weights, by_weights), point), loss, outputs)

    def _mean_by_weights(self, batch: Batch | None, mixing: Tensors) -> Gradients:
        """Return the gradients of a batch's loss by the weights, for some mixing weights; no running statistics move."""
        assert batch is not None, "this weight rule needs the arch batch"
        inputs, targets = batch
        weights = list(self.weights().values())
        self.seed_pass()
        loss = self.task.loss(self._call_with(self._scratch(), inputs, mixing), targets)
        return average_gradients(weights, torch.autograd.grad(loss, weights, allow_unused=True))[0]

    @staticmethod
    def _mean_by_rows(rows: Tensors, gradients: Gradients) -> Tensors:
        if not rows:
            return {}
        filled = [torch.zeros_like(row) if g is None else g for row, g in zip(rows.values(), gradients, strict=True)]
        return dict(zip(rows, processes.average(filled), strict=True))

    def _weight_step(self, gradients: Sequence[Tensor | None], loss: Tensor, outputs: Tensor) -> WeightStep:
        """Set the weights' gradients, and clip them."""
        weights = list(self.weights().values())
        set_gradients(weights, gradients)
        length = nn.utils.clip_grad_norm_(weights, self.gradient_clip)
        return WeightStep([weight.grad for weight in weights], length, loss.detach(), outputs.detach())

    def gradients_together(self, batch: Batch, noise: Tensors) -> tuple[AlphaStep, WeightStep]:
        """Return what a search step of one level computes, for alphas and weights, in one pass.

        The weights' gradients are set, too, and the running statistics move. The host waits for no device.

        Args:
            batch: both batches as one.
            noise: of the search step.
        """
        inputs, targets = batch
        weights, alphas = list(self.weights().values()), self.alphas()
        self.seed_pass()
        outputs = self._call_with({}, inputs, self.method.mixing_weights(alphas, noise, self.progress))
        loss = self.task.loss(outputs, targets)
        parameters = [*weights, *alphas.values()]
        gradients = self.average_step(parameters, torch.autograd.grad(loss, parameters, allow_unused=True))
        direct = {
            name: torch.zeros_like(alpha) if gradient is None else gradient
            for (name, alpha), gradient in zip(alphas.items(), gradients[len(weights) :], strict=True)
        }
        gradient = AlphaGradient(total=direct, direct=direct, correction={}, arch_loss=loss.detach())
        return (
            self._alpha_step(gradient, [self.task.score(outputs.detach(), targets)]),
            self._weight_step(gradients[: len(weights)], loss, outputs),
        )

    @property
    def _of_method(self) -> object:
        return self.method, self.hypergradient

    def _unrolled(self, optimizer: torch.optim.Optimizer) -> object:
        """Return what a recording holds of an optimiser whose step is unrolled: numbers, and where its momentum is."""
        numbers = [value for value in optimizer.param_groups[0].values() if isinstance(value, int | float | None)]
        states = (optimizer.state.get(weight, {}) for weight in self.weights().values())
        velocity = [state["momentum_buffer"] for state in states if state.get("momentum_buffer") is not None]
        return tuple(numbers), tuple(map(Tensor.data_ptr, velocity))

    @property
    def progress(self) -> Progress:
        """How far the search is."""
        return Progress(self.current_epoch, self._epochs)

    @property
    def is_frozen(self) -> bool:
        """Whether this epoch trains the weights only."""
        return self.progress.epoch < self.method.frozen_of(self.progress.epochs)

    def loss_on(self, batch: Batch, *, noise: Tensors | None = None, scores: list[Tensor] | None = None) -> Loss:
        """Return the loss on a batch as a function of (weights, alphas) that leaves this module as it is.

        All such functions of one search step have the same noise in their mixing weights, and random operations such as
        dropout draw the same numbers in each call: a difference of two calls is of weights and alphas alone.

        Args:
            batch: of one half.
            noise: of the search step; drawn if None.
            scores: gets the task's score on the batch in each call, for loggers.
        """
        inputs, targets = batch
        noise = self._noise() if noise is None else noise
        progress, scratch = self.progress, self._scratch()
        frozen = {name: weight.detach() for name, weight in self.weights().items() if name in self.rule.frozen}
        own_dtype = next(iter(self.weights().values())).dtype

        def loss(weights: Tensors, alphas: Tensors) -> Tensor:
            self.seed_pass()
            mixing = self.method.mixing_weights(alphas, noise, progress)
            state, given = {**frozen, **weights, **scratch}, inputs
            dtype = next(iter(weights.values())).dtype
            if dtype != own_dtype:  # a hypergradient asks for more digits than the weights have
                state, given = _with_dtype(state, dtype), _with_dtype({"inputs": inputs}, dtype)["inputs"]
            outputs = self._call_with(state, given, mixing)
            if scores is not None:
                scores.append(self.task.score(outputs.detach(), targets))
            return self.task.loss(outputs, targets)

        return loss

    def outputs_with(self, inputs: Tensor, mixing: Tensors, *, one_path: bool | None = None) -> Tensor:
        """Return the network's outputs for some mixing weights; no running statistics move.

        Args:
            inputs: of the network.
            mixing: the weights of the candidates.
            one_path: whether `mixing` is one-hot, so that of each choice only the chosen candidate runs; None: as the
                method has it.
        """
        return self._call_with(self._scratch(), inputs, mixing, one_path=one_path)

    def _scratch(self) -> Tensors:
        """Return copies of all buffers. BatchNorm writes its running statistics there: only the weights' step may count."""
        alike: dict[Any, list[tuple[str, Tensor]]] = {}
        for name, module, key in self._buffers_by_name:
            buffer = cast(Tensor, module._buffers[key])
            alike.setdefault((buffer.shape, buffer.dtype, buffer.device), []).append((name, buffer))
        copies: Tensors = {}
        for group in alike.values():  # one copy a group: a supernet has thousands of buffers of a few shapes
            names, buffers = zip(*group, strict=True)
            # `data` has a version of its own: writing into one copy must not look like writing into all of them.
            copies |= {name: copy.data for name, copy in zip(names, torch.stack(buffers).unbind(), strict=True)}
        return copies

    def _noise(self) -> Tensors:
        """Return the noise of this search step, the same on all processes."""
        return self.method.draw(self.alphas(), self._generator("noise"))

    def _weights_step_mixing(self, batch: Batch) -> Tensors:
        """Return the mixing weights of the weights' step."""
        inputs, targets = batch

        with ExitStack() as in_eval:
            state: Tensors = {}

            def loss(mixing: Mapping[str, Tensor]) -> Tensor:
                if not state:  # until the perturbation is found: its gradients are taken in eval mode, too
                    in_eval.enter_context(in_eval_mode(self._net_modules))
                    state.update(_detached(self.weights()) | self._scratch())
                self.seed_pass()
                rows = dict(zip(mixing, processes.shared(list(mixing.values())), strict=True))
                value = self.task.loss(self._call_with(state, inputs, rows), targets)
                (mean,) = processes.average([value.detach()])
                return value + (mean - value.detach())

            return self.method.weights_step_mixing(
                _detached(self.alphas()), self._noise(), self.progress, loss, self._generator("perturbation")
            )

    def _generator(self, purpose: str) -> torch.Generator:
        """Return a generator that is a function of the place in the run, and not of the process."""
        return torch.Generator().manual_seed(derive_seed(purpose, self.seed, self.current_epoch, self._step))

    def on_train_epoch_end(self) -> None:
        """Step the schedule, which Lightning leaves to manual optimisation, and see that all processes agree."""
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
        scheduler.step()  # pyright: ignore[reportCallIssue]
        alphas = {name: alpha.tolist() for name, alpha in self.alphas().items()}
        first, *others = processes.gather((alphas, self.derive().to_json()))
        if any(other != first for other in others):
            raise RuntimeError(f"alphas or genotype differ between processes after epoch {self.current_epoch}")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure the supernet with its running statistics."""
        inputs, targets = batch
        outputs = self._call_with({}, inputs, self.method.evaluated(_detached(self.alphas()), self.progress))
        self.measure("val", self.task.loss(outputs, targets), outputs, targets)


def _joined(batch: Mapping[str, Batch]) -> Batch:
    """Return the batches of both halves as one, (2N, ...)."""
    inputs, targets = (torch.cat(pair) for pair in zip(batch["weights"], batch["arch"], strict=True))
    return inputs, targets


def _of_gradient(gradient: AlphaGradient) -> Tensors:
    """Return the norms of a hypergradient and of its two terms, by the names that loggers have them under."""
    values = {"hypergradient/total": norm(gradient.total), "hypergradient/direct": norm(gradient.direct)}
    if gradient.correction:
        values["hypergradient/correction"] = norm(gradient.correction)
        values["hypergradient/ratio"] = values["hypergradient/correction"] / values["hypergradient/direct"]
    if gradient.distance is not None:
        values["hypergradient/distance"] = gradient.distance
    return values


def check_precision(precision: Any) -> None:
    """Raise a `ConfigError` for a precision in which gradients by `torch.autograd.grad` would be scaled or too coarse.

    It must be asked what was set: on a CPU, Lightning takes bf16-mixed for 16-mixed without a word.
    """
    if str(precision) not in (*PRECISIONS, "32", "64"):
        raise unknown("precision of a search", precision, PRECISIONS)


def _split(gradients: Sequence[Tensor | None], weights: Sequence[Tensor]) -> tuple[Gradients, Gradients]:
    """Return the gradients of the weights, and those of what came after them."""
    return list(gradients[: len(weights)]), list(gradients[len(weights) :])


def _detached(tensors: Tensors) -> Tensors:
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _with_dtype(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """Return tensors with those of floating-point numbers in another type."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
