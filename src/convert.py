"""python -m src.convert: print a genotype in the format of another program.

    python -m src.convert runs/search/RUN --to nni > epoch_49.json      a run's genotype, for NNI 2.1
    python -m src.convert DARTS_V2 --to genotype                        the text that the official code prints
    python -m src.convert search.log --to json > genotype.json          any format that a retrain reads, as this code's

Nothing else is printed to the standard output. An operation that the other program does not have is refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from src.common.errors import ConfigError, unknown
from src.common.terminal import refuse
from src.runs.folder import genotype_in
from src.spaces.cnn.formats import FORMATS, load_cells
from src.spaces.cnn.operations import import_operations


def main(argv: Sequence[str] | None = None) -> int:
    """Print the genotype; return 0, or 2 if it cannot be read or written."""
    writers = {format.name: format.write for format in FORMATS if format.write is not None}
    parser = argparse.ArgumentParser(
        prog="python -m src.convert", description="Print a genotype in another format.", allow_abbrev=False
    )
    parser.add_argument("genotype", metavar="GENOTYPE", help="a run's folder, a file, a published name, or the text")
    parser.add_argument("--to", required=True, metavar="FORMAT", help=f"the format to print: {', '.join(writers)}")
    parser.add_argument(
        "--operations", nargs="+", default=[], metavar="MODULE", help="modules that register operations of your own"
    )
    options = parser.parse_args(argv)
    try:
        if options.to not in writers:
            raise unknown("format in --to:", options.to, writers)
        import_operations(options.operations)
        architecture = load_cells(genotype_in(options.genotype))
        text = writers[options.to](architecture)
    except ConfigError as error:
        return refuse(error)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
