"""Pages in a browser: headless Chromium opens a copy of a page whose last script acts as a reader does."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from made_runs import guard_facts, make_long_run, make_small_run
from studies.made import made_with_table

from src.benchmarks.nas_bench_201 import nas_bench_201
from src.report import main, write_report
from src.reports.names import DARK, LIGHT
from src.reports.study import StudyRun, render_study
from src.spaces.cnn.genotypes import CANDIDATES, NAMED_GENOTYPES
from src.studies.analysis import analyse

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")


def browse(acts: str, *views: tuple[Path, int], dark: bool = False) -> list[dict[str, Any]]:
    """Open copies of pages side by side, run `acts` (the body of an async function) in each, return what that returns.

    Args:
        acts: JavaScript that returns an object.
        views: pages, each with a width in pixels.
        dark: whether the reader prefers dark pages.
    """
    assert BROWSER is not None
    before = (
        "<script>window.failures = []; addEventListener('error', (event) => failures.push(event.message));</script>"
    )
    frames = []
    for number, (page, width) in enumerate(views):
        after = f"""<script>(async () => {{
          const all = (selector, root = document) => [...root.querySelectorAll(selector)];
          const one = (selector, root = document) => root.querySelector(selector);
          const result = await (async () => {{ {acts} }})();
          result.failures = failures;
          parent.postMessage({{number: {number}, result}}, "*");
        }})();</script>"""
        text = page.read_text(encoding="utf-8").replace("<head>", f"<head>{before}", 1)
        copy = page.with_name(f"copy_{number}.html")
        copy.write_text(text.replace("</body>", f"{after}</body>"), encoding="utf-8")
        frames.append(f'<iframe src="{copy.as_uri()}" width="{width}" height="900" style="border: 0"></iframe>')
    # No window is as narrow as a phone, but a frame in it is.
    wrapper = views[0][0].with_name("frames.html")
    wrapper.write_text(
        f"""<!DOCTYPE html><html style="color-scheme: {"dark" if dark else "light"}"><body><pre id="outcome"></pre><script>
        const results = [];
        onmessage = (event) => {{
          results[event.data.number] = event.data.result;
          if (results.filter(Boolean).length === {len(views)}) outcome.textContent = JSON.stringify(results);
        }};</script>{"".join(frames)}</body></html>"""
    )
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",  # it opens this project's pages only; in a container it may run as root
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={wrapper.parent / 'browser'}",
            "--window-size=1400,1000",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--virtual-time-budget=20000",
            "--dump-dom",
            wrapper.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r'<pre id="outcome">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    results = json.loads(html.unescape(found[1]))
    assert [result.pop("failures") for result in results] == [[]] * len(views)
    return results


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    guard = guard_facts("roll_back", epoch=27, returned_to=21, epochs=50)
    return write_report(make_long_run(tmp_path_factory.mktemp("search") / "run", guard=guard))


@pytest.fixture(scope="module")
def overview(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    for seed, order in ((0, 1), (1, 1), (0, 2), (1, 2)):
        command = f"python -m src.search order={order} seed={seed}"
        genotype = NAMED_GENOTYPES["DARTS_V2" if seed else "DARTS_V1"].to_architecture().to_plain()
        make_small_run(
            folder / f"order={order},seed={seed}", seed=seed, order=order, command=command, config=f"n: {order}\n"
        )
        path = folder / f"order={order},seed={seed}" / "genotype.json"
        path.write_text(json.dumps(genotype))
    assert main([str(folder)]) == 0
    return folder / "index.html"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arm = "a setting with a long name, order 2, finite_difference, two more words"
    skills = {arm: (0.0, 0.9), "darts, order 1": (0.5, 1.0)}
    analysis = analyse(made_with_table(skills, seeds=4, epochs=4), table=nas_bench_201())
    runs = [StudyRun(arm, 0, "search", "search/" + 60 * "a", "search/a/report.html", "failed", 3.0, 200 * "b")]
    path = tmp_path_factory.mktemp("study") / "study.html"
    said = ["One sentence."]
    path.write_text(render_study(analysis, title="A study", statement=said, runs=runs, command="python -m src.study"))
    return path


READ = """
  const read = () => ({
    epoch: one("#shown").textContent,
    label: one("#epoch").getAttribute("aria-valuetext"),
    cell: all("[data-cell='0'] .name").map((text) => text.textContent),
    starts: all("[data-cell='0'] .edge .dot").map((dot) => Number(dot.getAttribute("cx"))),
    caption: one("[data-epoch]").textContent,
    weights: all("[data-table='0'] tbody tr:first-child td").map((cell) => Number(cell.textContent)),
    kept: all("[data-table='0'] tr.kept").length,
    answers: all("[data-table='0'] .answer").length,
    loss: one("[data-plot='0'] [data-value='0']").textContent,
    cursor: one("[data-plot='0'] .cursor").getAttribute("transform"),
  });
