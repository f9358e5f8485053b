"""How a supernet ranks architectures, in searches through the command and against sums by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from callbacks.small_search import SHAPE, search_module
from commands import SEARCH, assert_same, read_csv, read_json, refused, run, state_of
from torch import nn

from src.benchmarks.nas_bench_201 import nas_bench_201
from src.callbacks.measured import one_hot
from src.callbacks.ranking import Ranking, agreement, drawn_rows, summed_scores
from src.common.errors import ConfigError
from src.spaces.nas_bench_201 import NasBench201

BED = ["space=nas_bench_201", "space.channels=2", "space.cells=1", "data=digits", "data.batch_size=32", "trainer=cpu"]
BED += ["trainer.limit_train_batches=1", "trainer.limit_val_batches=3", "diagnostics=none", "logger=none"]
RANKING = ["callbacks=ranking", "callbacks.pictures=null", "callbacks.alphas=null", "callbacks.progress=null"]
RANKING += ["callbacks.ranking.architectures=12", "callbacks.ranking.samples=40"]


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search with a ranking after its second and its last, third epoch, resumed in between."""
    folder = tmp_path_factory.mktemp("ranked") / "run"
    options = [*BED, *RANKING, "callbacks.ranking.every_n_epochs=2", f"folder={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.search.write_report", lambda folder: folder / "report.html")
        done = run("search", *options, "epochs=2")
        assert done.code == 0, done.err
        done = run("search", f"resume={folder}", "epochs=3")
        assert done.code == 0, done.err
        assert "\n  ranking   Kendall's tau " in done.out
    return folder


def test_metrics_have_it_in_the_epochs_that_were_ranked(ranked: Path) -> None:
    rows = read_csv(ranked / "metrics.csv")
    assert [bool(row["ranking_tau"]) for row in rows] == [False, True, True]
    metrics = read_json(ranked / "result.json")["metrics"]
    for name in ("ranking_tau", "ranking_tau_top"):
        assert float(rows[2][name]) == pytest.approx(metrics[name])
        assert -1 <= metrics[name] <= 1


def test_the_file_of_scores_is_what_tau_is_computed_from(ranked: Path) -> None:
    table, rows = nas_bench_201(), read_csv(ranked / "ranking.csv")
    assert [int(row["epoch"]) for row in rows] == [1] * 12 + [2] * 12
    assert [int(row["row"]) for row in rows[:12]] == [int(row["row"]) for row in rows[12:]] == drawn_rows(table, 12, 0)
    assert all(float(row["table_accuracy"]) == table.accuracies[int(row["row"])] for row in rows)
    shares = [40 * float(row["supernet_accuracy"]) for row in rows]
    assert shares == pytest.approx([round(share) for share in shares], abs=1e-4), "of 40 samples"
    columns = np.array(
        [[float(row[f"supernet_{name}"]) for name in ("accuracy", "loss")] for row in rows[12:]], dtype=float
    ).T
    found = agreement(columns[0], columns[1], [float(row["table_accuracy"]) for row in rows[12:]])
    metrics = read_json(ranked / "result.json")["metrics"]
    assert {name: metrics[name] for name in found} == pytest.approx(found)


@pytest.mark.parametrize("method", ["darts_minus", "gdas"])
def test_the_search_is_the_same_with_and_without_it(method: str, tmp_path: Path) -> None:
    """With an auxiliary skip, and with a method that samples paths."""
    states = []
    for name, options in (("with", RANKING), ("without", ["callbacks=none"])):
        folder = tmp_path / name
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("src.search.write_report", lambda folder: folder / "report.html")
            done = run("search", *BED, *options, f"method={method}", "epochs=1", f"folder={folder}")
        assert done.code == 0, done.err
        states.append(state_of(folder))
    one, other = states
    assert one["callbacks"].pop("Ranking")["rows"]
    assert len(one["files"].pop("ranking.csv").splitlines()) == 13
    for name in ("ranking_tau", "ranking_tau_top"):
        one["metrics"].pop(name)
    for state in states:
        state["callbacks"].pop("EpochMetrics")
        state["files"].pop("metrics.csv")  # `metrics` has its only row
    assert_same(one, other)


def searched_space() -> Any:
    torch.manual_seed(0)
    return search_module(NasBench201(input_shape=SHAPE, num_classes=3, channels=2, cells=1))


