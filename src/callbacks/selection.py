"""The files of a selection: its decisions with their scores, and the architecture after each epoch."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from src.common import processes
from src.common.files import write_whole
from src.methods.selection import Decision
from src.runs.folder import RunFolder
from src.training.select import SelectModule

COLUMNS = ("round", "choice", "pass", "without", "score", "answer")


class SelectionFiles(Checkpoint):
    """Writes `decisions.csv` and `checkpoints/epoch_{N}.json` after each epoch.

    A row of `decisions.csv` is the score of the supernet without one option of a choice. `answer` says what became of the
    option, in the row that decided it: `kept` for an operation, `dropped` for an input. Lightning calls a `Checkpoint`
    after the module, which decides at the end of an epoch.
    """

    def __init__(self, folder: Path) -> None:
        self.files = RunFolder(folder)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the files."""
        assert isinstance(pl_module, SelectModule)
        if processes.rank() == 0:
            pl_module.derive().write(self.files.epoch(trainer.current_epoch))
            write_whole(self.files.decisions, decisions_csv(pl_module.selection.decisions))


def decisions_csv(decisions: list[Decision]) -> str:
    """Return the text of `decisions.csv`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for decision in decisions:
        for place, scores in enumerate(decision.scores):
            for name, score in scores.items():
                answer = "kept" if decision.kept == (name,) and not decision.dropped else ""
                if decision.dropped[place : place + 1] == (name,):
                    answer = "dropped"
                writer.writerow([decision.round, decision.key, place, name, score, answer])
    return text.getvalue()
