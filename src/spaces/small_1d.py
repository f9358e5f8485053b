"""A space for signals that is small enough to train all of it: one cell of three edges, 125 architectures.

Its cell is that of NAS-Bench-201 with one node less. src/benchmarks/small_1d.py has what each architecture reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from src.architectures.architecture import Architecture
from src.benchmarks.small_1d import small_1d
from src.common.errors import ConfigError, must_be
from src.spaces.nas_bench_201 import Cell, Zeroize

NODES = 3


class Small1d(nn.Module):
    """A stem, and two stages of equal cells; a convolution of stride 2 between them doubles the channels.

    All cells share the choices of their three edges. BatchNorms within cells have no parameters, neither in a search nor
    when an architecture is trained, so what is behind a zeroized edge is exactly 0 (see `canonical`).

    Args:
        input_shape: of a signal, (C, length).
        num_classes: of the logits.
        channels: of the first stage.
        cells: in each stage.
        table: the data that the accuracies are of which a search looks its architectures up in, whatever data it searches
            on: `mnist_1d`; None for no table. It was made with the default `channels` and `cells`.

    Attributes:
        table: the accuracies, or None.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int],
        num_classes: int,
        channels: int = 8,
        cells: int = 1,
        table: str | None = "mnist_1d",
    ) -> None:
        super().__init__()
        if len(input_shape) != 2:
            shape = tuple(input_shape)
            raise ConfigError(
                f"samples must be signals of shape (channels, length), such as data=mnist_1d; got {shape}"
            )
        for name, value in (("channels", channels), ("cells", cells)):
            if value < 1:
                raise must_be(name, "1 or more", value)
        self.table = None if table is None else small_1d(table)
        self.stem = nn.Sequential(
            nn.Conv1d(input_shape[0], channels, 3, padding=1, bias=False), nn.BatchNorm1d(channels)
        )
        self.layers = nn.Sequential(
            *(Cell(candidates, channels, nodes=NODES) for _ in range(cells)),
            convolution(channels, 3, 2 * channels, stride=2, affine=True),
            *(Cell(candidates, 2 * channels, nodes=NODES) for _ in range(cells)),
        )
        self.last = nn.Sequential(nn.BatchNorm1d(2 * channels), nn.ReLU())
        self.classifier = nn.Linear(2 * channels, num_classes)

    def forward(self, signals: Tensor) -> Tensor:
        """Map signals (N, C, length) to logits (N, num_classes)."""
        return self.classifier(self.last(self.layers(self.stem(signals))).mean(dim=2))

    @staticmethod
    def canonical(architecture: Architecture) -> Architecture:
        """Return the architecture that stands for all that compute the same: edges that change nothing are zeroized.

        These are edges from a node that is always 0, and edges into one that the output does not see. 85 of the 125
        architectures stand for themselves.
        """
        answers = dict(architecture.choices)
        if "zeroize" in (answers["n1_p0"], answers["n2_p1"]):
            answers |= {"n1_p0": "zeroize", "n2_p1": "zeroize"}
        return Architecture(answers)


def convolution(channels_in: int, kernel: int, channels: int, *, stride: int = 1, affine: bool = False) -> nn.Module:
    """Return ReLU, convolution, BatchNorm."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv1d(channels_in, channels, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm1d(channels, affine=affine),
    )


class AveragePool(nn.Module):
    """What `nn.AvgPool1d(3, stride=1, padding=1, count_include_pad=False)` computes, on a CPU several times as fast."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of each value of (N, C, length) and its neighbours."""
        length = x.shape[-1]
        near = x.new_ones(length, length).triu(-1).tril(1)
        return x @ (near / near.sum(dim=0))


OPERATIONS: Mapping[str, Callable[[int], nn.Module]] = {
    "zeroize": lambda channels: Zeroize(),
    "skip_connect": lambda channels: nn.Identity(),
    "avg_pool_3": lambda channels: AveragePool(),
    "conv_3": lambda channels: convolution(channels, 3, channels),
    "conv_7": lambda channels: convolution(channels, 7, channels),
}


def candidates(channels: int) -> dict[str, nn.Module]:
    """Return the five candidates of an edge."""
    return {name: build(channels) for name, build in OPERATIONS.items()}
