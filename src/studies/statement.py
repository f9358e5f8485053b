"""What the numbers of a study allow one to say, in sentences, and what they do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from src.reports.numbers import count, p_value
from src.studies.outcomes import RANDOM

_Numbers = Mapping[str, Any]
_MANY = 6  # pairs of arms, above which the sentences name them without their numbers


def statement(study: _Numbers) -> list[str]:
    """Return the sentences that come first on a study's page, in the terminal and in its JSON.

    They say which arms are better than random architectures at equal budget, which are worse and for which neither is
    shown; which arms differ from each other; and, where the seeds are too few, what would be needed. A difference counts as
    shown if its corrected p-value is at most the level of the study.

    Args:
        study: as `src.studies.analysis.analyse` returns it.
    """
    if not study["evaluations"]:
        return ["No search of this study has a score."]
    several = len(study["evaluations"]) > 1
    sentences: list[str] = []
    for name in study["evaluations"]:
        words = _Words(study, study["results"][name])
        found = [*_of_missing(words), *_of_random(words), *_of_time(words), *_of_pairs(words)]
        sentences += [f"{name}: {sentence}" for sentence in found] if several else found
    sentences += [_of_settings(settings) for settings in study["settings"]]
    sentences += _of_rules(study)
    within = ", for each evaluation by itself" if several else ""
    return [
        *sentences,
        f"Brackets have 95 % intervals; p is two-sided and corrected by Holm's method{within}. All of this is about the "
        "chance between seeds, in this space, on these data and with these settings.",
    ]


class _Words:
    """How the numbers of one evaluation are written."""

    def __init__(self, study: _Numbers, results: _Numbers) -> None:
        self.study, self.results = study, results
        self.metric: str = study["metric"]["name"]
        self.higher: bool = study["metric"]["higher_is_better"]
        self.share = self.metric.endswith("accuracy")

    def score(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.share else f"{value:.3g}"

    def difference(self, value: float, interval: Sequence[float | None] | None = None) -> str:
        """Return the size of a difference with its unit, and its interval in the direction of the difference."""
        scale, unit = (100, "points") if self.share else (1, self.metric)
        sign = -scale if value < 0 else scale
        ends = sorted(sign * end for end in interval or () if end is not None)
        if len(ends) < 2 or ends[0] == ends[1]:
            return f"{_rounded(sign * value, abs(scale * value))} {unit}"
        width = ends[1] - ends[0]
        return f"{_rounded(sign * value, width)} {unit} [{', '.join(_rounded(end, width) for end in ends)}]"

    def p(self, value: float) -> str:
        return p_value(value, self.study["level"])


def _rounded(value: float, width: float) -> str:
    """Return a number with as many digits as the width of its interval lets one see."""
    digits = 1 if width >= 1 else 2 if width >= 0.1 else 3 if width >= 0.01 else 4
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _listed(items: Iterable[str]) -> str:
    return "; ".join(items)  # names of arms have commas


# Against random architectures.


def _of_missing(words: _Words) -> list[str]:
    missing = [
        f"{arm} ({numbers['missing']} of {numbers['n'] + numbers['missing']})"
        for arm, numbers in words.results["arms"].items()
        if numbers["missing"]
    ]
    return [f"Seeds without a score are left out: {_listed(missing)}."] if missing else []


def _opponent(budget: float) -> str:
    return "a random architecture" if budget == 1 else f"the best of {count(budget)} random architectures"


def _of_random(words: _Words) -> list[str]:
    """Return which arms are better or worse than random architectures, and for which neither is shown."""
    if words.results["random"] is None:
        return [
            f"Whether these searches are better than chance is not known: there is no table, and no score of an arm `{RANDOM}`."
        ]
    compared = {arm: found for arm, found in words.results["arms"].items() if found["against_random"] is not None}
    if not compared:
        return ["The random architectures are too few for a comparison at this budget."]
    opponent = _opponent(next(iter(compared.values()))["against_random"]["budget"])
    sentences: list[str] = []
    for better, text in (
        (True, f"Better than {opponent} more often than not"),
        (False, f"Worse than {opponent} more often than not"),
        (None, f"Not shown to be better or worse than {opponent}"),
    ):
        arms = {arm: numbers for arm, numbers in compared.items() if numbers["against_random"]["better"] is better}
        if arms:
            parts = [f"{arm} ({_compared(words, arm, numbers)})" for arm, numbers in arms.items()]
            sentences.append(f"{text}: {_listed(parts)}.")
    return sentences + _what_shows(words, [numbers["against_random"] for numbers in compared.values()])


def _compared(words: _Words, arm: str, numbers: _Numbers) -> str:
    """Return the numbers of an arm's comparison with random architectures."""
    found, scores = numbers["against_random"], numbers["scores"]
    same = scores["n"] > 1 and len(set(scores["values"])) == 1  # nothing to resample: an interval would have no width
    interval = "" if same or None in found["interval"] else " [{:.2f}, {:.2f}]".format(*found["interval"])
    difference = found["difference"]
    parts = [
        f"probability {found['chance']:.2f}{interval}, n = {found['n']}{', all with the same score' if same else ''}, "
        f"{words.p(found['p_holm'])}",
        f"mean {words.metric} {words.score(scores['mean'])}, {'above' if difference > 0 else 'below'} that of "
        f"{_opponent(found['budget'])} by {words.difference(difference, found['difference_interval'])}",
    ]
    ahead = (difference > 0) == words.higher and difference != 0
    if found["better"] is not None and found["better"] != ahead:
        parts.append("the mean points the other way: the test is of how often, not of how much")
    elif found["better"]:
        parts.append(_worth(numbers["worth"], words.results["random"]))
    if found["better"] is False:
        parts += _collapse(words.study, arm)
    if found["better"] is None and found["n"] > 1 and found["p_holm"] <= words.study["level"]:
        parts.append(
            "the interval has 0.5 in it, and p is small since the seeds differ more than random architectures do"
        )
    return "; ".join(parts)


