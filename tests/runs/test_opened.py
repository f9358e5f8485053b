"""`load_run`, `src.predict` and `src.evaluate`: what a run left, and its network, used without its data."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from commands import FEW, RETRAIN, ROOT, SEARCH, SHORT, read_json, refused, run
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

import src
from src import ConfigError, load_run, load_runs
from src.common.intervals import interval_of_share
from src.data.samples import Samples
from src.data.sources import Digits
from src.data.tasks import Classification, Regression
from src.runs.opened import OpenedRun

DIABETES = ["data=own", "data.source._target_=examples.diabetes.diabetes"]
PERCEPTRON = "space._target_=examples.diabetes.Perceptron"
WAVES = ["data._target_=data.own_module.Waves", "data.batch_size=8"]


class Runs(NamedTuple):
    search: OpenedRun
    retrain: OpenedRun


def ran(command: str, folder: Path, *overrides: str) -> OpenedRun:
    with pytest.MonkeyPatch.context() as patch:
        # The page takes longer to draw than these runs to train.
        patch.setattr(f"src.{command}.write_report", lambda folder: folder / "report.html")
        done = run(command, *overrides, "callbacks=none", f"folder={folder}")
    assert done.code == 0, done.err
    return load_run(folder)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs on digits, of the paper's cells; the retrain tests on the whole split, with all that a retrain can have."""
    folder = tmp_path_factory.mktemp("cells")
    search = ran("search", folder / "search", *SEARCH, "seed=3", "epochs=2", "trainer.limit_train_batches=1")
    whole = [setting for setting in RETRAIN if "limit_test" not in setting]
    retrain = ran("retrain", folder / "retrain", *whole, f"genotype={folder / 'search'}", "space.auxiliary=false")
    return Runs(search, retrain)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs of a space and of data of one's own: a regression on vectors."""
    folder = tmp_path_factory.mktemp("numbers")
    search = ran("search", folder / "search", *SHORT, *DIABETES, PERCEPTRON)
    return Runs(search, ran("retrain", folder / "retrain", *SHORT, f"genotype={folder / 'search'}"))


@pytest.fixture(scope="module")
def digits() -> Samples:
    return Digits().test()


