"""Random search: what is drawn, and the command."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from commands import RETRAIN, SEARCH, contents, read_csv, read_json, refused, run
from scipy.stats import chisquare
from torch import Tensor, nn

from src.architectures.architecture import Architecture, InputSpec, LayerSpec, Spec
from src.architectures.enumeration import Architectures
from src.benchmarks.nas_bench_201 import nas_bench_201
from src.callbacks.lookup import metrics_of
from src.common.errors import ConfigError
from src.methods.random_search import RandomSearch
from src.runs.opened import load_run
from src.spaces.choices import InputChoice, LayerChoice, spec_of
from src.spaces.cnn.cells import Supernet

# A node keeps one of two edges: `few` with one operation or `many` with three. One of four architectures keeps `few`.
SMALL: Spec = {
    "few": LayerSpec(("conv",)),
    "many": LayerSpec(("conv", "pool", "skip")),
    "alone": LayerSpec(("relu", "tanh")),
    "node": InputSpec(("few", "many"), 1),
    "read": InputSpec(("early", "middle", "late"), 2),
}
SPACE = spec_of(Supernet(input_shape=(1, 8, 8), channels=4, cells=3, num_classes=2))


class Layers(nn.Module):
    """A space without cells: a layer, and two of three inputs of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = LayerChoice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, key="layer")
        self.read = InputChoice(["raw", "layer_", "twice"], n_chosen=2, key="read")
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        y = self.layer(x)
        return self.head(self.read([x, y, 2 * y]))


def test_all_different_architectures_are_equally_likely() -> None:
    drawn = Counter(json.dumps(RandomSearch().draw(SMALL, seed).to_plain()) for seed in range(2400))
    architectures = [json.dumps(architecture.to_plain()) for architecture in Architectures(SMALL)]
    assert set(drawn) == set(architectures)
    assert len(architectures) == 24
    assert chisquare([drawn[architecture] for architecture in architectures]).pvalue > 0.01
    # Answers to all choices, drawn one by one, would keep `few` half of the time.
    keeps_few = sum(count for architecture, count in drawn.items() if json.loads(architecture)["few"])
    assert chisquare([keeps_few, 2400 - keeps_few], [600, 1800]).pvalue > 0.01


def test_each_seed_has_an_architecture_of_its_own() -> None:
    drawn = [RandomSearch().draw(SPACE, seed) for seed in range(200)]
    assert len({architecture.to_json() for architecture in drawn}) == 200
    assert drawn[7] == RandomSearch().draw(SPACE, 7)
    for architecture in drawn:
        assert Architecture.parse(architecture.to_plain(), SPACE) == architecture


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over a method that trains and one that does not, with settings that mean nothing to the latter."""
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    done = run("search", "-m", "method=darts,random", *SEARCH, "order=2", "seed=3", f"folder={folder}")
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def drawn(sweep: Path) -> Path:
    return sweep / "method=random"


def test_it_leaves_the_files_of_a_search_and_trains_nothing(drawn: Path) -> None:
    result = read_json(drawn / "result.json")
    assert (result["status"], result["kind"], result["method"], result["seed"]) == ("ok", "search", "random", 3)
    assert (result["epochs"], result["planned_epochs"], result["order"], result["metrics"]) == (0, 0, None, {})
    assert set(contents(drawn)) == {
        "config.yaml", "metrics.csv", "alphas.csv", "checkpoints/epoch_0.json", "genotype.json", "result.json", "report.html"
    }  # fmt: skip
    assert (drawn / "checkpoints/epoch_0.json").read_bytes() == (drawn / "genotype.json").read_bytes()
    assert read_csv(drawn / "metrics.csv") == read_csv(drawn / "alphas.csv") == []
    assert result["genotype"] == read_json(drawn / "genotype.json")


def test_reports_do_not_speak_of_a_search_that_did_not_happen(sweep: Path, drawn: Path) -> None:
    page = (drawn / "report.html").read_text()
    assert "Random search without training on digits" in page
    for absent in ("Learning curves", "How the choices were made", ">epochs<", "momentum", "Hypergradient", "supernet"):
        assert absent not in page.partition("<main")[2].partition("<script")[0], absent
    overview = (sweep / "index.html").read_text()
    assert "2 of 2 runs finished" in overview
    assert "without training" in overview
    assert "1 not finished" not in overview
    run_ = load_run(drawn)
    assert run_.status == "ok"
    with pytest.raises(ConfigError, match=r"holds no metrics.csv: no epoch has ended"):
        _ = run_.metrics


def test_what_is_drawn_can_be_retrained(drawn: Path, tmp_path: Path) -> None:
    done = run("retrain", *RETRAIN, f"genotype={drawn}", f"folder={tmp_path / 'run'}")
    assert done.code == 0, done.err
    assert read_json(tmp_path / "run" / "genotype.json") == read_json(drawn / "genotype.json")


def test_a_space_without_cells(tmp_path: Path) -> None:
    target = "space._target_=methods.test_random_search.Layers"
    done = run("search", "method=random", "data=digits", target, f"folder={tmp_path / 'run'}")
    assert done.code == 0, done.err
    answers = read_json(tmp_path / "run" / "genotype.json")
    assert answers["layer"] in ("relu", "tanh")
    assert len(answers["read"]) == 2
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What was chosen for each choice of the search space." in page


def test_its_plan_is_that_of_the_retrain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Architecture] = []
    monkeypatch.setattr("src.runs.plan._plan_of_retrain", lambda config, record, found: planned.append(found) or "PLAN")
    done = run(
        "search", "experiment=demo", *SEARCH, "method=random", "seed=3", "plan=true", f"folder={tmp_path / 'run'}"
    )
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == "plan of a search: digits, random, seed 3"
    assert done.out.splitlines()[-2:] == ["then, for this architecture:", "PLAN"]
    assert planned
    assert not (tmp_path / "run").exists()


def test_a_finished_run_has_nothing_to_resume(drawn: Path) -> None:
    before = contents(drawn)
    assert "has finished, and a search without training has no epochs to add" in refused(
        run("search", f"resume={drawn}")
    )
    assert contents(drawn) == before


def test_a_run_that_was_killed_draws_the_same(drawn: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    text = (drawn / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text)
    done = run("search", f"resume={folder}")
    assert done.code == 0, done.err
    assert read_json(folder / "genotype.json") == read_json(drawn / "genotype.json")


def test_slots_of_other_methods_are_refused(tmp_path: Path) -> None:
    line = refused(run("search", *SEARCH, "method=random", "+method.frozen_epochs=1", f"folder={tmp_path / 'run'}"))
    assert "frozen_epochs" in line


def test_it_is_looked_up_where_the_space_has_a_table(tmp_path: Path) -> None:
    small = ["space=nas_bench_201", "space.channels=4", "space.cells=1", "data=digits"]
    done = run("search", "method=random", *small, f"folder={tmp_path / 'run'}")
    assert done.code == 0, done.err
    result = read_json(tmp_path / "run" / "result.json")
    table = nas_bench_201("cifar10")
    assert result["metrics"] == metrics_of(table.standing(Architecture(read_json(tmp_path / "run" / "genotype.json"))))
    assert "table_accuracy" in result["metrics"]
