"""What is measured: a search step, a retrain step and the data pipeline, each in several forms.

A form is an implementation (`published`, or a name of `space.impl`) and perhaps a memory layout after a comma:
`published, channels_last` changes only the layout. All forms of one thing start from the same weights and alphas.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from src.bench.published import Batches, PublishedData, PublishedSearch, autocast
from src.bilevel.hypergradient import Bilevel, Exact, FiniteDifference, FirstOrder, Hypergradient, OneSided
from src.bilevel.unroll import VirtualStep
from src.data.augment import Augmentation
from src.data.loader import TrainLoader
from src.data.samples import Samples
from src.data.sources import Digits
from src.data.tasks import Classification
from src.fast.fused import FusedNetwork, FusedSupernet
from src.fast.merged import MergedSupernet
from src.methods.method import Method
from src.spaces.cnn.cells import Supernet
from src.spaces.cnn.genotypes import NAMED_GENOTYPES
from src.spaces.cnn.network import Network
from src.spaces.relaxed import RelaxedSpace
from src.training.module import Batch, in_layout, lay_out
from src.training.retrain import RetrainModule
from src.training.search import SearchModule

CLASSES = 10
SUPERNETS: dict[str, type[Supernet]] = {
    "published": Supernet,
    "reference": Supernet,
    "fused": FusedSupernet,
    "merged": MergedSupernet,
}
NETWORKS: dict[str, type[Network]] = {"published": Network, "reference": Network, "fused": FusedNetwork}
FORMS = (*SUPERNETS, "published, channels_last")
HYPERGRADIENTS: dict[str, Hypergradient] = {
    "first_order": FirstOrder(),
    "exact": Exact(),
    "finite_difference": FiniteDifference(),
    "float64_difference": FiniteDifference(epsilon=1e-9, in_float64=True),
    "one_sided": OneSided(),
}

Step = Callable[[], Any]


@dataclass(frozen=True)
class Sizes:
    """What a bench runs on; defaults are the paper's.

    Attributes:
        channels: of the supernet.
        cells: of the supernet.
        nodes: of a cell.
        batch: images in a search batch.
        image: side of an image.
        pairs: turns that count.
        steps: search steps to the second point of `hypergradient` and `difference`.
        seeds: searches of which `difference` takes medians.
        retrain_channels: of the retrain network.
        retrain_cells: of the retrain network.
        retrain_batch: images in a retrain batch.
        device: `cpu` or `cuda`.
        precision: `fp32`, or `bf16` for autocast.
        memory: whether the peaks of memory are measured, each in a process of its own, which takes seconds to start.
    """

    channels: int = 16
    cells: int = 8
    nodes: int = 4
    batch: int = 64
    image: int = 32
    pairs: int = 5
    steps: int = 20
    seeds: int = 3
    retrain_channels: int = 36
    retrain_cells: int = 20
    retrain_batch: int = 96
    device: str = "cpu"
    precision: str = "fp32"
    memory: bool = True


class OurSearch:
    """This code's search step, without the Trainer around it."""

    def __init__(
        self,
        space: nn.Module,
        hypergradient: Hypergradient,
        device: str,
        precision: str = "fp32",
        *,
        method: Method | None = None,
        kind: type[SearchModule] = SearchModule,
    ) -> None:
        self.device, self.precision = device, precision
        self.module = kind(
            space,
            task=Classification([str(label) for label in range(CLASSES)]),
            hypergradient=hypergradient,
            method=method,
            weight_optimizer=partial(torch.optim.SGD, lr=0.025, momentum=0.9, weight_decay=3e-4, fused=True),
            alpha_optimizer=partial(torch.optim.Adam, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3, fused=True),
            weight_scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=50),
        ).to(device)
        (self.weight_optimizer, self.alpha_optimizer), _ = self.module.configure_optimizers()

    def __call__(self, batch: Batches) -> None:
        """Step alphas and weights."""
        with autocast(self.device, self.precision):
            self.module.take_step(batch, self.weight_optimizer, self.alpha_optimizer)

    def copy_state(self, other: OurSearch) -> None:
        """Take the place of another search: its weights, alphas, running statistics and momentum."""
        self.module.load_state_dict(other.module.state_dict())
        self.weight_optimizer.load_state_dict(other.weight_optimizer.state_dict())

    def problem(self, batch: Batches) -> Bilevel:
        """Return the bilevel problem at the present point."""
        module, weights = self.module, self.module.weights()
        return Bilevel(
            weight_loss=module.loss_on(batch["weights"]),
            arch_loss=module.loss_on(batch["arch"]),
            weights=weights,
            alphas=module.alphas(),
            step=VirtualStep.of(self.weight_optimizer, weights),
        )

    def alpha_gradient(self, batch: Batches, hypergradient: Hypergradient) -> tuple[Tensor, Tensor]:
        """Return the alphas' gradient and its second-order part at the present point, each as one vector."""
        with autocast(self.device, self.precision):
            gradient = hypergradient(self.problem(batch))
        total = torch.cat(list(gradient.total.values()))
        return total, torch.cat(list(gradient.correction.values())) if gradient.correction else torch.zeros_like(total)


