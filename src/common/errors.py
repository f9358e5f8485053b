"""How a user's mistake is worded: what was wrong, the nearest right name, what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """Something that its user can put right, said in one line.

    The commands print it without a traceback. Every other exception, a plain `ValueError` too, is a mistake in code and
    keeps its traceback.

    Attributes:
        argument: the name of the argument that the message begins with, if it begins with one. What is below the
            commands knows its arguments, not the keys of a config: `within` puts the key before the name.
    """

    def __init__(self, message: str, *, argument: str | None = None) -> None:
        super().__init__(message)
        self.argument = argument

    def within(self, key: str) -> ConfigError:
        """Return the same error as one of the settings below `key`: `space.cells must be 3 or more, got 2`."""
        if self.argument is None:
            return ConfigError(f"{key}: {self}", argument=key)
        return ConfigError(f"{key}.{self}", argument=f"{key}.{self.argument}")


def must_be(argument: str, needed: str, given: object) -> ConfigError:
    """Return the error of an argument out of its range: `cells must be 3 or more, got 2`."""
    return ConfigError(f"{argument} must be {needed}, got {shorten(given)}", argument=argument)


def unknown(what: str, given: object, allowed: Iterable[str]) -> ConfigError:
    """Return the error of a name that is not one of `allowed`, with the nearest allowed one."""
    names = list(allowed)
    nearest = get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f", did you mean {nearest[0]!r}?" if nearest else ""
    return ConfigError(f"unknown {what} {shorten(given)!r}{hint} (allowed: {', '.join(names) or 'none'})")


def shorten(value: object, limit: int = 60) -> str:
    """Return `value` as text of at most `limit` characters on one line, for use inside a message."""
    text = " ".join(str(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


class Interrupted(Exception):
    """A run was asked to stop before its last epoch, and stopped after a whole step, with a checkpoint.

    Attributes:
        by: what asked: a signal such as `SIGTERM`, or a limit such as `trainer.max_time`.
        signal_number: of the signal, or 0.
    """

    def __init__(self, by: str, signal_number: int = 0) -> None:
        super().__init__(by)
        self.by = by
        self.signal_number = signal_number


class Diverged(Exception):
    """A gradient is not finite. Nothing is written of the step that took it."""
