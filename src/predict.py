"""python -m src.predict: what the network of a retrain says of images.

    python -m src.predict runs/retrain/RUN photo.png folder/        image files, and folders of them
    python -m src.predict runs/retrain/RUN signals.npy              any other inputs, an array (N, ...)
    python -m src.predict runs/retrain/RUN photo.png --json         all probabilities, for a program

No data set is read: the run's checkpoint holds the weights, the normalisation and the names of the classes. Images are
turned upright, made grey or RGB, resized and cut to the size of the run's images.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from src.runs.opened import OpenedRun
from src.runs.using import answer, parser_of


def main(argv: Sequence[str] | None = None) -> int:
    """Print the predictions; return 0, or 2 if the run or an input cannot be used."""
    parser = parser_of(
        "predict",
        "Print what a retrained network says of images.",
        json="print JSON, with the probability of every class",
    )
    parser.add_argument("inputs", metavar="IMAGE", nargs="+", help="an image file, a folder of images, or an .npy file")

    def predicted(run: OpenedRun, options: argparse.Namespace) -> str:
        found = run.predict(options.inputs, device=options.device)
        return json.dumps(found.rows(), indent=2) if options.json else found.table()

    return answer(parser, argv, predicted)


if __name__ == "__main__":
    sys.exit(main())
