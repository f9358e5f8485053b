"""`Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=range(2, 6), ...)`: what the official code prints.

It is found anywhere in a text, such as a training log or a module of genotypes; the last one counts. Other programs
that use the form with a list for each node (pt.darts) are read as well. The text is taken apart here and never executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from src.architectures.architecture import Architecture
from src.architectures.formats import Format
from src.common.errors import ConfigError, shorten
from src.spaces.cnn.formats.edges import FIELDS, answers_of
from src.spaces.cnn.genotypes import MAX_NODES, Genotype

_START = re.compile(r"\bGenotype\s*\(")
_TOKEN = re.compile(
    r"""\s+ | \#[^\n]* | (?P<text>'[^'\\\n]*'|"[^"\\\n]*") | (?P<number>[0-9]{1,9}\b) | (?P<name>[A-Za-z_]\w*)"""
    r"""| (?P<mark>[\[\](),=]) | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_DEPTH = 4  # a list of nodes, of edges, an edge


def _parse(text: str) -> dict[str, object]:
    ends = [start.end() for start in _START.finditer(text)]
    if not ends:
        raise ConfigError("there is no Genotype(...) in it")
    return answers_of(_Reader(text[ends[-1] :]).fields())


class _Reader:
    """Reads the arguments of a call, of strings, numbers, lists, tuples and ranges; a tuple or range is read as a list."""

    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text)
        self.next = next(self.tokens)

    def fields(self) -> dict[str, object]:
        """Return the arguments by name, up to the closing bracket."""
        fields: dict[str, object] = {}
        while self.next != ")":
            value: object = None
            name = self.next
            if name.isidentifier() and name != "range":
                self.take()
                self.take("=")
                value = self.value(0)
            else:
                name, value = FIELDS[len(fields)] if len(fields) < len(FIELDS) else "", self.value(0)
            if not name or name in fields:
                raise ConfigError(f"Genotype(...) must have each of {', '.join(FIELDS)} once")
            fields[name] = value
            if self.next != ")":
                self.take(",")
        return fields

    def value(self, depth: int) -> object:
        """Return the value that starts here."""
        token = self.take()
        if token[0] in "'\"":
            return token[1:-1]
        if token.isdecimal():
            return int(token)
        if token == "range":
            self.take("(")
            bounds = self.items(")", depth + 1)
            first, end = bounds if len(bounds) == 2 else (0, *bounds) if len(bounds) == 1 else (None, None)
            if not isinstance(first, int) or not isinstance(end, int) or end > 2 * MAX_NODES:
                raise ConfigError(f"range(...) must have one or two small numbers, got {shorten(bounds)}")
            return list(range(first, end))
        if token in "[(" and depth < _DEPTH:
            return self.items("]" if token == "[" else ")", depth + 1)
        raise ConfigError(f"Genotype(...) must be made of lists, names in quotes and numbers, got {shorten(token)!r}")

    def items(self, end: str, depth: int) -> list[object]:
        """Return the values up to the bracket `end`, and pass it."""
        items = []
        while self.next != end:
            items.append(self.value(depth))
            if self.next != end:
                self.take(",")
        self.take(end)
        return items

    def take(self, needed: str | None = None) -> str:
        """Return the next token and pass it.

        Raises:
            ConfigError: the text ends, or the token is not the one needed.
        """
        token = self.next
        if token == "":
            raise ConfigError("Genotype(...) ends before its closing bracket, perhaps truncated")
        if needed is not None and token != needed:
            raise ConfigError(f"Genotype(...) must have {needed!r} where it has {shorten(token)!r}")
        self.next = next(self.tokens)
        return token


def _tokens(text: str) -> Iterator[str]:
    """Yield the tokens of a text, then an empty one again and again. A string without an end ends the text."""
    for match in _TOKEN.finditer(text):
        if match[0] in ("'", '"'):
            break
        if match.lastgroup is not None:
            yield match[0]
    while True:
        yield ""


def _write(architecture: Architecture) -> str:
    return f"{Genotype.from_architecture(architecture)}\n"


FORMAT = Format(
    name="genotype",
    looks_like="a text with Genotype(...)",
    reads=lambda text: _START.search(text) is not None,
    parse=_parse,
    write=_write,
)
