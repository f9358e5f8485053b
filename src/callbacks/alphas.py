"""Pictures of the mixing weights and the text of the genotype, for the loggers that take them."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence

import lightning as L
from lightning.pytorch.loggers import WandbLogger

from src.architectures.architecture import Architecture
from src.callbacks.pictures import EpochPictures, Taker, log_picture
from src.callbacks.record import EpochAlphas
from src.callbacks.scalars import last_step
from src.reports.drawing import to_array
from src.reports.heat import heat_figure
from src.reports.names import alike, edge_name, words
from src.spaces.cnn.genotypes import Genotype, is_cell_architecture, split_keys
from src.training.search import SearchModule

_MOST_ROWS = 10_000  # Weights & Biases draws no more of a chart's table
_CHARTS = 20  # of a run; each holds the whole history, so the last one is what counts


class AlphaPictures(EpochPictures):
    """Logs, every `every_n_epochs` epochs, what the mixing weights are and what they would be derived to.

    - `mixing_weights/{cell}`: a map, a row for each edge and a column for each candidate; a slider goes through the epochs.
    - `mixing_weights/{cell}_curves`, in Weights & Biases: one panel with a line for each candidate of each edge.
    - `genotype`: the architecture as text.

    In a space without cells, choices among the same candidates share a picture, `choices`, `choices_2` and so on.
    """

    def draw(self, trainer: L.Trainer, module: SearchModule, takers: Sequence[Taker]) -> None:
        """Draw and log."""
        epoch, step = trainer.current_epoch, last_step(trainer)
        architecture, candidates = module.derive(), module.net.candidates()
        weights = module.net.by_name(module.mixing_weights())
        text = architecture_text(architecture)
        epochs = trainer.max_epochs or 1
        charted = epoch + 1 == epochs or (epoch + 1) % math.ceil(epochs / _CHARTS) == 0
        for name, keys in groups(candidates).items():
            title = f"Mixing weights, {name}, after epoch {epoch}"
            picture = to_array(heat_figure(keys, weights, architecture.choices, title))
            log_picture(takers, f"mixing_weights/{name}", picture, step)
            for logger in takers:
                if charted and isinstance(logger, WandbLogger):
                    self._log_curves(trainer, logger, name, keys, step)
        for logger in takers:
            if isinstance(logger, WandbLogger):
                import wandb  # noqa: PLC0415 (slow, and only here)

                shown = wandb.Html(
                    f'<pre style="white-space: pre-wrap">{html.escape(text, quote=False)}</pre>', inject=False
                )
                logger.log_metrics({"genotype_text": shown}, step=step)  # pyright: ignore[reportArgumentType]
            else:
                logger.experiment.add_text("genotype", text, step)

    @staticmethod
    def _log_curves(trainer: L.Trainer, logger: WandbLogger, name: str, keys: Sequence[str], step: int) -> None:
        """Log one chart of all lines of a group; epochs are thinned out where they would be too many rows."""
        import wandb  # noqa: PLC0415 (slow, and only here)

        (record,) = (callback for callback in trainer.callbacks if isinstance(callback, EpochAlphas))  # pyright: ignore[reportAttributeAccessIssue]
        lines: dict[tuple[str, str], dict[int, float]] = {}
        for row in record.rows:
            if row["key"] in keys:
                lines.setdefault((row["key"], row["candidate"]), {})[row["epoch"]] = row["weight"]
        epochs = sorted(next(iter(lines.values())))
        every = -(-len(epochs) * len(lines) // _MOST_ROWS)
        epochs = epochs[::-1][::every][::-1]
        chart = wandb.plot.line_series(
            xs=epochs,
            ys=[[line[epoch] for epoch in epochs] for line in lines.values()],
            keys=[f"{edge_name(key)}: {words(candidate)}" for key, candidate in lines],
            title=f"Mixing weights, {name}",
            xname="epoch",
        )
        logger.log_metrics({f"mixing_weights/{name}_curves": chart}, step=step)  # pyright: ignore[reportArgumentType]


def groups(candidates: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """Return which keys share a picture, by its name: the edges of a cell, and other choices with the same candidates."""
    cells, others = split_keys(candidates)
    found = {kind: [edges[place] for place in sorted(edges)] for kind, edges in cells.items()}
    for number, keys in enumerate(alike(others, candidates), start=1):
        found["choices" if number == 1 else f"choices_{number}"] = keys
    return found


def architecture_text(architecture: Architecture) -> str:
    """Return an architecture as one reads it: the paper's cells as the official code prints them, any other as JSON."""
    if is_cell_architecture(architecture):
        return str(Genotype.from_architecture(architecture))
    return json.dumps(architecture.to_plain())
