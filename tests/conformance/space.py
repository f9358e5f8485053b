"""What a search space must hold. Inherit `SpaceConformance`, and pytest checks a space of your own:

class TestMySpace(SpaceConformance):
    def space(self):
        return MySpace(input_shape=(16,), num_classes=4)

    def inputs(self):
        return (torch.randn(8, 16),)
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from src.architectures.architecture import Architecture
from src.methods.discretizers import Strongest
from src.spaces.check import check_space
from src.spaces.choices import choices_of, fix
from src.spaces.relaxed import RelaxedSpace


def one_hot(net: RelaxedSpace, architecture: Architecture) -> dict[str, Tensor]:
    """Return the mixing weights that put an architecture's answers into a relaxed space: 1 for what it names, else 0."""
    dtype = next((parameter.dtype for parameter in net.space.parameters()), torch.float32)
    mixing = {}
    for key, names in net.candidates().items():
        answer = architecture.choices[key] or ()
        named = (answer,) if isinstance(answer, str) else answer
        mixing[key] = torch.tensor([float(name in named) for name in names], dtype=dtype)
    return mixing


def drawn_architecture(net: RelaxedSpace, seed: int) -> Architecture:
    """Return an architecture of a space, each answer drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        key: {name: float(torch.rand((), generator=generator)) for name in names}
        for key, names in net.candidates().items()
    }
    return Strongest()(weights, net.spec)


def all_have_gradients(net: RelaxedSpace, *inputs: Tensor) -> bool:
    """Return whether the output depends on every vector of alphas."""
    output = net(*inputs)
    # The square: a sum may not depend on an alpha, as behind a BatchNorm.
    gradients = torch.autograd.grad(output.square().sum(), list(net.alphas.values()), allow_unused=True)
    return all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


class SpaceConformance:
    """The suite. `space` and `inputs` are for you to write; `outputs` and `tolerance` if the defaults do not fit."""

    outputs: int | None = None  # values for each sample; None is any
    tolerance: float = 1e-10  # in float64

    def space(self) -> nn.Module:
        """Return a new space, small enough to be run many times."""
        raise NotImplementedError

    def inputs(self) -> tuple[Tensor, ...]:
        """Return a batch of inputs."""
        raise NotImplementedError

    def relaxed(self) -> RelaxedSpace:
        torch.manual_seed(0)
        return RelaxedSpace(self.space(), init_scale=0.5)

    def double_inputs(self) -> tuple[Tensor, ...]:
        return tuple(x.double() if x.is_floating_point() else x for x in self.inputs())

    def test_the_dry_pass_finds_nothing(self) -> None:
        torch.manual_seed(0)
        check_space(self.space(), *self.inputs(), outputs=self.outputs)

    def test_it_relaxes(self) -> None:
        inputs = self.inputs()
        output = self.relaxed()(*inputs)
        assert len(output) == len(inputs[0])
        assert output.isfinite().all()

    def test_gradients_reach_every_alpha(self) -> None:
        assert all_have_gradients(self.relaxed().double(), *self.double_inputs())

    def test_one_hot_mixing_weights_equal_fix(self) -> None:
        inputs = self.double_inputs()
        for seed, training in ((0, True), (1, False)):
            net = self.relaxed().double().train(training)
            architecture = drawn_architecture(net, seed)
            fixed = fix(deepcopy(net.space), architecture)
            torch.manual_seed(2)
            expected = net(*inputs, mixing=one_hot(net, architecture))
            torch.manual_seed(2)
            torch.testing.assert_close(fixed(*inputs), expected, rtol=self.tolerance, atol=self.tolerance)
            assert not list(choices_of(fixed))

    def test_a_derived_architecture_is_one_of_the_space(self) -> None:
        net = self.relaxed()
        architecture = Strongest()(net.by_name(net.softmax()), net.spec)
        assert Architecture.parse(architecture.to_plain(), net.spec) == architecture

    def test_the_state_dict_makes_a_copy(self) -> None:
        net, other = self.relaxed(), self.relaxed()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.fill_(0.5)
        other.load_state_dict(net.state_dict())
        self.assert_same_output(net, other)

    def test_construction_is_a_function_of_the_seed(self) -> None:
        one, other = self.relaxed().state_dict(), self.relaxed().state_dict()
        assert list(one) == list(other)
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_a_deep_copy_shares_nothing(self) -> None:
        net = self.relaxed()
        copy = deepcopy(net)
        self.assert_same_output(net, copy)
        theirs = {id(parameter) for parameter in net.parameters()}
        assert not [name for name, parameter in copy.named_parameters() if id(parameter) in theirs]

    def assert_same_output(self, one: nn.Module, other: nn.Module) -> None:
        outputs = []
        for net in (one, other):
            torch.manual_seed(2)
            outputs.append(net.eval()(*self.inputs()))
        assert torch.equal(*outputs)
