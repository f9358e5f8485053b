"""The methods' search steps, written down once more in plain PyTorch, for small CNN cells in float64.

A network is a copy of the one that the search begins with. Of that copy only operations are called: how their outputs are
weighed and added up, and how alphas and weights are stepped, stands here. There are no functional calls, no optimiser
classes, and nothing of src/methods.
"""

from __future__ import annotations

import copy
import functools
import math
import warnings
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.bilevel.hypergradient import Exact, FiniteDifference, FirstOrder, Hypergradient
from src.common.seeding import derive_seed
from src.data.tasks import Classification
from src.methods.method import Method
from src.spaces.cnn.cells import Supernet
from src.spaces.relaxed import RelaxedSpace
from src.training.search import SearchModule

CLASSES, SHAPE, SEED = 3, (2, 8, 8), 5
TASK = Classification([str(label) for label in range(CLASSES)])
CANDIDATES = ("none", "skip_connect", "dil_conv_3x3")
EPOCHS, CLIP, MOMENTUM, DECAY = 2, 1.0, 0.9, 3e-4
HYPERGRADIENTS: dict[str, Hypergradient] = {
    "first_order": FirstOrder(),
    "finite_difference": FiniteDifference(),
    "exact": Exact(),
}
Batch = tuple[Tensor, Tensor]


def batches(count: int = 2, size: int = 6) -> list[dict[str, Batch]]:
    generator = torch.Generator().manual_seed(7)

    def one() -> Batch:
        images = torch.randn(size, *SHAPE, generator=generator, dtype=torch.float64)
        return images, torch.randint(CLASSES, (size,), generator=generator)

    return [{"weights": one(), "arch": one()} for _ in range(count)]


def search_module(
    method: Method,
    hypergradient: Hypergradient | None = None,
    *,
    kind: type[SearchModule] = SearchModule,
    space: type[Supernet] = Supernet,
    fused: bool = False,
) -> SearchModule:
    """Return a search of small cells; `fused` is that of the optimisers."""
    torch.manual_seed(0)
    net = space(
        input_shape=SHAPE,
        num_classes=CLASSES,
        channels=4,
        cells=3,
        nodes=2,
        stem_multiplier=1,
        candidates=CANDIDATES,
    )
    search = kind(
        net,
        task=TASK,
        hypergradient=hypergradient or FirstOrder(),
        method=method,
        weight_optimizer=functools.partial(torch.optim.SGD, lr=0.1, momentum=MOMENTUM, weight_decay=DECAY, fused=fused),
        alpha_optimizer=functools.partial(torch.optim.Adam, lr=0.02, betas=(0.5, 0.999), weight_decay=1e-3),
        weight_scheduler=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=EPOCHS, eta_min=0.01),
        gradient_clip=CLIP,
        seed=SEED,
    ).double()
    with torch.no_grad():  # far enough from uniform for every slot to matter
        for vector in search.alphas().values():
            vector.copy_(torch.randn(vector.shape, dtype=torch.float64))
            if method.relaxation.kind == "simplex":
                vector.copy_(vector.softmax(0))
    return search


def fit(search: SearchModule, data: list[dict[str, Batch]], epochs: int = EPOCHS) -> SearchModule:
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on loaders and loggers
        loader: Any = torch.utils.data.DataLoader(data, batch_size=None)  # pyright: ignore[reportArgumentType]
        trainer.fit(search, train_dataloaders=loader)
    return search


