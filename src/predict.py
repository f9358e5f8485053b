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

from src.common.errors import ConfigError
from src.runs.devices import DEVICE, device_of
from src.runs.launch import MISTAKE
from src.runs.opened import load_run
from src.runs.targets import look_here


def main(argv: Sequence[str] | None = None) -> int:
    """Print the predictions; return 0, or 2 if the run or an input cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m src.predict", description="Print what a retrained network says of images.", allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a retrain")
    parser.add_argument("inputs", metavar="IMAGE", nargs="+", help="an image file, a folder of images, or an .npy file")
    parser.add_argument("--json", action="store_true", help="print JSON, with the probability of every class")
    parser.add_argument("--device", metavar="DEVICE", help=DEVICE)
    options = parser.parse_args(argv)
    look_here()
    try:
        run = load_run(options.run)
        predictions = run.predict(options.inputs, device=device_of(options.device))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    if run.caution:
        print(run.caution, file=sys.stderr)
    print(json.dumps(predictions.rows(), indent=2) if options.json else predictions.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
