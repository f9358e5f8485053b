"""A run that has ended, opened for use: what it measured, what it found, and its network.

from src import load_run

run = load_run("runs/retrain/RUN")
run.metrics["val_accuracy"].plot()
run.predict("photo.png").labels
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from src.architectures.architecture import Architecture
from src.common.errors import ConfigError, shorten
from src.data.images import MODES, decode, walk
from src.runs.folder import RunFolder
from src.runs.predictions import Predictions
from src.runs.resume import noun_of
from src.runs.saved import SavedRun, find_runs, is_run, read_run
from src.runs.trained import Facts, TrainedNetwork, as_raw, trained_network

if TYPE_CHECKING:
    import pandas as pd

    from src.data.samples import Samples
    from src.reports.drawn import Drawing
    from src.runs.evaluated import Evaluation

Given = str | Path | Sequence[str | Path] | np.ndarray | Tensor


def load_run(path: str | Path) -> OpenedRun:
    """Open the run in a folder, of a search or a retrain, finished or not.

    Args:
        path: the folder, or a checkpoint in it.

    Raises:
        ConfigError: it is not the folder of a run.
    """
    files = RunFolder.of(Path(path).expanduser())
    if is_run(files.path) or files.config.is_file():
        return OpenedRun(files)
    if not files.path.exists():
        raise ConfigError(f"there is no run {path}: no such folder")
    needed = f"{path} must be the folder of a run, which holds {files.config.name}"
    inner = list(find_runs(files.path))
    raise ConfigError(f"{needed}; there are {len(inner)} runs in it, such as {inner[0]}" if inner else needed)


def load_runs(*paths: str | Path) -> list[OpenedRun]:
    """Open all runs in some folders, at any depth, in the order of their names.

    Raises:
        ConfigError: a folder holds no run.
    """
    runs: list[OpenedRun] = []
    for path in paths:
        found = [OpenedRun(RunFolder(folder)) for folder in find_runs(Path(path).expanduser())]
        runs += found or [load_run(path)]
    return runs


class OpenedRun:
    """A run's folder as an object; `load_run` returns it. A file is read when it is first needed.

    What is built from it (`network`, `predict`) is what its config.yaml names, so use only runs that you trust.

    Attributes:
        folder: of the run.
        kind: `search` or `retrain`.
        status: how the run ended: `ok`, `failed`, `interrupted`, or `unfinished`.
    """

    def __init__(self, files: RunFolder) -> None:
        self.folder = files.path
        self._files = files

    @property
    def kind(self) -> str:  # noqa: D102 (the class says it)
        return self._saved.kind

    @property
    def status(self) -> str:  # noqa: D102
        return self._saved.status

    @property
    def config(self) -> dict[str, Any]:
        """All settings."""
        return self._saved.config

    @property
    def result(self) -> dict[str, Any]:
        """The record of the run, as result.json has it; empty while the run has not ended."""
        return self._saved.result

    @property
    def architecture(self) -> Architecture:
        """What a search found, or a retrain trained; of a search that has not ended, the architecture of its last epoch.

        Raises:
            ConfigError: there is none yet.
        """
        saved = self._saved
        latest = saved.history[max(saved.history)] if saved.history else {}
        answers = saved.genotype or latest
        if not answers:
            raise self._lacks(self._files.genotype, "the run has not come to an architecture")
        return Architecture(answers)

    @property
    def metrics(self) -> pd.DataFrame:
        """The metrics of each epoch: index `epoch`, a column for each.

        Raises:
            ConfigError: no epoch has ended, or pandas is not installed.
        """
        columns = dict(self._saved.metrics)
        if not columns:
            raise self._lacks(self._files.metrics, "no epoch has ended")
        epochs = [int(epoch) for epoch in columns.pop("epoch")]
        pandas = _pandas()
        return pandas.DataFrame(columns, index=pandas.Index(epochs, name="epoch"))

    @property
    def alphas(self) -> pd.DataFrame:
        """The mixing weights after each epoch of a search: index `epoch`, columns (choice, candidate).

        `run.alphas["normal_n2_p0"]` is one edge, a column for each candidate; each row adds up to 1 for a softmax.

        Raises:
            ConfigError: the run is a retrain, no epoch has ended, or pandas is not installed.
        """
        if self.kind == "retrain":
            raise ConfigError(
                f"{self.folder} is a {self.kind}, which has no alphas; those of its search are in its run"
            )
        saved = self._saved
        if not saved.alphas:
            raise self._lacks(self._files.alphas, "no epoch has ended")
        pandas = _pandas()
        columns = {(key, name): line for key, lines in saved.alphas.items() for name, line in lines.items()}
        frame = pandas.DataFrame(columns, index=pandas.Index(saved.alpha_epochs, name="epoch"))
        frame.columns.names = ["choice", "candidate"]
        return frame

    @property
    def summary(self) -> dict[str, Any]:
        """What the run was and what came out, in one flat dictionary: a row for a table of runs."""
        saved = self._saved
        data = saved.result.get("data")
        shown: dict[str, Any] = {
            "run": str(self.folder),
            "kind": self.kind,
            "data": data.get("name") if isinstance(data, dict) else None,
            "method": saved.method,
            "order": saved.result.get("order"),
            "seed": saved.seed,
            "status": self.status,
            "epochs": saved.epochs,
        }
        if saved.score is not None:
            shown[f"{saved.score.split}_{saved.score.metric}"] = saved.score.value
        return shown | {name: saved.number(name) for name in ("params", "macs", "seconds")}

    def network(self) -> TrainedNetwork:
        """Return the run's network with its weights, in evaluation mode, on the CPU; a new one at each call.

        It maps raw inputs (N, ...), images as uint8 or floating from 0 to 1, to outputs: its normalisation comes first.
        The network of a search is the space with its choices fixed to the architecture, with the search's weights. They
        were trained for all candidates together, so this network is for analysis: retrain it for use.

        Raises:
            ConfigError: a file is missing or damaged.
        """
        return trained_network(self._files, self.kind)[0]

    def predict(self, inputs: Given, *, batch_size: int = 256, device: str | torch.device = "cpu") -> Predictions:
        """Return what the network of a retrain says of some inputs.

        Args:
            inputs: paths of image files, of folders of images, or of .npy files, one or several; or an array, raw inputs
                (N, ...) or one (...). Image files are turned upright, made grey or RGB as the run's images are, resized to
                cover their size, and cut to it.
            batch_size: how many inputs run at a time.
            device: on which.

        Raises:
            ConfigError: the run is a search; or inputs cannot be read, or have another shape or type than the run's.
        """
        self.check_usable()
        network, facts = self._network
        network.to(device)
        names: list[str] = []
        outputs: list[Tensor] = []
        with torch.inference_mode():
            for some, batch in _batches(inputs, facts, batch_size):
                names += some
                outputs.append(network(batch.to(device)).cpu())
        return Predictions(names, torch.cat(outputs), facts.classes)

    def evaluate(
        self,
        *overrides: str,
        samples: Samples | None = None,
        batch_size: int = 256,
        device: str | torch.device = "cpu",
    ) -> Evaluation:
        """Return what the network of a retrain reaches on a test split: its own, or that of other data.

        Args:
            overrides: of the run's data settings, as the commands take them: `data=cifar10`, `data.source.root=PATH`.
            samples: what to measure on instead of a test split.
            batch_size: how many samples run at a time.
            device: on which.

        Raises:
            ConfigError: the run is a search; or there are no such data, or they do not fit the run.
        """
        from src.runs.evaluated import evaluate  # noqa: PLC0415 (it needs this class)

        return evaluate(self, overrides, samples=samples, batch_size=batch_size, device=device)

    def draw(self) -> Drawing:
        """Return a drawing of the architecture, which a notebook shows: cells, or a table of any other space's answers."""
        from src.reports.drawn import draw  # noqa: PLC0415 (matplotlib takes a second)

        return draw(self.architecture)

    @property
    def facts(self) -> Facts:
        """What the run knows of its data: shape and type of the inputs, classes, normalisation.

        Raises:
            ConfigError: as `network`.
        """
        return self._network[1]

    def __repr__(self) -> str:
        score = "" if self._saved.score is None else f", {self._saved.score}"
        return f"<{self.kind} {self.folder}: {self.status}, {self._saved.epochs} epochs{score}>"

    @property
    def caution(self) -> str | None:
        """What to know before its network is used, in a line: that the training has not ended; None for nothing."""
        if self.status == "ok":
            return None
        planned = "" if self._saved.planned_epochs is None else f" of {self._saved.planned_epochs}"
        return f"{self.folder} is {self.status} after {self._saved.epochs}{planned} epochs; its network is what it was then"

    def check_usable(self) -> None:
        """Raise a `ConfigError` if the run is a search, whose weights are of no use for predictions."""
        if self.kind != "retrain":
            raise ConfigError(
                f"{self.folder} is a {noun_of(self.kind)}, whose weights were trained for all candidates together; retrain what it found "
                f"(python -m src.retrain genotype={self.folder}) and use that run"
            )

    @cached_property
    def _saved(self) -> SavedRun:
        return read_run(self.folder)

    @cached_property
    def _network(self) -> tuple[TrainedNetwork, Facts]:
        return trained_network(self._files, self.kind)

    def _lacks(self, path: Path, otherwise: str) -> ConfigError:
        """Return the error for a file without content: that it cannot be read, or is not there."""
        problems = [problem for problem in self._saved.problems if str(path) in problem]
        return ConfigError(problems[0] if problems else f"{self.folder} holds no {path.name}: {otherwise}")


