"""The network that a genotype is retrained as (arXiv 1806.09055, section 3.1.2 and appendix A.1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from src.architectures.architecture import Architecture
from src.common.errors import must_be
from src.spaces.cnn.formats import load_cells
from src.spaces.cnn.genotypes import Genotype, NodeEdges, live
from src.spaces.cnn.operations import OPERATIONS, import_operations
from src.spaces.cnn.stack import CellPlan, plan_stack, preprocess, stems


class Network(nn.Module):
    """Cells of one genotype, stacked; defaults are the paper's evaluation on CIFAR-10.

    A node without edges is left out of its cell's output, and so is an edge that begins at it, as in the official code of
    FairDARTS (fairdarts/model.py).

    Args:
        architecture: of the CNN cell space; it says how many nodes a cell has.
        input_shape: of an image, (C, H, W).
        num_classes: of the logits.
        channels: of the first cell's nodes.
        cells: their number; those at 1/3 and 2/3 halve the image.
        stem: `cifar` or `imagenet`; see `plan_stack`.
        stem_multiplier: of the stem's channels; see `plan_stack`.
        auxiliary: whether there is a second classifier at 2/3 of the depth, for the training.
        operations: modules to import, which register operations of your own.

    Attributes:
        drop_path: the probability of dropping an operation's output for a sample; the training loop raises it from 0.

    Raises:
        ConfigError: an argument is out of its range.
    """

    training_settings = ("auxiliary_weight", "drop_path")
    settings_of_the_space = ("operations", "stem")

    def __init__(
        self,
        architecture: Architecture,
        *,
        input_shape: Sequence[int],
        num_classes: int,
        channels: int = 36,
        cells: int = 20,
        stem: str = "cifar",
        stem_multiplier: int | None = None,
        auxiliary: bool = True,
        operations: Sequence[str] = (),
    ) -> None:
        super().__init__()
        import_operations(operations)
        genotype = Genotype.from_architecture(architecture)
        cells_of = {"normal": live(genotype.normal), "reduce": live(genotype.reduce)}
        nodes = {kind: sum(map(bool, edges)) for kind, edges in cells_of.items()}
        stack = plan_stack(cells=cells, channels=channels, nodes=nodes, stem=stem, stem_multiplier=stem_multiplier)
        plans = stack.cells
        self.drop_path = 0.0
        self.stem, self.stem1 = stems(stack, input_shape[0])
        self.cells = nn.ModuleList(self.cell(plan, cells_of[plan.kind]) for plan in plans)
        self.classifier = nn.Linear(plans[-1].channels_out, num_classes)
        self.auxiliary_at = 2 * cells // 3
        self.auxiliary = None
        if auxiliary:
            side = min(input_shape[1:])
            for _ in range(stack.halvings):
                side = (side + 1) // 2
            if side < AuxiliaryHead.SMALLEST:
                smallest = (AuxiliaryHead.SMALLEST - 1) * 2**stack.halvings + 1
                raise must_be(
                    "auxiliary",
                    f"false for images smaller than {smallest}x{smallest}, which leave the head too little",
                    True,
                )
            self.auxiliary = AuxiliaryHead(plans[self.auxiliary_at].channels_out, num_classes, side=side)

    @staticmethod
    def load(genotype: str, *, operations: Sequence[str] = ()) -> Architecture:
        """Return the architecture of a published genotype by its name, of a `Genotype(...)` text, or of a file.

        Args:
            genotype: the name, the text or the path.
            operations: as for the network.

        Raises:
            ConfigError: there is no such name or file, or it is not an architecture of the CNN cell space.
        """
        import_operations(operations)
        return load_cells(genotype)

    def cell(self, plan: CellPlan, nodes: Sequence[NodeEdges]) -> nn.Module:
        """Return the cell for a place in the stack."""
        return GenotypeCell(plan, nodes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map images (N, C, H, W) to logits (N, K) and, while training, the auxiliary head's."""
        before_last = self.stem(images)
        last = self.stem1(before_last)
        auxiliary = None
        for index, cell in enumerate(self.cells):
            before_last, last = last, cell(before_last, last, self.drop_path)
            if index == self.auxiliary_at and self.auxiliary is not None and self.training:
                auxiliary = self.auxiliary(last)
        return self.classifier(last.mean(dim=(2, 3))), auxiliary


class GenotypeCell(nn.Module):
    """A cell of chosen operations only; its BatchNorms have parameters, its pools no BatchNorm.

    Args:
        plan: the cell's place in the stack.
        nodes: the edges of each node, all of which carry something (see `live`).
    """

    def __init__(self, plan: CellPlan, nodes: Sequence[NodeEdges]) -> None:
        super().__init__()
        self.preprocess0, self.preprocess1 = preprocess(plan, affine=True)
        self.states = [[edge.state for edge in node] for node in nodes]
        self.nodes = nn.ModuleList()
        for node in nodes:
            strides = (2 if plan.reduction and edge.state < 2 else 1 for edge in node)
            operations = (
                OPERATIONS[edge.operation](plan.channels, stride, False)
                for edge, stride in zip(node, strides, strict=True)
            )
            self.nodes.append(nn.ModuleList(operations))

    def forward(self, before_last: Tensor, last: Tensor, drop: float) -> Tensor:
        """Map the outputs of cells k-2 and k-1 to this cell's output (N, joined nodes * channels, H, W)."""
        states: list[Any] = [self.evaluate(self.preprocess0, before_last), self.evaluate(self.preprocess1, last)]
        for operations, sources in zip(self.nodes, self.states, strict=True):
            assert isinstance(operations, nn.ModuleList)
            terms = []
            for operation, source in zip(operations, sources, strict=True):
                term = self.evaluate(operation, states[source])
                # Identity is never dropped: a sample would lose its only short path.
                if self.training and drop > 0 and not isinstance(operation, nn.Identity):
                    term = drop_path(term, drop)
                terms.append(term)
            states.append(sum(terms[1:], start=terms[0]) if terms else None)
        return torch.cat([state for state in states[2:] if state is not None], dim=1)

    def evaluate(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return what an operation makes of a state."""
        return module(x)


def drop_path(x: Tensor, probability: float) -> Tensor:
    """Zero whole samples of x (N, C, H, W) with `probability`, and scale the others so that the mean stays."""
    keep = 1.0 - probability
    mask = torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(keep)
    return x * (mask / keep)


class AuxiliaryHead(nn.Module):
    """A second classifier at 2/3 of the depth, used in training only.

    The paper's head takes 8x8; its first pool (5x5, stride 3) leaves 2x2. For another side, the pool's stride and size
    scale so that 2x2 is left again (7x7: 5x5 with stride 2, the official head for ImageNet).
    """

    SMALLEST = 2  # side of the features

    def __init__(self, channels: int, num_classes: int, *, side: int) -> None:
        super().__init__()
        if side < self.SMALLEST:
            raise must_be("side", f"{self.SMALLEST} or more", side)
        stride = max(1, 3 * side // 8)
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(side - stride, stride=stride, count_include_pad=False),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C, side, side) to logits (N, num_classes)."""
        return self.classifier(self.features(x).mean(dim=(2, 3)))
