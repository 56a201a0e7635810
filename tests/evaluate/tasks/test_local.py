"""Local files for lm-eval's own benchmarks, by their real task files: a group, options, IFEval."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import lm_eval
import nltk
import pytest
from evaluation_support import oracle, run, write_jsonl
from lm_eval.tasks import TaskManager

from wemask.errors import ConfigError, DataError
from wemask.evaluate.evaluation import TaskConfig, check_tasks
from wemask.evaluate.tasks import loading
from wemask.evaluate.tasks.local import read_rows

MMLU = [
    {"question": "Bones?", "subject": "anatomy", "choices": list("pqrs"), "answer": 1},
    {"question": "Stars?", "subject": "astronomy", "choices": list("tuvw"), "answer": 3},
    {"question": "Veins?", "subject": "anatomy", "choices": list("abcd"), "answer": 0},
]


@pytest.fixture(autouse=True)
def theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's real files of four benchmarks: all of them would take 13 s to read."""
    assert lm_eval.__file__ is not None
    folder = Path(lm_eval.__file__).parent / "tasks"
    paths = [folder / name for name in ("mmlu/default", "mathqa", "arc", "ifeval")]
    manager = TaskManager(include_path=list(map(str, paths)), include_defaults=False)
    monkeypatch.setattr(loading, "_all_of_lm_eval", lambda: manager)


def mmlu(path: Path, **settings: Any) -> TaskConfig:
    return TaskConfig(name="mmlu", path=str(path), chat=False, **settings)


def test_rows_of_a_group_go_to_the_subtask_of_their_subject(tiny: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "m.jsonl", MMLU)
    result = run(tiny.model, tiny, [mmlu(path)], tmp_path / "run")["mmlu"]
    # lm-eval's order: astronomy and anatomy are both of stem, by name
    assert result.clusters == ["mmlu_anatomy", "mmlu_anatomy", "mmlu_astronomy"]
    assert [s["gold"] for s in result.samples] == ["B", "A", "D"]
    asked = result.samples[2]["prompt"]
    assert asked.startswith("The following are multiple choice questions (with answers) about astr")
    assert asked.endswith("Stars?\nA. t\nB. u\nC. v\nD. w\nAnswer:")
    assert result.note is not None
    assert "no items of 55 of 57 subjects: abstract_algebra, college_biology" in result.note
    assert set(result.metrics) == {"acc"}


def test_a_limit_counts_for_every_subject(tiny: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "m.jsonl", MMLU)
    result = run(tiny.model, tiny, [mmlu(path, limit=1)], tmp_path / "run")["mmlu"]
    assert result.clusters == ["mmlu_anatomy", "mmlu_astronomy"]


def test_a_csv_file_gives_the_same_items(tiny: Any, tmp_path: Path) -> None:
    lines = write_jsonl(tmp_path / "m.jsonl", MMLU)
    table = tmp_path / "m.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(MMLU[0]))
        writer.writeheader()
        writer.writerows(row | {"choices": json.dumps(row["choices"])} for row in MMLU)
    first = run(tiny.model, tiny, [mmlu(lines)], tmp_path / "a")["mmlu"]
    second = run(tiny.model, tiny, [mmlu(table)], tmp_path / "b")["mmlu"]
    assert second.samples == first.samples
    assert second.conditions == first.conditions


