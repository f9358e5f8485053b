"""The supernet, and the network of a genotype, written to be fast: the same functions of the same parameters.

The plain forms (src/spaces/cnn/cells.py, src/spaces/cnn/network.py) call an operator, and write an image, for every step of every
operation. A supernet's cell here is one function with a hand-written gradient, made of the few kernels in src/kernels. In
brackets, how much longer a pass for the alphas takes without it: 1.75 s at the paper's sizes (16 channels, 8 cells, batch
64) in float32 on two cores of an AMD EPYC, medians of seven turns in one run, in which each was taken out by hand.

- What several edges would compute from one state (its ReLU, its pools) is computed once [pools for every edge: 12 %];
  `none` is never computed.
- ReLU, depthwise and pointwise convolution are one kernel, which also sums up what BatchNorm needs to know of its output
  z. BatchNorm is then a scale and a shift of each channel, and the alpha of an operation rides on that scale, so that a
  node is a weighted sum of the z on its edges [to write the normalised images: 9 %]; between the halves of a separable
  convolution, the second half rescales what it reads. Of each convolution z alone is kept, and the backward pass
  recomputes what lies before it: that is where the memory goes that the README's table shows.
- A gradient that nothing asks for is not computed: that of the weights in a pass for the alphas [41 %], that of the images
  in the first cell.

Every identity is exact; only rounding differs. State dicts fit both forms. The gradients cannot be differentiated again
(create_graph=True is refused): an exact hypergradient needs the plain supernet. `python -m src.bench` compares times.

Images for which there are no kernels (on a GPU, in bfloat16, without a compiler) go through the plain forms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from src.fast import kernels
from src.fast.branches import Branch, Incoming, Normal, Same, Statistics, affine_parameters, as_edges, branch_of
from src.spaces.choices import LayerChoice
from src.spaces.cnn.cells import Cell, CellPlan, Node, Supernet
from src.spaces.cnn.genotypes import NodeEdges
from src.spaces.cnn.network import GenotypeCell, Network
from src.spaces.cnn.operations import Zero


class FusedSupernet(Supernet):
    """`Supernet` with fused cells."""

    def cell(self, plan: CellPlan, *, nodes: int, candidates: Sequence[str]) -> nn.Module:
        """Return the cell for a place in the stack."""
        return FusedCell(plan, nodes=nodes, candidates=candidates)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        if not kernels.fit(images):
            return super().forward(images)
        statistics = Statistics()
        convolution, norm = cast(nn.Sequential, self.stem)
        images = images.contiguous(memory_format=torch.channels_last)
        before_last = last = apply(Same([norm]), convolution(images), statistics)
        statistics.update_norms()
        for cell in self.cells:
            before_last, last = last, cell(before_last, last)
        return self.classifier(last.mean(dim=(2, 3)))


class FusedCell(Cell):
    """`Cell` as one function. All BatchNorms of a cell have one momentum and one eps, as in src/spaces/cnn/operations.py."""

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        """Map the outputs of cells k-2 and k-1 to this cell's output (N, nodes * channels, H, W)."""
        if not kernels.fit(last):
            return super().forward(before_last, last)
        statistics = Statistics()
        inputs = [
            apply(branch_of([module]), x, statistics)
            for module, x in ((self.preprocess0, before_last), (self.preprocess1, last))
        ]
        nodes = [cast(Node, node) for node in self.nodes]
        sources = [
            Source.of([cast(LayerChoice, node.edges[index]) for node in nodes[max(0, index - 1) :]], statistics)
            for index in range(1 + len(nodes))
        ]
        parameters = [parameter for source in sources for parameter in source.parameters]
        output = _Graph.apply(sources, len(nodes), *(source.rows for source in sources), *inputs, *parameters)
        statistics.update_norms()
        return cast(Tensor, output)


class FusedNetwork(Network):
    """`Network` with fused cells."""

    def cell(self, plan: CellPlan, nodes: Sequence[NodeEdges]) -> nn.Module:
        """Return the cell for a place in the stack."""
        return FusedGenotypeCell(plan, nodes)


