"""The commands as a user types them: what a run leaves behind, and what becomes of bad input."""

from __future__ import annotations

import html
import re
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from commands import FEW, RETRAIN, SEARCH, SHORT, SMALL, Done, contents, read_csv, read_json, refused, run, start
from omegaconf import OmegaConf
from PIL import Image

from src.common.intervals import interval_of_share
from src.data.sources import Digits
from src.spaces.cnn.formats import load_cells
from src.spaces.cnn.genotypes import NAMED_GENOTYPES
from src.training.search import SearchModule

SEARCH_FILES = {
    "config.yaml",
    "metrics.csv",
    "steps.csv",
    "alphas.csv",
    "checkpoints/last.ckpt",
    "checkpoints/epoch_0.json",
    "genotype.json",
    "result.json",
    "report.html",
}
# What both commands record of data=digits.
DIGITS = {
    "name": "digits",
    "task": "classification",
    "outputs": 10,
    "classes": list("0123456789"),
    "input_shape": [1, 8, 8],
    "input_type": "uint8",
    "mean": [pytest.approx(0.3053, abs=1e-3)],
    "std": [pytest.approx(0.3760, abs=1e-3)],
}
RETRAIN_FILES = SEARCH_FILES - {"alphas.csv", "checkpoints/epoch_0.json"}


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page, which takes longer to draw than these runs to train."""
    for command in ("search", "retrain"):
        monkeypatch.setattr(f"src.{command}.write_report", lambda folder: folder / "report.html")
        monkeypatch.setattr(f"src.{command}.report_sweep", lambda folder: None)


class Finished(NamedTuple):
    folder: Path
    done: Done
    result: dict[str, Any]


def finish(command: str, folder: Path, *overrides: str) -> Finished:
    """Run a command to its end."""
    done = run(command, *overrides, f"folder={folder}")
    assert done.code == 0, done.err
    return Finished(folder, done, read_json(folder / "result.json"))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finish("search", tmp_path_factory.mktemp("runs") / "search", *SEARCH, "order=2", "seed=3")


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory, searched: Finished) -> Finished:
    folder = tmp_path_factory.mktemp("runs") / "retrain"
    return finish("retrain", folder, *RETRAIN, f"genotype={searched.folder / 'genotype.json'}")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 8x8 images in two classes, for data=image_folder."""
    root = tmp_path_factory.mktemp("pictures")
    for split in ("train", "test"):
        for name, grey in (("dark", 20), ("light", 200)):
            (root / split / name).mkdir(parents=True)
            for index in range(6):
                Image.new("L", (8, 8), grey + index).save(root / split / name / f"{index}.png")
    return root


