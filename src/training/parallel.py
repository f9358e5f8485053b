"""Several processes: each computes on its own share of a batch, and the modules average the gradients themselves."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy
from torch import distributed as dist
from torch import nn


class Averaging(DDPStrategy):
    """Lightning's launching, devices and process groups of DDP, without torch's DistributedDataParallel.

    That one averages what `loss.backward()` leaves in the weights, once a step. A search takes several gradients a step,
    of weights and alphas, by `torch.autograd.grad`; the modules in src/training average each where it arises.
    """

    def configure_ddp(self) -> None:
        """Give every process the parameters and buffers of the first, and leave the module unwrapped."""
        assert isinstance(self.model, nn.Module)
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            dist.broadcast(tensor.data, src=0)

    def on_exception(self, exception: BaseException) -> None:
        """Leave the exception as it is: Lightning's advice is about its own wrapper."""
