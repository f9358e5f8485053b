"""Which spaces and networks have a faster form."""

from __future__ import annotations

from torch import nn

from src.fast.fused import FusedNetwork, FusedSupernet
from src.spaces.cnn.cells import Supernet
from src.spaces.cnn.network import Network

_FUSED: dict[type[nn.Module], type[nn.Module]] = {Supernet: FusedSupernet, Network: FusedNetwork}


def fused_form(kind: object) -> type[nn.Module] | None:
    """Return the class that computes the same function of the same weights as `kind`, faster, or None.

    A subclass of a space has no form of its own: it may compute something else.
    """
    return _FUSED.get(kind) if isinstance(kind, type) else None
