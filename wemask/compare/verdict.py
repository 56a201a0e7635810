"""What the numbers of results.json allow one to say, in words.

"No difference" and "could not have seen one" are different answers, and near-zero accuracy on
every arm is no answer at all. The rules that tell them apart are the constants below.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from wemask.compare.results import Comparison, Results

SIGNIFICANT = 0.05  # on the Holm-corrected p-value; the interval must exclude zero as well
RELEVANT = 0.05  # a difference of 5 points matters; a test blind to it says little
NEAR_ZERO = 0.05  # if no arm gets more than this right, a lack of difference says nothing
NEAR_ONE = 0.95  # the same at the ceiling
MAIN = 6  # arms whose disagreements a page shows
LISTED = 4  # comparisons of one outcome that a sentence names; more are counted

Outcome = Literal["better", "worse", "unclear", "no_difference", "blind", "floor", "ceiling"]

OUTCOME_WORDS: dict[Outcome, str] = {
    "better": "better",
    "worse": "worse",
    "unclear": "not clear after Holm's correction",
    "no_difference": "no difference",
    "blind": "could not have seen a difference",
    "floor": "tells nothing: accuracy near zero",
    "ceiling": "tells nothing: accuracy near the ceiling",
}
_PLAIN = ("base", "random_dims", "lowest_dims", "wrong_layers", "wrong_token")
_ARM_WORDS = {
    **{name: name.replace("_", " ") for name in _PLAIN},
    "training_free": "training-free WeMask",
    "sft": "SFT",
    "wemask_sft": "WeMask-SFT",
    "sft_then_wemask": "SFT, softened after",
    "base_again": "base again (A/A)",
    "uniform": "uniform damping",
    "set_zero": "massive set to zero",
    "set_mean": "massive set to mean",
    "primary_tokens": "primary tokens only",
}
# The question "did WeMask help?" is asked of the first of these pairs that was compared.
QUESTIONS = (("wemask_sft", "sft"), ("training_free", "base"))


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One comparison and what it allows one to say."""

    comparison: Comparison
    outcome: Outcome
    mean_a: float
    mean_b: float
    best: float  # highest accuracy of any arm on the task


def arm_words(arm: str) -> str:
    """Name an arm for readers: `random_dims_sft (rate=0.1)` -> "random dims, SFT (rate=0.1)".

    An arm that we have no words for keeps its own name.
    """
    name, bracket, rest = arm.partition(" (")
    plain = _ARM_WORDS.get(name.removesuffix("_sft"))
    words = _ARM_WORDS.get(name) or (f"{plain}, SFT" if plain else name)
    return f"{words}{bracket}{rest}"


def unit_words(comparison: Comparison) -> str:
    """What an interval is over: "400 items", "5 seeds"."""
    return f"{comparison['units']:,} {comparison['unit']}"


def percent(share: float) -> str:
    """0.715 -> "71.5%"."""
    return f"{100 * share:.1f}%"


