"""The paper's cells and supernet, written to be read: the reference for faster forms.

Implements section 2.1 and appendix A.1.1 of arXiv 1806.09055.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from src.common.errors import must_be, unknown
from src.spaces.choices import ZERO, InputChoice, LayerChoice
from src.spaces.cnn.genotypes import CANDIDATES, EDGES_PER_NODE, edge_key, may_be_empty, switch_key
from src.spaces.cnn.network import Network
from src.spaces.cnn.operations import OPERATIONS, import_operations
from src.spaces.cnn.stack import CellPlan, plan_stack, preprocess, stems


def searched_operations(candidates: Sequence[str], stride: int, channels: int) -> dict[str, nn.Module]:
    """Return the candidates of an edge, in the form in which they are searched."""
    return {name: OPERATIONS[name](channels, stride, True) for name in candidates}


class Node(nn.Module):
    """A node of a cell: an edge from every earlier state, of which two are kept in the end."""

    def __init__(self, index: int, plan: CellPlan, candidates: Sequence[str]) -> None:
        super().__init__()
        keys = [edge_key(plan.kind, index, state) for state in range(index)]
        self.edges = nn.ModuleList()
        for state, key in enumerate(keys):
            stride = 2 if plan.reduction and state < 2 else 1
            build = partial(searched_operations, candidates, stride)
            self.edges.append(LayerChoice.of_width(build, plan.channels, key=key))
        self.switch = InputChoice(
            keys, n_chosen=EDGES_PER_NODE, key=switch_key(plan.kind, index), may_be_empty=may_be_empty(index)
        )

    def forward(self, states: Sequence[Tensor]) -> Tensor | None:
        """Return the sum of all edges, each applied to its state; None for a node of a fixed cell that has no edge."""
        return self.switch([edge(state) for edge, state in zip(self.edges, states, strict=True)])


class Cell(nn.Module):
    """A cell of the supernet: a directed acyclic graph of all candidate operations."""

    def __init__(self, plan: CellPlan, *, nodes: int, candidates: Sequence[str]) -> None:
        super().__init__()
        self.preprocess0, self.preprocess1 = preprocess(plan, affine=False)
        self.nodes = nn.ModuleList(Node(index, plan, candidates) for index in range(2, 2 + nodes))

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        """Map the outputs of cells k-2 and k-1 to this cell's output (N, nodes * channels, H, W)."""
        states = [self.preprocess0(before_last), self.preprocess1(last)]
        for node in self.nodes:
            state = node(states)
            states.append(torch.zeros_like(states[2]) if state is None else state)  # the first node is never empty
        return torch.cat(states[2:], dim=1)


class Supernet(nn.Module):
    """The network that holds every architecture of the CNN cell space; defaults are the paper's search on CIFAR-10.

    Args:
        input_shape: of an image, (C, H, W).
        num_classes: of the logits.
        channels: of the first cell's nodes.
        cells: their number; those at 1/3 and 2/3 halve the image.
        nodes: of each cell.
        stem: `cifar` or `imagenet`; see `plan_stack`.
        stem_multiplier: of the stem's channels; see `plan_stack`.
        candidates: names of registered operations.
        operations: modules to import, which register operations of your own.

    Raises:
        ConfigError: an argument is out of its range.
    """

    evaluation = Network

    def __init__(
        self,
        *,
        input_shape: Sequence[int],
        num_classes: int,
        channels: int = 16,
        cells: int = 8,
        nodes: int = 4,
        stem: str = "cifar",
        stem_multiplier: int | None = None,
        candidates: Sequence[str] = CANDIDATES,
        operations: Sequence[str] = (),
    ) -> None:
        super().__init__()
        import_operations(operations)
        check_candidates(candidates)
        stack = plan_stack(cells=cells, channels=channels, nodes=nodes, stem=stem, stem_multiplier=stem_multiplier)
        self.stem, self.stem1 = stems(stack, input_shape[0])
        self.cells = nn.ModuleList(self.cell(plan, nodes=nodes, candidates=candidates) for plan in stack.cells)
        self.classifier = nn.Linear(nodes * stack.cells[-1].channels, num_classes)

    def cell(self, plan: CellPlan, *, nodes: int, candidates: Sequence[str]) -> nn.Module:
        """Return the cell for a place in the stack."""
        return Cell(plan, nodes=nodes, candidates=candidates)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        before_last = self.stem(images)
        last = self.stem1(before_last)
        for cell in self.cells:
            before_last, last = last, cell(before_last, last)
        return self.classifier(last.mean(dim=(2, 3)))


def check_candidates(candidates: Sequence[str]) -> None:
    """Raise a `ConfigError` unless `candidates` are distinct names of operations with one besides `none`."""
    for name in candidates:
        if name not in OPERATIONS:
            raise unknown("operation in candidates:", name, OPERATIONS)
    if len(set(candidates)) != len(candidates) or not set(candidates) - {ZERO}:
        raise must_be("candidates", f"different operations, at least one of them not {ZERO}", ", ".join(candidates))
