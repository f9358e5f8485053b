"""The guard in searches through the command, with eigenvalues that the tests invent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import SEARCH, Done, assert_same, contents, read_csv, read_json, refused, run, state_of
from runs.test_resume import stop_after

from src.callbacks.guard import SIGNALS, Guard
from src.callbacks.measured import Measurements
from src.callbacks.rules import Rise
from src.common.errors import ConfigError
from src.runs.resume import experiment_of

EPOCHS = 7
SHORT = [*SEARCH, f"epochs={EPOCHS}", "checkpoint_minutes=0", "callbacks=robust", "callbacks.pictures=null"]
SHORT += ["callbacks.alphas=null", "optimizer.alphas.lr=0.3"]
# Broken where a reading is more than 1.3 times the second before it, whose state is returned to.
RULE = ["callbacks.guard.eigenvalue.window=1", "callbacks.guard.eigenvalue.delta=2", "callbacks.guard.earliest_epoch=1"]
WEIGHT_DECAY = 1e-3  # of the alphas, which is on the diagonal of the Hessian
KEPT = "checkpoints/epoch_{}.ckpt"


def invent(values: Sequence[float], patch: pytest.MonkeyPatch) -> None:
    """Let the eigenvalue after each epoch be the one given."""
    patch.setattr(Measurements, "eigenvalue", lambda self, module, batch, step: values[module.current_epoch])


def search(folder: Path, values: Sequence[float], *overrides: str) -> Done:
    with pytest.MonkeyPatch.context() as patch:
        invent(values, patch)
        return run("search", *SHORT, *RULE, *overrides, f"folder={folder}")


def checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


STEP = [1.0, 1.0, 1.0, 1.0, 1.4, 1.4, 1.4]  # broken after epoch 4, which returns to epoch 2
WAVE = [1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 2.0]  # broken after epochs 3 and 6, which return to epochs 1 and 4


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    folder = tmp_path_factory.mktemp("stopped") / "run"
    done = search(folder, STEP)
    assert done.code == 0, done.err
    return folder, done


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    folder = tmp_path_factory.mktemp("rolled_back") / "run"
    done = search(folder, WAVE, "callbacks.guard.action=roll_back")
    assert done.code == 0, done.err
    return folder, done


class TestStop:
    def test_the_record_says_what_and_why(self, stopped: tuple[Path, Done]) -> None:
        result = read_json(stopped[0] / "result.json")
        assert (result["status"], result["error"]) == ("ok", None)
        assert (result["epochs"], result["planned_epochs"], result["architecture_epoch"]) == (5, EPOCHS, 2)
        reason = (
            "the mean of the last 1 reading of the top eigenvalue is 1.4, more than 1.3 times that of 2 readings before"
        )
        assert result["stopped_by"] == f"Guard: {reason}, 1, after epoch 4"
        (event,) = result["guard"]["events"]
        assert (event["epoch"], event["signals"], event["action"], event["returned_to"]) == (
            4,
            ["eigenvalue"],
            "stop",
            2,
        )
        columns = result["guard"]["signals"]["eigenvalue"]
        assert columns["epochs"] == list(range(5))
        assert columns["values"] == STEP[:5]
        assert columns["limits"][:3] == [None, None, None]  # nothing before epoch 1 is returned to
        assert columns["limits"][3:] == pytest.approx([1.3] * 2)

    def test_all_files_are_of_the_epoch_that_was_returned_to(self, stopped: tuple[Path, Done]) -> None:
        folder = stopped[0]
        result, rows = read_json(folder / "result.json"), read_csv(folder / "metrics.csv")
        assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(5)]
        measured = {name: float(value) for name, value in rows[2].items() if name not in ("epoch", "lr")}
        assert result["metrics"] == measured
        chosen = (folder / "checkpoints" / "epoch_2.json").read_bytes()
        assert (folder / "genotype.json").read_bytes() == chosen
        assert result["genotype"] == read_json(folder / "genotype.json")
        assert len({(folder / "checkpoints" / f"epoch_{n}.json").read_bytes() for n in (2, 4)}) == 2
        last, kept = checkpoint(folder / "checkpoints" / "last.ckpt"), checkpoint(folder / KEPT.format(2))
        assert last["epoch"] == 4
        for part in ("state_dict", "optimizer_states"):
            assert_same(last[part], kept[part])

    def test_it_stands_in_the_log_and_on_the_page_and_the_terminal(self, stopped: tuple[Path, Done]) -> None:
        folder, done = stopped
        limits = [row["guard/eigenvalue_limit"] for row in read_csv(folder / "steps.csv") if row["guard/eigenvalue"]]
        assert [bool(limit) for limit in limits] == [False, False, False, True, True]
        (event,) = read_json(folder / "result.json")["guard"]["events"]
        page = (folder / "report.html").read_text()
        assert event["text"][1:] in page
        assert "Architecture and score are those of epoch 2." in page
        assert f"guard: {event['text']}\n" in done.out
        assert "guard     stops the search if the mean of 1 reading of the top eigenvalue" in done.out
        assert "epoch     2; the guard ended the search after epoch 4" in done.out

    def test_the_states_that_are_kept_are_few(self, stopped: tuple[Path, Done]) -> None:
        kept = {
            name for name in contents(stopped[0]) if name.startswith("checkpoints/epoch_") and name.endswith("ckpt")
        }
        assert kept == {KEPT.format(epoch) for epoch in (1, 2, 3)}

    def test_without_a_guard_it_continues_from_that_state(self, stopped: tuple[Path, Done], tmp_path: Path) -> None:
        again = tmp_path / "again"
        again.mkdir()
        for name, content in contents(stopped[0]).items():
            (again / name).parent.mkdir(exist_ok=True)
            (again / name).write_bytes(content)
        done = run("search", f"resume={again}", "callbacks=none")
        assert done.code == 0, done.err
        result = read_json(again / "result.json")
        assert (result["epochs"], result["architecture_epoch"], result["guard"]) == (EPOCHS, EPOCHS - 1, None)


class TestRollBack:
    def test_weight_decay_schedule_and_files(self, rolled_back: tuple[Path, Done]) -> None:
        folder = rolled_back[0]
        result, rows = read_json(folder / "result.json"), read_csv(folder / "metrics.csv")
        events = result["guard"]["events"]
        assert [(e["epoch"], e["action"], e["returned_to"]) for e in events] == [(3, "roll_back", 1), (6, "stop", 4)]
        assert events[0]["weight_decay"] == pytest.approx(3e-3)
        assert events[0]["text"].endswith(
            "back to the state after epoch 1, with a weight decay of 0.003 (before: 0.0003) and a new schedule for the 3 "
            "epochs left"
        )
        # Each epoch is there once: four of the first cosine, then a cosine over the three that are left.
        first = [0.001 + 0.024 * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2 for epoch in range(4)]
        second = [0.001 + 0.024 * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in range(3)]
        assert [float(row["lr"]) for row in rows] == pytest.approx(first + second)
        # The last epoch leaves nothing to be trained anew: the search ends with the state that it would return to.
        assert (result["status"], result["epochs"], result["architecture_epoch"]) == ("ok", EPOCHS, 4)
        assert result["stopped_by"] is None
        decays = [
            float(row["guard/weight_decay"]) for row in read_csv(folder / "steps.csv") if row["guard/weight_decay"]
        ]
        assert decays == pytest.approx([3e-4] * 3 + [3e-3] * 4)

    def test_training_continues_from_the_alphas_returned_to(self, rolled_back: tuple[Path, Done]) -> None:
        folder = rolled_back[0]
        weights: list[list[float]] = [[] for _ in range(5)]
        for row in read_csv(folder / "alphas.csv"):
            if int(row["epoch"]) < len(weights):
                weights[int(row["epoch"])].append(float(row["weight"]))

        def distance(one: int, other: int) -> float:
            return math.dist(weights[one], weights[other])

        assert distance(4, 1) < distance(4, 3)

    def test_cut_off_and_resumed(self, rolled_back: tuple[Path, Done], tmp_path: Path) -> None:
        """In the epoch that ends with the return (two steps each), right after it, within the next, and later."""
        folder = tmp_path / "run"
        with pytest.MonkeyPatch.context() as patch:
            invent(WAVE, patch)
            arguments = [*SHORT, *RULE, "callbacks.guard.action=roll_back", f"folder={folder}"]
            for count in (7, 1, 1, 3):
                with pytest.MonkeyPatch.context() as cut:
                    stop_after(count, cut)
                    assert run("search", *arguments).code == 1
                arguments = [f"resume={folder}"]
            done = run("search", *arguments)
            assert done.code == 0, done.err
        assert_same(state_of(folder), state_of(rolled_back[0]))
        assert read_json(folder / "result.json")["guard"] == read_json(rolled_back[0] / "result.json")["guard"]

    def test_at_the_largest_weight_decay_it_warns(self, tmp_path: Path) -> None:
        """0.0003 * 10 * 10 is less than 0.03 by a rounding."""
        twice = [
            "callbacks.guard.action=roll_back",
            "optimizer.weights.weight_decay=3e-3",
            "callbacks.guard.eigenvalue.delta=1",
        ]
        done = search(tmp_path / "run", [1.0, 1.0, 2.0, 4.0, 4.0, 4.0, 1.0], *twice)
        assert done.code == 0, done.err
        events = read_json(tmp_path / "run" / "result.json")["guard"]["events"]
        assert [(event["epoch"], event["action"]) for event in events] == [(2, "roll_back"), (3, "warn")]
        assert events[0]["weight_decay"] == 0.03
        assert "has reached its largest value, 0.03" in events[1]["text"]


def test_a_guard_that_warns_changes_nothing(tmp_path: Path) -> None:
    """With eigenvalues and gaps that are measured, and rules that are all broken."""
    broken = [
        "callbacks.guard.eigenvalue=-1",
        "callbacks.guard.skips=-1",
        "callbacks.guard.entropy=99",
        "callbacks.guard.gap=-99",
    ]
    warned, plain = tmp_path / "warned", tmp_path / "plain"
    options = [*SHORT, "epochs=2"]
    done = run("search", *options, *broken, "callbacks.guard.action=warn", f"folder={warned}")
    assert done.code == 0, done.err
    assert run("search", *options, "callbacks.guard=null", f"folder={plain}").code == 0
    one, other = state_of(warned), state_of(plain)
    one["callbacks"].pop("Guard")
    assert_same(one, other)
    guard = read_json(warned / "result.json")["guard"]
    (event,) = guard["events"]  # once: the second epoch is no better
    assert (event["epoch"], event["signals"]) == (0, list(SIGNALS))
    assert done.out.count("guard: ") == 1
    assert event["text"].endswith(": the search continues")
    rows = read_csv(warned / "metrics.csv")
    assert guard["signals"]["entropy"]["values"] == pytest.approx([float(row["alpha_entropy"]) for row in rows])
    steps = [row for row in read_csv(warned / "steps.csv") if row["guard/gap"]]
    assert guard["signals"]["skips"]["values"] == [float(row["skip_count"]) for row in steps]


def test_diagnostics_and_guard_measure_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original: Callable[..., Any] = Measurements._once

    def counted(self: Measurements, what: str, place: Any, measure: Callable[[], Any]) -> Any:
        return original(self, what, place, lambda: (calls.append(what), measure())[1])

    monkeypatch.setattr(Measurements, "_once", counted)
    monkeypatch.setattr("src.callbacks.measured.top_eigenvalue", lambda problem: 2.0)
    done = run(
        "search", *SHORT, "epochs=1", "diagnostics=full", "diagnostics.orders_every_n_steps=null",
        "diagnostics.exact_every_n_steps=null", "callbacks.guard.gap=9", f"folder={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert sorted(calls) == ["eigenvalue", "gap"]
    (row,) = (row for row in read_csv(tmp_path / "run" / "steps.csv") if row["guard/eigenvalue"])
    assert row["guard/eigenvalue"] == row["diagnostics/alpha_eigenvalue"]
    assert float(row["guard/eigenvalue"]) == pytest.approx(2 + WEIGHT_DECAY)
    (epoch,) = read_csv(tmp_path / "run" / "metrics.csv")
    assert float(epoch["alpha_eigenvalue"]) == pytest.approx(2 + WEIGHT_DECAY)
    assert row["guard/gap"] == row["diagnostics/discretisation_gap"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["method=gdas"],
            "eigenvalue must be null with the relaxation GumbelHard, whose mixing weights have no second derivative; a guard "
            "can watch skips, entropy, gap",
        ),
        (["callbacks.guard.action=rollback"], "unknown action 'rollback', did you mean 'roll_back'?"),
        (["callbacks.guard.eigenvalue.window=0"], "callbacks.guard.eigenvalue.window must be 1 or more, got 0"),
        (["callbacks.guard.skip=3"], "did you mean 'skips'?"),
        (
            ["callbacks.guard.action=roll_back", "optimizer.weights.weight_decay=0"],
            "action must be warn or stop where the weights have no weight decay to raise, got roll_back",
        ),
        (["callbacks.guard.gap=1", "trainer.limit_val_batches=0"], "gap must be null without validation batches"),
        (
            ["callbacks.guard.skips=1", "space.candidates=[none,sep_conv_3x3]"],
            "skips must be null in a space without identity or skip or skip_connect",
        ),
        (
            ["+callbacks.second={_target_: src.callbacks.guard.Guard, skips: 3}"],
            "the number of guards among the callbacks must be 1 or 0; one guard can watch several signals, got 2",
        ),
    ],
)  # fmt: skip
def test_what_a_guard_refuses(overrides: list[str], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert message in refused(run("search", *SHORT, *overrides, f"folder={folder}"))
    assert not folder.exists()


def test_a_guard_says_when_a_search_is_too_short_for_it() -> None:
    guard = Guard(eigenvalue=Rise(), skips=4, earliest_epoch=2)
    rise = "stops the search if the mean of 5 readings of the top eigenvalue exceeds 1.3 times that of 4 before"
    skips = "stops the search if the number of skip connections exceeds 4 (from epoch 3 on)"
    assert guard.in_words(9).splitlines() == [f"{rise} (from epoch 8 on)", skips]
    assert guard.in_words(8).splitlines() == [
        f"{rise} (cannot act: epoch 8 is the first that could, the last is 7)",
        skips,
    ]


def test_a_guard_that_acts_is_part_of_the_experiment() -> None:
    node = {"_target_": f"{Guard.__module__}.{Guard.__qualname__}", "action": "stop"}

    def experiment(callbacks: Any) -> dict[str, Any]:
        return experiment_of({"callbacks": callbacks, "epochs": 3}, {})

    plain = experiment({"progress": {"_target_": "src.callbacks.progress.Progress"}})
    assert experiment(None) == experiment({"guard": {**node, "action": "warn"}}) == plain
    assert experiment({"guard": node}) != plain
    assert experiment({"guard": node}) != experiment({"guard": {**node, "action": "roll_back"}})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"skips": None}, "a guard must watch one signal or more: eigenvalue, skips, entropy, gap"),
        ({"skips": "few"}, "skips must be a number, null, or a rule such as src.callbacks.rules.Rise, got few"),
        ({"gap_batches": 0}, "gap_batches must be 1 or more, got 0"),
        ({"eigenvalue_every_n_epochs": 0}, "eigenvalue_every_n_epochs must be 1 or more, got 0"),
        ({"decay_factor": 1}, "decay_factor must be above 1, got 1"),
        ({"largest_decay": 0}, "largest_decay must be above 0, got 0"),
        ({"earliest_epoch": -1}, "earliest_epoch must be 0 or more, got -1"),
    ],
)
def test_arguments_that_a_guard_refuses(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Guard(**{"skips": 4, **wrong})
