"""Data of a user's own, named on the command line: searched and retrained."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import read_csv, read_json, refused, run

SHORT = ["trainer=cpu", "callbacks=none", "data.batch_size=16", "epochs=6"]
PERCEPTRON = "space._target_=examples.diabetes.Perceptron"
DIABETES = ["data=own", "data.source._target_=examples.diabetes.diabetes"]


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page, which takes longer to draw than these runs to train."""
    for command in ("search", "retrain"):
        monkeypatch.setattr(f"src.{command}.write_report", lambda folder: folder / "report.html")


def test_a_regression_on_vectors_is_searched(tmp_path: Path) -> None:
    done = run("search", *SHORT, *DIABETES, PERCEPTRON, "space.depth=3", "order=2", f"folder={tmp_path / 'run'}")
    assert (done.code, done.err) == (0, "")
    result = read_json(tmp_path / "run" / "result.json")
    data = result["data"]
    assert (data["name"], data["task"], data["outputs"], data["input_shape"]) == ("diabetes", "regression", 1, [10])
    assert (data["weights_samples"], data["arch_samples"]) == (177, 177)
    assert set(result["genotype"]) == {"layer0", "layer1", "layer2"}
    rows = read_csv(tmp_path / "run" / "metrics.csv")
    assert len(rows) == 6
    assert {"train_loss", "train_mae", "val_loss", "val_mae"} <= set(rows[0])
    assert float(rows[-1]["val_mae"]) < float(rows[0]["val_mae"])


def test_what_was_found_is_retrained_on_the_same_data(tmp_path: Path) -> None:
    search, retrain = f"folder={tmp_path / 'search'}", f"folder={tmp_path / 'retrain'}"
    done = run("search", *SHORT, *DIABETES, PERCEPTRON, "trainer.limit_train_batches=2", search)
    assert done.code == 0, done.err
    done = run("retrain", *SHORT, f"genotype={tmp_path / 'search'}", "epochs=20", retrain)
    assert (done.code, done.err) == (0, "")
    result = read_json(tmp_path / "retrain" / "result.json")
    assert (result["data"]["name"], result["data"]["train_samples"]) == ("diabetes", 354)
    assert set(result["metrics"]) == {"train_loss", "train_mae", "test_loss", "test_mae"}
    assert f"  test mae  {result['metrics']['test_mae']:.4g}\n" in done.out
    # Always answering the mean would have a loss of 0.54, the variance of the test split's targets.
    assert result["metrics"]["test_loss"] < 0.45


def test_one_data_module_of_one_s_own_serves_both_commands(tmp_path: Path) -> None:
    waves = ["data._target_=data.own_module.Waves", "data.points=12"]
    found, folder = f"genotype={tmp_path / 'search'}", f"folder={tmp_path / 'retrain'}"
    done = run("search", *SHORT, *waves, "data.batch_size=8", PERCEPTRON, f"folder={tmp_path / 'search'}")
    assert (done.code, done.err) == (0, "")
    search = read_json(tmp_path / "search" / "result.json")
    task = {"task": "regression", "outputs": 1}  # which this module leaves out
    assert search["data"] == {
        **task, "name": "waves", "input_shape": [1, 12], "train_samples": 48, "test_samples": 12,
    }  # fmt: skip
    assert {"train_mae", "val_mae", "arch_loss"} <= set(search["metrics"])
    for data in ([], waves):
        done = run("retrain", *SHORT, "data.batch_size=8", *data, found, PERCEPTRON, folder + str(len(data)))
        assert (done.code, done.err) == (0, ""), data
        retrain = read_json(tmp_path / f"retrain{len(data)}" / "result.json")
        assert retrain["data"] == search["data"]
        assert "test_mae" in retrain["metrics"]


def test_images_are_asked_for_where_there_are_none(tmp_path: Path) -> None:
    folder = f"folder={tmp_path / 'run'}"
    line = refused(run("search", *SHORT, *DIABETES[1:], PERCEPTRON, folder))  # with the augmentation of cifar10
    assert "data.crop_padding must be 0 for samples of shape (10,), which are no images" in line
    line = refused(run("search", *SHORT, "data=own", PERCEPTRON, folder))
    assert "data.source._target_ is not set" in line
    assert not any(tmp_path.iterdir())
