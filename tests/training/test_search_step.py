"""The search step against the paper's algorithm, written down once more in plain PyTorch."""

from __future__ import annotations

import copy
import functools
import itertools
import warnings
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from src.bilevel.hypergradient import Bilevel, Exact, FiniteDifference, of_order
from src.bilevel.unroll import VirtualStep
from src.data.tasks import Classification
from src.spaces.choices import LayerChoice
from src.spaces.cnn.cells import Supernet
from src.spaces.relaxed import RelaxedSpace
from src.training import module
from src.training.module import set_gradients
from src.training.search import SearchModule

CLASSES, SHAPE = 3, (2, 8, 8)
CANDIDATES = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")
TASK = Classification([str(label) for label in range(CLASSES)])


def supernet(seed: int = 0) -> Supernet:
    torch.manual_seed(seed)
    return Supernet(
        input_shape=SHAPE,
        num_classes=CLASSES,
        channels=2,
        cells=3,
        nodes=2,
        stem_multiplier=1,
        candidates=CANDIDATES,
    )


def batches(count: int, size: int = 6) -> list[dict]:
    generator = torch.Generator().manual_seed(7)

    def one() -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.randn(size, *SHAPE, generator=generator, dtype=torch.float64)
        return images, torch.randint(CLASSES, (size,), generator=generator)

    return [{"weights": one(), "arch": one()} for _ in range(count)]


def search_module(
    order: int,
    kind: type[SearchModule] = SearchModule,
    hypergradient=None,
    *,
    fused: bool = False,
    space: nn.Module | None = None,
) -> SearchModule:
    space = space or supernet()
    torch.manual_seed(1)
    return kind(
        space,
        task=TASK,
        hypergradient=hypergradient or of_order(order),
        weight_optimizer=functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=3e-4, fused=fused),
        alpha_optimizer=functools.partial(
            torch.optim.Adam, lr=3e-3, betas=(0.5, 0.999), weight_decay=1e-3, fused=fused
        ),
        weight_scheduler=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=2, eta_min=0.01),
        gradient_clip=1.0,
    )


