"""Evaluated runs: which are one arm, which may be compared, and what is found in folders."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compared_runs import entry, result

from wemask.compare.evaluated_runs import check_comparable, group, read_runs, tasks_of
from wemask.errors import DataError
from wemask.evaluate.tasks.stored import write_result


def test_arms_of_one_name_are_told_apart_by_what_differs() -> None:
    doses = itertools.product((0.01, 0.1), (0.5, 1.0))
    entries = [
        entry("training_free", [True], None, operator={"rate": r, "strength": s, "dims": "me_norm"})
        for r, s in doses
    ]
    assert list(group([entry("base", [True]), *entries])) == [
        "base",
        "training_free (rate=0.01, strength=0.5)",
        "training_free (rate=0.01, strength=1.0)",
        "training_free (rate=0.1, strength=0.5)",
        "training_free (rate=0.1, strength=1.0)",
    ]


def test_the_same_arm_twice_is_refused_and_read_twice_is_one() -> None:
    one, other = entry("base", [True]), entry("base", [True])
    assert len(group([one, one])["base"]) == 1
    with pytest.raises(DataError, match="are the same arm"):
        group([one, other])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"items_sha256": "j"}, "items_sha256 is i in base, j in sft"),
        ({"batch_size": 4}, "batch_size is 8 in base, 4 in sft"),
        ({"versions": {"torch": "1"}}, "versions.torch is None in base, 1 in sft"),
    ],
)
def test_another_engine_or_other_items_are_no_comparison(changed: Any, words: str) -> None:
    entries = [entry("base", [True]), entry("sft", [], 0, result([True], **changed))]
    with pytest.raises(DataError, match=words):
        check_comparable(group(entries))
    check_comparable(group([entries[0], entry("sft", [False], 0)]))


def test_other_or_doubled_items_are_no_comparison() -> None:
    with pytest.raises(DataError, match="other items"):
        check_comparable(group([entry("base", [True]), entry("sft", [True, False], 0)]))
    twice = result([True, True])
    twice.samples[1].update(id="0", draw=0)  # the same id again reads as a second draw
    with pytest.raises(DataError, match="other items"):
        check_comparable(group([entry("base", [True, True]), entry("sft", [], 0, twice)]))


def test_only_an_aa_arm_may_have_batches_of_another_size() -> None:
    again = entry("base_again", [], None, result([True], batch_size=4))
    check_comparable(group([entry("base", [True]), again]))


def stored(folder: Path, arm: str, correct: list[bool]) -> Path:
    """A finished task `t` of an arm, in `folder`/eval/t."""
    made, about = result(correct, task={"name": "t"}), entry(arm, []).about
    write_result(replace(made, path=folder / "eval" / "t" / "samples.jsonl", about=dict(about)))
    return folder


def test_a_run_folder_holds_its_arm_and_those_that_share_its_run(tmp_path: Path) -> None:
    stored(tmp_path, "sft", [True, False])
    stored(tmp_path / "softened", "sft_then_wemask", [True, True])
    entries, documents = read_runs([tmp_path])
    assert [(run.arm, run.results["t"].scores) for run in entries] == [
        ("sft", [1.0, 0.0]),
        ("sft_then_wemask", [1.0, 1.0]),
    ]
    assert documents == []
    assert tasks_of(group(entries)) == ["t"]


def test_a_folder_without_results_says_what_was_sought(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"results\.json or eval/\*/meta\.json, and has neither"):
        read_runs([tmp_path])


def test_results_that_do_not_say_whose_they_are_are_refused(tmp_path: Path) -> None:
    meta = stored(tmp_path, "sft", [True]) / "eval" / "t" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"about": {}}))
    with pytest.raises(DataError, match="does not say which arm it is of"):
        read_runs([tmp_path])
