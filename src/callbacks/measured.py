"""What several callbacks watch and costs passes through the supernet: measured once, for all who ask.

Everything is computed beside the run: with the noise and the random numbers of the search step, but on copies of all
buffers, and every generator is restored.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from src.architectures.architecture import Answer
from src.bilevel.hypergradient import Bilevel
from src.bilevel.unroll import Tensors
from src.common import processes
from src.common.seeding import preserved_randomness
from src.training.search import SearchModule

PRODUCTS = 10  # with the Hessian, for one eigenvalue; two passes each
DISTANCE = 1e-7  # by which the alphas move, in float64: with more, ReLUs and max pools that switch on the way dominate


class Measurements:
    """The measurements of one trainer. A value that is asked for twice at one place in the run is computed once.

    Attributes:
        seconds: what has been spent on each measurement since somebody emptied it.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._latest: dict[str, tuple[tuple[int, int], Any]] = {}

    @staticmethod
    def of(trainer: L.Trainer) -> Measurements:
        """Return those of a trainer."""
        return _OF_TRAINERS.setdefault(trainer, Measurements())

    def eigenvalue(self, module: SearchModule, batch: Any, batch_idx: int) -> float:
        """Return the top eigenvalue of the alphas' Hessian on the arch batch of a step that has been taken.

        The weight decay of the alphas' optimiser is on the diagonal of the Hessian, as in the official code of RobustDARTS.
        """

        def measure() -> float:
            decay = float(module.trainer.optimizers[1].param_groups[0].get("weight_decay") or 0.0)
            with self.beside("eigenvalue", module, batch_idx):
                return top_eigenvalue(module.problem(batch, None)) + decay

        return self._once("eigenvalue", (module.current_epoch, batch_idx), measure)

    def scores(self, module: SearchModule, batch: Any, batch_idx: int) -> Tensor:
        """Return for a validation batch: samples times score of the supernet, of its discretised self, and the samples."""

        def measure() -> Tensor:
            inputs, targets = batch
            alphas = {name: alpha.detach() for name, alpha in module.alphas().items()}
            mixing = module.method.evaluated(alphas, module.progress)
            chosen = one_hot(module.derive().choices, module.net.candidates(), mixing)
            with self.beside("gap", module, None), batch_statistics(module):
                both = [module.task.score(module.outputs_with(inputs, row), targets) for row in (mixing, chosen)]
            return torch.stack([*both, both[0].new_ones(())]) * len(targets)

        return self._once("gap", (module.current_epoch, batch_idx), measure)

    def _once(self, what: str, place: tuple[int, int], measure: Any) -> Any:
        if what not in self._latest or self._latest[what][0] != place:
            self._latest[what] = place, measure()
        return self._latest[what][1]

    @contextmanager
    def beside(self, what: str, module: SearchModule, batch_idx: int | None) -> Iterator[None]:
        """Compute at the module's place in the run, leave no trace in any generator, and note the time."""
        start = time.perf_counter()
        devices = [module.device] if module.device.type == "cuda" else []
        with preserved_randomness(), torch.random.fork_rng(devices=devices):
            if batch_idx is not None:  # callbacks come before the module, which notes the step later
                module.at_step(batch_idx)
            yield
        for device in devices:
            torch.cuda.synchronize(device)
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - start


_OF_TRAINERS: WeakKeyDictionary[L.Trainer, Measurements] = WeakKeyDictionary()


class Scores(NamedTuple):
    """What a supernet scores, and what it scores with the derived architecture's candidates alone."""

    supernet: float
    discretised: float

    @property
    def gap(self) -> float:
        """The first minus the second."""
        return self.supernet - self.discretised


