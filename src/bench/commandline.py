"""The command: which parts, at which sizes, and where the figures go."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from src.bench.forms import FORMS, Sizes, search_step
from src.bench.measuring import Row, measure_memory
from src.bench.parts import HYPERGRADIENTS, PARTS
from src.bench.tables import table
from src.bilevel.hypergradient import of_order
from src.common.files import write_whole

SIZES = {
    "channels": "of the supernet",
    "cells": "of the supernet",
    "nodes": "of a cell",
    "batch": "images in a search batch",
    "image": "side of an image",
    "pairs": "turns that count",
    "steps": "search steps to the second point of `hypergradient`, a quarter of those to the third",
    "retrain-channels": "of the retrain network",
    "retrain-cells": "of the retrain network",
    "retrain-batch": "images in a retrain batch",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts asked for; print their tables, and write them as JSON if asked to."""
    parser = _parser()
    options = parser.parse_args(argv)
    _check(parser, options)
    if options.measure:
        sizes = _sizes(options, {})
        hypergradient = HYPERGRADIENTS.get(options.hypergradient, of_order(options.order))
        print(measure_memory(search_step(options.measure, sizes, hypergradient), sizes.device))
        return 0

    machine = _machine(_sizes(options, {}).device)
    results: dict[str, Any] = {}
    print(machine)
    for name in options.parts or PARTS:
        part = PARTS[name]
        sizes = _sizes(options, {**part.sizes, **(part.quick if options.quick else {})})
        rows: list[Row] = []
        results[name] = {"sizes": asdict(sizes), "rows": rows}
        for row in part.rows(sizes):
            rows.append(row)
            if options.json:
                write_whole(Path(options.json), json.dumps({"machine": machine, "results": results}, indent=2) + "\n")
        note = ", quick: smaller than the paper's sizes" if options.quick else ""
        print(f"\n{name} ({sizes.precision}, medians of {sizes.pairs} turns{note})\n\n{table(rows)}", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m src.bench",
        description="This code against the paper's as published.",
        epilog="parts:\n" + "\n".join(f"  {name:<14} {part.words}" for name, part in PARTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all of them by default")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer turns, in a few minutes")
    defaults = Sizes()
    for name, text in SIZES.items():
        default = getattr(defaults, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, help=f"{text} ({default} unless the part has its own)")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    parser.add_argument("--json", metavar="PATH", help="write the figures there too, after every row")
    parser.add_argument("--measure", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--order", type=int, choices=(1, 2), default=1, help=argparse.SUPPRESS)
    parser.add_argument("--hypergradient", choices=HYPERGRADIENTS, help=argparse.SUPPRESS)
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a line of help for options that cannot be."""
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r} (allowed: {', '.join(PARTS)})")
    for name in SIZES:
        value = getattr(options, name.replace("-", "_"))
        if value is not None and value < 1:
            parser.error(f"--{name} must be 1 or more, got {value}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here")


def _sizes(options: argparse.Namespace, own: dict[str, Any]) -> Sizes:
    """Return the sizes of a part: those given in the command, else its own, else the paper's."""
    given = {f.name: value for f in fields(Sizes) if (value := getattr(options, f.name)) is not None}
    return Sizes(**{**own, **given})


def _machine(device: str) -> str:
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
