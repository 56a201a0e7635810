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
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from wemask.errors import ConfigError, DataError, WemaskError, nearest
from wemask.tasks import functions
from wemask.tasks.settings import OWN_TASKS, TASK_FOLDER, TaskConfig

PLAIN_STOP = ["Question:"]  # without a chat template a model runs on into the next question


@dataclass(frozen=True, kw_only=True)
class LoadedTask:
    """One benchmark: an lm-eval task, or the several that a group of lm-eval's stands for."""

    name: str
    tasks: dict[str, Task]
    own: bool  # prompts and scoring are ours
    source: str  # dataset id, local file, or generator
    fewshot: int  # examples before the question (the largest, in a group)

    def decoding(self) -> list[dict[str, Any]]:
        """Return the generation settings of each task; empty for multiple choice."""
        return [dict(t.get_config("generation_kwargs") or {}) for t in self.tasks.values()]


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
    own = config.name in OWN_TASKS
    with quiet():
        try:
            built = _own(config, chat) if own else _theirs(config)
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
    shots = [int(task.get_config("num_fewshot") or 0) for task in built.values()]
    return LoadedTask(
        name=config.name,
        tasks=built,
        own=own,
        source=_source(config, list(built.values())),
        fewshot=max(shots),
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
    if config.metric not in (None, "exact_match"):
        raise ConfigError(f"metric is {config.metric!r}; this task has only exact_match.")
    _choose_data(spec, config)
    return {config.name: ConfigurableTask(config=spec)}


def _choose_data(spec: dict[str, Any], config: TaskConfig) -> None:
    """Point a task file of ours at the local file, or the generator at the number wanted."""
    if config.path is not None:
        spec["custom_dataset"] = partial(functions.local_split, path=config.path)
        spec["dataset_path"], spec["dataset_kwargs"] = None, None
    elif "custom_dataset" in spec and config.limit is not None:
        spec["dataset_kwargs"]["n"] = config.limit


@functools.cache
def _all_of_lm_eval() -> TaskManager:
    # Reads 14,000 task files: 13 s, so only for a name that is not ours, and once.
    return TaskManager()


def _theirs(config: TaskConfig) -> dict[str, Task]:
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
        return dict(manager.load([config.name])["tasks"])
    entry = manager.task_index[config.name]
    spec = load_yaml(entry.yaml_path) if entry.yaml_path else {}
    if "task" not in spec or "group" in spec or "class" in spec:
        raise ConfigError("path can only be set for a single task made from a YAML file.")
    if config.fewshot and "samples" not in (spec.get("fewshot_config") or {}):
        raise ConfigError(
            "fewshot with path would show test items as examples; use fewshot=0, or no path."
        )
    names = ("test_split", "validation_split", "training_split", "fewshot_split")
    splits = {spec[name] for name in names if spec.get(name)}
    spec["custom_dataset"] = partial(functions.local_dataset, path=config.path, splits=splits)
    spec["dataset_path"], spec["dataset_kwargs"] = None, None
    for key in ("tag", "group"):
        spec.pop(key, None)
    return {config.name: ConfigurableTask(config=spec)}


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


def _settle(task: Task, config: TaskConfig) -> None:
    """Apply the numbers of `config`, and see that there is something to ask."""
    if config.fewshot is not None:
        task.set_config("num_fewshot", config.fewshot)
    if config.max_new_tokens is not None and task.get_config("output_type") == "generate_until":
        kwargs = dict(task.get_config("generation_kwargs") or {})
        for alias in ("max_new_tokens", "max_tokens", "max_completion_tokens"):
            kwargs.pop(alias, None)
        task.set_config("generation_kwargs", kwargs | {"max_gen_toks": config.max_new_tokens})
    if not len(task.eval_docs):
        raise DataError("no items. Expected at least one.")


def _out_of_reach(config: TaskConfig, error: object) -> str:
    if config.path is not None:
        return f"tasks.{config.name}: {config.path} does not fit this task: {error}"
    found = f"tasks.{config.name}: the data cannot be had: {error}."
    if config.name not in OWN_TASKS and config.name not in _all_of_lm_eval().all_subtasks:
        return f"{found} Run it once with a network: the hub cache keeps the data of its subtasks."
    return (
        f"{found} Without a network, name a local copy with the same columns: "
        f"tasks.{config.name}.path=FILE.jsonl"
    )


def _source(config: TaskConfig, tasks: list[Task]) -> str:
    if config.path is not None:
        return str(Path(config.path))
    paths = dict.fromkeys(str(task.get_config("dataset_path")) for task in tasks)
    if config.name in OWN_TASKS and paths == {"None": None}:
        kwargs = tasks[0].get_config("dataset_kwargs")
        return (
            f"generated by wemask.embedded.problems (family=sft, split=test, seed={kwargs['seed']})"
        )
    return "hub: " + ", ".join(paths)
