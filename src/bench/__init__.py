"""python -m src.bench: this code against the paper's as published, side by side in one run.

    python -m src.bench                                   everything, at the paper's sizes
    python -m src.bench search --channels 8 --pairs 3     one part, smaller
    python -m src.bench --json bench.json                 the same figures for a program

`python -m src.bench --help` lists the parts. What the columns mean is in src/bench/measuring.py, what the forms are in
src/bench/forms.py.
"""

from src.bench.commandline import main
from src.bench.forms import (
    FORMS,
    OurSearch,
    Sizes,
    alpha_error,
    digit_batches,
    noise,
    retrain_step,
    search_form,
    search_step,
)
from src.bench.measuring import compare, in_turn, operator_calls, peak_memory
from src.bench.published import PublishedSearch
from src.bilevel.hypergradient import of_order

__all__ = [
    "FORMS",
    "OurSearch",
    "PublishedSearch",
    "Sizes",
    "alpha_error",
    "compare",
    "digit_batches",
    "in_turn",
    "main",
    "noise",
    "of_order",
    "operator_calls",
    "peak_memory",
    "retrain_step",
    "search_form",
    "search_step",
]
