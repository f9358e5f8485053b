"""The page of a study: what its numbers allow one to say, all arms against random architectures, and how to run it again."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from src.reports.arms import DOT, ROW, Drawn, Picture, picture_of_regrets, picture_of_scores
from src.reports.names import colours, edge_name, in_order, words
from src.reports.numbers import UNKNOWN, Unit, chance, count, duration, p_value, share
from src.reports.page import embedded, environment
from src.reports.plots import GROUP_COLOURS, Palette, Plot, data_of_plots, plot
from src.reports.settings import Row, name_of
from src.studies.stopping import RULES

_RANDOM = "random"
_NOTHING = (UNKNOWN, "")
_INK = "#5d6770"
_LONG_ENOUGH = 4
_OPEN_RUNS = 12  # more of them are folded away


class StudyRun(NamedTuple):
    """A run of a study.

    Attributes:
        arm: its setting.
        seed: of the search.
        kind: `search`, or the name of a retrain setting.
        name: of its folder, below the study's.
        href: its page, relative to that of the study.
        status: as in its result.json.
        seconds: that it took, or None.
        error: one line; empty where it has none.
    """

    arm: str
    seed: int
    kind: str
    name: str
    href: str
    status: str
    seconds: float | None
    error: str = ""


class Heading(NamedTuple):
    """The head of a column."""

    text: str
    explanation: str = ""


class Entry(NamedTuple):
    """A cell of a table: a text, and a smaller one below it."""

    text: str
    below: str = ""
    is_shown: bool = False
    """Whether it says that something was shown, which is set in bold type."""


class Line(NamedTuple):
    """A row of a table."""

    name: str
    colour: str
    entries: list[Entry]


class Grid(NamedTuple):
    """A table with a row an arm; columns of which nothing is known are left out."""

    caption: str
    first: str
    headings: list[Heading]
    lines: list[Line]


class Counts(NamedTuple):
    """How many seeds of an arm gave each answer to each choice."""

    title: str
    n: int
    candidates: list[tuple[str, str]]  # (class of the colour, name)
    rows: list[tuple[str, list[tuple[int, float]]]]  # (choice, [(count, share of the seeds)])


class Result(NamedTuple):
    """What arms come to by one evaluation."""

    name: str
    picture: Picture
    arms: Grid
    details: Grid
    pairs: Grid
    compared: str
    """How the pairs were compared, and what so many of them can find."""


class RunLine(NamedTuple):
    """A run in the table of all."""

    run: StudyRun
    score: str
    seconds: str


def render_study(
    analysis: Mapping[str, Any],
    *,
    title: str,
    statement: Sequence[str],
    runs: Sequence[StudyRun],
    command: str,
    summary: str = "",
    facts: Sequence[tuple[str, list[Row]]] = (),
) -> str:
    """Return the page of a study. A section of which nothing is known is left out.

    Args:
        analysis: what `src.studies.analysis.analyse` returned.
        title: of the page.
        statement: what the numbers allow one to say, and what not, a sentence each.
        runs: all searches and retrains, those that failed with their error.
        command: that starts the study again.
        summary: one line on what was compared, and where.
        facts: of the study, its cost, its machine and versions, in groups.
    """
    palette = Palette()
    unit = Unit.of(analysis["metric"]["name"])
    names = [*analysis["arms"], *(name for name in analysis["searches"] if name not in analysis["arms"])]
    look = {name: palette.of(_colour(place)) for place, name in enumerate(analysis["arms"])}
    look |= {name: palette.of(_INK) for name in (*names, _RANDOM) if name not in look}
    results = [found for name in analysis["evaluations"] if (found := _result(name, analysis, unit, look)) is not None]
    plots = list(_curves(analysis, unit, palette))
    ranking, stopping = _ranking(analysis, look), _stopping(analysis, unit, look)
    agreement = _agreement(analysis, look)
    against = any(result["random"] for result in analysis["results"].values())
    sections = {
        "arms": ("Arms against random architectures" if against else "Arms", results),
        "pairs": ("Arms against each other", [line for result in results for line in result.pairs.lines]),
        "epochs": ("Over the epochs", plots),
        "ranking": ("Does the supernet rank architectures?", ranking.lines),
        "stopping": ("Which epoch to stop at", stopping.lines),
        "agreement": ("Do the seeds agree?", agreement.lines),
        "runs": ("All runs", runs),
        "again": ("How to run it again", command),
    }
    return (
        environment()
        .get_template("study.html.jinja")
        .render(
            title=title,
            summary=summary,
            statement=[list(_parts(text, analysis["arms"])) for text in statement],
            sections={name: heading for name, (heading, content) in sections.items() if content},
            row=ROW,
            dot=DOT,
            metric=name_of(analysis["metric"]["name"]),
            results=results,
            plots=plots,
            legend=[(look[name], name) for name in names if any(analysis["searches"][name]["curves"])],
            ranking=ranking,
            stopping=stopping,
            agreement=agreement,
            counts=list(_counts(analysis, palette)),
            runs=_run_lines(runs, analysis, unit),
            open_runs=len(runs) <= _OPEN_RUNS,
            failed=[run for run in runs if run.status != "ok"],
            command_text=command,
            facts=facts,
            data=embedded(data_of_plots(plots)),
            palette=palette.rules(),
        )
    )


def _parts(sentence: str, arms: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Yield a sentence in pieces, with whether each is the name of an arm. Names that could be a word are left."""
    names = sorted((name for name in arms if len(name) >= _LONG_ENOUGH), key=len, reverse=True)
    if not names:
        yield sentence, False
        return
    pieces = re.split(rf"(?<!\w)({'|'.join(map(re.escape, names))})(?!\w)", sentence)
    yield from ((piece, place % 2 == 1) for place, piece in enumerate(pieces) if piece)


