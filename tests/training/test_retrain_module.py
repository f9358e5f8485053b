"""Training from scratch against the same steps written out in plain PyTorch."""

from __future__ import annotations

import copy
import functools
import math
import re
import warnings
from typing import Any

import lightning as L
import pytest
import torch
from taped import Taped
from torch import Tensor, nn
from torch.nn import functional as F

from src.data.tasks import Classification
from src.training.graphs import WARM_UP, Graphs
from src.training.module import WEIGHTS_PART
from src.training.retrain import RetrainModule

CLASSES, SIZE = 3, 2 * 4 * 4
TASK = Classification([str(label) for label in range(CLASSES)])
LR, MOMENTUM, DECAY, CLIP, AUXILIARY = 0.5, 0.9, 3e-4, 5.0, 0.4


class TwoHeads(nn.Module):
    """Two classifiers on one BatchNorm; the second answers while training only, as in `Network`."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.main = nn.Linear(SIZE, CLASSES)
        self.second = nn.Linear(SIZE, CLASSES)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = 0.0
        self.drops: list[float] = []

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.dropout(3 * self.norm(images).flatten(1))
        if not self.training:
            return self.main(features), None
        self.drops.append(self.drop_path)
        return self.main(features), self.second(features)


class OneHead(TwoHeads):
    """A network that knows of no auxiliary head."""

    def forward(self, images: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(images)[0]


def network(kind: type[TwoHeads] = TwoHeads, **arguments: Any) -> TwoHeads:
    torch.manual_seed(0)
    return kind(**arguments)


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [
        (
            torch.randn(size, 2, 4, 4, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for size in sizes
    ]


def retrain_module(net: nn.Module, *, epochs: int = 3, **changes: Any) -> RetrainModule:
    arguments = {"gradient_clip": CLIP, "auxiliary_weight": AUXILIARY, "drop_path": 0.2, "seed": 0}
    return RetrainModule(
        net,
        task=TASK,
        optimizer=functools.partial(torch.optim.SGD, lr=LR, momentum=MOMENTUM, weight_decay=DECAY),
        scheduler=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs, eta_min=0.0),
        **{**arguments, **changes},
    )


def loader(data: list[Any]) -> Any:
    return torch.utils.data.DataLoader(data, batch_size=None)  # pyright: ignore[reportArgumentType]


def trainer_of(epochs: int = 3, *callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        precision="64-true",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(module: RetrainModule, data: list[Any], *, epochs: int = 3, val: list[Any] | None = None) -> L.Trainer:
    trainer = trainer_of(epochs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on loaders and loggers
        trainer.fit(module, loader(data), None if val is None else loader(val))
    return trainer


def transcription(data: list[Any], *, epochs: int = 3, auxiliary: float = AUXILIARY) -> tuple[TwoHeads, list[float]]:
    """The training loop once more, without an optimiser class; returns the network and the norms before clipping."""
    net = network().double()
    weights = list(net.parameters())
    velocity = [torch.zeros_like(w) for w in weights]
    norms = []
    for epoch in range(epochs):
        lr = LR * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for images, labels in data:
            logits, second = net(images)
            loss = F.cross_entropy(logits, labels) + auxiliary * F.cross_entropy(second, labels)
            gradients = torch.autograd.grad(loss, weights)
            norm = torch.cat([g.flatten() for g in gradients]).norm()
            norms.append(norm.item())
            with torch.no_grad():
                for w, m, g in zip(weights, velocity, gradients, strict=True):
                    m.copy_(MOMENTUM * m + g * min(1.0, CLIP / norm.item()) + DECAY * w)
                    w.sub_(lr * m)
    return net, norms


def assert_same(ours: nn.Module, other: nn.Module, *, tolerance: float = 1e-9) -> None:
    for (name, tensor), expected in zip(ours.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=tolerance, atol=tolerance, msg=name)


def test_training_is_the_transcription() -> None:
    data = batches(6, 5)
    module = retrain_module(network())
    fit(module, data)
    expected, norms = transcription(data)
    assert min(norms) < CLIP < max(norms), "some steps are clipped and some are not"
    # clip_grad_norm_ divides by the norm plus 1e-6.
    assert_same(module.net, expected, tolerance=1e-5)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"auxiliary_weight": 0.41}, "the auxiliary loss's share"),
        ({"gradient_clip": 1e6}, "clipping"),
        ({"gradient_clip": 4.9}, "the norm it clips to"),
        ({"epochs": 4}, "the schedule's length"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_transcription_notices(changes: dict[str, Any], wrong: str) -> None:
    data = batches(6, 5)
    module = retrain_module(network(), **changes)
    fit(module, data)
    with pytest.raises(AssertionError):
        assert_same(module.net, transcription(data)[0], tolerance=1e-5)


def test_loss_by_hand() -> None:
    ((images, labels),) = batches(4)
    module = retrain_module(network().double())
    module.log = lambda *args, **kwargs: None  # outside of a trainer nothing can be logged
    loss = module.training_step((images, labels), 0)["loss"]

    def cross_entropy(logits: Tensor) -> Tensor:
        shares = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
        return -shares[range(4), labels].log().mean()

    logits, second = copy.deepcopy(module.net)(images)
    torch.testing.assert_close(loss, cross_entropy(logits) + 0.4 * cross_entropy(second))


def test_train_loss_is_that_of_the_network_alone() -> None:
    """So that it compares with the validation and test losses, which have no auxiliary head in them."""
    data = batches(6)
    trainer = fit(retrain_module(network()), data, epochs=1)
    images, labels = data[0]
    expected = F.cross_entropy(network().double()(images)[0], labels)
    torch.testing.assert_close(trainer.callback_metrics["train_loss"].double(), expected, check_dtype=False)


def test_network_without_auxiliary_head() -> None:
    data = batches(6, 5)
    net = network(OneHead)
    fit(retrain_module(net), data)
    expected, _ = transcription(data, auxiliary=0.0)
    torch.testing.assert_close(net.main.weight, expected.main.weight, rtol=1e-5, atol=1e-5)


def test_learning_rate_ends_at_zero() -> None:
    module = retrain_module(network(), epochs=4)
    trainer = fit(module, batches(4), epochs=4)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


def test_drop_path_rises_linearly_from_zero() -> None:
    net = network()
    fit(retrain_module(net, drop_path=0.2), batches(4, 4), epochs=4)
    assert net.drops == pytest.approx([0.0, 0.0, 0.05, 0.05, 0.1, 0.1, 0.15, 0.15])


def test_network_without_drop_path_trains_without() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, CLASSES))
    with pytest.raises(ValueError, match=r"drop_path must be 0 for a network without an attribute drop_path, got 0\.2"):
        retrain_module(net, drop_path=0.2)
    module = retrain_module(net, drop_path=0.0)
    fit(module, batches(4), epochs=1)
    assert not hasattr(net, "drop_path")


def test_randomness_is_a_function_of_seed_and_place() -> None:
    def trained(seed: int, disturbance: int) -> Tensor:
        net = network(dropout=0.5)
        module = retrain_module(net, seed=seed)
        torch.manual_seed(disturbance)
        fit(module, batches(6, 6))
        return net.main.weight

    first = trained(seed=0, disturbance=1)
    assert torch.equal(first, trained(seed=0, disturbance=2))
    assert not torch.equal(first, trained(seed=1, disturbance=1))


def test_testing_uses_running_statistics_and_changes_nothing() -> None:
    data = batches(6, 6, 2)
    module = retrain_module(network())
    fit(module, data)
    before = copy.deepcopy(module.net)
    trainer = trainer_of()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (metrics,) = trainer.test(module, loader(data), verbose=False)
    assert_same(module.net, before, tolerance=0)

    images, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    logits, _ = before.eval()(images)
    assert metrics["test_loss"] == pytest.approx(F.cross_entropy(logits, labels).item())
    assert metrics["test_accuracy"] == pytest.approx((logits.argmax(dim=1) == labels).double().mean().item())


def test_validation_is_measured_where_there_is_a_split() -> None:
    metrics = fit(retrain_module(network()), batches(4), epochs=1, val=batches(5)).callback_metrics
    assert {"val_loss", "val_accuracy"} <= set(metrics)
    assert not {"val_loss", "val_accuracy"} & set(fit(retrain_module(network()), batches(4), epochs=1).callback_metrics)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop_path": 1.0}, "drop_path must be between 0 and 0.999, got 1.0"),
        ({"drop_path": -0.1}, "drop_path must be between 0 and 0.999, got -0.1"),
        ({"auxiliary_weight": -0.4}, "auxiliary_weight must be between 0 and 1e+06, got -0.4"),
        ({"gradient_clip": 0.0}, "gradient_clip must be a number above 0, got 0.0"),
    ],
)
def test_values_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        retrain_module(network(), **change)


@pytest.mark.parametrize("kind", [TwoHeads, OneHead])
def test_replayed_steps_equal_usual_ones(kind: type[TwoHeads]) -> None:
    """Each epoch has its own drop-path probability, and each step the random numbers of its place."""
    data = batches(6, 6, 6, 6)
    usual, recorded = (retrain_module(network(kind, dropout=0.5)) for _ in range(2))
    recorded.graphs = Graphs(Taped(), recorded.parts)
    one, other = (fit(module, data) for module in (usual, recorded))
    states = [
        {**module.net.state_dict(), **trainer.callback_metrics} for module, trainer in ((usual, one), (recorded, other))
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert recorded.graphs.records == {WEIGHTS_PART: 3}
    assert recorded.graphs.replays == {WEIGHTS_PART: 3 * 4 - WARM_UP - 3}