class GapMeter:
    """Adds up the scores of the first validation batches, over all processes."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self._scores: list[Tensor] = []

    def add(self, trainer: L.Trainer, module: SearchModule, batch: Any, batch_idx: int) -> None:
        """Score a batch, if it is one of the first."""
        if batch_idx == 0:
            self._scores = []
        if not trainer.sanity_checking and batch_idx < self.batches:
            self._scores.append(Measurements.of(trainer).scores(module, batch, batch_idx))

    def take(self) -> Scores | None:
        """Return the means over the batches so far and forget them; None without batches."""
        if not self._scores:
            return None
        supernet, discretised, samples = processes.total(torch.stack(self._scores).sum(0)).tolist()
        self._scores = []
        return Scores(supernet / samples, discretised / samples)


def top_eigenvalue(problem: Bilevel, *, products: int = PRODUCTS, distance: float = DISTANCE) -> float:
    """Return the largest eigenvalue of the Hessian of the arch loss with respect to the alphas, at the present weights.

    The Lanczos iteration, whose products with the Hessian are central differences of the alphas' gradient in float64: two
    passes each, of a kind that every form of a space has. It takes `products` of them, or as many as there are alphas. The
    largest Ritz value is at most the eigenvalue; docs/guard.md has the accuracy, measured.

    Args:
        problem: at one point of the search.
        products: with the Hessian.
        distance: by which the alphas move, in total, for a difference.
    """
    problem = problem.in_float64()
    shapes = {name: alpha.shape for name, alpha in problem.alphas.items()}
    here = torch.cat([alpha.detach().reshape(-1) for alpha in problem.alphas.values()])
    weights = {name: weight.detach() for name, weight in problem.weights.items()}

    def gradient(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        alphas = {
            name: part.reshape(shape).requires_grad_()
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        with problem.full_precision():
            (found,) = problem.gradients(problem.arch_loss(weights, alphas), alphas)
        return torch.cat([part.reshape(-1) for part in found.values()])

    def times(vector: np.ndarray) -> np.ndarray:
        step = distance * torch.from_numpy(vector).to(here)
        return ((gradient(here + step) - gradient(here - step)) / (2 * distance)).cpu().numpy()

    # Not a constant: a softmax takes no notice of one, so that it is an eigenvector with the eigenvalue 0.
    return _lanczos(times, np.random.default_rng(0).standard_normal(here.numel()), products)


def _lanczos(times: Any, start: np.ndarray, products: int) -> float:
    """Return the largest Ritz value after some products with a symmetric matrix."""
    basis = (start / np.linalg.norm(start))[None]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(products, len(start))):
        image = times(basis[-1])
        diagonal.append(float(basis[-1] @ image))
        for _ in range(2):  # once leaves as much of the older directions as rounding makes
            image = image - basis.T @ (basis @ image)
        length = float(np.linalg.norm(image))
        if length <= 1e-9 * max(map(abs, diagonal)):
            break
        beside.append(length)
        basis = np.vstack([basis, image / length])
    between = beside[: len(diagonal) - 1]
    return float(np.linalg.eigvalsh(np.diag(diagonal) + np.diag(between, 1) + np.diag(between, -1))[-1])


def one_hot(choices: Mapping[str, Answer], candidates: Mapping[str, tuple[str, ...]], like: Tensors) -> Tensors:
    """Return the mixing weights with which a supernet computes what an architecture keeps of it.

    Args:
        choices: the architecture's answers.
        candidates: key -> the names that its mixing weights belong to.
        like: mixing weights, for their types and devices.
    """
    found = {}
    for key, names in candidates.items():
        answer = choices.get(key)
        kept = (answer,) if isinstance(answer, str) else tuple(answer or ())
        found[key] = like[key].new_tensor([float(name in kept) for name in names])
    return found


@contextmanager
def batch_statistics(module: SearchModule) -> Iterator[None]:
    """Let every BatchNorm normalise by its batch."""
    norms = [(part, part.training) for part in module.net.modules() if isinstance(part, _BatchNorm)]
    for part, _ in norms:
        part.training = True
    try:
        yield
    finally:
        for part, training in norms:
            part.training = training
