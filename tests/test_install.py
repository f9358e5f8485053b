"""`pip install .`: the commands work from another folder, with everything that they need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, SEARCH, read_json


@pytest.mark.slow
def test_installed_commands_find_their_configs_and_files(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    checkout, installed, elsewhere = tmp_path / "checkout", tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    checkout.mkdir()
    for folder in ("src", "conf"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        if (ROOT / file).exists():
            shutil.copy(ROOT / file, checkout)
    pip = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(installed)]
    subprocess.run([sys.executable, "-m", *pip, str(checkout)], check=True)
    for source, target in (("src", "src"), ("conf", "src/conf")):
        there = {path.relative_to(installed / target) for path in (installed / target).rglob("*")}
        missing = {path.relative_to(checkout / source) for path in (checkout / source).rglob("*")} - there
        assert not missing
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    helped = ("retrain", "report", "predict", "evaluate", "convert", "bench")
    for script, words in (
        ("darts-search", [*SEARCH, "callbacks=none", "folder=run"]),
        *((f"darts-{name}", ["--help"]) for name in helped),
    ):
        done = subprocess.run(
            [sys.executable, installed / "bin" / script, *words],
            cwd=elsewhere, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert read_json(elsewhere / "run" / "result.json")["status"] == "ok"
