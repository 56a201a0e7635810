"""From a name to an lm-eval task that is ready to be asked. Imports lm_eval: seconds, so be lazy.

Our own tasks (the YAML files of this folder) come first; any other name is lm-eval's.
"""

import contextlib
import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.task
from langdetect import DetectorFactory
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind
from lm_eval.tasks._yaml_loader import load_yaml

from wemask.errors import ConfigError, DataError, WemaskError, nearest
from wemask.evaluate.tasks import local
from wemask.evaluate.tasks.task_config import OWN_TASKS, TASK_FOLDER, TaskConfig

DetectorFactory.seed = 0  # IFEval's check of the language draws: the same output, the same verdict
PLAIN_STOP = ["Question:"]  # without a chat template a model runs on into the next question


@dataclass(frozen=True, kw_only=True)
class LoadedTask:
    """One benchmark: an lm-eval task, or the several that a group of lm-eval's stands for."""

    name: str
    tasks: dict[str, Task]
    own: bool  # of this folder, not lm-eval's
    source: str  # dataset id, local file, or generator
    fewshot: int  # examples before the question (the largest, in a group)
    note: str | None = None  # what a reader of the numbers must know about the items

    def decoding(self) -> list[dict[str, Any]]:
        """Return the generation settings of each task; empty for multiple choice."""
        return [dict(t.get_config("generation_kwargs") or {}) for t in self.tasks.values()]

    def questions(self) -> dict[str, str]:
        """Return id -> question as the file has it, without template; for tasks of ours."""
        docs: list[Any] = [doc for task in self.tasks.values() for doc in task.eval_docs]
        return {doc["id"]: doc["question"] for doc in docs}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back lm-eval's log and the bars over the building of prompts, which takes a moment.

    Its warnings are about our way of using it (a model object, a dataset of ours). What a user
    needs to know becomes an error or a note of the result.
    """
    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, lm_eval.api.task.tqdm
    shown = not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = partial(bar, disable=True)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        lm_eval.api.task.tqdm = bar
        if shown:
            datasets.enable_progress_bars()


def load_task(config: TaskConfig, *, chat: bool) -> LoadedTask:
    """Build the task that `config` names, with its data.

    Args:
        config: what to load.
        chat: whether prompts will go through a chat template; ours look different without one.

    Raises:
        ConfigError: unknown name, or a setting this task cannot follow.
        DataError: data that are missing, malformed, empty, or out of reach.
    """
    own, note = config.name in OWN_TASKS, None
    with quiet():
        try:
            built, note = (_own(config, chat), None) if own else _theirs(config)
            _check_used(config, built)
            for task in built.values():
                _settle(task, config)
        except WemaskError as error:
            raise type(error)(f"tasks.{config.name}: {error}") from error
        except (OSError, ValueError) as error:
            raise DataError(_out_of_reach(config, error)) from error
        except Exception as error:
            if own:
                raise
            # The code of lm-eval's 14,000 tasks: any of them may lack a package or a column.
            what = f"{type(error).__name__}: {error}"
            if config.path is not None:
                raise DataError(_out_of_reach(config, what)) from error
            raise ConfigError(f"tasks.{config.name} cannot be set up here: {what}") from error
    return LoadedTask(
        name=config.name,
        tasks=built,
        own=own,
        source=_source(config, list(built.values())),
        fewshot=max(int(task.get_config("num_fewshot") or 0) for task in built.values()),
        note=note,
    )


def _own(config: TaskConfig, chat: bool) -> dict[str, Task]:
    spec = load_yaml(TASK_FOLDER / f"{config.name}.yaml")
    look: dict[str, Any] = {"plain": not chat}
    if config.instruction is not None:
        look["instruction"] = config.instruction
    spec["process_docs"] = partial(spec["process_docs"], **look)
    examples = spec.get("fewshot_config", {}).get("samples")
    shown = len(examples()) if examples else 0
    if (config.fewshot or 0) > shown:
        raise ConfigError(f"fewshot is {config.fewshot}, but this task has {shown} examples.")
    if examples:
        spec["fewshot_config"]["samples"] = partial(examples, **look)
    if not chat:
        spec["generation_kwargs"]["until"] = list(PLAIN_STOP)
    only = spec["metric_list"][0]["metric"]
    if config.metric not in (None, only):
        raise ConfigError(f"metric is {config.metric!r}; this task has only {only}.")
    if config.path is not None:
        spec["custom_dataset"] = partial(local.own_split, path=config.path)
        spec["dataset_path"], spec["dataset_kwargs"] = None, None
    elif "custom_dataset" not in spec and "dataset_path" not in spec:
        raise DataError(
            f"the hub has no data for this task. Name a local file: "
            f"tasks.{config.name}.path=FILE.parquet"
        )
    elif "custom_dataset" in spec and config.limit is not None:
        spec["dataset_kwargs"]["n"] = config.limit
    return {config.name: ConfigurableTask(config=spec)}


@functools.cache
def _all_of_lm_eval() -> TaskManager:
    # Reads 14,000 task files: 13 s, so only for a name that is not ours, and once.
    return TaskManager()


def _theirs(config: TaskConfig) -> tuple[dict[str, Task], str | None]:
    """Return lm-eval's tasks of this name, and a note about items that are not there."""
    manager = _all_of_lm_eval()
    if config.name not in manager.all_tasks:
        known = [*OWN_TASKS, *manager.all_tasks]
        raise ConfigError(
            f"no task of ours or lm-eval's has this name.{nearest(config.name, known)}"
        )
    if "ifeval" in config.name:
        _check_sentence_model()
    if config.instruction is not None:
        raise ConfigError("instruction can only be set for tasks of ours: " + ", ".join(OWN_TASKS))
    if config.path is None:
        return dict(manager.load([config.name])["tasks"]), None
    specs = _specs(config.name)
    for spec in specs.values():
        shots = spec.get("num_fewshot") if config.fewshot is None else config.fewshot
        if shots and "samples" not in (spec.get("fewshot_config") or {}):
            raise ConfigError(
                "fewshot with path would show test items as examples; use fewshot=0, or no path."
            )
    if len(specs) == 1:
        ((name, spec),) = specs.items()
        return {name: _on_rows(spec, local.read_rows(config.path))}, None
    return _split(config.path, specs)


