from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import start
from made_runs import CELLS, guard_facts, make_long_run, make_run, make_small_run

from src.report import main, write_report
from src.reports.names import words
from src.reports.numbers import duration
from src.spaces.cnn.genotypes import NAMED_GENOTYPES, parse_cells


class Page(html.parser.HTMLParser):
    """The texts, tags, attributes and sections of a page; an end tag that closes nothing fails."""

    VOID = ("meta", "br", "link", "img", "input")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.texts += [" ".join(data.split())] if data.strip() else []

    def __contains__(self, text: str) -> bool:
        return text in " ".join(self.texts)


def rows(output: str) -> Iterator[list[str]]:
    """Yield the cells of the printed table."""
    for line in output.split("\n\n", maxsplit=1)[0].splitlines():
        yield re.split(r"\s{2,}", line.strip())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    config = "space: {channels: 16, nested: {deep: [1, 2]}}\n"
    return Page(write_report(make_run(tmp_path_factory.mktemp("runs") / "run", config=config)))


def test_page_holds_cells_curves_weights_settings_and_result(page: Page) -> None:
    assert "Second-order architecture search on digits" in page
    assert "Completed after 2 epochs and 1 min 15 s, with a validation accuracy of 90.00 % (error 10.00 %)." in page
    edges = [
        edge
        for nodes in (NAMED_GENOTYPES["DARTS_V2"].normal, NAMED_GENOTYPES["DARTS_V2"].reduce)
        for node in nodes
        for edge in node
    ]
    for edge in edges:
        assert words(edge.operation) in page.texts
    assert page.tags.count("svg") == 2 + 3 + 28  # cells; loss, accuracy, lr; a panel for each edge
    for text in ("2 of 8 edges", "3 of 8 edges"):  # skip connections
        assert text in page.texts
    for text in ("Normal cell", "Reduction cell", "1,930,618", "300,255,744", "0123abcd", "deep", "1, 2", "2.14.1"):
        assert text in page.texts
    assert "python -m src.search 'data.root=my data'" in page


def test_a_search_says_what_to_do_next_and_how_clear_its_decision_was(page: Page, tmp_path: Path) -> None:
    assert any(text.startswith("python -m src.retrain genotype=") for text in page.texts)
    assert "16 of 16 kept edges lead by less than 1 percentage point" in page
    stopped = make_small_run(tmp_path / "run", status="interrupted", error="stopped by SIGTERM")
    assert "python -m src.search 'data.root=my data'" in Page(write_report(stopped)).texts
    (stopped / "checkpoints" / "last.ckpt").touch()
    (command,) = (text for text in Page(write_report(stopped)).texts if "resume=" in text)
    assert command.startswith("python -m src.search resume=")


def test_after_the_demo_comes_the_retrain_of_the_demo(tmp_path: Path) -> None:
    typed = "python -m src.search experiment=demo trainer=cpu seed=3"
    page = Page(write_report(make_run(tmp_path / "run", command=typed)))
    command = f"python -m src.retrain experiment=demo_retrain trainer=cpu genotype={tmp_path / 'run'}"
    assert command in page.texts
    assert command.replace("src.retrain", "src.retrain -m") + " seed=0,1,2,3" in page.texts
    typed = "python -m src.retrain genotype=DARTS_V2 seed=1"
    page = Page(write_report(make_small_run(tmp_path / "next", command=typed, kind="retrain", seed=1)))
    assert "python -m src.retrain -m genotype=DARTS_V2 seed=0,2,3" in page.texts


def test_a_page_of_fifty_epochs_is_small(tmp_path: Path) -> None:
    assert write_report(make_long_run(tmp_path / "run")).stat().st_size < 2 << 20


