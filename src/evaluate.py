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

from src.runs.opened import OpenedRun
from src.runs.using import answer, parser_of


def main(argv: Sequence[str] | None = None) -> int:
    """Print the metrics; return 0, or 2 if the run or the data cannot be used."""
    parser = parser_of("evaluate", "Measure a retrained network on a test split.", json="print JSON")
    parser.add_argument("data", metavar="data=...", nargs="*", help="settings of the data (default: the run's own)")

    def measured(run: OpenedRun, options: argparse.Namespace) -> str:
        found = run.evaluate(*options.data, device=options.device)
        return json.dumps(asdict(found), indent=2) if options.json else str(found)

    return answer(parser, argv, measured)


if __name__ == "__main__":
    sys.exit(main())