def points(difference: float) -> str:
    """0.015 -> "+1.5", 0 -> "0.0": the difference of two shares in percentage points."""
    rounded = round(100 * difference, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def p_value_words(p: float) -> str:
    """0.0421 -> "0.042", 0.0002 -> "< 0.001", 1.0 -> "1"."""
    if p < 0.001:
        return "< 0.001"
    return f"{p:.2g}" if p >= 0.1 else f"{p:.3f}"


def p_words(p: float) -> str:
    """0.0421 -> "p = 0.042", 0.0002 -> "p < 0.001"."""
    words = p_value_words(p)
    return f"p {words}" if words.startswith("<") else f"p = {words}"


def difference_words(row: Comparison) -> str:
    """0.075 and its interval as "+7.5 [+1.2, +13.8], p = 0.021"."""
    interval = f"[{points(row['low'])}, {points(row['high'])}]"
    return f"{points(row['delta'])} {interval}, {p_words(row['p_holm'])}"


def ordered_tasks(results: Results) -> list[str]:
    """Tasks with at least one score, in the file's order."""
    return [t for t in results["tasks"] if any(t in scores for scores in results["arms"].values())]


def find_comparison(results: Results, task: str, a: str, b: str) -> Comparison | None:
    """Arm a minus arm b on a task, turned around when the file holds b minus a."""
    for row in results["comparisons"]:
        if row["task"] == task and {row["a"], row["b"]} == {a, b}:
            return row if row["a"] == a else _turned(row)
    return None


def judgement_of(results: Results, comparison: Comparison) -> Judgement:
    """Classify one comparison by the constants at the top of this file."""
    arms, task = results["arms"], comparison["task"]
    means = [scores[task]["mean"] for scores in arms.values() if task in scores]
    return Judgement(
        comparison=comparison,
        outcome=_outcome(comparison, means),
        mean_a=arms[comparison["a"]][task]["mean"],
        mean_b=arms[comparison["b"]][task]["mean"],
        best=max(means),
    )


def headline(results: Results) -> tuple[str, str]:
    """Return the verdict: where the massive activation is born, and whether WeMask helped."""
    return birth_sentence(results["me_layer"], results["model"]["name"]), _help_sentence(results)


def birth_sentence(me_layer: dict[str, Any], model_name: str) -> str:
    """Say where the massive activation is born, or that there is none and what came closest."""
    if not me_layer["found"]:
        miss = (me_layer.get("nearest_miss") or "").strip().rstrip(".")
        closest = f" (nearest miss: {miss})" if miss else ""
        return f"No massive activation was found in {model_name}{closest}."
    layer = me_layer["layer"]
    sentence = f"In {model_name} the massive activation is born in layer {layer}"
    tokens, dims = me_layer.get("tokens") or [], me_layer.get("dims") or []
    if tokens and dims:
        token = max(tokens, key=lambda t: t["magnitude"])
        ratio = next((r["ratio"] for r in me_layer["layers"] if r["layer"] == layer), None)
        times = f" ({ratio:,.0f} times the median)" if ratio else ""
        sentence += (
            f": in dimension {dims[0]}, abs(h) of token {token['string']!r} reaches "
            f"{token['magnitude']:,.4g}{times}"
        )
        others = ", ".join(str(d) for d in dims[1:4]) + (", ..." if len(dims) > 4 else "")
        sentence += f"; massive as well: {others}" if others else ""
    erased = me_layer.get("erased_at")
    last = "it lasts to the end" if erased is None else f"layer {erased} erases it"
    return f"{sentence}; {last}."


def finding_words(finding: Judgement) -> str:
    """One comparison as a clause: "on arith, WeMask-SFT scored 7.5 points higher than SFT: ..."."""
    c, outcome = finding.comparison, finding.outcome
    a, b, n, seen = arm_words(c["a"]), arm_words(c["b"]), c["n"], c["minimum_detectable"]
    means = f"{percent(finding.mean_a)} against {percent(finding.mean_b)}"
    over = "" if c["unit"] == "items" else f" over {unit_words(c)}"
    sure = (
        f"95% interval of the difference {points(c['low'])} to {points(c['high'])}{over}, "
        f"{p_words(c['p_holm'])}, n = {n}"
    )
    numbers = f"{means}, {points(c['delta'])} points ({sure})"
    if outcome == "floor":
        said = (
            f"accuracy is near zero on every arm (at most {percent(finding.best)}, n = {n}), "
            "which tells nothing about the method"
        )
    elif outcome == "ceiling":
        said = (
            f"every arm gets nearly everything right (n = {n}), "
            "which leaves no room to see a difference"
        )
    elif outcome in ("better", "worse"):
        size = f"{abs(100 * c['delta']):.1f} points {'higher' if outcome == 'better' else 'lower'}"
        said = f"{a} scored {size} than {b}: {means} ({sure})"
    elif outcome == "unclear":
        said = (
            f"the difference between {a} and {b} is not clear once the number of comparisons is "
            f"counted: {numbers}"
        )
    elif outcome == "no_difference" and seen is not None:
        said = (
            f"{a} and {b} do not differ: {numbers}; "
            f"a difference of {100 * seen:.1f} points would have been seen"
        )
    else:
        limit = "how large a one could have been is unknown"
        if seen is not None:
            limit = f"only one of {100 * seen:.1f} points or more could have been"
        said = f"no difference between {a} and {b} was seen: {numbers}, but {limit}"
    return f"on {c['task']}, {said}"


def _help_sentence(results: Results) -> str:
    for a, b in QUESTIONS:
        left, right = arms_named(results, a), arms_named(results, b)
        rows = [r for task in ordered_tasks(results) for r in between(results, task, left, right)]
        if rows:
            findings = [judgement_of(results, row) for row in rows]
            said = _clauses(findings, f"{arm_words(a)} against {arm_words(b)}")
            return f"{_capital(said)}.{specificity(results, a)}"
    arms = ", ".join(arm_words(arm) for arm in results["arms"]) or "none"
    return f"Whether WeMask helps was not tested: no pair of arms with and without it ({arms})."


def between(
    results: Results, task: str, left: Iterable[str], right: Sequence[str]
) -> list[Comparison]:
    """Every comparison on a task of an arm of `left` minus an arm of `right` that there is."""
    rows = [find_comparison(results, task, a, b) for a in left for b in right]
    return [row for row in rows if row is not None]


def over_reference(results: Results, task: str, arm: str) -> list[Comparison]:
    """An arm minus its reference on a task: one comparison for each arm of the reference's name."""
    reference = results["arm_info"][arm]["reference"]
    return between(results, task, [arm], arms_named(results, reference)) if reference else []


def arms_named(results: Results, name: str) -> list[str]:
    """The arms of one name: several where their settings differ."""
    return [arm for arm, info in results["arm_info"].items() if info["arm"] == name]


def real_arms(results: Results) -> list[str]:
    """Names of the arms that have controls beside them."""
    names = (info["control_of"] for info in results["arm_info"].values())
    return [name for name in dict.fromkeys(names) if name is not None]


def main_arms(results: Results) -> list[str]:
    """The arms that are neither controls nor A/A; of many (a dose study) the first few."""
    info = results["arm_info"]
    main = [a for a in info if info[a]["control_of"] is None and not info[a]["again"]]
    return main[:MAIN]


def compared(results: Results) -> list[Comparison]:
    """The comparisons of main and A/A arms; those of controls have a table of their own."""
    return [row for row in results["comparisons"] if row["kind"] != "control"]


def specificity(results: Results, real: str) -> str:
    """Answer "is the gain specific?" for a real arm, or "" where it has no controls."""
    controls = [arm for arm, info in results["arm_info"].items() if info["control_of"] == real]
    labels = arms_named(results, real)
    if not controls or len(labels) != 1:
        return ""
    sentences = []
    for task in ordered_tasks(results):
        gain = next(iter(over_reference(results, task, labels[0])), None)
        rows = {c: find_comparison(results, task, labels[0], c) for c in controls}
        beaten = {c: judgement_of(results, row).outcome for c, row in rows.items() if row}
        if gain is not None and beaten:
            said = _specific_words(task, judgement_of(results, gain), beaten)
            sentences.append(f" {_capital(said)}.")
    return "".join(sentences)


def _specific_words(task: str, gain: Judgement, against: Mapping[str, str]) -> str:
    better = [c for c, outcome in against.items() if outcome == "better"]
    worse = [c for c, outcome in against.items() if outcome == "worse"]
    equal = [arm_words(c) for c in against if c not in better]
    if gain.outcome != "better":
        apart = f", and none of {len(against)} controls is told apart from it"
        if better or worse:
            told = ", ".join(map(arm_words, better + worse))
            apart = f"; of the controls only {told} differ from it"
        return f"on {task} there is no gain that could be specific{apart}"
    if not equal:
        return f"on {task} the gain is specific: every one of {len(against)} controls is below it"
    return (
        f"on {task} the gain is not shown to be specific: {', '.join(equal)} "
        f"{'is' if len(equal) == 1 else 'are'} not below it ({len(better)} of {len(against)} are)"
    )


def _clauses(findings: list[Judgement], pair: str) -> str:
    """Every finding in full where there are few, else grouped by outcome."""
    if len(findings) <= 2:
        return "; ".join(finding_words(f) for f in findings)
    groups: dict[Outcome, list[str]] = {outcome: [] for outcome in OUTCOME_WORDS}
    for f in findings:
        c, (_, bracket, settings) = f.comparison, f.comparison["a"].partition(" (")
        change = f" ({points(c['delta'])})" if f.outcome in ("better", "worse") else ""
        groups[f.outcome].append(f"{c['task']}{bracket}{settings}{change}")
    # The order of OUTCOME_WORDS puts what was found before what could not be.
    grouped = (
        f"{OUTCOME_WORDS[outcome]} on {', '.join(places)}"
        if len(places) <= LISTED
        else f"{OUTCOME_WORDS[outcome]} in {len(places)} of {len(findings)} comparisons"
        for outcome, places in groups.items()
        if places
    )
    return f"{pair}: {'; '.join(grouped)}"


def _outcome(comparison: Comparison, means: Sequence[float]) -> Outcome:
    excludes_zero = comparison["low"] > 0 or comparison["high"] < 0
    if comparison["p_holm"] < SIGNIFICANT and excludes_zero:
        return "better" if comparison["delta"] > 0 else "worse"
    if max(means) <= NEAR_ZERO:
        return "floor"
    if min(means) >= NEAR_ONE:
        return "ceiling"
    if excludes_zero:
        return "unclear"
    seen = comparison["minimum_detectable"]
    return "blind" if seen is None or seen > RELEVANT else "no_difference"


def _turned(comparison: Comparison) -> Comparison:
    """The same comparison with a and b exchanged."""
    odds, effect = comparison["odds_ratio"], comparison["effect_size"]
    return {
        **comparison,
        "a": comparison["b"],
        "b": comparison["a"],
        "delta": -comparison["delta"],
        "low": -comparison["high"],
        "high": -comparison["low"],
        "a_only": comparison["b_only"],
        "b_only": comparison["a_only"],
        "others": [{**o, "low": -o["high"], "high": -o["low"]} for o in comparison["others"]],
        "odds_ratio": 1 / odds if odds else None,
        "effect_size": None if effect is None else -effect,
    }


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
