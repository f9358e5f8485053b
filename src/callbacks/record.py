"""The files that a run writes after each epoch: metrics, mixing weights, architectures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from torch import Tensor

from src.common import processes
from src.common.files import write_whole
from src.methods.decision import flips, skips, strongest
from src.runs.folder import RunFolder
from src.training.search import SearchModule


class EpochTable(L.Callback):
    """A CSV file that is rewritten whole after each epoch. Checkpoints hold its rows too, so that a resume continues it."""

    columns: ClassVar[tuple[str, ...]]
    """The first ones of the file, which it has without any rows, too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def append(self, *rows: dict[str, Any]) -> None:
        """Add rows, or none. Further columns are in the order in which they appeared. The first process writes the file."""
        self.rows.extend(rows)
        if processes.rank() > 0:
            return
        columns = list(dict.fromkeys([*self.columns, *(name for row in self.rows for name in row)]))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.path, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the rows of a checkpoint."""
        self.rows = list(state_dict["rows"])


class EpochMetrics(EpochTable):
    """Writes `metrics.csv`, one row per epoch. It holds no times, so two runs with one seed write the same file."""

    columns = ("epoch",)

    def __init__(self, folder: Path) -> None:
        super().__init__(RunFolder(folder).metrics)
        self._lr = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the learning rate of the weights: at an epoch's end automatic optimisation has the next epoch's."""
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the epoch's row, with the learning rate that the epoch was trained with."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        metrics = dict(sorted(metrics.items(), key=lambda item: not item[0].startswith("train")))
        self.append({"epoch": trainer.current_epoch, **metrics, "lr": self._lr})

    def after(self, epoch: int | None = None) -> dict[str, float]:
        """Return the metrics of an epoch, by default the last one; none before the first."""
        row = next((row for row in reversed(self.rows) if epoch is None or row["epoch"] == epoch), {})
        return {name: value for name, value in row.items() if name not in ("epoch", "lr")}


class EpochAlphas(EpochTable):
    """Writes `alphas.csv` (the mixing weights after each epoch) and logs how decided they are, and what for.

    `argmax_flips` is for how many choices the heaviest candidate is another than an epoch before.
    `skip_count` is how many choices of the architecture are answered by a skip connection, in a space that has any.
    `alpha_entropy` is the mean over keys of the entropy of the mixing weights, as shares of their sum, in nats:
    log(candidates) where they are equal, 0 where one candidate has all the weight.
    """

    columns = ("epoch", "key", "candidate", "weight")

    def __init__(self, folder: Path) -> None:
        super().__init__(RunFolder(folder).alphas)
        self._strongest: dict[str, str] = {}  # candidate of each choice after the epoch before

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far, and the heaviest candidates that the next epoch's are compared with."""
        return super().state_dict() | {"strongest": self._strongest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with those of a checkpoint."""
        super().load_state_dict(state_dict)
        self._strongest = dict(state_dict.get("strongest", {}))  # which older runs have elsewhere

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the heaviest candidates that a search begins with."""
        assert isinstance(pl_module, SearchModule)
        if not self._strongest:
            self._strongest = strongest(pl_module.net.by_name(pl_module.mixing_weights()))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the epoch's rows, one for each candidate of each key."""
        assert isinstance(pl_module, SearchModule)
        weights = pl_module.mixing_weights()
        pl_module.log("alpha_entropy", alpha_entropy(weights), logger=False)
        by_name = pl_module.net.by_name(weights)
        now = strongest(by_name)
        pl_module.log("argmax_flips", float(flips(self._strongest, now)), logger=False)
        self._strongest = now
        count = skips(pl_module.derive(), by_name)
        if count is not None:
            pl_module.log("skip_count", float(count), logger=False)
        self.append(
            *(
                {"epoch": trainer.current_epoch, "key": key, "candidate": name, "weight": weight}
                for key, names in pl_module.net.candidates().items()
                for name, weight in zip(names, weights[key].tolist(), strict=True)
            ),
        )


def alpha_entropy(weights: Mapping[str, Tensor]) -> float:
    """Return the mean over keys of the entropy of mixing weights, as shares of their sum, in nats."""
    shares = [row / row.sum().clamp_min(1e-30) for row in weights.values()]  # sigmoids do not sum to 1
    entropies = [float(-(row * row.clamp_min(1e-30).log()).sum()) for row in shares]
    return sum(entropies) / len(entropies)


class EpochArchitectures(L.Callback):
    """Writes `checkpoints/epoch_{N}.json`, the architecture derived after epoch N, counted from 0."""

    def __init__(self, folder: Path) -> None:
        self.folder = RunFolder(folder)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Derive and write this epoch's architecture."""
        assert isinstance(pl_module, SearchModule)
        if processes.rank() == 0:
            pl_module.derive().write(self.folder.epoch(trainer.current_epoch))
