"""What `results.json` holds (schema version 2), and the check that a dict really holds it.

The TypedDicts below are the schema: `validate_results` reads them at run time, so the types that
pyright checks and the types that a file is checked against cannot drift apart. All accuracies and
differences are shares (0..1), never percentages. Arms, tasks and layers are keys as strings.
"""

import json
import math
from datetime import datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypedDict, cast, get_args, get_origin, get_type_hints, is_typeddict

from wemask.errors import DataError, nearest
from wemask.files import write_whole

SCHEMA_VERSION = 2


class ModelInfo(TypedDict):
    """The model that all arms start from."""

    name: str  # as the config names it: "tiny", "meta-llama/Llama-3.2-1B"
    path: str  # where it was loaded from
    parameters: int
    dtype: str


class LayerMetrics(TypedDict):
    """One decoder layer, measured with the softening off or on; None where it does not apply."""

    layer: int  # 0-based decoder layer
    massive_max: float | None  # largest abs(h) at the layer's output
    massive_ratio: float | None  # massive_max over the median abs(h) of the layer
    sink_mass: float | None  # mean attention that later queries give to the massive tokens, 0..1
    sink_mass_by_head: list[float] | None  # the same for every query head; sink_mass is their mean
    value_norm_ratio: float | None  # norm of the massive token's value over the mean of the others


class SofteningMetrics(TypedDict):
    """The same probe texts through the base model, softening off and on."""

    off: list[LayerMetrics]
    on: list[LayerMetrics]


class Softening(TypedDict):
    """What the operator does to the base model."""

    config: dict[str, Any]  # the fields of WeMaskConfig
    layers: list[int]  # the softened decoder layers
    dims: dict[str, list[int]]  # layer -> the dimensions scaled by 1 - strength
    tokens_touched: dict[str, int]  # layer -> tokens touched on the probe prompt
    metrics: SofteningMetrics


class TaskInfo(TypedDict):
    """One benchmark, the same for every arm."""

    metric: str  # "exact_match", "acc", ...
    n: int  # items
    draws: int  # outputs per item (avg@k); 1 is greedy
    clusters: int | None  # sources that items share (subjects, passages); None: independent items
    source: str  # dataset id, or the local file
    template_sha256: str  # of the prompt template: equal hashes mean equal prompts
    items_sha256: str  # of all items: equal hashes mean equal items
    fewshot: int
    note: str | None  # a remark to print with the task's numbers


class Budget(TypedDict):
    """What an arm's operator does to the base model on the probe prompt."""

    layers: int  # softened
    dims: int  # per layer
    tokens: int  # touched, summed over the layers
    removed_energy: float  # share of the touched tokens' squared norm that is gone, 0..1


class ArmInfo(TypedDict):
    """What an arm is."""

    arm: str  # as `arms=[...]` names it; the key in `arms` may say more, such as a rate
    method: str  # base, training_free, sft, wemask
    seeds: list[int]  # of training, or of a control's draw; [] where nothing is drawn
    operator: dict[str, Any] | None  # the fields of WeMaskConfig; None: not softened
    reference: str | None  # the same without the operator: what a gain is a gain over
    control_of: str | None  # the real arm that this one is a control of
    again: bool  # an A/A arm: its reference once more
    budget: Budget | None


class RunScore(TypedDict):
    """One run of an arm on one task: one seed."""

    seed: int | None
    mean: float
    extraction_failures: int  # outputs in which no answer was found (they count as wrong)
    seconds: float
    samples: str  # path of samples.jsonl, relative to results.json
    run_folder: str | None  # the training run; None when nothing was trained


class ArmScore(TypedDict):
    """One arm on one task, over all its runs."""

    n: int
    mean: float  # share of right answers
    low: float  # 95% interval of the mean, over items
    high: float
    metrics: dict[str, float]  # every metric of the task, mean over the runs
    runs: list[RunScore]