def fit(
    search: SearchModule, data: list[dict], *, epochs: int = 2, precision: Any = "64-true", callbacks: Any = None
) -> SearchModule:
    trainer = L.Trainer(
        callbacks=callbacks,
        max_epochs=epochs,
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on loaders and loggers
        loader: Any = torch.utils.data.DataLoader(data, batch_size=None)  # pyright: ignore[reportArgumentType]
        trainer.fit(search, train_dataloaders=loader)
    return search


def transcription(order: int, data: list[dict], epochs: int = 2, epsilon: float = 0.01) -> RelaxedSpace:
    """Algorithm 1 of the paper: no functional calls, no optimiser classes, copies of the network where it needs them."""
    space = supernet()
    torch.manual_seed(1)
    net = RelaxedSpace(space).double()

    def split(model: RelaxedSpace) -> tuple[list, list]:
        named = list(model.named_parameters())
        weights = [p for name, p in named if not name.startswith("alphas.")]
        return weights, [p for name, p in named if name.startswith("alphas.")]

    def gradients(model: RelaxedSpace, batch, wanted: list) -> list[torch.Tensor]:
        images, labels = batch
        return list(torch.autograd.grad(F.cross_entropy(model(images), labels), wanted))

    weights, alphas = split(net)
    velocity = [torch.zeros_like(w) for w in weights]
    first = [torch.zeros_like(a) for a in alphas]
    second = [torch.zeros_like(a) for a in alphas]
    count = 0
    for epoch in range(epochs):
        lr = 0.01 + (0.1 - 0.01) * (1 + torch.cos(torch.tensor(torch.pi * epoch / 2, dtype=torch.float64))) / 2
        for batch in data:
            # The alphas' gradient.
            if order == 1:
                clone = copy.deepcopy(net)
                h = gradients(clone, batch["arch"], split(clone)[1])
            else:
                virtual = copy.deepcopy(net)
                virtual_weights, virtual_alphas = split(virtual)
                g = gradients(virtual, batch["weights"], virtual_weights)
                with torch.no_grad():
                    for w, gw, m in zip(virtual_weights, g, velocity, strict=True):
                        w.copy_(w - lr * (0.9 * m + gw + 3e-4 * w))
                both = gradients(virtual, batch["arch"], virtual_weights + virtual_alphas)
                v, direct = both[: len(weights)], both[len(weights) :]
                e = epsilon / torch.sqrt(torch.stack([(x**2).sum() for x in v]).sum())
                sides = []
                for sign in (1, -1):
                    moved = copy.deepcopy(net)
                    moved_weights, moved_alphas = split(moved)
                    with torch.no_grad():
                        for w, x in zip(moved_weights, v, strict=True):
                            w.copy_(w + sign * e * x)
                    sides.append(gradients(moved, batch["weights"], moved_alphas))
                h = [d - lr * (p - n) / (2 * e) for d, p, n in zip(direct, *sides, strict=True)]
            # Adam with weight decay in the gradient.
            count += 1
            with torch.no_grad():
                for a, ga, m1, m2 in zip(alphas, h, first, second, strict=True):
                    ga = ga + 1e-3 * a  # noqa: PLW2901
                    m1.copy_(0.5 * m1 + 0.5 * ga)
                    m2.copy_(0.999 * m2 + 0.001 * ga**2)
                    a.sub_(3e-3 * (m1 / (1 - 0.5**count)) / ((m2 / (1 - 0.999**count)).sqrt() + 1e-8))
            # The weights, with the new alphas, clipped.
            g = gradients(net, batch["weights"], weights)
            length = torch.sqrt(torch.stack([(x**2).sum() for x in g]).sum())
            scale = min(1.0, 1.0 / (float(length) + 1e-6))
            with torch.no_grad():
                for w, gw, m in zip(weights, g, velocity, strict=True):
                    m.copy_(0.9 * m + scale * gw + 3e-4 * w)
                    w.sub_(lr * m)
    return net


@functools.cache  # several tests compare with it
def papers(order: int) -> RelaxedSpace:
    """Return the network after four steps of the paper's algorithm, at two learning rates."""
    return transcription(order, batches(2))


def difference(search: SearchModule, reference: RelaxedSpace) -> float:
    ours, theirs = search.net.state_dict(), reference.state_dict()
    assert list(ours) == list(theirs)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("order", [1, 2])
def test_search_equals_the_papers_algorithm(order: int, fused: bool) -> None:
    # Weights, alphas and BatchNorm's buffers, num_batches_tracked among them.
    assert difference(fit(search_module(order, fused=fused), batches(2)), papers(order)) < 1e-9


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_of_another_memory_layout(fused: bool) -> None:
    """torch's fused optimisers go through parameter and gradient side by side in memory."""
    torch.manual_seed(0)
    layouts = torch.contiguous_format, torch.channels_last
    start, gradient = torch.randn(4, 3, 3, 3), torch.randn(4, 3, 3, 3)
    for one, other in itertools.product(layouts, layouts):
        weight = nn.Parameter(start.clone(memory_format=one))
        set_gradients([weight], [gradient.clone(memory_format=other)])
        torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=fused).step()
        torch.testing.assert_close(weight.detach(), start - 0.1 * gradient)


def test_orders_differ() -> None:
    ours, theirs = papers(1).state_dict(), papers(2).state_dict()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) > 1e-5


class ExtraPassesMoveStatistics(SearchModule):
    def _scratch(self):
        return {}


class OldAlphasInTheWeightStep(SearchModule):
    def step_alphas(self, batch, weight_optimizer, alpha_optimizer):
        self.old = [alpha.detach().clone() for alpha in self.alphas().values()]
        return super().step_alphas(batch, weight_optimizer, alpha_optimizer)

    def step_weights(self, batch, weight_optimizer, **named):
        alphas = [alpha.detach() for alpha in self.alphas().values()]
        new = [alpha.clone() for alpha in alphas]
        torch._foreach_copy_(alphas, self.old)
        result = super().step_weights(batch, weight_optimizer, **named)
        torch._foreach_copy_(alphas, new)
        return result


