"""Which spaces and networks have faster forms, and which form suits a device."""

from __future__ import annotations

from torch import nn

from src.fast import kernels
from src.fast.fused import FusedNetwork, FusedSupernet
from src.fast.merged import MergedSupernet
from src.spaces.cnn.cells import Supernet
from src.spaces.cnn.network import Network

REFERENCE = "reference"
_FORMS: dict[str, dict[type[nn.Module], type[nn.Module]]] = {
    "fused": {Supernet: FusedSupernet, Network: FusedNetwork},
    "merged": {Supernet: MergedSupernet},
}
IMPLEMENTATIONS = ("auto", *_FORMS, REFERENCE)  # of space.impl


def form_of(kind: object, form: str) -> type[nn.Module] | None:
    """Return the class that computes in a form the same function of the same weights as `kind`, or None.

    A subclass of a space has no form of its own: it may compute something else.
    """
    return _FORMS[form].get(kind) if isinstance(kind, type) else None


def has_forms(kind: object) -> bool:
    """Return whether `kind`, or a class that it inherits from, has other forms."""
    return isinstance(kind, type) and any(base in forms for forms in _FORMS.values() for base in kind.__mro__)


def form_for(kind: object, device: str, *, autocast: bool = False, differentiated_twice: bool = False) -> str:
    """Return the form in which `kind` is fastest on a type of device, by the measurements in docs/speed.md.

    Args:
        kind: of a space or network.
        device: `cpu`, `cuda`, ...
        autocast: whether it runs under autocast, which the fused form does not know.
        differentiated_twice: whether second derivatives are taken, which the fused form has not.
    """
    has_kernels = device == "cpu" and not autocast and kernels.library() is not None
    if has_kernels and not differentiated_twice and form_of(kind, "fused"):
        return "fused"
    return "merged" if form_of(kind, "merged") else REFERENCE


def name_of_form(network: nn.Module) -> str | None:
    """Return the form that a network computes in; None for one without other forms."""
    for form, classes in _FORMS.items():
        if type(network) in classes.values():
            return form
    return REFERENCE if has_forms(type(network)) else None
