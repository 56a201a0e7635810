"""Which benchmarks to run and how: `conf/tasks/*.yaml` as dataclasses. Light: no lm_eval here."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from wemask.errors import ConfigError, nearest

TASK_FOLDER = Path(__file__).resolve().parent
OWN_TASKS = tuple(sorted(path.stem for path in TASK_FOLDER.glob("*.yaml")))
JUDGED_TASKS = ("xstest_safe", "xstest_unsafe")  # right or wrong is whether the model refuses


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One benchmark.

    Raises:
        ConfigError: every problem of the given values, together.
    """

    name: str
    """One of ours (`OWN_TASKS`), or any task or group of lm-eval by its own name."""
    path: str | None = None
    """Local data file with the task's own columns; None: the task's own dataset."""
    fewshot: int | None = None
    """Examples shown before the question; None: the task's own number (0 for ours)."""
    limit: int | None = None
    """Use the first so many items (of each subtask of a group); None: all."""
    max_new_tokens: int | None = None
    """Longest output in tokens; None: the task's own."""
    chat: bool | None = None
    """Put prompts through the tokenizer's chat template; None: if it has one."""
    instruction: str | None = None
    """Text put behind the question, verbatim (with its own space or newline); None: the task's own.
    Training on prompts with such a text needs the same here. Only for tasks of ours."""
    metric: str | None = None
    """Which right-or-wrong metric of a task of lm-eval's counts, as `acc`, or as
    `exact_match,strict-match` where the task filters its outputs in several ways; None: the first
    of acc, exact_match, and whatever else is right or wrong."""
    n_samples: int = 1
    """Outputs drawn per item; an item's score is the share that is right (avg@k)."""
    temperature: float | None = None
    """Sample at this temperature; 0: greedy; None: as the task decodes (greedily, for ours)."""
    top_p: float | None = None
    """Sample from the likeliest tokens that hold this share; None: from all."""
    judge: str | None = None
    """Chat model (`tiny`, a folder or ORG/NAME) that decides about refusals instead of the
    patterns of `wemask.evaluate.scoring.refusals`. Only for `JUDGED_TASKS`."""

    def __post_init__(self) -> None:
        problems = [*self._numbers(), *self._texts(), *self._sampling()]
        problems = [problem for problem in problems if problem]
        if problems:
            raise ConfigError("\n".join(problems))

    def _numbers(self) -> list[str | None]:
        return [
            _whole(self, "fewshot", least=0),
            _whole(self, "limit", least=1),
            _whole(self, "max_new_tokens", least=1),
            _real(self, "temperature", "at least 0", lambda x: x >= 0),
            _real(self, "top_p", "above 0 and at most 1", lambda x: 0 < x <= 1),
        ]

    def _texts(self) -> list[str | None]:
        wrong: list[str | None] = []
        # The name becomes a folder of the run, so it must not lead out of it.
        if not isinstance(self.name, str) or not re.fullmatch(r"\w[\w.+-]*", self.name):
            wrong.append(f"A task name has letters, digits and _.+- only, got {self.name!r}.")
        if self.chat not in (True, False, None):
            wrong.append(f"tasks.{self.name}.chat is true, false or null, got {self.chat!r}.")
        for key in ("path", "instruction", "metric", "judge"):
            value = getattr(self, key)
            if value is not None and not isinstance(value, str):
                wrong.append(f"tasks.{self.name}.{key} is a text or null, got {value!r}.")
        if self.judge is not None and self.name not in JUDGED_TASKS:
            wrong.append(
                f"tasks.{self.name}.judge would judge nothing: only {' and '.join(JUDGED_TASKS)} "
                "ask whether an answer refuses. Type judge=null."
            )
        return wrong

    def _sampling(self) -> list[str | None]:
        """Settings that would touch nothing, because nothing is sampled."""
        task, wrong = f"tasks.{self.name}", list[str | None]()
        if type(self.n_samples) is not int or self.n_samples < 1:
            wrong.append(f"{task}.n_samples is a whole number >= 1, got {self.n_samples!r}.")
        elif self.n_samples > 1 and not self.temperature:
            wrong.append(
                f"{task}.n_samples is {self.n_samples}, but greedy outputs are all the same. "
                f"Type {task}.temperature=0.6, or {task}.n_samples=1."
            )
        if self.top_p is not None and not self.temperature:
            wrong.append(
                f"{task}.top_p touches nothing without sampling. Type {task}.temperature=0.6, "
                f"or {task}.top_p=null."
            )
        return wrong


def _whole(config: TaskConfig, key: str, *, least: int) -> str | None:
    value = getattr(config, key)
    if value is None or (type(value) is int and value >= least):
        return None
    return f"tasks.{config.name}.{key} is a whole number >= {least} or null, got {value!r}."


def _real(config: TaskConfig, key: str, range_: str, inside: Callable[[float], bool]) -> str | None:
    value = getattr(config, key)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is None or (number and math.isfinite(value) and inside(value)):
        return None
    return f"tasks.{config.name}.{key} is a number {range_}, or null, got {value!r}."


def tasks_from_config(tasks: Mapping[str, Any]) -> list[TaskConfig]:
    """Turn the `tasks` group (`{gsm8k: {path: null, ...}}`) into TaskConfigs, in its order.

    Raises:
        ConfigError: no task, unknown keys (with the nearest), wrong values: all of them, together.
    """
    known = [field.name for field in fields(TaskConfig) if field.name != "name"]
    configs, problems = list[TaskConfig](), list[str]()
    for name, settings in tasks.items():
        settings = {} if settings is None else settings
        if not isinstance(settings, Mapping):
            problems.append(f"tasks.{name} holds settings such as limit: 20, got {settings!r}.")
            continue
        unknown = [str(key) for key in settings if key not in known]
        problems += [f"tasks.{name}.{key} does not exist.{nearest(key, known)}" for key in unknown]
        try:
            given = {str(key): settings[key] for key in settings if key in known}
            configs.append(TaskConfig(name=name, **given))
        except ConfigError as error:
            problems.append(str(error))
    if not tasks:
        problems.append(f"No tasks. Choose some, as in tasks=[{','.join(OWN_TASKS)}].")
    if problems:
        raise ConfigError("\n".join(problems))
    return configs
