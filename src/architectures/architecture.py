"""Architecture: what a search hands to a retrain, and the files that hold it.

An architecture answers every choice of a search space. The answer to a LayerChoice is the name of one candidate, or
nothing if the edge it sits on was dropped; the answer to an InputChoice is the names of the inputs that were kept. The
file is a flat JSON object, `{key: answer}`. NNI 2.1 has the same layout; what the names of the operations are is the
business of a space and its formats (src/spaces/cnn/formats).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.common.errors import ConfigError, shorten, unknown
from src.common.files import write_whole

ZERO = "none"  # the candidate that contributes nothing; an architecture never names it
MAX_FILE_BYTES = 1 << 24  # a training log of hundreds of epochs holds a genotype, too


@dataclass(frozen=True)
class LayerSpec:
    """A choice of one operation: the candidates an architecture may name, in their order (`none` is not among them)."""

    candidates: tuple[str, ...]


@dataclass(frozen=True)
class InputSpec:
    """A choice of `n_chosen` inputs among `inputs`.

    An input that is the key of a LayerChoice is an edge: dropping it drops its operation. Of edges, fewer may be chosen:
    at least one, or none if the choice `may_be_empty`.
    """

    inputs: tuple[str, ...]
    n_chosen: int
    may_be_empty: bool = False


Spec = Mapping[str, LayerSpec | InputSpec]
Answer = str | tuple[str, ...] | None


def ranks_edges(rule: InputSpec, spec: Spec) -> bool:
    """Return whether the inputs of a choice are edges: keys of LayerChoices."""
    return isinstance(spec.get(rule.inputs[0]), LayerSpec)


def fewest(rule: InputSpec, spec: Spec) -> int:
    """Return how many inputs an architecture has to choose at least."""
    return (0 if rule.may_be_empty else 1) if ranks_edges(rule, spec) else rule.n_chosen


@dataclass(frozen=True)
class Architecture:
    """One answer for each key of a search space; `None` for an edge that was dropped."""

    choices: Mapping[str, Answer]

    @classmethod
    def parse(cls, raw: object, spec: Spec) -> Architecture:
        """Check `raw`, as decoded from JSON, against `spec` and return it in canonical form.

        An answer may be a name, an index, a list of either, or a multi-hot list of booleans or floats.

        Raises:
            ConfigError: `raw` is not an architecture of this space; the message names the key and what is allowed.
        """
        if not isinstance(raw, dict):
            raise ConfigError(
                f"an architecture must be a JSON object with an answer for each choice, got {kind_of(raw)}"
            )
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
                chosen = options_in(key, raw[key], rule.inputs)
                least, most = fewest(rule, spec), rule.n_chosen
                if not least <= len(chosen) <= most:
                    count = str(most) if least == most else f"{least} to {most}"
                    raise ConfigError(f"{key} must name {count} of {', '.join(rule.inputs)}, got {len(chosen)} of them")
                choices[key] = chosen
                kept.update(chosen)
                dropped.update(name for name in rule.inputs if name not in chosen)
        for key, rule in spec.items():
            if isinstance(rule, LayerSpec):
                chosen = options_in(key, raw[key], rule.candidates)
                if key in dropped and key not in kept:
                    choices[key] = None
                elif len(chosen) == 1:
                    choices[key] = chosen[0]
                else:
                    raise ConfigError(
                        f"{key} must name exactly one of {', '.join(rule.candidates)}, got {len(chosen)} of them"
                    )
        return cls({key: choices[key] for key in spec})

    def to_plain(self) -> dict[str, str | list[str]]:
        """Return the answers as JSON has them: a name, or a list of names; `[]` for a dropped edge."""
        return {key: answer if isinstance(answer, str) else list(answer or ()) for key, answer in self.choices.items()}

    def to_json(self) -> str:
        """Return the text of the file: a flat object with sorted keys."""
        return json.dumps(self.to_plain(), indent=2, sort_keys=True) + "\n"

    def write(self, path: Path) -> None:
        """Write the architecture file, whole or not at all."""
        write_whole(path, self.to_json())


def options_in(key: str, answer: object, options: tuple[str, ...]) -> tuple[str, ...]:
    """Return the options that the answer to `key` names, in the order of `options`.

    Raises:
        ConfigError: the answer has none of the forms that `Architecture.parse` takes, or names something else.
    """
    items = answer if isinstance(answer, list) else [answer]
    if items and (_all_are(bool, items) or _all_are(float, items)):
        if len(items) != len(options) or any(item not in (0, 1) for item in items):
            raise ConfigError(
                f"{key}: a multi-hot list must hold {len(options)} values of 0 or 1, got {shorten(items)}"
            )
        chosen = [option for option, item in zip(options, items, strict=True) if item]
    else:
        chosen = [_option(key, item, options) for item in items]
    if len(set(chosen)) != len(chosen):
        raise ConfigError(f"{key} names the same option twice: {shorten(', '.join(chosen))}")
    return tuple(option for option in options if option in chosen)


def read_text(path: Path) -> str:
    """Return the text of an architecture file, whose size is bounded.

    Raises:
        ConfigError: there is no such file, it is too large, or it is not text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read genotype file {path}: {error.strerror}") from None
    except ValueError:  # a null character in the path
        raise ConfigError(f"cannot read genotype file {str(path)!r}: no file can have this name") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"genotype file {path} is larger than {MAX_FILE_BYTES >> 20} MiB")
    try:
        return content.decode(json.detect_encoding(content))
    except UnicodeDecodeError:
        raise ConfigError(f"genotype file {path} is not text") from None


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object in `text`; nothing in it is executed.

    Raises:
        ConfigError: the text is not a JSON object.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not valid JSON, perhaps truncated ({shorten(error)})") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"an architecture must be a JSON object, got {kind_of(raw)}")
    return raw


def load_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in an architecture file.

    Raises:
        ConfigError: the file cannot be read or does not hold a JSON object.
    """
    text = read_text(path)
    try:
        return json_object(text)
    except ConfigError as error:
        raise ConfigError(f"genotype file {path}: {error}") from None


def kind_of(value: object) -> str:
    """Return what JSON calls the kind of a decoded value, with its article."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def _all_are(kind: type, items: list[object]) -> bool:
    return all(isinstance(item, kind) for item in items)


def _option(key: str, item: object, options: tuple[str, ...]) -> str:
    if isinstance(item, str):
        if item not in options:
            raise unknown(f"answer to {key}:", item, options)
        return item
    if isinstance(item, int) and not isinstance(item, bool):
        if not 0 <= item < len(options):
            raise ConfigError(f"{key} must be an index from 0 to {len(options) - 1}, got {shorten(item)}")
        return options[item]
    raise ConfigError(f"{key} must be a name, an index or a list of {', '.join(options)}, got {shorten(item)!r}")
