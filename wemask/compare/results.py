"""What `results.json` holds (schema version 2), and the check that a dict really holds it.

The TypedDicts below are the schema: pydantic reads them at run time, so the types that pyright
checks and the types that a file is checked against cannot drift apart. All accuracies and
differences are shares (0..1), never percentages. Arms, tasks and layers are keys as strings.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NotRequired, cast

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic.dataclasses import dataclass
from typing_extensions import TypedDict  # typing's is not enough for pydantic before Python 3.12

from wemask.data.schema import STRICT, Count, Whole, problems
from wemask.detection.me_layer import MELayerReport
from wemask.errors import DataError, DetectionError, nearest
from wemask.files import read_json, write_whole

SCHEMA_VERSION = 2


def _json(value: Any) -> Any:
    """Anything that strict JSON can hold, at any depth."""
    for kind, checked in _CHECKED.items():
        if isinstance(value, kind):
            return checked.validate_python(value)
    if value is None or isinstance(value, (str, int)):
        return value
    raise ValueError("must be something JSON can hold")


def _iso_time(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("must be an ISO 8601 time") from None
    return text


Json = Annotated[Any, AfterValidator(_json)]
_CHECKED: dict[type, TypeAdapter[Any]] = {
    dict: TypeAdapter(dict[str, Json], config=STRICT),
    list: TypeAdapter(list[Json], config=STRICT),
    float: TypeAdapter(float, config=STRICT),
}
Share = Annotated[float, Field(ge=0, le=1)]
NearShare = Annotated[float, Field(ge=-1, le=2)]  # version 0.1 wrote t intervals as they are
Difference = Annotated[float, Field(ge=-1, le=1)]  # of two shares
# The end of an interval of a difference: that of a t interval over two seeds may lie far outside.
End = Annotated[float, Field(ge=-100, le=100)]
Seen = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(ge=0)]
Layer = Annotated[str, Field(pattern=r"^\d+$")]  # as a key


class ModelInfo(TypedDict):
    """The model that all arms start from."""

    name: str  # as the config names it: "tiny", "meta-llama/Llama-3.2-1B"
    path: str  # where it was loaded from
    parameters: Whole
    dtype: str


class LayerRow(TypedDict):
    """One decoder layer, measured with the softening off or on; None where it does not apply."""

    layer: Whole  # 0-based decoder layer
    massive_max: float | None  # largest abs(h) at the layer's output
    massive_ratio: float | None  # massive_max over the median abs(h) of the layer
    sink_mass: float | None  # mean attention that later queries give to the massive tokens, 0..1
    sink_mass_by_head: list[float] | None  # the same for every query head; sink_mass is their mean
    value_norm_ratio: float | None  # norm of the massive token's value over the mean of the others


class SofteningMetrics(TypedDict):
    """The same probe texts through the base model, softening off and on."""

    off: Annotated[list[LayerRow], Field(min_length=1)]
    on: Annotated[list[LayerRow], Field(min_length=1)]


class SofteningRecord(TypedDict):
    """What the operator does to the base model."""

    config: dict[str, Json]  # the fields of WeMaskConfig
    layers: list[Whole]  # the softened decoder layers
    dims: dict[Layer, list[Whole]]  # layer -> the dimensions scaled by 1 - strength
    tokens_touched: dict[Layer, Whole]  # layer -> tokens touched on the probe prompt
    metrics: SofteningMetrics


class TaskInfo(TypedDict):
    """One benchmark, the same for every arm."""

    metric: str  # "exact_match", "acc", ...
    n: Count  # items
    draws: Count  # outputs per item (avg@k); 1 is greedy
    clusters: Count | None  # sources that items share (subjects, passages); None: independent items
    source: str  # dataset id, or the local file
    template_sha256: str  # of the prompt template: equal hashes mean equal prompts
    items_sha256: str  # of all items: equal hashes mean equal items
    fewshot: Whole
    note: str | None  # a remark to print with the task's numbers


class Budget(TypedDict):
    """What an arm's operator does to the base model on the probe prompt."""

    layers: Whole  # softened
    dims: Whole  # per layer
    tokens: Whole  # touched, summed over the layers
    removed_energy: float  # share of the touched tokens' squared norm that is gone, 0..1


