"""What W&B, TensorBoard and steps.csv hold after a search and a retrain as a user starts them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import yaml
from commands import FEW, RETRAIN, ROOT, SMALL, Done, contents, read_csv, read_json, refused, run
from omegaconf import OmegaConf
from PIL import Image

from src import dashboard
from src.callbacks import scalars
from src.callbacks.alphas import groups
from src.callbacks.loggers import Identity, StepsFile
from src.dashboard import PANELS
from src.runs.folder import RunFolder, read_wandb

OFFLINE = ["logger=wandb", "logger.wandb.offline=true"]
STEPS = 2  # an epoch
SEARCH = [
    "data=digits",
    "trainer=cpu",
    "order=2",
    f"trainer.limit_train_batches={STEPS}",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1",
    *SMALL,
    *FEW,
]
TENSORBOARD = [
    "logger.tensorboard._target_=lightning.pytorch.loggers.TensorBoardLogger",
    "logger.tensorboard.save_dir=${folder}",
    "logger.tensorboard.name=",
    "logger.tensorboard.version=tensorboard",
]


class Offline(NamedTuple):
    """A run's folder, and what its offline files hold, by type, in order."""

    folder: Path
    done: Done
    files: list[Path]

    def records(self, kind: str, file: int = 0) -> list[dict[str, Any]]:
        return [record[kind] for record in read_back(self.files[file]) if record["type"] == kind]


@cache
def read_back(path: Path) -> list[dict[str, Any]]:
    """Read the file of a run that has ended, as `wandb` itself reads it."""
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    lines = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def offline(command: str, folder: Path, *overrides: str) -> Offline:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"src.{command}.write_report", lambda folder: folder / "report.html")
        where = [] if any(text.startswith("resume=") for text in overrides) else [f"folder={folder}"]
        done = run(command, *overrides, *where)
    assert done.code == 0, done.err
    return Offline(folder, done, sorted(folder.glob("wandb/offline-run-*/*.wandb")))


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Offline:
    """A search with every logger and every diagnostic."""
    folder = tmp_path_factory.mktemp("runs") / "search"
    own = [*OFFLINE, *TENSORBOARD, "logger.wandb.tags=[mine]", "logger.wandb.notes=a note", "diagnostics=full"]
    return offline("search", folder, *SEARCH, "epochs=2", *own)


@pytest.fixture(scope="module")
def history(searched: Offline) -> list[dict[str, Any]]:
    return [record["item"] for record in searched.records("history")]