def _worth(worth: _Numbers, known: _Numbers) -> str:
    """Return the best of how many random architectures is as good as the mean of an arm."""
    most = 1e6 if known["kind"] == "table" else known["count"]

    def number(value: float) -> str:
        return f"more than {most:,.0f}" if value >= most else count(value)

    interval = worth["interval"] or (0, 0)
    ends = "" if interval[0] == interval[1] else f" [{', '.join(map(number, interval))}]"
    return f"this mean is that of the best of {number(worth['value'])} random ones{ends}"


def _collapse(study: _Numbers, arm: str) -> list[str]:
    """Return how many of an arm's operations are skip connections, if they are more than by chance."""
    skips, expected = study["searches"][arm]["skips"], study["searches"][arm]["skips_expected"]
    if expected is None and RANDOM in study["searches"]:
        expected = study["searches"][RANDOM]["skips"]["mean"]
    if skips["mean"] is None or expected is None:
        return []
    if (skips["mean"] if skips["interval"] is None else skips["interval"][0]) <= expected:
        return []
    return [
        f"{100 * skips['mean']:.0f} % of its operations are skip connections, of random ones {100 * expected:.0f} %"
    ]


def _what_shows(words: _Words, comparisons: Sequence[_Numbers]) -> list[str]:
    """Return what arms for which nothing is shown would have to reach with as many seeds, or that these are too few."""
    about = "" if words.results["random"]["kind"] == "table" else "about "
    sentences: list[str] = []
    for n in sorted({found["n"] for found in comparisons if found["better"] is None}):
        found = next(found for found in comparisons if found["n"] == n)
        critical = found["critical"]
        if n == 1:
            sentences.append("n = 1 says nothing of how searches vary.")
        elif critical is None:
            sentences.append(
                f"n = {n} and the random architectures of this study are too few to tell: the smallest p that they can give is "
                f"{_smallest(found)}."
            )
        else:
            sentences.append(
                f"With n = {n}, no probability below {about}{critical:.2f} shows as better, and none above "
                f"{about}{1 - critical:.2f} as worse."
            )
    return sentences