class TrainedSoftening(TypedDict):
    """What one trained run's softening does to its own weights."""

    layers: int  # softened
    silent: list[int]  # those of them in which training took the massive tokens away


class ArmInfo(TypedDict):
    """What an arm is."""

    arm: str  # as `arms=[...]` names it; the key in `arms` may say more, such as a rate
    method: str  # base, training_free, sft, wemask
    seeds: list[int]  # of training, or of a control's draw; [] where nothing is drawn
    operator: dict[str, Json] | None  # the fields of WeMaskConfig; None: not softened
    reference: str | None  # the same without the operator: what a gain is a gain over
    control_of: str | None  # the real arm that this one is a control of
    again: bool  # an A/A arm: its reference once more
    budget: Budget | None
    softened: NotRequired[list[TrainedSoftening]]  # of each run that was trained softened


class RunScore(TypedDict):
    """One run of an arm on one task: one seed."""

    seed: int | None
    mean: Share
    extraction_failures: Whole  # outputs in which no answer was found (they count as wrong)
    seconds: Positive
    samples: str  # path of samples.jsonl, relative to results.json
    run_folder: str | None  # the training run; None when nothing was trained


class ArmScore(TypedDict):
    """One arm on one task, over all its runs."""

    n: Count
    mean: Share  # of right answers
    low: NearShare  # 95% interval of the mean, over items
    high: NearShare
    metrics: dict[str, float]  # every metric of the task, mean over the runs
    runs: Annotated[list[RunScore], Field(min_length=1)]


class Evidence(TypedDict):
    """How sure one comparison is when one kind of unit is taken to vary."""

    unit: str  # "items", "clusters" or "seeds"
    units: Count
    low: End  # 95% interval of the difference
    high: End
    p_value: Share
    minimum_detectable: Seen | None  # smallest true difference that would have been seen
    test: str  # behind p_value


class Comparison(Evidence):
    """Arm a minus arm b on the same items, as sure as over the unit that is least sure."""

    task: str
    a: str
    b: str
    kind: str  # "main", "control" (a or b is one) or "same" (an A/A pair)
    n: Count  # paired items
    delta: Difference  # mean(a) - mean(b)
    p_holm: Share  # p_value after Holm's correction over the comparisons of this kind
    a_only: Whole  # items only a got right; with several runs: on which a was right more often
    b_only: Whole  # the same for b
    odds_ratio: Positive | None
    effect_size: float | None
    others: list[Evidence]  # the same comparison over the other units


class SamePair(TypedDict):
    """Two runs of one method that differ in their seed only (A/A), item by item."""

    task: str
    arm: str
    seed_a: int
    seed_b: int
    delta: Difference  # mean(a) - mean(b)
    low: End
    high: End
    p_value: Share


@with_config(STRICT)
class Results(TypedDict):
    """The whole of results.json."""

    schema_version: int
    command: str  # the exact command that made this file
    created: Annotated[str, AfterValidator(_iso_time)]
    wemask_version: str
    versions: dict[str, str]  # package -> version
    machine: str
    model: ModelInfo
    me_layer: dict[str, Json]  # MELayerReport.to_dict(), a document with its own version
    softening: SofteningRecord | None  # None: nothing to soften
    tasks: dict[str, TaskInfo]
    settings: dict[str, Json]  # resolved: arm -> every setting that can change its result
    conditions: dict[str, dict[str, Json]]  # task -> engine: batch size, dtype, versions, ...
    arm_info: dict[str, ArmInfo]
    absent: dict[str, str]  # control -> why this model cannot have it
    arms: dict[str, dict[str, ArmScore]]  # arm -> task -> score, arms in reading order
    comparisons: list[Comparison]
    same: list[SamePair]
    notes: list[str]  # honest remarks, printed with the report


