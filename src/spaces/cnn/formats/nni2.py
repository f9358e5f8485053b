"""NNI 2.1's flat JSON file, such as its DARTS example's `epoch_49.json`: this code's keys, other names of operations."""

from __future__ import annotations

import json

from src.architectures.architecture import Architecture, json_object
from src.architectures.formats import Format
from src.common.errors import ConfigError
from src.spaces.cnn.formats.edges import regular
from src.spaces.cnn.genotypes import edge_of
from src.spaces.cnn.operations import OPERATIONS

NAME = "nni"


def _names() -> dict[str, str]:
    """Return what NNI calls each operation that it has."""
    return {name: operation.foreign[NAME] for name, operation in OPERATIONS.items() if NAME in operation.foreign}


def _reads(text: str) -> bool:
    return text.lstrip()[:1] == "{" and any(f'"{name}"' in text for name in _names().values())


def _parse(text: str) -> dict[str, object]:
    ours = {foreign: name for name, foreign in _names().items() if foreign not in OPERATIONS}

    def translated(answer: object) -> object:
        if isinstance(answer, list):
            return [translated(item) if isinstance(item, str) else item for item in answer]
        return ours.get(answer, answer) if isinstance(answer, str) else answer

    return {key: translated(answer) if edge_of(key) else answer for key, answer in json_object(text).items()}


def _write(architecture: Architecture) -> str:
    regular(architecture, "NNI 2.1's JSON")
    names = _names()
    answers = architecture.to_plain()
    for key, answer in answers.items():
        if edge_of(key) and isinstance(answer, str):
            if answer not in names:
                raise ConfigError(f"NNI 2.1 has no operation {answer!r}, only {', '.join(names)}")
            answers[key] = names[answer]
    return json.dumps(answers, indent=2, sort_keys=True) + "\n"


FORMAT = Format(name=NAME, looks_like="NNI 2.1's JSON", reads=_reads, parse=_parse, write=_write)