@pytest.fixture(scope="module")
def images(digits: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(6):
        Image.fromarray(digits.inputs[index, 0].numpy()).save(folder / f"{index}.png")
    return folder


def test_the_face_imports_nothing_before_it_is_used() -> None:
    code = "import sys, src; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert set(src.__all__) <= set(dir(src))
    with pytest.raises(AttributeError, match="no attribute 'load_rum'"):
        src.load_rum  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


class TestSearch:
    def test_tables_over_epochs(self, cells: Runs) -> None:
        alphas, metrics = cells.search.alphas, cells.search.metrics
        assert list(alphas.index) == list(metrics.index) == [0, 1]
        assert (alphas.index.name, list(alphas.columns.names)) == ("epoch", ["choice", "candidate"])
        edge = alphas["normal_n2_p0"]
        assert list(edge.columns) == ["none", "max_pool_3x3", "skip_connect", "sep_conv_3x3"]
        assert np.allclose(edge.sum(axis=1), 1)
        assert {"train_loss", "val_accuracy", "lr"} <= set(metrics.columns)
        assert metrics["val_accuracy"].iloc[-1] == cells.search.result["metrics"]["val_accuracy"]

    def test_architecture_and_its_drawing(self, cells: Runs) -> None:
        found = cells.search.architecture
        assert found.to_plain() == read_json(cells.search.folder / "genotype.json")
        html = cells.search.draw()._repr_html_()
        assert html.count("<svg") == 2
        assert cells.search.draw().svgs.keys() == {"normal", "reduce"}

    def test_network_is_the_supernet_with_its_choices_fixed(self, cells: Runs, digits: Samples) -> None:
        generator = torch.random.get_rng_state()
        network = cells.search.network()
        assert torch.equal(torch.random.get_rng_state(), generator)
        assert network(digits.inputs[:2]).shape == (2, 10)
        assert sum(weight.numel() for weight in network.parameters()) < cells.search.result["params"]

    def test_is_refused_where_a_trained_network_is_needed(self, cells: Runs, images: Path) -> None:
        for command in (("predict", str(cells.search.folder), str(images)), ("evaluate", str(cells.search.folder))):
            error = refused(run(*command))
            assert "is a search, whose weights were trained for all candidates together" in error
            assert f"python -m src.retrain genotype={cells.search.folder}" in error

    def test_a_retrain_has_no_alphas(self, cells: Runs) -> None:
        with pytest.raises(ConfigError, match="is a retrain, which has no alphas"):
            cells.retrain.alphas  # noqa: B018

    def test_pandas_is_needed_for_tables_alone(self, cells: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ConfigError, match="need pandas, which is not installed: pip install pandas"):
            cells.search.metrics  # noqa: B018
        assert cells.search.architecture


class TestPredict:
    def test_every_test_image_as_in_the_run_s_own_test(self, cells: Runs, digits: Samples) -> None:
        predicted = cells.retrain.predict(digits.inputs, batch_size=100)
        right = [int(label) == target for label, target in zip(predicted.labels, digits.targets.tolist(), strict=True)]
        assert sum(right) / len(right) == pytest.approx(cells.retrain.result["metrics"]["test_accuracy"], abs=1e-6)
        loss = digits.task.loss(predicted.outputs, digits.targets)
        assert float(loss) == pytest.approx(cells.retrain.result["metrics"]["test_loss"], rel=1e-5)
        assert torch.allclose(predicted.probabilities.sum(1), torch.ones(len(right)))

    def test_no_data_are_read(self, cells: Runs, digits: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise AssertionError("the data set was read")

        monkeypatch.setattr(Digits, "__init__", fail)
        assert len(load_run(cells.retrain.folder).predict(digits.inputs[:3])) == 3

    def test_files_arrays_and_tensors_agree(self, cells: Runs, digits: Samples, images: Path) -> None:
        np.save(images / "first.npy", digits.inputs[:2].numpy())
        try:
            paths = [images / "first.npy", images / "2.png"]
            from_files = cells.retrain.predict(paths)
        finally:
            (images / "first.npy").unlink()
        whole = cells.retrain.predict(images)
        assert whole.names == [str(images / f"{index}.png") for index in range(6)]
        assert from_files.names == [f"{paths[0]}[0]", f"{paths[0]}[1]", str(paths[1])]
        for other in (from_files, cells.retrain.predict(digits.inputs[:3].numpy() / 255)):
            assert torch.allclose(other.outputs, whole.outputs[:3], atol=1e-5)
        one = cells.retrain.predict(digits.inputs[0])
        assert (one.names, one.labels) == (["[0]"], whole.labels[:1])

    def test_images_of_any_size_and_colour(self, cells: Runs, images: Path, tmp_path: Path) -> None:
        small = Image.open(images / "0.png")
        large = Image.new("L", (40, 16))
        large.paste(small.resize((16, 16), Image.Resampling.NEAREST), (12, 0))  # the centre is cut out
        large.convert("RGB").save(tmp_path / "large.png")
        expected, got = (cells.retrain.predict(path).outputs for path in (images / "0.png", tmp_path / "large.png"))
        assert torch.allclose(expected, got, atol=0.2)
        assert not torch.equal(expected, got)

    def test_command_prints_a_table_or_json(self, cells: Runs, images: Path) -> None:
        folder = str(cells.retrain.folder)
        expected = cells.retrain.predict(images)
        done = run("predict", folder, str(images), "--device", "cpu")
        assert (done.code, done.err) == (0, "")
        header, _, *lines = done.out.splitlines()
        assert header.split() == ["input", "class", "probability"]
        first = [str(images / "0.png"), expected.labels[0], f"{100 * float(expected.probabilities[0].max()):.1f}", "%"]
        assert lines[0].split() == first
        assert len(lines) == 6
        rows = json.loads(run("predict", folder, str(images), "--json").out)
        assert [row["class"] for row in rows] == expected.labels
        assert rows[0]["probabilities"].keys() == set(map(str, range(10)))

    def test_of_a_regression_on_vectors(self, numbers: Runs, tmp_path: Path) -> None:
        np.save(tmp_path / "patients.npy", np.zeros((2, 10)))
        predicted = numbers.retrain.predict(tmp_path / "patients.npy")
        assert predicted.outputs.shape == (2, 1)
        assert predicted.rows()[0].keys() == {"input", "outputs"}
        assert str(predicted).splitlines()[0].split() == ["input", "output"]
        with pytest.raises(ConfigError, match="the run is no classification"):
            predicted.labels  # noqa: B018
        Image.new("L", (8, 8)).save(tmp_path / "image.png")
        error = refused(run("predict", str(numbers.retrain.folder), str(tmp_path / "image.png")))
        assert "is no input of this run, whose inputs have the shape (10,) and are float64; give an .npy file" in error

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            (torch.zeros(2, 3, 8, 8), "inputs must have 1 channel, as the run's digits have, got 3"),
            (torch.zeros(2, 64), r"inputs must have the shape (N, 1, 8, 8), or (1, 8, 8) for one, got (2, 64)"),
            (torch.zeros(0, 1, 8, 8), "inputs must be one or more, got none"),
            (torch.full((1, 1, 8, 8), 255.0), "floating images must have pixels from 0 to 1"),
            (torch.full((1, 1, 8, 8), torch.nan), "inputs must be finite"),
            (torch.zeros(1, 1, 8, 8, dtype=torch.int64), "inputs must be uint8, got int64"),
            (np.array([["a"]], dtype=object), "inputs must be numbers"),
            ([], "inputs must be one or more, got none"),
            ([np.zeros(3)], "inputs must be paths, an array or a tensor, got a list that holds ndarray"),
        ],
    )
    def test_arrays_that_do_not_fit(self, cells: Runs, inputs: Any, message: str) -> None:
        with pytest.raises(ConfigError) as error:
            cells.retrain.predict(inputs)
        assert message in str(error.value)

    def test_files_that_cannot_be_read(self, cells: Runs, tmp_path: Path) -> None:
        (tmp_path / "text.png").write_text("no picture")
        (tmp_path / "text.npy").write_text("no array")
        np.save(tmp_path / "colour.npy", np.zeros((1, 3, 8, 8), np.uint8))
        (tmp_path / "empty").mkdir()
        for name, message in (
            ("text.png", "text.png is not a readable image"),
            ("text.npy", "text.npy is not a readable .npy file"),
            ("colour.npy", "colour.npy: inputs must have 1 channel"),
            ("empty", "empty holds no images"),
            ("none.png", "there is no file"),
        ):
            assert message in refused(run("predict", str(cells.retrain.folder), str(tmp_path / name)))
        done = run("predict", str(cells.retrain.folder), "x.png", "--device", "gpu")
        assert "--device must be cpu or cuda, got gpu" in refused(done)


