"""Rules that pick the epoch whose architecture is taken, from what a search has measured and without a table.

A rule is a pure function of the rows of metrics.csv, in the order of their epochs. It may look at the whole search, or
only back, as one that stops it has to: `looks_back` says which. `RULES` has them by name, with words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from src.callbacks.rules import Reading, Rise
from src.common.errors import must_be

Rows = Sequence[Mapping[str, float]]
EIGENVALUES = ("alpha_eigenvalue", "guard/eigenvalue")  # the columns that may have it, the first that does is taken


@dataclass(frozen=True)
class StoppingRule:
    """A rule that picks an epoch.

    Attributes:
        words: what it takes, as the end of "the architecture of ...".
        pick: returns the epoch, or None where the rows lack what it looks at.
        looks_back: whether a search that used it could have ended before its last epoch.
        source: who proposed it, or nothing.
    """

    words: str
    pick: Callable[[Rows], int | None]
    looks_back: bool = False
    source: str = ""

    def __call__(self, rows: Rows) -> int | None:
        """Return the epoch whose architecture is taken."""
        return self.pick(rows)


def last(rows: Rows) -> int | None:
    """Return the last epoch; None without any."""
    return int(rows[-1]["epoch"]) if rows else None


def lowest(column: str, rows: Rows) -> int | None:
    """Return the first epoch with the lowest value of a column; None where no row has it."""
    readings = readings_of(rows, column)
    return min(readings, key=lambda reading: reading.value).epoch if readings else None


def highest(column: str, rows: Rows) -> int | None:
    """Return the first epoch with the highest value of a column; None where no row has it."""
    readings = readings_of(rows, column)
    return max(readings, key=lambda reading: reading.value).epoch if readings else None


def before_rise(
    rows: Rows, *, rule: Rise | None = None, earliest: int = 10, columns: Sequence[str] = EIGENVALUES
) -> int | None:
    """Return the epoch that a rise of the top eigenvalue returns to, or the last where it does not rise.

    What the guard does with `callbacks=robust` (src/callbacks/guard.py): the early stopping of RobustDARTS.

    Args:
        rows: of metrics.csv, with the eigenvalues in those epochs that measured one.
        rule: when the eigenvalue has risen; None is that of the paper.
        earliest: the first epoch that may be returned to.
        columns: that may have the eigenvalue.
    """
    rule = rule or Rise()
    readings = next((found for column in columns if (found := readings_of(rows, column))), [])
    if not readings:
        return None
    for count in range(1, len(readings) + 1):
        verdict = rule.judge(readings[:count], earliest)
        if verdict is not None and verdict.broken and verdict.epoch is not None:
            return verdict.epoch
    return last(rows)


def before_skips(rows: Rows, *, most: int = 2) -> int | None:
    """Return the epoch before the first whose architecture has more than `most` skip connections, or the last.

    Criterion 1 of DARTS+: the search stops when there are two or more skip connections in one normal cell, and takes the
    architecture before. `skip_count` is of the whole architecture, so what is too many depends on the space.
    Where the first epoch has too many, it is taken.
    """
    readings = readings_of(rows, "skip_count")
    if not readings:
        return None
    for place, reading in enumerate(readings):
        if reading.value > most:
            return readings[max(0, place - 1)].epoch
    return last(rows)


def settled(rows: Rows, *, epochs: int = 10) -> int | None:
    """Return the first epoch at whose end no heaviest candidate has changed for some epochs, or the last.

    Criterion 1* of DARTS+, which asks for it where the ranking of the alphas has been stable for 10 epochs; here the
    heaviest candidate of each choice has.
    """
    if epochs < 1:
        raise must_be("epochs", "1 or more", epochs)
    readings = readings_of(rows, "argmax_flips")
    if not readings:
        return None
    stable = 0
    for reading in readings:
        stable = 0 if reading.value else stable + 1
        if stable == epochs:
            return reading.epoch
    return last(rows)


def before_overfitting(rows: Rows, *, patience: int = 5) -> int | None:
    """Return the epoch with the lowest validation loss before it has not fallen for some epochs.

    Early stopping as for any training (Prechelt 1998, "Early stopping - but when?"): unlike the lowest loss of all epochs,
    a search could have ended there.
    """
    if patience < 1:
        raise must_be("patience", "1 or more", patience)
    best, since = None, 0
    for place, reading in enumerate(readings_of(rows, "val_loss")):
        if best is None or reading.value < best.value:
            best, since = reading, place
        elif place - since >= patience:
            break
    return None if best is None else best.epoch


def readings_of(rows: Rows, column: str) -> list[Reading]:
    """Return the values of a column that are there and finite, with their epochs."""
    return [Reading(int(row["epoch"]), row[column]) for row in rows if column in row and math.isfinite(row[column])]


RULES: Mapping[str, StoppingRule] = {
    "last": StoppingRule("the last epoch", last),
    "lowest_val_loss": StoppingRule("the epoch with the lowest validation loss", partial(lowest, "val_loss")),
    "highest_val_accuracy": StoppingRule(
        "the epoch with the highest validation accuracy of the supernet", partial(highest, "val_accuracy")
    ),
    "val_loss_patience": StoppingRule(
        "the epoch after which the validation loss did not fall for 5 epochs",
        before_overfitting,
        looks_back=True,
        source="Prechelt 1998",
    ),
    "eigenvalue": StoppingRule(
        "the epoch before the top eigenvalue of the alphas' Hessian rose to 1.3 times itself",
        before_rise,
        looks_back=True,
        source="RobustDARTS, arXiv 1909.09656",
    ),
    "skips": StoppingRule(
        "the epoch before the architecture had more than 2 skip connections",
        before_skips,
        looks_back=True,
        source="DARTS+, arXiv 1909.06035",
    ),
    "settled": StoppingRule(
        "the first epoch after 10 in which no heaviest candidate changed",
        settled,
        looks_back=True,
        source="DARTS+, arXiv 1909.06035",
    ),
    "lowest_entropy": StoppingRule(
        "the epoch with the lowest entropy of the mixing weights", partial(lowest, "alpha_entropy")
    ),
}