def _smallest(found: _Numbers) -> str:
    p, of = found["smallest_p"], found["of"]
    return f"{p:.3g}" if of == 1 else f"{p:.3g}, and {min(1.0, p * of):.3g} after the correction"


def _of_time(words: _Words) -> list[str]:
    """Return how arms compare with as many random architectures as could be trained in the time of their search."""
    verdicts = {True: "better", False: "worse", None: "not shown to be better or worse"}
    parts = [
        f"{arm} is {verdicts[found['better']]} (N = {count(found['budget'])}, {words.p(found['p_holm'])})"
        for arm, numbers in words.results["arms"].items()
        if (found := numbers["at_equal_time"]) is not None
    ]
    if not parts:
        return []
    return [
        f"At equal time, against the best of N random architectures, as many as could be trained while an arm searches and "
        f"is evaluated: {_listed(parts)}."
    ]


# Between arms.


def _of_pairs(words: _Words) -> list[str]:
    """Return which arms differ, and for which that is not shown."""
    pairs: Sequence[_Numbers] = words.results["pairs"]
    sentences: list[str] = []
    shown = [pair for pair in pairs if pair["better"] is not None]
    if len(shown) > _MANY:
        largest = words.p(max(pair["p_holm"] for pair in shown)).replace("=", "<=")
        sentences.append(f"{len(shown)} of {len(pairs)} pairs of arms differ ({largest}): {_listed(_winners(shown))}.")
    else:
        sentences += [f"{_better(words, pair)}." for pair in shown]
    rest = [pair for pair in pairs if pair["better"] is None]
    same = [f"{_both(pair)} (n = {len(pair['seeds'])})" for pair in rest if not pair["different"]]
    if same:
        sentences.append(f"The same score with each seed, so that nothing tells them apart: {_listed(same)}.")
    sentences += _of_too_few([pair for pair in rest if 0 < pair["different"] < pair["pairs_needed"]], len(pairs))
    unclear = [pair for pair in rest if pair["different"] >= pair["pairs_needed"]]
    if len(unclear) > _MANY:
        detectable = sorted(pair["detectable"] for pair in unclear)
        sentences.append(
            f"{len(unclear)} of {len(pairs)} pairs of arms are not shown to differ; with as many seeds, 4 of 5 studies find a "
            f"mean difference of {words.difference(detectable[0])} of the pair that varies least, and of "
            f"{words.difference(detectable[-1])} of the one that varies most."
        )
    elif unclear:
        sentences.append(f"Not shown to differ: {_listed(_unclear(words, pair) for pair in unclear)}.")
    return sentences


def _both(pair: _Numbers) -> str:
    return f"{pair['first']} and {pair['second']}"


def _winner(pair: _Numbers) -> tuple[str, str]:
    return (pair["first"], pair["second"]) if pair["better"] == "first" else (pair["second"], pair["first"])


def _winners(pairs: Sequence[_Numbers]) -> list[str]:
    """Return for each arm which others it is better than."""
    beaten: dict[str, list[str]] = {}
    for better, worse in map(_winner, pairs):
        beaten.setdefault(better, []).append(worse)
    return [f"{arm} is better than {' / '.join(others)}" for arm, others in beaten.items()]


def _better(words: _Words, pair: _Numbers) -> str:
    """Return that an arm is better than another."""
    better, worse = _winner(pair)
    mean, interval = pair["differences"]["mean"], pair["differences"]["interval"]
    ahead = pair["first"] if (mean > 0) == words.higher else pair["second"]
    size, numbers = words.difference(mean, interval), f"n = {len(pair['seeds'])}, {words.p(pair['p_holm'])}"
    if ahead == better and (interval is None or not interval[0] <= 0 <= interval[1]):
        return f"{better} is better than {worse} by {size} ({numbers})"
    return f"{better} is better than {worse} with most seeds ({numbers}); the means do not show it, {ahead} is ahead by {size}"