class TestEvaluate:
    def test_own_test_split(self, cells: Runs) -> None:
        done = run("evaluate", str(cells.retrain.folder), "--json")
        assert (done.code, done.err) == (0, "")
        found, before = json.loads(done.out), cells.retrain.result["metrics"]
        assert (found["data"], found["samples"]) == ("digits", 359)
        assert found["metrics"]["accuracy"]["value"] == pytest.approx(before["test_accuracy"], abs=1e-6)
        assert found["metrics"]["loss"]["value"] == pytest.approx(before["test_loss"], rel=1e-5)
        for measured in found["metrics"].values():
            assert measured["low"] < measured["value"] < measured["high"]
        assert run("evaluate", str(cells.retrain.folder), "--json").out == done.out
        table = run("evaluate", str(cells.retrain.folder), "data=digits").out
        assert table.startswith("359 samples of the test split of digits\n  accuracy ")

    def test_own_test_split_after_a_command_with_other_data(self, cells: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
        """Hydra remembers the options of the command that ran last in this process, as in a notebook."""
        hydra = OmegaConf.create({"hydra": {"runtime": {"choices": {"data": "image_folder", "space": "darts"}}}})
        monkeypatch.setattr(HydraConfig.instance(), "cfg", hydra)
        assert cells.retrain.evaluate().data == "digits"

    def test_other_data_are_normalised_as_in_the_training(self, cells: Runs, digits: Samples) -> None:
        some = digits.select(torch.arange(50))
        found = cells.retrain.evaluate(samples=some)
        outputs = cells.retrain.predict(some.inputs).outputs
        assert found.metrics["loss"].value == pytest.approx(float(some.task.loss(outputs, some.targets)), rel=1e-5)

    def test_regression(self, numbers: Runs) -> None:
        found = numbers.retrain.evaluate()
        before = numbers.retrain.result["metrics"]
        assert (found.data, found.samples) == ("diabetes", 88)
        for name in ("mae", "loss"):
            measured = found.metrics[name]
            assert measured.value == pytest.approx(before[f"test_{name}"], rel=1e-4)
            assert measured.low < measured.value < measured.high

    def test_a_data_module_of_one_s_own(self, tmp_path: Path) -> None:
        search = ran("search", tmp_path / "search", *SHORT, *WAVES, PERCEPTRON)
        found = ran("retrain", tmp_path / "retrain", *SHORT, f"genotype={search.folder}")
        measured = found.evaluate()
        assert (measured.data, measured.samples) == ("waves", 12)
        assert measured.metrics["mae"].value == pytest.approx(found.result["metrics"]["test_mae"], rel=1e-4)
        assert found.predict(torch.zeros(2, 1, 16)).outputs.shape == (2, 1)

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["data=digts"], "unknown data option 'digts', did you mean 'digits'?"),
            (["epochs=3"], "only data can be set, as in data=digits or data.source.root=PATH, got 'epochs=3'"),
            (["data.normalize=false"], "data.normalize has no use here"),
            (["data.sourc=x"], "unknown key 'sourc' in data, did you mean 'source'?"),
            (["data=image_folder", "data.source.root=/no/such"], "data.source.root must be a folder"),
            (DIABETES, "data must have 10 outputs as the run's have, got 1"),
        ],
    )
    def test_refused(self, cells: Runs, overrides: list[str], message: str) -> None:
        assert message in refused(run("evaluate", str(cells.retrain.folder), *overrides))

    def test_other_classes_and_shapes(self, cells: Runs, digits: Samples) -> None:
        def message(inputs: Tensor, task: Any, targets: Tensor = digits.targets) -> str:
            with pytest.raises(ConfigError) as error:
                cells.retrain.evaluate(samples=Samples(inputs, targets, task))
            return str(error.value)

        others = Classification([f"class {index}" for index in range(10)])
        assert "data must have the classes 0, 1, 2" in message(digits.inputs, others)
        assert "inputs must have 1 channel" in message(digits.inputs.expand(-1, 3, -1, -1), digits.task)
        assert "10 outputs" in message(digits.inputs, Regression(), digits.targets.float())

    def test_wilson(self) -> None:
        # The interval of 10 of 20 is in Wikipedia's and every textbook's tables: 0.299 to 0.701.
        assert interval_of_share(0.5, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)
        low, high = interval_of_share(1.0, 359)
        assert (round(low, 4), high) == (0.9894, 1.0)


