"""Hydra's overrides and the shell's commands: text that means what it says, whatever characters a path holds."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

# In double quotes bash still expands these ("!" in an interactive shell).
_LIVE_IN_DOUBLE_QUOTES = frozenset('"$`\\!')
_ASSIGNMENT = re.compile(r"(?P<key>(?:\+{0,2}|~)[\w.@/$][\w.@/$-]*)=(?P<value>.*)", re.DOTALL)


def parsed(text: str) -> Override | None:
    """Return an override as Hydra reads it, or None if it is not in Hydra's grammar."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


def quoted(value: object) -> str:
    """Return `value` as text that Hydra reads as exactly this string."""
    # OmegaConf would look up ${...} in quoted text, too.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", str(value))
    return QuotedString(text, Quote.single).with_quotes()


def override(key: str, value: object) -> str:
    """Return the override that sets `key` to the text of `value`, quoted for Hydra where it needs to be.

    `override("resume", "runs/a")` is `resume=runs/a`, and with `runs/lr=0.1` it is `resume='runs/lr=0.1'`.
    """
    text = str(value)
    plain = parsed(f"{key}={text}")
    if plain is not None and "${" not in text and not plain.is_sweep_override() and plain.value() == text:
        return f"{key}={text}"
    return f"{key}={quoted(text)}"


def pastable(command: str, overrides: Iterable[str] = ()) -> str:
    """Return the shell command `python -m src.COMMAND OVERRIDES`, to be pasted into bash or zsh as it is.

    Args:
        command: `search`, `retrain` or another command.
        overrides: in Hydra's grammar; `override` makes one of a key and a path.
    """
    return " ".join(["python", "-m", f"src.{command}", *map(shell_word, overrides)])


def shell_word(text: str) -> str:
    """Return a word of a shell command; text in Hydra's single quotes goes into double ones, which is easier to read."""
    if "'" in text and not _LIVE_IN_DOUBLE_QUOTES & set(text):
        return f'"{text}"'
    return shlex.quote(text)


def with_quotes(arguments: Sequence[str], *, sweep: bool) -> list[str]:
    """Return a command line with quotes around the values that Hydra's grammar refuses, such as paths with é or =.

    A leading `~/` becomes the home folder, as in a shell's own assignments. Of a list and of a mapping, the items are
    quoted, as in `search=[space.cells=3]`. What is not of the form key=value, and what begins like quoted text, stays as it is.

    Args:
        arguments: the words of a command line.
        sweep: whether commas separate the values of a sweep.
    """
    return [_with_quotes(argument, sweep=sweep) for argument in arguments]


def _with_quotes(argument: str, *, sweep: bool) -> str:
    match = _ASSIGNMENT.fullmatch(argument)
    if match is None or parsed(argument) is not None or match["value"].startswith(("'", '"')):
        return argument
    key, value = match["key"], match["value"]
    if value.startswith(("[", "{")):
        whole = f"{key}={_quoted_items(value)}"
        return whole if parsed(whole) is not None else argument
    values = _split(value) if sweep else [value]
    return f"{key}=" + ",".join(_quoted_item(text) for text in values)


def _quoted_item(text: str) -> str:
    if parsed(f"key={text}") is not None:
        return text
    return quoted(_at_home(text)) if (items := _quoted_items(text)) == text else items


def _quoted_items(text: str) -> str:
    """Return a list or a mapping with quotes around the values that need them, and what is neither as it is."""
    items = [item.strip() for item in _split(text[1:-1])]
    if text.startswith("[") and text.endswith("]"):
        return f"[{','.join(map(_quoted_item, items))}]"
    if text.startswith("{") and text.endswith("}") and all(":" in item for item in items):
        pairs = [item.partition(":") for item in items]
        return f"{{{','.join(f'{name}:{_quoted_item(value.strip())}' for name, _, value in pairs)}}}"
    return text


def _split(text: str) -> list[str]:
    """Split a text at its commas, but not at those within brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _at_home(text: str) -> str:
    return os.path.expanduser(text) if text == "~" or text.startswith("~/") else text