def _batches(given: Given, facts: Facts, size: int) -> Iterator[tuple[list[str], Tensor]]:
    """Yield the names and the raw inputs (N, ...) of at most `size` inputs at a time."""
    if size < 1:
        raise ConfigError(f"batch_size must be 1 or more, got {size}")
    if isinstance(given, np.ndarray | Tensor):
        yield from _cut(given, "", facts, size)
        return
    paths = [given] if isinstance(given, str | Path) else list(given)
    if not all(isinstance(path, str | Path) for path in paths):
        kinds = {type(path).__name__ for path in paths if not isinstance(path, str | Path)}
        raise ConfigError(
            f"inputs must be paths, an array or a tensor, got a list that holds {', '.join(sorted(kinds))}"
        )
    if not paths:
        raise ConfigError("inputs must be one or more, got none")
    images: list[Path] = []
    for path in _files(map(Path, paths)):
        if path.suffix.lower() == ".npy":
            yield from _read_images(images, facts, size)
            images = []
            yield from _cut(_array(path), str(path), facts, size)
        else:
            images.append(path)
    yield from _read_images(images, facts, size)


def _files(paths: Iterator[Path]) -> Iterator[Path]:
    """Yield the files that paths name, and for a folder the images in it."""
    for path in paths:
        if path.is_dir():
            found, _ = walk(path)
            if not found:
                raise ConfigError(f"{path} holds no images")
            yield from found
        elif path.exists():
            yield path
        else:
            raise ConfigError(f"there is no file {path}")


