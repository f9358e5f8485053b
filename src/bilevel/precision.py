"""Full precision, for gradients of which a small difference is taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Compute without autocast on a kind of device, and without TF32, within the context.

    TF32 rounds the inputs of a convolution to 10 bits. PyTorch has it on by default for cuDNN's convolutions and off for
    matrix products (`torch.backends.cuda.matmul`); both are off here, whatever a user has set. It matters for the
    backward pass as well, so that has to run within the context too.
    """
    with ExitStack() as stack:
        for settings, name, value in _switches():
            stack.callback(setattr, settings, name, getattr(settings, name))
            setattr(settings, name, value)
        stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _switches() -> list[tuple[Any, str, Any]]:
    """Return (settings, name, value) of what turns TF32 off."""
    backends: Any = torch.backends
    if hasattr(
        backends, "fp32_precision"
    ):  # since PyTorch 2.9, which refuses to read the older flags once these are set
        return [(part, "fp32_precision", "ieee") for part in (backends.cudnn.conv, backends.cuda.matmul)]
    return [(part, "allow_tf32", False) for part in (backends.cudnn, backends.cuda.matmul)]
