from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_small_run
from test_report import Page

from src.architectures.architecture import Architecture
from src.report import main, write_overview, write_report
from src.reports.sweep import retrains_of, swept_keys
from src.runs.saved import read_run
from src.spaces.cnn.genotypes import NAMED_GENOTYPES

FIRST, SECOND = (NAMED_GENOTYPES[name].to_architecture() for name in ("DARTS_V1", "DARTS_V2"))


def make_search(folder: Path, *overrides: str, architecture: Architecture = FIRST, **result: Any) -> Path:
    command = " ".join(["python -m src.search", *overrides])
    settings = dict(text.split("=") for text in overrides)
    config = "".join(f"{key}: {value}\n" for key, value in settings.items() if key not in ("seed", "order"))
    make_small_run(folder, command=command, config=config, **{"seed": int(settings.get("seed", 0)), **result})
    architecture.write(folder / "genotype.json")
    return folder


def make_retrain(folder: Path, genotype: object, accuracy: float, seed: int = 0) -> Path:
    make_small_run(
        folder,
        kind="retrain",
        seed=seed,
        order=None,
        command=f"python -m src.retrain genotype={genotype} seed={seed}",
        config=f"genotype: {genotype}\n",
        metrics={"test_accuracy": accuracy},
        data={"name": "digits", "test_samples": 359},
    )
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two values of a setting, each with two seeds, one run that failed, and retrains of one of the searches."""
    base = tmp_path_factory.mktemp("runs")
    for place, (width, seed) in enumerate([(8, 0), (8, 1), (16, 0), (16, 1)]):
        make_search(
            base / "sweep" / str(place),
            f"width={width}",
            f"seed={seed}",
            architecture=SECOND if seed else FIRST,
            metrics={"val_accuracy": 0.8 + width / 1000 + seed / 50},
        )
    make_search(base / "sweep" / "4", "width=32", "seed=0", status="failed", error="out of memory", metrics={})
    for seed, accuracy in enumerate((0.90, 0.94)):
        make_retrain(base / "retrained" / str(seed), base / "sweep" / "0", accuracy, seed)
    make_retrain(base / "retrained" / "2", base / "sweep" / "1" / "checkpoints" / "epoch_0.json", 0.85)
    assert main([str(base)]) == 0
    return base


def test_swept_keys_are_those_that_differ_whatever_they_are(tmp_path: Path) -> None:
    make_search(tmp_path / "0", "order=1", "my.own=[1]", "same=3", "folder=x")
    make_search(tmp_path / "1", "+my.own=[2]", "same=3", "folder=y", "seed=4")
    runs = [read_run(tmp_path / name) for name in "01"]
    # An override that a command lacks has the value of the config: order is 2 there, seed 0.
    assert swept_keys(runs) == {"order": ["1", "2"], "my.own": ["[1]", "[2]"], "seed": ["0", "4"]}
    assert swept_keys(runs[:1]) == {}


def test_overview_has_means_runs_failures_and_links(sweep: Path) -> None:
    page = Page(sweep / "index.html")
    assert "7 of 8 runs finished" in page
    # 80.8 and 82.8: mean 81.8, deviation sqrt(2), interval 12.706 * sqrt(2) / sqrt(2)
    for text in ("81.80 %", "1.41 %", "69.09 to 94.51 %", "82.60 %", "width=8", "1 not finished", "out of memory"):
        assert text in page, text
    assert "python -m src.search width=32 seed=0" in page.texts
    links = [value for name, value in page.attributes if name == "href" and not value.startswith("#")]
    assert {"sweep/0/report.html", "retrained/2/report.html", "runs.csv"} <= set(links)
    assert all((sweep / link).is_file() for link in links)
    assert not {"link", "img", "iframe"} & set(page.tags)


def test_overview_tells_how_often_each_edge_has_each_operation(sweep: Path) -> None:
    page = Page(sweep / "index.html")
    plain = [FIRST.to_plain(), SECOND.to_plain()]
    keys = [key for key in plain[0] if not key.endswith("_switch")]
    same = sum(plain[0][key] == plain[1][key] for key in keys)
    assert f"{same} of {len(keys)} choices have the same answer for all 2 seeds." in page
    row = page.source.split("How often each choice")[1].split("<tbody>")[1].split("</tr>")[0]
    # the first edge into node 2 is a separable convolution in both genotypes
    assert ">2</td>" in row


def test_retrains_stand_beside_their_search(sweep: Path) -> None:
    page = Page(sweep / "index.html")
    assert "90.00 % test (seed 0)" in page.texts
    assert "92.00 % ± 2.83 %" in page
    assert "85.00 % test (seed 0, epoch 0)" in page.texts
    found = Page(sweep / "sweep" / "0" / "report.html")
    assert "Retrained with seed 1: 94.00 % test →" in found
    back = Page(sweep / "retrained" / "2" / "report.html")
    assert ("href", "../../sweep/1/report.html") in back.attributes
    assert "On 359 test samples, a test accuracy of 85.00 % has a 95 % interval from 80.94 % to 88.32 %" in back


def test_runs_csv_has_a_row_for_each_run_and_a_column_for_each_swept_key(sweep: Path) -> None:
    rows = {row["run"]: row for row in table(sweep / "runs.csv")}
    assert list(rows) == ["retrained/0", "retrained/1", "retrained/2", *(f"sweep/{place}" for place in range(5))]
    assert [rows[f"sweep/{place}"]["width"] for place in range(5)] == ["8", "8", "16", "16", "32"]
    assert (
        rows["sweep/1"]
        | {"seed": "1", "status": "ok", "metric": "val_accuracy", "val_accuracy": rows["sweep/1"]["value"]}
        == rows["sweep/1"]
    )
    assert rows["sweep/4"]["error"] == "out of memory"
    assert rows["sweep/4"]["command"] == "python -m src.search width=32 seed=0"
    assert rows["retrained/2"]["searched_by"] == "sweep/1"
    assert rows["retrained/2"]["test_accuracy"] == "0.85"


def test_a_retrain_whose_genotype_is_a_relative_path_is_found_by_its_end(tmp_path: Path) -> None:
    searches = [read_run(make_search(tmp_path / "runs" / name)) for name in ("a", "b")]
    retrain = read_run(make_retrain(tmp_path / "x", "runs/b/genotype.json", 0.9))
    assert retrains_of(searches, [retrain]) == {(tmp_path / "runs" / "b").resolve(): [retrain]}
    named = read_run(make_retrain(tmp_path / "y", "DARTS_V2", 0.9))
    assert retrains_of(searches, [named]) == {}


def test_a_retrain_that_ends_appears_on_the_page_of_its_search(tmp_path: Path) -> None:
    search = make_search(tmp_path / "search")
    before = write_report(search).read_text()
    assert "Retrained" not in before
    write_report(make_retrain(tmp_path / "retrains" / "0", search, 0.9))
    write_report(make_retrain(tmp_path / "retrains" / "1", search, 0.8, seed=1))
    after = Page(search / "report.html")
    assert "Retrained with seed 0: 90.00 % test →" in after
    assert "Retrained with seed 1: 80.00 % test →" in after


def test_the_overview_of_a_sweep_writes_the_pages_that_are_missing(tmp_path: Path) -> None:
    make_search(tmp_path / "0")
    failed = make_search(tmp_path / "1", "seed=1", status="failed", error="no")
    assert write_overview(tmp_path) == tmp_path / "index.html"
    assert (failed / "report.html").is_file()
    assert len(table(tmp_path / "runs.csv")) == 2
    assert write_overview(failed) is None
    (tmp_path / "empty").mkdir()
    assert write_overview(tmp_path / "empty") is None


def test_text_from_runs_is_never_markup(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><img src=x>"
    for seed in range(2):
        run = make_search(tmp_path / str(seed), status="failed" if seed else "ok", error=hostile, seed=seed)
        record = json.loads((run / "result.json").read_text())
        record["command"] = f"python -m src.search seed={seed} 'x={hostile}{seed}'"
        (run / "result.json").write_text(json.dumps(record))
        (run / "metrics.csv").write_text(f'epoch,"{hostile}"\n0,{seed}\n')
    write_overview(tmp_path)
    page = Page(tmp_path / "index.html")
    assert page.tags.count("script") == 2
    assert "img" not in page.tags
    assert hostile in page.texts
