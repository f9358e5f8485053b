"""The example space, held by the conformance suite, and searched and retrained as its README says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import ROOT, read_json
from conformance.space import SpaceConformance
from torch import Tensor, nn

from examples.signal_space.signals.space import SignalSpace

EXAMPLE = ROOT / "examples" / "signal_space"


class TestSignalSpace(SpaceConformance):
    outputs = 3

    def space(self) -> nn.Module:
        return SignalSpace(input_shape=(1, 16), num_classes=3, channels=4)

    def inputs(self) -> tuple[Tensor, ...]:
        return (torch.randn(4, 1, 16, generator=torch.Generator().manual_seed(0)),)


@pytest.mark.slow
def test_as_its_readme_says(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True)
    commands = re.findall(r"^python (.*)$", (EXAMPLE / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 3
    short = {"search": ["epochs=1", "callbacks=none"], "retrain": ["epochs=1", "callbacks=none"]}
    for command in commands:
        arguments = shlex.split(command)
        done = subprocess.run(
            [sys.executable, *arguments, *short[arguments[1].removeprefix("src.")], "trainer=cpu"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    results = {name: read_json(tmp_path / name / "result.json") for name in ("found", "trained", "continued")}
    assert {result["status"] for result in results.values()} == {"ok"}
    assert results["trained"]["genotype"] == results["continued"]["genotype"] == results["found"]["genotype"]
    assert set(results["found"]["genotype"]) == {"layer0", "layer1", "layer2", "layer3", "read"}
