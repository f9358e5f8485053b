"""What the architecture of each epoch reaches when it is trained, where a table has it: no search step looks at this."""

from __future__ import annotations

import lightning as L

from src.benchmarks.table import Standing, Table
from src.training.search import SearchModule


class Lookup(L.Callback):
    """Logs `table_accuracy`, `table_percentile` and `table_regret` of the architecture derived after each epoch.

    Args:
        table: of the space that is searched.
    """

    def __init__(self, table: Table) -> None:
        self.table = table

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look the architecture up."""
        assert isinstance(pl_module, SearchModule)
        for name, value in metrics_of(self.table.standing(pl_module.derive())).items():
            pl_module.log(name, value, logger=False)


def metrics_of(standing: Standing) -> dict[str, float]:
    """Return the numbers of a standing by the names that files and loggers have them under."""
    return {f"table_{name}": value for name, value in standing._asdict().items()}
