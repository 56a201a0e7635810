"""One arm over benchmarks: known accuracies, what is kept, what is reused, and wrong calls."""

import ast
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from evaluation_support import REPOSITORY, oracle, run, synthetic_oracle, write_jsonl

from wemask.errors import ConfigError, RunFolderError
from wemask.evaluate import evaluation
from wemask.evaluate.evaluation import Sample, TaskConfig, check_tasks, evaluate_arm
from wemask.evaluate.tasks import loading


def test_an_oracle_gets_exactly_its_known_accuracy(tiny: Any, tmp_path: Path) -> None:
    right = {0, 2, 3, 7, 8, 11, 12}
    model = synthetic_oracle(tiny, 20, right)
    (result,) = run(model, tiny, [TaskConfig(name="synthetic", limit=20)], tmp_path).values()
    assert [sample["correct"] for sample in result.samples] == [i in right for i in range(20)]
    assert result.accuracy == 7 / 20
    assert (result.metric, result.fewshot, result.note) == ("exact_match", 0, None)
    assert result.extraction_failures == 0


def test_samples_are_complete_and_parseable(tiny: Any, tmp_path: Path) -> None:
    (result,) = run(
        synthetic_oracle(tiny, 9, {1}),
        tiny,
        [TaskConfig(name="synthetic")],
        tmp_path,
        limit=9,
        arm="sft",
    ).values()
    assert result.path == tmp_path / "eval" / "synthetic" / "samples.jsonl"
    lines = [json.loads(line) for line in result.path.read_text("utf-8").splitlines()]
    assert lines == result.samples
    assert len(lines) == 9
    assert len({line["id"] for line in lines}) == 9
    for line in lines:
        assert list(line) == list(get_type_hints(Sample))
        assert (line["arm"], line["task"]) == ("sft", "synthetic")
    assert sorted(p.name for p in result.path.parent.iterdir()) == ["meta.json", "samples.jsonl"]


def test_ids_are_the_same_in_every_arm_and_under_every_limit(tiny: Any, tmp_path: Path) -> None:
    task = [TaskConfig(name="synthetic", max_new_tokens=1)]
    (a,) = run(tiny.model, tiny, task, tmp_path / "a", limit=5).values()
    model = synthetic_oracle(tiny, 3, set())
    (b,) = run(model, tiny, task, tmp_path / "b", limit=3, arm="sft").values()
    assert [s["id"] for s in b.samples] == [s["id"] for s in a.samples][:3]
    assert b.template_sha256 == a.template_sha256


def test_odd_output_survives_the_file(tiny: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "g.jsonl", [{"question": "Odd?", "answer": "#### 3"}])
    text = "one\u2028two\nthree \x07 \u00e9 3"
    task = TaskConfig(name="gsm8k", path=str(path))
    model = oracle(tiny, {"Odd?": text})
    (result,) = run(model, tiny, [task], tmp_path / "run").values()
    assert result.samples[0]["output"] == text
    (again,) = run(model, tiny, [task], tmp_path / "run").values()
    assert again.reused
    assert again.samples == result.samples


def test_a_finished_task_is_read_back(tiny: Any, tmp_path: Path) -> None:
    model = synthetic_oracle(tiny, 4, {0, 1})
    task = [TaskConfig(name="synthetic", limit=4)]
    (first,) = run(model, tiny, task, tmp_path).values()
    (second,) = run(model, tiny, task, tmp_path).values()
    assert model.calls == 4
    assert (first.reused, second.reused) == (False, True)
    for field in fields(first):
        if field.name != "reused":
            assert getattr(second, field.name) == getattr(first, field.name)


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "g"},
        {"limit": 2},
        {"arm": "sft"},
        {"batch_size": 3},
        {"tasks": [TaskConfig(name="synthetic", limit=3, max_new_tokens=50)]},
        {"tasks": [TaskConfig(name="synthetic", limit=3, instruction=" Why?")]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_could_change_the_result_runs_it_again(
    tiny: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    model = synthetic_oracle(tiny, 3, {0})
    settings: dict[str, Any] = {"tasks": [TaskConfig(name="synthetic", limit=3)]}
    run(model, tiny, folder=tmp_path, **settings)
    before = model.calls
    (result,) = run(model, tiny, folder=tmp_path, **(settings | change)).values()
    assert not result.reused
    assert model.calls > before


def test_other_items_run_again_and_a_moved_file_does_not(tiny: Any, tmp_path: Path) -> None:
    rows = [{"question": "A?", "answer": "1"}, {"question": "B?", "answer": "2"}]
    model = oracle(tiny, {"A?": "1", "B?": "2"})

    def again(path: Path) -> bool:
        task = TaskConfig(name="gsm8k", path=str(path))
        return run(model, tiny, [task], tmp_path / "run")["gsm8k"].reused

    assert not again(write_jsonl(tmp_path / "one.jsonl", rows))
    assert again(write_jsonl(tmp_path / "two.jsonl", rows))
    rows[1]["answer"] = "3"
    assert not again(write_jsonl(tmp_path / "one.jsonl", rows))


def retold(meta: bytes, **result: Any) -> bytes:
    values = json.loads(meta)
    return json.dumps(values | {"result": values["result"] | result}).encode()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("samples.jsonl", lambda content: content[:-40]),
        ("samples.jsonl", lambda content: content.replace(b"So it is", b"So it Is", 1)),
        ("meta.json", lambda content: content[:-40]),
        ("meta.json", lambda content: b"[" * 100_000),
        ("meta.json", lambda content: b"\x80"),
        ("meta.json", lambda content: b"5"),
        ("meta.json", lambda content: retold(content, fewshot=None, seconds="long")),
        ("meta.json", lambda content: retold(content, seconds=-1.0)),
    ],
)
def test_a_damaged_result_is_set_aside_and_asked_again(
    tiny: Any, tmp_path: Path, name: str, damage: Any
) -> None:
    model, said = synthetic_oracle(tiny, 3, {0}), list[str]()
    task = [TaskConfig(name="synthetic", limit=3)]
    (first,) = run(model, tiny, task, tmp_path).values()
    path = first.path.with_name(name)
    path.write_bytes(damage(path.read_bytes()))
    damaged = path.read_bytes()
    (second,) = run(model, tiny, task, tmp_path, say=said.append).values()
    assert (second.reused, second.samples) == (False, first.samples)
    assert str(path) in said[0] and "kept as *.damaged" in said[0]
    assert path.with_name(f"{name}.damaged").read_bytes() == damaged
    assert run(model, tiny, task, tmp_path, say=None)["synthetic"].reused


