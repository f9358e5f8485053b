"""The command: which parts, at which sizes, and where the figures go."""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from src.bench.forms import FORMS, HYPERGRADIENTS, Sizes, search_step
from src.bench.measuring import Row, measure_memory
from src.bench.methods import method_step
from src.bench.parts import PARTS, Part
from src.bench.tables import line, table
from src.bilevel.hypergradient import of_order
from src.common.files import write_whole
from src.common.terminal import duration
from src.runs.devices import peak_memory

EVERYTHING = [name for name, part in PARTS.items() if not part.by_name]
SIZES = {
    "channels": "of the supernet",
    "cells": "of the supernet",
    "nodes": "of a cell",
    "batch": "images in a search batch",
    "image": "side of an image",
    "pairs": "turns that count",
    "steps": "search steps to the second point of `hypergradient` and `difference`; 4 and 10 times as many to the next",
    "seeds": "searches of which `difference` takes medians",
    "retrain-channels": "of the retrain network",
    "retrain-cells": "of the retrain network",
    "retrain-batch": "images in a retrain batch",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts asked for; print their tables, and write them as JSON if asked to."""
    parser = _parser()
    options = parser.parse_args(argv)
    _check(parser, options)
    if options.method:
        sizes = _sizes(options, {})
        print(measure_memory(method_step(options.method, sizes, options.order), sizes.device))
        return 0
    if options.measure:
        sizes = _sizes(options, {})
        hypergradient = HYPERGRADIENTS.get(options.hypergradient, of_order(options.order))
        print(measure_memory(search_step(options.measure, sizes, hypergradient), sizes.device))
        return 0

    deadline = time.monotonic() + 60 * (options.minutes or math.inf)
    results: dict[str, Any] = {}
    for name in options.parts or EVERYTHING:
        part = PARTS[name]
        sizes = _sizes(options, {**part.sizes, **((part.quick or {}) if options.quick else {})})
        machine = _machine(sizes.device)
        print(f"\n{name}: {machine}\n{_text(sizes)}{' (quick: small)' if options.quick else ''}", flush=True)
        start = time.monotonic()
        rows: list[Row] = []
        results[name] = {"machine": machine, "sizes": asdict(sizes), "rows": rows}
        with closing(part.rows(sizes)) as measured:
            for row in measured:
                rows.append(row)
                results[name]["seconds"] = time.monotonic() - start
                if options.json:
                    write_whole(Path(options.json), json.dumps(results, indent=2) + "\n")
                if part.line_by_line:
                    print(line(row), flush=True)
                if time.monotonic() > deadline:
                    print(f"stopped after {options.minutes:g} minutes")
                    break
        print(f"\n{table(rows)}\n\n{name} took {_took(time.monotonic() - start)}", flush=True)
        if time.monotonic() > deadline:
            break
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m src.bench",
        description="This code against the paper's as published.",
        epilog="parts:\n" + "\n".join(f"  {name:<14} {part.words}{_when(part)}" for name, part in PARTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help="one or more of those below; without any, all but those that say so"
    )
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer turns, in a few minutes")
    defaults = Sizes()
    for name, text in SIZES.items():
        default = getattr(defaults, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, help=f"{text} ({default} unless the part has its own)")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    parser.add_argument("--json", metavar="PATH", help="write the figures there too, after every row")
    parser.add_argument("--minutes", type=float, help="stop after the row that ends after so many minutes")
    parser.add_argument("--measure", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--order", type=int, choices=(1, 2), default=1, help=argparse.SUPPRESS)
    parser.add_argument("--hypergradient", choices=HYPERGRADIENTS, help=argparse.SUPPRESS)
    return parser


def _when(part: Part) -> str:
    notes = [part.takes] if part.takes else []
    if part.by_name:
        notes.append("only by its name")
    return f" ({'; '.join(notes)})" if notes else ""


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a line of help for options that cannot be."""
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r} (allowed: {', '.join(PARTS)})")
    for name in SIZES:
        value = getattr(options, name.replace("-", "_"))
        if value is not None and value < 1:
            parser.error(f"--{name} must be 1 or more, got {value}")
    if options.minutes is not None and options.minutes <= 0:
        parser.error(f"--minutes must be more than 0, got {options.minutes:g}")
    if options.json:
        try:
            tempfile.TemporaryFile(dir=Path(options.json).absolute().parent).close()
        except OSError as error:
            parser.error(f"--json must be in a folder that can be written, got {options.json} ({error.strerror})")
    slow = [part for part in options.parts if PARTS[part].quick is None]
    if options.quick and slow:
        parser.error(f"--quick: {slow[0]} has no quick form, give it smaller sizes")
    device = options.device or ("cuda" if any(PARTS[part].sizes.get("device") for part in options.parts) else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device here; --device cpu measures what a CPU can tell")


def _sizes(options: argparse.Namespace, own: dict[str, Any]) -> Sizes:
    """Return the sizes of a part: those given in the command, else its own, else the paper's."""
    given = {f.name: value for f in fields(Sizes) if (value := getattr(options, f.name, None)) is not None}
    return Sizes(**{**own, **given})


def _took(seconds: float) -> str:
    """Return in words how long a part took, and the most memory that this process has had so far."""
    peak = peak_memory(torch.device("cpu"))
    return duration(seconds) + ("" if peak is None else f", this process at most {peak / 1e9:.1f} GB so far")


def _text(sizes: Sizes) -> str:
    """Return the sizes in which a part differs from the paper's, and the precision."""
    paper = Sizes()
    own = {f.name: getattr(sizes, f.name) for f in fields(Sizes) if f.name not in ("device", "precision", "memory")}
    changed = [f"{name} {value}" for name, value in own.items() if value != getattr(paper, name)]
    return f"{sizes.precision}, " + (", ".join(changed) or "the paper's sizes")


def _machine(device: str) -> str:
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
