"""The network that a genotype is retrained as (arXiv 1806.09055, section 3.1.2 and appendix A.1.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from src.architectures.architecture import Architecture
from src.common.errors import ConfigError
from src.spaces.cnn.cells import CellPlan, plan_cells, preprocess, stem
from src.spaces.cnn.genotypes import Genotype, NodeEdges
from src.spaces.cnn.operations import OPERATIONS, import_operations


class Network(nn.Module):
    """Cells of one genotype, stacked; defaults are the paper's evaluation on CIFAR-10.

    `operations` names modules that register operations of your own, which the genotype can then have.
    `drop_path` is the probability of dropping an operation's output for a sample; the training loop raises it from 0.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        input_shape: Sequence[int],
        num_classes: int,
        channels: int = 36,
        cells: int = 20,
        stem_multiplier: int = 3,
        auxiliary: bool = True,
        operations: Sequence[str] = (),
    ) -> None:
        super().__init__()
        import_operations(operations)
        genotype = Genotype.from_architecture(architecture)
        nodes = len(genotype.normal)
        plans = plan_cells(cells=cells, channels=channels, stem_multiplier=stem_multiplier, nodes=nodes)
        self.drop_path = 0.0
        self.stem = stem(input_shape[0], stem_multiplier * channels)
        self.cells = nn.ModuleList(
            self.cell(plan, genotype.reduce if plan.reduction else genotype.normal) for plan in plans
        )
        self.classifier = nn.Linear(nodes * plans[-1].channels, num_classes)
        self.auxiliary_at = 2 * cells // 3
        self.auxiliary = None
        if auxiliary:
            side = min(input_shape[1:])
            for _ in range(2):
                side = (side + 1) // 2
            self.auxiliary = AuxiliaryHead(nodes * plans[self.auxiliary_at].channels, num_classes, side=side)

    def cell(self, plan: CellPlan, nodes: Sequence[NodeEdges]) -> nn.Module:
        """Return the cell for a place in the stack."""
        return GenotypeCell(plan, nodes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map images (N, C, H, W) to logits (N, K) and, while training, the auxiliary head's."""
        before_last = last = self.stem(images)
        auxiliary = None
        for index, cell in enumerate(self.cells):
            before_last, last = last, cell(before_last, last, self.drop_path)
            if index == self.auxiliary_at and self.auxiliary is not None and self.training:
                auxiliary = self.auxiliary(last)
        return self.classifier(last.mean(dim=(2, 3))), auxiliary


class GenotypeCell(nn.Module):
    """A cell of chosen operations only; its BatchNorms have parameters, its pools no BatchNorm."""

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
        """Map the outputs of cells k-2 and k-1 to this cell's output (N, nodes * channels, H, W)."""
        states = [self.evaluate(self.preprocess0, before_last), self.evaluate(self.preprocess1, last)]
        for operations, sources in zip(self.nodes, self.states, strict=True):
            assert isinstance(operations, nn.ModuleList)
            terms = []
            for operation, source in zip(operations, sources, strict=True):
                term = self.evaluate(operation, states[source])
                # Identity is never dropped: a sample would lose its only short path.
                if self.training and drop > 0 and not isinstance(operation, nn.Identity):
                    term = drop_path(term, drop)
                terms.append(term)
            states.append(sum(terms[1:], start=terms[0]))
        return torch.cat(states[2:], dim=1)

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

    The paper's head takes 8x8; its first pool (5x5, stride 3) leaves 2x2. For another side the pool's stride and size
    scale so that 2x2 is left again (7x7: 5x5 with stride 2, the paper's head for ImageNet).
    """

    def __init__(self, channels: int, num_classes: int, *, side: int) -> None:
        super().__init__()
        if side < 2:
            raise ConfigError(
                "the image is too small for the auxiliary head, which needs 2x2 after two reductions; "
                "allowed are images of 5x5 and more, or space.auxiliary=false"
            )
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