"""


def test_the_slider_and_the_play_button_move_everything(search: Path) -> None:
    (seen,) = browse(
        READ
        + """
        const slider = one("#epoch"), last = read();
        const move = (value) => { slider.value = value; slider.dispatchEvent(new Event("input", {bubbles: true})); };
        move(0);
        const first = read();
        one("#play").click();
        const playing = one("#play").textContent;
        await new Promise((done) => setTimeout(done, 1500));
        const amid = Number(slider.value);
        one("#play").click();
        await new Promise((done) => setTimeout(done, 1000));
        const paused = Number(slider.value);
        move(49);
        return {first, last, again: read(), playing, amid, paused, hidden: slider.closest(".epochs").hidden};
    """,
        (search, 1280),
    )
    first, last = seen["first"], seen["last"]
    assert seen["hidden"] is False
    assert (first["epoch"], last["epoch"]) == ("epoch 0", "epoch 49")
    assert (first["caption"], last["caption"]) == ("epoch 0", "epoch 49")
    assert first["label"] == "epoch 0 of 0 to 49"
    assert len(first["cell"]) == len(last["cell"]) == 8
    assert (first["cell"], first["starts"]) != (last["cell"], last["starts"])
    for shown in (first, last):
        assert sum(shown["weights"][: len(CANDIDATES)]) == pytest.approx(100, abs=0.5)
        assert shown["kept"] == shown["answers"] == 8
    assert first["weights"] != last["weights"]
    assert first["loss"] != last["loss"]
    assert first["cursor"] != last["cursor"]
    assert seen["playing"] == "Pause"
    assert 0 < seen["amid"] < 49
    assert abs(seen["paused"] - seen["amid"]) <= 1
    assert seen["again"] == last


def test_what_the_script_shows_for_the_last_epoch_is_what_the_page_says_without_it(search: Path) -> None:
    source = search.read_text(encoding="utf-8")
    rows = re.search(r'<table class="heat" data-table="0">(.*?)</table>', source, re.DOTALL)
    assert rows
    written = re.findall(r"<td[^>]*>([\d.]*)</td>", rows[1])
    (seen,) = browse(
        """
        one("#epoch").value = 3;
        one("#epoch").dispatchEvent(new Event("input"));
        one("#epoch").value = 49;
        one("#epoch").dispatchEvent(new Event("input"));
        return {
          cells: all("[data-table='0'] td").map((cell) => cell.textContent),
          names: all("[data-cell] .name").map((text) => text.textContent),
          paths: all("[data-cell] .edge .line").map((path) => path.getAttribute("d")),
        };
        """,
        (search, 1280),
    )
    assert seen["cells"] == written
    assert seen["names"] == re.findall(r'<text class="name"[^>]*>([^<]*)<', source)
    assert seen["paths"] == re.findall(r'<path class="line" d="(M[\d.]+ [\d.]+H[\d.]+)"/><path class="head"', source)


def test_a_pointer_over_a_picture_shows_values(search: Path) -> None:
    (seen,) = browse(
        """
        const over = (svg, share) => {
          const box = svg.getBoundingClientRect();
          svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + share * box.width, clientY: box.top + 5, bubbles: true}));
        };
        const chart = one("[data-plot='1'] svg"), panel = one(".panel svg");
        const value = () => one("[data-plot='1'] [data-value='0']").textContent;
        const last = value();
        over(chart, 0.15);
        const first = value();
        chart.dispatchEvent(new PointerEvent("pointerleave"));
        const after = value();
        over(panel, 0.16);
        const tip = one("#tip").hidden ? "" : one("#tip").textContent;
        panel.dispatchEvent(new PointerEvent("pointerleave"));
        return {last, first, after, tip, gone: one("#tip").hidden};
        """,
        (search, 1280),
    )
    assert seen["first"] != seen["last"] == seen["after"]
    assert seen["last"].endswith(" %")
    assert "node 2, epoch 0" in seen["tip"]
    assert "separable conv 3x3" in seen["tip"]
    assert seen["gone"]


LOOK = """
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => rgb.slice(0, 3).map((part) => part / 255)
    .map((part) => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
    .reduce((sum, part, i) => sum + part * [.2126, .7152, .0722][i], 0);
  const contrast = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  const page = luminance(parts(getComputedStyle(document.body).backgroundColor));
  const faint = all("h1, h2, h3, p, li, dt, dd, th, caption, summary, a, svg text:not(.number)")
    .filter((element) => element.getClientRects().length && element.textContent.trim())
    .filter((element) => {
      const style = getComputedStyle(element);
      return contrast(luminance(parts(element.closest("svg") ? style.fill : style.color)), page) < 4.5;
    }).map((element) => element.outerHTML.slice(0, 120));
  const ground = parts(getComputedStyle(document.body).backgroundColor);
  const unreadable = all(".heat td").filter((cell) => cell.textContent).filter((cell) => {
    const [red, green, blue, alpha = 1] = parts(getComputedStyle(cell).backgroundColor);
    const seen = [red, green, blue].map((part, i) => alpha * part + (1 - alpha) * ground[i]);
    return contrast(luminance(parts(getComputedStyle(cell).color)), luminance(seen)) < 4.5;
  }).map((cell) => cell.outerHTML);
  const lines = all(".line, i").filter((element) => element.getClientRects().length).filter((element) => {
    const style = getComputedStyle(element);
    return contrast(luminance(parts(element.matches("i") ? style.backgroundColor : style.stroke)), page) < 2.9;
  }).map((element) => element.outerHTML.slice(0, 120));
  const cards = all("figure, table, pre, section, details, .epochs").map((element) => parts(getComputedStyle(element).backgroundColor))
    .filter((rgb) => rgb[3] !== 0).map(luminance);
  const outside = all("body *").filter((element) => element.getClientRects().length && !element.closest(".scroll, svg, .skip"))
    .filter((element) => { const box = element.getBoundingClientRect(); return box.right > innerWidth + 1 || box.left < -1; })
    .map((element) => element.outerHTML.slice(0, 120));
  const cut = all(".cell svg text").filter((text) => {
    const box = text.getBoundingClientRect(), frame = text.closest("svg").getBoundingClientRect();
    return box.right > frame.right + 1 || box.left < frame.left - 1;
  }).map((text) => text.textContent);
  const overlapping = all(".cell .edge").filter((edge) =>
    one(".name", edge).getBoundingClientRect().right > one(".share", edge).getBoundingClientRect().left).length;
  return {
    width: innerWidth, scroll: document.documentElement.scrollWidth, background: getComputedStyle(document.body).backgroundColor,
    faint, unreadable, lines, cards, outside, cut, overlapping,
    requests: performance.getEntriesByType("resource").map((entry) => entry.name),
    unnamed: all("input, button, [role=img], [role=region], [role=group], nav, section").filter((element) =>
      !element.hidden && !element.getAttribute("aria-label") && !element.getAttribute("aria-labelledby") && !element.textContent.trim())
      .map((element) => element.outerHTML.slice(0, 120)),
    dangling: all("[aria-labelledby]").filter((element) => !document.getElementById(element.getAttribute("aria-labelledby"))).length,
    anchors: all("a[href^='#']").filter((link) => !document.getElementById(link.getAttribute("href").slice(1))).length,
    unreachable: all(".scroll").filter((element) => element.tabIndex < 0).length,
    small: all("svg text, td, th").filter((element) => element.getClientRects().length && !element.closest(".panel"))
      .filter((element) => element.getBoundingClientRect().height > 0 && parseFloat(getComputedStyle(element).fontSize) < 10.9).length,
  };
"""


def test_a_search_that_the_guard_stopped_opens_at_its_architecture(tmp_path: Path) -> None:
    facts = {"architecture_epoch": 4, "guard": guard_facts("stop", epoch=9, returned_to=4, epochs=10)}
    page = write_report(make_long_run(tmp_path / "run", epochs=10, planned_epochs=50, **facts))
    (seen,) = browse(
        READ
        + """
        const opened = read(), guard = one("#guard .chart");
        const slider = one("#epoch");
        slider.value = 9;
        slider.dispatchEvent(new Event("input", {bubbles: true}));
        return {opened, later: read(), value: one("[data-value]", guard).textContent, said: one("#guard li").textContent,
          marks: all("text", guard).map((text) => text.textContent).filter((text) => /[a-z]/.test(text))};
    """,
        (page, 1280),
    )
    assert (seen["opened"]["epoch"], seen["later"]["epoch"]) == ("epoch 4", "epoch 9")
    assert seen["opened"]["caption"] == "epoch 4"
    assert seen["opened"]["weights"] != seen["later"]["weights"]
    assert float(seen["value"]) == pytest.approx(0.2 + 0.002 + 0.02 * 5, rel=1e-3)
    assert seen["said"] == "After epoch 9, the top eigenvalue is <high>: the search stops."
    assert seen["marks"] == ["epoch 4 taken", "ended"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_fit_a_desktop_and_a_phone_and_can_be_read(dark: bool, search: Path, overview: Path, study: Path) -> None:
    views = [(page, width) for page in (search, overview, study) for width in (1280, 390)]
    for (_, width), seen in zip(views, browse(LOOK, *views, dark=dark), strict=True):
        assert seen["width"] == width
        assert seen["scroll"] <= width, seen["outside"]
        assert seen["outside"] == []
        assert seen["cut"] == []
        assert seen["overlapping"] == 0
        assert seen["small"] == 0
        background = [int((DARK if dark else LIGHT)[place : place + 2], 16) for place in (1, 3, 5)]
        assert seen["background"] == f"rgb({', '.join(map(str, background))})"
        assert seen["faint"] == []
        assert seen["unreadable"] == []
        assert seen["lines"] == []
        assert all(card < 0.1 if dark else card > 0.8 for card in seen["cards"]), "no white cards in the dark"
        assert seen["requests"] == []
        assert seen["unnamed"] == []
        assert seen["dangling"] == seen["anchors"] == seen["unreachable"] == 0