def _read_images(paths: Sequence[Path], facts: Facts, size: int) -> Iterator[tuple[list[str], Tensor]]:
    if paths and not (facts.are_pixels and facts.input_shape[0] in MODES):
        kind = facts.input_type or "what its data module makes of them"
        raise ConfigError(
            f"{paths[0]} is no input of this run, whose inputs have the shape {facts.input_shape} and are {kind}; give an "
            f".npy file of inputs (N, {', '.join(map(str, facts.input_shape))})"
        )
    for start in range(0, len(paths), size):
        some = paths[start : start + size]
        channels, height, width = facts.input_shape
        yield [str(path) for path in some], torch.stack([decode(p, MODES[channels], (height, width)) for p in some])


def _cut(given: np.ndarray | Tensor, name: str, facts: Facts, size: int) -> Iterator[tuple[list[str], Tensor]]:
    try:
        whole = torch.as_tensor(given)
    except TypeError as error:  # an array of objects
        raise ConfigError(f"inputs must be numbers ({shorten(error, 100)})") from None
    try:
        batch = as_raw(whole, facts)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}" if name else str(error)) from None
    for start in range(0, len(batch), size):
        some = batch[start : start + size]
        yield [f"{name}[{index}]" for index in range(start, start + len(some))], some


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except Exception as error:  # NumPy raises several kinds for what is not its own
        raise ConfigError(f"{path} is not a readable .npy file ({shorten(error, 100)})") from None


def _pandas() -> Any:
    try:
        import pandas  # noqa: PLC0415 (an extra, and slow to import)
    except ModuleNotFoundError:
        raise ConfigError("tables of a run need pandas, which is not installed: pip install pandas") from None
    return pandas
