"""The text formats in which the CNN cell space's genotypes are written, a file for each, and reading any of them.

A further format is a file with a `Format` (src/architectures/formats.py), named in `FORMATS` below.
"""

from __future__ import annotations

import os
from pathlib import Path

from src.architectures.architecture import Architecture, read_text
from src.architectures.formats import OWN, Format, parse_text
from src.common.errors import ConfigError, unknown
from src.spaces.cnn.formats import edges, mmrazor, nni2, nni3, official
from src.spaces.cnn.genotypes import NAMED_GENOTYPES, parse_cells

# The first that seems to fit reads a text, so the ones that are easiest to recognise come first.
FORMATS: tuple[Format, ...] = (official.FORMAT, nni3.FORMAT, edges.FORMAT, mmrazor.FORMAT, nni2.FORMAT, OWN)


def read_cells(text: str) -> Architecture:
    """Return the architecture in a text of any of `FORMATS`.

    Raises:
        ConfigError: it is not an architecture of the CNN cell space.
    """
    try:
        return parse_cells(parse_text(text, FORMATS))
    except RecursionError:
        raise ConfigError("its lists are nested too deeply") from None


def load_cells(genotype: str) -> Architecture:
    """Return the architecture of a published genotype by its name, of a `Genotype(...)` text, or of a file.

    Raises:
        ConfigError: there is no such name or file, or it is not an architecture of the CNN cell space.
    """
    if genotype in NAMED_GENOTYPES:
        return NAMED_GENOTYPES[genotype].to_architecture()
    if official.FORMAT.reads(genotype):
        return read_cells(genotype)
    path = Path(genotype)
    if not path.suffix and len(path.parts) <= 1 and not os.path.exists(path):
        raise unknown("genotype", genotype, [*NAMED_GENOTYPES, "the path of an architecture file"])
    text = read_text(path)
    try:
        return read_cells(text)
    except ConfigError as error:
        raise ConfigError(f"genotype file {path}: {error}") from None
