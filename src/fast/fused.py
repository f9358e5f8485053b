"""The supernet, and the network of a genotype, written to be fast: the same functions of the same parameters.

The plain forms (src/spaces/cnn/cells.py, src/spaces/cnn/network.py) call an operator, and write an image, for every step of
every operation. Here a cell of the supernet is one function with a hand-written gradient. Where all of its operations have
a fast form it is one call of C++ (src/fast/whole.py); otherwise it is made of the few kernels in src/fast/kernels, as below.
docs/fast.md has what each idea saves.

- What several edges would compute from one state (its ReLU, its pools) is computed once; `none` is never computed.
- ReLU, depthwise and pointwise convolution are one kernel, which also computes what BatchNorm needs to know of its output
  z. BatchNorm is then a scale and a shift of each channel, and the mixing weight of an operation is a factor of that scale,
  so that a node is a weighted sum of the z on its edges; between the halves of a separable convolution, the second half
  rescales what it reads. Of each convolution only z is kept, and the backward pass recomputes what lies before it.
- A gradient that nothing asks for is not computed: that of the weights in a pass for the alphas, that of the images in the
  first cell.

Every identity is exact; only rounding differs. State dicts fit both forms. The gradients cannot be differentiated again
(create_graph=True is refused): an exact hypergradient needs the plain supernet.

The plain form runs instead wherever the result could differ: where the kernels do not fit (on a GPU, in bfloat16, without a
compiler), where a class or a module that a cell is made of was edited, replaced or hooked, where an edge is not a plain
`LayerChoice` or one candidate runs on some edges and all on others, and where operations that have no fast form draw random
numbers, write into their input, give images of another shape than the others, or reach tensors that need a gradient and
are not their own parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from src.fast import kernels
from src.fast.branches import (
    Branch,
    Called,
    Incoming,
    Normal,
    PlainFormNeededError,
    Pooling,
    Same,
    affine_parameters,
    as_edges,
    branch_of,
)
from src.fast.kernels.cells import State
from src.fast.known import Known, Memory, is_original, is_unedited, known
from src.fast.layout import Before, Layout
from src.fast.norms import Setting, Statistics
from src.fast.whole import Reading, Whole, Wholes, check_first_order, size_after, whole_of
from src.spaces.cnn.cells import Cell, CellPlan, Supernet
from src.spaces.cnn.genotypes import NodeEdges
from src.spaces.cnn.modules import Pool
from src.spaces.cnn.network import GenotypeCell, Network

_EVALUATE = GenotypeCell.evaluate


class FusedSupernet(Supernet):
    """`Supernet` with fused cells."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._memory = Memory()

    def cell(self, plan: CellPlan, *, nodes: int, candidates: Sequence[str]) -> nn.Module:
        """Return the cell for a place in the stack."""
        return FusedCell(plan, nodes=nodes, candidates=candidates)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        stem = self.stem
        if not (
            _fit(images) and is_original(Supernet) and is_unedited(stem, nn.Sequential) and len(stem._modules) == 2
        ):
            return super().forward(images)
        convolution, norm = cast(nn.Sequential, stem)
        x = convolution(images.contiguous(memory_format=torch.channels_last))
        before_last = last = self._memory.recall(norm, Single).output(x)
        for cell in self.cells:
            before_last, last = last, cell(before_last, last)
        return self.classifier(last.mean(dim=(2, 3)))


class FusedCell(Cell):
    """`Cell` as one function."""

    def __init__(self, plan: CellPlan, *, nodes: int, candidates: Sequence[str]) -> None:
        super().__init__(plan, nodes=nodes, candidates=candidates)
        self._memory = Memory()

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        """Map the outputs of cells k-2 and k-1 to this cell's output (N, nodes * channels, H, W)."""
        if _fit(last) and _fit(before_last) and before_last.dtype == last.dtype and is_original(Cell):
            output = self._memory.recall(self, _Form).output(before_last, last)
            if output is not None:
                return output
        return super().forward(before_last, last)


class FusedNetwork(Network):
    """`Network` with fused cells."""

    def cell(self, plan: CellPlan, nodes: Sequence[NodeEdges]) -> nn.Module:
        """Return the cell for a place in the stack."""
        return FusedGenotypeCell(plan, nodes)


