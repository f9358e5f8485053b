"""What every hypergradient has to do. Inherit, and name yours:

class TestMine(HypergradientConformance):
    tolerance = 1e-3  # relative, on a quadratic problem

    def hypergradient(self):
        return Mine(...)
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from problems import quadratic, real_cells
from torch import Tensor

from src.bilevel.hypergradient import AlphaGradient, Bilevel, Hypergradient


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


class HypergradientConformance:
    """The suite. `tolerance` is the largest relative error on a quadratic problem, whose answer is known."""

    tolerance: ClassVar[float] = 1e-10

    def hypergradient(self) -> Hypergradient:
        """Return the hypergradient to check."""
        raise NotImplementedError

    def of_cells(self, **changes: Any) -> tuple[Bilevel, AlphaGradient]:
        """Return a problem on a small supernet, and its hypergradient."""
        problem = dataclasses.replace(real_cells(), **changes)
        return problem, self.hypergradient()(problem)

    def test_it_says_what_it_needs(self) -> None:
        hypergradient = self.hypergradient()
        assert hypergradient.order in (1, 2)
        assert isinstance(hypergradient.unrolls, bool)
        assert isinstance(hypergradient.differentiates_twice, bool)
        assert hypergradient.unrolls == (hypergradient.order == 2)

    def test_it_equals_the_closed_form(self) -> None:
        for seed in range(3):
            problem, second_order = quadratic(seed)
            first_order = 0.3 * flat(problem.alphas)  # of rho |a|^2 / 2
            answer = second_order if self.hypergradient().order == 2 else first_order
            error = (flat(self.hypergradient()(problem).total) - answer).norm() / answer.norm()
            assert float(error) <= self.tolerance

    def test_names_and_shapes_are_those_of_the_alphas(self) -> None:
        problem, gradient = self.of_cells()
        for group in (gradient.total, gradient.direct, *([gradient.correction] if gradient.correction else [])):
            assert {name: value.shape for name, value in group.items()} == {
                name: value.shape for name, value in problem.alphas.items()
            }
            assert all(not value.requires_grad and value.dtype == torch.float64 for value in group.values())
        assert gradient.arch_loss.shape == ()
        assert not gradient.arch_loss.requires_grad

    def test_the_total_is_its_two_terms(self) -> None:
        _, gradient = self.of_cells()
        if self.hypergradient().order == 1:
            assert gradient.correction == {}
        else:
            assert float(flat(gradient.correction).norm()) > 0
        for name, total in gradient.total.items():
            correction = gradient.correction.get(name, torch.zeros_like(total))
            torch.testing.assert_close(total, gradient.direct[name] + correction, rtol=1e-12, atol=1e-15)

    def test_nothing_is_changed(self) -> None:
        """Weights and alphas keep their values during the whole computation: a checkpoint may be written at any time."""
        problem = real_cells()
        mine = problem.weights | problem.alphas
        before = {name: value.clone() for name, value in mine.items()}
        changed = []

        def watched(loss: Any) -> Any:
            def inner(weights: Any, alphas: Any) -> Tensor:
                changed.extend(name for name, value in mine.items() if not torch.equal(value, before[name]))
                return loss(weights, alphas)

            return inner

        self.hypergradient()(
            dataclasses.replace(problem, weight_loss=watched(problem.weight_loss), arch_loss=watched(problem.arch_loss))
        )
        assert changed == []
        assert all(torch.equal(value, before[name]) for name, value in mine.items())
        assert all(value.grad is None for value in mine.values())

    def test_it_is_a_function_of_the_problem(self) -> None:
        (_, one), (_, other) = self.of_cells(), self.of_cells()
        assert torch.equal(flat(one.total), flat(other.total))

    def test_every_gradient_is_averaged_over_the_processes(self) -> None:
        """One call for each pass, and its result is used: where the average is twice the gradient, so is the direct term."""
        calls: list[list[torch.Size]] = []

        def average(tensors: list[Tensor]) -> list[Tensor]:
            calls.append([tensor.shape for tensor in tensors])
            return [2 * tensor for tensor in tensors]

        passes: list[int] = []

        def counted(loss: Any) -> Any:
            return lambda weights, alphas: passes.append(0) or loss(weights, alphas)

        problem, _ = quadratic()
        problem = dataclasses.replace(
            problem, weight_loss=counted(problem.weight_loss), arch_loss=counted(problem.arch_loss)
        )
        alone = self.hypergradient()(problem)
        count = len(passes)
        averaged = self.hypergradient()(dataclasses.replace(problem, average=average))
        assert count <= len(calls) <= count + 1  # a double backward has two gradients of one pass
        torch.testing.assert_close(averaged.direct["a"], 2 * alone.direct["a"])
