"""Formats: the texts in which architectures come from elsewhere, and go there.

A format is one object, `Format`. A space lists those it reads, such as src/spaces/cnn/formats, a file for each; the flat
JSON file of this code is here, since it is the same for every space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from src.architectures.architecture import Architecture, json_object
from src.common.errors import ConfigError


@dataclass(frozen=True)
class Format:
    """A text format of architectures.

    Attributes:
        name: what messages and `python -m src.convert --to` call it.
        looks_like: how such a text is recognised, for the message that lists the formats.
        reads: whether a text seems to be of this format; a rough look that never raises.
        parse: returns the answers in a text as {key: answer}, to be checked by the space. Executes nothing. Raises a
            `ConfigError` of one line for any text that it cannot read.
        write: returns an architecture as text; None if this format is only read. Raises a `ConfigError` for an
            architecture that the format cannot express.
    """

    name: str
    looks_like: str
    reads: Callable[[str], bool]
    parse: Callable[[str], dict[str, object]]
    write: Callable[[Architecture], str] | None = None


OWN = Format(
    name="json",
    looks_like="a JSON object of choices",
    reads=lambda text: text.lstrip()[:1] == "{",
    parse=json_object,
    write=Architecture.to_json,
)


def parse_text(text: str, formats: Sequence[Format]) -> dict[str, object]:
    """Return the answers in a text of the first of `formats` that it seems to be of.

    Raises:
        ConfigError: it is of none of them, or cannot be read as the one it seems to be of.
    """
    found = next((format for format in formats if format.reads(text)), None)
    if found is None:
        known = ", ".join(format.looks_like for format in formats)
        raise ConfigError(f"{'the format is not known' if text.strip() else 'it is empty'} (known formats: {known})")
    return found.parse(text)
