"""How a user's mistake is worded: what was wrong, the nearest right name, what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(what: str, given: object, allowed: Iterable[str]) -> ValueError:
    """Return a one-line `ValueError` for a name that is not one of `allowed`, with the nearest allowed one."""
    names = list(allowed)
    nearest = get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f", did you mean {nearest[0]!r}?" if nearest else ""
    return ValueError(f"unknown {what} {shorten(given)!r}{hint} (allowed: {', '.join(names) or 'none'})")


def shorten(value: object, limit: int = 60) -> str:
    """Return `value` as text of at most `limit` characters on one line, for use inside a message."""
    text = " ".join(str(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


class Interrupted(Exception):
    """The user asked the run to stop, and it stopped after a whole step, with a checkpoint."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class Diverged(Exception):
    """A gradient is not finite; the weights are still those before it."""
