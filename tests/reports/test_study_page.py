from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from studies.made import made_with_scores, made_with_table, made_without_table
from test_report import Page

from src.benchmarks.nas_bench_201 import nas_bench_201
from src.reports.arms import axis_of_regret, axis_of_scores, density, swarm
from src.reports.numbers import Unit, chance, count, share
from src.reports.settings import Row
from src.reports.study import StudyRun, render_study
from src.studies.analysis import analyse
from src.studies.outcomes import Metric, Outcome

SECTIONS = ("arms", "pairs", "epochs", "ranking", "stopping", "agreement", "runs", "again")


def runs_of(outcomes: Sequence[Outcome]) -> list[StudyRun]:
    return [
        StudyRun(made.arm, made.seed, "search", made.folder, f"{made.folder}/report.html", "ok", made.seconds)
        for made in outcomes
    ]


def page_of(folder: Path, analysis: Mapping[str, Any], **given: Any) -> Page:
    given = {"title": "A study", "statement": [], "runs": [], "command": "python -m src.study", **given}
    (folder / "study.html").write_text(render_study(analysis, **given), encoding="utf-8")
    return Page(folder / "study.html")


def sections(page: Page) -> list[str]:
    return [value for name, value in page.attributes if name == "id" and value in SECTIONS]


def table(page: Page, caption: str) -> list[list[str]]:
    """Return the cells of the table with a caption, without its head."""
    (found,) = re.findall(rf"<caption>{re.escape(caption)}.*?</table>", page.source, re.DOTALL)
    rows = re.findall(r"<tr>(<th scope=\"row\">.*?)</tr>", found, re.DOTALL)
    return [
        [
            " ".join(html.unescape(re.sub(r"<[^>]+>", " ", cell)).split())
            for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)
        ]
        for row in rows
    ]


@pytest.fixture(scope="module")
def by_table() -> dict[str, Any]:
    """Three arms with a table, and two rules: the analysis as study.json has it."""
    rules = {"first": lambda rows: 0, "last": lambda rows: int(rows[-1]["epoch"])}
    found = analyse(made_with_table(seeds=6, epochs=5), table=nas_bench_201(), rules=rules)
    return json.loads(json.dumps(found))


