"""Benchmarks by name: ours, lm-eval's, local files, wrong settings, and the Hydra group."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from evaluation_support import oracle, run, write_jsonl
from langdetect import detect_langs
from lm_eval.tasks import TaskManager

from wemask.errors import ConfigError, DataError
from wemask.evaluate.evaluation import OWN_TASKS, TaskConfig, check_tasks
from wemask.evaluate.tasks import loading

CHOICE = {
    "task": "colours",
    "dataset_path": "nobody/colours",
    "test_split": "test",
    "training_split": "train",
    "output_type": "multiple_choice",
    "doc_to_text": "{{ask}}",
    "doc_to_choice": "{{options}}",
    "doc_to_target": "{{label}}",
    "metric_list": [
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
    ],
}
ROWS = [
    {"ask": "The sky is", "options": ["blue", "a very long green thing"], "label": 0},
    {"ask": "Tom has 3 apples. Grass is", "options": ["blue", "green", "red"], "label": 2},
    {"ask": "Snow is", "options": ["black", "white"], "label": 1},
]


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of task files that stands for all of lm-eval's, which takes 13 s to read."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "colours.yaml").write_text(yaml.safe_dump(CHOICE))
    write_jsonl(tmp_path / "rows.jsonl", ROWS)

    def manager() -> TaskManager:
        return TaskManager(include_path=folder, include_defaults=False)

    monkeypatch.setattr(loading, "_all_of_lm_eval", manager)
    return tmp_path


def log_probability(tiny: Any, prompt: str, option: str) -> float:
    """Sum of the option's token log probabilities, one sequence, no batch."""
    encode = tiny.tokenizer.encode
    start = len(encode(prompt))
    ids = encode(f"{prompt} {option}")
    with torch.no_grad():
        scores = tiny.model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return float(sum(scores[i - 1, ids[i]] for i in range(start, len(ids))))


def test_multiple_choice_takes_the_likeliest_option(tiny: Any, foreign: Path) -> None:
    task = TaskConfig(name="colours", path=str(foreign / "rows.jsonl"), chat=False)
    (result,) = run(tiny.model, tiny, [task], foreign / "run").values()
    assert result.metric == "acc"
    for sample, row in zip(result.samples, ROWS, strict=True):
        options = row["options"]
        best = max(options, key=lambda option: log_probability(tiny, row["ask"], option))
        assert sample["extracted"] == best
        assert sample["gold"] == options[row["label"]]
        assert sample["correct"] == (best == sample["gold"])
        assert sample["prompt"] == row["ask"]
    chosen = TaskConfig(**{**vars(task), "metric": "acc_norm"})
    assert run(tiny.model, tiny, [chosen], foreign / "run")["colours"].metric == "acc_norm"


def test_a_group_is_one_task_with_all_its_items(
    tiny: Any, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(
        datasets, "load_dataset", lambda **_: dict.fromkeys(("train", "test"), table)
    )
    table = datasets.Dataset.from_list(ROWS)
    (foreign / "foreign" / "other.yaml").write_text(yaml.safe_dump({**CHOICE, "task": "others"}))
    group = {"group": "both", "task": ["colours", "others"]}
    (foreign / "foreign" / "group.yaml").write_text(yaml.safe_dump(group))
    results = run(tiny.model, tiny, [TaskConfig(name="both")], foreign / "run", limit=2)
    samples = results["both"].samples
    assert len(samples) == 4
    assert len({sample["id"] for sample in samples}) == 4
    assert {sample["task"] for sample in samples} == {"both"}
    assert results["both"].source == "hub: nobody/colours"


def test_filters_and_metrics_of_generated_answers(tiny: Any, foreign: Path) -> None:
    first = {"function": "take_first"}
    spec = {
        **{key: CHOICE[key] for key in ("dataset_path", "test_split")},
        "task": "digits",
        "output_type": "generate_until",
        "doc_to_text": "{{ask}}",
        "doc_to_target": "{{label}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 20},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [
            {"name": name, "filter": [{"function": "regex", "regex_pattern": pattern}, first]}
            for name, pattern in (("strict", "#### ([0-9])"), ("loose", "([0-9])"))
        ],
    }
    (foreign / "foreign" / "digits.yaml").write_text(yaml.safe_dump(spec))
    model = oracle(tiny, {"sky": "#### 1", "Grass": "it is 2", "Snow": "#### 1"})
    strict = TaskConfig(name="digits", path=str(foreign / "rows.jsonl"))
    loose = TaskConfig(**{**vars(strict), "metric": "exact_match,loose"})
    a = run(model, tiny, [strict], foreign / "a")["digits"]
    b = run(model, tiny, [loose], foreign / "b")["digits"]
    assert [sample["correct"] for sample in a.samples] == [False, False, True]
    assert [sample["correct"] for sample in b.samples] == [False, True, True]
    wrong = TaskConfig(**{**vars(strict), "metric": "bleu"})
    with pytest.raises(ConfigError, match=r"bleu.*exact_match.*strict.*loose"):
        run(model, tiny, [wrong], foreign / "c")


def test_data_out_of_reach_name_the_setting(foreign: Path) -> None:
    with pytest.raises(DataError, match=r"tasks\.colours\.path=FILE\.jsonl"):
        check_tasks([TaskConfig(name="colours")])
    with pytest.raises(DataError, match=r"tasks\.gsm8k\.path=FILE\.jsonl"):
        check_tasks([TaskConfig(name="gsm8k")])


