"""Composed config -> typed settings. Below this file there are only plain arguments.

`composition.py` makes the config of a command line; here it is checked, by the dataclasses that it
becomes. Run folders come from the settings, never from the clock.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wemask.data.examples import DataConfig
from wemask.detection.me_layer import Criterion
from wemask.errors import ConfigError, WemaskError, nearest
from wemask.files import digest
from wemask.operator.settings import WeMaskConfig
from wemask.settings import packaged
from wemask.settings.engines import PASSED_ON, check_one_engine, deepspeed_settings, fsdp_settings
from wemask.settings.launcher import LauncherConfig
from wemask.settings.texts import DetectionConfig

METHODS = ("base", "training_free", "sft", "wemask")
LOGGERS = ("none", "wandb")
WANDB_MODES = ("offline", "online", "disabled")
GROUPS = (
    *("model", "method", "operator", "data", "trainer", "peft", "deepspeed", "fsdp", "logger"),
    *("paths", "launcher", "detection"),
)
SECTIONS = (*GROUPS, "seed", "dry_run", "experiment_name")
# Fields of SFTConfig whose values below this end in a traceback deep inside torch.
LEAST = {
    "learning_rate": 0,
    "max_length": 1,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
}
OF_EVALUATION = ("tasks", "arms", "limit", "batch_size", "train_missing", "eval_seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how it is loaded."""

    name: str
    """Short name, for folders and tables."""
    path: str
    """`tiny`, a folder, a GGUF file, `package:...` (`packaged.py`), or ORG/NAME."""
    fallback: str | None = None
    """What is loaded instead where the hub cannot be reached and its cache has no `path`."""
    stands_for: str | None = None
    """The hub model that could not be reached; `path` is its fallback then. Not a setting."""
    revision: str | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False
    parts: dict[str, str] = dataclasses.field(default_factory=dict)
    """Names of architecture parts that are not recognised: model.wemask_parts."""
    criterion: Criterion | None = None
    """None: what the model's own config says (`wemask_criterion`), else sun2024."""

    def __post_init__(self) -> None:
        texts = {"name": self.name, "path": self.path, "dtype": self.dtype}
        maybe = ("revision", "attn_implementation", "device_map", "fallback")
        texts |= {key: value for key in maybe if (value := getattr(self, key)) is not None}
        problems = [
            f"model.{key} must be a text, got {value!r}. A number needs quotes: model.{key}='7'."
            for key, value in texts.items()
            if not isinstance(value, str) or not value.strip()
        ]
        if not isinstance(self.trust_remote_code, bool):
            got = repr(self.trust_remote_code)
            problems.append(f"model.trust_remote_code must be true or false, got {got}.")
        if not isinstance(self.parts, Mapping):
            problems.append(f"model.parts must be {{part: name}}, got {self.parts!r}.")
        if problems:
            raise ConfigError("\n".join(problems))

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "ModelConfig":
        """Build from the `model` section of a config.

        Raises:
            ConfigError: no path, an unknown key, or a criterion that makes no sense.
        """
        if not values.get("path"):
            raise ConfigError("model.path is empty. Type model=tiny, or model.path=ORG/NAME.")
        criterion = values.get("criterion") or {}
        if not isinstance(criterion, Mapping):
            raise ConfigError(
                f"model.criterion has settings of its own, got {criterion!r}. Type "
                "model.criterion.name=relative."
            )
        given = {key: value for key, value in criterion.items() if value is not None}
        if given and "name" not in given:
            raise ConfigError("model.criterion needs its name too: model.criterion.name=relative.")
        criterion = _strict(Criterion, given, "model.criterion") if given else None
        name = values.get("name") or packaged.short_name(str(values["path"]))
        parts = values.get("parts") or {}
        config = _strict(
            cls, {**values, "name": name, "criterion": criterion, "parts": parts}, "model"
        )
        if config.fallback is None or packaged.can_be_had(config.path, config.revision):
            return config
        instead = {"path": config.fallback, "stands_for": config.path, "revision": None}
        return dataclasses.replace(config, **instead)

    @property
    def source(self) -> str:
        """What is loaded, in words."""
        if self.stands_for is None:
            return self.path
        instead = self.path.partition("#")[0]
        return f"{instead} instead of {self.stands_for}: the hub cannot be reached"

    def load_options(self) -> dict[str, Any]:
        """Arguments of `wemask.checkpoint.pretrained.load_model`."""
        names = ("revision", "dtype", "attn_implementation", "device_map", "trust_remote_code")
        return {name: getattr(self, name) for name in (*names, "parts")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: a model, a method, its data and training."""

    model: ModelConfig
    method: str
    operator: WeMaskConfig
    data: DataConfig
    trainer: dict[str, Any]
    peft: dict[str, Any] | None
    logger: dict[str, Any]
    output_dir: Path
    experiment: str
    seed: int
    dry_run: bool = False
    run_dir: Path | None = None
    deepspeed: dict[str, Any] | None = None
    fsdp: dict[str, Any] | None = None
    detection: DetectionConfig = dataclasses.field(default_factory=DetectionConfig)
    launcher: LauncherConfig = dataclasses.field(default_factory=LauncherConfig)
    """Where it runs: no part of the run's identity."""
    typed: tuple[str, ...] = ()
    """The words of the command line, for messages that say what to type."""

    @property
    def trains(self) -> bool:
        """Whether the method has anything to train."""
        return self.method in ("sft", "wemask")

    @property
    def softens(self) -> bool:
        """Whether the method has the operator on."""
        return self.method in ("training_free", "wemask")

    def trainer_value(self, name: str) -> Any:
        """A field of SFTConfig: what the user typed, else its own default."""
        from trl.trainer.sft_config import SFTConfig

        return self.trainer.get(name, getattr(SFTConfig, name))

    def identity(self) -> dict[str, Any]:
        """Every setting that can change the result, as plain values.

        An engine does not: it says where the numbers are, not what they are.
        """
        model = dataclasses.asdict(self.model)
        del model["fallback"], model["stands_for"]  # `path` says which weights were loaded
        values: dict[str, Any] = {"model": model, "method": self.method}
        if self.softens:
            values |= {"operator": self.operator.to_dict(), **self.detection_settings()}
        if self.trains:
            values |= {
                "seed": self.seed,
                "data": dataclasses.asdict(self.data),
                "trainer": {k: v for k, v in self.trainer.items() if k not in PASSED_ON},
                "peft": self.peft,
            }
        return values

    def detection_settings(self) -> dict[str, Any]:
        """What detection reads; nothing by default, so run folders of 0.1 keep their names."""
        if self.detection == DetectionConfig():
            return {}
        return {"detection": dataclasses.asdict(self.detection)}

    def folder(self) -> Path:
        """The run folder: the same for every rank and every requeued job of these settings."""
        if self.run_dir is not None:
            return self.run_dir
        seed = f"s{self.seed}__" if self.trains else ""  # an untrained model is the same for all
        name = f"{self.model.name}__{self.method}__{seed}{digest(self.identity())}"
        return self.output_dir / self.experiment / name

    def with_method(self, method: str) -> "RunConfig":
        """The same run with another method, in its own folder."""
        return dataclasses.replace(self, method=method, run_dir=None)


# --- DictConfig -> dataclasses --------------------------------------------------------------------


def run_config(cfg: Any, typed: Sequence[str] = ()) -> RunConfig:
    """Turn a composed config into typed settings; `typed` is the command line it came from.

    Raises:
        ConfigError: every problem that is found, together.
    """
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(cfg, resolve=True)
    problems = _shape(values)
    if problems:
        raise ConfigError("\n".join(problems))

    def checked(build: Callable[[], Any]) -> Any:
        try:
            return build()
        except WemaskError as error:
            problems.append(str(error))
            return None

    method = values["method"].get("name")
    if method not in METHODS:
        problems.append(f"method is one of {', '.join(METHODS)}; got {method!r}.")
    parts: dict[str, Any] = {
        "model": checked(lambda: ModelConfig.from_values(values["model"])),
        "operator": checked(lambda: WeMaskConfig.from_dict(values["operator"])),
        "detection": checked(lambda: _strict(DetectionConfig, values["detection"], "detection")),
        "data": checked(lambda: _strict(DataConfig, values["data"], "data")),
        "trainer": checked(lambda: _trainer(values["trainer"])),
        "peft": checked(lambda: _peft(values["peft"])),
        "deepspeed": checked(lambda: deepspeed_settings(values["deepspeed"])),
        "fsdp": checked(lambda: fsdp_settings(values["fsdp"])),
        "launcher": checked(lambda: LauncherConfig.from_values(values["launcher"])),
    }
    checked(lambda: check_one_engine(parts["deepspeed"], parts["fsdp"], values["trainer"]))
    problems += [*_plain(values), *_logger(values["logger"])]
    if problems:
        raise ConfigError("\n".join(problems))
    run_dir = values["paths"].get("run_dir")
    return RunConfig(
        **parts,
        typed=tuple(typed),
        method=method,
        logger=values["logger"],
        output_dir=Path(values["paths"]["output_dir"]),
        run_dir=Path(run_dir) if run_dir else None,
        experiment=values["experiment_name"],
        seed=values["seed"],
        dry_run=values["dry_run"],
    )


def _shape(values: dict[str, Any]) -> list[str]:
    """Sections that are missing, or that nobody reads (`+tarin.x=1` adds one)."""
    problems = [
        f"The settings lack {key!r}. Leave ~{key} out." for key in SECTIONS if key not in values
    ]
    problems += [
        f"There is no setting {key!r}.{nearest(key, SECTIONS)}"
        for key in values
        if key not in (*SECTIONS, *OF_EVALUATION)
    ]
    problems += [
        f"{key} has settings of its own, got {values[key]!r}. "
        + ("Type detection.texts=FILE." if key == "detection" else f"Choose by name: {key}=NAME.")
        for key in GROUPS
        if key in values and not isinstance(values[key], dict)
    ]
    return problems


def _plain(values: dict[str, Any]) -> list[str]:
    """Problems of the settings that have no dataclass of their own."""
    problems = []
    if type(values["seed"]) is not int:
        problems.append(f"seed must be a whole number, got {values['seed']!r}.")
    if type(values["dry_run"]) is not bool:
        problems.append(f"dry_run must be true or false, got {values['dry_run']!r}.")
    paths = values["paths"]
    texts = {
        "experiment_name": values["experiment_name"],
        "paths.output_dir": paths.get("output_dir"),
    }
    if paths.get("run_dir") is not None:
        texts["paths.run_dir"] = paths["run_dir"]
    problems += [
        f"{key} must be a name or a folder, got {value!r}. A number needs quotes: {key}=\"'7'\"."
        for key, value in texts.items()
        if not isinstance(value, str) or not value.strip()
    ]
    known = ("output_dir", "run_dir")
    problems += [
        f"There is no setting 'paths.{key}'.{nearest(key, known)}"
        for key in paths
        if key not in known
    ]
    return problems


def _logger(values: dict[str, Any]) -> list[str]:
    name = values.get("name")
    if name not in LOGGERS:
        return [f"logger is one of {', '.join(LOGGERS)}; got {name!r}."]
    # debug=fast sets logger.mode also where there is no logger
    known = ("name", "project", "mode", "watch_every", "watch_budget")
    problems = [
        f"There is no setting 'logger.{key}'.{nearest(key, known)}"
        for key in values
        if key not in known
    ]
    if name == "wandb" and values.get("mode") not in WANDB_MODES:
        modes = ", ".join(WANDB_MODES)
        problems.append(f"logger.mode is one of {modes}; got {values.get('mode')!r}.")
    every, budget = values.get("watch_every"), values.get("watch_budget")
    if type(every) is not int or every < 0:
        problems.append(f"logger.watch_every is a number of steps, 0 for never; got {every!r}.")
    if budget is not None and (type(budget) not in (int, float) or not budget > 0):
        problems.append(
            f"logger.watch_budget is a share of the training time, such as 0.01, or null; got "
            f"{budget!r}."
        )
    return problems


def _strict(kind: Any, values: Mapping[str, Any], section: str) -> Any:
    known = [f.name for f in dataclasses.fields(kind)]
    if unknown := [key for key in values if key not in known]:
        key = unknown[0]
        raise ConfigError(
            f"There is no setting '{section}.{key}'; there are {', '.join(known)}."
            + nearest(key, known)
        )
    return kind(**values)


def _trainer(values: dict[str, Any]) -> dict[str, Any]:
    """Check names and plain types against SFTConfig itself, so that its docs apply."""
    from trl.trainer.sft_config import SFTConfig

    values = _known_fields(SFTConfig, values, "trainer", ("output_dir", "seed"))
    problems = [
        f"trainer.{key} must be at least {least}, got {values[key]!r}."
        for key, least in LEAST.items()
        if isinstance(values.get(key), (int, float)) and not least <= values[key] < float("inf")
    ]
    steps, epochs = (
        values.get(name, getattr(SFTConfig, name)) for name in ("max_steps", "num_train_epochs")
    )
    if steps == 0 or (steps < 0 and epochs <= 0):
        problems.append(
            f"trainer.max_steps={steps} and num_train_epochs={epochs} train nothing: one of them "
            "must be above 0."
        )
    if problems:
        raise ConfigError("\n".join(problems))
    return values


def _peft(values: dict[str, Any]) -> dict[str, Any] | None:
    values = dict(values)
    name = values.pop("name")
    if name == "none":
        if values:
            raise ConfigError(f"peft=none has no settings; found {', '.join(values)}: peft=lora?")
        return None
    from peft import LoraConfig

    return _known_fields(LoraConfig, values, "peft", ())


def _known_fields(
    kind: Any, values: dict[str, Any], section: str, ours: Iterable[str]
) -> dict[str, Any]:
    hints = {f.name: _type_name(f.type) for f in dataclasses.fields(kind) if f.init}
    problems = []
    for key, value in values.items():
        if key in ours:
            problems.append(f"{section}.{key} is set by wemask itself; see seed and paths.")
        elif key not in hints:
            problems.append(
                f"There is no setting '{section}.{key}': {kind.__name__} has no such field."
                + nearest(key, hints)
            )
        elif not _fits(value, hints[key]):
            problems.append(f"{section}.{key} must be {hints[key]}, got {value!r}.")
    if problems:
        raise ConfigError("\n".join(problems))
    return values


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _fits(value: Any, hint: str) -> bool:
    """Whether a YAML value fits a field of only plain types; others are left to the class."""
    names = set(re.findall(r"\w+", hint)) - {"Optional", "Union", "typing"}
    if not names <= {"int", "float", "bool", "str", "None"} or (value is None and "None" in names):
        return True
    if value is None:
        return False
    kind = type(value).__name__
    return kind in names or (kind == "int" and "float" in names)