class TestExport:
    def test_torch_export_of_any_space(self, numbers: Runs) -> None:
        network, example = numbers.retrain.network(), torch.rand(4, 10)
        exported = torch.export.export(network, (example[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
        assert torch.allclose(exported.module()(example), network(example), atol=1e-6)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
    def test_as_the_docs_say(
        self, cells: Runs, digits: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        section = (ROOT / "docs" / "use.md").read_text().split("\n## Export")[1]
        (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.S)
        (tmp_path / "runs" / "retrain").mkdir(parents=True)
        (tmp_path / "runs" / "retrain" / "RUN").symlink_to(cells.retrain.folder)
        monkeypatch.chdir(tmp_path)
        names: dict[str, Any] = {}
        exec(code, names)
        images = digits.inputs[:5].float() / 255
        expected = cells.retrain.predict(digits.inputs[:5]).outputs
        assert torch.allclose(torch.export.load("network.pt2").module()(images), expected, atol=1e-5)
        (logits,) = names["session"].run(None, {"images": images.numpy()})
        assert np.allclose(logits, expected, atol=1e-4)


class TestOpening:
    def test_several_runs_make_a_table(self, cells: Runs, numbers: Runs) -> None:
        runs = load_runs(cells.search.folder.parent, numbers.retrain.folder)
        rows = [opened.summary for opened in runs]
        assert [row["kind"] for row in rows] == ["retrain", "search", "retrain"]
        assert rows[0]["test_accuracy"] == cells.retrain.result["metrics"]["test_accuracy"]
        assert (rows[1]["order"], rows[1]["seed"], rows[2]["data"]) == (1, 3, "diabetes")
        assert repr(runs[0]).startswith(f"<retrain {cells.retrain.folder}: ok, 1 epochs, ")

    def test_by_a_checkpoint(self, cells: Runs) -> None:
        assert load_run(cells.retrain.folder / "checkpoints" / "last.ckpt").folder == cells.retrain.folder

    def test_answers_of_another_space_are_a_table(self, numbers: Runs) -> None:
        html = numbers.search.draw()._repr_html_()
        answers = numbers.search.architecture.to_plain()
        assert all(f"<tr><td>{key}</td><td>{answer}</td></tr>" in html for key, answer in answers.items())

    def test_no_run(self, cells: Runs, tmp_path: Path) -> None:
        for folder, message in (
            (tmp_path / "none", "there is no run"),
            (tmp_path, "must be the folder of a run, which holds config.yaml"),
            (cells.search.folder.parent, "there are 2 runs in it, such as"),
        ):
            assert message in refused(run("evaluate", str(folder)))

    def test_a_run_that_lacks_files(self, cells: Runs, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_bytes((cells.retrain.folder / "config.yaml").read_bytes())
        begun = load_run(tmp_path)
        assert (begun.kind, begun.status) == ("retrain", "unfinished")
        for use, message in (
            (lambda: begun.metrics, "holds no metrics.csv: no epoch has ended"),
            (lambda: begun.architecture, "holds no genotype.json"),
            (begun.network, "holds no genotype.json"),
        ):
            with pytest.raises(ConfigError, match=message):
                use()
        (tmp_path / "genotype.json").write_bytes((cells.retrain.folder / "genotype.json").read_bytes())
        with pytest.raises(ConfigError, match=r"holds no checkpoints/last\.ckpt"):
            begun.network()
        (tmp_path / "metrics.csv").write_text("epoch\nx\n")
        with pytest.raises(ConfigError, match=r"cannot read .*metrics\.csv"):
            load_run(tmp_path).metrics  # noqa: B018

    def test_a_run_that_was_interrupted_says_so(self, cells: Runs, images: Path, tmp_path: Path) -> None:
        folder = tmp_path / "retrain"
        shutil.copytree(cells.retrain.folder, folder)
        result = read_json(folder / "result.json")
        (folder / "result.json").write_text(json.dumps({**result, "status": "interrupted", "planned_epochs": 600}))
        done = run("predict", str(folder), str(images))
        assert done.code == 0
        assert done.err == f"{folder} is interrupted after 1 of 600 epochs; its network is what it was then\n"


def test_partial_channels_leave_no_network(tmp_path: Path) -> None:
    found = ran(
        "search",
        tmp_path / "search",
        *SHORT,
        *FEW,
        "data=digits",
        "method=pc_darts",
        "method.frozen_epochs=0",
        "space.channels=4",
        "space.cells=3",
    )
    with pytest.raises(ConfigError, match="has no network of one architecture: the weights are of another space"):
        found.network()
