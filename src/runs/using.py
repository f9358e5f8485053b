"""What the commands that use the network of a run have in common: its folder, the device, and a table or JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from src.common.errors import ConfigError
from src.common.terminal import refuse
from src.runs.devices import DEVICE, device_of
from src.runs.opened import OpenedRun, load_run
from src.runs.targets import look_here


def parser_of(command: str, description: str, json: str) -> argparse.ArgumentParser:
    """Return the parser of `python -m src.COMMAND RUN ...`; `json` says what --json prints."""
    parser = argparse.ArgumentParser(prog=f"python -m src.{command}", description=description, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="the folder of a retrain")
    parser.add_argument("--json", action="store_true", help=json)
    parser.add_argument("--device", metavar="DEVICE", help=DEVICE)
    return parser


def answer(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    ask: Callable[[OpenedRun, argparse.Namespace], str],
) -> int:
    """Open the run that was typed and print what `ask` makes of it; return the exit code.

    The options that `ask` gets have the device itself in place of its name.
    """
    options = parser.parse_args(argv)
    look_here()
    try:
        run = load_run(options.run)
        options.device = device_of(options.device)
        text = ask(run, options)
    except ConfigError as error:
        return refuse(error)
    if run.caution:
        print(run.caution, file=sys.stderr)
    print(text)
    return 0