class AlphasInTheWeightOptimiser(SearchModule):
    def configure_optimizers(self):
        make = self._weight_optimizer
        self._weight_optimizer = lambda weights: make(iter(self.net.parameters()))
        return super().configure_optimizers()


class HalvesExchanged(SearchModule):
    def step_alphas(self, batch, weight_optimizer, alpha_optimizer):
        return super().step_alphas({**batch, "arch": batch["weights"]}, weight_optimizer, alpha_optimizer)


class NoClipping(SearchModule):
    def step_weights(self, batch, weight_optimizer, **named):
        self.gradient_clip = float("inf")
        return super().step_weights(batch, weight_optimizer, **named)


class ScheduleNeverStepped(SearchModule):
    def on_train_epoch_end(self):
        pass


TRAPS = (
    ExtraPassesMoveStatistics,
    OldAlphasInTheWeightStep,
    AlphasInTheWeightOptimiser,
    HalvesExchanged,
    NoClipping,
    ScheduleNeverStepped,
)


@pytest.mark.parametrize("broken", TRAPS)
def test_known_bugs_are_noticed(broken: type[SearchModule]) -> None:
    assert difference(fit(search_module(2, broken), batches(2)), papers(2)) > 1e-7


def test_gradients_of_the_arch_half_never_reach_the_weights_optimiser() -> None:
    seen = []

    class Watched(SearchModule):
        def step_alphas(self, batch, weight_optimizer, alpha_optimizer):
            gradient = super().step_alphas(batch, weight_optimizer, alpha_optimizer)
            seen.append([weight.grad for weight in self.weights().values()])
            return gradient

    fit(search_module(2, Watched), batches(1), epochs=1)
    assert seen == [[None] * len(seen[0])]


def test_a_checkpoint_written_in_mid_step_holds_the_weights() -> None:
    """Whatever the hypergradient is doing, the module's own parameters are those between two steps."""
    search = search_module(2)
    torn = []

    class Peeking(FiniteDifference):
        def __call__(self, problem):
            before = {name: value.clone() for name, value in search.net.state_dict().items()}

            def peeked(loss):
                def inner(weights, alphas):
                    value = loss(weights, alphas)
                    now = search.net.state_dict()
                    torn.append(any(not torch.equal(now[name], before[name]) for name in before))
                    return value

                return inner

            fields = {**vars(problem), "weight_loss": peeked(problem.weight_loss)}
            return super().__call__(type(problem)(**fields))

    search.hypergradient = Peeking()
    fit(search, batches(2), epochs=1)
    assert len(torn) == 6
    assert not any(torn)


def test_adam_state_belongs_to_the_same_alpha_after_a_restore() -> None:
    trained = fit(search_module(1), batches(2))
    state = trained.trainer.optimizers[1].state_dict()
    fresh = search_module(1).double()
    _, alpha_optimizer = fresh.configure_optimizers()[0]
    alpha_optimizer.load_state_dict(state)
    names = list(trained.alphas())
    assert names == list(fresh.alphas())
    for name in names:
        old = trained.trainer.optimizers[1].state[trained.alphas()[name]]["exp_avg"]
        assert torch.equal(alpha_optimizer.state[fresh.alphas()[name]]["exp_avg"], old)


def test_precisions_that_would_be_wrong_are_refused() -> None:
    with pytest.raises(ValueError, match="allowed: 32-true, 64-true, bf16-mixed"):
        fit(search_module(2), batches(1), precision="bf16-true")


class WithDropout(nn.Module):
    """A choice of two layers with dropout between them and the head."""

    def __init__(self) -> None:
        super().__init__()
        size = SHAPE[0] * SHAPE[1] * SHAPE[2]
        self.layer = LayerChoice({"one": nn.Linear(size, 8), "two": nn.Linear(size, 8)}, key="layer")
        self.head = nn.Sequential(nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x.flatten(1)))


