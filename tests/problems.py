"""Bilevel problems with known answers."""

from __future__ import annotations

import torch
from torch.func import functional_call
from torch.nn import functional as F

from src.bilevel.hypergradient import Bilevel
from src.bilevel.unroll import VirtualStep
from src.spaces.cnn.cells import Supernet
from src.spaces.cnn.genotypes import CANDIDATES
from src.spaces.relaxed import RelaxedSpace


def quadratic(seed: int = 0) -> tuple[Bilevel, torch.Tensor]:
    """A quadratic problem and its hypergradient in closed form.

    L_w = (w - A a)' H (w - A a) / 2 and L_a = |w - t|^2 / 2 + rho |a|^2 / 2, so that d^2 L_w / da dw = - A' H.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    root, mix, target, rho = draw(5, 5), draw(5, 3), draw(5), 0.3
    curvature = root @ root.T
    w, a, velocity = draw(5), draw(3), draw(5)
    lr, momentum, decay = 0.05, 0.9, 0.01

    def weight_loss(weights, alphas):
        rest = weights["w"] - mix @ alphas["a"]
        return rest @ curvature @ rest / 2

    def arch_loss(weights, alphas):
        return ((weights["w"] - target) ** 2).sum() / 2 + rho * (alphas["a"] ** 2).sum() / 2

    virtual = w - lr * (momentum * velocity + curvature @ (w - mix @ a) + decay * w)
    answer = rho * a - lr * (-mix.T @ curvature @ (virtual - target))
    step = VirtualStep(lr=lr, momentum=momentum, weight_decay=decay, velocity={"w": velocity})
    return Bilevel(weight_loss, arch_loss, {"w": w}, {"a": a}, step), answer


def real_cells(seed: int = 0, *, smooth: bool = False) -> Bilevel:
    """A small supernet of the paper's cells in float64, on two batches of noise, with a velocity as in mid-search.

    `smooth` takes its kinks out: softplus for ReLU, and no max pool.
    """
    torch.manual_seed(seed)
    candidates = [name for name in CANDIDATES if not (smooth and name == "max_pool_3x3")]
    space = Supernet(
        input_shape=(2, 8, 8), num_classes=3, channels=2, cells=3, nodes=2, stem_multiplier=1, candidates=candidates
    )
    if smooth:
        for parent in list(space.modules()):
            for name, child in parent.named_children():
                if isinstance(child, torch.nn.ReLU):
                    setattr(parent, name, torch.nn.Softplus())
    net = RelaxedSpace(space, init_scale=0.5).double()
    batches = [(torch.randn(6, 2, 8, 8, dtype=torch.float64), torch.randint(3, (6,))) for _ in range(2)]
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    parameters: dict[str, torch.Tensor] = dict(net.named_parameters())
    weights: dict[str, torch.Tensor] = {
        name: value for name, value in parameters.items() if not name.startswith("alphas.")
    }
    alphas: dict[str, torch.Tensor] = {name: value for name, value in parameters.items() if name.startswith("alphas.")}

    def loss_on(batch):
        images, labels = batch
        return lambda w, a: F.cross_entropy(functional_call(net, {**w, **a, **buffers}, (images,)), labels)

    velocity = {name: 0.1 * torch.randn_like(value) for name, value in weights.items()}
    step = VirtualStep(lr=0.1, momentum=0.9, weight_decay=3e-4, velocity=velocity)
    return Bilevel(loss_on(batches[0]), loss_on(batches[1]), weights, alphas, step)
