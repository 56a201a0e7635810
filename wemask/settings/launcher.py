"""Settings of `launcher=local | slurm`: where a run runs. They change neither results nor folders.

`launching.py` starts ranks by them, `slurm.py` writes a job.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from wemask.errors import ConfigError, nearest

NAMES = ("local", "slurm")
# sbatch options that the job script sets itself -> what to set instead.
OURS = {
    "account": "launcher.account",
    "array": "a sweep: -m seed=0,1,2",
    "chdir": "nothing: a job runs where it was submitted",
    "constraint": "launcher.constraint",
    "cpus-per-task": "launcher.cpus_per_task",
    "dependency": "launcher.evaluate_after",
    "error": "nothing: logs go to the run folder",
    "gpus-per-node": "launcher.gpus_per_node",
    "mem": "launcher.mem",
    "nodes": "launcher.nodes",
    "no-requeue": "launcher.requeue=false",
    "ntasks": "launcher.nodes",
    "ntasks-per-node": "launcher.processes_per_node",
    "open-mode": "nothing: a requeued job appends to its log",
    "output": "nothing: logs go to the run folder",
    "partition": "launcher.partition",
    "qos": "launcher.qos",
    "requeue": "launcher.requeue",
    "signal": "launcher.signal_seconds",
    "time": "launcher.time",
}
TIME = re.compile(
    r"(?P<m>\d+)|(?P<m2>\d+):(?P<s2>\d+)|(?P<h3>\d+):(?P<m3>\d+):(?P<s3>\d+)"
    r"|(?P<d4>\d+)-(?P<h4>\d+)(:(?P<m4>\d+)(:(?P<s4>\d+))?)?"
)
SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LauncherConfig:
    """Where a run runs. All but `processes` are of `launcher=slurm`; see conf/launcher.

    Raises:
        ConfigError: every value that makes no sense, together.
    """

    name: str = "local"
    processes: int = 1
    """Ranks that train.py starts on this machine."""
    nodes: int = 1
    gpus_per_node: int = 0
    processes_per_node: int | None = None
    """Ranks of each node; None: one for each GPU."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | int | None = None
    cpus_per_task: int | None = None
    mem: str | int | None = None
    constraint: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Other options of sbatch, by their long names; True is a flag without a value."""
    setup: tuple[str, ...] = ()
    env: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    python: str | None = None
    array_limit: int = 4
    evaluate_after: bool = True
    evaluate_words: tuple[str, ...] = ()
    signal_seconds: int = 300
    requeue: bool = True

    def __post_init__(self) -> None:
        for name in ("setup", "evaluate_words"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        problems = [*_numbers(self), *_texts(self), *_lists(self), *_mappings(self)]
        if self.name not in NAMES:
            names = ", ".join(NAMES)
            problems.append(f"launcher is one of {names}; got {self.name!r}.")
        problems += [
            f"launcher.{name} must be true or false, got {getattr(self, name)!r}."
            for name in ("evaluate_after", "requeue")
            if type(getattr(self, name)) is not bool
        ]
        if type(self.signal_seconds) is int and (problem := _time_problem(self)):
            problems.append(problem)
        if problems:
            raise ConfigError("\n".join(problems))

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "LauncherConfig":
        """Build from the `launcher` section of a config.

        Raises:
            ConfigError: an unknown key (the nearest is named), or a value that makes no sense.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        full = [f"launcher.{name}" for name in known]
        if unknown := [key for key in values if key not in known]:
            raise ConfigError(
                "\n".join(
                    f"There is no setting 'launcher.{key}'.{nearest(f'launcher.{key}', full)}"
                    for key in unknown
                )
            )
        return cls(**values)

    @property
    def ranks_per_node(self) -> int:
        """Ranks that one node of a Slurm job runs."""
        return self.processes_per_node or max(1, self.gpus_per_node)

    @property
    def world(self) -> int:
        """Ranks of the whole run."""
        return self.processes if self.name == "local" else self.nodes * self.ranks_per_node


def seconds(time: str | int) -> int:
    """Slurm's time (`90`, `1:30:00`, `2-12`) in seconds.

    Raises:
        ConfigError: it is no such time.
    """
    match = TIME.fullmatch(str(time))
    if not match:
        raise ConfigError(
            f"launcher.time is minutes, H:MM:SS or D-HH:MM:SS, got {time!r}. "
            "Type launcher.time=12:00:00."
        )
    return sum(SECONDS[k[0]] * int(v) for k, v in match.groupdict().items() if v is not None)


def _time_problem(config: LauncherConfig) -> str | None:
    if config.time is None or not _is_line(config.time, numbers=True):
        return None
    try:
        limit = seconds(config.time)
    except ConfigError as error:
        return str(error)
    if limit > config.signal_seconds:
        return None
    return (
        f"launcher.time={config.time} is {limit} s, and the job would be told to save "
        f"{config.signal_seconds} s before its end: at once. Type a longer launcher.time, or a "
        "shorter launcher.signal_seconds."
    )


def _numbers(config: LauncherConfig) -> list[str]:
    least = {"processes": 1, "nodes": 1, "gpus_per_node": 0, "array_limit": 1, "signal_seconds": 0}
    maybe = {"processes_per_node": 1, "cpus_per_task": 1}
    values = {key: getattr(config, key) for key in (*least, *maybe)}
    return [
        f"launcher.{key} is a whole number >= {low}, got {values[key]!r}."
        for key, low in (least | maybe).items()
        if not (key in maybe and values[key] is None)
        and (type(values[key]) is not int or values[key] < low)
    ]


def _texts(config: LauncherConfig) -> list[str]:
    names = ("partition", "account", "qos", "time", "mem", "constraint", "python")
    values = {name: getattr(config, name) for name in names}
    numbers = ("time", "mem")
    return [
        f"launcher.{name} must be a text of one line, got {value!r}."
        for name, value in values.items()
        if value is not None and not _is_line(value, numbers=name in numbers)
    ]


def _is_line(value: Any, *, numbers: bool = False) -> bool:
    """Whether a value can stand on one line of a script."""
    if numbers and type(value) is int:
        return value > 0
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _lists(config: LauncherConfig) -> list[str]:
    examples = {
        "setup": "launcher.setup='[module load cuda]'",
        "evaluate_words": "launcher.evaluate_words='[limit=200]'",
    }
    return [
        f"launcher.{name} is a list of lines, got {getattr(config, name)!r}. Type {example}."
        for name, example in examples.items()
        if not isinstance(getattr(config, name), tuple)
        or not all(_is_line(line) for line in getattr(config, name))
    ]


def _mappings(config: LauncherConfig) -> list[str]:
    problems = [
        f"launcher.{name} is a mapping {{name: value}}, got {getattr(config, name)!r}."
        for name in ("options", "env")
        if not isinstance(getattr(config, name), Mapping)
    ]
    if problems:
        return problems
    problems += [
        f"launcher.options.{key}: the job script sets --{key} itself. Set {OURS[key]}."
        for key in config.options
        if key in OURS
    ]
    checks: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
        ("options", r"[a-z][a-z0-9-]*", lambda v: v is True or _is_value(v)),
        ("env", r"[A-Za-z_]\w*", _is_value),
    )
    for section, names, fits in checks:
        for key, value in getattr(config, section).items():
            if not re.fullmatch(names, str(key)) or not fits(value):
                problems.append(
                    f"launcher.{section}: {key}: {value!r} cannot stand in a job script."
                )
    return problems


def _is_value(value: Any) -> bool:
    return type(value) in (int, float) or value == "" or _is_line(value)
