"""What a run says on stdout, in whole lines, each with the name of the job where several write side by side."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence

MISTAKE = 2  # the exit code of what the user can put right

_job: str | None = None


def shared_by(job: str | None) -> None:
    """Put `job` before each line from now on; None is for a process that has the terminal for itself."""
    global _job  # noqa: PLW0603
    _job = job


def has_bar() -> bool:
    """Return whether there is a terminal for a bar: stderr is one, and no other job writes there."""
    return _job is None and sys.stderr.isatty()


def named(text: str) -> str:
    """Return lines, each with the name of the job before it."""
    return text if _job is None else "\n".join(f"[{_job}] {line}" for line in text.splitlines())


def say(text: str) -> None:
    """Print lines at once, also into a file."""
    print(named(text), flush=True)


def refuse(reason: object) -> int:
    """Print in one line why a command was refused, and return its exit code."""
    print(f"error: {reason}", file=sys.stderr)
    return MISTAKE


def duration(seconds: float) -> str:
    """Return a time in words: `42 s`, `3 min 05 s`, `2 h 03 min`, `1,024 h`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours:,} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def percent(share: float, digits: int = 1) -> str:
    """Return a share as `45.3 %`."""
    return f"{100 * share:.{digits}f} %"


def sentences(texts: Sequence[str]) -> str:
    """Return sentences as a list, broken at the width of the terminal; of a file, at 110 columns."""
    width = shutil.get_terminal_size((110, 0)).columns
    return "\n".join(
        textwrap.fill(
            text, width, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        for text in texts
    )


def columns(lines: Sequence[Sequence[str]], left: int) -> str:
    """Return a table with a line below its header, which is the first of `lines`; the first `left` columns are text."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    header, *rows = lines
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in (header, ["-" * width for width in widths], *rows)
    )


def table(rows: list[tuple[str, str]]) -> str:
    """Return names and values, the values one below the other; those of several lines are indented."""
    width = max(len(name) for name, _ in rows) + 4
    return "\n".join(f"  {name}".ljust(width) + text.replace("\n", "\n" + " " * width) for name, text in rows)
