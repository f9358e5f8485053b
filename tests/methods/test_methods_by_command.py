"""The methods as a user runs them: short searches, cut off and resumed ones, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import SEARCH, assert_same, read_csv, read_json, refused, run, state_of
from omegaconf import OmegaConf
from runs.test_resume import stop_after

from src.runs.folder import RunFolder

SHORT = [*SEARCH, "epochs=2", "checkpoint_minutes=0", "callbacks=none"]
METHODS = {
    "beta_darts": ["method=beta_darts", "order=2"],
    "sdarts_rs": ["method=sdarts_rs"],
    "sdarts_adv": ["method=sdarts_adv", "method.perturbation.steps=2"],
    "a2m": ["method=a2m"],
    "oles": ["method=oles", "order=2", "method.weight_rule.every=1", "method.weight_rule.patience=0.1"],
    "lambda_darts": ["method=lambda_darts"],
    "gdas": ["method=gdas"],
    "drnas": ["method=drnas", "order=2"],
    "snas": ["method=snas"],
    "darts_minus": ["method=darts_minus", "order=2"],
    "fair_darts": ["method=fair_darts", "order=2", "optimizer.alphas.lr=0.1", "method.discretizer.threshold=0.53"],
    "gaea": ["method=gaea", "order=2", "method.alpha_optimizer.lr=2.0"],
    "pc_darts": ["method=pc_darts", "method.mixed_op.k=2"],  # of two epochs, 0.3 freezes one
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A search of two epochs by each method."""
    folders = {}
    for method, overrides in METHODS.items():
        folder = folders[method] = tmp_path_factory.mktemp("straight") / method
        done = run("search", *SHORT, *overrides, f"folder={folder}")
        assert done.code == 0, done.err
    return folders


@pytest.mark.parametrize("method", METHODS)
def test_a_search_leaves_the_files_of_a_run(method: str, straight: dict[str, Path]) -> None:
    folder = straight[method]
    result = read_json(folder / "result.json")
    assert (result["status"], result["method"]) == ("ok", method)
    assert set(result["genotype"]) >= {"normal_n2_p0", "normal_n2_switch", "reduce_n3_p2"}
    metrics = read_csv(folder / "metrics.csv")
    frozen = 1 if method == "pc_darts" else 0
    assert [bool(row["arch_loss"]) for row in metrics] == [epoch >= frozen for epoch in range(2)]
    weights = {
        (row["epoch"], row["key"], row["candidate"]): float(row["weight"]) for row in read_csv(folder / "alphas.csv")
    }
    edges = {key for _, key, _ in weights if key.endswith("_switch")}
    assert len(edges) == (4 if method == "pc_darts" else 0)
    first, second = ({name: weight for name, weight in weights.items() if name[0] == epoch} for epoch in "01")
    assert list(first.values()) != list(second.values())
    assert (folder / "report.html").exists()


