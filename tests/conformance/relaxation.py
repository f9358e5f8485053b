"""What every relaxation has to do. Inherit, and name yours:

class TestMine(RelaxationConformance):
    def relaxation(self):
        return Mine(...)
"""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from src.methods.method import Method
from src.methods.relaxations import Relaxation
from src.methods.schedules import Progress

EPOCHS = 5
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def alphas(dtype: torch.dtype = torch.float64, device: str = "cpu", scale: float = 1.0) -> dict[str, Tensor]:
    """Return alphas of several sizes; two keys share a size, since relaxations may stack those."""
    generator = torch.Generator().manual_seed(3)
    sizes = {"two": 2, "five": 5, "another_five": 5, "one": 1}
    return {
        key: (scale * torch.randn(size, generator=generator, dtype=torch.float64)).to(device, dtype)
        for key, size in sizes.items()
    }


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class RelaxationConformance:
    """The suite. `sums_to_one` is False for a relaxation whose weights do not compete, such as a sigmoid."""

    sums_to_one: ClassVar[bool] = True

    def relaxation(self) -> Relaxation:
        """Return the relaxation to check."""
        raise NotImplementedError

    def method(self) -> Method:
        """Return a method with it; override it for one that needs another choice beside it."""
        return Method(relaxation=self.relaxation())

    def alphas(self, dtype: torch.dtype = torch.float64, device: str = "cpu", scale: float = 1.0) -> dict[str, Tensor]:
        """Return alphas to check it with; override it for a relaxation whose alphas are not any numbers."""
        return alphas(dtype, device, scale)

    def every(self, values: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return the mixing weights in the first, the middle and the last epoch, and those without noise."""
        relaxation = self.relaxation()
        noise = relaxation.draw(values, generator())
        epochs = (0, EPOCHS // 2, EPOCHS - 1)
        weights = [relaxation.mixing_weights(values, noise, Progress(epoch, EPOCHS)) for epoch in epochs]
        return [*weights, relaxation.expected(values)]

    def test_a_method_takes_it(self) -> None:
        relaxation = self.method().relaxation
        assert type(relaxation) is type(self.relaxation())
        assert isinstance(relaxation.kind, str)
        assert isinstance(relaxation.one_path, bool)
        assert isinstance(relaxation.second_order, bool)
        assert not (relaxation.one_path and relaxation.second_order)  # one-hot weights are constant almost everywhere

    def test_the_start_is_legal_and_no_more_random_than_the_seed(self) -> None:
        """`initial` is a relaxation's to have or to leave out."""
        initial = getattr(self.relaxation(), "initial", None)
        if initial is None:
            pytest.skip("starts near 0")
        torch.manual_seed(1)
        values = {str(size): initial(size) for size in (1, 2, 5)}
        torch.manual_seed(1)
        assert all(torch.equal(initial(size), values[str(size)]) for size in (1, 2, 5))
        assert {key: (row.shape, row.dtype) for key, row in values.items()} == {
            str(size): ((size,), torch.get_default_dtype()) for size in (1, 2, 5)
        }
        for weights in self.every(values):
            assert all(bool((row >= 0).all() and row.isfinite().all()) for row in weights.values())
            if self.sums_to_one:
                assert all(float(row.sum()) == pytest.approx(1) for row in weights.values())

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
    def test_mixing_weights_are_finite_not_negative_and_of_the_shape_of_the_alphas(self, scale: float) -> None:
        values = self.alphas(scale=scale)
        for weights in self.every(values):
            assert {key: row.shape for key, row in weights.items()} == {k: v.shape for k, v in values.items()}
            for row in weights.values():
                assert bool(row.isfinite().all())
                assert bool((row >= 0).all())
                if self.sums_to_one:
                    torch.testing.assert_close(row.sum(), torch.ones_like(row.sum()))

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_dtype_and_device_are_those_of_the_alphas(self, dtype: torch.dtype, device: str) -> None:
        for weights in self.every(self.alphas(dtype, device)):
            assert all(row.dtype == dtype and row.device.type == device for row in weights.values())

    def test_noise_is_a_function_of_the_generator(self) -> None:
        relaxation, values = self.relaxation(), self.alphas()
        torch.manual_seed(1)
        before = torch.get_rng_state()
        one = relaxation.draw(values, generator(0))
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        same, other = relaxation.draw(values, generator(0)), relaxation.draw(values, generator(1))
        assert all(torch.equal(one[key], same[key]) for key in one)
        assert all(not torch.equal(one[key], other[key]) for key in one)

    def test_without_noise_nothing_is_random(self) -> None:
        relaxation, values = self.relaxation(), self.alphas()
        noise = relaxation.draw(values, generator())
        torch.manual_seed(1)
        expected = relaxation.expected(values)
        mixing = relaxation.mixing_weights(values, noise, Progress(1, EPOCHS))
        torch.manual_seed(2)
        assert all(torch.equal(row, expected[key]) for key, row in relaxation.expected(values).items())
        again = relaxation.mixing_weights(values, noise, Progress(1, EPOCHS))
        assert all(torch.equal(row, mixing[key]) for key, row in again.items())

    def test_alphas_and_noise_stay_as_they_are(self) -> None:
        relaxation, values = self.relaxation(), self.alphas()
        noise = relaxation.draw(values, generator())
        before = {key: value.clone() for key, value in (values | {f"noise {k}": n for k, n in noise.items()}).items()}
        for weights in (relaxation.mixing_weights(values, noise, Progress(1, EPOCHS)), relaxation.expected(values)):
            for row in weights.values():
                row.mul_(2)  # weights are not views of the alphas either
        after = values | {f"noise {key}": value for key, value in noise.items()}
        assert all(torch.equal(after[key], before[key]) for key in before)

    def test_keys_do_not_depend_on_each_other(self) -> None:
        relaxation, values = self.relaxation(), self.alphas()
        noise = relaxation.draw(values, generator())
        together = relaxation.mixing_weights(values, noise, Progress(1, EPOCHS))
        expected = relaxation.expected(values)
        for key, value in values.items():
            own = {key: noise[key]} if key in noise else {}
            alone = relaxation.mixing_weights({key: value}, own, Progress(1, EPOCHS))
            torch.testing.assert_close(alone[key], together[key], rtol=1e-14, atol=0)
            torch.testing.assert_close(relaxation.expected({key: value})[key], expected[key], rtol=1e-14, atol=0)

    def test_a_larger_alpha_is_expected_to_weigh_more(self) -> None:
        values = self.alphas()
        for key, row in self.relaxation().expected(values).items():
            assert torch.equal(row.argsort(), values[key].argsort())

    def test_gradients_reach_the_alphas(self) -> None:
        relaxation = self.relaxation()
        values = {key: value.requires_grad_() for key, value in self.alphas().items()}
        noise = relaxation.draw(values, generator())
        for key, row in relaxation.mixing_weights(values, noise, Progress(1, EPOCHS)).items():
            if len(row) > 1:
                (gradient,) = torch.autograd.grad(row[0], values[key], retain_graph=True)
                assert bool(gradient.isfinite().all())
                assert float(gradient.abs().sum()) > 0

    def test_gradients_are_those_of_the_mixing_weights(self) -> None:
        """First and second derivatives by finite differences, where the relaxation says that it has them."""
        relaxation = self.relaxation()
        if not relaxation.second_order:
            pytest.skip("no second order")
        values = self.alphas()
        noise = relaxation.draw(values, generator())

        def function(*vectors: Tensor) -> tuple[Tensor, ...]:
            given = dict(zip(values, vectors, strict=True))
            return tuple(relaxation.mixing_weights(given, noise, Progress(1, EPOCHS)).values())

        vectors = [value.requires_grad_() for value in values.values()]
        assert torch.autograd.gradcheck(function, vectors)
        assert torch.autograd.gradgradcheck(function, vectors)

    def test_one_path_is_exactly_one_hot(self) -> None:
        relaxation, values = self.relaxation(), self.alphas()
        if not relaxation.one_path:
            pytest.skip("all candidates run")
        for seed in range(20):
            noise = relaxation.draw(values, generator(seed))
            for row in relaxation.mixing_weights(values, noise, Progress(1, EPOCHS)).values():
                assert sorted(row.tolist()) == [0.0] * (len(row) - 1) + [1.0]