def _colour(place: int) -> str:
    return GROUP_COLOURS[place % len(GROUP_COLOURS)]


def _grid(
    caption: str, first: str, columns: Mapping[Heading, Sequence[Entry]], names: Sequence[tuple[str, str]]
) -> Grid:
    """Return a table of heading -> entries, without the columns in which nothing is known."""
    kept = [(heading, cells) for heading, cells in columns.items() if any(cell.text not in _NOTHING for cell in cells)]
    lines = [Line(name, colour, [cells[row] for _, cells in kept]) for row, (name, colour) in enumerate(names)]
    return Grid(caption, first, [heading for heading, _ in kept], lines if kept else [])


def _of(summary: Mapping[str, Any] | None, unit: Unit, *, signed: bool = False) -> Entry:
    """Return a mean with its interval below it."""
    if summary is None or summary["mean"] is None:
        return Entry(UNKNOWN)
    return Entry(unit.difference(summary["mean"], signed=signed), _ends(summary["interval"], unit, signed=signed))


def _ends(interval: Sequence[float | None] | None, unit: Unit, *, signed: bool = False) -> str:
    """Return an interval; nothing where an end is not known.

    Student's t, which few seeds have, does not know that shares and their regrets are between 0 and 1.
    """
    if interval is None or None in interval:
        return ""
    ends = [_within(end, 0.0, 1.0) if unit.is_share and not signed else end for end in interval]
    return " to ".join(unit.difference(end, signed=signed) for end in ends)


# Arms against random architectures, and against each other.


def _within(value: float | None, low: float, high: float) -> float:
    """Return a value, or the limit that it exceeds; nan stays nan."""
    return math.nan if value is None else min(max(value, low), high)


def _result(name: str, analysis: Mapping[str, Any], unit: Unit, look: Mapping[str, str]) -> Result | None:
    result = analysis["results"][name]
    arms = {arm: numbers for arm, numbers in result["arms"].items() if numbers["n"]}
    if not arms:
        return None
    return Result(
        name=name,
        picture=_picture(result, analysis, unit, look),
        arms=_arms(result, analysis, unit, look),
        details=_details(arms, analysis, unit, look),
        pairs=_pairs(result["pairs"], unit, look),
        compared=_compared(result["pairs"], analysis),
    )