def _unclear(words: _Words, pair: _Numbers) -> str:
    """Return how two arms compare that are not shown to differ."""
    mean, n = pair["differences"]["mean"], len(pair["seeds"])
    ahead = pair["first"] if (mean > 0) == words.higher else pair["second"]
    needed = "more than 10,000" if pair["needed"] is None else f"about {pair['needed']:,}"
    return (
        f"{_both(pair)} ({ahead} ahead by {words.difference(mean, pair['differences']['interval'])}, n = {n}, "
        f"{words.p(pair['p_holm'])}; of 5 studies with n = {n}, 4 find a mean difference of "
        f"{words.difference(pair['detectable'])}; one of the size seen here needs n = {needed})"
    )


def _of_too_few(pairs: Sequence[_Numbers], comparisons: int) -> list[str]:
    """Return which arms differ with too few seeds for any test to tell, by how many these are."""
    sentences: list[str] = []
    for n, different in sorted({(len(pair["seeds"]), pair["different"]) for pair in pairs}):
        here = [pair for pair in pairs if (len(pair["seeds"]), pair["different"]) == (n, different)]
        names = f"{len(here)} of {comparisons} pairs of arms" if len(here) > _MANY else _listed(map(_both, here))
        if different == n:
            what = f"n = {n} is too few to tell apart"
        else:
            what = f"{different} of {n} seeds with different scores are too few to tell apart"
        sentences.append(
            f"{what}: {names}. The smallest p that {_count(different, 'such pair')} can give is "
            f"{_smallest(here[0])}; at least {here[0]['pairs_needed']} are needed, and more for a "
            "difference that not every seed shows."
        )
    return sentences


# Over evaluations, and over the epochs of a search.


def _of_settings(settings: _Numbers) -> str:
    one, other = settings["evaluations"]
    if settings["same_order"]:
        return f"{one} and {other} put the means of the arms into the same order."
    swapped = _listed(f"{first} and {second}" for first, second in settings["swapped"])
    return f"{one} and {other} put the means of the arms into different orders, of {swapped}."


def _of_rules(study: _Numbers) -> list[str]:
    """Return which rules pick an epoch whose architecture is better or worse than that of the last one."""
    rules = {name: found for name, found in study["rules"].items() if found["different"]}
    if not rules:
        return []
    words = _Words(study, {})
    arms = max(len(found["arms"]) for found in rules.values())
    over = "" if arms == 1 else f", on the mean over up to {arms} arms"
    shown = {
        name: found for name, found in rules.items() if found["p_holm"] <= study["level"] and found["gain"]["mean"]
    }
    sentences: list[str] = []
    for better, text in ((True, "better"), (False, "worse")):
        parts = [
            f"{name} ({words.difference(found['gain']['mean'], found['gain']['interval'])} {'less' if better else 'more'} regret, "
            f"n = {found['gain']['n']}, {words.p(found['p_holm'])})"
            for name, found in shown.items()
            if (found["gain"]["mean"] > 0) == better
        ]
        if parts:
            sentences.append(
                f"A rule picks an epoch with a {text} architecture than the last one's{over}: {_listed(parts)}."
            )
    rest = {name: found for name, found in rules.items() if name not in shown}
    if rest:
        few = [name for name, found in rest.items() if found["of"] * found["smallest_p"] > study["level"]]
        much = f" The seeds are too few to tell for {_listed(few)}." if few else ""
        much = " The seeds are too few to tell." if len(few) == len(rest) else much
        sentences.append(
            f"Rules that are not shown to pick a better or a worse architecture than the last epoch's: {_listed(rest)}.{much}"
        )
    return sentences