def test_cells_of_a_table_are_json_where_they_can_be(tmp_path: Path) -> None:
    cells = ["[" * 100_000, "[" * 200 + "]" * 200, "[x", "{}"]
    with (tmp_path / "m.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["a"], *([cell] for cell in cells)])
    assert [row["a"] for row in read_rows(str(tmp_path / "m.csv"))] == [*cells[:3], {}]
    (tmp_path / "m.tsv").write_text("a\tb\n[1, 2]\t[sic] a text\n")
    (row,) = read_rows(str(tmp_path / "m.tsv"))
    assert (row["a"], row["b"]) == ([1, 2], "[sic] a text")


def test_a_pipe_is_no_file_of_items(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.jsonl")
    with pytest.raises(DataError, match="a pipe or a device"):
        check_tasks([mmlu(tmp_path / "m.jsonl")])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"subject": "anatomi"}, r"line 2: subject 'anatomi' .* 57 .*Did you mean 'anatomy'"),
        ({"answer": 4}, r"line 2: the answer 4 is none of \['A', 'B', 'C', 'D'\]"),
        ({"answer": "E"}, r"the answer 'E' is none of"),
    ],
    ids=["subject", "number", "letter"],
)
def test_a_row_of_no_subject_or_option_is_named(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    kind = type(change.get("answer", 0))  # a column holds numbers or letters
    rows = [MMLU[0] | {"answer": kind("1" if kind is int else "B")}, MMLU[2] | change]
    path = write_jsonl(tmp_path / "m.jsonl", rows)
    with pytest.raises(DataError, match=words):
        check_tasks([mmlu(path)])


def test_a_group_without_subjects_in_the_file_is_refused(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "subject"} for row in MMLU]
    with pytest.raises(DataError, match="no column 'subject'"):
        check_tasks([mmlu(write_jsonl(tmp_path / "m.jsonl", rows))])
    path = write_jsonl(tmp_path / "n.jsonl", MMLU)
    with pytest.raises(ConfigError, match="would show test items"):
        check_tasks([mmlu(path, fewshot=5)])


def test_mathqa_and_arc_read_local_files(tiny: Any, tmp_path: Path) -> None:
    sums = [
        {
            "Problem": "two and two ?",
            "options": "a ) 3 , b ) 4 , c ) 5 , d ) 6 , e ) 7",
            "correct": "b",
        }
    ]
    science = [
        {
            "id": "q",
            "question": "What is wet?",
            "choices": {"text": ["sand", "water"], "label": ["A", "B"]},
            "answerKey": "B",
        }
    ]
    tasks = [
        TaskConfig(name="mathqa", path=str(write_jsonl(tmp_path / "q.jsonl", sums))),
        TaskConfig(
            name="arc_challenge",
            path=str(write_jsonl(tmp_path / "a.jsonl", science)),
            metric="acc_norm",
        ),
    ]
    results = run(tiny.model, tiny, tasks, tmp_path / "run")
    assert results["mathqa"].samples[0]["gold"] == "4"
    assert results["arc_challenge"].samples[0]["gold"] == "water"
    assert results["arc_challenge"].metric == "acc_norm"
    for result in results.values():
        assert set(result.metrics) == {"acc", "acc_norm"}
        assert result.clusters == [None]


def has_sentence_model() -> bool:
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


@pytest.mark.skipif(not has_sentence_model(), reason="nltk's punkt_tab is not in NLTK_DATA")
def test_ifeval_has_its_four_numbers(tiny: Any, tmp_path: Path) -> None:
    assert os.environ.get("NLTK_DATA") or nltk.data.path
    rows = [
        {
            "prompt": "No commas, ten words.",
            "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
            "kwargs": [{}, {"relation": "at least", "num_words": 10}],
        },
        {
            "prompt": "All in quotes.",
            "instruction_id_list": ["startend:quotation"],
            "kwargs": [{}],
        },
    ]
    path = write_jsonl(tmp_path / "i.jsonl", rows)
    says = {"commas": "four words without one", "quotes": 'Sure:\n"a sentence in quotes"'}
    task = TaskConfig(name="ifeval", path=str(path))
    result = run(oracle(tiny, says), tiny, [task], tmp_path / "run")["ifeval"]
    first, second = (sample["metrics"] for sample in result.samples)
    assert first["inst_level_strict_acc"] == [1.0, 0.0]
    assert (second["prompt_level_strict_acc"], second["prompt_level_loose_acc"]) == (0.0, 1.0)
    assert result.metric == "prompt_level_strict_acc"
    assert result.metrics == {
        "prompt_level_strict_acc": 0.0,
        "inst_level_strict_acc": 1 / 3,
        "prompt_level_loose_acc": 0.5,
        "inst_level_loose_acc": 2 / 3,
    }
