"""Settings of `launcher=local | slurm`: where a run runs. They change neither results nor folders.

`launch/ranks.py` starts ranks by them, `launch/slurm.py` writes a job.
"""

import re
from dataclasses import field
from operator import mul
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter

from wemask.data.schema import STRICT, Count, Whole, settings
from wemask.errors import ConfigError

# Options of sbatch that are settings by the same name.
OPTIONS = (
    *("nodes", "gpus-per-node", "cpus-per-task", "mem", "time"),
    *("partition", "account", "qos", "constraint"),
)
# Those that the job script sets itself -> what to set instead.
OURS = {
    **{option: f"launcher.{option.replace('-', '_')}" for option in OPTIONS},
    "array": "a sweep: -m seed=0,1,2",
    "chdir": "nothing: a job runs where it was submitted",
    "dependency": "launcher.evaluate_after",
    "error": "nothing: logs go to the run folder",
    "no-requeue": "launcher.requeue=false",
    "ntasks": "launcher.nodes",
    "ntasks-per-node": "launcher.processes_per_node",
    "open-mode": "nothing: a requeued job appends to its log",
    "output": "nothing: logs go to the run folder",
    "requeue": "launcher.requeue",
    "signal": "launcher.signal_seconds",
}
UNITS = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}  # seconds of 90, 1:30, 1:30:00; 2-12 is hours


def seconds(time: str | int) -> int:
    """Slurm's time (`90`, `1:30:00`, `2-12`) in seconds; ConfigError: it is no such time."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(time))
    if not match:
        raise ConfigError(
            f"launcher.time is minutes, H:MM:SS or D-HH:MM:SS, got {time!r}. "
            "Type launcher.time=12:00:00."
        )
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    units = UNITS[3 if days else len(numbers)]
    return 86400 * int(days or 0) + sum(map(mul, numbers, units))


def _time(text: str) -> str:
    seconds(text)
    return text


def _line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("must be a text of one line")
    return text


Line = Annotated[str, AfterValidator(_line)]
_LINE = TypeAdapter(Line, config=STRICT)


def _value(value: Any) -> Any:
    """What can stand in a job script."""
    return value if type(value) in (int, float) or value == "" else _LINE.validate_python(value)


def _value_or_flag(value: Any) -> Any:
    return value if value is True else _value(value)


def _not_ours(option: str) -> str:
    if option in OURS:
        raise ConfigError(
            f"launcher.options.{option}: the job script sets --{option} itself. Set {OURS[option]}."
        )
    return option


Lines = Annotated[tuple[Line, ...], Field(strict=False)]  # lists come from YAML
Amount = Annotated[str, Field(strict=False, coerce_numbers_to_str=True)]  # mem: 64
Option = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$"), AfterValidator(_not_ours)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]


@settings("launcher")
class LauncherConfig:
    """Where a run runs. All but `processes` are of `launcher=slurm`; see conf/launcher."""

    name: Literal["local", "slurm"] = "local"
    processes: Count = 1
    """Ranks that train.py starts on this machine."""
    nodes: Count = 1
    gpus_per_node: Whole = 0
    processes_per_node: Count | None = None
    """Ranks of each node; None: one for each GPU."""
    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    time: Annotated[Amount, AfterValidator(_time)] | None = None
    cpus_per_task: Count | None = None
    mem: Annotated[Amount, Field(pattern=r"^\d+\w*$")] | None = None
    constraint: Line | None = None
    options: dict[Option, Annotated[Any, AfterValidator(_value_or_flag)]] = field(
        default_factory=dict
    )
    """Other options of sbatch, by their long names; True is a flag without a value."""
    setup: Lines = ()
    env: dict[Variable, Annotated[Any, AfterValidator(_value)]] = field(default_factory=dict)
    python: Line | None = None
    array_limit: Count = 4
    evaluate_after: bool = True
    evaluate_words: Lines = ()
    signal_seconds: Whole = 300
    requeue: bool = True

    def __post_init__(self) -> None:
        if self.time is not None and (limit := seconds(self.time)) <= self.signal_seconds:
            raise ConfigError(
                f"launcher.time={self.time} is {limit} s, and the job would be told to save "
                f"{self.signal_seconds} s before its end: at once. Type a longer launcher.time, "
                "or a shorter launcher.signal_seconds."
            )

    @property
    def ranks_per_node(self) -> int:
        """Ranks that one node of a Slurm job runs."""
        return self.processes_per_node or max(1, self.gpus_per_node)

    @property
    def world(self) -> int:
        """Ranks of the whole run."""
        return self.processes if self.name == "local" else self.nodes * self.ranks_per_node
