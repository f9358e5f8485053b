"""MMRazor's subnets: YAML of `{kind}_n{node}` and `{kind}_n{node}_p{state}`, each with what was `chosen`.

Edges that were not kept may be missing, or there with an operation that does not count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import yaml

from src.architectures.architecture import Architecture
from src.architectures.formats import Format
from src.common.errors import ConfigError, shorten
from src.spaces.cnn.formats.edges import regular
from src.spaces.cnn.genotypes import KINDS, edge_key, switch_key

_MAX_CHARACTERS = 1 << 17  # several times the largest cell; YAML is slow to read
_NODE = re.compile(rf"({'|'.join(KINDS)})_n([0-9]{{1,3}})")


class _Loader(yaml.BaseLoader):
    """Text, lists and mappings only, and no aliases, with which a short text can stand for a huge one."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse an alias; anything else is read as usual."""
        if self.check_event(yaml.AliasEvent):
            raise ConfigError("YAML aliases are not read")
        return super().compose_node(parent, index)


def _parse(text: str) -> dict[str, object]:
    if len(text) > _MAX_CHARACTERS:
        raise ConfigError(f"YAML of more than {_MAX_CHARACTERS} characters is not read")
    try:
        raw = yaml.load(text, Loader=_Loader)
    except ConfigError:
        raise
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"not valid YAML ({shorten(error)})") from None
    if not isinstance(raw, dict):
        raise ConfigError("the YAML must be a mapping of choices")
    answers: dict[str, object] = {}
    for key, value in raw.items():
        if not isinstance(value, Mapping) or set(value) != {"chosen"}:
            raise ConfigError(f"{shorten(key)} must be a mapping with 'chosen' alone, got {shorten(value)}")
        match = _NODE.fullmatch(str(key))
        answers[switch_key(match[1], int(match[2])) if match else str(key)] = value["chosen"]
    return answers


def _write(architecture: Architecture) -> str:
    subnet: dict[str, object] = {}
    genotype = regular(architecture, "MMRazor's YAML")
    for kind in KINDS:
        for node, edges in enumerate(getattr(genotype, kind), start=2):
            subnet[f"{kind}_n{node}"] = {"chosen": [edge_key(kind, node, edge.state) for edge in edges]}
            for edge in edges:
                subnet[edge_key(kind, node, edge.state)] = {"chosen": [edge.operation]}
    return yaml.safe_dump(subnet, sort_keys=True)


FORMAT = Format(
    name="mmrazor",
    looks_like="MMRazor's YAML",
    reads=lambda text: re.search(rf"^[{{ ]*[\"']?{_NODE.pattern}[\"']?\s*:", text, re.MULTILINE) is not None,
    parse=_parse,
    write=_write,
)