def test_dropout_draws_the_same_numbers_in_every_pass_of_a_step() -> None:
    """Otherwise a finite difference would measure the noise of dropout, divided by epsilon."""
    torch.manual_seed(0)
    search = search_module(2, space=WithDropout()).double()
    (weight_optimizer, alpha_optimizer), _ = search.configure_optimizers()
    search.train()
    errors = []
    for batch in batches(3):
        step = VirtualStep.of(weight_optimizer, search.weights())
        weight_loss, arch_loss = search.loss_on(batch["weights"]), search.loss_on(batch["arch"])
        problem = Bilevel(weight_loss, arch_loss, search.weights(), search.alphas(), step)
        exact, near = Exact()(problem), FiniteDifference(epsilon=1e-4)(problem)
        errors.append(max(float((exact.total[name] - near.total[name]).abs().max()) for name in exact.total))
        first, second = (weight_loss(search.weights(), search.alphas()) for _ in range(2))
        assert torch.equal(first, second)
        search.step_alphas(batch, weight_optimizer, alpha_optimizer)
        search.step_weights(batch["weights"], weight_optimizer)
    assert max(errors) < 1e-8


def test_buffers_are_copied_so_that_each_can_be_written_between_a_pass_and_its_gradient() -> None:
    """A BatchNorm keeps its running statistics for the backward pass; those of others are moved in the meantime."""
    search = search_module(2)
    one, *others = search._scratch().values()
    weight = torch.ones_like(one, requires_grad=True)
    product = (weight * one).sum()
    for other in others:
        other.zero_()
    assert torch.equal(torch.autograd.grad(product, weight)[0], one)
    assert all(buffer.sum() > 0 for name, buffer in search.net.named_buffers() if name.endswith("running_var"))


class Tied(nn.Module):
    """A space in which two layers share a weight, with a buffer that each pass replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.second.weight = self.first.weight
        self.choice = LayerChoice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, key="a")
        self.register_buffer("passes", torch.zeros(()))
        self.fails = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fails:
            raise ValueError("as asked")
        self.passes = self.passes + 1
        return self.last(self.choice(self.second(self.choice(self.first(x)))) + self.passes)


def test_a_pass_uses_the_given_weights_wherever_they_are_and_leaves_the_module_as_it_was() -> None:
    space = Tied()
    search = search_module(1, space=space)
    before = {name: tensor.clone() for name, tensor in search.net.state_dict().items()}
    objects = {name: id(tensor) for name, tensor in search.net.state_dict(keep_vars=True).items()}
    x = torch.randn(5, 4)
    moved = {name: weight.detach() + 1 for name, weight in search.weights().items()}
    mixing = search.mixing_weights()
    expected = torch.func.functional_call(search.net, {**moved, **search._scratch()}, (x,), {"mixing": mixing})
    for _ in range(2):
        assert torch.equal(search._call_with({**moved, **search._scratch()}, x, mixing), expected)
    space.fails = True
    with pytest.raises(ValueError, match="as asked"):
        search._call_with({**moved, **search._scratch()}, x, mixing)
    assert {name: id(tensor) for name, tensor in search.net.state_dict(keep_vars=True).items()} == objects
    for name, tensor in search.net.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_search_that_changes_its_layout_takes_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU has images in the usual layout, a CPU in channels_last; momentum of a checkpoint may be from the other."""
    data = batches(2)
    trained = fit(search_module(2, fused=True), data)
    other = search_module(2, fused=True)
    monkeypatch.setattr(module, "has_channels_last", lambda device: False)
    stem = other.double().net.get_parameter("space.stem.0.weight")
    assert stem.is_contiguous()
    assert not trained.net.get_parameter("space.stem.0.weight").is_contiguous()
    assert difference(fit(other, data), trained.net) < 1e-9

    class Restored(L.Callback):
        def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            pl_module.load_state_dict(trained.state_dict())
            for own, its in zip(trainer.optimizers, trained.trainer.optimizers, strict=True):
                own.load_state_dict(copy.deepcopy(its.state_dict()))

    one = fit(search_module(2, fused=True), data, epochs=1, callbacks=[Restored()])
    monkeypatch.undo()
    assert difference(one, fit(search_module(2, fused=True), data, epochs=1, callbacks=[Restored()]).net) < 1e-9