def _split(path: str, specs: dict[str, dict[str, Any]]) -> tuple[dict[str, Task], str | None]:
    """Give every subtask of a group the rows of its subject."""
    subjects = {spec.get("dataset_name"): name for name, spec in specs.items()}
    if None in subjects or len(subjects) < len(specs):
        raise ConfigError("path cannot be set: no subject tells the subtasks of this group apart.")
    parts = local.by_subject(local.read_rows(path), map(str, subjects))
    tasks = {
        name: _on_rows(specs[name], parts[subject])
        for subject, name in subjects.items()
        if subject in parts
    }
    absent = [str(subject) for subject in subjects if subject not in parts]
    named = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
    note = f"the file has no items of {len(absent)} of {len(specs)} subjects: {named}"
    return tasks, note if absent else None


def _specs(name: str) -> dict[str, dict[str, Any]]:
    """Return the YAML of the single tasks that a name of lm-eval's stands for, in its order."""
    entry = _all_of_lm_eval().task_index[name]
    if entry.kind is Kind.TASK:
        assert entry.yaml_path is not None  # as the index holds of every task that a file made
        spec = load_yaml(entry.yaml_path)
        return {name: {key: spec[key] for key in spec if key not in ("tag", "group")}}
    members: Any = sorted(entry.tags) if entry.kind is Kind.TAG else (entry.cfg or {}).get("task")
    if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
        raise ConfigError(
            "path can only be set for tasks made from YAML files, and groups of them."
        )
    return {leaf: spec for member in members for leaf, spec in _specs(member).items()}


def _on_rows(spec: dict[str, Any], rows: list[local.Row]) -> Task:
    table = local.fit(spec, rows)
    spec = spec | {"dataset_path": None, "dataset_kwargs": None}
    task = ConfigurableTask(config=spec | {"custom_dataset": lambda **_: table})
    if task.get_config("output_type") == "multiple_choice":
        _check_golds(task, rows)
    return task


