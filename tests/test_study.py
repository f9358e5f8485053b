"""`python -m src.study`: what runs, what is left out, what a second start does, and what is written."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from commands import begin, contents, read_json, refused, run, start, until
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton

from src.runs import jobs
from src.runs.folder import RunFolder
from src.runs.following import CONF
from src.runs.jobs import Ended, Job, JobPool
from src.studies.folder import StudyFolder

SHORT = "space.channels=2,space.cells=1,epochs=2,trainer.limit_train_batches=2,trainer.limit_val_batches=1"
SEARCH = f"search=[{SHORT},trainer=cpu,diagnostics=none,callbacks=none]"
ARMS = ["study=nas_bench_201", "methods=[darts,gdas]", "orders=[1,2]", SEARCH, "seeds=2", "jobs=1"]
RETRAIN = "retrain={short:['epochs=1','trainer=cpu','trainer.limit_train_batches=2','callbacks=none']}"


class _Here(JobPool):
    """Runs jobs in this process."""

    def run(self, jobs: Iterable[Job]) -> Iterator[Ended]:
        for job in jobs:
            of_the_study = Singleton.get_state()
            GlobalHydra.instance().clear()
            done = run(job.command, *job.arguments())
            Singleton.set_state(of_the_study)
            job.folder.mkdir(parents=True, exist_ok=True)
            RunFolder(job.folder).log.write_text(done.out + done.err)
            reason = done.err.strip().splitlines()[-1] if done.code else ""
            yield Ended(job, "failed" if done.code else "ok", reason, 1.0)


@pytest.fixture(scope="module", autouse=True)
def _in_this_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.study.JobPool", _Here)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    folder = tmp_path_factory.mktemp("study") / "compared"
    done = run("study", *ARMS, f"folder={folder}")
    assert done.code == 0, done
    (folder / "said.txt").write_text(done.out)
    return StudyFolder(folder)


def test_every_arm_has_every_seed_as_a_run(finished: StudyFolder) -> None:
    result = read_json(finished.result)
    assert [(one["arm"], one["seed"]) for one in result["outcomes"]] == [
        (arm, seed) for seed in (0, 1) for arm in ("darts, order 1", "darts, order 2", "gdas, order 1")
    ]
    for one in result["outcomes"]:
        found = read_json(RunFolder(finished.path / one["folder"]).result)
        assert (found["status"], found["seed"], found["genotype"]) == ("ok", one["seed"], one["architecture"])
        assert one["scores"] == {"table": pytest.approx(found["metrics"]["table_accuracy"])}
    assert result["failures"] == []


def test_it_says_what_it_compares_and_what_it_leaves_out(finished: StudyFolder) -> None:
    said = (finished.path / "said.txt").read_text()
    assert "gdas, order 2: order must be 1 with the relaxation GumbelHard" in said
    assert "a table of all 15,625 architectures" in said
    assert "6 searches" in said
    assert "6/6" in said


def test_the_statement_is_in_the_terminal_the_numbers_and_the_page(finished: StudyFolder) -> None:
    sentences = read_json(finished.result)["statement"]
    said, page = " ".join((finished.path / "said.txt").read_text().split()), finished.page.read_text()
    assert sentences
    for sentence in sentences:
        assert sentence in said
    assert "Study nas_bench_201" in page
    assert "search/gdas-order1/seed%3D1/report.html" in page


def test_the_numbers_say_how_they_came_about(finished: StudyFolder) -> None:
    study = read_json(finished.result)["study"]
    assert study["command"].startswith("python -m src.study study=nas_bench_201")
    assert study["settings"]["methods"] == ["darts", "gdas"]
    assert "torch" in study["versions"]
    assert study["machines"]


def test_a_second_start_runs_what_is_missing(finished: StudyFolder, tmp_path: Path) -> None:
    copy = StudyFolder(tmp_path / "copy")
    shutil.copytree(finished.path, copy.path)
    lost, cut = copy.search("gdas-order1", 1), RunFolder(copy.search("darts-order1", 0))
    shutil.rmtree(lost)
    cut.result.unlink()  # as if it had been killed: its checkpoint is there
    kept = contents(copy.search("darts-order1", 1))
    before = contents(cut.path)
    done = run("study", *ARMS, f"folder={copy.path}")
    assert done.code == 0, done
    assert "2 searches (4 finished before)" in done.out
    assert contents(copy.search("darts-order1", 1)) == kept
    assert contents(cut.path)["genotype.json"] == before["genotype.json"]
    old, new = (read_json(folder.result) for folder in (finished, copy))
    assert new["analysis"]["results"] == old["analysis"]["results"]


def test_seeds_can_be_added_and_other_settings_are_refused(finished: StudyFolder) -> None:
    more = run("study", *ARMS, "seeds=3", f"folder={finished.path}", "plan=true")
    assert more.code == 0
    assert "3 searches (6 finished before)" in more.out
    other = [argument.replace("epochs=2", "epochs=3") for argument in ARMS]
    before = contents(finished.path)
    message = refused(run("study", *other, f"folder={finished.path}"))
    assert "holds another run" in message
    assert contents(finished.path) == before


def test_without_a_table_what_is_found_and_random_architectures_are_retrained(tmp_path: Path) -> None:
    folder = tmp_path / "retrained"
    arguments = ["study=nas_bench_201", "methods=[darts]", SEARCH, RETRAIN, "seeds=1", "random=2", "table=false"]
    done = run("study", *arguments, f"folder={folder}", "name=again")
    assert done.code == 0, done
    result = read_json(StudyFolder(folder).result)
    assert [(one["arm"], one["seed"]) for one in result["outcomes"]] == [
        ("darts, order 1", 0),
        ("random", 0),
        ("random", 1),
    ]
    for one in result["outcomes"]:
        arm = Path(one["folder"]).parent.name
        trained = read_json(StudyFolder(folder).retrain("short", arm, one["seed"], 0) / "result.json")
        assert trained["genotype"] == one["architecture"]
        assert one["scores"] == {"short": trained["metrics"]["test_accuracy"]}
    assert result["study"]["name"] == "again"


def test_a_failed_job_costs_no_other_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["study=nas_bench_201", "methods=[darts]", SEARCH, "seeds=2", f"folder={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setattr(Job, "arguments", _diverging)
        done = run("study", *arguments)
    assert done.code == 1
    result = read_json(StudyFolder(tmp_path).result)
    assert [one["seed"] for one in result["outcomes"]] == [1]
    assert [one["name"] for one in result["failures"]] == ["search/darts-order1/seed=0"]
    assert result["failures"][0]["reason"] in StudyFolder(tmp_path).page.read_text().replace("&#39;", "'")
    again = run("study", *arguments)
    assert again.code == 0, again
    assert "1 search (1 finished before)" in again.out


def _diverging(job: Job) -> list[str]:
    extra = ["data.batch_size=0"] if job.folder.name == "seed=0" else []
    return [*job.overrides, *extra, f"folder={job.folder}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seeds=0"], "seeds must be 1 or more, got 0"),
        (["methods=[]"], "methods must be a list with one or more, got []"),
        (["methods=[dart]"], "unknown method option 'dart', did you mean 'darts'"),
        (["methods=[random]"], "methods cannot hold random"),
        (["methods=[gdas]", "orders=[2]"], "leave nothing to compare"),
        (["methods=[darts]", "search=[seed=3]"], "search cannot set seed"),
        (["methods=[darts]", "search=[space.chanels=3]"], "darts, order 1: unknown key 'chanels'"),
        (["methods=[darts]", "orders=[2]", "hypergradients=[exakt]"], "unknown hypergradient option 'exakt'"),
        (["seed=3"], "unknown key 'seed', did you mean 'seeds'"),
        (["method=gdas"], "unknown key 'method', did you mean 'methods'"),
        (["epochs=3"], "src.study has no setting epochs; a setting of src.search goes into search=[epochs=3]"),
        (["space.channels=8"], "a setting of src.search goes into search=[space.channels=8]"),
        (["methods=darts"], "methods must be a list of values that are each text, got 'darts'"),
        (["orders=[one]"], "orders must be a list of values that are each a whole number, got ['one']"),
        (["methods=[darts,", "gdas]"], "has no closing bracket; with spaces in it, quote it: 'methods=...'"),
        (
            ["retrain=[epochs=1]"],
            "retrain must be a mapping, of which each value is a list of values that are each text",
        ),
        (["variants={short:'epochs=1'}"], "variants.short must be a list of values that are each text, got 'epochs=1'"),
        (["study=nas"], "unknown study option 'nas'"),
        (["jobs=0"], "jobs must be 1 or more, got 0"),
        (["-m"], "starts all of its jobs itself"),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    option = [] if arguments[0].startswith("study=") else ["study=nas_bench_201"]
    assert message in refused(run("study", *option, *arguments, f"folder={tmp_path / 'none'}"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: my\n", "conf/study/my.yaml: it must begin with the line # @package _global_"),
        ("# @package _global_\nseed: 3\n", "conf/study/my.yaml: unknown key 'seed', did you mean 'seeds'"),
        ("# @package _global_\nseeds: ten\n", "conf/study/my.yaml: seeds must be a whole number, got 'ten'"),
        (
            "# @package _global_\nmethods: darts\n",
            "conf/study/my.yaml: methods must be a list of values that are each text",
        ),
        ("name: my\n bad: [\n", "cannot read a file in conf/: mapping values are not allowed here"),
    ],
)
def test_mistakes_in_a_file_of_a_study_name_the_file(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = shutil.copytree(CONF, tmp_path / "conf")
    (own / "study" / "my.yaml").write_text(text)
    for module in ("launch", "composition"):
        monkeypatch.setattr(f"src.runs.{module}.CONF", own)
    assert message in refused(run("study", "study=my"))


def test_a_plan_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("study", *ARMS, "plan=true").code == 0
    assert not list(tmp_path.iterdir())


def test_jobs_run_in_processes_of_their_own(tmp_path: Path) -> None:
    tiny = [
        *SHORT.split(","),
        "space=nas_bench_201",
        "data=digits",
        "trainer=cpu",
        "diagnostics=none",
        "callbacks=none",
    ]
    good, bad = (
        Job("search", tmp_path / name, (*tiny, *more)) for name, more in (("good", []), ("bad", ["data.batch_size=0"]))
    )
    with jobs.JobPool(jobs.side_by_side(1, 1)) as pool:
        ended = {end.job: end for end in pool.run([bad, good])}
    assert (ended[good].status, good.is_done) == ("ok", True)
    assert (ended[bad].status, ended[bad].reason) == ("failed", "data.batch_size must be 1 or more, got 0")
    assert "found in" in RunFolder(good.folder).log.read_text()
    assert read_json(RunFolder(good.folder).result)["machine"]["threads"] == 1


@pytest.mark.slow
def test_sigterm_stops_a_study_which_the_same_command_continues(tmp_path: Path) -> None:
    arguments = ["study=nas_bench_201", "methods=[darts]", SEARCH.replace("epochs=2", "epochs=400"), "jobs=2"]
    folder = StudyFolder(tmp_path)
    process = begin("study", *arguments, f"folder={folder}", "seeds=3")
    running = [RunFolder(folder.search("darts-order1", seed)) for seed in (0, 1)]
    until(lambda: all(one.metrics.exists() for one in running), process)
    process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert "the same command continues it" in err
    assert "Traceback" not in err
    for one in running:
        assert read_json(one.result)["status"] == "interrupted"
        assert one.last.exists()
    done = start("-m", "src.study", *arguments, f"folder={folder}", "seeds=2")
    assert done.code == 0, done
    assert {read_json(one.result)["epochs"] for one in running} == {400}
    assert not folder.search("darts-order1", 2).exists()
