"""`python -m src.bench`."""

import sys

from src.bench.commandline import main

if __name__ == "__main__":
    sys.exit(main())
