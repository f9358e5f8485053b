"""Pictures of the cells in the loggers, so that a dashboard shows how they change."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from src.callbacks.scalars import last_step
from src.common.errors import must_be
from src.reports.cells import cell_figure, to_array
from src.spaces.cnn.genotypes import KINDS, Genotype, edge_of, is_cell_architecture
from src.training.search import SearchModule


class CellPictures(L.Callback):
    """Logs the derived cells as images every `every_n_epochs` epochs, in pictures of one size, to the loggers that take images."""

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise must_be("every_n_epochs", "1 or more", every_n_epochs)
        self.every_n_epochs = every_n_epochs

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw and log the cells; nothing is drawn if no logger takes images."""
        assert isinstance(pl_module, SearchModule)
        epoch, step = trainer.current_epoch, last_step(trainer)
        takers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger | WandbLogger)]
        architecture = pl_module.derive()
        if not takers or (epoch + 1) % self.every_n_epochs or not is_cell_architecture(architecture):
            return
        genotype = Genotype.from_architecture(architecture)
        among = [name for key, names in pl_module.net.candidates().items() if edge_of(key) for name in names]
        for kind in KINDS:
            title = f"{kind} cell after epoch {epoch}"
            picture = to_array(cell_figure(getattr(genotype, kind), title, among=among, steady=True))
            for logger in takers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(f"cells/{kind}", [picture], step=step)
                else:
                    logger.experiment.add_image(f"cells/{kind}", picture, step, dataformats="HWC")
