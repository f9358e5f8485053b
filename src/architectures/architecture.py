"""Architecture: what search hands to retrain, and the files that hold it.

An architecture answers every choice of a search space: for a LayerChoice the name of one candidate (or nothing, when
the edge it sits on was dropped), for an InputChoice the names of the inputs that were kept. The file is a flat JSON
object, `{key: answer}`, the format of NNI 2.1; files written by NNI's DARTS example are read as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.common.errors import ConfigError, shorten, unknown
from src.common.files import write_whole

MAX_FILE_BYTES = 1 << 20

# The names NNI 2.1 gives to the paper's operations.
NNI_NAMES = {
    "maxpool": "max_pool_3x3",
    "avgpool": "avg_pool_3x3",
    "skipconnect": "skip_connect",
    "sepconv3x3": "sep_conv_3x3",
    "sepconv5x5": "sep_conv_5x5",
    "dilconv3x3": "dil_conv_3x3",
    "dilconv5x5": "dil_conv_5x5",
}


@dataclass(frozen=True)
class LayerSpec:
    """A choice of one operation: the candidates an architecture may name, in their order (`none` is not among them)."""

    candidates: tuple[str, ...]


@dataclass(frozen=True)
class InputSpec:
    """A choice of `n_chosen` inputs among `inputs`.

    An input that is the key of a LayerChoice is an edge: dropping it drops its operation.
    """

    inputs: tuple[str, ...]
    n_chosen: int


Spec = Mapping[str, LayerSpec | InputSpec]
Answer = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Architecture:
    """One answer for each key of a search space; `None` for an edge that was dropped."""

    choices: Mapping[str, Answer]

    @classmethod
    def parse(cls, raw: object, spec: Spec) -> Architecture:
        """Check `raw`, as decoded from JSON, against `spec` and return it in canonical form.

        Answers may be names (also NNI's), indices, a list of either, or a multi-hot list of booleans or floats.

        Raises:
            ConfigError: `raw` is not an architecture of this space; the message names the key and what is allowed.
        """
        if not isinstance(raw, dict):
            raise ConfigError(f"an architecture is a JSON object of one answer a choice, not a {type(raw).__name__}")
        for key in raw:
            if key not in spec:
                raise unknown("choice", key, spec)
        missing = [key for key in spec if key not in raw]
        if missing:
            raise ConfigError(f"no answer for {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}")

        kept: set[str] = set()
        dropped: set[str] = set()
        choices: dict[str, Answer] = {}
        for key, rule in spec.items():
            if isinstance(rule, InputSpec):
                chosen = _select(key, raw[key], rule.inputs)
                if len(chosen) != rule.n_chosen:
                    raise ConfigError(
                        f"{key} names {len(chosen)} inputs, allowed are {rule.n_chosen} of {', '.join(rule.inputs)}"
                    )
                choices[key] = chosen
                kept.update(chosen)
                dropped.update(name for name in rule.inputs if name not in chosen)
        for key, rule in spec.items():
            if isinstance(rule, LayerSpec):
                chosen = _select(key, raw[key], rule.candidates)
                if key in dropped and key not in kept:
                    choices[key] = None
                elif len(chosen) == 1:
                    choices[key] = chosen[0]
                else:
                    raise ConfigError(
                        f"{key} names {len(chosen)} operations, allowed is exactly one of {', '.join(rule.candidates)}"
                    )
        return cls({key: choices[key] for key in spec})

    def to_plain(self) -> dict[str, str | list[str]]:
        """Return the answers as JSON has them: a name, or a list of names; `[]` for a dropped edge."""
        return {key: answer if isinstance(answer, str) else list(answer or ()) for key, answer in self.choices.items()}

    def to_json(self) -> str:
        """Return the file's text: a flat object with sorted keys, as NNI 2.1 writes it."""
        return json.dumps(self.to_plain(), indent=2, sort_keys=True) + "\n"

    def write(self, path: Path) -> None:
        """Write the architecture file, whole or not at all."""
        write_whole(path, self.to_json())


def load_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in an architecture file; nothing in the file is executed and its size is bounded.

    Raises:
        ConfigError: there is no such file, it is too large, or it does not hold a JSON object.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read genotype file {path}: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"genotype file {path} is larger than {MAX_FILE_BYTES} bytes, no architecture is")
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"genotype file {path} is not valid JSON, truncated perhaps ({shorten(error)})") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"genotype file {path} holds a JSON {type(raw).__name__}, an architecture is an object")
    return raw


def _select(key: str, answer: object, options: tuple[str, ...]) -> tuple[str, ...]:
    """Return the options that `answer` names, in the order of `options`."""
    items = answer if isinstance(answer, list) else [answer]
    if items and (_all_are(bool, items) or _all_are(float, items)):
        if len(items) != len(options) or any(item not in (0, 1) for item in items):
            raise ConfigError(
                f"{key} holds a multi-hot list {shorten(items)}, allowed are {len(options)} values of 0 or 1"
            )
        chosen = [option for option, item in zip(options, items, strict=True) if item]
    else:
        chosen = [_option(key, item, options) for item in items]
    if len(set(chosen)) != len(chosen):
        raise ConfigError(f"{key} names the same option twice: {shorten(', '.join(chosen))}")
    return tuple(option for option in options if option in chosen)


def _all_are(kind: type, items: list[object]) -> bool:
    return all(isinstance(item, kind) for item in items)


def _option(key: str, item: object, options: tuple[str, ...]) -> str:
    if isinstance(item, str):
        name = item if item in options else NNI_NAMES.get(item, item)
        if name not in options:
            raise unknown(f"answer to {key}:", item, options)
        return name
    if isinstance(item, int) and not isinstance(item, bool):
        if not 0 <= item < len(options):
            raise ConfigError(f"{key} holds the index {shorten(item)}, allowed are 0 to {len(options) - 1}")
        return options[item]
    raise ConfigError(f"{key} holds {shorten(item)!r}, allowed are a name, an index or a list of {', '.join(options)}")