@pytest.fixture(scope="module")
def page(by_table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Page:
    outcomes = made_with_table(seeds=6, epochs=5)
    failed = StudyRun("clever", 9, "search", "search/clever/9", "search/clever/9/report.html", "failed", 2.0, "a < b")
    return page_of(
        tmp_path_factory.mktemp("study"),
        by_table,
        title="Orders <1> & <2>",
        statement=["clever is better than <i>random</i>."],
        runs=[*runs_of(outcomes), failed],
        command="python -m src.study seeds=6",
        summary="3 arms on nas_bench_201",
        facts=[("Machine", [Row("CPU", "a <fast> one")])],
    )


def test_a_study_with_a_table_has_all_sections_in_order_and_links_to_each(page: Page) -> None:
    assert sections(page) == list(SECTIONS)
    assert {value for name, value in page.attributes if name == "href" and value.startswith("#")} == {
        f"#{name}" for name in (*SECTIONS, "main")
    }
    assert "<li><b>clever</b> is better" in page.source
    for text in ("Orders <1> & <2>", "clever is better than <i>random</i>.", "a <fast> one", "a < b"):
        assert text in page  # as text: the parser would have taken tags out
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", page.source)


def test_every_seed_is_a_dot_and_every_arm_has_its_n_mean_and_interval(page: Page, by_table: dict[str, Any]) -> None:
    assert page.source.count('<circle class="seed"') == 3 * 6
    assert page.source.count('<line class="mean"') == page.source.count('<line class="interval"') == 3
    for arm, numbers in by_table["results"]["table"]["arms"].items():
        regret = numbers["regret"]
        low, high = regret["interval"]
        assert f"{100 * regret['mean']:.2f} ({100 * low:.2f} to {100 * high:.2f})" in page
        for seed, score in zip(numbers["seeds"], numbers["scores"]["values"], strict=True):
            assert f"<title>{arm}, seed {seed}: {100 * score:.2f} %</title>" in page.source
    assert "all 15,625 architectures" in page
    random = by_table["results"]["table"]["random"]
    assert f"median: {100 * random['median']:.2f} %" in page
    assert f"best of 100: {100 * random['expected_best']['100']:.2f} %" in page


def test_the_table_of_arms_begins_with_random_architectures(page: Page, by_table: dict[str, Any]) -> None:
    random, *arms = table(page, "Arms, with 95 % intervals of the means")
    known = by_table["results"]["table"]
    assert random[:3] == ["random", "15,625", f"{100 * known['random']['mean']:.2f} %"]
    for (name, n, mean, deviation, *_), (arm, numbers) in zip(arms, known["arms"].items(), strict=True):
        assert (name, n) == (arm, "6")
        assert mean.startswith(f"{100 * numbers['scores']['mean']:.2f} %")
        assert deviation == f"{100 * numbers['scores']['sd']:.2f}"
    assert arms[0][6] == f"{chance(known['arms']['clever']['against_random']['p_holm'])} better"


@pytest.mark.parametrize(
    ("better", "p", "said", "cell"),
    [
        (True, 0.01, "better than random, p = 0.01", "0.01 better"),
        (False, 0.01, "worse than random, p = 0.01", "0.01 worse"),
        (None, 0.01, "neither better nor worse, p = 0.01", "0.01 neither"),
        (None, 0.6, "no difference shown, p = 0.6", "0.6 not shown"),
    ],
)
def test_what_is_said_of_an_arm_is_what_was_shown(
    better: bool | None, p: float, said: str, cell: str, by_table: dict[str, Any], tmp_path: Path
) -> None:
    changed = json.loads(json.dumps(by_table))
    changed["results"]["table"]["arms"]["clever"]["against_random"] |= {"better": better, "p_holm": p}
    page = page_of(tmp_path, changed)
    assert said in page
    assert table(page, "Arms, with 95 % intervals of the means")[1][6] == cell


def test_pairs_are_told_with_their_difference_and_corrected_p(page: Page, by_table: dict[str, Any]) -> None:
    rows = table(page, "Differences between arms, by seed")
    assert len(rows) == 3
    pair = by_table["results"]["table"]["pairs"][0]
    assert rows[0][0] == "clever against darts, order 1"
    assert rows[0][2].startswith(f"+{100 * pair['differences']['mean']:.2f}")
    assert rows[0][3] == f"{chance(pair['p_holm'])} alone {chance(pair['p'])}"


def test_regrets_of_the_last_epoch_of_rules_and_of_the_best_are_side_by_side(
    page: Page, by_table: dict[str, Any]
) -> None:
    row, *_, over_all = table(page, "Mean regret, in percentage points")
    search = by_table["searches"]["clever"]
    assert row[2].startswith(f"{100 * search['epochs']['last']['mean']:.2f}")
    assert row[3].startswith(f"{100 * search['rules']['first']['regret']['mean']:.2f}")
    assert row[4].startswith(f"{100 * search['epochs']['best']['mean']:.2f}")  # the rule `last` has no column
    gain = by_table["rules"]["first"]
    assert over_all[:4] == ["gain, all arms", "", "", f"+{100 * gain['gain']['mean']:.2f} p = {chance(gain['p_holm'])}"]


def test_every_choice_has_the_answers_that_all_seeds_gave(page: Page) -> None:
    (heat,) = re.findall(r"clever: how often each choice.*?</table>", page.source, re.DOTALL)
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", heat, re.DOTALL)
    assert len(rows) == 6
    assert all(sum(map(int, re.findall(r">(\d+)</td>", row))) == 6 for row in rows)


def test_all_runs_are_linked_and_one_that_failed_has_its_error(page: Page) -> None:
    links = [value for name, value in page.attributes if name == "href" and value.endswith("report.html")]
    assert len(links) == 3 * 6 + 1 + 1  # the one that failed is named twice
    assert page.source.count('class="error"') == 1


def test_curves_have_a_line_and_an_area_for_each_arm(page: Page) -> None:
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page.source)[0])
    assert len(data["plots"]) == page.source.count("data-plot=") > 3
    assert all(len(plot["lines"]) == len(plot["names"]) == 3 for plot in data["plots"])
    assert page.source.count('class="around') == 3 * len(data["plots"])
    assert "n\u00a0=\u00a06" in page.source