class FusedGenotypeCell(GenotypeCell):
    """`GenotypeCell` with fused operations."""

    def __init__(self, plan: CellPlan, nodes: Sequence[NodeEdges]) -> None:
        super().__init__(plan, nodes)
        self._memory = Memory()

    def evaluate(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return what an operation makes of a state."""
        if not _fit(x) or GenotypeCell.evaluate is not _EVALUATE or isinstance(module, nn.Identity):
            return super().evaluate(module, x)
        return evaluate(module, self._memory.recall(module, known), x)


class Single:
    """An operation by itself."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.known = module, known(module)
        self.wholes = Wholes()

    def output(self, x: Tensor) -> Tensor:
        """Return what the module makes of x (N, C, H, W)."""
        whole = None if self.known is None else self.wholes.of([x], self._readings, outputs=1, columns=1)
        output = None if whole is None else whole.output([x], None)
        return evaluate(self.module, self.known, x) if output is None else output

    def _readings(self, dtype: torch.dtype) -> list[Reading]:
        return [Reading(0, 1, 1, -1, [0], [branch_of([self.module], [self.known], dtype)])]


def evaluate(module: nn.Module, known: Known | None, x: Tensor, statistics: Statistics | None = None) -> Tensor:
    """Return what a module makes of x (N, C, H, W), by its fast form if it has one.

    Running statistics are left to the caller's `statistics`, or moved if there are none.
    """
    noted = Statistics() if statistics is None else statistics
    branch = branch_of([module], [known], x.dtype)
    if isinstance(branch, Called):
        return module(x)
    try:
        source = Source(torch.ones(1, 1, dtype=kernels.SUMS), [0], [branch], noted)
        output = cast(Tensor, _Single.apply(source, x, *source.parameters))
    except PlainFormNeededError:
        return module(x)
    if statistics is None:
        noted.update_norms()
    return output


def _fit(x: Tensor) -> bool:
    """Return whether the kernels fit images, which must be (N, C, H, W), and no hook waits for the calls of all modules."""
    return kernels.fit(x) and x.dim() == 4 and x.numel() > 0 and not _has_any_global_hook()


class _Form(Layout):
    """What a cell is made of, and the sizes that the plain form is needed for."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__(cell)
        self.refused: set[tuple[torch.Size, torch.Size]] = set()  # sizes of inputs
        self.wholes = Wholes()
        self.path: tuple[int, ...] = ()  # that was drawn last
        self.of_path = Wholes()
        # Of a cell with partial channels, by sizes and dtype of its inputs.
        self.calls: dict[Any, list[Whole] | None] = {}

    def output(self, before_last: Tensor, last: Tensor) -> Tensor | None:
        """Return the cell's output, or None where the plain form is needed; then nothing was changed."""
        sizes = before_last.shape, last.shape
        if not self.is_usable or sizes in self.refused:
            return None
        path = tuple(edge.edge.path for edges in self.states for edge in edges)
        is_sampled = any(place is not None for place in path)
        rows = [[edge.mixing_weights(last.device, sampled=is_sampled) for edge in edges] for edges in self.states]
        if any(row is None for state in rows for row in state):  # an edge is no sum of all candidates
            return None
        rows = cast(list[list[Tensor]], rows)
        if is_sampled or self.k > 1:
            inputs = before_last, last
            return self._sampled(inputs, rows, cast(Any, path)) if is_sampled else self._partial(inputs, rows)
        output = self._whole(before_last, last, rows)
        if output is not None:
            return output
        statistics = Statistics()
        sources = self._sources(last.dtype, statistics, rows)
        called = [module for module, known in self.inputs if known is None]
        called += [o for source in sources for b in source.branches if isinstance(b, Called) for o in b.operations]
        before = Before(called, last.device)
        try:
            inputs = [
                evaluate(module, known, x, statistics)
                for (module, known), x in zip(self.inputs, (before_last, last), strict=True)
            ]
            if any(not _fit(x) or x.dtype != last.dtype for x in inputs):
                raise PlainFormNeededError
            parameters = [parameter for source in sources for parameter in source.parameters]
            output = _Graph.apply(sources, self.nodes, *(source.rows for source in sources), *inputs, *parameters)
            if before.random_numbers_were_drawn():  # in another order than that of the plain form
                raise PlainFormNeededError
        except PlainFormNeededError:
            before.restore()
            self.refused.add(sizes)
            return None
        statistics.update_norms()
        return cast(Tensor, output)

    def _whole(self, before_last: Tensor, last: Tensor, rows: list[list[Tensor]]) -> Tensor | None:
        """Return the output by one call, or None where it takes several."""
        inputs = before_last, last
        columns = max(map(len, self.columns))
        whole = self.wholes.of(inputs, self._readings, outputs=self.nodes, columns=columns)
        if whole is None:
            return None
        flat = [row if len(row) == columns else F.pad(row, (0, columns - len(row))) for state in rows for row in state]
        return whole.output(inputs, torch.stack(flat).to(last.dtype))

    def _sampled(self, inputs: tuple[Tensor, Tensor], rows: list[list[Tensor]], path: tuple[int, ...]) -> Tensor | None:
        """Return the output by one call in which one candidate of each edge runs; None where the plain form is needed."""
        columns = max(map(len, self.columns))
        if self.k > 1 or any(edge.edge.auxiliary is not None for edges in self.states for edge in edges):
            return None
        # What has no whole form, or shapes that do not fit together, may be in what was not drawn.
        if self.wholes.of(inputs, self._readings, outputs=self.nodes, columns=columns) is None:
            return None
        if path != self.path:  # a search draws anew in each step, so that only the latest is worth its memory
            self.path, self.of_path = path, Wholes()
        if len(self._drawn()) < self.nodes:  # all that leads to a node is `none`
            return None
        whole = self.of_path.of(inputs, self._readings_of_path, outputs=self.nodes, columns=columns)
        matrix = torch.stack([row for state in rows for row in state]).to(inputs[0].dtype)
        return None if whole is None else whole.output(inputs, matrix)

    def _readings_of_path(self, dtype: torch.dtype) -> list[Reading]:
        """Return what reads the inputs, and the candidate on each edge that was drawn; `none` reads nothing."""
        readings = self._readings_of_inputs(dtype)
        for row, (state, place, node) in enumerate(self._places()):
            column = self.columns[state][self.path[row]]
            if column.zero is None:
                branch = branch_of([column.operations[place]], [column.known[place]], dtype)
                readings.append(Reading(2 + state, 4 + node, 1, row, [self.path[row]], [branch]))
        return readings

    def _drawn(self) -> set[int]:
        """Return the nodes that the path leads to with more than `none`."""
        places = zip(self._places(), self.path, strict=True)
        return {node for (state, _, node), drawn in places if self.columns[state][drawn].zero is None}

    def _places(self) -> Iterator[tuple[int, int, int]]:
        """Yield the state, the place among those that leave it, and the node of each edge."""
        for state, edges in enumerate(self.states):
            yield from ((state, place, self.nodes - len(edges) + place) for place in range(len(edges)))

    def _partial(self, inputs: tuple[Tensor, Tensor], rows: list[list[Tensor]]) -> Tensor | None:
        """Return the output of a cell with partial channels, or None where the plain form is needed.

        One call makes the first two states, and one for each group of states makes what their edges add to the nodes. A
        call takes the channels of a state in k parts, which are states to it: the candidates see the first, and the others
        go past them. A node is shuffled when it is complete.
        """
        key = (*(x.shape for x in inputs), inputs[0].dtype)
        calls = self.calls.get(key)
        if key not in self.calls or (calls is not None and not all(call.holds() for call in calls)):
            calls = self.calls[key] = self._calls(inputs)
        if calls is None or any(call.tensors() is None for call in calls):
            return None
        states = [*_output(calls[0], inputs, None).chunk(2, dim=1)]
        total: Tensor | None = None  # (N, k, nodes that are not complete, C / k, H, W)
        for group, call in zip(self.groups, calls[1:], strict=True):
            edges = len(self.states[group[0]])
            if total is not None and edges < total.shape[2]:
                node, total = total.split([1, edges], dim=2)
                states.append(_shuffled(node))
            parts = [part for state in group for part in states[state].chunk(self.k, dim=1)]
            matrix = torch.stack([row for state in group for row in rows[state]]).to(inputs[0].dtype)
            # A column of its own for each part that goes past: gradients of one column are not added up.
            matrix = torch.cat([matrix[:, :-1], matrix[:, -1:].expand(-1, self.k - 1)], dim=1)
            more = _output(call, parts, matrix).unflatten(1, (self.k, edges, -1))
            total = more if total is None else total + more
        assert total is not None
        states.append(_shuffled(total))
        return torch.cat(states[2:], dim=1)

    def _calls(self, inputs: tuple[Tensor, Tensor]) -> list[Whole] | None:
        """Return the calls of a cell with partial channels; None where one cannot be had."""
        dtype = inputs[0].dtype
        first = whole_of(self._readings_of_inputs(dtype), inputs, outputs=2, columns=1)
        if first is None:
            return None
        calls, sources = [first], self._sources_without_rows(dtype)
        batch, channels, *size = first.graph.output_shape
        sizes: set[tuple[int, ...]] = set()  # of the nodes
        for group in self.groups:
            state = State(channels // 2 // self.k, *size)
            parts = [inputs[0].new_empty(batch, *state, device="meta")] * (self.k * len(group))
            edges, columns = len(self.states[group[0]]), {len(self.columns[index]) for index in group}
            readings: list[Reading] = []
            for index in group:
                source = sources[index]
                out = size_after(source.branches[0], state)
                past = Same([nn.Identity()] * edges) if out == state else Pooling([_HALVED] * edges)
                for part in range(self.k):
                    place = len(readings), len(parts) + part * edges, edges, (len(readings) // self.k) * edges
                    if part == 0:
                        strides = frozenset(source.strides_of_none)
                        readings.append(Reading(*place, source.columns, source.branches, strides))
                    else:
                        readings.append(Reading(*place, [max(columns) + part - 1], [past]))
            call = whole_of(readings, parts, outputs=self.k * edges, columns=max(columns) + self.k - 1)
            if call is None or len(columns) > 1:
                return None
            calls.append(call)
            size = call.graph.output_shape[2:]
            sizes.add((*size,))
        return calls if len(sizes) == 1 else None

    def _readings_of_inputs(self, dtype: torch.dtype) -> list[Reading]:
        """Return what reads the two inputs, of which preprocessing makes states 2 and 3."""
        return [
            Reading(index, 2 + index, 1, -1, [0], [branch_of([module], [known], dtype)])
            for index, (module, known) in enumerate(self.inputs)
        ]

    def _sources_without_rows(self, dtype: torch.dtype) -> list[Source]:
        none = torch.empty(0)
        return self._sources(dtype, Statistics(), [[none] * len(edges) for edges in self.states])

    def _readings(self, dtype: torch.dtype) -> list[Reading]:
        """Return what reads the states: the two inputs, and the nodes."""
        readings = self._readings_of_inputs(dtype)
        row = 0
        for source in self._sources_without_rows(dtype):
            edges = -source.first
            strides = frozenset(source.strides_of_none)
            first = 4 + self.nodes - edges
            readings.append(Reading(len(readings), first, edges, row, source.columns, source.branches, strides))
            row += edges
        return readings

    def _sources(self, dtype: torch.dtype, statistics: Statistics, rows: list[list[Tensor]]) -> list[Source]:
        """Return the sources, one a state with edges."""
        sources = []
        for columns, row in zip(self.columns, rows, strict=True):
            zeros = [column.zero for column in columns]
            places = [place for place, zero in enumerate(zeros) if zero is None]
            branches = [branch_of(columns[place].operations, columns[place].known, dtype) for place in places]
            strides = {zero for zero in zeros if zero is not None}
            sources.append(Source(torch.stack(row), places, branches, statistics, strides))
        return sources


class Source:
    """A state and the K edges that leave it, to the last K nodes, with M branches, of which `none` is not one."""

    def __init__(
        self,
        rows: Tensor,
        columns: Sequence[int],
        branches: Sequence[Branch],
        statistics: Statistics,
        strides_of_none: Iterable[int] = (),
    ) -> None:
        self.rows = rows  # (K, candidates): mixing weights
        self.strides_of_none = strides_of_none
        self.columns = columns  # of the branches among the candidates
        self.branches = branches
        self.statistics = statistics
        self.first = -len(rows)  # of its nodes
        self.parameters = [p for branch in branches for p in (*branch.parameters, *affine_parameters(branch.norms))]
        self.versions = self._versions()
        self.normal: Normal
        self._counts: list[int] = []

    def forward(self, rows: Tensor, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return the terms, M of (K or 1, N, C, H, W), and the factors (M, K, C) and constant (K, C) of their sum.

        Raises:
            PlainFormNeededError: a branch does not fit x, or their shapes differ.
        """
        for branch in self.branches:
            if branch.channels not in (None, x.shape[2]):
                raise PlainFormNeededError
            branch.forward(x, self.statistics)
        terms = [branch.term for branch in self.branches]
        shape = terms[0].shape[1:]
        _, count, state_channels, height, width = x.shape
        for of_none in ((count, state_channels, -(-height // s), -(-width // s)) for s in self.strides_of_none):
            if of_none != shape:
                raise PlainFormNeededError
        if any(term.shape[1:] != shape for term in terms):
            raise PlainFormNeededError
        edges, channels = len(rows), shape[1]
        normals = [Normal.none(edges, channels)] * len(terms)
        alike: dict[Setting, list[int]] = {}
        for index, branch in enumerate(self.branches):
            if branch.setting is not None:
                alike.setdefault(branch.setting, []).append(index)
        for setting, indices in alike.items():
            norms = [norm for index in indices for norm in self.branches[index].norms]
            moments = torch.cat([self.branches[index].moments.expand(-1, edges, channels) for index in indices], dim=1)
            # Of a pool, K norms see one term.
            normal = Normal.of(norms, setting, moments, terms[0], self.statistics)
            for index, part in zip(indices, normal.split(edges), strict=True):
                normals[index] = part
        if len({normals[index].processes for indices in alike.values() for index in indices}) > 1:
            raise PlainFormNeededError
        self.normal = Normal.stack(normals)
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
        abouts = [branch.about for branch in self.branches]
        shifts = None
        if any(about is not None for about in abouts):
            shifts = grads.new_zeros(1 + len(abouts), len(rows), grads.shape[2])
            for shift, about in zip(shifts[1:], abouts, strict=True):
                if about is not None:
                    shift.copy_(about.expand_as(shift))
        sums = kernels.dots(grads, [branch.term for branch in self.branches], shifts)
        total, centred = sums[0], self.normal.centred(sums[0], sums[1:], None if shifts is None else shifts[1:])
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
    """A cell: rows of mixing weights for each source, the two inputs, all parameters -> the output.

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
            _, count, channels, height, width = terms[0].shape
            if output is not None and states[-1].shape[1:] != terms[0].shape[1:]:
                raise PlainFormNeededError
            if output is None:
                output = inputs[0].new_empty(count, height, width, nodes * channels).permute(0, 3, 1, 2)
                states += _by_node(output, nodes).split(1)
            kernels.combine(_by_node(output, nodes)[source.first :], terms, factors, constant, add=index > 0)
        assert output is not None
        ctx.save_for_backward(*rows, *inputs, output, *(t for source in sources for t in source.take_tensors()))
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        check_first_order()
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
        check_first_order()
        x, *tensors = ctx.saved_tensors
        ctx.source.give_tensors(iter(tensors))
        state = as_edges(x)
        _, needs_x, *needs = ctx.needs_input_grad
        into = torch.empty_like(state) if needs_x else None
        _, parameter_grads = ctx.source.backward(
            ctx.source.rows, as_edges(grads[0]), state, into=into, add=False, needs_weights=any(needs)
        )
        return None, None if into is None else into[0], *parameter_grads


# What goes past the candidates where they halve the images. Odd sides, which it would have to round up, take the plain form.
_HALVED = Pool(nn.MaxPool2d(2), 1, searching=False)


def _output(call: Whole, inputs: Sequence[Tensor], rows: Tensor | None) -> Tensor:
    output = call.output(inputs, rows)
    assert output is not None, "its tensors were looked at"
    return output


def _shuffled(node: Tensor) -> Tensor:
    """Return a node (N, k, 1, C / k, H, W) as images (N, C, H, W), channels_last: the first channels of each part first."""
    return node.squeeze(2).permute(0, 3, 4, 2, 1).flatten(3).permute(0, 3, 1, 2)


def _by_node(images: Tensor, nodes: int) -> Tensor:
    """Return (N, nodes * C, H, W) as a view (nodes, N, C, H, W)."""
    return images.unflatten(1, (nodes, -1)).movedim(1, 0)
