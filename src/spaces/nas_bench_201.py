"""The space of NAS-Bench-201 (arXiv 2001.00326): one cell of six edges, of which all 15,625 architectures were trained.

Section 2.1 of the paper describes it; src/benchmarks/nas_bench_201.py has the accuracies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from src.architectures.architecture import Architecture
from src.benchmarks.nas_bench_201 import nas_bench_201
from src.common.errors import must_be
from src.spaces.choices import LayerChoice

NODES = 4


class NasBench201(nn.Module):
    """The published skeleton: a stem, three stages of equal cells, and a residual block of stride 2 between stages.

    All cells share the choices of their six edges. Unlike in the paper's cells of DARTS, an edge may end up as `none`: the
    published networks include those.

    Args:
        input_shape: of an image, (C, H, W).
        num_classes: of the logits.
        channels: of the first stage; each stage has twice those of the one before.
        cells: in each stage.
        affine: whether the BatchNorms within cells have parameters, as in the networks that were trained. In a search
            they have none, since mixing weights scale what comes after; a retrain changes it.
        table: the data set whose published accuracies a search looks its architectures up in, whatever data it searches
            on: `cifar10`, `cifar100` or `imagenet16_120`; None for no table.

    Attributes:
        table: the accuracies, or None.

    Raises:
        ConfigError: an argument is out of its range.
    """

    retrained_with: ClassVar[Mapping[str, Any]] = {"affine": True}

    def __init__(
        self,
        *,
        input_shape: Sequence[int],
        num_classes: int,
        channels: int = 16,
        cells: int = 5,
        affine: bool = False,
        table: str | None = "cifar10",
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("cells", cells)):
            if value < 1:
                raise must_be(name, "1 or more", value)
        self.table = None if table is None else nas_bench_201(table)
        self.stem = nn.Sequential(
            nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        layers: list[nn.Module] = []
        for stage in range(3):
            width = channels << stage
            if stage:
                layers.append(ResidualBlock(width // 2, width))
            layers += [Cell(partial(candidates, affine=affine), width, nodes=NODES) for _ in range(cells)]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Sequential(nn.BatchNorm2d(4 * channels), nn.ReLU())
        self.classifier = nn.Linear(4 * channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        return self.classifier(self.last(self.layers(self.stem(images))).mean(dim=(2, 3)))


class Cell(nn.Module):
    """Nodes, each the sum of an edge from every earlier one; the first is the input, the last the output.

    Args:
        build: returns the candidates of an edge for a number of channels.
        channels: of every node.
        nodes: the number of nodes, of which edges into one from an earlier one have the key `n{node}_p{earlier}`.
    """

    def __init__(self, build: Callable[[int], Mapping[str, nn.Module]], channels: int, *, nodes: int) -> None:
        super().__init__()
        self.nodes = nodes
        keys = [f"n{node}_p{earlier}" for node in range(1, nodes) for earlier in range(node)]
        self.edges = nn.ModuleDict({key: LayerChoice.of_width(build, channels, key=key) for key in keys})

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, ...) to the same shape."""
        states = [x]
        for node in range(1, self.nodes):
            total = self.edges[f"n{node}_p0"](states[0])
            for earlier in range(1, node):
                total = total + self.edges[f"n{node}_p{earlier}"](states[earlier])
            states.append(total)
        return states[-1]


class Zeroize(nn.Module):
    """The operation that passes nothing on. Its name is not `none`, which an architecture cannot contain."""

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros of the input's shape."""
        return x * 0.0


def convolution(channels: int, kernel: int, affine: bool) -> nn.Module:
    """Return ReLU, convolution of stride 1, BatchNorm."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    )


# In the order of the digits of the published table.
OPERATIONS: Mapping[str, Callable[[int, bool], nn.Module]] = {
    "zeroize": lambda channels, affine: Zeroize(),
    "skip_connect": lambda channels, affine: nn.Identity(),
    "nor_conv_1x1": lambda channels, affine: convolution(channels, 1, affine),
    "nor_conv_3x3": lambda channels, affine: convolution(channels, 3, affine),
    "avg_pool_3x3": lambda channels, affine: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
}


def candidates(channels: int, *, affine: bool) -> dict[str, nn.Module]:
    """Return the five candidates of an edge."""
    return {name: build(channels, affine) for name, build in OPERATIONS.items()}


class ResidualBlock(nn.Module):
    """The block between stages: two 3x3 convolutions, the first of stride 2, and a pooled shortcut."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels_in, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, stride=2, ceil_mode=True), nn.Conv2d(channels_in, channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels_in, H, W) to (N, channels, H / 2, W / 2), rounded up."""
        return self.convolutions(x) + self.shortcut(x)


def to_text(architecture: Architecture) -> str:
    """Return an architecture as the official code writes it, such as |nor_conv_3x3~0|+|none~0|skip_connect~1|+..."""
    names = {key: "none" if answer == "zeroize" else answer for key, answer in architecture.choices.items()}
    nodes = [
        "".join(f"|{names[f'n{node}_p{earlier}']}~{earlier}" for earlier in range(node)) for node in range(1, NODES)
    ]
    return "+".join(f"{text}|" for text in nodes)
