"""The tasks of ours that read files of their own form: AIME, chat records; rows that do not fit."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_support import ask, oracle, run, write_jsonl

from wemask.errors import DataError
from wemask.evaluate.evaluation import TaskConfig, check_tasks


def test_aime_answers_are_whole_numbers(tiny: Any, tmp_path: Path) -> None:
    rows = [{"problem": "first?", "answer": "033"}, {"problem": "second?", "answer": 204}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    says = {"first?": "So \\boxed{33}.", "second?": "It is 204, so \\boxed{203}."}
    result = ask(tiny, tmp_path, "aime24", path, says)
    assert [s["gold"] for s in result.samples] == ["33", "204"]
    assert result.scores == [1.0, 0.0]
    assert "put your final answer within \\boxed{}" in result.samples[0]["prompt"]


@pytest.mark.parametrize("answer", ["1000", "-1", "7.5", "", "seven", "٣"])
def test_other_answers_are_no_aime_problem(tmp_path: Path, answer: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"problem": "?", "answer": answer}])
    with pytest.raises(DataError, match=r"line 1: expected a whole number 0 to 999"):
        check_tasks([TaskConfig(name="aime24", path=str(path))])


def chat_record(content: str, truth: str) -> dict[str, Any]:
    return {
        "data_source": "openai/gsm8k",
        "prompt": [{"content": content, "role": "user"}],
        "reward_model": {"ground_truth": truth, "style": "rule"},
        "extra_info": {"answer": truth, "index": 0, "response": "So it is."},
    }


def test_a_chat_record_is_asked_verbatim(tiny: Any, tmp_path: Path) -> None:
    text = 'A robe takes 2 bolts. How many?  Let\'s output the final answer after "####".'
    records = [chat_record(text, "3"), chat_record("How many pens?", "1,234")]
    path = tmp_path / "cot_test.parquet"
    pq.write_table(pa.Table.from_pylist(records), path)
    says = {"robe": "2 + 1 = 3\n#### 3", "pens": "#### 1235"}
    result = ask(tiny, tmp_path, "gsm8k_cot", path, says)
    assert result.samples[0]["prompt"] == f"<s><|user|>{text}<|assistant|>"
    assert result.scores == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("gsm8k_cot", {"prompt": "How many?"}, r"one user turn in 'prompt', found 'How many\?'"),
        ("gsm8k_cot", {"prompt": ["How many?"]}, r"one user turn in 'prompt', found \['How many"),
        ("gsm8k_cot", {"prompt": [{"role": "system", "content": "x"}] * 2}, r"'system', 'system'"),
        ("gsm8k_cot", {"reward_model": "3"}, "an object in 'reward_model'"),
        ("gsm8k_cot", {"reward_model": {"truth": "3"}}, "Did you mean 'truth'|no column"),
        ("xstest_safe", {"label": "save"}, "expected label safe or unsafe, found 'save'"),
        ("xstest_safe", {"label": "unsafe"}, "no items"),
        ("xstest_unsafe", {"prompt": " "}, "no items|text as the question"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
def test_a_row_that_does_not_fit_is_named(
    tmp_path: Path, name: str, change: dict[str, Any], words: str
) -> None:
    row = {"type": "t", "label": "safe", **chat_record("How many?", "3")}
    if name != "gsm8k_cot":
        row["prompt"] = "How?"
    path = write_jsonl(tmp_path / "rows.jsonl", [row | change])
    with pytest.raises(DataError, match=words):
        check_tasks([TaskConfig(name=name, path=str(path))])


def test_what_is_not_on_the_hub_asks_for_a_file() -> None:
    with pytest.raises(DataError, match=r"hub has no data.*tasks\.gsm8k_cot\.path=FILE\.parquet"):
        check_tasks([TaskConfig(name="gsm8k_cot")])


def test_an_answer_in_the_prompt_alone_is_no_answer(tiny: Any, tmp_path: Path) -> None:
    row = {"question": "Is it #### 7, or \\boxed{7}?", "answer": "#### 7"}
    path = write_jsonl(tmp_path / "g.jsonl", [row])
    for i, says in enumerate(["", "I do not know.", "You asked for it.", "\\boxed{}"]):
        result = ask(tiny, tmp_path / str(i), "gsm8k", path, {"Is it": says})
        assert result.scores == [0.0], says
        assert result.samples[0]["extracted"] is None
        assert result.extraction_failures == 1


def test_gsm8k_takes_the_gold_behind_the_hashes(tiny: Any, tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "g.jsonl",
        [
            {"question": "A?", "answer": "500 + 600 = <<500+600=1100>>1100\n#### 1,100"},
            {"question": "B?", "answer": 5},
        ],
    )
    task = TaskConfig(name="gsm8k", path=str(path), instruction=" Think.")
    model = oracle(tiny, {"A? Think.": "#### 1100", "B? Think.": "#### 6"})
    (result,) = run(model, tiny, [task], tmp_path / "run").values()
    assert [sample["gold"] for sample in result.samples] == ["1,100", "5"]
    assert [sample["correct"] for sample in result.samples] == [True, False]
    assert result.source == str(path)


def test_math_is_judged_by_value_and_failures_keep_their_reason(tiny: Any, tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "math.jsonl",
        [
            {"problem": "half?", "answer": "\\frac{1}{2}"},
            {"problem": "interval?", "answer": "[1,2]"},
            {"problem": "nothing?", "answer": "7"},
            {"problem": "substring?", "answer": "7"},
        ],
    )
    says = {
        "half?": "It is \\boxed{0.5}.",
        "interval?": "\\boxed{[1,2]}",
        "nothing?": "\\boxed{}",
        "substring?": "\\boxed{77}",
    }
    task = TaskConfig(name="math500", path=str(path))
    (result,) = run(oracle(tiny, says), tiny, [task], tmp_path / "run").values()
    assert [sample["correct"] for sample in result.samples] == [True, True, False, False]
    assert [sample["extracted"] for sample in result.samples] == ["0.5", "[1,2]", None, "77"]
    assert [sample["reason"] is None for sample in result.samples] == [True, True, False, True]
    assert result.extraction_failures == 1
    assert "\\boxed{}" in result.samples[0]["prompt"]
