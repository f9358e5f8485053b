"""NNI 3's samples: a JSON object of `{kind}/op_{node}_{i}` and `{kind}/input_{node}_{i}`, i being 0 or 1.

An input is the number of a state, or a list of one such number. `width` and `depth`, which say how large the network of
a sample is, are no part of a genotype and are passed over.
"""

from __future__ import annotations

import json
import re

from src.architectures.architecture import Architecture, json_object
from src.architectures.formats import Format
from src.common.errors import ConfigError, shorten
from src.spaces.cnn.formats.edges import answers_of, regular
from src.spaces.cnn.genotypes import EDGES_PER_NODE, KINDS, MAX_NODES
from src.spaces.cnn.operations import CANDIDATES

_KEY = re.compile(rf"({'|'.join(KINDS)})/(op|input)_([0-9]{{1,3}})_([0-9]{{1,3}})")
_SIZES = ("width", "depth")


def _parse(text: str) -> dict[str, object]:
    found: dict[tuple[str, str, int, int], object] = {}
    for key, value in json_object(text).items():
        match = _KEY.fullmatch(key)
        if match:
            found[match[1], match[2], int(match[3]), int(match[4])] = value
        elif key not in _SIZES:
            raise ConfigError(f"{shorten(key)!r} is not a key of NNI 3's cells, such as normal/op_2_0")
    nodes = max((node for _, _, node, _ in found), default=1) - 1
    if not 1 <= nodes <= MAX_NODES or max((place for *_, place in found), default=0) >= EDGES_PER_NODE:
        raise ConfigError(f"cells must have 1 to {MAX_NODES} nodes, counted from 2, with {EDGES_PER_NODE} edges each")

    def answer(kind: str, what: str, node: int, place: int) -> object:
        try:
            value = found[kind, what, node, place]
        except KeyError:
            raise ConfigError(f"no answer for {kind}/{what}_{node}_{place}") from None
        return value[0] if what == "input" and isinstance(value, list) and len(value) == 1 else value

    cells: dict[str, object] = {
        kind: [
            [[answer(kind, "op", node, place), answer(kind, "input", node, place)] for place in range(EDGES_PER_NODE)]
            for node in range(2, 2 + nodes)
        ]
        for kind in KINDS
    }
    return answers_of(cells)


def _write(architecture: Architecture) -> str:
    answers: dict[str, object] = {}
    genotype = regular(architecture, "NNI 3's JSON")
    for kind in KINDS:
        for node, edges in enumerate(getattr(genotype, kind), start=2):
            for place, edge in enumerate(edges):
                if edge.operation not in CANDIDATES:
                    raise ConfigError(f"NNI 3's DARTS space has no operation {edge.operation!r}")
                answers[f"{kind}/op_{node}_{place}"] = edge.operation
                answers[f"{kind}/input_{node}_{place}"] = [edge.state]
    return json.dumps(answers, indent=2) + "\n"


FORMAT = Format(
    name="nni3",
    looks_like="NNI 3's JSON (normal/op_2_0)",
    reads=lambda text: text.lstrip()[:1] == "{" and re.search(r'"(normal|reduce)/(op|input)_', text) is not None,
    parse=_parse,
    write=_write,
)