def test_only_what_is_missing_runs(tiny: Any, tmp_path: Path) -> None:
    """A run that was stopped between two tasks goes on with the second."""
    path = write_jsonl(tmp_path / "g.jsonl", [{"question": "A?", "answer": "1"}])
    first, second = TaskConfig(name="synthetic", limit=2), TaskConfig(name="gsm8k", path=str(path))
    model = synthetic_oracle(tiny, 2, {0})
    run(model, tiny, [first], tmp_path)
    model.says["A?"] = "1"
    results = run(model, tiny, [first, second], tmp_path)
    assert [result.reused for result in results.values()] == [True, False]
    assert model.calls == 3


def test_a_result_that_cannot_be_written_is_an_error(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "eval").write_text("a file where the folder should be")
    with pytest.raises(RunFolderError, match="cannot be written"):
        run(
            synthetic_oracle(tiny, 1, set()),
            tiny,
            [TaskConfig(name="synthetic")],
            tmp_path,
            limit=1,
        )


def test_the_scoring_files_are_all_of_them() -> None:
    """A change in any of our files that scoring imports must make finished results stale."""
    package, found = REPOSITORY / "wemask" / "evaluate", set[str]()
    ahead = {"scoring/answers.py", "tasks/functions.py", "tasks/xstest.py"}
    others = {"tasks/task_config.py"}  # none decides what is right
    while ahead:
        name = ahead.pop()
        found.add(name)
        for node in ast.walk(ast.parse((package / name).read_text("utf-8"))):
            room = "wemask.evaluate."  # what is imported of others does not decide what is right
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(room):
                module = str(node.module).removeprefix(room).replace(".", "/")
                files = [f"{module}.py", *(f"{module}/{alias.name}.py" for alias in node.names)]
                ahead |= {file for file in files if (package / file).exists()}
        ahead -= found | others
    read = {"tasks/judging.py", "scoring/refusal_words.txt"}  # by those that import does not show
    assert found | read == set(evaluation.SCORING)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"limit": 0}, "limit is a whole number >= 1 or null, got 0"),
        ({"limit": 0.5}, "got 0.5"),
        ({"batch_size": 0}, "batch_size"),
        ({"fingerprint": ""}, "fingerprint is empty"),
    ],
    ids=str,
)
def test_a_wrong_call_is_refused(
    tiny: Any, tmp_path: Path, kwargs: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        run(tiny.model, tiny, [TaskConfig(name="synthetic")], tmp_path, **kwargs)


def test_a_task_twice_is_refused(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="named twice: synthetic"):
        run(tiny.model, tiny, [TaskConfig(name="synthetic")] * 2, tmp_path)


def test_chat_needs_a_template(fresh_tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = fresh_tiny()
    tokenizer.chat_template = None
    task = TaskConfig(name="synthetic", limit=1, max_new_tokens=1)
    wanted = TaskConfig(**{**vars(task), "chat": True})
    with pytest.raises(ConfigError, match=r"tasks\.synthetic\.chat=false"):
        evaluate_arm(model, tokenizer, [wanted], arm="a", folder=tmp_path, fingerprint="f")
    results = evaluate_arm(
        model, tokenizer, [task], arm="a", folder=tmp_path, fingerprint="f", progress=False
    )
    assert results["synthetic"].samples[0]["prompt"].startswith("Question: ")


def test_what_was_checked_is_not_loaded_again(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, real = list[str](), loading.load_task

    def count(config: TaskConfig, *, chat: bool) -> loading.LoadedTask:
        loaded.append(config.name)
        return real(config, chat=chat)

    monkeypatch.setattr(loading, "load_task", count)
    tasks = [TaskConfig(name="synthetic", limit=3)]
    load = check_tasks(tasks)
    model = synthetic_oracle(tiny, 3, {0, 2})
    for arm in ("a", "b"):
        result = run(model, tiny, tasks, tmp_path / arm, arm=arm, load=load)
        assert result["synthetic"].scores == [1.0, 0.0, 1.0]
    assert loaded == ["synthetic"]


def test_importing_the_module_does_not_import_lm_eval() -> None:
    code = (
        "import sys, wemask.evaluate.evaluation;"
        "print('lm_eval' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert done.stdout.split() == ["False", "False"]
