"""Spaces in a package of one's own: searched by their name alone, and retrained as they are or as what they name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import FEW, SHORT, SMALL, read_json, refused, run

from src.runs.searched import run_of

PACKAGE = '''
from torch import Tensor, nn

from src.spaces.choices import InputChoice, LayerChoice


class Base(nn.Module):
    def __init__(self, input_shape, num_classes, depth: int = 2, width: int = 4):
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(input_shape[-1] ** 2, width))
        self.layers = nn.ModuleList(self.layer(f"layer{index}", width) for index in range(depth))
        self.head = nn.Linear(width, num_classes)

    def layer(self, key, width):
        return LayerChoice({"linear": nn.Linear(width, width), "skip": nn.Identity()}, key=key)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Deep(Base):
    """An evaluation network: the layers that were found, twice."""

    settings_of_the_space = ("depth",)

    def __init__(self, architecture, input_shape, num_classes, depth: int, width: int = 6):
        self.answers = architecture.choices
        super().__init__(input_shape, num_classes, 2 * depth, width)

    def layer(self, key, width):
        found = self.answers[f"layer{int(key[5:]) // 2}"]
        return nn.Identity() if found == "skip" else nn.Linear(width, width)


class Named(Base):
    evaluation = Deep


class Wide(Base):
    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes + 2)


class Hidden(Base):
    def forward(self, x):
        return self.head(LayerChoice({"a": nn.Identity(), "b": nn.ReLU()}, key="late")(self.layers[0](self.stem(x))))


class Buggy(Base):
    def forward(self, x):
        return self.head(x.no_such_attribute)
'''
SEARCH = ["data=digits", *SHORT, "data.batch_size=32"]
RETRAIN = [*SHORT, "trainer.limit_test_batches=1"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A current folder with a package in it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_package").mkdir()
    (folder / "own_package" / "__init__.py").write_text(PACKAGE)
    (folder / "own_package" / "broken.py").write_text("import no_such_package\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def searched(package: Path) -> Path:
    done = run("search", *SEARCH, "space._target_=own_package.Base", "space.depth=3", "folder=found")
    assert done.code == 0, done.err
    return package / "found"


def settings(folder: str | Path) -> dict[str, Any]:
    return yaml.safe_load((Path(folder) / "config.yaml").read_text())


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return torch.load(Path(folder) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_target_is_all_that_a_search_needs(searched: Path) -> None:
    assert settings(searched)["space"] == {"_target_": "own_package.Base", "depth": 3}
    assert set(read_json(searched / "genotype.json")) == {"layer0", "layer1", "layer2"}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("own_package.Wide", "space: the output of the space must have 10 values for each sample (num_classes)"),
        ("own_package.Hidden", "space: LayerChoice 'late' was called, but no RelaxedSpace holds it"),
        ("own_package.Bse", "did you mean own_package.Base?"),
        ("own_packages.Base", "there is no module 'own_packages' in the current folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(target: str, message: str, package: Path) -> None:
    assert message in refused(run("search", *SEARCH, f"space._target_={target}", "folder=refused"))
    assert not (package / "refused").exists()


def test_an_argument_that_the_space_does_not_take(package: Path) -> None:
    line = refused(run("search", *SEARCH, "space._target_=own_package.Base", "space.dpeth=3", "folder=refused"))
    assert "unknown key 'dpeth' in space, did you mean 'depth'?" in line


@pytest.mark.parametrize(
    ("target", "error"),
    [("own_package.Buggy", "AttributeError"), ("own_package.broken.Base", "ModuleNotFoundError")],
)
def test_mistakes_in_the_package_keep_their_traceback(target: str, error: str, package: Path) -> None:
    done = run("search", *SEARCH, f"space._target_={target}", "folder=failed")
    assert done.code == 1
    assert "Traceback" in done.err
    assert f"{error}: " in done.err.splitlines()[-1]
    assert "own_package" in done.err


def test_a_run_is_retrained_as_its_own_space_on_its_own_data(searched: Path, package: Path) -> None:
    done = run("retrain", *RETRAIN, "genotype=found", "data.batch_size=48", "folder=trained")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == "taken from found: genotype, data, space (own_package.Base)"
    own = settings("trained")
    assert own["space"] == {"_target_": "own_package.Base", "depth": 3}
    assert own["data"]["source"] == settings(searched)["data"]["source"]
    assert (own["data"]["batch_size"], own["data"]["crop_padding"], own["data"]["flip"]) == (48, 1, False)
    assert read_json(package / "trained" / "genotype.json") == read_json(searched / "genotype.json")
    trained = weights("trained")
    assert not [name for name in trained if "alphas" in name or "candidates" in name]
    result = read_json(package / "trained" / "result.json")
    assert result["params"] == sum(value.numel() for name, value in trained.items() if name.startswith("net."))


def test_it_resumes_without_the_search(searched: Path, package: Path) -> None:
    shutil.copytree(searched, package / "elsewhere")
    done = run("retrain", *RETRAIN, "genotype=elsewhere/checkpoints/epoch_0.json", "init=search", "folder=resumed")
    assert done.code == 0, done.err
    shutil.rmtree(package / "elsewhere")
    done = run("retrain", "resume=resumed", "epochs=2")
    assert done.code == 0, done.err
    assert read_json(package / "resumed" / "result.json")["epochs"] == 2


def test_from_the_weights_of_the_search(searched: Path, package: Path) -> None:
    """A training that changes nothing ends with them."""
    still = ["optimizer.weights.lr=0", "optimizer.weights.weight_decay=0"]
    done = run("retrain", *RETRAIN, *still, "genotype=found/genotype.json", "init=search", "folder=still")
    assert done.code == 0, done.err
    assert "weights" in done.out.splitlines()[0]
    theirs, ours = weights(searched), weights("still")
    assert torch.equal(ours["net.head.weight"], theirs["net.space.head.weight"])
    for key, answer in read_json(searched / "genotype.json").items():
        if answer == "linear":
            name = f"net.layers.{key[-1]}"
            assert torch.equal(ours[f"{name}.weight"], theirs[f"net.space.layers.{key[-1]}.candidates.linear.weight"])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["genotype=found", "init=search", "space.width=5"], "the weights are of another space: stem.1.weight"),
        (["genotype=found", "init=scratch"], "init must be null or search, got scratch"),
        (["genotype=found", "space.drop_path=0.1"], "unknown key 'drop_path' in space"),
        (["genotype=found", "space.depth=2"], "genotype file found/genotype.json: unknown choice 'layer2'"),
        (["genotype=found/checkpoints/epoch_9.json"], "cannot read genotype file found/checkpoints/epoch_9.json"),
        (
            ["genotype=DARTS_V2", "data=digits", "init=search"],
            "init must be null, since genotype=DARTS_V2 is not in the folder of a search",
        ),
    ],
)
def test_what_does_not_fit_is_refused(typed: list[str], message: str, searched: Path, package: Path) -> None:
    assert message in refused(run("retrain", *RETRAIN, *typed, "folder=refused"))
    assert not (package / "refused").exists()


def test_a_published_name_is_not_taken_for_a_file_of_the_current_folder(
    searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(searched)
    assert run_of("DARTS_V2") is None
    assert run_of("Genotype(" + 300 * "long" + ")") is None
    for inside in (".", "genotype.json", "checkpoints/epoch_0.json"):
        found = run_of(inside)
        assert found is not None
        assert found.config.samefile(searched / "config.yaml")


def test_a_sweep_is_completed(searched: Path, package: Path) -> None:
    typed = ["-m", *RETRAIN, "genotype=found", "seed=0,1"]
    done = run("retrain", *typed, "folder=sweep")
    assert done.code == 0, done.err
    (package / "sweep" / "seed=1" / "result.json").unlink()
    done = run("retrain", *typed, "sweep.resume=sweep")
    assert done.code == 0, done.err
    assert "sweep/seed=0: finished before" in done.out
    assert settings("sweep/seed=1")["space"] == {"_target_": "own_package.Base", "depth": 3}


def test_settings_on_the_command_line_come_first(searched: Path, package: Path) -> None:
    done = run("retrain", *RETRAIN, "genotype=found", "space.width=5", "data=digits", "data.flip=true", "folder=wider")
    assert done.code == 0, done.err
    assert settings("wider")["space"] == {"_target_": "own_package.Base", "depth": 3, "width": 5}
    assert settings("wider")["data"]["flip"] is True


def test_a_file_elsewhere_with_a_space(searched: Path, package: Path) -> None:
    shutil.copy(searched / "genotype.json", package / "copy.json")
    space = ["space._target_=own_package.Base", "space.depth=3"]
    done = run("retrain", *RETRAIN, "genotype=copy.json", "data=digits", *space, "folder=from_file")
    assert done.code == 0, done.err
    assert "taken from" not in done.out
    assert read_json(package / "from_file" / "genotype.json") == read_json(searched / "genotype.json")


def test_a_space_names_what_it_is_retrained_as(package: Path) -> None:
    done = run("search", *SEARCH, "space._target_=own_package.Named", "space.depth=1", "folder=named")
    assert done.code == 0, done.err
    done = run("retrain", *RETRAIN, "genotype=named", "folder=deep")
    assert done.code == 0, done.err
    assert settings("deep")["space"] == {"_target_": "own_package.Deep", "depth": 1}
    assert read_json(package / "deep" / "genotype.json") == read_json(package / "named" / "genotype.json")
    line = refused(run("retrain", *RETRAIN, "genotype=named", "init=search", "folder=refused"))
    assert "init must be null, since own_package.Deep is another network than the one that was searched" in line


def test_cells_are_retrained_as_the_papers_network_on_the_searchs_data(package: Path) -> None:
    done = run("search", *SEARCH, *SMALL, *FEW, "space.stem=imagenet", "folder=cells")
    assert done.code == 0, done.err
    done = run("retrain", *RETRAIN, *SMALL, "genotype=cells", "space.auxiliary=false", "folder=network")
    assert done.code == 0, done.err
    space = settings("network")["space"]
    assert space["_target_"] == "src.spaces.cnn.network.Network"
    assert (space["stem"], space["channels"], space["drop_path"]) == ("imagenet", 4, 0.2)
    assert settings("network")["data"]["source"] == settings("cells")["data"]["source"]
