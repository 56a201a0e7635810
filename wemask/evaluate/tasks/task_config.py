"""Which benchmarks to run and how: `conf/tasks/*.yaml` as dataclasses. Light: no lm_eval here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from wemask.data.schema import Count, Number, Whole, settings
from wemask.errors import ConfigError

TASK_FOLDER = Path(__file__).resolve().parent
OWN_TASKS = tuple(sorted(path.stem for path in TASK_FOLDER.glob("*.yaml")))
COLDEST = 1e-6  # temperature of sampling; at 1e-36 a score over it is infinite
JUDGED_TASKS = ("xstest_safe", "xstest_unsafe")  # right or wrong is whether the model refuses


@settings("tasks.{name}")
class TaskConfig:
    """One benchmark.

    Raises:
        ConfigError: every problem of the given values, together.
    """

    # It becomes a folder of the run, so it must not lead out of it.
    name: Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]
    """One of ours (`OWN_TASKS`), or any task or group of lm-eval by its own name."""
    path: str | None = None
    """Local data file with the task's own columns; None: the task's own dataset."""
    fewshot: Whole | None = None
    """Examples shown before the question; None: the task's own number (0 for ours)."""
    limit: Count | None = None
    """Use the first so many items (of each subtask of a group); None: all."""
    max_new_tokens: Count | None = None
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
    n_samples: Count = 1
    """Outputs drawn per item; an item's score is the share that is right (avg@k)."""
    temperature: Annotated[Number, Field(ge=0)] | None = None
    """Sample at this temperature; 0: greedy; None: as the task decodes (greedily, for ours)."""
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Sample from the likeliest tokens that hold this share; None: from all."""
    judge: str | None = None
    """Chat model (`tiny`, a folder or ORG/NAME) that decides about refusals instead of the
    patterns of `wemask.evaluate.scoring.refusals`. Only for `JUDGED_TASKS`."""

    def __post_init__(self) -> None:
        """Refuse settings that would touch nothing."""
        task, wrong = f"tasks.{self.name}", list[str]()
        if self.judge is not None and self.name not in JUDGED_TASKS:
            wrong.append(
                f"{task}.judge would judge nothing: only {' and '.join(JUDGED_TASKS)} ask whether "
                f"an answer refuses. Type {task}.judge=null."
            )
        if self.n_samples > 1 and not self.temperature:
            wrong.append(
                f"{task}.n_samples is {self.n_samples}, but greedy outputs are all the same. "
                f"Type {task}.temperature=0.6, or {task}.n_samples=1."
            )
        if self.top_p is not None and not self.temperature:
            wrong.append(
                f"{task}.top_p touches nothing without sampling. Type {task}.temperature=0.6, "
                f"or {task}.top_p=null."
            )
        if self.temperature and self.temperature < COLDEST:
            wrong.append(
                f"{task}.temperature is {self.temperature:g}: below {COLDEST:g} scores overflow. "
                f"Type {task}.temperature=0 for the likeliest tokens."
            )
        if wrong:
            raise ConfigError("\n".join(wrong))


def tasks_from_config(tasks: Mapping[str, Any] | None) -> list[TaskConfig]:
    """Turn the `tasks` group (`{gsm8k: {path: null, ...}}`) into TaskConfigs, in its order.

    Raises:
        ConfigError: no task, unknown keys (with the nearest), wrong values: all of them, together.
    """
    configs, problems = list[TaskConfig](), list[str]()
    if not isinstance(tasks, Mapping | None):
        raise ConfigError(f"tasks holds tasks with their settings, got {tasks!r}.")
    tasks = tasks or {}
    for name, values in tasks.items():
        if not isinstance(values, Mapping | None):
            problems.append(f"tasks.{name} holds settings such as limit: 20, got {values!r}.")
            continue
        try:
            configs.append(TaskConfig(name=name, **values or {}))
        except ConfigError as error:
            problems.append(str(error))
        except TypeError as error:  # a second `name`, or a key that is a number
            problems.append(f"tasks.{name}: {error}.")
    if not tasks:
        problems.append(f"No tasks. Choose some, as in tasks=[{','.join(OWN_TASKS)}].")
    if problems:
        raise ConfigError("\n".join(problems))
    return configs