def _picture(result: Mapping[str, Any], analysis: Mapping[str, Any], unit: Unit, look: Mapping[str, str]) -> Picture:
    """Return the picture of all arms: their regrets where the best architecture is known, else their scores."""
    random, metric = result["random"], analysis["metric"]
    arms = {arm: numbers for arm, numbers in result["arms"].items() if numbers["n"]}
    by_regret = random is not None and all(numbers["regret"] for numbers in arms.values())
    kind, write = ("regret", unit.difference) if by_regret else ("scores", unit.score)
    rows = []
    for arm, numbers in arms.items():
        dots = [
            f"{arm}, seed {seed}: {unit.score(score)}"
            for seed, score in zip(numbers["seeds"], numbers["scores"]["values"], strict=True)
        ]
        value = _mean(numbers[kind], write, unit)
        rows.append(
            Drawn(arm, look[arm], numbers[kind], dots, value, _against(numbers["against_random"], analysis["level"]))
        )
    marks: list[tuple[str, float]] = []
    if random is not None:
        best = {f"best of {k}:": value for k, value in random["expected_best"].items() if k in ("10", "100")}
        found = {"median:": random["median"], **best}
        marks = [(f"{text} {unit.score(value)}", value) for text, value in found.items()]
    name = name_of(metric["name"])
    if random is not None and by_regret:
        where = "below" if metric["higher_is_better"] else "above"

        def less(value: float) -> float:
            return unit.scaled(abs(value - random["best"]))

        return picture_of_regrets(
            rows,
            [less(value) for value in random["distribution"]],
            [(text, less(value)) for text, value in marks],
            unit.scaled,
            title=f"regret: {f'{unit.points} of ' if unit.points else ''}{name} {where} the best architecture",
            who=f"all {random['count']:,} architectures",
        )
    if random is not None and random["values"]:
        summary = {**random, "n": random["count"]}
        dots = [f"{_RANDOM}: {unit.score(value)}" for value in random["values"]]
        rows.insert(0, Drawn(_RANDOM, look[_RANDOM], summary, dots, _mean(summary, write, unit)))
    return picture_of_scores(
        rows,
        [(text, unit.scaled(value)) for text, value in marks],
        unit.scaled,
        higher_is_better=metric["higher_is_better"],
        what=name,
        title=f"{name}{' in %' if unit.is_share else ''}",
    )


def _mean(summary: Mapping[str, Any], write: Callable[[float], str], unit: Unit) -> str:
    """Return a mean, and its interval in brackets."""
    ends = _ends(summary["interval"], unit)
    return write(summary["mean"]) + (f" ({ends})" if ends else "")


def _against(found: Mapping[str, Any] | None, level: float) -> str:
    """Return how an arm compares with random architectures, in a few words."""
    if found is None:
        return ""
    than = "random" if found["budget"] == 1 else f"the best of {count(found['budget'])} random ones"
    said = {
        "better": f"better than {than}",
        "worse": f"worse than {than}",
        "neither": "neither better nor worse",
        "not shown": "no difference shown",
    }[_verdict(found, level)]
    return f"{said}, {_p(found['p_holm'])}"


def _p(p: float | None) -> str:
    """Return a p-value for a sentence, which no line break divides."""
    return p_value(p).replace(" ", "\u00a0")


def _arms(result: Mapping[str, Any], analysis: Mapping[str, Any], unit: Unit, look: Mapping[str, str]) -> Grid:
    """Return what is most asked of each arm; the first row is of random architectures, where anything is known of them."""
    arms = {arm: numbers for arm, numbers in result["arms"].items() if numbers["n"]}
    points, budget = unit.points or "of the mean", analysis["budget"]
    best = "random architectures" if budget == 1 else f"the best of {count(budget)} random architectures"
    columns = {
        Heading("n", "seeds of an arm; architectures"): [
            Entry(str(numbers["n"]), _missing(numbers)) for numbers in arms.values()
        ],
        Heading(f"mean {name_of(analysis['metric']['name'])}", "below it its 95 % interval"): [
            Entry(unit.score(numbers["scores"]["mean"]), _ends(numbers["scores"]["interval"], unit))
            for numbers in arms.values()
        ],
        Heading("sd", f"standard deviation between seeds, {points}"): [
            Entry(unit.difference(numbers["scores"]["sd"])) for numbers in arms.values()
        ],
        Heading("regret", f"{points} to the best architecture"): [
            _of(numbers["regret"], unit) for numbers in arms.values()
        ],
        Heading("percentile", "share of all architectures that are worse, the mean over the seeds"): [
            _shares(numbers["percentile"]) for numbers in arms.values()
        ],
        Heading(
            "p",
            f"against {best}, two-sided, corrected by Holm's method over the arms; where it is small and the verdict "
            "neither, the seeds differ more than random architectures do",
        ): [_tested(numbers["against_random"], analysis["level"]) for numbers in arms.values()],
        Heading("chance", f"that an architecture of the arm is better than {best}"): [
            _chance(numbers["against_random"], numbers["percentile"]) for numbers in arms.values()
        ],
        Heading("worth", "random architectures whose best is as good as the mean, on average"): [
            Entry(UNKNOWN)
            if (worth := numbers["worth"]) is None
            else Entry(_worth(worth["value"], result["random"]), _worths(worth["interval"], result["random"]))
            for numbers in arms.values()
        ],
    }
    names = [(arm, look[arm]) for arm in arms]
    random = result["random"]
    if random is not None:
        is_all = random["kind"] == "table"
        first = [
            Entry(f"{random['count']:,}"),
            Entry(unit.score(random["mean"]), _ends(random["interval"], unit)),
            Entry(unit.difference(random["sd"])),
            Entry(unit.difference(abs(random["best"] - random["mean"])) if is_all else ""),
            Entry(share(0.5) if is_all else ""),
            Entry(""),
            Entry(""),
            Entry(count(1.0)),
        ]
        columns = {
            heading: [entry, *entries]
            for (heading, entries), entry in zip(columns.items(), first, strict=True)
            if any(other.text not in _NOTHING for other in entries)
        }
        names.insert(0, (_RANDOM, look[_RANDOM]))
    return _grid("Arms, with 95 % intervals of the means", "arm", columns, names)