def test_page_needs_nothing_from_elsewhere(page: Page) -> None:
    assert not {"link", "img", "iframe"} & set(page.tags)
    assert "src" not in dict(page.attributes)
    for name, value in page.attributes:
        if not name.startswith("xmlns"):
            assert "//" not in value
            assert not (name in ("href", "xlink:href", "src") and not value.startswith("#"))
    assert "@import" not in page.source
    assert not re.search(r"url\((?!#)", page.source)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&$\\frac{"


def test_text_from_files_is_never_markup(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / "<b>run",
        config=f"note: {json.dumps(HOSTILE)}\n",
        status=HOSTILE,
        error=HOSTILE,
        command=HOSTILE,
        git_commit=HOSTILE + "\ud800",
        data={"name": HOSTILE, HOSTILE: {HOSTILE: [HOSTILE]}},
        versions={HOSTILE: HOSTILE},
        metrics={HOSTILE: 1, "val_accuracy": HOSTILE},
    )
    cell = '"' + HOSTILE.replace('"', '""') + '"'
    (folder / "alphas.csv").write_text(f"epoch,key,candidate,weight\n0,{cell},{cell},1\n")
    (folder / "metrics.csv").write_text(f"epoch,{cell}\n0,1\n")
    (folder / "genotype.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    page = Page(write_report(folder))
    assert page.tags.count("script") == 2  # the data, and the script that shows them
    assert "img" not in page.tags
    assert "<script>alert" not in page.source
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.texts.count(HOSTILE) >= 5


def test_failed_run_shows_its_error_before_all_else(tmp_path: Path) -> None:
    folder = make_small_run(tmp_path / "run", status="failed", error="RuntimeError: the loss is not finite", metrics={})
    page = Page(write_report(folder))
    assert page.texts.index("RuntimeError: the loss is not finite") < page.texts.index("The cells")
    assert "Failed after 2 epochs" in page


def test_sections_without_a_file_say_so(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"status": "interrupted", "kind": "search"}))
    page = Page(write_report(folder))
    assert "Was interrupted after 0 epochs." in page
    for name in ("genotype.json", "metrics.csv", "alphas.csv", "config.yaml"):
        assert f"({name})." in page
    assert "svg" not in page.tags


