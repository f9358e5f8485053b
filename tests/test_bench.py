from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from src import bench
from src.bench import comparisons, difference, gpu, methods
from src.bilevel.hypergradient import of_order

SMALL = [
    "--channels",
    "4",
    "--cells",
    "3",
    "--nodes",
    "2",
    "--batch",
    "4",
    "--image",
    "8",
    "--pairs",
    "1",
    "--steps",
    "1",
]
SIZES = bench.Sizes(channels=4, cells=3, nodes=2, batch=4, image=8)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("form", ["published, channels_last", "reference", "fused", "merged"])
def test_every_form_takes_the_same_step(form: str, order: int) -> None:
    """A baseline that did less, or something else, would make the comparison worthless."""

    def alphas_after_a_step(name: str) -> torch.Tensor:
        torch.set_default_dtype(torch.float64)
        try:
            search = bench.search_form(name, SIZES, of_order(order))
            batch = {k: (images.double(), labels) for k, (images, labels) in bench.noise(SIZES).items()}
            search(batch)
        finally:
            torch.set_default_dtype(torch.float32)
        net = search.net if isinstance(search, bench.PublishedSearch) else search.module.net
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    torch.testing.assert_close(alphas_after_a_step(form), alphas_after_a_step("published"), rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_the_command_prints_tables_and_writes_json(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(comparisons, "peak_memory", lambda arguments, device: 1.5)
    path = tmp_path / "bench.json"
    names = ["search", "hypergradient", "data"]
    assert bench.main([*names, *SMALL, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    results = {name: part["rows"] for name, part in json.loads(path.read_text()).items()}
    assert list(results) == names
    assert [row["form"] for row in results["search"]] == [*comparisons.SEARCH_FORMS] * 2
    assert all(100 < row["without views"] < row["operator calls"] for row in results["search"])
    assert all(row["seconds"] > 0 and row["operator calls"] > 100 for row in results["search"])
    exact = [row for row in results["hypergradient"] if row["hypergradient"] == "exact"]
    assert [row["gradient off by"] for row in exact] == [0.0] * 3
    assert "| times faster" in printed


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own() -> None:
    ballast = torch.ones(400_000_000 // 4)  # this process's memory is none of the step's
    assert 0 < bench.peak_memory(["--measure", "fused", *SMALL[:10]], "cpu") < 0.3
    assert ballast.sum() > 0


def test_every_method_that_trains_is_compared(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(methods, "peak_memory", lambda arguments, device: 2.0 if "pc_darts" in arguments else 4.0)
    path = tmp_path / "bench.json"
    sizes = "--channels 4 --cells 3 --nodes 1 --batch 2 --image 8 --pairs 1"
    assert bench.main(["methods", *sizes.split(), "--json", str(path)]) == 0
    rows = {(row["order"], row["method"]): row for row in json.loads(path.read_text())["methods"]["rows"]}
    names = {file.stem for file in Path("conf/method").glob("*.yaml")} - {"random"}
    assert rows.keys() == {(order, name) for order in (1, 2) for name in names}
    measured = {key: row for key, row in rows.items() if "seconds" in row}
    assert {name for order, name in measured if order == 1} == names
    assert all(row["seconds"] > 0 and row["time / DARTS"] > 0 for row in measured.values())
    assert rows[1, "darts"]["time / DARTS"] == 1
    assert rows[2, "pc_darts"]["memory / DARTS"] == 0.5
    assert rows[2, "gdas"]["not measured"] == "order must be 1 with the relaxation GumbelHard, got 2"
    assert "| time / DARTS |" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_of_a_method_is_that_of_a_process_of_its_own() -> None:
    assert 0 < bench.peak_memory(["--method", "pc_darts", "--order", "2", *SMALL[:10]], "cpu") < 0.3


def test_rows_of_the_gpu_part_are_measured_here_too() -> None:
    def row(case: gpu.Case) -> dict[str, Any]:
        return list(gpu.measure(case, SIZES))[-1]

    assert row(gpu.Case("search", "merged", "first_order"))["ms"] > 0
    assert row(gpu.Case("gradient", "published", "first_order"))["gradient error"] < 1e-4
    assert 1e-3 < row(gpu.Case("gradient", "merged", "first_order", precision="bf16"))["gradient error"] < 1


def test_a_row_that_fails_tells_why() -> None:
    rows = list(gpu.measure(gpu.Case("search", "no such form", "first_order"), SIZES))
    assert [row["error"] for row in rows] == ["KeyError: 'no such form'"]


def test_the_error_of_the_difference_is_that_of_kinks(monkeypatch) -> None:
    monkeypatch.setattr(difference, "DIRECTIONS", 1)
    point = difference.Errors(SIZES, 0).at(1)
    row = point.errors(0.001)
    assert row["truncation"] < 1e-3  # the exact product and the smooth difference are calculated independently
    assert row["frozen, float32"] < 0.02
    assert row["kinks"] == pytest.approx(row["error"], rel=0.05)
    assert row["kinks"] > 0.1
    assert 0 < row["units that change"] < 0.1
    assert point.judged(point.exact)["whole gradient"] == 0
    at_w = point.double.plain.weight_loss(point.double.plain.weights, point.double.plain.alphas)
    with point.patterns.freeze():
        frozen = point.double.plain.weight_loss(point.double.plain.weights, point.double.plain.alphas)
    assert float(frozen.detach()) == pytest.approx(float(at_w.detach()), rel=1e-12)


@pytest.mark.slow
def test_a_process_that_dies_is_replaced(monkeypatch) -> None:
    worker = gpu.Worker()
    case = gpu.Case("data", "this code")
    assert "images a second" in worker.measure(case, SIZES)
    worker._process.kill()
    assert worker.measure(case, SIZES)["error"] == "the process died"
    assert "images a second" in worker.measure(case, SIZES)
    worker.close()


@pytest.mark.slow
def test_it_runs_where_hydra_and_wandb_are_not_installed() -> None:
    """As on a machine that is lent with PyTorch and Lightning alone."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['hydra', 'omegaconf', 'wandb'])); import src.bench.commandline"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serch"], "unknown part 'serch' (allowed: search"),
        (["data", "--pairs", "0"], "--pairs must be 1 or more, got 0"),
        (["data", "--minutes", "0"], "--minutes must be more than 0, got 0"),
        (["gpu", "--quick"], "--quick: gpu has no quick form"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        bench.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