def _worth(value: float, random: Mapping[str, Any]) -> str:
    """Return how many random architectures; a table tells up to a million apart, a sample as many as it has."""
    most = 1e6 if random["kind"] == "table" else random["count"]
    return f"{count(most)} or more" if value >= most else count(value)


def _worths(ends: Sequence[float] | None, random: Mapping[str, Any]) -> str:
    return "" if ends is None else " to ".join(_worth(end, random) for end in ends)


def _tested(found: Mapping[str, Any] | None, level: float) -> Entry:
    """Return the p-value of a comparison with random architectures, and its verdict."""
    if found is None:
        return Entry(UNKNOWN)
    return Entry(chance(found["p_holm"]), _verdict(found, level), is_shown=found["better"] is not None)


def _chance(found: Mapping[str, Any] | None, percentile: object) -> Entry:
    """Return the chance to be better than random; nothing where that is the percentile."""
    if found is None or (percentile is not None and found["budget"] == 1):
        return Entry("")
    return Entry(share(found["chance"]), _ends_of(found["interval"], share))


def _missing(numbers: Mapping[str, Any]) -> str:
    return f"{numbers['missing']} missing" if numbers["missing"] else ""


def _verdict(comparison: Mapping[str, Any], level: float) -> str:
    """Return `better`, `worse` or `not shown`; `neither` where the seeds differ more than random architectures do."""
    if comparison["better"] is None:
        return "neither" if comparison["p_holm"] <= level else "not shown"
    return "better" if comparison["better"] else "worse"


def _shares(summary: Mapping[str, Any] | None) -> Entry:
    if summary is None or summary["mean"] is None:
        return Entry(UNKNOWN)
    return Entry(share(summary["mean"]), _ends_of(summary["interval"], share))


def _ends_of(ends: Sequence[float | None] | None, write: Callable[[float | None], str]) -> str:
    """Return an interval, of which the unit is written once; nothing where an end is not known."""
    if ends is None or None in ends:
        return ""
    low, high = map(write, ends)
    return f"{low.removesuffix(' %')} to {high}"


def _details(arms: Mapping[str, Any], analysis: Mapping[str, Any], unit: Unit, look: Mapping[str, str]) -> Grid:
    """Return what is asked less often of each arm."""
    searches = [analysis["searches"][arm] for arm in arms]
    against = [numbers["against_random"] for numbers in arms.values()]
    columns = {
        **{
            Heading(name, "of the seeds"): [Entry(unit.score(numbers[name])) for numbers in arms.values()]
            for name in ("worst", "median", "best")
        },
        Heading("less random", _in(unit.points, "the mean less what random architectures reach on average")): [
            Entry(UNKNOWN)
            if found is None
            else Entry(
                unit.difference(found["difference"], signed=True),
                _ends(found["difference_interval"], unit, signed=True),
            )
            for found in against
        ],
        Heading("Cliff's delta", "the chance to be better than random less the chance to be worse"): [
            Entry(UNKNOWN if found is None else _decimal(found["cliffs_delta"])) for found in against
        ],
        Heading("p at equal time", "against the best of as many random architectures as could be trained meanwhile"): [
            Entry(UNKNOWN)
            if found is None
            else Entry(
                chance(found["p_holm"]),
                f"{_verdict(found, analysis['level'])}, best of {count(found['budget'])}",
                is_shown=found["better"] is not None,
            )
            for found in (numbers["at_equal_time"] for numbers in arms.values())
        ],
        Heading("skips", "share of the choices; below it that of random architectures"): [
            Entry(_shares(search["skips"]).text, _expected(search["skips_expected"])) for search in searches
        ],
        Heading("without weights", "share of the choices that are skips, pooling or none"): [
            Entry(_shares(search["parameter_free"]).text, _expected(search["parameter_free_expected"]))
            for search in searches
        ],
        Heading("time", "of a search, the mean"): [Entry(duration(search["seconds"]["mean"])) for search in searches],
    }
    return _grid("More on each arm", "arm", columns, [(arm, look[arm]) for arm in arms])


