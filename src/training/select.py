"""Selection by perturbation: a trained supernet whose choices are decided one by one, and which is tuned in between."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import RunningStage
from torch import nn

from src.architectures.architecture import Architecture
from src.common import processes
from src.common.errors import ConfigError, must_be
from src.methods.method import Method
from src.methods.relaxations import Tensors
from src.methods.schedules import Progress
from src.methods.selection import CRITERIA, Selecting, Selection, check_method
from src.spaces.choices import spec_of
from src.training.search import SearchModule

_PART = "selection"  # of a checkpoint


def tuning_epochs(space: nn.Module, tune_epochs: int) -> int:
    """Return how many epochs a selection tunes: `tune_epochs` for each round but the first, and not less than once."""
    return tune_epochs * max(1, Selection(spec_of(space), {}).rounds - 1)


class SelectModule(SearchModule):
    """A search that has trained, and whose architecture is selected: see src/methods/selection.py.

    Between two rounds the supernet is tuned: a search step is that of the method, with the mixing weights of what is
    decided. The first round is before the first epoch, the others are after each `tune_epochs` epochs.

    A score is measured on all batches of the validation, with BatchNorms that take the statistics of the batch, as in the
    official code: the running ones are of the network with the candidate that is left out.

    Args:
        space: that was searched.
        method: of the search.
        criterion: `accuracy` or `loss`.
        tune_epochs: between two rounds.
        train_alphas: whether the tuning trains the alphas of what is undecided, too.
        progress: of the search at its end, for the method's schedules.
        seed: of the run.
        others: of `SearchModule`.

    Raises:
        ConfigError: an argument is out of its range, or a selection of this method means nothing.
    """

    method: Selecting  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        space: nn.Module,
        *,
        method: Method,
        criterion: str = "accuracy",
        tune_epochs: int = 10,
        train_alphas: bool = True,
        progress: Progress,
        seed: int = 0,
        **others: Any,
    ) -> None:
        check_method(method)
        if criterion not in CRITERIA:
            raise must_be("criterion", " or ".join(CRITERIA), criterion)
        if tune_epochs < 1:
            raise must_be("tune_epochs", "1 or more", tune_epochs)
        if criterion == "accuracy" and others["task"].metric != "accuracy":
            raise must_be("criterion", f"loss for a task that is judged by {others['task'].metric}", criterion)
        self.selection = Selection(spec_of(space), {}, seed=seed, higher_is_better=criterion == "accuracy")
        super().__init__(space, method=Selecting.of(method, self.selection), seed=seed, **others)
        self.selection.names = self.net.candidates()
        self.criterion = criterion
        self.tune_epochs = tune_epochs
        self.train_alphas = train_alphas
        self._progress = progress

    @property
    def progress(self) -> Progress:
        """How far the search was: at its end."""
        return self._progress

    @property
    def is_frozen(self) -> bool:
        """Whether the tuning trains the weights only."""
        return not self.train_alphas

    def derive(self) -> Architecture:
        """Return the architecture of the decisions so far; the largest mixing weights answer what is undecided."""
        return self.selection.architecture(self.net.by_name(self.mixing_weights()))

    def on_train_start(self) -> None:
        """Make the first round, unless a checkpoint has it."""
        super().on_train_start()
        if self.selection.rounds_done == 0:
            self._decide()

    def on_train_epoch_end(self) -> None:
        """End the epoch, and make the next round if the tuning for it is done."""
        super().on_train_epoch_end()
        tuned = self.current_epoch + 1
        if tuned % self.tune_epochs == 0 and self.selection.rounds_done < self.selection.rounds:
            self._decide()

    def _decide(self) -> None:
        rows = self.method.undecided({name: alpha.detach() for name, alpha in self.alphas().items()})
        stage = self.trainer.state.stage
        self.trainer.state.stage = RunningStage.VALIDATING  # the data are not augmented
        try:
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                self.selection.decide(rows, self.score)
        finally:
            self.trainer.state.stage = stage

    def score(self, rows: Tensors) -> float:
        """Return the accuracy or the loss on the validation, over all processes, for some mixing weights.

        Raises:
            ConfigError: there is no validation.
        """
        accuracy = None if self.criterion == "loss" else self.task.metrics()[self.criterion].to(self.device)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for inputs, targets in self._validation():
            self.seed_pass()
            outputs = self.outputs_with(inputs, rows)
            if accuracy is not None:  # it counts, so that equal accuracies are equal
                accuracy.update(outputs, targets)
            else:
                sums += torch.stack(
                    [self.task.loss(outputs, targets).double() * len(targets), sums.new_tensor(len(targets))]
                )
        if accuracy is not None:
            return float(accuracy.compute())
        total, samples = processes.total(sums).tolist()
        return total / samples

    def _validation(self) -> Any:
        """Yield (inputs, targets) of the batches that the trainer would validate on."""
        data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(data, L.LightningDataModule)
        loader = data.val_dataloader()
        limit = self.trainer.limit_val_batches
        most = limit if isinstance(limit, int) else int(len(loader) * limit)
        if not min(len(loader), most):
            raise ConfigError("a selection needs validation batches, there are none (trainer.limit_val_batches)")
        for number, batch in enumerate(loader):
            if number == most:
                return
            yield self.trainer.strategy.batch_to_device(self.trainer.precision_plugin.convert_input(batch), self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the decisions."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_PART] = self.selection.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the decisions."""
        super().on_load_checkpoint(checkpoint)
        self.selection.load_state_dict(checkpoint[_PART])