def test_without_a_table_scores_are_drawn_for_each_evaluation(tmp_path: Path) -> None:
    outcomes = made_without_table(seeds=4, drawn=12)
    page = page_of(tmp_path, analyse(outcomes), runs=runs_of(outcomes))
    assert "stopping" not in sections(page)  # nothing knows what other epochs' architectures reach
    assert "Retrained: short" in page
    assert "Retrained: long" in page
    assert page.source.count('<circle class="seed"') == 2 * (12 + 4 + 4)
    assert "regret" not in page
    assert "accuracy in %" in page


def test_one_arm_with_one_seed_has_no_interval_and_nothing_to_compare(tmp_path: Path) -> None:
    outcomes = made_without_table({"darts": 0.9}, seeds=1, drawn=0, settings=("short",))
    page = page_of(tmp_path, analyse(outcomes), runs=runs_of(outcomes))
    assert "Arms against random architectures" not in page
    assert not {"pairs", "agreement", "stopping"} & set(sections(page))
    assert page.source.count('<circle class="seed"') == page.source.count('<line class="mean"') == 1
    assert 'class="interval"' not in page.source
    assert "Retrained: short" not in page  # there is no other
    assert "median" not in table(page, "Arms, with 95 % intervals of the means")[0]


def test_searches_that_all_found_the_same_are_drawn(tmp_path: Path) -> None:
    page = page_of(tmp_path, analyse(made_with_scores({"a": [0.9, 0.9, 0.9], "b": [0.9, 0.9, 0.9]}, "short")))
    assert page.source.count('<circle class="seed"') == 6
    places = set(re.findall(r'<circle class="seed" cx="([\d.]+)%"', page.source))
    assert places == {"50.0"}
    assert "not shown" in page


def test_intervals_of_few_seeds_stay_where_values_can_be(tmp_path: Path) -> None:
    analysis = analyse(made_with_table({"darts": (0.0, 1.0)}, seeds=3, epochs=4), table=nas_bench_201())
    page = page_of(tmp_path, analysis)
    _, row = table(page, "Arms, with 95 % intervals of the means")
    ends = [float(end) for cell in row for pair in re.findall(r"([-\d.]+) to ([-\d.]+)", cell) for end in pair]
    assert len(ends) >= 6
    assert all(0 <= end <= 100 for end in ends)
    rank = re.findall(r"Rank of each epoch.*?</svg>", page.source, re.DOTALL)[0]
    assert re.findall(r'text-anchor="end">([-\d.]+)<', rank) == ["0", "20", "40", "60", "80", "100"]


def test_regrets_of_nothing_are_drawn_at_the_right_end(tmp_path: Path) -> None:
    best = float(nas_bench_201().accuracies.max())
    page = page_of(tmp_path, analyse(made_with_scores({"a": [best, best]}), table=nas_bench_201()))
    assert set(re.findall(r'<circle class="seed" cx="([\d.]+)%"', page.source)) == {"98.0"}


def test_a_metric_that_is_an_error_is_better_on_the_left_of_its_values(tmp_path: Path) -> None:
    outcomes = made_with_scores({"bad": [3.0, 3.1], "good": [1.0, 1.1], "random": [2.0, 2.5, 3.0]}, "long")
    page = page_of(tmp_path, analyse(outcomes, metric=Metric("mae", higher_is_better=False)))
    places = dict(re.findall(r'cx="([\d.]+)%"[^>]*><title>(\w+, seed 0)', page.source))
    at = {name: float(place) for place, name in places.items()}
    assert at["bad, seed 0"] < at["good, seed 0"]
    good = table(page, "Arms, with 95 % intervals of the means")[2]
    assert (good[0], good[2].split()[0]) == ("good", "1.05")  # no percent