def _in(points: str, text: str) -> str:
    return f"{points}, {text}" if points else text


def _decimal(value: float | None) -> str:
    """Return a number between -1 and 1."""
    return UNKNOWN if value is None else f"{value:.2f}"


def _expected(value: float | None) -> str:
    return "" if value is None else f"random {share(value)}"


def _pairs(pairs: Sequence[Mapping[str, Any]], unit: Unit, look: Mapping[str, str]) -> Grid:
    """Return the comparisons of all arms with each other."""
    better = {"first": "first is better", "second": "second is better", None: "not shown"}
    columns = {
        Heading("pairs", "searches of both arms with the same seed"): [
            Entry(str(len(pair["seeds"]))) for pair in pairs
        ],
        Heading(
            "difference", _in(unit.points, "first less second, the mean over the seeds; below it its 95 % interval")
        ): [_of(pair["differences"], unit, signed=True) for pair in pairs],
        Heading("p", "corrected by Holm's method over all pairs; below it the p of the pair alone"): [
            Entry(chance(pair["p_holm"]), f"alone {chance(pair['p'])}", pair["better"] is not None) for pair in pairs
        ],
        Heading("result"): [Entry(better[pair["better"]], "", pair["better"] is not None) for pair in pairs],
        Heading(
            "detectable",
            _in(
                unit.points,
                "the difference that so many pairs find in 4 of 5 studies; below it how many this one needs",
            ),
        ): [Entry(unit.difference(pair["detectable"]), _needed(pair)) for pair in pairs],
    }
    names = [(f"{pair['first']} against {pair['second']}", look[pair["first"]]) for pair in pairs]
    return _grid("Differences between arms, by seed", "first against second", columns, names)


def _needed(pair: Mapping[str, Any]) -> str:
    return f"needs n = {pair['needed']:,}" if pair["better"] is None and pair["needed"] else ""


def _compared(pairs: Sequence[Mapping[str, Any]], analysis: Mapping[str, Any]) -> str:
    if not pairs:
        return ""
    text = "Wilcoxon's signed rank test over the differences of searches with the same seed, two-sided"
    text += f", corrected for {len(pairs)} comparisons by Holm's method." if len(pairs) > 1 else "."
    needed, most = max(pair["pairs_needed"] for pair in pairs), max(len(pair["seeds"]) for pair in pairs)
    if most < needed:
        return text + (
            f" With {most} pair{'' if most == 1 else 's'} it cannot show any difference at {100 * analysis['level']:g} %, "
            f"however large: it takes {needed} or more."
        )
    return text + " Where none is shown the arms may still differ, by as much as the last column says or less."


# Over the epochs.


class Measure(NamedTuple):
    """What is drawn over the epochs. No value, and so no mean, is below `low` or above `high`."""

    title: str
    unit: str
    low: float = -math.inf
    high: float = math.inf
    percent: bool = False
    """Whether values are shares, with an axis to 100 %."""


