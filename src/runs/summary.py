"""What a command says before and after its run: what runs, what came out of it, and what to type next."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from src.architectures.architecture import Architecture
from src.callbacks.guard import guard_of
from src.callbacks.progress import validation_name
from src.callbacks.ranking import TAU, TAU_TOP
from src.common import processes
from src.common.intervals import interval_of_share
from src.common.terminal import duration, percent, say, table
from src.fast.forms import name_of_form
from src.methods.decision import NARROW, leads
from src.runs import alphas
from src.runs.claim import Run
from src.runs.folder import RunFolder
from src.runs.following import other_seeds_command, retrain_command
from src.runs.record import Record
from src.runs.sweeps import is_job
from src.spaces.cnn.genotypes import KINDS, Genotype, is_cell_architecture
from src.training.module import TrainingModule
from src.training.search import SearchModule
from src.training.select import SelectModule

_SHOWN_ANSWERS = 12
_LINE = 78  # characters of a line in a table
_SAMPLES = {"weights": "for the weights", "arch": "for the alphas", "train": "to train on"}


class Opening(L.Callback):
    """Says what runs and where when the training begins, and counts the samples of the test.

    Args:
        folder: of the run.
        record: of the run.

    Attributes:
        tested: how many samples were tested, on all processes.
    """

    def __init__(self, folder: Path, record: Record) -> None:
        self.folder = folder
        self.record = record
        self.tested = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the lines."""
        assert isinstance(pl_module, TrainingModule)
        if processes.rank() == 0:
            validated = validation_name(trainer, pl_module) if sum(trainer.num_val_batches) else None
            guard = guard_of(trainer)
            say(headline(self.record))
            say(
                table(
                    [
                        ("folder", str(self.folder)),
                        ("device", device(self.record.machine, trainer.precision, graphs=pl_module.graphs is not None)),
                        ("network", network(self.record, pl_module)),
                        (
                            "data",
                            f"{samples(self.record.data)}{level(pl_module)}\n{validation(self.record.data, validated)}",
                        ),
                        ("training", self._steps(trainer)),
                        *([] if guard is None else [("guard", guard.in_words(trainer.max_epochs or 1))]),
                    ]
                )
            )

    def _steps(self, trainer: L.Trainer) -> str:
        assert trainer.max_epochs is not None
        text = steps(trainer, trainer.max_epochs)
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready or trainer.current_epoch:
            text += f"; resumed in epoch {trainer.current_epoch}"
        return text

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Count the samples of a batch (inputs, targets)."""
        self.tested += len(batch[1])

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add up the counts of the processes."""
        self.tested = sum(processes.gather(self.tested))


def headline(record: Record) -> str:
    """Return in one line what a run is."""
    parts = [str(record.data.get("name", "data"))]
    if record.method is not None:
        parts.append(record.method)
    if record.order is not None:
        parts.append(f"order {record.order}")
    return f"{record.kind}: {', '.join([*parts, f'seed {record.seed}'])}"


def device(machine: Mapping[str, Any], precision: str, *, graphs: bool) -> str:
    """Return what a run computes on."""
    several = "" if machine["processes"] == 1 else f", {machine['processes']} processes"
    count = machine["threads"]
    name = re.sub("^cpu ", "CPU ", machine["device"])
    recorded = ", CUDA graphs" if graphs else ""
    return f"{name}{several}, {count} thread{'s' if count > 1 else ''}, precision {precision}{recorded}"


def network(record: Record, module: TrainingModule) -> str:
    """Return the sizes of a network."""
    text = f"{record.params:,} weights, {record.macs:,} multiply-adds a sample"
    form = name_of_form(module.net.space if isinstance(module, SearchModule) else module.net)
    text += "" if form is None else f"; {form} form"
    if isinstance(module, SearchModule):
        rows = module.alphas().values()
        text += f"\n{sum(row.numel() for row in rows):,} alphas in {len(rows)} choices"
    return text


def samples(data: Mapping[str, Any]) -> str:
    """Return the sizes of the data that is trained on, as a run's record has them."""
    shape = "x".join(map(str, data.get("input_shape", ())))
    counts = {name.removesuffix("_samples"): n for name, n in data.items() if name.endswith("_samples")}
    counts.pop("validation", 0)
    return "; ".join(
        [shape, ", ".join(f"{count:,} samples {_SAMPLES.get(name, name)}" for name, count in counts.items())]
    )


def level(module: TrainingModule) -> str:
    """Return what to add to the sizes of the halves, where both train weights and alphas."""
    if isinstance(module, SearchModule) and module.method.one_level:
        return "\none level: both halves train the weights and the alphas"
    return ""


def validation(data: Mapping[str, Any], name: str | None) -> str:
    """Return what the validation is of: what is called `name`, or nothing."""
    if name is None:
        return "no validation"
    own = data.get("validation_samples")
    return f"validation on {f'{own:,} samples of its own' if own else f'the {name}'}"


def steps(trainer: L.Trainer, epochs: int) -> str:
    """Return how long a training is, in epochs and steps; the trainer has begun it."""
    several = f" (0 to {epochs - 1})" if epochs > 1 else " (0)"
    batches = int(trainer.num_training_batches)
    return f"{epochs:,} epoch{'s' if epochs > 1 else ''}{several} of {batches:,} step{'s' if batches > 1 else ''}"


# After a search.


