"""What a user types, before Hydra reads it; and where a run goes."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from src.common.errors import ConfigError
from src.common.shell import parsed
from src.runs import placing
from src.runs.commandline import as_typed, drop_inherited, only_shows, ready
from src.runs.composition import CONF
from src.runs.schema import register_schemas


def composed(*typed: str) -> DictConfig:
    """Return the config of `python -m src.search TYPED`."""
    register_schemas()
    overrides = ready(typed)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("search", overrides)
    drop_inherited(config, overrides)
    return config


class TestReady:
    def test_arguments_of_what_is_built_need_no_plus(self) -> None:
        typed = ["space.depth=3", "+trainer.max_time=1", "~callbacks.pictures", "order=2", "data=digits", "-m"]
        assert ready(typed) == [
            "++space.depth=3", "++trainer.max_time=1", "~callbacks.pictures", "order=2", "data=digits", "-m"
        ]  # fmt: skip
        assert ready(ready(typed)) == ready(typed)
        assert [as_typed(text) for text in ready(typed)][:2] == ["space.depth=3", "trainer.max_time=1"]
        assert as_typed("++order=2") == "++order=2"

    @pytest.mark.parametrize(
        ("typed", "meant"),
        [
            (["--order=2"], "order=2"),
            (["--order", "2"], "order=2"),
            (["--order"], "order=..."),
            (["-lr=0.1"], "lr=0.1"),
            (["--seed", "data=digits"], "seed=..."),
        ],
    )
    def test_an_option_is_an_override(self, typed: list[str], meant: str) -> None:
        with pytest.raises(ConfigError, match=f"^unknown option {typed[0]}, did you mean {re.escape(meant)}\\?$"):
            ready(typed)

    def test_hydras_options_stay(self) -> None:
        typed = ["-m", "--multirun", "--cfg", "job", "-c", "job", "--help", "--info=all", "--config-dir=x"]
        assert ready(typed) == typed
        assert not only_shows(["-m", "order=1,2"])
        assert only_shows(["-c", "job"])
        assert only_shows(["--help"])


class TestTargets:
    def test_a_space_of_ones_own_inherits_nothing(self) -> None:
        assert composed("space._target_=my.Space", "space.depth=3").space == {"_target_": "my.Space", "depth": 3}
        assert composed("space.depth=3", "space._target_=my.Space").space == {"_target_": "my.Space", "depth": 3}

    @pytest.mark.parametrize(
        "key", ["data", "data.source", "hypergradient", "logger.x", "callbacks.x", "callbacks.progress"]
    )
    def test_everything_else_that_is_built(self, key: str) -> None:
        config = composed(f"{key}._target_=my.Own", f"{key}.a.b=1")
        assert OmegaConf.select(config, key) == {"_target_": "my.Own", "a": {"b": 1}}

    @pytest.mark.parametrize("key", ["weights", "schedule", "alphas"])
    def test_a_partial_stays_one(self, key: str) -> None:
        config = composed(f"optimizer.{key}._target_=my.Own", f"optimizer.{key}.lr=1")
        assert config.optimizer[key] == {"_target_": "my.Own", "_partial_": True, "lr": 1}

    def test_neighbours_stay(self) -> None:
        config = composed("data.source._target_=my.Source")
        assert config.data.source == {"_target_": "my.Source"}
        assert config.data.batch_size == 64

    def test_arguments_that_are_named_stay_whole(self) -> None:
        config = composed("data._target_=my.Data", "data.source.root=x")
        assert config.data == {"_target_": "my.Data", "source": {"_target_": "src.data.sources.Cifar10", "root": "x"}}

    def test_a_trainer_keeps_what_the_option_says(self) -> None:
        config = composed("trainer._target_=my.Trainer", "epochs=3")
        assert (config.trainer.max_epochs, config.trainer.devices) == (3, 1)

    def test_no_schedule(self) -> None:
        assert composed("~optimizer.schedule").optimizer.schedule is None
        assert composed("optimizer.schedule=null").optimizer.schedule is None


class TestPlacing:
    def test_each_run_of_one_second_has_its_own_folder(self, tmp_path: Path) -> None:
        name = str(tmp_path / "runs" / "12-00-00")
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda _: placing._make(Path(name)), range(8)))
        assert sorted(made) == sorted([name, *(f"{name}_{number}" for number in range(1, 8))])
        assert all(Path(folder).is_dir() for folder in made)

    def test_asked_again_it_is_the_same(self, tmp_path: Path) -> None:
        name = str(tmp_path / "run")
        placing.begin(makes=True)
        try:
            assert placing.new_folder(name) == placing.new_folder(name) == name
            placing.begin(makes=True)
            assert placing.new_folder(name) == f"{name}_1"
        finally:
            placing.begin(makes=False)
        assert placing.new_folder(str(tmp_path / "other")) == str(tmp_path / "other")
        assert {path.name for path in tmp_path.iterdir()} == {"run", "run_1"}


class TestJobNames:
    @pytest.mark.parametrize(
        ("typed", "name"),
        [
            (["order=1,2", "seed=0,1"], "order=2,seed=1"),
            (["seed=0,1", "order=1,2"], "order=2,seed=1"),  # the same job, however it is typed
            (["space.depth=1,2", "data=digits,cifar10"], "data=cifar10,space.depth=2"),
            (["seed=range(0,2)"], "seed=1"),
            (["genotype=DARTS_V1,runs/a/epoch_9.json"], "genotype=epoch_9.json-bbdf15"),
            (["genotype=runs/b/epoch_9.json,runs/a/epoch_9.json"], "genotype=epoch_9.json-bbdf15"),
            (["space.candidates=[a,b],[c,d]"], "space.candidates=c-d-dfad67"),
            (["seed=7"], "3"),
            (["seed=0,1", "hydra.sweep.subdir=mine"], "mine"),
        ],
    )
    def test_the_last_job(self, typed: list[str], name: str) -> None:
        *_, subdir = [one for text in ["hydra.sweep.subdir=${hydra.job.num}", *ready(["-m", *typed])] if (one := parsed(text))
                      and one.key_or_group == "hydra.sweep.subdir"]  # fmt: skip
        job = []
        for one in map(parsed, ready(typed)):
            assert one is not None
            last = list(one.sweep_string_iterator())[-1] if one.is_sweep_override() else one.get_value_element_as_str()
            job.append(f"{one.key_or_group}={last}")
        hydra = {"overrides": {"task": job}, "job": {"num": 3}, "subdir": subdir.value()}
        assert str(OmegaConf.create({"hydra": hydra}).hydra.subdir) == name

    def test_a_long_name_is_cut(self) -> None:
        overrides = [f"{'k' * 40}{index}={index}" for index in range(9)]
        config = OmegaConf.create({"hydra": {"overrides": {"task": overrides}, "job": {"num": 0}}})
        names = {placing._job_name(*(text.partition("=")[0] for text in overrides[:count]), _root_=config)
                 for count in (8, 9)}  # fmt: skip
        assert len(names) == 2
        assert all(len(name) == placing._LONGEST_NAME for name in names)
