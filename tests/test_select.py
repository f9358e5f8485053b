"""The command `src.select`: from a finished search to an architecture, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

import pytest
import torch
from commands import RETRAIN, SEARCH, assert_same, contents, read_csv, read_json, refused, run, state_of
from omegaconf import OmegaConf
from runs.test_resume import stop_after

from src.common.errors import ConfigError
from src.methods.selection import Selection
from src.runs.build import build_data
from src.runs.folder import RunFolder
from src.runs.following import retrain_command
from src.runs.opened import load_run
from src.runs.resume import read_settings
from src.search import build_module

TUNE = [
    "trainer=cpu", "tune_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=2", "callbacks=none",
    "checkpoint_minutes=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "run"
    done = run("search", *SEARCH, "seed=5", "callbacks=none", f"folder={folder}")
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def before(searched: Path) -> dict[str, bytes]:
    """What the search's folder holds before any selection."""
    return contents(searched)


@pytest.fixture(scope="module")
def selected(searched: Path, before: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("select") / "run"
    done = run("select", f"resume={searched}", *TUNE, f"folder={folder}")
    assert done.code == 0, done.err
    assert (
        "decisions  12, with their scores in" in done.out
    )  # five edges, and the inputs of the second node, of each cell
    return folder


def test_a_finished_selection_has_no_epochs_to_add(selected: Path) -> None:
    line = refused(run("select", f"resume={selected}"))
    assert line == f"error: {selected} has finished, and a selection has no epochs to add\n"


def test_what_to_type_next_has_the_experiment_of_the_search(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    files.result.write_text('{"command": "python -m src.search experiment=demo trainer=gpu"}')
    found = retrain_command(f"python -m src.select search={tmp_path} trainer=cpu", "found")
    assert found == "python -m src.retrain experiment=demo_retrain trainer=cpu genotype=found"
    files.result.unlink()
    assert retrain_command(f"python -m src.select search={tmp_path}", "found") == "python -m src.retrain genotype=found"


def test_it_leaves_the_files_of_a_run_and_the_search_as_it_is(
    selected: Path, searched: Path, before: dict[str, bytes]
) -> None:
    assert contents(searched) == before
    result = read_json(selected / "result.json")
    assert (result["status"], result["kind"], result["method"]) == ("ok", "select", "darts")
    assert (result["epochs"], result["planned_epochs"]) == (5, 5)  # six rounds
    assert result["genotype"] == read_json(selected / "genotype.json")
    assert read_json(RunFolder(selected).epoch(4)) == result["genotype"]
    config, _ = read_settings(selected)
    assert config.searched == {"seed": 5, "epochs": 1}
    assert config.optimizer.weights.lr == pytest.approx(0.0025)
    assert (selected / "report.html").exists()
    data, of_search = result["data"], read_json(searched / "result.json")["data"]
    assert data["split_sha256"] == of_search["split_sha256"]


def test_the_genotype_is_what_was_decided(selected: Path) -> None:
    rows, genotype = read_csv(selected / "decisions.csv"), read_json(selected / "genotype.json")
    for row in rows:
        if row["answer"] == "dropped":
            assert row["without"] not in genotype[row["choice"]]
        elif row["answer"] == "kept" and genotype[row["choice"]]:  # the edge was kept, too
            assert genotype[row["choice"]] == row["without"]
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        scores.setdefault((row["choice"], row["pass"]), {})[row["without"]] = float(row["score"])
    for row in rows:
        tried = list(scores[row["choice"], row["pass"]].values())
        if row["answer"]:
            assert float(row["score"]) == (min(tried) if row["answer"] == "kept" else max(tried))


def test_the_first_scores_are_accuracies_without_one_candidate(selected: Path, searched: Path) -> None:
    """Written down once more, with the search's own network in its reference form."""
    config, _ = read_settings(searched)
    config.space.impl = "reference"
    data = build_data(config)
    module = build_module(config, data)
    state = torch.load(RunFolder(searched).last, weights_only=True)["state_dict"]
    module.load_state_dict(state)
    loader = data._eval_loader(data._training["arch"], "limit_val_batches")
    first = [row for row in read_csv(selected / "decisions.csv") if row["round"] == "0"]
    key = first[0]["choice"]
    loader = type(loader)(data._training["arch"], batch_size=data.batch_size, mixed=True)
    batches = [data.on_after_batch_transfer(batch, 0) for number, batch in enumerate(loader) if number < 2]
    for row in first:
        if row["choice"] != key:
            continue
        rows = module.net.softmax()
        rows[key] = rows[key].clone()
        rows[key][module.net.candidates()[key].index(row["without"])] = 0
        module.net.train()
        with torch.no_grad():
            right = [int((module.net(inputs, mixing=rows).argmax(1) == targets).sum()) for inputs, targets in batches]
        assert float(row["score"]) == pytest.approx(sum(right) / sum(len(targets) for _, targets in batches), abs=1e-6)


def test_it_is_retrained_as_a_search_is(selected: Path, tmp_path: Path) -> None:
    done = run("retrain", *RETRAIN, f"genotype={selected}", f"folder={tmp_path / 'run'}")
    assert done.code == 0, done.err
    assert read_json(tmp_path / "run" / "genotype.json") == read_json(selected / "genotype.json")


def test_cut_off_and_resumed(selected: Path, searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of an epoch, then in the middle of a round."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert run("select", f"resume={searched}", *TUNE, f"folder={folder}").code == 1
    with monkeypatch.context() as patch:
        decide = Selection._decide

        def stopped(self: Selection, key: str, *others: object) -> None:
            if self.rounds_done == 3 and key.startswith("reduce"):
                raise KeyboardInterrupt
            decide(self, key, *others)  # pyright: ignore[reportArgumentType]

        patch.setattr(Selection, "_decide", stopped)
        assert run("select", f"resume={folder}").code != 0
    done = run("select", f"resume={folder}")
    assert done.code == 0, done.err
    assert_same(state_of(folder), state_of(selected))
    assert (folder / "decisions.csv").read_bytes() == (selected / "decisions.csv").read_bytes()


def test_by_the_loss_without_training_the_alphas(searched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = ["criterion=loss", "train_alphas=false", "seed=1", "optimizer.weights.lr=0.01"]
    done = run("select", f"search={searched}", *TUNE, *settings, f"folder={folder}")
    assert done.code == 0, done.err
    assert OmegaConf.load(folder / "config.yaml").optimizer.weights.lr == 0.01
    own, of_search = (torch.load(RunFolder(one).last, weights_only=True)["state_dict"] for one in (folder, searched))
    assert all(torch.equal(own[name], of_search[name]) for name in own if name.startswith("net.alphas."))
    assert not all(torch.equal(own[name], of_search[name]) for name in own)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search=nowhere"], "nowhere holds no run"),
        (["criterion=acc", "search=SEARCH"], "criterion must be accuracy or loss, got acc"),
        (["tune_epochs=0", "search=SEARCH"], "tune_epochs must be 1 or more, got 0"),
        (["space.channels=8", "search=SEARCH"], "space.channels cannot be set: it is that of the search in"),
        (["data=digits", "search=SEARCH"], "data cannot be set: it is that of the search in"),
        (["method=gdas", "search=SEARCH"], "method cannot be set: it is that of the search in"),
        (["resume=SELECTED", "epochs=9"], "epochs cannot be set: a selection tunes for tune_epochs between two rounds"),
        (["search=SELECTED"], "search must be the folder of a search, got"),
        ([], "search is not set, set it with search=..."),
        (["resume=nowhere"], "nowhere holds no run to resume"),
        (["critrion=loss", "search=SEARCH"], "did you mean 'criterion'?"),
    ],
)
def test_what_is_refused(overrides: list[str], message: str, searched: Path, selected: Path, tmp_path: Path) -> None:
    typed = [text.replace("SEARCH", str(searched)).replace("SELECTED", str(selected)) for text in overrides]
    folder = tmp_path / "run"
    assert message in refused(run("select", *typed, "trainer=cpu", f"folder={folder}"))
    assert not folder.exists()


def test_a_search_without_training_has_no_supernet(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    assert run("search", *SEARCH, "method=random", "callbacks=none", f"folder={folder}").code == 0
    message = "a selection needs the supernet of its search, but there is no"
    assert message in refused(run("select", f"resume={folder}", f"folder={tmp_path / 'run'}"))


def test_a_method_that_it_means_nothing_for(searched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    copytree(searched, folder)
    path = folder / "config.yaml"
    of_gdas = run("search", *SEARCH, "method=gdas", "--cfg", "job").out
    method = OmegaConf.create(of_gdas).method
    command, settings = path.read_text().splitlines()[0], OmegaConf.load(path)
    settings.method = method
    path.write_text(f"{command}\n{OmegaConf.to_yaml(settings)}")
    message = (
        "a selection needs a search with a relaxation of kind dirichlet, sigmoid, simplex, softmax, got GumbelHard"
    )
    assert message in refused(run("select", f"resume={folder}", f"folder={tmp_path / 'run'}"))


def test_the_pages_tell_the_decisions(selected: Path) -> None:
    page = (selected / "report.html").read_text()
    assert "Architecture selection by perturbation on digits" in page
    assert "accuracy without each option" in page
    assert page.count('class="option kept"') == 10
    assert page.count('class="option dropped"') == 2
    opened = load_run(selected)
    assert opened.kind == "select"
    opened.network()  # the space with its choices fixed, with the tuned weights
    with pytest.raises(ConfigError, match="is a selection, whose weights were trained for all candidates together"):
        opened.predict(torch.zeros(1, 1, 8, 8))
