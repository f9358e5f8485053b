"""python -m src.tabulate: all architectures of a space of four, trained by the command, stopped, continued and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import read_json, refused, run
from torch import Tensor, nn

from src.architectures.architecture import Architecture
from src.benchmarks.tabulated import read_table
from src.runs.folder import RunFolder
from src.spaces.choices import InputChoice, LayerChoice


class Four(nn.Module):
    """Two choices in a row: 4 architectures, of which those with one `twice` compute the same, so 3 differ."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(LayerChoice({"skip": nn.Identity(), "twice": Twice()}, key=key) for key in "ab"))
        self.head = nn.Linear(input_shape[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).flatten(1))

    @staticmethod
    def canonical(architecture: Architecture) -> Architecture:
        a, b = sorted(map(str, architecture.choices.values()))
        return Architecture({"a": a, "b": b})


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class WithInputs(Four):
    """As `Four`, with a choice of inputs, which a table cannot hold."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(input_shape, num_classes)
        self.read = InputChoice(["first", "second"], n_chosen=1, key="read")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the folder of a table that was made, the command, and what it said."""
    folder = tmp_path_factory.mktemp("made") / "table"
    short = "retrain=[epochs=1, data.batch_size=50, trainer=cpu, trainer.limit_train_batches=2]"
    command = ["space=test_tabulate.Four", "seeds=2", "jobs=1", f"folder={folder}", short]
    return folder, command, run("tabulate", *command)


def test_every_architecture_that_differs_is_trained_with_every_seed(made: Any) -> None:
    folder, _, done = made
    assert done.code == 0, done.err
    runs = {path.parent.relative_to(folder).as_posix(): read_json(path) for path in folder.rglob("result.json")}
    assert set(runs) == {f"runs/{row}/seed={seed}" for row in (0, 1, 3) for seed in (0, 1)}
    for name, result in runs.items():
        row, seed = name.split("/")[1:]
        assert result["status"] == "ok"
        assert f"seed={result['seed']}" == seed
        assert (result["data"]["train_samples"], result["data"]["validation_samples"]) == (2000, 2000)
        assert result["genotype"] == read_json(folder / "architectures" / f"{row}.json")


def test_the_table_holds_what_the_runs_reached(made: Any) -> None:
    folder, _, _ = made
    table = read_table(folder / "table.json")
    raw = read_json(folder / "table.json")
    assert raw["command"].startswith("python -m src.tabulate space=test_tabulate.Four seeds=2")
    assert raw["data"]["name"] == "mnist_1d"
    assert raw["choices"] == {"a": ["skip", "twice"], "b": ["skip", "twice"]}
    assert table.runs.shape == (4, 2)
    assert table.tests is not None
    assert table.seconds is not None
    mixed = [Architecture({"a": a, "b": b}) for a, b in (("skip", "twice"), ("twice", "skip"))]
    assert table.standing(mixed[0]) == table.standing(mixed[1])
    for seed in (0, 1):
        row = table.row(Four.canonical(mixed[0]))
        result = read_json(RunFolder(folder / "runs" / str(row) / f"seed={seed}").result)
        assert table.runs[row, seed] == pytest.approx(result["metrics"]["val_accuracy"], abs=1e-6)
        assert table.tests[row, seed] == pytest.approx(result["metrics"]["test_accuracy"], abs=1e-6)
        assert table.seconds[row, seed] == result["seconds"]


def test_it_says_what_it_does_and_how_far_the_table_can_be_trusted(made: Any) -> None:
    folder, _, done = made
    lines = [line.split(maxsplit=1) for line in done.out.splitlines()]
    said = {words[0]: words[-1] for words in lines}
    assert done.out.startswith("table: test_tabulate.Four on mnist_1d\n")
    assert said["architectures"] == "4, of which 3 differ"
    assert said["noise"].endswith("% standard deviation, of one training")
    assert said["table"] == str(folder / "table.json")


def test_the_same_command_trains_what_is_missing(made: Any) -> None:
    folder, command, _ = made
    before = (folder / "table.json").read_bytes()
    (folder / "table.json").unlink()
    again = run("tabulate", *command, "plan=true")
    assert again.code == 0, again.err
    assert "no trainings (6 finished before), 2 of each architecture" in again.out
    assert not (folder / "table.json").exists()
    assert run("tabulate", *command).code == 0
    assert (folder / "table.json").read_bytes() == before
    line = refused(run("tabulate", *[text.replace("batch_size=50", "batch_size=40") for text in command]))
    assert "holds another run" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["space=nas_bench_201", "data=digits"], "at_most must be 15625 or more, the number of architectures of nas_bench_201, got 1000"),
        (["data=examples.diabetes.diabetes", "space=test_tabulate.Four"], "data must be a classification, since a table holds accuracies"),
        (["space=smal_1d"], "unknown space option 'smal_1d', did you mean 'small_1d'?"),
        (["seeds=1"], "seeds must be 2 or more, got 1"),
        (["validation_fraction=null"], "validation_fraction must be above 0, since mnist_1d has no validation split of its own, got None"),
        (["retrain=[seed=3]"], "retrain cannot set seed, which is set for each training"),
        (["space=test_tabulate.WithInputs"], "space must hold LayerChoices alone for a table, but its read is an InputChoice"),
        (["sedes=2"], "did you mean 'seeds'?"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    line = refused(run("tabulate", f"folder={tmp_path / 'table'}", *arguments))
    assert message in line
    assert not (tmp_path / "table").exists()