def test_samples_a_second_include_the_wait_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host has launched a step long before a GPU has done it; here reading values from the GPU takes a second."""
    now, on_host = [0.0], scalars._on_host

    def waiting(values: Any) -> Any:
        now[0] += 1
        return on_host(values)

    monkeypatch.setattr(scalars, "_on_host", waiting)
    monkeypatch.setattr(scalars, "time", SimpleNamespace(monotonic=lambda: now[0]))
    done = run(
        "search", *SEARCH, "order=1", "epochs=1", "data.batch_size=16", "diagnostics=none", f"folder={tmp_path / 'run'}"
    )
    assert done.code == 0, done.err
    first, *_ = read_csv(tmp_path / "run" / "steps.csv")
    assert float(first["time/samples_per_second"]) == 16


class TestSearch:
    def test_it_is_the_run_that_it_is_without_loggers_and_diagnostics(self, searched: Offline, tmp_path: Path) -> None:
        plain = offline("search", tmp_path / "run", *SEARCH, "epochs=2", "logger=none", "diagnostics=none")
        for name in ("alphas.csv", "genotype.json"):
            assert (plain.folder / name).read_bytes() == (searched.folder / name).read_bytes()
        added = {"exact_cosine", "finite_difference_cosine", "alpha_eigenvalue"}
        rows = read_csv(searched.folder / "metrics.csv")
        assert [{name: row.pop(name) for name in added}.keys() for row in rows] == [added] * 2
        assert rows == read_csv(plain.folder / "metrics.csv")
        assert not {"steps.csv", "wandb.json"} & set(contents(plain.folder))

    def test_name_job_type_tags_and_notes(self, searched: Offline) -> None:
        (own,) = searched.records("run")
        assert (own["display_name"], own["job_type"], own["notes"]) == ("search-o2-s0-digits", "search", "a note")
        assert own["tags"] == ["search", "digits", "order 2", "darts", "mine"]
        assert own["run_id"] == read_wandb(RunFolder(searched.folder))["id"]

    def test_config_is_composed_and_resolved(self, searched: Offline) -> None:
        config = searched.records("config")[0]["update"]
        assert (config["order"], config["epochs"], config["trainer"]["max_epochs"]) == (2, 2, 2)
        assert config["space"]["channels"] == 4
        assert "${" not in json.dumps(config)
        assert config["params"] == read_json(searched.folder / "result.json")["params"]

    def test_one_row_a_step_with_all_that_it_measured(self, history: list[dict[str, Any]]) -> None:
        assert [row["trainer/global_step"] for row in history] == [row["_step"] for row in history] == [0, 1, 2, 3]
        assert [row["epoch"] for row in history] == [0, 0, 1, 1]
        for row in history:
            assert row["hypergradient/ratio"] == pytest.approx(
                row["hypergradient/correction"] / row["hypergradient/direct"], rel=1e-5
            )
            assert {"step/train_loss", "step/train_accuracy", "step/arch_loss", "step/arch_accuracy"} <= set(row)
            assert row["step/lr_alphas"] == pytest.approx(3e-4)
            assert min(row["time/alpha_step"], row["time/weight_step"], row["time/samples_per_second"]) > 0
            assert row["memory/process_peak_gib"] > 0
        assert history[0]["step/lr_weights"] == 0.025
        assert history[3]["step/lr_weights"] < 0.025

    def test_epochs_stand_at_their_last_step(self, searched: Offline, history: list[dict[str, Any]]) -> None:
        last = [row for row in history if "val_accuracy" in row]
        assert [row["_step"] for row in last] == [1, 3]
        for row, written in zip(last, read_csv(searched.folder / "metrics.csv"), strict=True):
            del written["lr"]
            assert {name: row[name] for name in written} == pytest.approx({n: float(v) for n, v in written.items()})
        mean = sum(row["step/train_loss"] for row in history[:2]) / 2
        assert last[0]["train_loss"] == pytest.approx(mean, rel=1e-5), "means of steps are those of the epoch"

    def test_mixing_weights_and_how_decided_they_are(self, searched: Offline, history: list[dict[str, Any]]) -> None:
        rows = read_csv(searched.folder / "alphas.csv")
        weights = {
            f"alphas/{row['key']}/{row['candidate']}": float(row["weight"]) for row in rows if row["epoch"] == "1"
        }
        assert {name: value for name, value in history[3].items() if name.startswith("alphas/")} == pytest.approx(
            weights
        )
        genotype = read_json(searched.folder / "genotype.json")
        assert history[3]["skip_count"] == list(genotype.values()).count("skip_connect")
        assert 0 < history[3]["alpha_margin"] < 0.1
        hidden = [record for record in searched.records("metric") if record.get("glob_name") == "alphas/*"]
        assert hidden[0]["options"]["hidden"]

    def test_pictures_of_one_size_with_a_slider(self, searched: Offline, history: list[dict[str, Any]]) -> None:
        for key in ("cells/normal", "cells/reduce", "mixing_weights/normal", "mixing_weights/reduce"):
            shown = [row for row in history if f"{key}.filenames" in row]
            assert [row["_step"] for row in shown] == [1, 3]
            files = [searched.files[0].parent / "files" / row[f"{key}.filenames"][0] for row in shown]
            assert len({size_of(path) for path in files}) == 1, key

    def test_a_chart_of_each_cell_and_the_genotype_as_text(
        self, searched: Offline, history: list[dict[str, Any]]
    ) -> None:
        media = searched.files[0].parent / "files"
        tables = [row["mixing_weights/normal_curves_table.path"] for row in history if row["_step"] in (1, 3)]
        table = read_json(media / tables[-1])
        assert table["columns"] == ["step", "lineKey", "lineVal"]
        assert {row[0] for row in table["data"]} == {0, 1}
        assert len({row[1] for row in table["data"]}) == 5 * 4, "a line for each candidate of each edge"
        text = (media / history[3]["genotype_text.path"]).read_text()
        assert "Genotype(normal=[('" in text

    def test_diagnostics(self, history: list[dict[str, Any]]) -> None:
        for row in (history[1], history[3]):
            found = {n.removeprefix("diagnostics/"): v for n, v in row.items() if n.startswith("diagnostics/")}
            assert set(found) == {
                "cosine_order_1_2",
                "finite_difference_cosine",
                "finite_difference_error",
                "exact_cosine",
                "alpha_eigenvalue",
                "supernet_accuracy",
                "discretised_accuracy",
                "discretisation_gap",
                *(f"seconds_{name}" for name in ("orders", "exact", "eigenvalue", "gap")),
            }
            assert -1 <= found["cosine_order_1_2"] <= 1
            assert found["discretisation_gap"] == pytest.approx(
                found["supernet_accuracy"] - found["discretised_accuracy"]
            )
        assert not any(name.startswith("diagnostics/") for name in history[0])

    def test_summary_and_artifact(self, searched: Offline) -> None:
        result = read_json(searched.folder / "result.json")
        summary: dict[str, Any] = {}
        for record in searched.records("summary"):
            summary |= record.get("update", {})
        for name in ("status", "params", "macs", "seconds"):
            assert summary[name] == result[name]
        assert summary["val_accuracy"] == pytest.approx(result["metrics"]["val_accuracy"])
        assert summary["genotype"].startswith("Genotype(normal=[")
        (artifact,) = (record for record in searched.records("artifact") if record["type"] == "genotype")
        assert artifact["name"] == f"genotype-{searched.records('run')[0]['run_id']}"
        assert [entry["path"] for entry in artifact["manifest"]["contents"]] == ["genotype.json"]

    def test_other_loggers_have_the_same_scalars_at_the_same_steps(
        self, searched: Offline, history: list[dict[str, Any]]
    ) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        scalars = {
            (name, row["_step"]): value
            for row in history
            for name, value in row.items()
            if isinstance(value, int | float) and name[0] != "_" and name != "trainer/global_step" and "." not in name
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tensorboard's own
            events = EventAccumulator(str(searched.folder / "tensorboard"))
            events.Reload()
        written = {
            (name, event.step): event.value for name in events.Tags()["scalars"] for event in events.Scalars(name)
        }
        assert written.pop(("hp_metric", 0)) == pytest.approx(scalars["val_accuracy", 3])
        assert written == pytest.approx(scalars, rel=1e-5)
        assert set(events.Tags()["images"]) >= {"cells/normal", "mixing_weights/normal"}
        hparams = (searched.folder / "tensorboard" / "hparams.yaml").read_text()
        assert "order: 2" in hparams

        rows = read_csv(searched.folder / "steps.csv")
        of_file = {
            (name, int(row["step"])): float(value)
            for row in rows
            for name, value in row.items()
            if value and name != "step"
        }
        assert of_file == pytest.approx({k: v for k, v in scalars.items() if not k[0].startswith("alphas/")}, rel=1e-5)

    def test_the_workspace_has_panels_of_what_is_logged(self, history: list[dict[str, Any]]) -> None:
        logged = {name for row in history for name in row}
        # Of a retrain, of a GPU, of methods of one level or with a weight rule, of a space with a table, and of a guard.
        of_others = {"test_accuracy", "memory/device_peak_gib", "time/joint_step", "frozen_operations", "cell_cosine"}
        found = {metric for panels in PANELS.values() for _, metrics in panels for metric in metrics}
        assert {name for name in found - of_others if not name.startswith(("table_", "ranking_", "guard/"))} <= logged

    def test_resumed_offline_it_is_a_second_file_of_the_same_run(self, searched: Offline) -> None:
        resumed = offline("search", searched.folder, f"resume={searched.folder}", "epochs=3")
        assert len(resumed.files) == 2
        new = next(index for index, file in enumerate(resumed.files) if file not in searched.files)
        assert resumed.records("run", new)[0]["run_id"] == searched.records("run")[0]["run_id"]
        assert [record["item"]["_step"] for record in resumed.records("history", new)] == [4, 5]
        assert [int(row["step"]) for row in read_csv(searched.folder / "steps.csv")] == list(range(6))


class TestRetrain:
    def test_it_says_which_genotype_it_has_used(self, searched: Offline, tmp_path: Path) -> None:
        retrained = offline(
            "retrain",
            tmp_path / "run",
            *RETRAIN,
            *OFFLINE,
            "trainer.log_every_n_steps=1",
            f"genotype={searched.folder}",
        )
        (own,) = retrained.records("run")
        assert (own["display_name"], own["job_type"]) == (f"retrain-s0-digits-{searched.folder.name}", "retrain")
        origin = retrained.records("config")[0]["update"]["genotype_origin"]
        path = searched.folder / "genotype.json"
        assert (origin["path"], origin["sha256"]) == (str(path), hashlib.sha256(path.read_bytes()).hexdigest())
        (artifact,) = (record for record in searched.records("artifact") if record["type"] == "genotype")
        assert origin["artifact"] == artifact["name"]
        history = [record["item"] for record in retrained.records("history")]
        assert [row["_step"] for row in history] == [0, 1, 2]
        assert history[1]["train_loss"] > 0
        assert history[2]["test_accuracy"] == read_json(retrained.folder / "result.json")["metrics"]["test_accuracy"]


class TestMistakes:
    @pytest.fixture
    def stranger(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody is logged in, and there is no terminal."""
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
        monkeypatch.setattr("sys.stdin", None)

    @pytest.mark.usefixtures("stranger")
    def test_without_an_account_nothing_is_trained(self, tmp_path: Path) -> None:
        line = refused(run("search", *SEARCH, "logger=wandb", f"folder={tmp_path / 'run'}"))
        assert "run `wandb login` once" in line
        assert "logger.wandb.offline=true keeps the run on this machine" in line
        assert not (tmp_path / "run").exists()

    @pytest.mark.usefixtures("stranger")
    def test_without_an_account_there_is_no_workspace(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert dashboard.main([]) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: Weights & Biases knows no account")
        assert line.count("\n") == 1

    @pytest.mark.parametrize(
        ("typed", "line"),
        [
            ("logger.wandb.ofline=true", "unknown key 'ofline' in logger.wandb, did you mean 'offline'?"),
            ("logger.wandb.offline=maybe", "logger.wandb.offline must be true or false, got 'maybe'"),
            ("logger.wandb.log_model=true", "logger.wandb.log_model must be false offline"),
            ("diagnostics=ful", "unknown diagnostics option 'ful', did you mean 'full'?"),
            ("diagnostics.gap_batches=-1", "diagnostics.gap_batches must be 0 or more, got -1"),
            ("diagnostics.exact_every_n_steps=0", "diagnostics.exact_every_n_steps must be 1 or more, or null, got 0"),
        ],
    )
    def test_a_mistyped_setting(self, typed: str, line: str, tmp_path: Path) -> None:
        assert line in refused(run("search", *SEARCH, *OFFLINE, typed, f"folder={tmp_path / 'run'}"))


class TestStepsFile:
    @staticmethod
    def file(folder: Path) -> StepsFile:
        file = StepsFile()
        file.of_run(Identity(folder, "name", "search"))
        return file

    def test_values_of_a_step_are_one_row(self, tmp_path: Path) -> None:
        file = self.file(tmp_path)
        file.log_metrics({"a": 1.0}, step=0)
        file.log_metrics({"b": 0.1, "alphas/key/candidate": 0.5}, step=0)
        file.log_metrics({"c": 2.0}, step=3)
        file.finalize("success")
        assert (tmp_path / "steps.csv").read_text() == "step,a,b,c\n0,1,0.1,\n3,,,2\n"

    def test_a_resumed_run_goes_on_where_its_checkpoint_is(self, tmp_path: Path) -> None:
        (tmp_path / "steps.csv").write_text("step,a\n0,1\n1,2\n2,3\n3,")  # killed while it wrote
        file = self.file(tmp_path)
        for step in (2, 3):
            file.log_metrics({"a": 10.0 + step}, step=step)
        file.finalize("success")
        assert (tmp_path / "steps.csv").read_text() == "step,a\n0,1\n1,2\n2,12\n3,13\n"


def test_choices_with_the_same_candidates_share_a_picture() -> None:
    found = groups({"first": ("a", "b"), "second": ("a", "b", "c"), "third": ("a", "b")})
    assert found == {"choices": ["first", "third"], "choices_2": ["second"]}


def test_the_command_of_the_sweep_that_wandb_plans() -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((ROOT / "examples" / "wandb_sweep.yaml").read_text())
    sampled = {"optimizer.alphas.lr": 0.003, "order": 2, "seed": 3}
    assert sampled.keys() == sweep["parameters"].keys()
    words: dict[str, list[str]] = create_sweep_command_args({"args": {k: {"value": v} for k, v in sampled.items()}})
    words |= {"env": [], "interpreter": ["python"]}
    line = [part for word in create_sweep_command(sweep["command"]) for part in words.get(word.strip("${}"), [word])]
    assert line[:3] == ["python", "-m", "src.search"]
    done = run("search", "--cfg", "job", *line[3:])
    assert done.code == 0, done.err
    config = OmegaConf.create(done.out)
    assert (config.optimizer.alphas.lr, config.order, config.seed, config.epochs) == (0.003, 2, 3, 24)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pydantic, for wandb-workspaces
def test_the_workspace_has_pictures_and_a_panel_for_each_cell() -> None:
    text = dashboard.workspace("me", "darts")._to_model().model_dump_json()
    assert all(key in text for key in ("cells/normal", "mixing_weights/reduce", "genotype_text", "alphas/normal_.*"))