@pytest.mark.parametrize("method", ["sdarts_rs", "oles", "gdas", "drnas", "gaea", "pc_darts", "darts_minus"])
def test_cut_off_twice_and_resumed(
    method: str, straight: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an epoch, where noise depends on the step, and after an epoch.

    Those left out keep nothing between two steps that one of these does not.
    """
    folder = tmp_path / "run"
    arguments = [*SHORT, *METHODS[method], f"folder={folder}"]
    for steps in (1, 1):
        with monkeypatch.context() as patch:
            stop_after(steps, patch)
            assert run("search", *arguments).code == 1
        arguments = [f"resume={folder}"]
    done = run("search", *arguments)
    assert done.code == 0, done.err
    assert_same(state_of(folder), state_of(straight[method]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["method=gaea", "optimizer.alphas.lr=0.01"],
            "optimizer.alphas.lr is not used, since method.alpha_optimizer steps the alphas of gaea; set "
            "method.alpha_optimizer.lr, or leave it out",
        ),
        (
            ["method=gaea", "method.alpha_optimizer=null"],
            "method.alpha_optimizer must be ExponentiatedGradient, or another that keeps alphas on the simplex, with the "
            "relaxation Simplex, got None",
        ),
        (
            ["method.alpha_optimizer._target_=src.methods.alpha_optimizers.ExponentiatedGradient"],
            "alpha_optimizer ExponentiatedGradient needs a relaxation of kind simplex, got Softmax",
        ),
        (
            ["method=fair_darts", "method.relaxation._target_=src.methods.relaxations.Softmax"],
            "penalty ZeroOne needs a relaxation of kind sigmoid, got Softmax, which is of kind softmax",
        ),
        (
            ["method=fair_darts", "method.discretizer.threshold=85"],
            "method.discretizer.threshold must be 0 to 1, got 85",
        ),
        (["method=gaea", "method.alpha_optimizer.lr=0"], "method.alpha_optimizer.lr must be above 0, got 0.0"),
        (["optimizer.alphas=null"], "optimizer.alphas._target_ is not set"),
        (["method=gdas", "order=2"], "order must be 1 with the relaxation GumbelHard, got 2: "),
        (["method=gdas", "order=2", "hypergradient=exact"], "order must be 1 with the relaxation GumbelHard, got 2: "),
        (
            ["method=sdarts_rs", "method.relaxation._target_=src.methods.relaxations.GumbelHard"],
            "perturbation RandomSmoothing needs a relaxation of kind simplex or softmax, got GumbelHard, which is of "
            "kind gumbel",
        ),
        (
            ["method.edge_weights=true"],
            "discretizer must be StrongestProduct, or another that ranks by edge weights, with edge_weights, got Strongest",
        ),
        (
            ["method=pc_darts", "method.edge_weights=false"],
            "edge_weights must be true with the discretizer StrongestProduct, got False",
        ),
        (
            ["method=pc_darts", "space.channels=6", "epochs=20"],
            "PartialChannels needs a number of channels that k=4 divides, 'normal_n2_p0' has 6",
        ),
        (
            ["method=sdarts_adv", "method.relaxation._target_=src.methods.relaxations.GumbelHard"],
            "perturbation AdversarialSmoothing needs a relaxation of kind simplex or softmax, got GumbelHard",
        ),
        (["method=sdarts_adv", "method.perturbation.steps=0"], "method.perturbation.steps must be 1 or more, got 0"),
        (
            ["method=a2m", "method.relaxation._target_=src.methods.relaxations.GumbelHard"],
            "hypergradient FlatMinimum needs a relaxation of kind dirichlet or gumbel_soft or sigmoid or softmax, got",
        ),
        (
            ["method=lambda_darts", "method.relaxation._target_=src.methods.relaxations.GumbelHard"],
            "weight_rule LayerAlignment needs a relaxation with which all candidates run, got GumbelHard",
        ),
        (
            ["method=lambda_darts", "epochs=2", "method.weight_rule.weight.last=-1"],
            "method.weight_rule.weight must be 0 or more in every epoch, got -1 in epoch 1",
        ),
        (["method=oles", "method.weight_rule.every=0"], "method.weight_rule.every must be 1 or more, got 0"),
        (
            ["method=a2m", "method.hypergradient.rho=-1"],
            "method.hypergradient.rho must be a number of 0 or more, got -1.0",
        ),
        (["method=pc_darts", "method.mixed_op.k=0"], "k must be 1 or more, got 0"),
        (
            ["method=pc_darts", "method.frozen_epochs=15"],
            "method.frozen_epochs must be less than the number of epochs (1), got 15",
        ),
        (
            ["method=pc_darts", "method.frozen_epochs=1.5"],
            "frozen_epochs must be a number of epochs (an integer, 0 or more) or a share of them (below 1), got 1.5",
        ),
        (["method.frozen_epochs=half"], "method.frozen_epochs must be a whole number or a number, got 'half'"),
        (
            ["method=gdas", "epochs=3", "method.relaxation.temperature.last=0"],
            "method.relaxation.temperature must be above 0 in every epoch, got 0 in epoch 2",
        ),
        (
            ["method=darts_minus", "space.candidates=[none,sep_conv_3x3]"],
            "AuxiliarySkip needs a candidate named identity or skip or skip_connect, got the candidates none, sep_conv_3x3",
        ),
        (
            ["method=darts_minus", "method.auxiliary.weight=-1"],
            "method.auxiliary.weight must be 0 or more in every epoch, got -1 in epoch 0",
        ),
        (["method=snas", "order=2"], "order must be 1 with one_level, got 2: one loss trains alphas and weights, so "),
        (
            ["method=sdarts_rs", "method.one_level=true"],
            "perturbation must be null with one_level, where alphas and weights share one pass, got RandomSmoothing",
        ),
        (
            ["method=drnas", "method.penalty._target_=src.methods.penalties.BetaDecay"],
            "penalty BetaDecay needs a relaxation of kind gumbel or gumbel_soft or softmax, got Dirichlet, which is of kind",
        ),
        (
            ["method.penalty._target_=src.methods.penalties.DirichletDivergence"],
            "penalty DirichletDivergence needs a relaxation of kind dirichlet, got Softmax, which is of kind softmax",
        ),
        (
            ["method.penalty=BetaDecay"],
            "method.penalty must be an object (on the command line, its class as _target_), got",
        ),
        (["method=gdsa"], "unknown method option 'gdsa', did you mean 'gdas'?"),
        (["method=gdas", "method.relaxtion=null"], "did you mean 'relaxation'?"),
        (["method=gdas", "method.relaxation.temprature=1"], "did you mean 'temperature'?"),
        (["method=gdas", "method.relaxation.temperature.lats=1"], "did you mean 'last'?"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(overrides: list[str], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    line = refused(run("search", *SEARCH, *overrides, f"folder={folder}"))
    assert message in line
    assert not folder.exists()


@pytest.mark.parametrize(("method", "order"), [("darts", 2), ("gdas", 1)])
def test_the_demo_takes_the_highest_order_that_its_method_has(method: str, order: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tiny = ["space.channels=2", "space.cells=3", "space.nodes=2", "epochs=1", "trainer.limit_train_batches=1"]
    tiny += ["trainer.limit_val_batches=1"]
    done = run("search", "experiment=demo", f"method={method}", *tiny, "callbacks=none", f"folder={folder}")
    assert done.code == 0, done.err
    assert read_json(folder / "result.json")["order"] == order


def test_a_number_is_a_schedule(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    number = "method.relaxation.temperature=0.5"
    done = run("search", *SHORT, "epochs=1", "method=gdas", number, f"folder={folder}")
    assert done.code == 0, done.err
    config = OmegaConf.load(RunFolder(folder).config)
    assert (config.method.relaxation.temperature, config.method.name) == (0.5, "gdas")


def test_nodes_that_keep_fewer_edges(straight: dict[str, Path], tmp_path: Path) -> None:
    """What a threshold leaves is said, is in the files, is drawn, and is retrained."""
    folder = straight["fair_darts"]
    result = read_json(folder / "result.json")
    kept = {key: answer for key, answer in result["genotype"].items() if key.endswith("_switch")}
    assert any(len(answer) < 2 for answer in kept.values())
    assert " edges dropped, whose operations weigh less than 0.53" in result["remark"]
    page = (folder / "report.html").read_text()
    assert f"Of the rule that made the architecture: {result['remark']}." in page
    small = ["space.channels=4", "space.cells=3", "space.auxiliary=false", "trainer.limit_train_batches=2"]
    done = run("retrain", f"genotype={folder}", "epochs=1", *small, "callbacks=none", f"folder={tmp_path / 'trained'}")
    assert done.code == 0, done.err
    assert read_json(tmp_path / "trained" / "result.json")["genotype"] == result["genotype"]


def test_a_short_search_that_reaches_no_threshold_says_so(tmp_path: Path) -> None:
    done = run("search", *SHORT, "epochs=1", "method=fair_darts", f"folder={tmp_path / 'run'}")
    assert done.code == 0, done.err
    result = read_json(tmp_path / "run" / "result.json")
    assert result["remark"].startswith("no edge reaches the threshold of 0.85 (the strongest has 0.5")
    assert "edges     no edge reaches the threshold of 0.85" in done.out
    assert all(len(answer) == 2 for key, answer in result["genotype"].items() if key.endswith("_switch"))


def test_a_method_with_its_own_alpha_optimizer_says_so(straight: dict[str, Path]) -> None:
    folder = straight["gaea"]
    config = OmegaConf.load(RunFolder(folder).config)
    assert config.optimizer.alphas is None
    sums: dict[tuple[str, str], float] = {}
    for row in read_csv(folder / "alphas.csv"):
        sums[row["epoch"], row["key"]] = sums.get((row["epoch"], row["key"]), 0.0) + float(row["weight"])
    assert all(total == pytest.approx(1) for total in sums.values())
    (rates,) = {row["step/lr_alphas"] for row in read_csv(RunFolder(folder).steps) if row["step/lr_alphas"]}
    assert float(rates) == 2.0
