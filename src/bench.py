"""python -m src.bench: this code against the paper's as published, side by side in one run.

    python -m src.bench                                   everything, at the paper's sizes
    python -m src.bench search --channels 8 --pairs 3     one part, smaller
    python -m src.bench --json bench.json                 the same figures for a program

The parts: `search` (a whole search step of order 1 and 2), `hypergradient` (its forms, along a real search), `retrain` (a
training step of DARTS_V2), `data` (images per second into the network) and `growth` (how a search step grows with each size).

The forms take turns (A B C A B C ...), so that a slow phase of the machine slows all of them. Times are medians, and
ratios are medians over turns. Memory is the peak of a separate process that takes one step. Operator calls are counted on
two images of 8x8; their number does not depend on the sizes. `alpha gradient off by` is the largest relative error at the
first three steps of a search of digits, against float64: the effect of rounding on the plain form and on the fused one.

`published` is the paper's code in its arithmetic and its order of work: NCHW, every operation on its own, a copy of the
network for the virtual step, weights moved in place, and weights' gradients wherever a plain backward computes them.
`published, channels_last` changes only the memory layout.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

from src.bilevel.hypergradient import Bilevel, Exact, FiniteDifference, FirstOrder, Hypergradient, OneSided, of_order
from src.bilevel.unroll import VirtualStep
from src.common.files import write_whole
from src.data.augment import Augmentation
from src.data.loader import TrainLoader
from src.data.samples import Samples
from src.data.sources import Digits
from src.data.tasks import Classification
from src.fast.fused import FusedNetwork, FusedSupernet
from src.runs.devices import resident
from src.spaces.cnn.cells import Supernet
from src.spaces.cnn.genotypes import NAMED_GENOTYPES
from src.spaces.cnn.network import Network
from src.spaces.relaxed import RelaxedSpace
from src.training.module import channels_last
from src.training.search import SearchModule

PARTS = ("search", "hypergradient", "retrain", "data", "growth")
SEARCH_FORMS = ("published", "published, channels_last", "fused")
FORMS = (*SEARCH_FORMS, "reference")
RETRAIN_FORMS = ("published", "published, channels_last", "fused")
CLASSES = 10
HYPERGRADIENTS: dict[str, Hypergradient] = {
    "first_order": FirstOrder(),
    "exact": Exact(),
    "finite_difference": FiniteDifference(),
    "one_sided": OneSided(),
}
HYPERGRADIENT_FORMS = (
    ("reference", "exact"),
    ("reference", "finite_difference"),
    ("reference", "one_sided"),
    ("fused", "finite_difference"),
    ("fused", "one_sided"),
    ("fused", "first_order"),
)

Step = Callable[[], Any]
Rows = list[dict[str, Any]]


class PublishedSearch:
    """The paper's search step, on the plain supernet."""

    def __init__(self, net: RelaxedSpace, order: int) -> None:
        self.net = net
        self.order = order
        named = list(net.named_parameters())
        self.weights = [p for name, p in named if not name.startswith("alphas.")]
        self.alphas = [p for name, p in named if name.startswith("alphas.")]
        self.weight_optimizer = torch.optim.SGD(self.weights, lr=0.025, momentum=0.9, weight_decay=3e-4)
        self.alpha_optimizer = torch.optim.Adam(self.alphas, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)

    def loss(self, net: RelaxedSpace, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of a network on a batch."""
        return F.cross_entropy(net(batch[0]), batch[1])

    def __call__(self, batch: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Step the alphas, then the weights."""
        self.alpha_optimizer.zero_grad()
        if self.order == 1:
            self.loss(self.net, batch["arch"]).backward()
        else:
            self._unrolled(batch)
        self.alpha_optimizer.step()
        self.weight_optimizer.zero_grad()
        self.loss(self.net, batch["weights"]).backward()
        nn.utils.clip_grad_norm_(self.weights, 5.0)
        self.weight_optimizer.step()

    def _unrolled(self, batch: dict[str, tuple[Tensor, Tensor]]) -> None:
        lr = 0.025
        gradients = torch.autograd.grad(self.loss(self.net, batch["weights"]), self.weights)
        virtual = copy.deepcopy(self.net)
        parameters = dict(virtual.named_parameters())
        copies = [p for name, p in parameters.items() if not name.startswith("alphas.")]
        with torch.no_grad():
            for weight, target, gradient in zip(self.weights, copies, gradients, strict=True):
                momentum = self.weight_optimizer.state[weight].get("momentum_buffer", torch.zeros_like(weight))
                target.copy_(weight - lr * (0.9 * momentum + gradient + 3e-4 * weight))
        self.loss(virtual, batch["arch"]).backward()
        v = [p.grad for p in copies if p.grad is not None]
        e = 0.01 / torch.cat([x.flatten() for x in v]).norm()
        sides = []
        for move in (e, -2 * e):
            with torch.no_grad():
                for weight, x in zip(self.weights, v, strict=True):
                    weight.add_(x * move)
            sides.append(torch.autograd.grad(self.loss(self.net, batch["weights"]), self.alphas))
        with torch.no_grad():
            for weight, x in zip(self.weights, v, strict=True):
                weight.add_(x * e)
        direct = [p.grad for name, p in parameters.items() if name.startswith("alphas.")]
        for alpha, d, p, n in zip(self.alphas, direct, *sides, strict=True):
            assert d is not None
            alpha.grad = d - lr * (p - n) / (2 * e)


class OurSearch:
    """This code's search step, without the Trainer around it."""

    def __init__(self, space: nn.Module, hypergradient: Hypergradient, device: str) -> None:
        self.module = SearchModule(
            space,
            task=Classification([str(label) for label in range(CLASSES)]),
            hypergradient=hypergradient,
            weight_optimizer=partial(torch.optim.SGD, lr=0.025, momentum=0.9, weight_decay=3e-4, fused=True),
            alpha_optimizer=partial(torch.optim.Adam, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3, fused=True),
            weight_scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=50),
        ).to(device)
        (self.weight_optimizer, self.alpha_optimizer), _ = self.module.configure_optimizers()

    def __call__(self, batch: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Step the alphas, then the weights."""
        self.module.step_alphas(batch, self.weight_optimizer, self.alpha_optimizer)
        self.module.step_weights(batch["weights"], self.weight_optimizer)

    def alpha_gradient(
        self, batch: dict[str, tuple[Tensor, Tensor]], hypergradient: Hypergradient
    ) -> tuple[Tensor, Tensor]:
        """Return the alphas' gradient and its second-order part at the present point, each as one vector."""
        module, weights = self.module, self.module.weights()
        gradient = hypergradient(
            Bilevel(
                weight_loss=module.loss_on(batch["weights"]),
                arch_loss=module.loss_on(batch["arch"]),
                weights=weights,
                alphas=module.alphas(),
                step=VirtualStep.of(self.weight_optimizer, weights),
            )
        )
        total = torch.cat(list(gradient.total.values()))
        return total, torch.cat(list(gradient.correction.values())) if gradient.correction else torch.zeros_like(total)


def noise(sizes: argparse.Namespace) -> dict[str, tuple[Tensor, Tensor]]:
    """Return a pair of batches of noise, the same for every form."""
    generator = torch.Generator().manual_seed(1)

    def one() -> tuple[Tensor, Tensor]:
        images = torch.randn(sizes.batch, 3, sizes.image, sizes.image, generator=generator)
        labels = torch.randint(CLASSES, (sizes.batch,), generator=generator)
        return images.to(sizes.device), labels.to(sizes.device)

    return {"weights": one(), "arch": one()}


def search_form(form: str, sizes: argparse.Namespace, hypergradient: Hypergradient) -> PublishedSearch | OurSearch:
    """Return a search in one of `FORMS`; all start from the same weights and alphas."""
    torch.manual_seed(0)
    kind = FusedSupernet if form == "fused" else Supernet
    space = kind(
        input_shape=(3, sizes.image, sizes.image),
        num_classes=CLASSES,
        channels=sizes.channels,
        cells=sizes.cells,
        nodes=sizes.nodes,
    )
    torch.manual_seed(1)
    if not form.startswith("published"):
        return OurSearch(space, hypergradient, sizes.device)
    net = RelaxedSpace(space).to(sizes.device)
    if form.endswith("channels_last"):
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return PublishedSearch(net, hypergradient.order)


def search_step(form: str, sizes: argparse.Namespace, hypergradient: Hypergradient) -> Step:
    """Return a function of nothing that takes one search step."""
    search, batch = search_form(form, sizes, hypergradient), noise(sizes)
    if form.endswith("channels_last"):
        batch = {name: (channels_last(images), labels) for name, (images, labels) in batch.items()}

    def step() -> None:
        with torch.autocast(sizes.device, torch.bfloat16, enabled=sizes.precision == "bf16"):
            search(batch)

    return step


def retrain_step(form: str, sizes: argparse.Namespace) -> Step:
    """Return a function of nothing that takes one training step of DARTS_V2 with auxiliary head and drop path."""
    torch.manual_seed(0)
    kind = FusedNetwork if form == "fused" else Network
    network = kind(
        NAMED_GENOTYPES["DARTS_V2"].to_architecture(),
        input_shape=(3, sizes.image, sizes.image),
        num_classes=CLASSES,
        channels=sizes.retrain_channels,
        cells=sizes.retrain_cells,
    ).to(sizes.device)
    network.drop_path = 0.1
    images = torch.randn(sizes.retrain_batch, 3, sizes.image, sizes.image, device=sizes.device)
    labels = torch.randint(CLASSES, (sizes.retrain_batch,), device=sizes.device)
    if form != "published":
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        images = channels_last(images)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4, fused=form == "fused")

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(sizes.device, torch.bfloat16, enabled=sizes.precision == "bf16"):
            logits, auxiliary = network(images)
            assert auxiliary is not None
            loss = F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(auxiliary, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()

    return step


class _PerImage(Dataset[tuple[Any, int]]):
    """The data pipeline as published: a PIL image and torchvision's transforms for each sample."""

    def __init__(self, images: Samples, mean: Tensor, deviation: Tensor) -> None:
        self.pictures = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in images.inputs]
        self.labels = images.targets.tolist()
        self.transform = T.Compose(
            [
                T.RandomCrop(images.shape[1], padding=4),
                T.RandomHorizontalFlip(),
                T.ToTensor(),
                T.Normalize(mean.tolist(), deviation.tolist()),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.pictures[index]), self.labels[index]


def data_step(form: str, sizes: argparse.Namespace) -> Step:
    """Return a function of nothing that prepares one epoch of 64 batches, cropped, flipped and normalised."""
    generator = torch.Generator().manual_seed(0)
    count = 64 * sizes.batch
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
                augmentation(batch["weights"].inputs, seed=batch["weights"].seed)

        return ours
    dataset = _PerImage(images, mean, deviation)
    workers = 2 if form.endswith("2 workers") else 0
    theirs = DataLoader(dataset, sizes.batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)

    def published() -> None:
        for _ in theirs:
            pass

    return published


def in_turn(steps: dict[str, Step], pairs: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of each step, taken in turn after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(pairs + 1):
        for name, step in steps.items():
            _wait(device)
            start = time.perf_counter()
            step()
            _wait(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(steps: dict[str, Step], sizes: argparse.Namespace) -> Rows:
    """Return a row for each form: median seconds, and how many times faster than the first it is, turn by turn."""
    seconds = in_turn(steps, sizes.pairs, sizes.device)
    first = seconds[next(iter(steps))]
    return [
        {
            "form": name,
            "seconds": statistics.median(own),
            "times faster": statistics.median(a / b for a, b in zip(first, own, strict=True)),
        }
        for name, own in seconds.items()
    ]


class _Calls(TorchDispatchMode):
    """Counts operator calls."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operator_calls(step: Step) -> int:
    """Return the number of operator calls of one step, those of its backward passes included."""
    step()
    with _Calls() as calls:
        step()
    return calls.count


def peak_memory(arguments: Sequence[str], device: str) -> float:
    """Return the peak memory in GB of `python -m src.bench --measure ...`: a process that takes a step and ends."""
    command = [sys.executable, "-m", "src.bench", "--device", device, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def measure_memory(step: Step, device: str) -> float:
    """Take a step and return the peak memory in GB above what was there before: the device's, or the process's."""
    if device == "cuda":
        step()
        return torch.cuda.max_memory_allocated() / 1e9
    before = resident("VmRSS")
    step()
    return (resident("VmHWM") - before) / 1e9


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _size_arguments(sizes: argparse.Namespace) -> list[str]:
    names = ("channels", "cells", "nodes", "batch", "image", "precision")
    return [text for name in names for text in (f"--{name}", str(getattr(sizes, name)))]


def part_search(sizes: argparse.Namespace) -> Rows:
    """A search step of both orders, in every form."""
    rows = []
    for order in (1, 2):
        hypergradient = of_order(order)
        steps = {form: search_step(form, sizes, hypergradient) for form in SEARCH_FORMS}
        own = compare(steps, sizes)
        few = argparse.Namespace(**{**vars(sizes), "batch": 2, "image": 8})
        calls = {form: operator_calls(search_step(form, few, hypergradient)) for form in SEARCH_FORMS}
        errors = {
            form: alpha_error(ours, sizes, hypergradient)
            for form, ours in (("published, channels_last", "reference"), ("fused", "fused"))
        }
        for row in own:
            form = row["form"]
            memory = peak_memory(["--measure", form, "--order", str(order), *_size_arguments(sizes)], sizes.device)
            row |= {"GB": memory, "operator calls": calls[form]}
            row["alpha gradient off by"] = errors.get(form)
            rows.append({"order": order, **row})
    return rows


def alpha_error(form: str, sizes: argparse.Namespace, hypergradient: Hypergradient) -> float:
    """Return the largest relative error of the alpha gradient at the first three steps of a search, against float64."""
    own, truth = (search_form(kind, sizes, hypergradient) for kind in (form, "fused"))
    assert isinstance(own, OurSearch)
    assert isinstance(truth, OurSearch)
    truth.module.double()
    errors = []
    for batch in itertools.islice(digit_batches(sizes), 3):
        truth.module.load_state_dict(own.module.state_dict())
        truth.weight_optimizer.load_state_dict(own.weight_optimizer.state_dict())
        exact, _ = truth.alpha_gradient(
            {k: (images.double(), labels) for k, (images, labels) in batch.items()}, hypergradient
        )
        value, _ = own.alpha_gradient(batch, hypergradient)
        errors.append(float((value - exact).norm() / exact.norm()))
        own(batch)
    return max(errors)


def digit_batches(sizes: argparse.Namespace) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Yield pairs of batches of handwritten digits, enlarged to the bench's images; never the same pair twice in a row."""
    images = Digits().train()
    pixels = F.interpolate(images.inputs.float() / 128 - 1, size=sizes.image, mode="bilinear").repeat(1, 3, 1, 1)
    generator = torch.Generator().manual_seed(2)
    while True:
        weights, arch = torch.randperm(len(images), generator=generator)[: 2 * sizes.batch].chunk(2)
        yield {
            name: (pixels[chosen].to(sizes.device), images.targets[chosen].to(sizes.device))
            for name, chosen in (("weights", weights), ("arch", arch))
        }


def part_hypergradient(sizes: argparse.Namespace) -> Rows:
    """The second-order forms along a search of digits, all at the same points, against the exact product."""
    search, fused = (search_form(form, sizes, HYPERGRADIENTS["finite_difference"]) for form in ("reference", "fused"))
    assert isinstance(search, OurSearch)
    assert isinstance(fused, OurSearch)
    batches = digit_batches(sizes)
    memory = {
        (form, name): peak_memory(
            ["--measure", form, "--hypergradient", name, "--order", "2", *_size_arguments(sizes)], sizes.device
        )
        for form, name in HYPERGRADIENT_FORMS
    }
    rows = []
    done = 0
    for point in (0, sizes.steps, 4 * sizes.steps):
        for _ in range(point - done):
            fused(next(batches))
        done = point
        batch = next(batches)
        search.module.load_state_dict(fused.module.state_dict())
        search.weight_optimizer.load_state_dict(fused.weight_optimizer.state_dict())
        forms = {"reference": search, "fused": fused}
        steps = {
            f"{name}, {form}": partial(forms[form].alpha_gradient, batch, HYPERGRADIENTS[name])
            for form, name in HYPERGRADIENT_FORMS
        }
        seconds = in_turn(steps, sizes.pairs, sizes.device)
        values = {name: step() for name, step in steps.items()}
        total, correction = values["exact, reference"]
        for form, name in HYPERGRADIENT_FORMS:
            own_total, own_correction = values[f"{name}, {form}"]
            rows.append(
                {
                    "step": point,
                    "hypergradient": name,
                    "space.impl": form,
                    "seconds": statistics.median(seconds[f"{name}, {form}"]),
                    "GB": memory[form, name],
                    "gradient off by": float((own_total - total).norm() / total.norm()),
                    "gradient cosine": float(F.cosine_similarity(own_total, total, dim=0)),
                    "correction off by": float((own_correction - correction).norm() / correction.norm()),
                    "correction cosine": float(F.cosine_similarity(own_correction, correction, dim=0)),
                }
            )
    return rows


def part_retrain(sizes: argparse.Namespace) -> Rows:
    """A training step of DARTS_V2."""
    return compare({form: retrain_step(form, sizes) for form in RETRAIN_FORMS}, sizes)


def part_data(sizes: argparse.Namespace) -> Rows:
    """Images a second, against a DataLoader with torchvision's transforms for each image."""
    forms = ("published", "published, 2 workers", "this code")
    rows = compare({form: data_step(form, sizes) for form in forms}, sizes)
    count = 64 * sizes.batch
    return [{**row, "images a second": round(count / row["seconds"])} for row in rows]


def part_growth(sizes: argparse.Namespace) -> Rows:
    """How the time of an order 2 step grows, one size at a time."""
    rows = []
    for name, values in {
        "channels": (8, 16, 32),
        "cells": (5, 8, 11),
        "batch": (32, 64, 128),
        "image": (16, 32),
    }.items():
        for value in values:
            own = argparse.Namespace(**{**vars(sizes), name: value})
            seconds = in_turn({"fused": search_step("fused", own, of_order(2))}, sizes.pairs, sizes.device)["fused"]
            rows.append({"size": f"{name}={value}", "seconds": statistics.median(seconds)})
    return rows


def table(rows: Rows) -> str:
    """Return rows as a Markdown table."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_text(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
    lines = [columns, ["-" * width for width in widths], *cells]
    return "\n".join("| " + " | ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts asked for; print their tables, and write them as JSON if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m src.bench", description="This code against the paper's as published."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all of them by default")
    for name, default, text in (
        ("channels", 16, "of the supernet"),
        ("cells", 8, "of the supernet"),
        ("nodes", 4, "of a cell"),
        ("batch", 64, "images in a search batch"),
        ("image", 32, "side of an image"),
        ("pairs", 5, "turns that count"),
        ("steps", 20, "search steps to the second point of `hypergradient`, a quarter of those to the third"),
        ("retrain-channels", 36, "of the retrain network"),
        ("retrain-cells", 20, "of the retrain network"),
        ("retrain-batch", 96, "images in a retrain batch"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--json", metavar="PATH", help="write the figures there too")
    parser.add_argument("--measure", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--order", type=int, choices=(1, 2), default=1, help=argparse.SUPPRESS)
    parser.add_argument("--hypergradient", choices=HYPERGRADIENTS, help=argparse.SUPPRESS)
    sizes = parser.parse_args(argv)
    unknown = [part for part in sizes.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r} (allowed: {', '.join(PARTS)})")
    for name in ("channels", "nodes", "batch", "image", "pairs", "steps"):
        if getattr(sizes, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {getattr(sizes, name)}")
    if sizes.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here")
    if sizes.measure:
        hypergradient = HYPERGRADIENTS.get(sizes.hypergradient, of_order(sizes.order))
        print(measure_memory(search_step(sizes.measure, sizes, hypergradient), sizes.device))
        return 0

    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    if sizes.device == "cuda":
        machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    print(f"{machine}; {sizes.precision}; medians of {sizes.pairs} turns")
    results = {}
    for part in sizes.parts or PARTS:
        results[part] = globals()[f"part_{part}"](sizes)
        print(f"\n{part}\n\n{table(results[part])}", flush=True)
    if sizes.json:
        write_whole(
            Path(sizes.json), json.dumps({"machine": machine, **vars(sizes), "results": results}, indent=2) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