def test_a_group_out_of_reach_says_what_helps(foreign: Path) -> None:
    (foreign / "foreign" / "other.yaml").write_text(yaml.safe_dump({**CHOICE, "task": "others"}))
    group = {"group": "both", "task": ["colours", "others"]}
    (foreign / "foreign" / "group.yaml").write_text(yaml.safe_dump(group))
    with pytest.raises(DataError, match=r"Run it once with a network.*tasks\.both\.path="):
        check_tasks([TaskConfig(name="both")])
    with pytest.raises(ConfigError, match="no subject tells the subtasks"):
        check_tasks([TaskConfig(name="both", path="rows.jsonl")])


def test_code_of_a_task_that_breaks_is_an_error_of_that_task(foreign: Path) -> None:
    spec = {key: value for key, value in CHOICE.items() if key != "doc_to_text"}
    text = yaml.safe_dump(spec | {"task": "broken"})
    (foreign / "foreign" / "broken.yaml").write_text(text + "doc_to_text: !function no_such.f\n")
    with pytest.raises(ConfigError, match=r"tasks\.broken cannot be set up here: ImportError"):
        check_tasks([TaskConfig(name="broken")])
    path = write_jsonl(foreign / "other.jsonl", [{"ask": "?", "options": [], "labels": 1}])
    with pytest.raises(DataError, match=r"tasks\.colours: .*other\.jsonl does not fit this task"):
        check_tasks([TaskConfig(name="colours", path=str(path))])


def test_ifeval_is_not_scored_without_its_sentence_model(
    foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk

    def missing(name: str) -> None:
        raise LookupError(name)

    (foreign / "foreign" / "i.yaml").write_text(yaml.safe_dump({**CHOICE, "task": "ifeval"}))
    monkeypatch.setattr(nltk.data, "find", missing)
    with pytest.raises(DataError, match=r"punkt_tab is missing.*NLTK_DATA"):
        check_tasks([TaskConfig(name="ifeval")])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "gsm9k"}, r"tasks\.gsm9k: no task .* Did you mean 'gsm8k'"),
        ({"name": "color"}, "Did you mean 'colours'"),
        ({"name": "colours", "instruction": "x"}, "only be set for tasks of ours"),
        ({"name": "colours", "path": "rows.jsonl", "fewshot": 2}, "would show test items"),
        ({"name": "gsm8k", "fewshot": 9}, "this task has 8 examples"),
        ({"name": "math500", "fewshot": 1}, "this task has 0 examples"),
        ({"name": "synthetic", "metric": "acc"}, "only exact_match"),
        ({"name": "xstest_safe", "metric": "refused"}, "only acc"),
        ({"name": "colours", "path": "rows.jsonl", "max_new_tokens": 9}, "generates no output"),
        (
            {"name": "colours", "path": "rows.jsonl", "n_samples": 2, "temperature": 1},
            "n_samples, temperature would touch nothing",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_settings_that_a_task_cannot_follow(
    foreign: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(foreign)
    with pytest.raises(ConfigError, match=words):
        check_tasks([TaskConfig(**settings)])


@pytest.mark.slow
def test_the_names_are_really_lm_evals() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'arc_challenge'"):
        check_tasks([TaskConfig(name="arc_chalenge")])
    with pytest.raises(DataError, match=r"tasks\.arc_challenge\.path"):
        check_tasks([TaskConfig(name="arc_challenge")])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("bad.jsonl", '{"question": "a", "answer": "1"}\n{"question": \n', r"bad\.jsonl, line 2"),
        ("list.jsonl", "[1, 2]\n", r"line 1 must hold an object, found list"),
        ("empty.jsonl", "", r"empty\.jsonl is empty"),
        ("columns.jsonl", '{"questions": "a", "answer": "1"}\n', "Did you mean 'questions'"),
        ("blank.jsonl", '\n{"question": " ", "answer": "1"}\n', "line 2: expected text"),
        ("gold.jsonl", '{"question": "a", "answer": "#### "}\n', "line 1: expected an answer"),
        ("null.jsonl", '{"question": "a", "answer": null}\n', "line 1: expected an answer"),
    ],
    ids=lambda value: str(value).partition(".")[0][:10],
)
def test_a_wrong_file_is_named_with_its_line(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"tasks\.gsm8k: .*{words}"):
        check_tasks([TaskConfig(name="gsm8k", path=str(tmp_path / name))])


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "gsm8k_test.jsonl").touch()
    with pytest.raises(DataError, match=r"Did you mean 'gsm8k_test\.jsonl'"):
        check_tasks([TaskConfig(name="gsm8k", path=str(tmp_path / "gsm8k_tst.jsonl"))])


def test_the_problems_of_all_tasks_come_together(tmp_path: Path) -> None:
    tasks = [TaskConfig(name=name, path=str(tmp_path / "no.jsonl")) for name in OWN_TASKS]
    with pytest.raises(DataError) as caught:
        check_tasks(tasks)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        f"tasks.{name}" for name in OWN_TASKS
    ]


def test_the_check_of_the_language_is_seeded() -> None:
    found = {str(detect_langs("Das ist a test, oui, de la casa")) for _ in range(8)}
    assert len(found) == 1, found