class Evidence(TypedDict):
    """How sure one comparison is when one kind of unit is taken to vary."""

    unit: str  # "items", "clusters" or "seeds"
    units: int
    low: float
    high: float
    p_value: float
    minimum_detectable: float | None
    test: str


class Comparison(TypedDict):
    """Arm a minus arm b on the same items."""

    task: str
    a: str
    b: str
    kind: str  # "main", "control" (a or b is one) or "same" (an A/A pair)
    n: int  # paired items
    delta: float  # mean(a) - mean(b)
    low: float  # 95% interval of delta, over `unit`
    high: float
    p_value: float
    p_holm: float  # p_value after Holm's correction over the comparisons of this kind
    a_only: int  # items only a got right; with several runs: on which a was right more often
    b_only: int  # the same for b
    odds_ratio: float | None
    effect_size: float | None
    minimum_detectable: float | None  # smallest true difference that would have been seen
    test: str  # name of the test behind p_value
    unit: str  # what varies: "seeds" where both arms have several, else "clusters", else "items"
    units: int
    others: list[Evidence]  # the same comparison over the other units


class SamePair(TypedDict):
    """Two runs of one method that differ in their seed only (A/A), item by item."""

    task: str
    arm: str
    seed_a: int
    seed_b: int
    delta: float  # mean(a) - mean(b)
    low: float
    high: float
    p_value: float


class Results(TypedDict):
    """The whole of results.json."""

    schema_version: int
    command: str  # the exact command that made this file
    created: str  # ISO 8601
    wemask_version: str
    versions: dict[str, str]  # package -> version
    machine: str
    model: ModelInfo
    me_layer: dict[str, Any]  # MELayerReport.to_dict(), a document with its own version
    softening: Softening | None  # None: nothing to soften
    tasks: dict[str, TaskInfo]
    settings: dict[str, Any]  # resolved: arm -> every setting that can change its result
    conditions: dict[str, dict[str, Any]]  # task -> engine: batch size, dtype, versions, ...
    arm_info: dict[str, ArmInfo]
    absent: dict[str, str]  # control -> why this model cannot have it
    arms: dict[str, dict[str, ArmScore]]  # arm -> task -> score, arms in reading order
    comparisons: list[Comparison]
    same: list[SamePair]
    notes: list[str]  # honest remarks, printed with the report


def validate_results(data: object) -> Results:
    """Return `data` as Results, or raise one DataError that lists every problem with its place."""
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(data, dict) and version != SCHEMA_VERSION:
        raise DataError(
            f"results: schema_version is {version!r}, this wemask reads {SCHEMA_VERSION}. "
            "Write the file again with `python evaluate.py` (finished items are not repeated)."
        )
    problems = _check(data, Results, "results")
    if not problems:
        problems = _contradictions(cast(Results, data))
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise DataError(f"results do not follow schema version {SCHEMA_VERSION}:\n{shown}{more}")
    return cast(Results, data)