def say_found(run: Run, module: SearchModule, report: Path) -> None:
    """Say what a search found, how clear the decision was, and how to retrain it."""
    architecture = run.record.architecture
    assert architecture is not None
    _say_result(
        f"found in {duration(run.checkpoints.seconds)}",
        run,
        report,
        *_returned(run.record),
        *_of_table(run.record),
        ("decision", verdict(module, architecture)),
        *([] if run.record.remark is None else [("edges", wrapped(run.record.remark))]),
    )


def say_drawn(run: Run, report: Path) -> None:
    """Say which architecture a search without training has taken, and how to retrain it."""
    _say_result(f"{headline(run.record)}; nothing was trained", run, report, *_of_table(run.record))


def say_selected(run: Run, module: SelectModule, report: Path) -> None:
    """Say what a selection has come to, how clear its decisions were, and how to retrain it."""
    decisions = f"{len(module.selection.decisions)}, with their scores in {RunFolder(run.folder).decisions}"
    _say_result(f"selected in {duration(run.checkpoints.seconds)}", run, report, ("decisions", decisions))


def _say_result(what: str, run: Run, report: Path, *rows: tuple[str, str]) -> None:
    """Say what a run has come to: its architecture, rows of its own, where the files are, and how to retrain it."""
    architecture = run.record.architecture
    assert architecture is not None
    say(f"{what}:")
    say(short_form(architecture))
    files = [("genotype", str(RunFolder(run.folder).genotype)), ("report", str(report))]
    say(table([*rows, *files, ("next", retrain_command(run.record.command, run.folder))]))


def _returned(record: Record) -> list[tuple[str, str]]:
    """Return a row that says which epoch the architecture is of, if the guard has chosen an earlier one."""
    if record.architecture_epoch is None or record.architecture_epoch == record.epochs - 1:
        return []
    return [("epoch", f"{record.architecture_epoch}; the guard ended the search after epoch {record.epochs - 1}")]


def _of_table(record: Record) -> list[tuple[str, str]]:
    """Return rows that say how good the architecture is, and how well the supernet ranks, if a table has it."""
    values, rows = record.metrics, []
    if "table_accuracy" in values:
        on = f" on {record.table}" if record.table else ""
        regret = f"regret {percent(values['table_regret'], 2)}" if values["table_regret"] else "the best"
        beaten = f"better than {percent(values['table_percentile'])} of the space"
        rows.append(("table", f"{percent(values['table_accuracy'], 2)} once trained{on}, {beaten}, {regret}"))
    if TAU in values:
        top = f", {values[TAU_TOP]:.2f} among the best fifth" if TAU_TOP in values else ""
        rows.append(("ranking", f"Kendall's tau {values[TAU]:.2f} of the supernet and the table{top}"))
    return rows


def short_form(architecture: Architecture) -> str:
    """Return an architecture in a few lines: the nodes of cells, each operation with the state that it is applied to."""
    if not is_cell_architecture(architecture):
        answers = [
            (key, answer if isinstance(answer, str) else " + ".join(answer))
            for key, answer in architecture.choices.items()
            if answer is not None
        ]
        more = [("...", f"and {len(answers) - _SHOWN_ANSWERS} more")] if len(answers) > _SHOWN_ANSWERS else []
        return table([*answers[:_SHOWN_ANSWERS], *more])
    genotype = Genotype.from_architecture(architecture)
    cells = {
        kind: [
            " + ".join(f"{edge.operation}({edge.state})" for edge in node) or "-" for node in getattr(genotype, kind)
        ]
        for kind in KINDS
    }
    rows = [("node", "normal cell", "reduction cell")]
    rows += [(str(state), *pair) for state, pair in enumerate(zip(*cells.values(), strict=True), start=2)]
    width = max(len(normal) for _, normal, _ in rows)
    return "\n".join(f"  {node:>4}  {normal:<{width}}  {reduction}" for node, normal, reduction in rows)


def verdict(module: SearchModule, architecture: Architecture) -> str:
    """Return in words how clear the decision for an architecture was."""
    ahead = leads(module.net.by_name(module.mixing_weights()), architecture, module.net.spec)
    if not ahead:
        return "there was nothing to choose"
    what = "kept edges" if is_cell_architecture(architecture) else "choices"
    close = sum(lead < NARROW for lead in ahead.values())
    optimizer = alphas.RUNS if module.method.alpha_optimizer is None else alphas.METHODS
    if not close:
        return f"clear: all {len(ahead)} {what} lead by {percent(min(ahead.values()))} or more"
    return (
        f"{close} of {len(ahead)} {what} lead by less than {percent(NARROW, 0)}: search longer (epochs),\n"
        f"or with a larger learning rate of the alphas ({optimizer}.lr)"
    )


def wrapped(text: str) -> str:
    """Return a sentence in lines that stand in a table."""
    return "\n".join(textwrap.wrap(text, _LINE))


# After a retrain.


def say_tested(run: Run, metric: str, samples: int, report: Path) -> None:
    """Say what a test on so many samples gave, with its interval, and how to go on."""
    value = run.record.metrics[f"test_{metric}"]
    text = f"{value:.4g}"
    if metric == "accuracy" and samples:
        low, high = interval_of_share(value, samples)
        text = f"{percent(value, 2)} of {samples:,} samples (95 % interval: {percent(low, 2)} to {percent(high, 2)})"
    rows = [(f"test {metric}", text), ("time", duration(run.checkpoints.seconds)), ("report", str(report))]
    if not is_job():
        command = other_seeds_command(run.record.kind, run.record.command, run.record.seed)
        rows.append(("next", f"{command}\nfor the mean over several seeds, which is what compares"))
    say(table(rows))