class Plain:
    """DARTS. Each method overrides the lines in which it differs."""

    frozen_epochs = 0

    def __init__(self, net: RelaxedSpace) -> None:
        self.net = net

    def rows(self, net: RelaxedSpace, epoch: int, step: int) -> dict[str, Tensor]:
        """Return the mixing weights of an edge, by key."""
        return {key: alpha.softmax(0) for key, alpha in net.alphas.items()}

    def rows_of_the_weights_step(self, net: RelaxedSpace, epoch: int, step: int) -> dict[str, Tensor]:
        return {key: row.detach() for key, row in self.rows(net, epoch, step).items()}

    def mix(self, edge: Any, row: Tensor, x: Tensor) -> Tensor:
        """Return what an edge makes of a state."""
        outputs = [weight * operation(x) for weight, operation in zip(row, edge.candidates.values(), strict=True)]
        return torch.stack(outputs).sum(0)

    def add_up(self, net: RelaxedSpace, node: Any, outputs: list[Tensor]) -> Tensor:
        """Return what a node makes of the outputs of its edges."""
        return torch.stack(outputs).sum(0)

    def penalty(self, alphas: list[Tensor], epoch: int) -> list[Tensor]:
        """Return the gradient of the penalty by each vector."""
        return [torch.zeros_like(alpha) for alpha in alphas]

    def step_alphas(
        self, alphas: list[Tensor], h: list[Tensor], first: list[Tensor], second: list[Tensor], count: int
    ) -> None:
        """Step along h; `first` and `second` are moments of the steps before, `count` is from 1."""
        adam(alphas, h, first, second, count)

    def loss(self, net: RelaxedSpace, batch: Batch, rows: dict[str, Tensor]) -> Tensor:
        images, labels = batch
        space: Any = net.space
        before_last = last = space.stem(images)
        for cell in space.cells:
            states = [cell.preprocess0(before_last), cell.preprocess1(last)]
            for node in cell.nodes:
                outputs = [
                    self.mix(edge, rows[key], state)
                    for edge, key, state in zip(node.edges, node.switch.spec.inputs, states, strict=True)
                ]
                states.append(self.add_up(net, node, outputs))
            before_last, last = last, torch.cat(states[2:], dim=1)
        return F.cross_entropy(space.classifier(last.mean(dim=(2, 3))), labels)

    def run(self, data: list[dict[str, Batch]], hypergradient: str, epochs: int = EPOCHS) -> RelaxedSpace:
        """Search, and return the network and its alphas."""
        net = self.net
        weights, alphas = split(net)
        velocity: list[Tensor | None] = [None] * len(weights)
        first, second = ([torch.zeros_like(a) for a in alphas] for _ in range(2))
        count = 0
        for epoch in range(epochs):
            lr = 0.01 + (0.1 - 0.01) * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2
            for step, batch in enumerate(data):
                if epoch >= self.frozen_epochs:
                    h = getattr(self, hypergradient)(batch, epoch, step, lr, velocity)
                    h = [g + p for g, p in zip(h, self.penalty(alphas, epoch), strict=True)]
                    count += 1
                    self.step_alphas(alphas, h, first, second, count)
                sgd(weights, self.weight_gradients(batch, epoch, step), velocity, lr)
        return net

    def weight_gradients(self, batch: dict[str, Batch], epoch: int, step: int) -> list[Tensor | None]:
        """Return the gradients of the weights' step, before they are clipped."""
        loss = self.loss(self.net, batch["weights"], self.rows_of_the_weights_step(self.net, epoch, step))
        return list(torch.autograd.grad(loss, split(self.net)[0], allow_unused=True))

    def first_order(self, batch: Any, epoch: int, step: int, lr: float, velocity: list[Any]) -> list[Tensor]:
        clone = copy.deepcopy(self.net)
        return gradients(self.loss(clone, batch["arch"], self.rows(clone, epoch, step)), split(clone)[1])

    def finite_difference(self, batch: Any, epoch: int, step: int, lr: float, velocity: list[Any]) -> list[Tensor]:
        v, direct = self.at_the_virtual_weights(batch, epoch, step, lr, velocity)
        e = 0.01 / math.sqrt(sum(float((x**2).sum()) for x in v))
        sides = []
        for sign in (1, -1):
            moved = copy.deepcopy(self.net)
            moved_weights, moved_alphas = split(moved)
            with torch.no_grad():
                for w, x in zip(moved_weights, v, strict=True):
                    w.add_(sign * e * x)
            sides.append(gradients(self.loss(moved, batch["weights"], self.rows(moved, epoch, step)), moved_alphas))
        return [d - lr * (p - n) / (2 * e) for d, p, n in zip(direct, *sides, strict=True)]

    def exact(self, batch: Any, epoch: int, step: int, lr: float, velocity: list[Any]) -> list[Tensor]:
        v, direct = self.at_the_virtual_weights(batch, epoch, step, lr, velocity)
        clone = copy.deepcopy(self.net)
        weights, alphas = split(clone)
        loss = self.loss(clone, batch["weights"], self.rows(clone, epoch, step))
        g = torch.autograd.grad(loss, weights, create_graph=True)
        mixed = gradients(torch.stack([(a * b).sum() for a, b in zip(g, v, strict=True)]).sum(), alphas)
        return [d - lr * m for d, m in zip(direct, mixed, strict=True)]

    def at_the_virtual_weights(
        self, batch: Any, epoch: int, step: int, lr: float, velocity: list[Any]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the gradients of the arch batch's loss by weights and by alphas, after a step of the weights."""
        virtual = copy.deepcopy(self.net)
        weights, alphas = split(virtual)
        g = gradients(self.loss(virtual, batch["weights"], self.rows(virtual, epoch, step)), weights)
        with torch.no_grad():
            for w, gw, m in zip(weights, g, velocity, strict=True):
                w.sub_(lr * ((0 if m is None else MOMENTUM * m) + gw + DECAY * w))
        both = gradients(self.loss(virtual, batch["arch"], self.rows(virtual, epoch, step)), weights + alphas)
        return both[: len(weights)], both[len(weights) :]


class PlainBeta(Plain):
    def penalty(self, alphas: list[Tensor], epoch: int) -> list[Tensor]:
        count = len(self.net.alphas)  # after these come the edges' weights, which are not penalised
        gradient = [50 * epoch / EPOCHS * alpha.detach().softmax(0) / count for alpha in alphas[:count]]
        return gradient + [torch.zeros_like(vector) for vector in alphas[count:]]


class PlainRandomSmoothing(Plain):
    def rows_of_the_weights_step(self, net: RelaxedSpace, epoch: int, step: int) -> dict[str, Tensor]:
        radius = 0.03 + 0.27 * epoch / EPOCHS
        generator = torch.Generator().manual_seed(derive_seed("perturbation", SEED, epoch, step))
        result = {}
        for key, alpha in net.alphas.items():
            uniform = torch.rand(alpha.shape, dtype=torch.float64, generator=generator)
            noisy = alpha.detach().softmax(0) + radius * (2 * uniform - 1)
            positive = noisy.clamp(min=0, max=1)
            result[key] = positive / positive.sum() if positive.sum() > 0 else one_hot(noisy)
        return result


class PlainGdas(Plain):
    def rows(self, net: RelaxedSpace, epoch: int, step: int) -> dict[str, Tensor]:
        tau = 10 + (0.1 - 10) * epoch / (EPOCHS - 1)
        generator = torch.Generator().manual_seed(derive_seed("noise", SEED, epoch, step))
        result = {}
        for key, alpha in net.alphas.items():
            exponential = torch.empty(alpha.shape, dtype=torch.float64).exponential_(generator=generator)
            p = ((alpha.log_softmax(0) - exponential.log()) / tau).softmax(0)
            result[key] = one_hot(p) - p.detach() + p
        return result

    def mix(self, edge: Any, row: Tensor, x: Tensor) -> Tensor:
        drawn = int(row.detach().argmax())
        return row[drawn] * list(edge.candidates.values())[drawn](x)


class PlainPartialChannels(Plain):
    frozen_epochs = 1
    k = 2

    def mix(self, edge: Any, row: Tensor, x: Tensor) -> Tensor:
        size = x.shape[1] // self.k
        mixed = super().mix(edge.choice, row, x[:, :size])
        rest = x[:, size:]
        if mixed.shape[-1] < x.shape[-1]:
            rest = nn.MaxPool2d(2, 2)(rest)
        joined = torch.cat([mixed, rest], dim=1)
        # Channel i * size + j of the joined ones goes to the place j * k + i.
        order = [i * size + j for j in range(size) for i in range(self.k)]
        return joined[:, order]

    def add_up(self, net: RelaxedSpace, node: Any, outputs: list[Tensor]) -> Tensor:
        edges = net.edges[node.switch.key].softmax(0)
        return torch.stack([weight * output for weight, output in zip(edges, outputs, strict=True)]).sum(0)


class PlainGdasPartialChannelsBeta(PlainPartialChannels, PlainGdas, PlainBeta):
    pass


class PlainRandomSmoothingPartialChannelsBeta(PlainPartialChannels, PlainRandomSmoothing, PlainBeta):
    pass


def split(net: RelaxedSpace) -> tuple[list[Tensor], list[Tensor]]:
    """Return the weights, and the alphas with the edges' weights."""
    return list(net.space.parameters()), [*net.alphas.parameters(), *net.edges.parameters()]


def gradients(loss: Tensor, wanted: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))


