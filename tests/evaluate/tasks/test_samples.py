"""From lm-eval's log to our samples, on log lines made by hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wemask.errors import ConfigError
from wemask.evaluate.tasks.samples import Sent, read_log, unique_id
from wemask.evaluate.tasks.task_config import TaskConfig

TASK = TaskConfig(name="colours")
SENT = {"Sky?": Sent(text="<s>Sky?", ids=[1], budget=9, cut=False, finished=True)}


def choice(scores: list[float], target: int, doc: Any = "sky", **metrics: Any) -> dict[str, Any]:
    """A line of multiple choice between red and blue."""
    return {
        "doc": doc,
        "doc_id": 0,
        "filter": "none",
        "arguments": [("Sky?", " red"), ("Sky?", " blue")],
        "resps": [[(score, False)] for score in scores],
        "filtered_resps": scores,
        "target": target,
        "metrics": list(metrics),
        **metrics,
    }


def generated(output: str, found: Any, name: str = "none", **metrics: Any) -> dict[str, Any]:
    """A line of a generated answer, and what the filter `name` found in it."""
    return {
        "doc": {"id": "7", "cluster": "c"},
        "doc_id": 0,
        "filter": name,
        "arguments": [("Sky?", {})],
        "resps": [[output]],
        "filtered_resps": [found],
        "target": "blue",
        "metrics": list(metrics),
        **metrics,
    }


def read(*lines: dict[str, Any], own: bool = False, sent: Any = SENT, **task: Any) -> Any:
    config = TaskConfig(name="colours", **task)
    metric, samples = read_log({"colours": list(lines)}, config, arm="base", own=own, sent=sent)
    return metric, samples


def test_a_choice_is_the_likeliest_option() -> None:
    line = choice([-3.0, -1.0], 0, acc=0.0, acc_norm=1.0)
    metric, (sample,) = read(line, sent={})
    assert metric == "acc"
    assert (sample["output"], sample["extracted"], sample["gold"]) == (" blue", "blue", "red")
    assert (sample["correct"], sample["prompt"], sample["cluster"]) == (False, "Sky?", None)
    assert sample["metrics"] == {"acc": 0.0, "acc_norm": 1.0}
    chosen, (again,) = read(line, sent={}, metric="acc_norm")
    assert (chosen, again["correct"]) == ("acc_norm", True)


def test_subtasks_are_clusters_and_their_metrics_are_all_named() -> None:
    logged = {
        "a": [choice([0.0, -1.0], 0, acc=1.0)],
        "b": [choice([0.0, -1.0], 0, exact_match=1.0)],
    }
    metric, samples = read_log(logged, TASK, arm="base", own=False, sent={})
    assert metric == "acc, exact_match"
    assert [sample["cluster"] for sample in samples] == ["a", "b"]
    assert len({sample["id"] for sample in samples}) == 2


def test_a_task_of_ours_has_its_own_ids_clusters_and_answers() -> None:
    _, (sample,) = read(generated("It is blue.", ("blue", None), exact_match=1.0), own=True)
    assert (sample["id"], sample["cluster"], sample["prompt"]) == ("7", "c", "<s>Sky?")
    assert (sample["extracted"], sample["reason"]) == ("blue", None)


def test_an_output_that_ran_out_says_so_where_nothing_was_found() -> None:
    sent = {"Sky?": Sent(text="Sky?", ids=[1], budget=9, cut=False)}
    line = generated("It is", (None, "no number found"), exact_match=0.0)
    _, (sample,) = read(line, own=True, sent=sent)
    assert sample["reason"] == "no number found; the output ran into its limit of 9 tokens"
    assert sample["extracted"] is None


def test_other_filters_keep_their_numbers_beside_the_chosen_one() -> None:
    lines = [
        generated("It is 2", "[invalid]", "strict", exact_match=0.0, words=[1, 0], text="x"),
        generated("It is 2", "2", "loose", exact_match=1.0, words=[1, 1], text="x"),
    ]
    metric, (sample,) = read(*lines)
    assert (metric, sample["correct"], sample["extracted"]) == ("exact_match", False, "[invalid]")
    assert sample["metrics"] == {
        "exact_match": 0.0,
        "words": [1.0, 0.0],
        "exact_match,loose": 1.0,
        "words,loose": [1.0, 1.0],
    }
    _, (loose,) = read(*lines, metric="exact_match,loose")
    assert (loose["correct"], loose["extracted"]) == (True, "2")


def test_an_average_is_no_verdict() -> None:
    with pytest.raises(ConfigError, match=r"metric is None; .* only \[\] \(filters: \['none'\]\)"):
        read(generated("x", "x", bleu=0.4))
    with pytest.raises(ConfigError, match=r"metric is 'bleu'; .* only \['acc'\]"):
        read(generated("x", "x", bleu=0.4, acc=1.0), metric="bleu")


@given(texts=st.lists(st.text(max_size=3), max_size=20))
def test_ids_are_unique_also_for_repeated_texts(texts: list[str]) -> None:
    seen: dict[str, int] = {}
    ids = [unique_id(text, seen) for text in texts]
    assert len(set(ids)) == len(ids)
    assert ids[:1] == [unique_id(text, {}) for text in texts[:1]]
