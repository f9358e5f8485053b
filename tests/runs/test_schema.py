"""What the commands can be told: values and types, messages, and the files in conf/."""

from __future__ import annotations

import datetime
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from src.runs.launch import CONF, command_of_job, launch
from src.runs.schema import LARGEST_SEED, check, register_schemas
from src.spaces.cnn.genotypes import CANDIDATES


class Frozen(datetime.datetime):
    """A clock that stands."""

    @classmethod
    def now(cls, tz: Any = None) -> Frozen:
        return cls(2026, 1, 2, 3, 4, 5)


EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
DEBUGS = sorted(path.stem for path in (CONF / "debug").glob("*.yaml"))


def composed(command: str, *overrides: str) -> DictConfig:
    """Return the config of a command line, values not validated."""
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(command, list(overrides))


def refusal(command: str, *overrides: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the line that the launcher refuses `overrides` with, before any job."""

    def job(config: DictConfig, folder: Path) -> None:
        raise AssertionError(f"a job was begun in {folder}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [command, f"folder={folder / 'run'}", *overrides])
        patch.setenv("HYDRA_FULL_ERROR", "0")
        assert launch(command, job) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    assert not any(folder.iterdir())
    return err


class TestRecipe:
    """The defaults are section 3.1 and appendix A.1 of arXiv 1806.09055, as its code has them."""

    def test_search(self) -> None:
        config = composed("search")
        assert (config.order, config.epochs, config.hypergradient.order) == (1, 50, 1)
        assert config.space == {
            "_target_": "src.spaces.cnn.cells.Supernet",
            "impl": "auto",
            "channels": 16,
            "cells": 8,
            "nodes": 4,
            "stem": "cifar",
            "stem_multiplier": None,
            "candidates": [
                "none",
                "max_pool_3x3",
                "avg_pool_3x3",
                "skip_connect",
                "sep_conv_3x3",
                "sep_conv_5x5",
                "dil_conv_3x3",
                "dil_conv_5x5",
            ],
            "operations": [],
        }
        assert tuple(config.space.candidates) == CANDIDATES
        assert config.data == {
            "_target_": "src.data.modules.SearchData",
            "source": {"_target_": "src.data.sources.Cifar10", "root": "data/cifar10"},
            "batch_size": 64,
            "arch_fraction": 0.5,
            "crop_padding": 4,
            "flip": True,
        }
        assert config.optimizer == {
            "weights": {
                "_target_": "torch.optim.SGD",
                "_partial_": True,
                "lr": 0.025,
                "momentum": 0.9,
                "weight_decay": 3e-4,
                "fused": True,
            },
            "schedule": {
                "_target_": "torch.optim.lr_scheduler.CosineAnnealingLR",
                "_partial_": True,
                "T_max": 50,
                "eta_min": 0.001,
            },
            "alphas": {
                "_target_": "torch.optim.Adam",
                "_partial_": True,
                "lr": 3e-4,
                "betas": [0.5, 0.999],
                "weight_decay": 1e-3,
                "fused": True,
            },
            "gradient_clip": 5.0,
        }

    def test_retrain(self) -> None:
        config = composed("retrain", "genotype=DARTS_V2")
        assert config.epochs == config.trainer.max_epochs == 600
        assert config.space == {
            "_target_": "src.spaces.cnn.network.Network",
            "impl": "auto",
            "channels": 36,
            "cells": 20,
            "stem": "cifar",
            "stem_multiplier": None,
            "auxiliary": True,
            "auxiliary_weight": 0.4,
            "drop_path": 0.2,
            "operations": [],
        }
        assert config.data == {
            "_target_": "src.data.modules.RetrainData",
            "source": {"_target_": "src.data.sources.Cifar10", "root": "data/cifar10"},
            "batch_size": 96,
            "crop_padding": 4,
            "flip": True,
        }
        assert config.optimizer == {
            "weights": {
                "_target_": "torch.optim.SGD",
                "_partial_": True,
                "lr": 0.025,
                "momentum": 0.9,
                "weight_decay": 3e-4,
                "fused": True,
            },
            "schedule": {
                "_target_": "torch.optim.lr_scheduler.CosineAnnealingLR",
                "_partial_": True,
                "T_max": 600,
                "eta_min": 0.0,
            },
            "gradient_clip": 5.0,
        }


class TestFiles:
    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_experiment_composes_with_the_command_in_its_header(self, name: str) -> None:
        text = (CONF / "experiment" / f"{name}.yaml").read_text()
        match = re.search(r"^#   python -m src\.(search|retrain) (.*)$", text, flags=re.MULTILINE)
        assert match, "an experiment's header gives the command that runs it"
        command, overrides = match[1], match[2].split()
        assert overrides[0] == f"experiment={name}"
        config = composed(command, *overrides)
        check(command, config)
        assert not OmegaConf.missing_keys(config)

    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_experiment_has_the_last_word_but_for_the_command_line(self, name: str) -> None:
        command = "retrain" if name.startswith("darts_v") or "retrain" in name else "search"
        own = OmegaConf.load(CONF / "experiment" / f"{name}.yaml")
        assert isinstance(own, DictConfig)
        own.pop("defaults", None)
        config = composed(command, f"experiment={name}", "folder=run")
        assert OmegaConf.merge(config, own) == config
        assert composed(command, f"experiment={name}", "epochs=7").trainer.max_epochs == 7

    @pytest.mark.parametrize("name", DEBUGS)
    @pytest.mark.parametrize("command", ["search", "retrain"])
    def test_debug_goes_over_an_experiment(self, command: str, name: str) -> None:
        experiment = {"search": "demo", "retrain": "demo_retrain"}[command]
        own = OmegaConf.load(CONF / "debug" / f"{name}.yaml")
        config = composed(command, f"experiment={experiment}", f"debug={name}", "folder=run")
        assert OmegaConf.merge(config, own) == config

    @pytest.mark.parametrize("group", ["data", "trainer", "logger", "callbacks"])
    @pytest.mark.parametrize("command", ["search", "retrain"])
    def test_every_option_of_a_group_composes(self, command: str, group: str) -> None:
        for path in (CONF / group).glob("*.yaml"):
            check(command, composed(command, f"{group}={path.stem}"))

    def test_every_hypergradient_composes_with_an_order(self) -> None:
        for path in (CONF / "hypergradient").glob("*.yaml"):
            check("search", composed("search", f"hypergradient={path.stem}", "order=2"))


class TestCheck:
    @pytest.mark.parametrize("order", [1, 2])
    @pytest.mark.parametrize("seed", [0, LARGEST_SEED])
    def test_edges_of_what_is_allowed(self, order: int, seed: int) -> None:
        check("search", composed("search", f"order={order}", f"seed={seed}", "epochs=1"))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"order": 0}, "order must be 1 (first order) or 2 (unrolled), got 0"),
            ({"seed": LARGEST_SEED + 1}, "seed must be between 0 and 4294967295, got 4294967296"),
            ({"epochs": 0}, "epochs must be 1 or more, got 0"),
        ],
    )
    def test_a_value_that_no_run_can_use(self, change: dict[str, Any], message: str) -> None:
        config = OmegaConf.merge(composed("search"), change)
        assert isinstance(config, DictConfig)
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            check("search", config)

    def test_an_added_key(self) -> None:
        config = composed("retrain", "genotype=DARTS_V1", "+epoch=3")
        with pytest.raises(ValueError, match=r"^unknown key 'epoch', did you mean 'epochs'\? \(allowed: genotype, "):
            check("retrain", config)


class TestMessages:
    @pytest.mark.parametrize(
        ("typed", "line"),
        [
            ("epochs=ten", "epochs must be a whole number, got 'ten'"),
            ("seed=1.5", "seed must be a whole number, got 1.5"),
            ("order=null", "order must be a whole number, got null"),
            ("checkpoint_minutes=often", "checkpoint_minutes must be a number or null, got 'often'"),
            ("data.batch_size=many", "data.batch_size must be a whole number, got 'many'"),
            ("data.arch_fraction=half", "data.arch_fraction must be a number, got 'half'"),
            ("data.flip=often", "data.flip must be true or false, got 'often'"),
            ("space.channels=wide", "space.channels must be a whole number, got 'wide'"),
            ("space.candidates=none", "space.candidates must be a list of values that are each text, got 'none'"),
            ("optimizer.gradient_clip=none", "optimizer.gradient_clip must be a number, got 'none'"),
            ("optimizer.alphas.betas=0.5", "optimizer.alphas.betas must be a list"),
            ("trainer.num_nodes=two", "trainer.num_nodes must be a whole number, got 'two'"),
        ],
    )
    def test_a_wrong_type_names_its_key(
        self, typed: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert refusal("search", typed, folder=tmp_path, capsys=capsys).startswith(f"error: {line}")

    @pytest.mark.parametrize(
        ("typed", "hint"),
        [
            ("sed=1", "unknown key 'sed', did you mean 'seed'? (allowed: order, seed, "),
            ("experimnt=demo", "unknown key 'experimnt', did you mean 'experiment'?"),
            (
                "data.batchsize=8",
                "unknown key 'batchsize' in data, did you mean 'batch_size'? (allowed: source, batch_size,",
            ),
            ("optimizer.alpha.lr=1", "unknown key 'alpha' in optimizer, did you mean 'alphas'?"),
            ("optimizer.alphas.lrr=1", "unknown key 'lrr' in optimizer.alphas, did you mean 'lr'?"),
            (
                "trainer=gpus",
                "unknown trainer option 'gpus', did you mean 'gpu'? (allowed: auto, cpu, ddp, ddp_cpu, gpu)",
            ),
            ("logger=tensorbord", "did you mean 'tensorboard'?"),
            ("debug=overfitt", "did you mean 'overfit'? (allowed: fdr, overfit, profiler)"),
            ("hypergradient=onesided", "did you mean 'one_sided'?"),
        ],
    )
    def test_a_mistyped_name_gets_the_nearest(
        self, typed: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert hint in refusal("search", typed, folder=tmp_path, capsys=capsys)

    def test_schemas_are_no_options(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        line = refusal("search", "space=dart", folder=tmp_path, capsys=capsys)
        assert "did you mean 'darts'?" in line
        assert "schema" not in line

    @pytest.mark.parametrize(
        ("command", "typed", "line"),
        [
            ("search", ["--order=2"], "unknown option --order=2, did you mean order=2?"),
            ("search", ["order=1,2"], "order=1,2 is several values: add --multirun (-m) to run each of them, or quote"),
            (
                "search",
                ["space.candidates=[none"],
                "cannot read 'space.candidates=[none', which has no closing bracket",
            ),
            ("search", ["order 2=1"], "cannot read 'order 2=1': 'order 2' is not the name of a setting"),
            ("retrain", ["experiment=demo"], "experiment=demo is for src.search; with src.retrain use demo_retrain"),
            ("search", ["experiment=darts_v2"], "experiment=darts_v2 is for src.retrain; with src.search use "),
            (
                "search",
                ["optimizer=retrain"],
                "optimizer.alphas is not set: the optimizer option is for another command",
            ),
            (
                "retrain",
                ["optimizer=search", "genotype=DARTS_V1"],
                "optimizer=search is for src.search; with src.retrain",
            ),
            (
                "retrain",
                ["experiment=dem"],
                "unknown experiment option 'dem' (allowed: darts_v1, darts_v2, demo_retrain, small)",
            ),
            ("search", ["epochs=2", "trainer.max_epochs=4"], "and schedules end with epochs; set epochs=4 instead"),
        ],
    )
    def test_a_habit_from_elsewhere(
        self, command: str, typed: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert line in refusal(command, *typed, folder=tmp_path, capsys=capsys)


class TestText:
    @pytest.mark.parametrize("folder", ["résumé", "lr=0.1", "run (2)", "猫 und Hund", "a#b", "f(1)"])
    def test_a_folder_needs_no_quotes_of_hydras(
        self, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        seen = []

        def job(config: DictConfig, folder: Path) -> None:
            seen.append((config.folder, folder, command_of_job("search")))

        monkeypatch.setattr(sys, "argv", ["search", f"folder={tmp_path / folder}", "data.source.root=~/a=b", "seed=3"])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setenv("HOME", "/home/me")
        assert launch("search", job) == 0, capsys.readouterr().err
        command = "python -m src.search \"data.source.root='/home/me/a=b'\" seed=3"
        assert seen == [(str(tmp_path / folder), tmp_path / folder, command)]

    def test_runs_of_one_second_and_the_default_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("hydra.core.utils.datetime", Frozen)
        monkeypatch.setattr(sys, "argv", ["search"])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

        def job(config: DictConfig, folder: Path) -> None:
            assert config.folder == str(folder.relative_to(tmp_path))
            (folder / "config.yaml").write_text("")

        for _ in range(3):
            assert launch("search", job) == 0, capsys.readouterr().err
        monkeypatch.setattr(sys, "argv", ["search", "-m", "seed=0,1"])
        assert launch("search", lambda config, folder: (folder / "config.yaml").touch()) == 0, capsys.readouterr().err
        monkeypatch.setattr(sys, "argv", ["search", "-c", "job", "--resolve"])
        assert launch("search", job) == 0
        name = "runs/search/2026-01-02_03-04-05"
        made = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("config.yaml")]
        assert sorted(Path(path).parent.as_posix() for path in made) == [
            name, f"{name}_1", f"{name}_2", f"{name}_3/seed=0", f"{name}_3/seed=1"
        ]  # fmt: skip
