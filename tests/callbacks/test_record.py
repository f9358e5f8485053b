from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from small_search import fit

from src.architectures.architecture import load_json
from src.callbacks.record import EpochAlphas, EpochArchitectures, EpochMetrics
from src.training.search import SearchModule


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Softmaxes(L.Callback):
    """Keeps the alphas' softmax and the derived architecture of every epoch, taken another way."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.answers: list[dict[str, Any]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SearchModule)
        alphas = {name.removeprefix("alphas."): alpha.detach() for name, alpha in pl_module.alphas().items()}
        self.weights.append({key: torch.softmax(alpha, dim=0) for key, alpha in alphas.items()})
        names = {"first": ["wide", "identity"], "second": [None, "tanh", "relu"]}
        self.answers.append(
            {
                key: max((float(alpha[i]), name) for i, name in enumerate(names[key]) if name)[1]
                for key, alpha in alphas.items()
            }
        )


class TestEpochMetrics:
    def test_a_row_an_epoch_with_the_rate_it_was_trained_with(self, tmp_path: Path) -> None:
        trainer, _ = fit(tmp_path, EpochMetrics(tmp_path), epochs=3)
        rows = read(tmp_path / "metrics.csv")
        assert [row["epoch"] for row in rows] == ["0", "1", "2"]
        assert [float(row["lr"]) for row in rows] == pytest.approx(
            [0.1 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(3)]
        )
        assert list(rows[0])[:3] == ["epoch", "train_loss", "train_accuracy"]
        last = {name: float(value) for name, value in rows[-1].items() if name not in ("epoch", "lr")}
        assert last == {name: float(value) for name, value in trainer.callback_metrics.items()}

    def test_rows_grow_by_the_epoch_while_the_run_goes_on(self, tmp_path: Path) -> None:
        seen: list[int] = []

        class Look(L.Callback):
            def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
                seen.append(len(read(tmp_path / "metrics.csv")))

        fit(tmp_path, EpochMetrics(tmp_path), Look(), epochs=3)
        assert seen == [1, 2, 3]

    def test_columns_that_come_up_later_are_added(self, tmp_path: Path) -> None:
        table = EpochMetrics(tmp_path)
        table.append({"epoch": 0, "loss": 1.5})
        table.append({"epoch": 1, "loss": 1.0, "accuracy": 0.5})
        assert (tmp_path / "metrics.csv").read_text() == "epoch,loss,accuracy\n0,1.5,\n1,1.0,0.5\n"

    def test_no_rows_are_lost_or_doubled_by_a_resume(self, tmp_path: Path) -> None:
        straight, resumed = tmp_path / "straight", tmp_path / "resumed"
        for folder in (straight, resumed):
            folder.mkdir()
        fit(tmp_path, EpochAlphas(straight), EpochMetrics(straight), epochs=4)
        fit(tmp_path, EpochAlphas(resumed), EpochMetrics(resumed), epochs=2)
        for path in resumed.iterdir():
            path.unlink()  # what the checkpoint holds is enough
        fit(tmp_path, EpochAlphas(resumed), EpochMetrics(resumed), epochs=4, resume=tmp_path / "last.ckpt")
        assert len(read(straight / "metrics.csv")) == 4
        for name in ("metrics.csv", "alphas.csv"):
            assert (resumed / name).read_bytes() == (straight / name).read_bytes()

    def test_state_is_a_copy_that_later_rows_do_not_reach(self, tmp_path: Path) -> None:
        first = EpochMetrics(tmp_path)
        first.append({"epoch": 0, "loss": 1.0})
        second = EpochMetrics(tmp_path)
        second.load_state_dict(first.state_dict())
        second.append({"epoch": 1, "loss": 0.5})
        assert first.rows == [{"epoch": 0, "loss": 1.0}]
        assert second.rows == [{"epoch": 0, "loss": 1.0}, {"epoch": 1, "loss": 0.5}]


class TestEpochAlphas:
    def test_softmax_of_every_alpha_after_every_epoch(self, tmp_path: Path) -> None:
        softmaxes = Softmaxes()
        fit(tmp_path, EpochAlphas(tmp_path), softmaxes)
        rows = read(tmp_path / "alphas.csv")
        assert list(rows[0]) == ["epoch", "key", "candidate", "weight"]
        expected = {("first", "wide"): 0, ("first", "identity"): 1}
        expected |= {("second", "none"): 0, ("second", "tanh"): 1, ("second", "relu"): 2}
        assert [(row["key"], row["candidate"]) for row in rows] == [*expected] * 2
        for row in rows:
            weights = softmaxes.weights[int(row["epoch"])][row["key"]]
            assert float(row["weight"]) == pytest.approx(float(weights[expected[row["key"], row["candidate"]]]))
        assert rows[0]["weight"] != rows[5]["weight"]

    def test_entropy_is_the_mean_over_keys_in_nats(self, tmp_path: Path) -> None:
        softmaxes = Softmaxes()
        trainer, _ = fit(tmp_path, EpochAlphas(tmp_path), softmaxes)
        entropies = [-sum(p * math.log(p) for p in row.tolist()) for row in softmaxes.weights[-1].values()]
        assert float(trainer.callback_metrics["alpha_entropy"]) == pytest.approx(sum(entropies) / 2)
        assert sum(entropies) / 2 < (math.log(2) + math.log(3)) / 2

    def test_entropy_of_decided_alphas_is_zero(self, tmp_path: Path) -> None:
        class Decide(L.Callback):
            def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
                assert isinstance(pl_module, SearchModule)
                with torch.no_grad():
                    for alpha in pl_module.alphas().values():
                        alpha[0] = 1000.0

        trainer, _ = fit(tmp_path, Decide(), EpochAlphas(tmp_path), epochs=1)
        assert float(trainer.callback_metrics["alpha_entropy"]) == 0.0


class TestEpochArchitectures:
    def test_a_file_an_epoch_with_the_architecture_then(self, tmp_path: Path) -> None:
        softmaxes = Softmaxes()
        (tmp_path / "checkpoints").mkdir()
        fit(tmp_path, softmaxes, EpochArchitectures(tmp_path), epochs=3)
        files = sorted((tmp_path / "checkpoints").iterdir())
        assert [path.name for path in files] == ["epoch_0.json", "epoch_1.json", "epoch_2.json"]
        assert [load_json(path) for path in files] == softmaxes.answers