class TestSearch:
    def test_folder_holds_these_files_and_no_others(self, searched: Finished) -> None:
        assert set(contents(searched.folder)) == SEARCH_FILES

    def test_result(self, searched: Finished) -> None:
        result = searched.result
        versions = result.pop("versions")
        assert set(versions) == {"python", "torch", "torchvision", "lightning"}
        assert all(isinstance(version, str) for version in versions.values())
        unknown = ("error", "git_commit", "stopped_by", "guard")
        assert {name: type(value) for name, value in result.items() if name not in unknown} == {
            "status": str,
            "kind": str,
            "command": str,
            "commands": list,
            "epochs": int,
            "planned_epochs": int,
            "machine": dict,
            "seed": int,
            "order": int,
            "method": str,
            "data": dict,
            "metrics": dict,
            "genotype": dict,
            "architecture_epoch": int,
            "table": type(None),
            "remark": type(None),
            "params": int,
            "macs": int,
            "seconds": float,
        }
        assert (result["status"], result["error"], result["kind"]) == ("ok", None, "search")
        assert (result["architecture_epoch"], result["guard"]) == (0, None)
        assert (result["seed"], result["order"], result["method"]) == (3, 2, "darts")
        assert result["git_commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", result["git_commit"])
        assert all(isinstance(value, float) for value in result["metrics"].values())
        assert result["genotype"] == read_json(searched.folder / "genotype.json")
        data = result["data"]
        assert re.fullmatch("[0-9a-f]{64}", data.pop("split_sha256"))
        assert data == {
            **DIGITS,
            "weights_samples": 719,
            "arch_samples": 719,
            "validation_samples": 0,
        }

    def test_command_has_everything_but_the_folder(self, searched: Finished) -> None:
        words = shlex.split(searched.result["command"])
        assert words[:3] == ["python", "-m", "src.search"]
        assert sorted(words[3:]) == sorted([*SEARCH, "order=2", "seed=3"])

    def test_config_is_resolved_and_complete(self, searched: Finished) -> None:
        text = (searched.folder / "config.yaml").read_text()
        config = OmegaConf.create(text)
        # What follows the number of epochs stays so, for a run that is resumed with more of them.
        assert "${" not in text.replace("${epochs}", "")
        assert not OmegaConf.missing_keys(config)
        assert (config.order, config.seed, config.epochs, config.folder) == (2, 3, 1, str(searched.folder))
        assert config.trainer.max_epochs == config.optimizer.schedule.T_max == 1

    def test_metrics(self, searched: Finished) -> None:
        (row,) = read_csv(searched.folder / "metrics.csv")
        assert list(row) == [
            "epoch",
            "train_loss",
            "train_accuracy",
            "val_loss",
            "val_accuracy",
            "arch_loss",
            "hypergradient_norm",
            "correction_ratio",
            "alpha_entropy",
            "argmax_flips",
            "skip_count",
            "lr",
        ]
        assert (row.pop("epoch"), float(row.pop("lr"))) == ("0", 0.025)
        assert {name: float(value) for name, value in row.items()} == searched.result["metrics"]
        assert float(row["correction_ratio"]) > 0

    def test_alphas(self, searched: Finished) -> None:
        rows = read_csv(searched.folder / "alphas.csv")
        weights: dict[str, list[float]] = {}
        for row in rows:
            weights.setdefault(row["key"], []).append(float(row["weight"]))
        assert list(weights) == [
            f"{kind}_n{node}_p{state}" for kind in ("normal", "reduce") for node in (2, 3) for state in range(node)
        ]
        assert [row["candidate"] for row in rows[:4]] == ["none", "max_pool_3x3", "skip_connect", "sep_conv_3x3"]
        assert all(len(row) == 4 and sum(row) == pytest.approx(1) for row in weights.values())
        assert {row["epoch"] for row in rows} == {"0"}

    def test_last_epochs_architecture_is_the_genotype(self, searched: Finished) -> None:
        genotype = searched.folder / "genotype.json"
        assert genotype.read_bytes() == (searched.folder / "checkpoints" / "epoch_0.json").read_bytes()
        assert load_cells(str(genotype)).to_plain() == searched.result["genotype"]

    def test_checkpoint_holds_primitives_and_tensors_only(self, searched: Finished) -> None:
        checkpoint = torch.load(searched.folder / "checkpoints" / "last.ckpt", weights_only=True)
        assert len(checkpoint["optimizer_states"]) == 2
        assert checkpoint["callbacks"]["EpochMetrics"]["rows"]

    def test_says_what_runs_and_what_came_out(self, searched: Finished) -> None:
        assert searched.done.err == ""
        result, folder = searched.result, searched.folder
        device = rf"CPU .+, {torch.get_num_threads()} threads?, precision 32-true"
        expected = [
            "search: digits, darts, order 2, seed 3",
            rf"  folder    {re.escape(str(folder))}",
            rf"  device    {device}",
            rf"  network   {result['params']:,} weights, {result['macs']:,} multiply-adds a sample; (fused|merged) form",
            r"            40 alphas in 10 choices",
            r"  data      1x8x8; 719 samples for the weights, 719 samples for the alphas",
            r"            validation on the alphas' half",
            r"  training  1 epoch \(0\) of 2 steps",
            r"epoch    loss  accuracy: train  alphas' half  decided  skips  flips        left",
            r"  0/0   \d\.\d{3}  +\d+\.\d %  +\d+\.\d %    0\.\d %      \d      -         0 s",
            r"found in .* s:",
            r"  node  normal cell +reduction cell",
            r"     2  \w+\(0\) \+ \w+\(1\) +\w+\(0\) \+ \w+\(1\)",
            r"     3  \w+\(\d\) \+ \w+\(\d\) +\w+\(\d\) \+ \w+\(\d\)",
            r"  decision  8 of 8 kept edges lead by less than 1 %: search longer \(epochs\),",
            r"            or with a larger learning rate of the alphas \(optimizer.alphas.lr\)",
            rf"  genotype  {re.escape(str(folder / 'genotype.json'))}",
            rf"  report    {re.escape(str(folder / 'report.html'))}",
            rf"  next      python -m src.retrain trainer=cpu genotype={re.escape(str(folder))}",
        ]
        lines = searched.done.out.splitlines()
        assert len(lines) == len(expected)
        for line, pattern in zip(lines, expected, strict=True):
            assert re.fullmatch(pattern, line)
            assert len(line) <= 80 or str(folder) in line or "device" in line

    @pytest.mark.slow
    def test_recorded_command_repeats_the_run_in_another_process(self, searched: Finished, tmp_path: Path) -> None:
        words = shlex.split(searched.result["command"])
        done = start(*words[1:], f"folder={tmp_path}", PYTHONHASHSEED="7")
        assert (done.code, done.err) == (0, "")
        assert set(contents(tmp_path)) == SEARCH_FILES
        for name in ("metrics.csv", "alphas.csv", "genotype.json", "checkpoints/epoch_0.json"):
            assert (tmp_path / name).read_bytes() == (searched.folder / name).read_bytes(), name

    @pytest.mark.usefixtures("no_report")
    def test_golden_run(self, tmp_path: Path) -> None:
        """The demo's first epoch, on less, is the same bytes for a seed and others for another."""
        demo = ["experiment=demo", *SHORT, "space.nodes=2", "data.batch_size=32", "callbacks=none"]
        one, same, other = (
            finish("search", tmp_path / name, *demo, f"seed={seed}") for name, seed in (("a", 0), ("b", 0), ("c", 1))
        )
        assert one.result["order"] == 2
        for name in ("metrics.csv", "alphas.csv", "checkpoints/epoch_0.json"):
            first = (one.folder / name).read_bytes()
            assert first == (same.folder / name).read_bytes(), name
            assert first != (other.folder / name).read_bytes(), name
        assert one.result["data"]["split_sha256"] != other.result["data"]["split_sha256"]

    @pytest.mark.usefixtures("no_report")
    def test_failed_run_leaves_its_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: Any) -> None:
            raise RuntimeError("out of\nsomething")

        monkeypatch.setattr(SearchModule, "training_step", fail)
        done = run("search", *SEARCH, f"folder={tmp_path / 'run'}")
        assert done.code == 1
        assert "RuntimeError: out of" in done.err
        result = read_json(tmp_path / "run" / "result.json")
        assert (result["status"], result["error"]) == ("failed", "RuntimeError: out of something")
        assert result["command"].startswith("python -m src.search ")
        assert not (tmp_path / "run" / "genotype.json").exists()

    @pytest.mark.usefixtures("no_report")
    def test_interrupted_run_leaves_a_result(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*args: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(SearchModule, "training_step", interrupt)
        handler = signal.getsignal(signal.SIGINT)
        try:
            done = run("search", *SEARCH, f"folder={tmp_path / 'run'}")
        finally:
            signal.signal(signal.SIGINT, handler)  # Lightning ignores further ones while it shuts down
        assert done.code == 130
        assert "Traceback" not in done.err
        result = read_json(tmp_path / "run" / "result.json")
        assert (result["status"], result["error"]) == (
            "interrupted",
            f"stopped by SIGINT after 0 of 1 epochs; to continue: python -m src.search resume={tmp_path / 'run'}",
        )

    @pytest.mark.usefixtures("no_report")
    def test_test_split_is_never_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def test(self: Digits) -> None:
            raise AssertionError("a search read the test split")

        monkeypatch.setattr(Digits, "test", test)
        finish("search", tmp_path / "run", *SEARCH)

    @pytest.mark.usefixtures("no_report")
    def test_image_folder_needs_a_test_split_for_retrain_only(self, tmp_path: Path, pictures: Path) -> None:
        shutil.copytree(pictures / "train", tmp_path / "data" / "train")
        data = ["data=image_folder", f"data.source.root={tmp_path / 'data'}", "data.batch_size=4"]
        search = finish("search", tmp_path / "search", *SEARCH[1:], *data)
        assert search.result["data"]["input_shape"] == [1, 8, 8]
        genotype = f"genotype={search.folder / 'genotype.json'}"
        line = refused(run("retrain", *RETRAIN[1:], *data, genotype, f"folder={tmp_path / 'retrain'}"))
        assert "no folder 'test': a retrain needs test/CLASS/" in line
        assert not (tmp_path / "retrain").exists()

    def test_a_test_image_of_another_size_is_refused_before_the_training(self, tmp_path: Path, pictures: Path) -> None:
        shutil.copytree(pictures, tmp_path / "data")
        Image.new("L", (9, 8)).save(tmp_path / "data" / "test" / "light" / "more.png")
        data = ["data=image_folder", f"data.source.root={tmp_path / 'data'}", "data.batch_size=4"]
        line = refused(run("retrain", *RETRAIN[1:], *data, "genotype=DARTS_V1", f"folder={tmp_path / 'run'}"))
        assert "0.png is 8x8 and " in line
        assert "more.png is 9x8; set image_size to resize all images" in line
        assert not (tmp_path / "run").exists()


class TestRetrain:
    def test_folder_holds_these_files_and_no_others(self, retrained: Finished) -> None:
        assert set(contents(retrained.folder)) == RETRAIN_FILES

    def test_result(self, searched: Finished, retrained: Finished) -> None:
        result = retrained.result
        assert set(result) == set(searched.result) | {"versions"}
        assert (result["status"], result["error"], result["kind"]) == ("ok", None, "retrain")
        assert (result["seed"], result["order"], result["method"]) == (0, None, None)
        assert result["genotype"] == searched.result["genotype"]
        assert set(result["metrics"]) == {"train_loss", "train_accuracy", "test_loss", "test_accuracy"}
        assert 0 <= result["metrics"]["test_accuracy"] <= 1
        assert result["data"] == {**DIGITS, "train_samples": 1438, "validation_samples": 0, "test_samples": 180}

    def test_genotype_is_carried_over(self, searched: Finished, retrained: Finished) -> None:
        assert (retrained.folder / "genotype.json").read_bytes() == (searched.folder / "genotype.json").read_bytes()

    def test_metrics(self, retrained: Finished) -> None:
        (row,) = read_csv(retrained.folder / "metrics.csv")
        assert list(row) == ["epoch", "train_loss", "train_accuracy", "lr"]

    def test_says_the_test_accuracy(self, retrained: Finished) -> None:
        assert retrained.done.err == ""
        accuracy, _, report, following, _ = retrained.done.out.splitlines()[-5:]
        value = retrained.result["metrics"]["test_accuracy"]
        samples = 2 * 90  # an evaluation's batches are of nearly one size
        low, high = interval_of_share(value, samples)
        text = f"{100 * value:.2f} % of {samples} samples (95 % interval: {100 * low:.2f} % to {100 * high:.2f} %)"
        assert accuracy == f"  test accuracy  {text}"
        assert report.split() == ["report", str(retrained.folder / "report.html")]
        typed = [*shlex.split(retrained.result["command"])[3:], "seed=1,2,3"]
        assert shlex.split(following)[1:] == ["python", "-m", "src.retrain", "-m", *typed]

    @pytest.mark.usefixtures("no_report")
    def test_recorded_command_repeats_the_run(self, retrained: Finished, tmp_path: Path) -> None:
        again = finish("retrain", tmp_path / "again", *shlex.split(retrained.result["command"])[3:])
        assert again.result["metrics"] == retrained.result["metrics"]
        assert (again.folder / "metrics.csv").read_bytes() == (retrained.folder / "metrics.csv").read_bytes()

    @pytest.mark.usefixtures("no_report")
    def test_genotypes_by_file_of_an_epoch_and_by_name_in_one_sweep(self, searched: Finished, tmp_path: Path) -> None:
        epoch = searched.folder / "checkpoints" / "epoch_0.json"
        done = run("retrain", "-m", *RETRAIN, f"genotype={epoch},DARTS_V2", f"folder={tmp_path / 'sweep'}")
        assert done.code == 0, done.err
        (first,) = (tmp_path / "sweep").glob("genotype=epoch_0.json-??????")  # a digest tells apart files of one name
        results = [read_json(job / "result.json") for job in (first, tmp_path / "sweep" / "genotype=DARTS_V2")]
        assert results[0]["genotype"] == read_json(epoch)
        assert results[1]["genotype"] == NAMED_GENOTYPES["DARTS_V2"].to_architecture().to_plain()


class TestSweep:
    def test_a_folder_for_each_job(self, tmp_path: Path) -> None:
        done = run("search", "-m", *SEARCH, "seed=0,1", f"folder={tmp_path / 'sweep'}")
        assert (done.code, done.err) == (0, "")
        jobs = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
        assert [job.name for job in jobs] == ["seed=0", "seed=1"]
        results = [read_json(job / "result.json") for job in jobs]
        assert [(result["seed"], result["status"]) for result in results] == [(0, "ok"), (1, "ok")]
        assert [shlex.split(result["command"])[-1] for result in results] == ["seed=0", "seed=1"]
        assert "-m" not in shlex.split(results[0]["command"])[3:]
        for job in jobs:
            assert set(contents(job)) == SEARCH_FILES
        assert done.out.splitlines()[-1] == f"sweep: {tmp_path / 'sweep' / 'index.html'}"
        rows = read_csv(tmp_path / "sweep" / "runs.csv")
        assert [(row["run"], row["seed"], row["status"]) for row in rows] == [
            ("seed=0", "0", "ok"),
            ("seed=1", "1", "ok"),
        ]

        before = contents(tmp_path / "sweep")
        again = run("search", "-m", *SEARCH, "order=2", "seed=0,1", f"folder={tmp_path / 'sweep'}")
        after = contents(tmp_path / "sweep")
        assert again.code == 2
        assert again.err.count("already holds a finished run") == len(again.err.splitlines()) == 2
        # Hydra writes multirun.yaml before it starts a job.
        assert {**after, "multirun.yaml": b""} == {**before, "multirun.yaml": b""}

    def test_a_refused_job_does_not_cost_the_others(self, tmp_path: Path) -> None:
        done = run(
            "search", "-m", *SEARCH, "hydra.sweep.subdir=order_${order}", "order=2,1", "hypergradient=first_order",
            f"folder={tmp_path}",
        )  # fmt: skip
        assert done.code == 2
        assert re.fullmatch("error: hypergradient FirstOrder is of order 1 but order is 2; [^\n]*\n", done.err)
        wrong, right = (read_json(tmp_path / name / "result.json") for name in ("order_2", "order_1"))
        assert (wrong["status"], wrong["order"], right["status"], right["order"]) == ("failed", 2, "ok", 1)
        assert wrong["error"] in done.err
        overview = (tmp_path / "index.html").read_text()
        assert "1 of 2 runs finished" in overview
        assert wrong["command"] in html.unescape(overview)
        assert set(contents(tmp_path / "order_2")) == {"result.json", "report.html"}
        assert "correction_ratio" not in right["metrics"]


# What is typed behind a search that would run, and what the line must say.
BAD_SEARCHES = {
    "wrong order": ("order=3", ["order must be 1 (first order) or 2 (unrolled), got 3"]),
    "order in words": ("order=two", ["order must be a whole number, got 'two'"]),
    "negative epochs": ("epochs=-1", ["epochs must be 1 or more, got -1"]),
    "negative seed": ("seed=-1", ["seed must be between 0 and 4294967295, got -1"]),
    "unknown option of a group": ("data=cifar", ["data", "'cifar'", "did you mean 'cifar10'?", "image_folder"]),
    "unknown experiment": ("experiment=dem", ["experiment", "did you mean 'demo'?"]),
    "unknown group": ("dataset=digits", ["unknown key 'dataset'", "did you mean 'data'?"]),
    "unknown key": ("epoch=3", ["unknown key 'epoch'", "did you mean 'epochs'?", "seed"]),
    "unknown nested key": ("space.channel=3", ["unknown key 'channel'", "did you mean 'channels'?", "space"]),
    "unknown key of a library": ("trainer.max_epoch=3", ["'max_epoch'", "did you mean 'max_epochs'?", "trainer"]),
    "unknown key of the data": ("data.source.image_sise=9", ["'image_sise'", "did you mean 'image_size'?"]),
    "added key": ("+foo=1", ["unknown key 'foo'", "allowed: order, seed"]),
    "added nested key": ("+data.foo=1", ["unknown key 'foo'", "batch_size", "data"]),
    "added key of an optimiser": ("+optimizer.alphas.lrr=1", ["lrr", "optimizer.alphas"]),
    "no override": ("order", ["'order'", "key=value"]),
    "no key": ("=3", ["'=3'", "key=value"]),
    "two values without -m": ("order=1,2", ["order=1,2", "--multirun"]),
    "order against hypergradient": ("hypergradient=exact", ["order is 1", "Exact", "order 2", "hypergradient=auto"]),
    "unknown operation": (
        "space.candidates=[sep_conv_3x4]",
        ["space: unknown operation in candidates", "did you mean 'sep_conv_3x3'?"],
    ),
    "too few cells": ("space.cells=2", ["space.cells must be 3 or more, got 2"]),
    "fraction out of range": ("data.arch_fraction=2", ["data.arch_fraction must be above 0 and below 1, got 2"]),
    "batch too large": ("data.batch_size=5000", ["data.batch_size must be at most 6 for the 6 samples of", "got 5000"]),
    "missing data folder": (
        "data.source.root=/no/such/folder",
        ["data.source.root must be a folder that holds train/CLASS/, got /no/such/folder"],
    ),
    "data folder not given": ("data.source.root=???", ["data.source.root is not set", "data.source.root=..."]),
}


class TestBadInput:
    @pytest.mark.parametrize("case", BAD_SEARCHES)
    def test_search(self, case: str, pictures: Path, tmp_path: Path) -> None:
        typed, parts = BAD_SEARCHES[case]
        data = ["data=image_folder", f"data.source.root={pictures}", "data.batch_size=4"]
        line = refused(run("search", *SEARCH[1:], *data, f"folder={tmp_path / 'run'}", typed))
        for part in parts:
            assert part in line
        assert not any(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("damage", "part"),
        [
            (lambda root: shutil.rmtree(root / "train" / "light"), "one class only (dark)"),
            (
                lambda root: (root / "train" / "dark" / "0.png").write_bytes(b"no image"),
                "0.png is not a readable image",
            ),
            (lambda root: shutil.rmtree(root / "train"), "no folder 'train': train/CLASS/ is needed"),
        ],
        ids=["one class", "unreadable image", "no train folder"],
    )
    def test_data_folder(self, damage: Any, part: str, pictures: Path, tmp_path: Path) -> None:
        data = tmp_path / "data"
        shutil.copytree(pictures, data)
        damage(data)
        before = contents(tmp_path)
        overrides = ["data=image_folder", f"data.source.root={data}", "data.batch_size=4", f"folder={tmp_path / 'run'}"]
        assert part in refused(run("search", *SEARCH[1:], *overrides))
        assert part in refused(run("retrain", *RETRAIN[1:], *overrides, "genotype=DARTS_V1"))
        assert contents(tmp_path) == before
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("content", "parts"),
        [
            ('{"normal_n2_p0": "sep_conv', ["not valid JSON", "truncated"]),
            ("", ["it is empty", "known formats: a text with Genotype(...), "]),
            ('{"conv1": "wide", "conv2": "narrow"}', ["'conv1' is not a choice of the CNN cell space", "{node}"]),
            ('{"normal/op_2_0": "sep_conv_3x3", "normal/input_2_0": [0]}', ["no answer for normal/op_2_1"]),
            ("Genotype(normal=[], normal_concat=range(2, 6))", ["the genotype has no field 'reduce'"]),
            ('[["sep_conv_3x3", 0]]', ["the format is not known", "MMRazor's YAML"]),
            ('{"normal_n2_p0": "sep_conv_3x4"}', ["no answer for normal_n2_p1"]),
        ],
        ids=["truncated", "empty", "another space", "NNI 3", "official", "a list", "keys missing"],
    )
    def test_genotype_file(self, content: str, parts: list[str], tmp_path: Path) -> None:
        path = tmp_path / "genotype.json"
        path.write_text(content)
        line = refused(run("retrain", *RETRAIN, f"genotype={path}", f"folder={tmp_path / 'run'}"))
        for part in [str(path), *parts]:
            assert part in line
        assert [entry.name for entry in tmp_path.iterdir()] == ["genotype.json"]

    @pytest.mark.parametrize(
        ("typed", "part"),
        [
            ("genotype=DARTS_V3", "did you mean 'DARTS_V2'? (allowed: DARTS_V1, DARTS_V2, PC_DARTS, "),
            ("genotype=no/such.json", "cannot read genotype file no/such.json: No such file"),
            ("seed=1", "genotype is not set, set it with genotype=..."),
            ("order=2", "unknown key 'order'"),
            ("space.stem_multiplier=0", "space.stem_multiplier must be 1 or more, got 0"),
            ("space.drop_path=2", "drop_path must be between 0 and 0.999, got 2.0"),
            (
                "data.cutout=9",
                "data.cutout must be 0 (none) to 8 for images with a side of 8, or null (half of the side), got 9",
            ),
        ],
    )
    def test_retrain(self, typed: str, part: str, tmp_path: Path) -> None:
        genotype = [] if typed.startswith(("genotype", "seed")) else ["genotype=DARTS_V1"]
        line = refused(run("retrain", *RETRAIN, *genotype, f"folder={tmp_path / 'run'}", typed))
        assert part in line
        assert not any(tmp_path.iterdir())

    def test_finished_run_is_not_written_over(self, searched: Finished) -> None:
        before = contents(searched.folder)
        for done in (
            run("search", *SEARCH, f"folder={searched.folder}"),
            run("search", *SEARCH, "order=3", f"folder={searched.folder}"),
            run("retrain", *RETRAIN, "genotype=DARTS_V1", f"folder={searched.folder}"),
        ):
            refused(done)
        assert "already holds a finished run" in done.err
        assert "folder=..." in done.err
        assert contents(searched.folder) == before

    def test_begun_run_is_not_written_over(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text("order: 1\n")
        line = refused(run("search", *SEARCH, f"folder={tmp_path}"))
        assert "already holds a run that was started" in line
        assert contents(tmp_path) == {"config.yaml": b"order: 1\n"}

    def test_begun_job_of_a_sweep_is_not_written_over(self, tmp_path: Path) -> None:
        (tmp_path / "0").mkdir()
        (tmp_path / "0" / "config.yaml").write_text("order: 1\n")
        done = run("search", "-m", *SEARCH, "seed=0", f"folder={tmp_path}")
        assert done.code == 2
        assert "already holds a run that was started" in done.err
        assert contents(tmp_path / "0") == {"config.yaml": b"order: 1\n"}

    def test_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        line = refused(run("search", *SEARCH, f"folder={tmp_path / 'file' / 'run'}"))
        assert str(tmp_path / "file") in line

    def test_exit_code_and_streams_of_a_process(self, tmp_path: Path) -> None:
        line = refused(start("-m", "src.search", *SEARCH, "order=3", f"folder={tmp_path / 'run'}"))
        assert line == "error: order must be 1 (first order) or 2 (unrolled), got 3\n"
        assert not any(tmp_path.iterdir())


class TestLoggersAndHelp:
    @pytest.mark.usefixtures("no_report")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")
    def test_tensorboard_has_curves_and_cells(self, tmp_path: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        finish("search", tmp_path / "run", *SEARCH, "logger=tensorboard")
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
        events.Reload()
        tags = events.Tags()
        assert set(tags["images"]) == {
            f"{what}/{kind}" for what in ("cells", "mixing_weights") for kind in ("normal", "reduce")
        }
        assert {"train_loss", "val_accuracy", "alpha_entropy"} <= set(tags["scalars"])
        assert events.Images("cells/normal")[0].encoded_image_string.startswith(b"\x89PNG")

    @pytest.mark.slow
    def test_wandb_offline_has_a_run_for_each_job(self, tmp_path: Path) -> None:
        overrides = ["logger=wandb", "logger.wandb.offline=true", "seed=0,1", f"folder={tmp_path / 'sweep'}"]
        script = f"import sys, wandb, src.search; sys.argv[1:] = {['-m', *SEARCH, *overrides]!r}; "
        script += "code = src.search.main(); sys.exit(code or (9 if wandb.run else 0))"
        done = start("-c", script, WANDB_SILENT="true", WANDB_DIR=str(tmp_path))
        for job in ("seed=0", "seed=1"):
            (folder,) = (tmp_path / "sweep" / job).glob("wandb/offline-run-*")
            assert list(folder.glob("*.wandb"))
            assert len(list(folder.glob("files/media/images/cells/*.png"))) == 2
            (text,) = (path.read_bytes() for path in folder.glob("*.wandb"))
            assert f"search-o1-s{job}-digits".encode() in text
            assert b"sweep" in text, "the group"
        assert done.code == 0, "a run of Weights & Biases is still live" if done.code == 9 else done.err

    @pytest.mark.usefixtures("no_report")
    def test_debug_fdr(self, tmp_path: Path) -> None:
        run_ = finish("search", tmp_path / "run", "data=digits", "trainer=cpu", *SMALL, *FEW, "debug=fdr")
        config = OmegaConf.load(run_.folder / "config.yaml")
        assert (config.epochs, config.trainer.max_epochs) == (1, 1)
        assert (config.trainer.limit_train_batches, config.trainer.limit_val_batches) == (2, 2)
        assert len(read_csv(run_.folder / "metrics.csv")) == 1

    def test_config_is_shown_and_nothing_runs(self, tmp_path: Path) -> None:
        done = run("search", "-c", "job", "order=2", f"folder={tmp_path / 'run'}")
        assert (done.code, done.err) == (0, "")
        config = OmegaConf.create(done.out)
        assert (config.order, config.data.batch_size) == (2, 64)
        assert not any(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("command", "own", "others"),
        [
            (
                "search",
                {
                    "space: darts, nas_bench_201, small_1d",
                    "optimizer: search",
                    "callbacks: none, ranking, robust, search",
                },
                ["genotype"],
            ),
            (
                "retrain",
                {
                    "experiment: darts_v1, darts_v2, demo_retrain, small",
                    "optimizer: retrain",
                    "callbacks: none, retrain",
                },
                ["method", "hypergradient"],
            ),
        ],
    )
    def test_help_lists_what_the_command_can_use(self, command: str, own: set[str], others: list[str]) -> None:
        done = run(command, "--help")
        assert done.code == 0
        assert done.out.startswith(f"python -m src.{command}: ")
        groups = {line.strip() for line in done.out.splitlines() if re.match("  [a-z]+: ", line)}
        assert own <= groups
        assert "data: cifar10, digits, fashion_mnist, image_folder, mnist_1d, own" in groups
        assert not [line for line in groups if line.partition(":")[0] in others]
        assert "\nepochs: " in done.out
