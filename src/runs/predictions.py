"""What a network says of some inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from src.common.errors import ConfigError
from src.common.terminal import columns, percent

_SHOWN = 20  # rows in a notebook
_COLUMNS = 6  # values of one input in the table


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """The outputs of a network, with the names of the inputs. Prints as a table.

    Attributes:
        names: of the inputs: paths, or places in an array.
        outputs: (N, outputs): logits for a classification.
        classes: their names; None for anything but a classification.
    """

    names: list[str]
    outputs: Tensor
    classes: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.outputs)

    @property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, (N, classes).

        Raises:
            ConfigError: the run is no classification.
        """
        self._needs_classes()
        return self.outputs.softmax(dim=1)

    @property
    def labels(self) -> list[str]:
        """The most probable class of each input.

        Raises:
            ConfigError: the run is no classification.
        """
        classes = self._needs_classes()
        return [classes[index] for index in self.outputs.argmax(dim=1).tolist()]

    def rows(self) -> list[dict[str, Any]]:
        """Return one dictionary for each input, in primitives.

        Of a classification: `input`, `class`, `probability`, and `probabilities` by class; else `input` and `outputs`.
        """
        if self.classes is None:
            return [
                {"input": name, "outputs": values}
                for name, values in zip(self.names, self.outputs.flatten(1).tolist(), strict=True)
            ]
        probabilities = self.probabilities.tolist()
        return [
            {
                "input": name,
                "class": label,
                "probability": max(row),
                "probabilities": dict(zip(self.classes, row, strict=True)),
            }
            for name, label, row in zip(self.names, self.labels, probabilities, strict=True)
        ]

    def table(self, most: int | None = None) -> str:
        """Return a table of the first `most` inputs, or of all."""
        rows = self.rows()[:most]
        if self.classes is None:
            values = [[f"{value:.5g}" for value in row["outputs"][:_COLUMNS]] for row in rows]
            width = max((len(row) for row in values), default=0)
            left = self.outputs.flatten(1).shape[1] - width
            header = ["input", *(f"output {index}" if width > 1 else "output" for index in range(width))]
            cells = [[row["input"], *numbers] for row, numbers in zip(rows, values, strict=True)]
            notes = [f"{left} more outputs: --json prints all"] if left > 0 else []
        else:
            header, notes = ["input", "class", "probability"], []
            cells = [[row["input"], row["class"], percent(row["probability"])] for row in rows]
        if len(rows) < len(self):
            notes.append(f"... and {len(self) - len(rows)} more")
        text = columns([header, *cells], left=1 if self.classes is None else 2)
        return "\n".join([text, *notes])

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return self.table(_SHOWN)

    def _needs_classes(self) -> tuple[str, ...]:
        if self.classes is None:
            raise ConfigError("the run is no classification: it has outputs, and neither classes nor probabilities")
        return self.classes
