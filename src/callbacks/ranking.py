"""How well a supernet ranks architectures: their scores with its shared weights, against a table of what they reach."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor

from src.benchmarks.table import Table
from src.bilevel.unroll import Tensors
from src.callbacks.measured import Measurements, batch_statistics, one_hot
from src.callbacks.record import EpochTable
from src.common import processes
from src.common.errors import ConfigError, must_be
from src.common.seeding import derive_seed
from src.runs.folder import RunFolder
from src.training.search import SearchModule

TAU, TAU_TOP = "ranking_tau", "ranking_tau_top"
_TOP = 0.2  # the share of architectures, the best by the table, of which the second one is


class Ranking(EpochTable):
    """Logs `ranking_tau` and `ranking_tau_top`: Kendall's tau-b of supernet and table, and that of the best fifth.

    An architecture is scored as one-hot mixing weights, with the shared weights of the supernet, on the first validation
    samples, which are of the alphas' half unless the data have a validation split. They are one batch, and BatchNorms take
    its statistics, since the running ones are of the mixture. An auxiliary skip is left out; with partial channels, the channels
    that the candidates do not see bypass them, as in the search. The architectures are drawn once for a run, from its seed.

    They are compared by their accuracy, and where that is equal by their loss. A loss alone would also compare how sure
    the networks are, which depends on the scale that the shared weights happen to give them. Other metrics than
    the accuracy have no direction here, so that the loss alone decides.

    The best fifth is that of the table: over all architectures, tau mostly says that the supernet can tell apart what
    trains and what does not. A tau that is not defined, since all are equal, is left out.

    `ranking.csv` has a row for each architecture: its row in the table, what the supernet scored, the table's accuracy.

    The run is the same run, bit by bit: everything is computed beside it. A search that a guard ends early has a ranking
    only of the epochs that `every_n_epochs` names.

    Args:
        architectures: how many are drawn from the table, without replacement; where it has no more, all are taken.
        every_n_epochs: epochs between two rankings, besides that of the last epoch; None for the last epoch only.
        samples: of the validation, in each process.
    """

    columns: ClassVar[tuple[str, ...]] = ("epoch", "row")

    def __init__(self, architectures: int = 200, every_n_epochs: int | None = None, samples: int = 512) -> None:
        super().__init__(Path())
        if architectures < 2:
            raise must_be("architectures", "2 or more", architectures)
        if every_n_epochs is not None and every_n_epochs < 1:
            raise must_be("every_n_epochs", "1 or more, or null", every_n_epochs)
        if samples < 2:
            raise must_be("samples", "2 or more", samples)
        self.architectures = architectures
        self.every = every_n_epochs
        self.samples = samples
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._sums: Tensor | None = None

    def check(self, module: SearchModule, trainer: L.Trainer) -> None:
        """Raise a `ConfigError` if the architectures of a search cannot be ranked."""
        table_of(module)
        if len(module.net.edges):
            raise ConfigError(
                "a ranking needs a method without edge weights: an architecture has none, so that its score would be of "
                "weights that the supernet was not trained with"
            )
        if trainer.limit_val_batches == 0:
            raise ConfigError("a ranking needs validation batches, there are none (limit_val_batches)")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Note the run's folder."""
        self.path = RunFolder(trainer.default_root_dir).ranking

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keep a batch, if it is one of the first of an epoch that has a ranking."""
        if batch_idx == 0:
            self._batches = []
        kept = sum(len(targets) for _, targets in self._batches)
        if self._is_due(trainer) and not trainer.sanity_checking and kept < self.samples:
            inputs, targets = batch
            self._batches.append((inputs[: self.samples - kept], targets[: self.samples - kept]))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the architectures."""
        assert isinstance(pl_module, SearchModule)
        if not self._batches:
            return
        inputs, targets = (torch.cat(parts) for parts in zip(*self._batches, strict=True))
        self._batches = []
        with Measurements.of(trainer).beside("ranking", pl_module, None):
            like, candidates = pl_module.mixing_weights(), pl_module.net.candidates()
            table = table_of(pl_module)
            drawn = (table.architecture(row) for row in drawn_rows(table, self.architectures, pl_module.seed))
            rows = [one_hot(architecture.choices, candidates, like) for architecture in drawn]
            self._sums = summed_scores(pl_module, inputs, targets, rows)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare with the table, log and write."""
        assert isinstance(pl_module, SearchModule)
        if self._sums is None:
            return
        sums = processes.total(self._sums).cpu().numpy()
        self._sums = None
        table, task = table_of(pl_module), pl_module.task
        rows = drawn_rows(table, self.architectures, pl_module.seed)
        scores, losses = (sums[:, :2] / sums[:, 2:]).T
        reached = table.accuracies[rows]
        for name, value in agreement(scores if task.metric == "accuracy" else None, losses, reached).items():
            pl_module.log(name, value, logger=False)
        columns = ("row", f"supernet_{task.metric}", "supernet_loss", "table_accuracy")
        values = zip(rows, scores.tolist(), losses.tolist(), reached.tolist(), strict=True)
        self.append(*({"epoch": trainer.current_epoch, **dict(zip(columns, row, strict=True))} for row in values))

    def _is_due(self, trainer: L.Trainer) -> bool:
        epoch = trainer.current_epoch
        return epoch + 1 == trainer.max_epochs or (self.every is not None and (epoch + 1) % self.every == 0)


def rankings_of(trainer: L.Trainer) -> list[Ranking]:
    """Return the rankings among a trainer's callbacks."""
    callbacks: list[L.Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return [callback for callback in callbacks if isinstance(callback, Ranking)]


def table_of(module: SearchModule) -> Table:
    """Return the table of the space that is searched.

    Raises:
        ConfigError: it has none.
    """
    table = getattr(module.net.space, "table", None)
    if table is None:
        raise ConfigError(
            f"a ranking needs a space with a table of what its architectures reach, such as NasBench201 with "
            f"table=cifar10; {type(module.net.space).__name__} has none here"
        )
    return table


def drawn_rows(table: Table, count: int, seed: int) -> list[int]:
    """Return the rows of `count` architectures of a table, drawn uniformly by a seed; of all, if there are no more."""
    rows = np.flatnonzero(np.isfinite(table.accuracies)).tolist()
    return rows if len(rows) <= count else sorted(random.Random(derive_seed("ranking", seed)).sample(rows, count))


def summed_scores(module: SearchModule, inputs: Tensor, targets: Tensor, rows: Sequence[Tensors]) -> Tensor:
    """Return for each of some one-hot mixing weights: samples times score, samples times loss, samples; (rows, 3).

    Of each choice, the chosen candidate alone runs. No running statistics move.
    """
    task = module.task
    found = []
    with torch.no_grad(), batch_statistics(module):
        for row in rows:
            outputs = module.outputs_with(inputs, row, one_path=True)
            found.append(torch.stack([task.score(outputs, targets).float(), task.loss(outputs, targets).float()]))
    values = torch.stack(found)
    return torch.cat([values, values.new_ones(len(values), 1)], dim=1) * len(targets)


def agreement(scores: Any, losses: Any, reached: Any) -> Mapping[str, float]:
    """Return Kendall's tau-b between what a supernet says of architectures and what they reach, by its name.

    Args:
        scores: of the supernet, (architectures,), higher is better; None to compare by the losses alone.
        losses: of the supernet, (architectures,).
        reached: accuracies, (architectures,).

    Returns:
        `ranking_tau` and `ranking_tau_top`, without those that are not defined.
    """
    losses = np.nan_to_num(losses, nan=np.inf)
    # Equal counts may differ in the last digits of their shares.
    columns = [-losses] if scores is None else [np.round(scores, 6), -losses]
    _, places = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    places, reached = places.reshape(-1), np.asarray(reached)
    best = reached >= np.sort(reached)[-math.ceil(_TOP * len(reached))]
    groups = {TAU: np.ones(len(reached), dtype=bool), TAU_TOP: best}
    found: dict[str, Any] = {
        name: kendalltau(places[own], reached[own]) for name, own in groups.items() if own.sum() > 1
    }
    return {name: float(result.statistic) for name, result in found.items() if math.isfinite(result.statistic)}
