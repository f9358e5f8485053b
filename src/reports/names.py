"""How choices, candidates and operations are called and coloured in pictures and pages, and text that is safe to draw."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence

from src.architectures.architecture import Answer
from src.common.errors import shorten
from src.spaces.cnn.genotypes import edge_of
from src.spaces.cnn.operations import OPERATIONS, SPARE_COLOURS

STATE_NAMES = ("cₖ₋₂", "cₖ₋₁")
CELL_NAMES = {"normal": "Normal cell", "reduce": "Reduction cell"}
LIGHT, DARK = "#ffffff", "#15181b"  # the backgrounds of a page


def words(candidate: str) -> str:
    """Return the name of a candidate: of a registered operation its words, of an edge its states, else its own name."""
    known = OPERATIONS.get(candidate)
    if known is None and edge_of(candidate):
        return edge_name(candidate)
    return drawable(known.words if known else candidate.replace("_", " "), 24)


def meaning(candidate: str) -> str:
    """Return what a registered operation does to its input, or nothing."""
    known = OPERATIONS.get(candidate)
    return known.meaning if known else ""


def state_name(state: int) -> str:
    """Return how pictures name a state: the cell's two inputs are 0 and 1, its nodes count from 2."""
    return STATE_NAMES[state] if state < 2 else f"node {state}"


def edge_name(key: str) -> str:
    """Return how pictures name a choice: an edge of a cell as "state → node", any other by its key."""
    place = edge_of(key)
    return f"{state_name(place.state)} → node {place.node}" if place else drawable(key, 28)


def answers_of(choices: Mapping[str, Answer], key: str) -> tuple[str, ...]:
    """Return the names in the answer to a choice; none where it is dropped or missing."""
    answer = choices.get(key)
    return (answer,) if isinstance(answer, str) else tuple(answer or ())


def alike(keys: Iterable[str], candidates: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Group the keys of choices by their candidates."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for key in keys:
        groups.setdefault(tuple(candidates[key]), []).append(key)
    return list(groups.values())


def in_order(operations: Iterable[str]) -> list[str]:
    """Return the operations, each once: those that are registered in the order of the registry, then all others."""
    given = set(operations)
    others = sorted(name for name in given if name not in OPERATIONS)
    return [name for name in OPERATIONS if name in given] + others


def colours(candidates: Sequence[str]) -> dict[str, str]:
    """Return a colour for each candidate: a registered operation has its own, others take the spare ones in order."""
    known = {name: OPERATIONS[name].colour for name in candidates if name in OPERATIONS}
    spare = [colour for colour in SPARE_COLOURS if colour not in known.values()] or SPARE_COLOURS
    others = [name for name in dict.fromkeys(candidates) if name not in known]
    found = known | {name: spare[i % len(spare)] for i, name in enumerate(others)}
    return {name: found[name] for name in candidates}


def visible(colour: str, background: str, contrast: float = 3.0) -> str:
    """Return a `#rrggbb` colour, made lighter or darker until it stands out from a background.

    Args:
        colour: the one to change.
        background: the one that it is drawn on.
        contrast: the ratio of luminances of WCAG 2.1; lines and other parts of pictures need 3.
    """
    hue, lightness, saturation = colorsys.rgb_to_hls(*_parts(colour))
    step = -0.02 if _luminance(background) > 0.5 else 0.02
    while _contrast(colour, background) < contrast and 0 < lightness < 1:
        lightness = min(1.0, max(0.0, lightness + step))
        rgb = colorsys.hls_to_rgb(hue, lightness, saturation)
        colour = "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
    return colour


def drawable(text: object, limit: int = 60) -> str:
    """Return `text` on one line, shortened, without characters that XML does not allow."""
    return "".join(char if char.isprintable() else "\ufffd" for char in shorten(text, limit))


def _parts(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def _luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2.1, from 0 (black) to 1 (white)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in _parts(colour)]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(colour: str, background: str) -> float:
    lighter, darker = sorted((_luminance(colour), _luminance(background)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)