def _check_golds(task: Task, rows: list[local.Row]) -> None:
    """Refuse right answers that are no option: lm-eval would count such items as wrong."""
    built: Any = task
    places = [row[local.WHERE] for row in rows]
    if len(places) != len(built.eval_docs):  # the task has made other documents of the rows
        places = [f"item {number}" for number, _ in enumerate(built.eval_docs, 1)]
    for doc, place in zip(built.eval_docs, places, strict=True):
        options, gold = built.doc_to_choice(doc), built.doc_to_target(doc)
        fits = 0 <= gold < len(options) if isinstance(gold, int) else gold in options
        if not fits and not isinstance(gold, list):
            raise DataError(f"{place}: the answer {gold!r} is none of {options}.")


def _check_sentence_model() -> None:
    """Refuse IFEval without the model that splits sentences: lm-eval would score all the same."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError as error:
        raise DataError(
            "nltk's punkt_tab is missing, without which sentences cannot be counted. Get it where "
            "there is a network (python -m nltk.downloader punkt_tab), and here set "
            "NLTK_DATA to its folder."
        ) from error


def _check_used(config: TaskConfig, tasks: dict[str, Task]) -> None:
    """Refuse settings of outputs for a task that has none."""
    kinds = {task.get_config("output_type") for task in tasks.values()}
    plain = {"n_samples": 1, "temperature": None, "max_new_tokens": None}
    idle = [key for key, value in plain.items() if getattr(config, key) != value]
    if idle and "generate_until" not in kinds:
        raise ConfigError(
            f"{', '.join(idle)} would touch nothing: a task of multiple choice generates no output."
        )


def _settle(task: Task, config: TaskConfig) -> None:
    """Apply the numbers of `config`, and see that there is something to ask."""
    if config.fewshot is not None:
        task.set_config("num_fewshot", config.fewshot)
    if task.get_config("output_type") == "generate_until":
        kwargs = dict(task.get_config("generation_kwargs") or {})
        task.set_config("generation_kwargs", _decoding(kwargs, config))
    if not len(task.eval_docs):
        raise DataError("no items. Expected at least one.")


def _decoding(kwargs: dict[str, Any], config: TaskConfig) -> dict[str, Any]:
    if config.max_new_tokens is not None:
        for alias in ("max_new_tokens", "max_tokens", "max_completion_tokens"):
            kwargs.pop(alias, None)
        kwargs["max_gen_toks"] = config.max_new_tokens
    if config.temperature is not None:
        for other in ("temperature", "top_p", "top_k", "min_p", "typical_p"):
            kwargs.pop(other, None)
        kwargs["do_sample"] = config.temperature > 0
        if config.temperature > 0:
            kwargs |= {"temperature": config.temperature, "top_p": config.top_p or 1.0}
    return kwargs


def _out_of_reach(config: TaskConfig, error: object) -> str:
    if config.path is not None:
        return f"tasks.{config.name}: {config.path} does not fit this task: {error}"
    way = "Without a network, name a local copy with the same columns"
    if config.name not in OWN_TASKS and config.name not in _all_of_lm_eval().all_subtasks:
        way = (
            "Run it once with a network: the hub cache keeps the data of its subtasks. "
            "Or, for a group by subject as mmlu is, name a local file with a column "
            f"{local.SUBJECT}"
        )
    return (
        f"tasks.{config.name}: the data cannot be had: {error}. {way}: "
        f"tasks.{config.name}.path=FILE.jsonl"
    )


def _source(config: TaskConfig, tasks: list[Task]) -> str:
    if config.path is not None:
        return str(Path(config.path))
    paths = dict.fromkeys(str(task.get_config("dataset_path")) for task in tasks)
    if config.name in OWN_TASKS and [*paths] == ["None"]:
        seed = tasks[0].get_config("dataset_kwargs")["seed"]
        return f"generated by wemask.embedded.problems (family=sft, split=test, seed={seed})"
    return "hub: " + ", ".join(paths)
