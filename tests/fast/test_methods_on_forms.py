"""What methods change in a supernet, on the fast forms: equal to the plain form, and without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fast.test_forms import FORMS, TOLERANCE, batch, check_same
from torch import Tensor, nn
from torch.nn import functional as F

from src.fast import fused, merged
from src.fast.fused import FusedSupernet
from src.fast.kernels.build import library
from src.methods.auxiliary import AuxiliarySkip
from src.methods.discretizers import Strongest, StrongestProduct
from src.methods.method import Method
from src.methods.mixed_ops import PartialChannels, PartialChoice
from src.methods.relaxations import GumbelHard
from src.methods.schedules import Progress
from src.spaces.cnn.cells import Supernet
from src.spaces.cnn.genotypes import CANDIDATES
from src.spaces.relaxed import RelaxedSpace

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler: the plain form is used")
each_form = pytest.mark.parametrize("form", FORMS)
METHODS = {
    "darts_minus": Method(auxiliary=AuxiliarySkip()),
    "pc_darts": Method(mixed_op=PartialChannels(4), edge_weights=True, discretizer=StrongestProduct()),
    "pc without edge weights, and darts_minus": Method(mixed_op=PartialChannels(2), auxiliary=AuxiliarySkip()),
}
PROGRESS = Progress(1, 3)


def relaxed(kind: type[Supernet], method: Method, *, size: int, candidates: Sequence[str]) -> RelaxedSpace:
    """Return a small supernet in float64, far from its first state."""
    torch.manual_seed(0)
    space = kind(
        input_shape=(3, size, size), num_classes=3, channels=8, cells=3, nodes=2, stem_multiplier=1,
        candidates=candidates,
    )  # fmt: skip
    net = method.relax(space, init_scale=1.0).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    return net


def results(net: RelaxedSpace, method: Method, size: int) -> dict[str, Tensor]:
    """Return the loss, all gradients and all buffers of a pass."""
    images, labels = batch(size)
    names, parameters = zip(*net.named_parameters(), strict=True)
    rows = method.mixing_weights(dict(net.named_parameters()), {}, PROGRESS)
    loss = F.cross_entropy(net(images, mixing=rows), labels)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return {"loss": loss.detach(), **dict(zip(names, grads, strict=True)), **dict(net.named_buffers())}


def no_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a cell takes the plain form."""
    for form in (fused._Form, merged._Form):
        output = form.output

        def checked(self: Any, *inputs: Tensor, output: Any = output) -> Tensor:
            found = output(self, *inputs)
            assert found is not None
            return found

        monkeypatch.setattr(form, "output", checked)


@each_form
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("size", "training", "candidates"),
    [
        (8, True, CANDIDATES),
        (7, True, ("skip_connect", "max_pool_3x3", "dil_conv_3x3")),
        (8, False, ("none", "skip_connect", "avg_pool_3x3", "sep_conv_3x3")),
    ],
)
def test_passes_equal_those_of_the_plain_form(
    form: type[Supernet],
    method: str,
    size: int,
    training: bool,
    candidates: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, fast = (
        relaxed(kind, METHODS[method], size=size, candidates=candidates).train(training) for kind in (Supernet, form)
    )
    fast.load_state_dict(plain.state_dict())
    expected = results(plain, METHODS[method], size)
    if not (form is FusedSupernet and METHODS[method].mixed_op and size % 2):  # odd sides, halved, go past otherwise
        no_plain_form(monkeypatch)
    found = results(fast, METHODS[method], size)
    check_same(found, expected, tolerance=TOLERANCE)


@each_form
def test_an_edited_mixed_operation_takes_the_plain_form(form: type[Supernet], monkeypatch: pytest.MonkeyPatch) -> None:
    method = METHODS["pc_darts"]
    candidates = ("skip_connect", "dil_conv_3x3")
    plain, fast = (relaxed(kind, method, size=8, candidates=candidates) for kind in (Supernet, form))
    fast.load_state_dict(plain.state_dict())
    for net in (plain, fast):
        results(net, method, 8)  # so that the fast form has made up its mind
    original = PartialChoice.forward
    monkeypatch.setattr(PartialChoice, "forward", lambda self, x: 2 * original(self, x))
    check_same(results(fast, method, 8), results(plain, method, 8), tolerance=TOLERANCE)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("edge_weights", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_of_a_sampled_path_one_candidate_of_each_edge_runs(
    seed: int, edge_weights: bool, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one call of the fused form; what was not drawn has no gradient, and its statistics stay."""
    method = Method(
        relaxation=GumbelHard(),
        edge_weights=edge_weights,
        discretizer=StrongestProduct() if edge_weights else Strongest(),
    )
    candidates = (*CANDIDATES, "conv_7x1_1x7") if seed == 3 else CANDIDATES  # of which one has no fast form
    plain, fast = (
        relaxed(kind, method, size=8, candidates=candidates).train(training) for kind in (Supernet, FusedSupernet)
    )
    fast.load_state_dict(plain.state_dict())
    parameters = dict(plain.named_parameters())
    noise = method.draw({k: p.detach() for k, p in parameters.items()}, torch.Generator().manual_seed(seed))
    images, labels = batch(8)
    found = []
    for net in (plain, fast):
        if net is fast and seed != 3:
            no_plain_form(monkeypatch)
        names, parameters = zip(*net.named_parameters(), strict=True)
        rows = method.mixing_weights(dict(net.named_parameters()), noise, PROGRESS)
        loss = F.cross_entropy(net(images, mixing=rows, one_path=True), labels)
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        given = {name: grad for name, grad in zip(names, grads, strict=True) if grad is not None}
        found.append({"loss": loss.detach(), **given, **dict(net.named_buffers())})
    check_same(found[1], found[0], tolerance=TOLERANCE)
