"""Numbers as reports write them."""

from __future__ import annotations

UNKNOWN = "-"


def duration(seconds: float | None) -> str:
    """Return a time in the two largest units that it has, or "-" where it is not known."""
    if seconds is None:
        return UNKNOWN
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def millions(number: float | None) -> str:
    """Return a count in millions, or "-" where it is not known."""
    return UNKNOWN if number is None else f"{number / 1e6:.2f}" if number >= 1e5 else f"{number / 1e6:.4f}"
