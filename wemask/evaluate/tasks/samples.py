"""What is kept of every item, and how lm-eval's log becomes that. No lm_eval import needed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import with_config
from typing_extensions import TypedDict  # typing's is not enough for pydantic before Python 3.12

from wemask.data.schema import OPEN
from wemask.errors import ConfigError
from wemask.evaluate.tasks.task_config import TaskConfig

PREFERRED = ("acc", "exact_match", "prompt_level_strict_acc")

Answer = tuple[str | None, str | None]
"""What was found in an output, and why nothing was."""


@with_config(OPEN)
class Sample(TypedDict):
    """One line of samples.jsonl."""

    id: str  # of the item: the same in every arm
    task: str
    arm: str
    prompt: str  # as really sent, chat template and all
    output: str  # what the model wrote; the chosen option of a multiple-choice item
    extracted: str | None  # the answer found in it
    gold: str
    correct: bool
    reason: str | None  # why no answer was found
    draw: int  # 0 to n_samples - 1
    cluster: str | None  # what the item shares with others: its subtask, its type
    metrics: dict[str, float | list[float]]  # all that is measured of it; a list: per instruction


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A prompt as the model gets it, and what became of it."""

    text: str  # as really sent, special tokens and all
    ids: list[int]  # the same as tokens; [] once the output is there, for there may be many
    budget: int  # tokens that can be generated
    cut: bool  # it lost its beginning, for want of room
    finished: bool = False  # the output ended by itself, not by the limit


def read_log(
    logged: Mapping[str, list[dict[str, Any]]],
    config: TaskConfig,
    *,
    arm: str,
    own: bool,
    sent: Mapping[str, Sent],
    draw: int = 0,
) -> tuple[str, list[Sample]]:
    """Turn lm-eval's logged samples into ours; return the metric's name with them.

    Args:
        logged: (sub)task name -> lm-eval's samples.
        config: the task.
        arm: written into every sample.
        own: the task is ours: its filter has found the answers.
        sent: prompt -> what became of it; without the prompts of multiple-choice items.
        draw: number of the pass over the items.

    Raises:
        ConfigError: the task has no right-or-wrong metric, or not the one wanted.
    """
    samples, seen, used = list[Sample](), dict[str, int](), list[str]()
    for subtask, lines in logged.items():
        metric, chosen = _choose_metric(config, lines)
        used.append(metric)
        others = _other_filters(lines, chosen)
        for line in chosen:
            doc, asked = line["doc"], line["arguments"][0][0]
            fate = sent.get(asked)
            output, extracted, reason = _read_output(line, own, fate)
            text = json.dumps([subtask, doc], sort_keys=True, default=str)
            samples.append(
                Sample(
                    id=doc["id"] if own else unique_id(text, seen),
                    task=config.name,
                    arm=arm,
                    prompt=fate.text if fate else asked,
                    output=output,
                    extracted=extracted,
                    gold=_gold(line),
                    correct=bool(line[metric]),
                    reason=reason,
                    draw=draw,
                    cluster=doc.get("cluster") if own else subtask if len(logged) > 1 else None,
                    metrics=_metrics(line) | others.get(line["doc_id"], {}),
                )
            )
    return ", ".join(dict.fromkeys(used)), samples


def _metrics(line: dict[str, Any], suffix: str = "") -> dict[str, float | list[float]]:
    """Return what is a number for this item alone, or a list of such numbers.

    lm-eval's other values are parts of a metric of the whole corpus (tuples, texts).
    """
    numbers = dict[str, float | list[float]]()
    for name in line["metrics"]:
        value = line[name]
        if isinstance(value, (int, float)):
            numbers[name + suffix] = float(value)
        elif isinstance(value, list) and all(isinstance(part, (int, float)) for part in value):
            numbers[name + suffix] = [float(part) for part in value]
    return numbers


def _other_filters(
    lines: list[dict[str, Any]], chosen: list[dict[str, Any]]
) -> dict[int, dict[str, float | list[float]]]:
    """Return doc_id -> metrics under the filters that do not count, as `exact_match,loose`."""
    others = dict[int, dict[str, float | list[float]]]()
    for line in lines:
        if chosen and line["filter"] != chosen[0]["filter"]:
            others.setdefault(line["doc_id"], {}).update(_metrics(line, f",{line['filter']}"))
    return others


def _choose_metric(
    config: TaskConfig, lines: list[dict[str, Any]]
) -> tuple[str, list[dict[str, Any]]]:
    """Return the right-or-wrong metric, and the lines of the filter it is taken from."""
    wanted, _, wanted_filter = (config.metric or "").partition(",")
    filters = list(dict.fromkeys(line["filter"] for line in lines))
    lines = [line for line in lines if line["filter"] == (wanted_filter or filters[0])]
    verdicts = [
        name
        for name in (lines[0]["metrics"] if lines else ())
        if all(isinstance(line[name], (int, float)) and line[name] in (0, 1) for line in lines)
    ]
    order = [name for name in PREFERRED if name in verdicts] + verdicts
    if wanted and wanted in verdicts:
        return wanted, lines
    if wanted or wanted_filter or not order:
        raise ConfigError(
            f"tasks.{config.name}.metric is {config.metric!r}; right or wrong per item are only "
            f"{verdicts} (filters: {filters}). An average of other metrics cannot be compared "
            "item by item."
        )
    return order[0], lines


def _read_output(
    line: dict[str, Any], own: bool, fate: Sent | None
) -> tuple[str, str | None, str | None]:
    """Return (output, answer found in it, reason when there is none)."""
    if fate is None:  # a multiple-choice item: what the model finds likeliest
        scores = [response[0][0] for response in line["resps"]]
        best = max(range(len(scores)), key=scores.__getitem__)
        option = str(line["arguments"][best][-1])
        return option, option.strip(), None
    output = str(line["resps"][0][0])
    found = line["filtered_resps"][0]
    if not own:
        return output, found if isinstance(found, str) and found != output else None, None
    value, reason = found
    if value is not None or fate.finished:
        return output, value, reason
    return output, None, f"{reason}; the output ran into its limit of {fate.budget} tokens"


def _gold(line: dict[str, Any]) -> str:
    target, options = line["target"], line["arguments"]
    if isinstance(target, int) and len(options) > 1 and 0 <= target < len(options):
        return str(options[target][-1]).strip()
    return str(target)


def unique_id(text: str, seen: dict[str, int]) -> str:
    """Return a hash of `text`, the same in every run; repeated texts get -2, -3, in order."""
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    seen[digest] = seen.get(digest, 0) + 1
    return digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
