"""The search step: alphas and weights in turn, one mini-batch each (algorithm 1 of arXiv 1806.09055)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from src.bilevel.hypergradient import AlphaGradient, Bilevel, Hypergradient, Loss, norm
from src.bilevel.unroll import Tensors, VirtualStep, check_unrollable
from src.common import processes
from src.common.errors import unknown
from src.spaces.relaxed import RelaxedSpace
from src.training.module import Labelled, TrainingModule, channels_last, set_gradients

OptimizerFactory = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]

PRECISIONS = ("32-true", "64-true", "bf16-mixed")


class SearchModule(TrainingModule):
    """Searches a space: holds the supernet and its alphas, and optimises both.

    A batch is {"weights": (images, labels), "arch": (images, labels)} from the two halves of the train split.
    """

    def __init__(
        self,
        space: nn.Module,
        *,
        num_classes: int,
        hypergradient: Hypergradient,
        weight_optimizer: OptimizerFactory,
        alpha_optimizer: OptimizerFactory,
        weight_scheduler: SchedulerFactory,
        gradient_clip: float = 5.0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            RelaxedSpace(space),
            num_classes=num_classes,
            training_metrics=("train_loss", "train_accuracy", "arch_loss", "hypergradient_norm", "correction_ratio"),
            evaluation_metrics=("val_loss", "val_accuracy"),
            gradient_clip=gradient_clip,
            seed=seed,
        )
        self.net: RelaxedSpace
        self.automatic_optimization = False
        self.hypergradient = hypergradient
        self._weight_optimizer = weight_optimizer
        self._alpha_optimizer = alpha_optimizer
        self._weight_scheduler = weight_scheduler

    def weights(self) -> Tensors:
        """Return the network's weights by name, all parameters but the alphas."""
        return dict(self._parameters_by_name[0])

    def alphas(self) -> Tensors:
        """Return the alphas by name, one vector a key."""
        return dict(self._parameters_by_name[1])

    # Looked up once: walks through a supernet's thousands of modules, a dozen a step, took a tenth of the step.

    @cached_property
    def _parameters_by_name(self) -> tuple[Tensors, Tensors]:
        """Weights and alphas."""
        groups: tuple[Tensors, Tensors] = ({}, {})
        for name, parameter in self.net.named_parameters():
            groups[name.startswith("alphas.")][name] = parameter
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
    def _has_tied_weights(self) -> bool:
        names = [name for name, _ in self.net.named_parameters(remove_duplicate=False)]
        return len(names) > sum(map(len, self._parameters_by_name))

    def _call_with(self, state: Tensors, images: Tensor) -> Tensor:
        """Return the logits with some parameters and buffers replaced."""
        return functional_call(self.net, state, (channels_last(images),), tie_weights=self._has_tied_weights)

    def configure_optimizers(self) -> Any:
        """Return the weights' optimiser with its schedule, and the alphas' optimiser."""
        weight_optimizer = self._weight_optimizer(iter(self.weights().values()))  # pyright: ignore[reportArgumentType]
        alpha_optimizer = self._alpha_optimizer(iter(self.alphas().values()))  # pyright: ignore[reportArgumentType]
        if self.hypergradient.order == 2:
            check_unrollable(weight_optimizer)
        return [weight_optimizer, alpha_optimizer], [self.note_schedule(self._weight_scheduler(weight_optimizer))]

    def on_fit_start(self) -> None:
        """Refuse a precision in which the hypergradient would be wrong."""
        check_precision(self.trainer.precision)

    def training_step(self, batch: dict[str, Labelled], batch_idx: int) -> dict[str, Tensor]:
        """Step the alphas on the arch batch, then the weights on the weight batch, with the new alphas.

        Returns the weight batch's loss and accuracy, for callbacks.
        """
        weight_optimizer, alpha_optimizer = self.optimizers()  # pyright: ignore[reportGeneralTypeIssues]
        gradient = self.step_alphas(batch, weight_optimizer.optimizer, alpha_optimizer)
        loss, logits = self.step_weights(batch["weights"], weight_optimizer)

        labels = batch["weights"][1]
        count = len(labels)
        self.measure("train_loss", loss, count)
        self.measure("train_accuracy", logits, labels)
        self.measure("arch_loss", gradient.arch_loss, count)
        self.measure("hypergradient_norm", norm(gradient.total), count)
        if gradient.correction:
            self.measure("correction_ratio", norm(gradient.correction) / norm(gradient.direct), count)
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {"loss": loss, "accuracy": accuracy}

    def step_alphas(self, batch: dict[str, Labelled], weight_optimizer: Any, alpha_optimizer: Any) -> AlphaGradient:
        """Step the alphas along the hypergradient; the weights, their gradients and all buffers stay as they are."""
        weights, alphas = self.weights(), self.alphas()
        unrolls = self.hypergradient.order == 2
        gradient = self.hypergradient(
            Bilevel(
                weight_loss=self.loss_on(batch["weights"]),
                arch_loss=self.loss_on(batch["arch"]),
                weights=weights,
                alphas=alphas,
                step=VirtualStep.of(weight_optimizer, weights) if unrolls else VirtualStep(lr=0.0),
                average=processes.average,
            )
        )
        self.check_finite("alphas", norm(gradient.total), gradient.arch_loss)
        set_gradients(alphas.values(), (gradient.total[name] for name in alphas))
        alpha_optimizer.step()
        return gradient

    def step_weights(self, batch: Labelled, weight_optimizer: Any) -> tuple[Tensor, Tensor]:
        """Step the weights along their clipped gradient, and return the loss and the logits before the step."""
        images, labels = batch
        weights = list(self.weights().values())
        alphas = {name: alpha.detach() for name, alpha in self.alphas().items()}
        logits = self._call_with(alphas, images)
        loss = F.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        set_gradients(weights, self.average_step(list(gradients)))
        gradient_norm = nn.utils.clip_grad_norm_(weights, self.gradient_clip)
        self.check_finite("weights", gradient_norm, loss)
        weight_optimizer.step()
        return loss.detach(), logits.detach()

    def loss_on(self, batch: Labelled) -> Loss:
        """Return the loss on a batch as a function of (weights, alphas) that leaves this module as it is."""
        images, labels = batch
        # BatchNorm writes its running statistics here: only the weight step's pass may count.
        scratch = {name: module._buffers[key].clone() for name, module, key in self._buffers_by_name}  # pyright: ignore[reportOptionalMemberAccess]

        def loss(weights: Tensors, alphas: Tensors) -> Tensor:
            return F.cross_entropy(self._call_with({**weights, **alphas, **scratch}, images), labels)

        return loss

    def on_train_epoch_end(self) -> None:
        """Step the schedule, which Lightning leaves to manual optimisation, and see that all processes agree."""
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
        scheduler.step()  # pyright: ignore[reportCallIssue]
        alphas = {name: alpha.tolist() for name, alpha in self.alphas().items()}
        first, *others = processes.gather((alphas, self.net.derive().to_json()))
        if any(other != first for other in others):
            raise RuntimeError(f"alphas or genotype differ between processes after epoch {self.current_epoch}")

    def validation_step(self, batch: Labelled, batch_idx: int) -> None:
        """Measure the supernet with its running statistics."""
        images, labels = batch
        logits = self.net(channels_last(images))
        self.measure("val_loss", F.cross_entropy(logits, labels), len(labels))
        self.measure("val_accuracy", logits, labels)


def check_precision(precision: str) -> None:
    """Raise a `ConfigError` for a precision in which gradients by `torch.autograd.grad` would be scaled or too coarse."""
    if precision not in PRECISIONS:
        raise unknown("trainer.precision for search:", precision, PRECISIONS)
