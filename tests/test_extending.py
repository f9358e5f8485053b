"""Every page of docs/extending.md: its file is written, and its commands are run, as they stand."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from commands import ROOT, read_json, run

from src.spaces.cnn.operations import OPERATIONS

PAGES = ROOT / "docs" / "extending.md"
# What makes the commands short; it stands behind what the page says.
SHORT = ["epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "callbacks=none", "trainer=cpu"]
SMALL_CELLS = ["space.channels=4", "space.cells=3", "space.nodes=2"]


class Page(NamedTuple):
    title: str
    file: str
    code: str
    commands: list[list[str]]


def pages() -> list[Page]:
    found = []
    for section in PAGES.read_text().split("\n## ")[1:]:
        (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.S)
        (shell,) = re.findall(r"```\n(python .*?)```", section, flags=re.S)
        file = re.match(r"# (\w+\.py)\n", code)
        assert file is not None
        found.append(Page(section.split("\n")[0], file[1], code, [shlex.split(line) for line in shell.splitlines()]))
    return found


def test_there_are_the_five_pages() -> None:
    titles = [page.title for page in pages()]
    assert titles == ["An operation", "A method", "A space", "A data set", "A hypergradient"]
    contents = re.findall(r"^- \[(.*?)\]", PAGES.read_text(), flags=re.M)
    assert contents == titles


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.title)
def test_page(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in pages():  # a page may use what an earlier one has written
        (tmp_path / other.file).write_text(other.code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(OPERATIONS, "data", dict(OPERATIONS.data))
    for other in pages():
        monkeypatch.delitem(sys.modules, Path(other.file).stem, raising=False)
    for number, (python, option, module, *words) in enumerate(page.commands):
        assert (python, option) == ("python", "-m")
        is_search = module == "src.search"
        short = [*SHORT, *(["diagnostics=none", "logger=none"] if is_search else ["trainer.limit_test_batches=1"])]
        if (
            not any(word.startswith(("space._target_", "genotype=found")) for word in words)
            or page.title == "An operation"
        ):
            short += SMALL_CELLS if is_search else SMALL_CELLS[:2]
        folder = next((word.partition("=")[2] for word in words if word.startswith("folder=")), f"run{number}")
        done = run(module.removeprefix("src."), *words, *short, f"folder={folder}")
        assert done.code == 0, done.err
        assert read_json(tmp_path / folder / "result.json")["status"] == "ok"