def test_an_architecture_is_scored_as_what_it_keeps_of_the_supernet() -> None:
    """One path through the chosen candidates is the whole sum with one-hot mixing weights, up to rounding."""
    module, table = searched_space(), nas_bench_201()
    inputs, targets = torch.randn(16, *SHAPE), torch.arange(16) % 3
    architectures = [table.architecture(row) for row in (0, 7812, 9999, 15624)]
    rows = [one_hot(a.choices, module.net.candidates(), module.mixing_weights()) for a in architectures]
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = summed_scores(module, inputs, targets, rows)
    assert_same(dict(module.state_dict()), before)
    for row, (score, loss, samples) in zip(rows, found.tolist(), strict=True):
        with torch.no_grad():
            outputs = module.outputs_with(inputs, row, one_path=False)  # in training mode, so by batch statistics
        assert samples == 16
        assert loss == pytest.approx(16 * float(nn.functional.cross_entropy(outputs, targets)), rel=1e-5)
        assert score == int((outputs.argmax(1) == targets).sum())
    assert len({round(loss, 3) for _, loss, _ in found.tolist()}) == 4


def test_equal_accuracies_are_compared_by_their_losses() -> None:
    reached = [0.1, 0.2, 0.3, 0.4, 0.5]
    same = [0.5] * 5
    assert agreement(same, [5.0, 4.0, 3.0, 2.0, 1.0], reached)["ranking_tau"] == pytest.approx(1)
    assert agreement([0.1, 0.2, 0.3, 0.4, 0.5], [1.0, 2.0, 3.0, 4.0, 5.0], reached)["ranking_tau"] == pytest.approx(1)
    assert agreement(None, [1.0, 2.0, 3.0, 4.0, 5.0], reached)["ranking_tau"] == pytest.approx(-1)
    diverged = [float("nan"), 4.0, 3.0, 2.0, 1.0]
    assert agreement(same, diverged, reached)["ranking_tau"] == pytest.approx(1), "a loss of nan is the worst"
    # Four of the six pairs agree, one does not, one is tied in the supernet: 3 / sqrt(5 * 6).
    tied = agreement([0.1, 0.2, 0.2, 0.15], [1.0] * 4, [0.1, 0.2, 0.3, 0.25])
    assert tied["ranking_tau"] == pytest.approx(3 / np.sqrt(5 * 6))


def test_the_best_fifth_is_that_of_the_table() -> None:
    """The supernet ranks the ten architectures well, but the best two the wrong way round."""
    reached = np.arange(10) / 10
    scores = np.array([0, 1, 2, 3, 4, 5, 6, 7, 9, 8]) / 10
    found = agreement(scores, np.ones(10), reached)
    assert found == pytest.approx({"ranking_tau": 43 / 45, "ranking_tau_top": -1})
    assert "ranking_tau_top" not in agreement(np.minimum(scores, 0.7), np.ones(10), reached), "not defined"


def test_architectures_are_drawn_by_the_seed_and_all_taken_where_there_are_few() -> None:
    table = nas_bench_201()
    drawn = drawn_rows(table, 200, 3)
    assert drawn == drawn_rows(table, 200, 3) != drawn_rows(table, 200, 4)
    assert len(set(drawn)) == 200
    assert np.mean(drawn) == pytest.approx(len(table.accuracies) / 2, rel=0.1)
    assert drawn_rows(table, 15625, 3) == list(range(15625))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*SEARCH, "callbacks=ranking"], "a ranking needs a space with a table of what its architectures reach"),
        ([*BED, *RANKING, "space.table=null"], "NasBench201 has none here"),
        ([*BED, *RANKING, "trainer.limit_val_batches=0"], "a ranking needs validation batches"),
    ],
)  # fmt: skip
def test_what_a_ranking_refuses(overrides: list[str], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert message in refused(run("search", *overrides, f"folder={folder}"))
    assert not folder.exists()


@pytest.mark.parametrize("wrong", [{"architectures": 1}, {"every_n_epochs": 0}, {"samples": 1}])
def test_arguments_that_a_ranking_refuses(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name} must be . or more.*, got"):
        Ranking(**wrong)


def test_edge_weights_are_refused() -> None:
    module = searched_space()
    module.net.edges["node"] = nn.Parameter(torch.zeros(2))
    trainer: Any = type("Trainer", (), {"limit_val_batches": 1.0})
    with pytest.raises(ConfigError, match="a ranking needs a method without edge weights"):
        Ranking().check(module, trainer)


def test_a_search_without_training_says_that_there_is_nothing_to_watch(tmp_path: Path) -> None:
    options = [*BED, *RANKING, "callbacks.guard={_target_: src.callbacks.guard.Guard, skips: 3}", "method=random"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.search.write_report", lambda folder: folder / "report.html")
        done = run("search", *options[:-2], f"+{options[-2]}", options[-1], f"folder={tmp_path / 'run'}")
    assert done.code == 0, done.err
    assert done.err.splitlines() == [
        f"callbacks: {what} has nothing to watch, the method random trains nothing" for what in ("a guard", "a ranking")
    ]
