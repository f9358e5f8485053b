"""Pictures of what a search decides, for the loggers that take them, so that a dashboard shows how it changes."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from src.callbacks.scalars import last_step
from src.common import processes
from src.common.errors import must_be
from src.reports.cells import cell_figure
from src.reports.drawing import to_array
from src.spaces.cnn.genotypes import KINDS, Genotype, edge_of, is_cell_architecture
from src.training.search import SearchModule

Taker = TensorBoardLogger | WandbLogger
"""A logger that takes pictures."""


class EpochPictures(L.Callback):
    """Draws and logs something every `every_n_epochs` epochs; nothing is drawn if no logger takes it."""

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise must_be("every_n_epochs", "1 or more", every_n_epochs)
        self.every_n_epochs = every_n_epochs

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw and log, on the first process."""
        assert isinstance(pl_module, SearchModule)
        takers = [logger for logger in trainer.loggers if isinstance(logger, Taker)]
        if takers and processes.rank() == 0 and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self.draw(trainer, pl_module, takers)

    def draw(self, trainer: L.Trainer, module: SearchModule, takers: Sequence[Taker]) -> None:
        """Draw the state after the present epoch, and log it."""
        raise NotImplementedError


def log_picture(takers: Sequence[Taker], name: str, picture: np.ndarray, step: int) -> None:
    """Give a picture, uint8 (height, width, 3), to loggers."""
    for logger in takers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step=step)
        else:
            logger.experiment.add_image(name, picture, step, dataformats="HWC")


class CellPictures(EpochPictures):
    """Logs the derived cells as images every `every_n_epochs` epochs, in pictures of one size, to the loggers that take images."""

    def draw(self, trainer: L.Trainer, module: SearchModule, takers: Sequence[Taker]) -> None:
        """Draw and log the cells; nothing in a space without cells."""
        architecture = module.derive()
        if not is_cell_architecture(architecture):
            return
        genotype = Genotype.from_architecture(architecture)
        among = [name for key, names in module.net.candidates().items() if edge_of(key) for name in names]
        for kind in KINDS:
            title = f"{kind} cell after epoch {trainer.current_epoch}"
            picture = to_array(cell_figure(getattr(genotype, kind), title, among=among, steady=True))
            log_picture(takers, f"cells/{kind}", picture, last_step(trainer))