_RESULTS = TypeAdapter(Results)
# The detection as it is, but with types that are checked.
_REPORT = dataclass(
    MELayerReport,
    config=ConfigDict(strict=True, arbitrary_types_allowed=True, revalidate_instances="always"),
)


def validate_results(data: object) -> Results:
    """Return `data` as Results, or raise one DataError that lists every problem with its place."""
    if isinstance(data, dict) and data.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"results: schema_version is {data.get('schema_version')!r}, this wemask reads "
            f"{SCHEMA_VERSION}. Write the file again with `python evaluate.py` (finished items are "
            "not repeated)."
        )
    try:
        _RESULTS.validate_python(data)
        found = _contradictions(cast(Results, data))
    except ValidationError as error:
        found = problems(error, "results", data)
    if found:
        shown = "\n".join(f"  {problem}" for problem in found[:20])
        more = f"\n  and {len(found) - 20} more" if len(found) > 20 else ""
        raise DataError(f"results do not follow schema version {SCHEMA_VERSION}:\n{shown}{more}")
    return cast(Results, data)


def load_results(path: Path) -> Results:
    """Read and validate a results.json; DataError when missing, broken, or of another schema."""
    try:
        values = read_json(path, kind=None)
    except DataError as error:
        raise DataError(f"{error} `python evaluate.py` writes a results.json.") from error
    try:
        return validate_results(values)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def save_results(results: Results, path: Path) -> None:
    """Validate, then write strict JSON (no NaN, no Infinity), whole or not at all."""
    text = json.dumps(validate_results(results), indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, text + "\n")


def _contradictions(results: Results) -> list[str]:
    """Problems that types cannot see: names that lead nowhere, intervals upside down."""
    found = _of_report(results["me_layer"])
    for key in ("arm_info", "settings"):
        for arm in results["arms"].keys() ^ results[key].keys():
            found.append(f"results.{key}.{arm} is missing, or results.arms.{arm} is.")
    for arm, scores in results["arms"].items():
        for task, score in scores.items():
            where = f"results.arms.{arm}.{task}"
            if task not in results["tasks"]:
                found.append(f"{where}: no such task.{nearest(task, results['tasks'])}")
            found += _upside_down(score, where)
    for i, comparison in enumerate(results["comparisons"]):
        where = f"results.comparisons[{i}]"
        for side, arm in (("a", comparison["a"]), ("b", comparison["b"])):
            if comparison["task"] not in results["arms"].get(arm, {}):
                found.append(f"{where}.{side}: arm {arm!r} has no score on {comparison['task']!r}.")
        found += _upside_down(comparison, where)
    if softening := results["softening"]:
        metrics = softening["metrics"]
        if [r["layer"] for r in metrics["off"]] != [r["layer"] for r in metrics["on"]]:
            found.append("results.softening.metrics: off and on must be of the same layers.")
    return found


def _of_report(values: dict[str, Any]) -> list[str]:
    """What is wrong with the detection: its types, as its classes have them, and its ranges."""
    where = "results.me_layer"
    try:
        report = MELayerReport.from_dict(values)
        _REPORT(**vars(report))
    except DetectionError as error:
        return [f"{where}: {error}"]
    except ValidationError as error:
        return problems(error, where, values)
    layers = [row.layer for row in report.layers]
    named = [n for n in (report.layer, report.erased_at) if n is not None]
    if not layers or not {*named} <= {*layers} or report.found != (report.layer is not None):
        return [f"{where}: layer {report.layer} and erased_at {report.erased_at} of {layers}."]
    fits = all(0 <= dim < report.hidden_size for dim in report.dims)
    if not fits or len(report.magnitudes) != len(report.dims):
        return [f"{where}.dims: {report.dims} of {report.hidden_size}, and {report.magnitudes}."]
    return []


def _upside_down(interval: ArmScore | Comparison, where: str) -> list[str]:
    above = interval["low"] > interval["high"]
    return [f"{where}: the interval's low end is above its high end."] if above else []