def _measures(metric: str, unit: Unit) -> dict[str, Measure]:
    """Return what may be drawn over the epochs, by its name in the analysis."""
    cosine, tau = "1 is the same direction", "Kendall's tau against the table"
    most = 1.0 if unit.is_share else math.inf
    lowest = 0.0 if unit.is_share else -math.inf
    return {
        "regret": Measure("Regret of each epoch's architecture", f"{unit.points} below the best".strip(), 0.0, most),
        "percentile": Measure(
            "Rank of each epoch's architecture", "% of all architectures that are worse", 0.0, 1.0, percent=True
        ),
        "validation": Measure(
            "Validation of the supernet", f"{metric}{' in %' * unit.is_share}", lowest, most, percent=unit.is_share
        ),
        "skips": Measure("Skip connections of each epoch's architecture", "how many", 0.0),
        "entropy": Measure("Entropy of the mixing weights", "nats, mean over the choices", 0.0),
        "eigenvalue": Measure("Top eigenvalue", "of the validation loss by the alphas"),
        "exact_cosine": Measure("Cosine to the exact hypergradient", cosine, -1.0, 1.0),
        "finite_difference_cosine": Measure(
            "Cosine of the finite difference to the exact correction", cosine, -1.0, 1.0
        ),
        "ranking_tau": Measure("Ranking by the supernet", tau, -1.0, 1.0),
        "ranking_tau_top": Measure("Ranking of the best fifth", tau, -1.0, 1.0),
    }


def _curves(analysis: Mapping[str, Any], unit: Unit, palette: Palette) -> Iterator[Plot]:
    """Yield a plot for each measure, with a line an arm and the 95 % interval of its mean over the seeds."""
    arms = {arm: search["curves"] for arm, search in analysis["searches"].items() if search["curves"]}
    look = {arm: _colour(place) for place, arm in enumerate(analysis["arms"])}
    for name, measure in _measures(name_of(analysis["metric"]["name"]), unit).items():
        lines = {arm: curves[name] for arm, curves in arms.items() if name in curves and curves[name]["epochs"]}
        if not lines:
            continue
        scale = unit.scaled if name == "regret" else float
        epochs = sorted({epoch for line in lines.values() for epoch in line["epochs"]})
        at = {
            arm: {
                kind: [scale(_within(value, measure.low, measure.high)) for value in _spread(line, kind, epochs)]
                for kind in ("mean", "low", "high")
            }
            for arm, line in lines.items()
        }
        yield plot(
            measure.title,
            f"{measure.unit}; {_seeds([n for line in lines.values() for n in line['n']])}",
            epochs,
            [(arm, look.get(arm, _INK), values["mean"]) for arm, values in at.items()],
            palette,
            percent=measure.percent,
            bands=[(values["low"], values["high"]) for values in at.values()],
        )


def _spread(line: Mapping[str, Any], kind: str, epochs: Sequence[int]) -> list[float]:
    """Return the values of a curve at some epochs, nan where it has none."""
    known = dict(zip(line["epochs"], line[kind], strict=True))
    return [math.nan if known.get(epoch) is None else known[epoch] for epoch in epochs]