def test_a_study_without_any_result_says_what_failed(tmp_path: Path) -> None:
    run = StudyRun("darts", 0, "search", "search/darts/0", "search/darts/0/report.html", "failed", None, "no memory")
    page = page_of(tmp_path, analyse([]), statement=["No search has a score."], runs=[run])
    assert sections(page) == ["runs", "again"]
    assert "no memory" in page


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", "a" * 200, "{{ 7 * 7 }}", "\N{BULLET} ünï"])
def test_names_of_arms_are_text(name: str, tmp_path: Path) -> None:
    page = page_of(tmp_path, analyse(made_without_table({name: 0.9, "other": 0.8}, seeds=3, drawn=3)))
    assert page.tags.count("script") == 2
    assert name in page


# The picture's geometry, and the numbers.


def test_an_axis_of_regrets_ends_at_none_and_shows_nine_of_ten_random_architectures() -> None:
    random = [float(value) for value in range(101)]
    axis = axis_of_regret([3.0, 4.0], random)
    assert (axis.worst, axis.best, axis.is_root) == (90.0, 0.0, False)
    assert axis.at(0.0) == 98.0
    assert axis.at(45.0) == pytest.approx(50.0)
    assert axis.at(90.0) == axis.at(100.0) == 2.0
    assert [tick.text for tick in axis.ticks()][-1] == "0"


def test_an_axis_of_very_different_regrets_leaves_room_for_small_ones() -> None:
    axis = axis_of_regret([100.0, 1.0], [4.0] * 100)
    assert axis.is_root
    assert axis.at(25.0) == pytest.approx(50.0)
    assert [tick.text for tick in axis.ticks()] == ["100", "50", "20", "10", "5", "1", "0"]
    places = [tick.at for tick in axis.ticks()]
    assert places == sorted(places)
    assert min(right - left for left, right in pairwise(places)) >= 6


def test_scores_are_better_on_the_right_whichever_way_they_count() -> None:
    assert axis_of_scores([1.0, 2.0]).at(2.0) > axis_of_scores([1.0, 2.0]).at(1.0)
    turned = axis_of_scores([1.0, 2.0], higher_is_better=False)
    assert turned.at(2.0) < turned.at(1.0)


def test_dots_at_one_place_do_not_cover_each_other_and_stay_in_their_order() -> None:
    dots = swarm([50.0, 10.0, 50.1, 50.0], ["a", "b", "c", "d"])
    assert [dot.text for dot in dots] == ["a", "b", "c", "d"]
    assert [dot.x for dot in dots] == [50.0, 10.0, 50.1, 50.0]
    assert len({dot.y for dot in dots if dot.x > 20}) == 3


def test_the_area_is_highest_where_most_random_architectures_are() -> None:
    axis = axis_of_regret([10.0], [8.0, *[2.0] * 50])
    path = density(axis, [8.0, *[2.0] * 50])
    points = [tuple(map(float, point.split())) for point in re.findall(r"[\d.]+ [\d.]+", path)]
    highest = min(points, key=lambda point: point[1])
    assert highest[0] == pytest.approx(axis.at(2.0), abs=1)


def test_numbers_have_the_digits_that_a_reader_needs() -> None:
    percent, plain = Unit.of("accuracy"), Unit.of("mae")
    assert (percent.score(0.91234), plain.score(12.3456)) == ("91.23 %", "12.35")
    assert percent.difference(-0.000001) == percent.difference(0.000001, signed=True) == "0.00"
    assert percent.difference(0.0123, signed=True) == "+1.23"
    assert plain.difference(-1.5) == "-1.5"
    assert [share(value) for value in (0.5, 0.995, 0.004, 1.0)] == ["50 %", "99.5 %", "0.4 %", "100 %"]
    assert [share(value) for value in (0.0, 1e-6, 1 - 1e-6)] == ["0 %", "< 0.1 %", "> 99.9 %"]
    assert [count(value) for value in (0.42, 5.0, 9.94, 1234.5)] == ["0.4", "5", "9.9", "1,234"]
    assert share(None) == chance(None) == count(None) == percent.score(None) == percent.difference(None) == "-"