def noise(sizes: Sizes) -> Batches:
    """Return a pair of batches of noise, the same for every form."""
    generator = torch.Generator().manual_seed(1)

    def one() -> tuple[Tensor, Tensor]:
        images = torch.randn(sizes.batch, 3, sizes.image, sizes.image, generator=generator)
        labels = torch.randint(CLASSES, (sizes.batch,), generator=generator)
        return images.to(sizes.device), labels.to(sizes.device)

    return {"weights": one(), "arch": one()}


def digit_batches(sizes: Sizes, seed: int = 2) -> Iterator[Batches]:
    """Yield pairs of batches of handwritten digits, enlarged to the bench's images; never the same pair twice in a row."""
    images = Digits().train()
    pixels = F.interpolate(images.inputs.float() / 128 - 1, size=sizes.image, mode="bilinear").repeat(1, 3, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    while True:
        weights, arch = torch.randperm(len(images), generator=generator)[: 2 * sizes.batch].chunk(2)
        yield {
            name: (pixels[chosen].to(sizes.device), images.targets[chosen].to(sizes.device))
            for name, chosen in (("weights", weights), ("arch", arch))
        }


def in_double(batch: Batches) -> Batches:
    """Return a pair of batches in float64."""
    return {name: (images.double(), labels) for name, (images, labels) in batch.items()}


def laid_out(form: str, batch: Batches) -> Batches:
    """Return a pair of batches with the images in the memory layout of a form."""
    if not form.endswith("channels_last"):
        return batch
    return {name: (_channels_last(images), labels) for name, (images, labels) in batch.items()}


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def search_form(form: str, sizes: Sizes, hypergradient: Hypergradient, *, seed: int = 0) -> PublishedSearch | OurSearch:
    """Return a search in one of `FORMS`; for one seed, all start from the same weights and alphas."""
    torch.manual_seed(seed)
    implementation, _, layout = form.partition(", ")
    space = SUPERNETS[implementation](
        input_shape=(3, sizes.image, sizes.image),
        num_classes=CLASSES,
        channels=sizes.channels,
        cells=sizes.cells,
        nodes=sizes.nodes,
    )
    torch.manual_seed(seed + 1)
    if implementation != "published":
        return OurSearch(space, hypergradient, sizes.device, sizes.precision)
    net = RelaxedSpace(space).to(sizes.device)
    if layout == "channels_last":
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return PublishedSearch(net, hypergradient.order, sizes.precision)


def our_search(form: str, sizes: Sizes, hypergradient: Hypergradient, *, seed: int = 0) -> OurSearch:
    """Return a search in one of `FORMS` that is this code's."""
    search = search_form(form, sizes, hypergradient, seed=seed)
    assert isinstance(search, OurSearch)
    return search


def search_step(form: str, sizes: Sizes, hypergradient: Hypergradient) -> Step:
    """Return a function of nothing that takes one search step."""
    return partial(search_form(form, sizes, hypergradient), laid_out(form, noise(sizes)))


def alpha_error(form: str, sizes: Sizes, hypergradient: Hypergradient) -> float:
    """Return the largest relative error of the alpha gradient at the first three steps of a search, against float64."""
    own, truth = (our_search(kind, sizes, hypergradient) for kind in (form, "fused"))
    truth.module.double()
    errors = []
    for batch in itertools.islice(digit_batches(sizes), 3):
        truth.copy_state(own)
        exact, _ = truth.alpha_gradient(in_double(batch), hypergradient)
        value, _ = own.alpha_gradient(batch, hypergradient)
        errors.append(float((value - exact).norm() / exact.norm()))
        own(batch)
    return max(errors)


class RecordedRetrain:
    """A retrain step whose gradient is replayed as a CUDA graph, without the Trainer around it."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, sizes: Sizes) -> None:
        self.optimizer, self.batch, self.sizes = optimizer, batch, sizes
        self.module = RetrainModule(
            network,
            task=Classification([str(label) for label in range(CLASSES)]),
            optimizer=lambda parameters: optimizer,
            scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=600),
            graphs=True,
        ).to(sizes.device)
        self.module.start_graphs()

    def __call__(self) -> None:
        """Step the weights."""
        weights = list(self.module.net.parameters())
        with autocast(self.sizes.device, self.sizes.precision):
            found = self.module.recorded_gradients(self.batch)
        assert found.gradients is not None
        for weight, gradient in zip(weights, found.gradients, strict=True):
            weight.grad = gradient
        nn.utils.clip_grad_norm_(weights, 5.0)
        self.optimizer.step()


def retrain_step(form: str, sizes: Sizes, *, graphs: bool = False) -> Step:
    """Return a function of nothing that takes one training step of DARTS_V2 with auxiliary head and drop path.

    `graphs` is for a form of this code.
    """
    torch.manual_seed(0)
    implementation, _, layout = form.partition(", ")
    ours = implementation != "published"
    network = NETWORKS[implementation](
        NAMED_GENOTYPES["DARTS_V2"].to_architecture(),
        input_shape=(3, sizes.image, sizes.image),
        num_classes=CLASSES,
        channels=sizes.retrain_channels,
        cells=sizes.retrain_cells,
    ).to(sizes.device)
    network.drop_path = 0.1
    images = torch.randn(sizes.retrain_batch, 3, sizes.image, sizes.image, device=sizes.device)
    labels = torch.randint(CLASSES, (sizes.retrain_batch,), device=sizes.device)
    if ours:
        lay_out(network)
        images = in_layout(images)
    elif layout == "channels_last":
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        images = _channels_last(images)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4, fused=ours)
    if graphs:
        return RecordedRetrain(network, optimizer, (images, labels), sizes)

    def plain_step() -> None:
        optimizer.zero_grad()
        with autocast(sizes.device, sizes.precision):
            logits, auxiliary = network(images)
            assert auxiliary is not None
            loss = F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(auxiliary, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()

    return plain_step


DATA_BATCHES = 64  # in an epoch of `data_step`


def data_step(form: str, sizes: Sizes) -> Step:
    """Return a function of nothing that brings an epoch of 64 batches to the device, cropped, flipped, normalised."""
    generator = torch.Generator().manual_seed(0)
    count = DATA_BATCHES * sizes.batch
    pixels = torch.randint(256, (count, 3, sizes.image, sizes.image), generator=generator, dtype=torch.uint8)
    images = Samples(pixels, torch.arange(count) % CLASSES, Classification([str(i) for i in range(CLASSES)]))
    statistics = images.statistics()
    assert statistics is not None
    mean, deviation = statistics
    if form == "this code":
        loader = TrainLoader({"weights": images}, batch_size=sizes.batch, seed=0, epoch=lambda: 0)
        augmentation = Augmentation(mean, deviation, padding=4, flip=True, cutout=0)

        def ours() -> None:
            for batch in loader:
                inputs, targets, seed = batch["weights"]
                augmentation(inputs.to(sizes.device), seed=seed)
                targets.to(sizes.device)

        return ours
    dataset = PublishedData(images, mean, deviation)
    workers = 2 if form.endswith("2 workers") else 0
    theirs = DataLoader(dataset, sizes.batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)

    def published() -> None:
        for inputs, targets in theirs:
            inputs.to(sizes.device)
            targets.to(sizes.device)

    return published