class FusedGenotypeCell(GenotypeCell):
    """`GenotypeCell` with fused operations."""

    def evaluate(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return what an operation makes of a state."""
        if not kernels.fit(x) or isinstance(module, nn.Identity):
            return super().evaluate(module, x)
        statistics = Statistics()
        output = apply(branch_of([module]), x, statistics)
        statistics.update_norms()
        return output


def apply(branch: Branch, x: Tensor, statistics: Statistics) -> Tensor:
    """Return what a branch of one edge makes of x (N, C, H, W), its BatchNorm included."""
    source = Source(torch.ones(1, 1, dtype=kernels.SUMS), [0], [branch], statistics)
    return cast(Tensor, _Single.apply(source, x, *source.parameters))


class Source:
    """A state and the K edges that leave it, to the last K nodes, with M branches; none for `none`."""

    def __init__(
        self, rows: Tensor, columns: Sequence[int], branches: Sequence[Branch], statistics: Statistics
    ) -> None:
        self.rows = rows  # (K, candidates): softmax weights
        self.columns = columns  # of the branches among the candidates
        self.branches = branches
        self.statistics = statistics
        self.first = -len(rows)  # of its nodes
        self.parameters = [p for branch in branches for p in (*branch.parameters, *affine_parameters(branch.norms))]
        self.versions = self._versions()
        self.normal: Normal
        self._counts: list[int] = []

    @classmethod
    def of(cls, edges: Sequence[LayerChoice], statistics: Statistics) -> Source:
        """Return the source of the choices on its edges."""
        operations = [[edge.candidates[name] for edge in edges] for name in edges[0].candidates]
        columns = [column for column, (first, *_) in enumerate(operations) if type(first) is not Zero]
        rows = torch.stack([cast(Tensor, edge.weights) for edge in edges])
        return cls(rows, columns, [branch_of(operations[column]) for column in columns], statistics)

    def forward(self, rows: Tensor, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return the terms, M of (K or 1, N, C, H, W), and the factors (M, K, C) and constant (K, C) of their sum."""
        for branch in self.branches:
            branch.forward(x, self.statistics)
        terms = [branch.term for branch in self.branches]
        edges, channels = len(rows), terms[0].shape[2]
        normed = [branch for branch in self.branches if branch.norms]
        normals: Iterator[Normal] = iter(())
        if normed:
            norms = [norm for branch in normed for norm in branch.norms]
            moments = torch.cat([branch.moments.expand(-1, edges, channels) for branch in normed], dim=1)
            normals = iter(Normal.of(norms, moments, terms[0], self.statistics).split(edges))
        plain = Normal.none(edges, channels)
        self.normal = Normal.stack([next(normals) if branch.norms else plain for branch in self.branches])
        factors, constants = self._alphas(rows) * self.normal.rescale()
        return terms, factors, constants.sum(0)

    def backward(
        self, rows: Tensor, grads: Tensor, x: Tensor, *, into: Tensor | None, add: bool, needs_weights: bool
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return the gradients of rows and of `parameters`, and write that of x to `into`, or add it.

        grads (K, N, C, H, W) are those of the nodes.
        """
        if self.versions != self._versions():
            raise RuntimeError("weights were changed in place between a forward pass and its backward pass")
        sums = kernels.dots(grads, [branch.term for branch in self.branches])
        total, centred = sums[0], self.normal.centred(sums[0], sums[1:])
        alphas = self._alphas(rows)
        of_weights, of_biases = self.normal.scale * centred, total.expand_as(centred)
        alpha_grads = (self.normal.weight * of_weights + self.normal.bias * of_biases).sum(2).to(rows.dtype)
        by_column = dict(zip(self.columns, alpha_grads, strict=True))
        zero = rows.new_zeros(len(rows))  # of `none`
        row_grads = torch.stack([by_column.get(column, zero) for column in range(rows.shape[1])], dim=1)
        mixes = self.normal.mix(alphas, total, centred).unbind(1)
        parameter_grads: list[Tensor | None] = []
        for index, (branch, mix) in enumerate(zip(self.branches, mixes, strict=True)):
            parameters: Sequence[Tensor | None] = [None] * len(branch.parameters)
            if into is not None or (needs_weights and branch.parameters):
                parameters = branch.backward(Incoming(grads, mix, x, into, add or index > 0, needs_weights))
            parameter_grads += parameters
            if affine_parameters(branch.norms):
                parameter_grads += [*(alphas * of_weights)[index], *(alphas * of_biases)[index]]
            branch.tensors = []
        return row_grads, parameter_grads

    def take_tensors(self) -> Iterator[Tensor]:
        """Yield what the backward pass needs, and let go of it: autograd keeps it."""
        self._counts = [len(branch.tensors) for branch in self.branches]
        for branch in self.branches:
            yield from branch.tensors
            branch.tensors = []

    def give_tensors(self, tensors: Iterator[Tensor]) -> None:
        """Take back what `take_tensors` yielded."""
        for branch, count in zip(self.branches, self._counts, strict=True):
            branch.tensors = [next(tensors) for _ in range(count)]

    def _alphas(self, rows: Tensor) -> Tensor:
        """Return the weights of the terms, (M, K, 1)."""
        return torch.stack([rows[:, column] for column in self.columns])[:, :, None]

    def _versions(self) -> list[int]:
        return [parameter._version for parameter in self.parameters]


class _Graph(torch.autograd.Function):
    """A cell: rows of softmax weights for each source, the two inputs, all parameters -> the output.

    The states are the two inputs and the nodes, which lie in the output side by side. A node is complete, and read as a
    source, once all sources before it have added their terms; backward, its gradient once all behind it have.
    """

    @staticmethod
    def forward(ctx: Any, sources: list[Source], nodes: int, *tensors: Tensor) -> Tensor:
        rows, inputs = tensors[: len(sources)], tensors[len(sources) : len(sources) + 2]
        ctx.sources, ctx.nodes = sources, nodes
        states = [as_edges(x) for x in inputs]
        output: Tensor | None = None
        for index, (source, row) in enumerate(zip(sources, rows, strict=True)):
            terms, factors, constant = source.forward(row, states[index])
            if output is None:
                _, count, channels, height, width = terms[0].shape
                output = inputs[0].new_empty(count, height, width, nodes * channels).permute(0, 3, 1, 2)
                states += _by_node(output, nodes).split(1)
            kernels.combine(_by_node(output, nodes)[source.first :], terms, factors, constant, add=index > 0)
        assert output is not None
        ctx.save_for_backward(*rows, *inputs, output, *(t for source in sources for t in source.take_tensors()))
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _check_first_order()
        count = len(ctx.sources)
        saved = iter(ctx.saved_tensors)
        rows = [next(saved) for _ in range(count)]
        inputs = [next(saved) for _ in range(2)]
        output = next(saved)
        for source in ctx.sources:
            source.give_tensors(saved)
        needs = iter(ctx.needs_input_grad[2 + count :])  # of the inputs, then of the parameters
        nodes = _by_node(grads[0].clone(memory_format=torch.channels_last), ctx.nodes)
        states = [as_edges(x) for x in inputs]
        state_grads = [torch.empty_like(x) if next(needs) else None for x in states]
        states += _by_node(output, ctx.nodes).split(1)
        state_grads += nodes.split(1)
        weights_needed = [sum([next(needs) for _ in source.parameters]) > 0 for source in ctx.sources]
        row_grads: list[Tensor | None] = [None] * count
        parameter_grads: list[list[Tensor | None]] = [[]] * count
        for index in reversed(range(count)):
            source = ctx.sources[index]
            row_grads[index], parameter_grads[index] = source.backward(
                rows[index],
                nodes[source.first :],
                states[index],
                into=state_grads[index],
                add=index >= len(inputs),  # a node is an output too
                needs_weights=weights_needed[index],
            )
        input_grads = [None if grad is None else grad[0] for grad in state_grads[:2]]
        return None, None, *row_grads, *input_grads, *(g for source in parameter_grads for g in source)


class _Single(torch.autograd.Function):
    """A source with one edge and one branch: its state, the parameters -> the output."""

    @staticmethod
    def forward(ctx: Any, source: Source, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.source = source
        (term,), factors, constant = source.forward(source.rows, as_edges(x))
        output = kernels.empty(term.shape, like=term)
        kernels.combine(output, [term], factors, constant, add=False)
        ctx.save_for_backward(x, *source.take_tensors())
        return output[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _check_first_order()
        x, *tensors = ctx.saved_tensors
        ctx.source.give_tensors(iter(tensors))
        state = as_edges(x)
        _, needs_x, *needs = ctx.needs_input_grad
        into = torch.empty_like(state) if needs_x else None
        _, parameter_grads = ctx.source.backward(
            ctx.source.rows, as_edges(grads[0]), state, into=into, add=False, needs_weights=any(needs)
        )
        return None, None if into is None else into[0], *parameter_grads


def _check_first_order() -> None:
    """Raise an error in a backward pass that is to be differentiated itself.

    torch's once_differentiable raises too late: where the second derivative is asked for by torch.autograd.grad, it
    drops the path through the function without a word.
    """
    if torch.is_grad_enabled():  # by create_graph=True
        raise RuntimeError("the fused supernet has no second derivatives, space.impl=reference has")


def _by_node(images: Tensor, nodes: int) -> Tensor:
    """Return (N, nodes * C, H, W) as a view (nodes, N, C, H, W)."""
    return images.unflatten(1, (nodes, -1)).movedim(1, 0)