def _seeds(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"n\u00a0=\u00a0{low}" if low == high else f"n\u00a0=\u00a0{low}\u00a0to\u00a0{high}"


def _ranking(analysis: Mapping[str, Any], look: Mapping[str, str]) -> Grid:
    """Return Kendall's tau between what the supernet says of architectures and what they reach."""
    searches = {arm: search for arm, search in analysis["searches"].items() if search["ranking"]}
    names = {"ranking_tau": "all architectures", "ranking_tau_top": "the best fifth"}
    columns = {
        Heading("n"): [
            Entry(str(max(found["n"] for found in search["ranking"].values()))) for search in searches.values()
        ],
        **{
            Heading(text): [_tau(search["ranking"].get(name)) for search in searches.values()]
            for name, text in names.items()
        },
    }
    return _grid(
        "Kendall's tau at the end of the search, means over the seeds with 95 % intervals",
        "arm",
        columns,
        [(arm, look[arm]) for arm in searches],
    )


def _tau(summary: Mapping[str, Any] | None) -> Entry:
    if summary is None or summary["mean"] is None:
        return Entry(UNKNOWN)
    return Entry(_decimal(summary["mean"]), _ends_of(summary["interval"], _decimal))


def _stopping(analysis: Mapping[str, Any], unit: Unit, look: Mapping[str, str]) -> Grid:
    """Return the regret of the last epoch's architecture, of those that rules pick, and of the best one.

    Rules that pick the last epoch for all arms are left out. With several arms, the last row is of their mean.
    """
    searches = {arm: search for arm, search in analysis["searches"].items() if search["epochs"]}
    rules = dict.fromkeys(
        name for search in searches.values() for name, rule in search["rules"].items() if rule["different"]
    )
    level = analysis["level"]
    columns = {
        Heading("n"): [Entry(str(search["epochs"]["last"]["n"])) for search in searches.values()],
        Heading("last epoch", "below it the 95 % interval of the mean"): [
            _of(search["epochs"]["last"], unit) for search in searches.values()
        ],
        **{
            Heading(name_of(rule), _rule_in_words(rule)): [
                _rule(search["rules"].get(rule), level, unit) for search in searches.values()
            ]
            for rule in rules
        },
        Heading("best epoch", "picked with the table"): [
            _of(search["epochs"]["best"], unit) for search in searches.values()
        ],
        Heading("lost", "the last epoch's regret less that of the best"): [
            _of(search["epochs"]["lost"], unit) for search in searches.values()
        ],
    }
    names = [(arm, look[arm]) for arm in searches]
    if len(searches) > 1 and rules:
        over_all = {name: analysis["rules"].get(name) for name in rules}
        row = [Entry("")] * 2 + [_gain(found, level, unit) for found in over_all.values()] + [Entry("")] * 2
        columns = {heading: [*entries, entry] for (heading, entries), entry in zip(columns.items(), row, strict=True)}
        names.append(("gain, all arms", look[_RANDOM]))
    points = f", in {unit.points}" if unit.points else ""
    return _grid(f"Mean regret{points}", "arm", columns, names)


def _rule_in_words(name: str) -> str:
    known = RULES.get(name)
    return f"{known.words}; below it the gain over the last epoch" if known else "below it the gain over the last epoch"


def _rule(found: Mapping[str, Any] | None, level: float, unit: Unit) -> Entry:
    """Return the regret of what a rule picks, and how much less that is than the last epoch's."""
    if found is None:
        return Entry(UNKNOWN)
    if not found["different"]:
        return Entry(unit.difference(found["regret"]["mean"]), "the last")
    gain = _gain(found, level, unit)
    return Entry(unit.difference(found["regret"]["mean"]), f"{gain.text}, {gain.below}", gain.is_shown)


def _gain(found: Mapping[str, Any] | None, level: float, unit: Unit) -> Entry:
    if found is None:
        return Entry(UNKNOWN)
    shown = found["p_holm"] <= level
    return Entry(unit.difference(found["gain"]["mean"], signed=True), _p(found["p_holm"]), is_shown=shown)


def _agreement(analysis: Mapping[str, Any], look: Mapping[str, str]) -> Grid:
    """Return how far the seeds of each arm found the same."""
    searches = {arm: analysis["searches"][arm] for arm in analysis["arms"] if analysis["searches"][arm]["agreement"]}
    agreed = [search["agreement"] for search in searches.values()]
    columns = {
        Heading("n"): [Entry(str(len(search["seeds"]))) for search in searches.values()],
        Heading("same answers"): [
            Entry(share(found["value"]), "" if found["expected"] is None else f"by chance {share(found['expected'])}")
            for found in agreed
        ],
        Heading("distinct architectures"): [Entry(str(found["distinct"])) for found in agreed],
        Heading("the same one"): [
            Entry(f"{found['most_common']} of {len(search['seeds'])}")
            for search, found in zip(searches.values(), agreed, strict=True)
        ],
    }
    return _grid("Agreement between seeds", "arm", columns, [(arm, look[arm]) for arm in searches])


def _counts(analysis: Mapping[str, Any], palette: Palette) -> Iterator[Counts]:
    """Yield how often each choice has each answer, for each arm."""
    for arm in analysis["arms"]:
        search = analysis["searches"][arm]
        answers, n = search["answers"], len(search["seeds"])
        if n < 2:
            continue
        candidates = in_order(answer for counts in answers.values() for answer in counts)
        look = colours(candidates)
        yield Counts(
            title=arm,
            n=n,
            candidates=[(palette.of(look[name]), words(name)) for name in candidates],
            rows=[
                (edge_name(key), [(counts.get(name, 0), counts.get(name, 0) / n) for name in candidates])
                for key, counts in answers.items()
            ],
        )


def _run_lines(runs: Sequence[StudyRun], analysis: Mapping[str, Any], unit: Unit) -> list[RunLine]:
    """Return all runs, each search with what its architecture is judged by."""
    found: dict[tuple[str, int], str] = {}
    for name in analysis["evaluations"]:
        for arm, numbers in analysis["results"][name]["arms"].items():
            for seed, score in zip(numbers["seeds"], numbers["scores"]["values"], strict=True):
                found.setdefault((arm, seed), unit.score(score))
    return [
        RunLine(run, found.get((run.arm, run.seed), "") if run.kind == "search" else "", duration(run.seconds))
        for run in runs
    ]