def load_results(path: Path) -> Results:
    """Read and validate a results.json. DataError when it is missing, broken, or of another schema.

    >>> load_results(Path("nowhere.json"))
    Traceback (most recent call last):
        ...
    wemask.errors.DataError: nowhere.json: no such file. `python evaluate.py` writes one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. `python evaluate.py` writes one.") from error
    try:
        data = json.loads(text, parse_constant=_reject_constant)
    except ValueError as error:
        raise DataError(f"{path}: not strict JSON: {error}") from error
    return validate_results(data)


def save_results(results: Results, path: Path) -> None:
    """Validate, then write strict JSON (no NaN, no Infinity), whole or not at all."""
    text = json.dumps(validate_results(results), indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, text + "\n")


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _check(value: object, expected: Any, where: str) -> list[str]:
    """Compare a value with a type made of TypedDict, dict, list, unions and scalars."""
    if expected is Any:
        return _check_json(value, where)
    if is_typeddict(expected):
        return _check_record(value, expected, where)
    origin = get_origin(expected)
    if origin is UnionType:
        if value is None and NoneType in get_args(expected):
            return []
        (inner,) = (option for option in get_args(expected) if option is not NoneType)
        return _check(value, inner, where)
    if origin is list:
        if not isinstance(value, list):
            return [_mismatch(value, "a list", where)]
        (inner,) = get_args(expected)
        return [p for i, item in enumerate(value) for p in _check(item, inner, f"{where}[{i}]")]
    if origin is dict:
        if not isinstance(value, dict):
            return [_mismatch(value, "an object", where)]
        inner = get_args(expected)[1]
        keys = [_mismatch(k, "a string as key", where) for k in value if not isinstance(k, str)]
        return keys + [p for k, v in value.items() for p in _check(v, inner, f"{where}.{k}")]
    return _check_scalar(value, expected, where)


def _check_record(value: object, expected: Any, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [_mismatch(value, "an object", where)]
    fields = get_type_hints(expected)
    problems = [f"{where}.{key} is missing" for key in fields if key not in value]
    for key, item in value.items():
        if key in fields:
            problems += _check(item, fields[key], f"{where}.{key}")
        else:
            problems.append(f"{where}.{key} is not a known key.{nearest(str(key), fields)}")
    return problems


def _check_scalar(value: object, expected: type, where: str) -> list[str]:
    if expected is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return [_mismatch(value, "a number", where)]
        endless = isinstance(value, float) and not math.isfinite(value)
        return [f"{where} is {value}, which JSON cannot hold"] if endless else []
    if expected is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
        return [] if fits else [_mismatch(value, "a whole number", where)]
    return [] if isinstance(value, expected) else [_mismatch(value, "a string", where)]


def _check_json(value: object, where: str) -> list[str]:
    """Anything that strict JSON can hold, at any depth."""
    if isinstance(value, dict):
        return _check(value, dict[str, Any], where)
    if isinstance(value, list):
        return _check(value, list[Any], where)
    if isinstance(value, float):
        return _check_scalar(value, float, where)
    plain = value is None or isinstance(value, (str, int))
    return [] if plain else [_mismatch(value, "something JSON can hold", where)]


def _mismatch(value: object, wanted: str, where: str) -> str:
    return f"{where} should be {wanted}, found {type(value).__name__} {str(value)[:40]!r}"


def _contradictions(results: Results) -> list[str]:
    """Problems that types cannot see: names that lead nowhere, impossible numbers."""
    problems = []
    try:
        datetime.fromisoformat(results["created"])
    except ValueError:
        problems.append(f"results.created is not an ISO 8601 time: {results['created']!r}")
    for arm, scores in results["arms"].items():
        if arm not in results["arm_info"]:
            problems.append(f"results.arm_info.{arm} is missing")
        for task, score in scores.items():
            where = f"results.arms.{arm}.{task}"
            if task not in results["tasks"]:
                problems.append(f"{where}: no such task.{nearest(task, results['tasks'])}")
            if not 0 <= score["mean"] <= 1:
                problems.append(f"{where}.mean is {score['mean']}, not a share between 0 and 1")
            if score["low"] > score["high"]:
                problems.append(f"{where}: the interval's low end is above its high end")
    for i, comparison in enumerate(results["comparisons"]):
        problems += _comparison_problems(results, comparison, f"results.comparisons[{i}]")
    return problems


def _comparison_problems(results: Results, comparison: Comparison, where: str) -> list[str]:
    problems = []
    for side, arm in (("a", comparison["a"]), ("b", comparison["b"])):
        if comparison["task"] not in results["arms"].get(arm, {}):
            problems.append(f"{where}.{side}: arm {arm!r} has no score on {comparison['task']!r}")
    if comparison["low"] > comparison["high"]:
        problems.append(f"{where}: the interval's low end is above its high end")
    for key, p in (("p_value", comparison["p_value"]), ("p_holm", comparison["p_holm"])):
        if not 0 <= p <= 1:
            problems.append(f"{where}.{key} is {p}, not a probability")
    return problems
