"""python -m src.evaluate: what the network of a retrain reaches on a test split, with 95 % intervals.

    python -m src.evaluate runs/retrain/RUN                                        the test split of its own data
    python -m src.evaluate runs/retrain/RUN data.source.root=/data/moved           where they are now
    python -m src.evaluate runs/retrain/RUN data=image_folder data.source.root=PATH   another data set with the same classes

Inputs are normalised as in the run's training. Nothing is written. The interval of an accuracy is Wilson's, that of any
other metric is a bootstrap over the samples: both say how far another test set of this size could differ, and nothing
about other seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from src.common.errors import ConfigError
from src.runs.devices import DEVICE, device_of
from src.runs.launch import MISTAKE
from src.runs.opened import load_run
from src.runs.targets import look_here


def main(argv: Sequence[str] | None = None) -> int:
    """Print the metrics; return 0, or 2 if the run or the data cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m src.evaluate", description="Measure a retrained network on a test split.", allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a retrain")
    parser.add_argument("data", metavar="data=...", nargs="*", help="settings of the data (default: the run's own)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--device", metavar="DEVICE", help=DEVICE)
    options = parser.parse_args(argv)
    look_here()
    try:
        run = load_run(options.run)
        found = run.evaluate(*options.data, device=device_of(options.device))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    if run.caution:
        print(run.caution, file=sys.stderr)
    print(json.dumps(asdict(found), indent=2) if options.json else found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
