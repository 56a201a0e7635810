"""Settings of a task: wrong ones, those of every file in conf/tasks, and the Hydra group."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluation_support import REPOSITORY
from hydra import compose, initialize_config_dir
from lm_eval.tasks._yaml_loader import load_yaml
from omegaconf import OmegaConf

from wemask.errors import ConfigError
from wemask.evaluate.evaluation import OWN_TASKS, TaskConfig, tasks_from_config
from wemask.evaluate.tasks.task_config import JUDGED_TASKS, TASK_FOLDER


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "../gsm8k"}, "name must be like .*got '../gsm8k'"),
        ({"limit": 0}, r"tasks\.gsm8k\.limit must be at least 1, got 0"),
        ({"limit": True}, "got True"),
        ({"fewshot": -1}, "at least 0, got -1"),
        ({"max_new_tokens": "9"}, "got '9'"),
        ({"chat": "yes"}, "true or false, got 'yes'"),
        ({"path": 3}, "must be a text, got 3. A number needs quotes"),
        ({"n_samples": 0}, r"n_samples must be at least 1, got 0"),
        ({"n_samples": None}, "got None"),
        ({"n_samples": 4}, "greedy outputs are all the same"),
        ({"n_samples": 4, "temperature": 0}, "greedy outputs are all the same"),
        ({"temperature": -1}, "at least 0, got -1"),
        ({"temperature": float("nan")}, "got nan"),
        ({"temperature": 1e-300}, "below 1e-06 scores overflow"),
        ({"temperature": 1, "top_p": 0}, "top_p must be above 0, got 0"),
        ({"top_p": 0.9}, "touches nothing without sampling"),
        ({"judge": "tiny"}, "would judge nothing: only xstest_safe and xstest_unsafe"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TaskConfig(**{"name": "gsm8k", **settings})


def test_all_wrong_settings_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        tasks_from_config({"gsm8k": {"limt": 3, "fewshot": -1}, "math500": 7})
    assert str(caught.value).splitlines() == [
        "tasks.gsm8k.fewshot must be at least 0, got -1.",
        "tasks.gsm8k.limt does not exist. Did you mean 'limit'?",
        "tasks.math500 holds settings such as limit: 20, got 7.",
    ]
    for none in ({}, None):
        with pytest.raises(ConfigError, match="No tasks"):
            tasks_from_config(none)
    with pytest.raises(ConfigError, match="tasks holds tasks with their settings, got 5"):
        tasks_from_config(5)  # pyright: ignore[reportArgumentType]


# Keys that only some tasks have: outputs to generate, a text of ours behind the question, a judge.
GENERATES = {"max_new_tokens", "n_samples", "temperature", "top_p"}
ALL_KEYS = {f.name for f in fields(TaskConfig)} - {"name"}
CONFIGS = sorted(path.stem for path in (REPOSITORY / "conf" / "tasks").glob("*.yaml"))


def test_every_task_of_ours_has_a_config(tmp_path: Path) -> None:
    configs = compose_tasks(tmp_path, [f"tasks=[{','.join(CONFIGS)}]"])
    assert {task.name for task in configs} >= set(OWN_TASKS)
    for task in configs:
        if task.name in OWN_TASKS:
            spec = load_yaml(TASK_FOLDER / f"{task.name}.yaml", resolve_func=False)
            assert spec["task"] == task.name
            assert task.max_new_tokens == spec["generation_kwargs"]["max_gen_toks"]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_has_the_keys_that_its_tasks_can_follow(name: str) -> None:
    config = yaml.safe_load((REPOSITORY / "conf" / "tasks" / f"{name}.yaml").read_text("utf-8"))
    for task, settings in config.items():
        left_out = set() if task in JUDGED_TASKS else {"judge"}
        if task not in OWN_TASKS:
            left_out |= {"instruction"} | (set() if task == "ifeval" else GENERATES)
        assert set(settings) == ALL_KEYS - left_out


def compose_tasks(folder: Path, overrides: list[str]) -> list[TaskConfig]:
    (folder / "top.yaml").write_text("defaults:\n  - tasks: [synthetic]\n  - _self_\n")
    (folder / "tasks").symlink_to(REPOSITORY / "conf" / "tasks")
    with initialize_config_dir(str(folder), version_base="1.3"):
        config = compose("top", overrides=overrides)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return tasks_from_config(plain["tasks"])


def test_hydra_selects_tasks_by_list(tmp_path: Path) -> None:
    (task,) = compose_tasks(tmp_path, [])
    assert (task.name, task.limit) == ("synthetic", 200)


def test_hydra_overrides_reach_the_task(tmp_path: Path) -> None:
    first, second, third = compose_tasks(
        tmp_path,
        ["tasks=[gsm8k,math500]", "tasks.gsm8k.path=../x.jsonl", "+tasks.arc_easy.fewshot=25"],
    )
    assert (first.name, first.path) == ("gsm8k", "../x.jsonl")
    assert second.name == "math500"
    assert third == TaskConfig(name="arc_easy", fewshot=25)


def test_one_setting_of_xstest_is_that_of_both_tasks(tmp_path: Path) -> None:
    safe, unsafe = compose_tasks(
        tmp_path, ["tasks=[xstest]", "tasks.xstest_safe.path=x.csv", "tasks.xstest_safe.judge=tiny"]
    )
    assert (safe.name, unsafe.name) == ("xstest_safe", "xstest_unsafe")
    assert vars(unsafe) == vars(safe) | {"name": "xstest_unsafe"}
    assert (unsafe.path, unsafe.judge) == ("x.csv", "tiny")
