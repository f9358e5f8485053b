"""All architectures of a search space, numbered, without listing them: the paper's cells have more than 10^18."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

from src.architectures.architecture import Answer, Architecture, InputSpec, LayerSpec, Spec, ranks_edges

_Left = tuple[int, ...]  # for each InputChoice over edges, how many edges it has yet to keep


class Architectures:
    """The different architectures of a space, each once: `architectures[number]` for numbers from 0 to `count` - 1.

    Two architectures differ if an answer differs. An edge that is dropped has no operation, so what its LayerChoice could
    have answered makes no difference; an edge into several nodes is dropped if none of them keeps it.

    Which edges are kept is not independent of the operations: a set of edges stands for as many architectures as its edges
    have operations, multiplied. The edges are therefore taken one by one, and `_ways` counts the architectures that are
    left for each state in between, which is how many edges each node has yet to keep.

    Attributes:
        count: how many there are; exact, of any size.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        nodes = {key: rule for key, rule in spec.items() if isinstance(rule, InputSpec) and ranks_edges(rule, spec)}
        self._nodes = list(nodes)
        owners: dict[str, list[int]] = {}
        for place, rule in enumerate(nodes.values()):
            for edge in rule.inputs:
                owners.setdefault(edge, []).append(place)
        self._edges = list(owners.items())
        self._free = [key for key in spec if key not in nodes and key not in owners]
        self._start: _Left = tuple(rule.n_chosen for rule in nodes.values())
        self._ways = self._count_ways([len(rule.inputs) for rule in nodes.values()])
        self.count = self._ways[0][self._start] * math.prod(self._options(key) for key in self._free)

    def __getitem__(self, number: int) -> Architecture:
        """Return an architecture.

        Raises:
            IndexError: the number is below 0, or `count` or more.
        """
        if not 0 <= number < self.count:
            raise IndexError(f"the number of an architecture must be 0 to {self.count - 1}, got {number}")
        answers: dict[str, Answer] = {}
        for key in self._free:
            number, option = divmod(number, self._options(key))
            answers[key] = self._answer(key, option)
        kept: list[list[str]] = [[] for _ in self._nodes]
        left = self._start
        for place, (edge, _) in enumerate(self._edges):
            keepers, left, operation, number = self._take_step(place, left, number)
            answers[edge] = self._answer(edge, operation) if keepers else None
            for node in keepers:
                kept[node].append(edge)
        for key, edges in zip(self._nodes, kept, strict=True):
            rule = self.spec[key]
            assert isinstance(rule, InputSpec)
            answers[key] = tuple(name for name in rule.inputs if name in edges)
        return Architecture({key: answers[key] for key in self.spec})

    def _steps(self, place: int, left: _Left) -> Iterator[tuple[tuple[int, ...], int, _Left]]:
        """Yield (nodes that keep an edge, how many operations it then may have, what is left after it)."""
        edge, owners = self._edges[place]
        for keeps in product((False, True), repeat=len(owners)):
            keepers = tuple(node for node, keep in zip(owners, keeps, strict=True) if keep)
            after = tuple(count - (node in keepers) for node, count in enumerate(left))
            yield keepers, self._options(edge) if keepers else 1, after

    def _take_step(self, place: int, left: _Left, number: int) -> tuple[tuple[int, ...], _Left, int, int]:
        """Return (nodes that keep an edge, what is left after it, its operation, the number among what is left)."""
        for keepers, operations, after in self._steps(place, left):
            ways = self._ways[place + 1].get(after, 0)
            if number < operations * ways:
                return keepers, after, *divmod(number, ways)
            number -= operations * ways
        raise AssertionError("the number is below the count of this state")

    def _count_ways(self, inputs: list[int]) -> list[dict[_Left, int]]:
        """Return for each place in the list of edges how many architectures each state that can occur there leaves.

        Args:
            inputs: how many edges lead into each node.
        """
        reached: list[set[_Left]] = [{self._start}]
        coming = list(inputs)
        for place, (_, owners) in enumerate(self._edges):
            for node in owners:
                coming[node] -= 1
            reached.append(
                {
                    after
                    for left in reached[-1]
                    for _, _, after in self._steps(place, left)
                    if all(0 <= after[node] <= coming[node] for node in owners)
                }
            )
        ways: list[dict[_Left, int]] = [dict.fromkeys(reached[-1], 1)]
        for place in reversed(range(len(self._edges))):
            later = ways[0]
            here = {
                left: sum(operations * later.get(after, 0) for _, operations, after in self._steps(place, left))
                for left in reached[place]
            }
            ways.insert(0, here)
        return ways

    def _options(self, key: str) -> int:
        rule = self.spec[key]
        if isinstance(rule, LayerSpec):
            return len(rule.candidates)
        return math.comb(len(rule.inputs), rule.n_chosen)

    def _answer(self, key: str, number: int) -> Answer:
        rule = self.spec[key]
        if isinstance(rule, LayerSpec):
            return rule.candidates[number]
        return _subset(rule.inputs, rule.n_chosen, number)


def _subset(names: tuple[str, ...], size: int, number: int) -> tuple[str, ...]:
    """Return one of the subsets of a size, in the order of `itertools.combinations`."""
    chosen: list[str] = []
    for place, name in enumerate(names):
        with_it = math.comb(len(names) - place - 1, size - len(chosen) - 1) if len(chosen) < size else 0
        if number < with_it:
            chosen.append(name)
        else:
            number -= with_it
    return tuple(chosen)
