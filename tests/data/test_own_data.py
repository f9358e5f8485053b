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


def test_images_are_asked_for_where_there_are_none(tmp_path: Path) -> None:
    folder = f"folder={tmp_path / 'run'}"
    line = refused(run("search", *SHORT, *DIABETES[1:], PERCEPTRON, folder))  # with the augmentation of cifar10
    assert "data.crop_padding must be 0 for samples of shape (10,), which are no images" in line
    line = refused(run("search", *SHORT, "data=own", PERCEPTRON, folder))
    assert "data.source._target_ is not set" in line
    assert not any(tmp_path.iterdir())