def test_unfinished_retraining_and_another_search_space(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,train_loss,lr\n0,1.0,0.1\n")
    (tmp_path / "config.yaml").write_text("genotype: runs/7/genotype.json\nepochs: 3\n")
    (tmp_path / "genotype.json").write_text('{"first_layer": "wide", "inputs": ["a", "b"], "dropped": []}')
    page = Page(write_report(tmp_path))
    assert "Retraining 7/genotype.json" in page
    assert "Has not ended: there is no result.json yet after 1 of 3 epochs." in page
    assert {"first_layer", "wide", "a, b", "dropped"} <= set(page.texts)
    assert "How the choices were made" not in page


def test_table_names_runs_and_aggregates_over_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, accuracy in enumerate((0.90, 0.92, 0.97)):
        make_small_run(tmp_path / f"sweep/{seed}", seed=seed, metrics={"val_accuracy": accuracy}, seconds=60 + seed)
    make_small_run(tmp_path / "sweep/10", seed=7, config="batch_size: 96\n")
    make_small_run(tmp_path / "sweep/11", seed=9, status="failed")
    assert main([str(tmp_path), str(tmp_path / "sweep/0")]) == 0
    output = capsys.readouterr().out
    header, _, *table = rows(output)
    assert header[:7] == ["run", "kind", "data", "method/genotype", "seed", "status", "score"]
    assert [row[0] for row in table[:5]] == ["0", "1", "2", "10", "11"]
    assert table[0][1:] == ["search", "digits", "order 2", "0", "ok", "90.00 % val", "1.93", "300.26", "1 min 0 s"]
    # mean 93; deviations -3, -1, 4: sqrt(26 / 2) = 3.6056
    (mean,) = table[5:]
    assert mean[:6] == ["mean ± std of 3 seeds", "search", "digits", "order 2", "0,1,2", "ok"]
    assert mean[6:] == ["93.00 ± 3.61 % val", "1.93", "300.26", "1 min 1 s ± 1.0 s"]
    pages = output.split("\n\n")[1].split()
    assert len(pages) == 6
    assert pages[5] == str(tmp_path / "index.html")
    assert all(Path(page).is_file() for page in pages)


def test_methods_are_not_averaged_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, method in enumerate(("darts", "darts", "gdas", "gdas")):
        config = f"method:\n  name: {method}\n"
        make_small_run(tmp_path / f"runs/{number}", seed=number, config=config, method=method)
    assert main([str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert [row[3] for row in list(rows(output))[2:6]] == ["darts order 2"] * 2 + ["gdas order 2"] * 2
    assert [(row[3], row[4]) for row in means(output)] == [("darts order 2", "0,1"), ("gdas order 2", "2,3")]


def means(output: str) -> list[list[str]]:
    return [row for row in rows(output) if row[0].startswith("mean")]


@pytest.mark.parametrize(
    "started",
    [
        "sweep: {{resume: runs/{0}}}",
        "resume: runs/{0}",
        "checkpoint_minutes: {0}",
        "callbacks: {{progress: {{refresh_rate: {0}}}}}",
        "logger: {{tensorboard: {{name: run{0}}}}}",
        "trainer: {{accelerator: cpu{0}, precision: 32-true}}",
        "space: {{channels: 16, impl: fused{0}}}",
        "data: {{source: {{root: /data/{0}}}}}",
    ],
)
def test_how_a_run_was_started_does_not_split_the_seeds(
    started: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(4):
        data = {"name": f"image_folder:{seed // 2}", "mean": [0.5], "split_sha256": str(seed)}
        make_small_run(tmp_path / str(seed), seed=seed, config=started.format(seed // 2) + "\n", data=data)
    assert main([str(tmp_path)]) == 0
    (mean,) = means(capsys.readouterr().out)
    assert mean[0] == "mean ± std of 4 seeds"


@pytest.mark.parametrize(
    ("config", "data"),
    [
        ("space: {{channels: {0}}}", {"name": "pets", "mean": [0.5]}),
        ("trainer: {{precision: {0}}}", {"name": "pets", "mean": [0.5]}),
        ("data: {{source: {{root: /data/{0}}}}}", {"name": "one that does not describe itself"}),
        ("seed: 0", {"name": "pets", "mean": ["{0}"]}),
    ],
)
def test_another_setting_or_other_data_split_the_seeds(
    config: str, data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(4):
        described = json.loads(json.dumps(data).replace("{0}", str(seed // 2)))
        make_small_run(tmp_path / str(seed), seed=seed, config=config.format(seed // 2) + "\n", data=described)
    assert main([str(tmp_path)]) == 0
    assert [mean[0] for mean in means(capsys.readouterr().out)] == ["mean ± std of 2 seeds"] * 2


def test_runs_that_were_cut_short_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    early = {"epochs": 2, "planned_epochs": 9, "stopped_by": "EarlyStopping: no better"}
    make_small_run(tmp_path / "0", seed=0)
    make_small_run(tmp_path / "1", seed=1, **early)
    make_small_run(tmp_path / "2", seed=2, status="interrupted", error="stopped by trainer.max_time", **early)
    assert main([str(tmp_path)]) == 0
    _, _, *table = rows(capsys.readouterr().out)
    assert [row[5] for row in table] == [
        "ok",
        "ok, 2 of 9 epochs",
        "interrupted, 2 of 9 epochs",
        "ok, 1 of 2 cut short",
    ]
    page = Page(tmp_path / "1" / "report.html")
    assert "Stopped early after 2 of 9 epochs" in page
    assert {"EarlyStopping: no better", "2 of 9"} <= set(page.texts)


def test_a_search_that_the_guard_stopped_shows_the_epoch_it_took(tmp_path: Path) -> None:
    facts = {"architecture_epoch": 0, "guard": guard_facts("stop", epoch=1, returned_to=0, epochs=2)}
    html = write_report(make_run(tmp_path / "run", epochs=2, planned_epochs=9, **facts)).read_text()
    assert "Stopped early after 2 of 9 epochs" in html
    assert "Architecture and score are those of epoch 0." in html
    assert "After epoch 1, the top eigenvalue is &lt;high&gt;: the search stops." in html
    assert "<span data-epoch>epoch 0</span>" in html
    assert 'id="guard"' not in write_report(make_run(tmp_path / "other")).read_text()


@pytest.mark.parametrize(
    "guard", ["on", {"events": 3, "signals": []}, {"events": [None, {"text": 3}], "signals": {"gap": {"epochs": [0]}}}]
)
def test_a_guard_that_a_record_does_not_hold(guard: object, tmp_path: Path) -> None:
    html = write_report(make_run(tmp_path / "run", guard=guard, architecture_epoch="x")).read_text()
    assert 'class="charts"' in html


def test_part_of_the_data_is_said(tmp_path: Path) -> None:
    limits = "trainer: {limit_train_batches: 3, limit_val_batches: 1.0, limit_test_batches: null}\n"
    page = Page(write_report(make_small_run(tmp_path, config=limits)))
    assert "Only part of the data was used: trainer.limit_train_batches=3." in page


def test_a_metric_other_than_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, error in enumerate((0.25, 0.75)):
        make_small_run(tmp_path / str(seed), seed=seed, metrics={"test_loss": 9.0, "test_mae": error, "val_mae": 7.0})
    assert main([str(tmp_path)]) == 0
    _, _, first, _, mean = rows(capsys.readouterr().out)
    assert first[6] == "0.25 test mae"
    assert mean[6] == "0.5 ± 0.3536 test mae"
    assert "with a test mae of 0.25." in Page(tmp_path / "0" / "report.html")


def test_commands_of_a_resumed_run(tmp_path: Path) -> None:
    typed = ["python -m src.search epochs=1", "python -m src.search resume=run epochs=2"]
    page = Page(write_report(make_small_run(tmp_path, command="python -m src.search epochs=2", commands=typed)))
    assert "python -m src.search epochs=2" in page.texts
    assert " ".join(typed) in page.texts


def test_a_seed_that_ran_twice_is_not_counted_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_small_run(tmp_path / "a", seed=1)
    make_small_run(tmp_path / "b", seed=1)
    assert main([str(tmp_path)]) == 0
    assert "mean" not in capsys.readouterr().out
    make_small_run(tmp_path / "c", seed=2)
    assert main([str(tmp_path)]) == 0
    assert "mean ± std of 2 seeds" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["result.json", "metrics.csv"])
def test_truncated_file_is_named_after_the_others_are_reported(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, whole = make_small_run(tmp_path / "a"), make_small_run(tmp_path / "b")
    (broken / name).write_bytes((broken / name).read_bytes()[:-9])
    assert main([str(tmp_path)]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert str(broken / name) in line
    assert str(whole / "report.html") in captured.out
    assert str(broken / name) in Page(broken / "report.html")


def test_path_without_runs_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "metrics.csv").touch()
    paths = [tmp_path, tmp_path / "missing", tmp_path / "file"]
    assert main([str(path) for path in paths]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split(" ", 2)[2][:9] for line in captured.err.splitlines()] == ["holds no ", "does not ", "is not a "]
    with pytest.raises(ValueError, match="must be the folder of a run"):
        write_report(tmp_path)


def test_what_lies_below_a_run_is_not_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_small_run(tmp_path / "run")
    (run / "logger").mkdir()
    (run / "logger" / "metrics.csv").write_text("step\n0\n")
    assert main([str(tmp_path)]) == 0
    assert "logger" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (59.99, "1 min 0 s"),
        (3599.7, "1 h 0 min"),
        (98765, "27 h 26 min"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_retrained_genotype_that_was_given_as_text(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,train_loss\n0,1.0\n")
    (tmp_path / "config.yaml").write_text(f'genotype: "{NAMED_GENOTYPES["DARTS_V2"]}"\n')
    assert "Retraining Genotype(...)" in Page(write_report(tmp_path))


def test_operations_that_nothing_is_registered_for_are_drawn(tmp_path: Path) -> None:
    """A run may have operations of its own; their module is not imported by a report."""
    answers = {**CELLS.to_plain(), "normal_n2_p0": "gated_conv", "reduce_n2_p0": "mish"}
    page = Page(
        write_report(make_run(tmp_path / "run", architecture=parse_cells(answers, also=["gated_conv", "mish"])))
    )
    assert "The cells" in page.texts
    assert page.texts.count("gated conv") >= 2  # its label and its line in the key
    classes = [re.search(rf'<i class="(k\d+)"></i>{name}<', page.source) for name in ("gated conv", "mish")]
    assert classes[0] is not None
    assert classes[1] is not None
    assert classes[0][1] != classes[1][1]
    assert f'class="edge {classes[1][1]}"' in page.source.split("Reduction cell</h3>")[1].split("</figure>")[0]


def test_the_command_starts_without_torch() -> None:
    """Torch takes seconds to import, and a report needs none of it."""
    slow = ("torch", "matplotlib", "lightning", "scipy")
    done = start("-c", f"import sys, src.report; print([name for name in {slow} if name in sys.modules])")
    assert done.out == "[]\n", done.err
