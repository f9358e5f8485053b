"""Steps of searches and a retrain on a share of their batches: `python two_processes.py RANK WORLD STORE OUT`.

The test starts it for each of two ranks, and compares with what one process makes of the whole batches.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from src.bilevel.hypergradient import Exact, FiniteDifference, FirstOrder, OneSided
from src.common.batch_norm import synchronise
from src.data.tasks import Classification
from src.fast.fused import FusedSupernet
from src.fast.merged import MergedSupernet
from src.methods.alpha_optimizers import ExponentiatedGradient
from src.methods.auxiliary import AuxiliarySkip
from src.methods.discretizers import StrongestProduct
from src.methods.method import Method
from src.methods.mixed_ops import PartialChannels
from src.methods.penalties import BetaDecay
from src.methods.perturbations import AdversarialSmoothing, RandomSmoothing
from src.methods.relaxations import Dirichlet, GumbelHard, GumbelSoft, Simplex
from src.methods.weight_rules import LayerAlignment, OperationStopping
from src.spaces.cnn.cells import Supernet
from src.spaces.cnn.genotypes import NAMED_GENOTYPES
from src.spaces.cnn.network import Network
from src.training.retrain import RetrainModule
from src.training.search import SearchModule

CLASSES, SHAPE, BATCH, STEPS = 3, (2, 8, 8), 6, 2
# Each kind of operation once: the processes wait for each other at every norm of every pass.
CANDIDATES = ("none", "max_pool_3x3", "skip_connect", "dil_conv_3x3")
TASK = Classification([str(label) for label in range(CLASSES)])
HYPERGRADIENTS = {
    "first_order": FirstOrder(),
    "finite_difference": FiniteDifference(),
    "one_sided": OneSided(),
    "exact": Exact(),
}
SPACES = {"reference": Supernet, "fused": FusedSupernet, "merged": MergedSupernet}
METHODS = {
    "darts": Method(),
    "beta_darts": Method(penalty=BetaDecay(weight=2.0)),
    "sdarts_rs": Method(perturbation=RandomSmoothing(radius=0.2)),
    "sdarts_adv": Method(perturbation=AdversarialSmoothing(radius=0.2, steps=2)),
    "oles": Method(weight_rule=OperationStopping(patience=0.0, every=1)),
    "lambda_darts": Method(weight_rule=LayerAlignment(weight=1.0)),
    "snas": Method(relaxation=GumbelSoft(temperature=0.5), one_level=True),
    "drnas": Method(relaxation=Dirichlet()),
    "gdas": Method(relaxation=GumbelHard(temperature=2.0)),
    "darts_minus": Method(auxiliary=AuxiliarySkip(weight=0.5)),
    "gaea": Method(
        relaxation=Simplex(),
        alpha_optimizer=ExponentiatedGradient(),
        edge_weights=True,
        discretizer=StrongestProduct(),
    ),
    "pc_darts": Method(mixed_op=PartialChannels(k=2), edge_weights=True, discretizer=StrongestProduct()),
}
# The finite difference has every kind of pass that there is.
CASES = [("reference", hypergradient, True, "darts") for hypergradient in HYPERGRADIENTS]
CASES += [
    (space, "finite_difference", synced, "darts")
    for space, synced in (("reference", False), ("fused", True), ("fused", False), ("merged", True))
]
CASES += [("reference", "first_order", True, method) for method in METHODS if method != "darts"]


def batches(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(BATCH, *SHAPE, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (BATCH,), generator=generator),
        )
        for _ in range(STEPS)
    ]


def share(batch: tuple[Tensor, Tensor], rank: int, world: int, *, synced: bool) -> tuple[Tensor, Tensor]:
    """Return the rank's part of a batch; without joined statistics every rank has all of it."""
    if not synced:
        return batch
    images, labels = batch
    size = len(labels) // world
    return images[rank * size : (rank + 1) * size], labels[rank * size : (rank + 1) * size]


def search(
    space: str, hypergradient: str, method: str = "darts", *, synced: bool, rank: int = 0, world: int = 1
) -> dict[str, Any]:
    """Take some steps, and return the last alpha gradient, the state and the genotype."""
    torch.manual_seed(0)
    net = SPACES[space](
        input_shape=SHAPE, num_classes=CLASSES, channels=2, cells=3, nodes=2, stem_multiplier=1, candidates=CANDIDATES
    )
    torch.manual_seed(1)
    module = SearchModule(
        net,
        task=TASK,
        hypergradient=HYPERGRADIENTS[hypergradient],
        method=METHODS[method],
        weight_optimizer=functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=3e-4),
        alpha_optimizer=functools.partial(torch.optim.Adam, lr=3e-3, betas=(0.5, 0.999), weight_decay=1e-3),
        weight_scheduler=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=2),
        gradient_clip=1.0,
    ).double()
    if synced:
        synchronise(module.net)
    (weight_optimizer, alpha_optimizer), _ = module.configure_optimizers()
    gradient = {}
    for weights, arch in zip(batches(7), batches(8), strict=True):
        own = {name: share(batch, rank, world, synced=synced) for name, batch in (("weights", weights), ("arch", arch))}
        taken = module.take_step(own, weight_optimizer, alpha_optimizer).gradient
        gradient = {} if taken is None else taken.total
    return {"gradient": gradient, "state": module.net.state_dict(), "genotype": module.derive().to_json()}


def retrain(*, synced: bool, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Take some steps of a retrain, and return its state."""
    torch.manual_seed(0)
    network = Network(
        NAMED_GENOTYPES["DARTS_V2"].to_architecture(), input_shape=SHAPE, num_classes=CLASSES, channels=2, cells=3
    )
    module = RetrainModule(
        network,
        task=TASK,
        optimizer=functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        scheduler=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=2),
        drop_path=0.0,
    ).double()
    if synced:
        synchronise(module.net)
    (optimizer,), _ = module.configure_optimizers()
    for batch in batches(9):
        images, labels = share(batch, rank, world, synced=synced)
        optimizer.zero_grad()
        logits, auxiliary = module(images)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        if auxiliary is not None:
            loss = loss + 0.4 * torch.nn.functional.cross_entropy(auxiliary, labels)
        loss.backward()
        module.on_after_backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
    return {"state": module.net.state_dict()}


def main() -> None:
    rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    results: dict[str, Any] = {
        f"{space} {hypergradient} {synced} {method}": search(
            space, hypergradient, method, synced=synced, rank=rank, world=world
        )
        for space, hypergradient, synced, method in CASES
    }
    for synced in (True, False):
        results[f"retrain {synced}"] = retrain(synced=synced, rank=rank, world=world)
    torch.save(results, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