def one_hot(row: Tensor) -> Tensor:
    result = torch.zeros_like(row)
    result[int(row.detach().argmax())] = 1.0
    return result


def adam(alphas: list[Tensor], h: list[Tensor], first: list[Tensor], second: list[Tensor], count: int) -> None:
    """Step with weight decay in the gradient."""
    with torch.no_grad():
        for a, ga, m1, m2 in zip(alphas, h, first, second, strict=True):
            g = ga + 1e-3 * a
            m1.copy_(0.5 * m1 + 0.5 * g)
            m2.copy_(0.999 * m2 + 0.001 * g**2)
            a.sub_(0.02 * (m1 / (1 - 0.5**count)) / ((m2 / (1 - 0.999**count)).sqrt() + 1e-8))


def sgd(weights: list[Tensor], g: list[Any], velocity: list[Any], lr: float) -> None:
    """Clip and step; a weight without a gradient stays as it is, and so does its velocity."""
    length = math.sqrt(sum(float((x**2).sum()) for x in g if x is not None))
    scale = min(1.0, CLIP / (length + 1e-6))
    with torch.no_grad():
        for index, (w, gw) in enumerate(zip(weights, g, strict=True)):
            if gw is None:
                continue
            direction = scale * gw + DECAY * w
            velocity[index] = direction if velocity[index] is None else MOMENTUM * velocity[index] + direction
            w.sub_(lr * velocity[index])


def difference(search: SearchModule, reference: RelaxedSpace) -> float:
    """Return the largest difference in weights, alphas and BatchNorm's buffers."""
    ours, theirs = search.net.state_dict(), reference.state_dict()
    assert list(ours) == list(theirs)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
