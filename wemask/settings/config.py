"""Composed config -> typed settings; below `train`, `launch` and `evaluate`, plain arguments.

`composition.py` makes the config of a command line; here it is checked, by the dataclasses that it
becomes. Run folders come from the settings, never from the clock.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, get_args

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # typing's is not enough for pydantic before Python 3.12

from wemask.data.examples import DataConfig
from wemask.data.schema import STRICT, Number, Seed, Text, Whole, problems, settings
from wemask.detection.me_layer import Criterion
from wemask.errors import ConfigError, nearest
from wemask.files import check_length, digest, inside
from wemask.operator.settings import WeMaskConfig
from wemask.settings import engines, packaged
from wemask.settings.launcher import LauncherConfig
from wemask.settings.library_fields import check_finite, peft_fields, trainer_fields
from wemask.settings.texts import DetectionConfig

Method = Literal["base", "training_free", "sft", "wemask"]
METHODS: tuple[str, ...] = get_args(Method)


@settings("model")
class ModelConfig:
    """Which model, and how it is loaded."""

    name: Annotated[Text, AfterValidator(inside)]
    """Short name, for folders and tables."""
    path: Text
    """`tiny`, a folder, a GGUF file, `package:...` (`packaged.py`), or ORG/NAME."""
    fallback: Text | None = None
    """What is loaded instead where the hub cannot be reached and its cache has no `path`."""
    stands_for: str | None = None
    """The hub model that could not be reached; `path` is its fallback then. Not a setting."""
    revision: Text | None = None
    dtype: Text = "auto"
    attn_implementation: Text | None = None
    device_map: Text | None = None
    trust_remote_code: bool = False
    resize: bool = False
    """Add rows to the embedding where the tokenizer has tokens beyond it, instead of refusing."""
    adapter: Literal["refuse", "continue", "merge"] = "refuse"
    """Where `path` is an adapter: train it further, or a new one on what it is merged into."""
    parts: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Names of architecture parts that are not recognised: model.wemask_parts."""
    criterion: Criterion | None = None
    """None: what the model's own config says (`wemask_criterion`), else sun2024."""

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
        known = [f.name for f in dataclasses.fields(Criterion)]
        if unknown := [key for key in given if key not in known]:
            hint = nearest(unknown[0], known) or f" There are {', '.join(known)}."
            raise ConfigError(f"model.criterion.{unknown[0]} does not exist.{hint}")
        if given and "name" not in given:
            raise ConfigError("model.criterion needs its name too: model.criterion.name=relative.")
        sections = {
            "name": values.get("name") or packaged.short_name(str(values["path"])),
            "criterion": Criterion(**given) if given else None,
            "parts": values.get("parts") or {},
        }
        config = cls(**{**values, **sections})
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
        """A field of SFTConfig: what was composed, else its own default."""
        from trl.trainer.sft_config import SFTConfig

        return self.trainer.get(name, getattr(SFTConfig, name))

    def identity(self) -> dict[str, Any]:
        """Every setting that can change the result, as plain values.

        An engine does not: it says where the numbers are, not what they are.
        """
        model = dataclasses.asdict(self.model)
        del model["fallback"], model["stands_for"]  # `path` says which weights were loaded
        # Run folders of 0.1 keep their names.
        values_of_today = {"resize": False, "adapter": "refuse"}
        model = {k: v for k, v in model.items() if (k, v) not in values_of_today.items()}
        values: dict[str, Any] = {"model": model, "method": self.method}
        if self.softens:
            values |= {"operator": self.operator.to_dict(), **self.detection_settings()}
        if self.trains:
            values |= {
                "seed": self.seed,
                "data": self.data.identity(),
                "trainer": {k: v for k, v in self.trainer.items() if k not in engines.PASSED_ON},
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


class Chosen(TypedDict):
    """The method."""

    name: Method


class Paths(TypedDict):
    """Where a run goes."""

    output_dir: Text
    run_dir: NotRequired[Text | None]


class Logger(TypedDict):
    """W&B, or none; debug=fast gives a mode to none, too."""

    name: Literal["none", "wandb"]
    project: NotRequired[Text]
    mode: NotRequired[Literal["offline", "online", "disabled"]]
    watch_every: Whole
    watch_budget: NotRequired[Annotated[Number, Field(gt=0)] | None]


def _complete(logger: Logger) -> Logger:
    for key in ("project", "mode"):
        if logger["name"] == "wandb" and key not in logger:
            raise ConfigError(f"logger=wandb lacks logger.{key}. Leave ~logger.{key} out.")
    return logger


def _check_evaluation(data: DataConfig, trainer: dict[str, Any]) -> None:
    """Refuse to evaluate while training on nothing."""
    needing = ("load_best_model_at_end", "eval_on_start")
    asked = [key for key in needing if trainer.get(key)]
    if trainer.get("eval_strategy") not in (None, "no", False):
        asked.append("eval_strategy")
    if asked and data.validation is None:
        raise ConfigError(
            f"trainer.{asked[-1]}={trainer[asked[-1]]} needs data to evaluate on. Type "
            "data.validation=0.05, a share of the training data, or data.validation=FILE."
        )


Section = dict[str, Any]


@with_config(STRICT)
class Composed(TypedDict):
    """A composed config, and what becomes of its sections."""

    model: Annotated[Section, AfterValidator(ModelConfig.from_values)]
    method: Chosen
    operator: Annotated[Section, AfterValidator(WeMaskConfig.from_dict)]
    data: Annotated[Section, AfterValidator(lambda section: DataConfig(**section))]
    trainer: Annotated[Section, AfterValidator(trainer_fields)]
    peft: Annotated[Section, AfterValidator(peft_fields)]
    deepspeed: Annotated[Section, AfterValidator(engines.deepspeed_settings)]
    fsdp: Annotated[Section, AfterValidator(engines.fsdp_settings)]
    logger: Annotated[Logger, AfterValidator(_complete)]
    paths: Paths
    launcher: Annotated[Section, AfterValidator(lambda section: LauncherConfig(**section))]
    detection: Annotated[Section, AfterValidator(lambda section: DetectionConfig(**section))]
    seed: Seed
    dry_run: bool
    experiment_name: Annotated[Text, AfterValidator(inside)]
    # of evaluate.py
    tasks: NotRequired[Any]
    arms: NotRequired[Any]
    limit: NotRequired[Any]
    batch_size: NotRequired[Any]
    train_missing: NotRequired[Any]
    eval_seed: NotRequired[Seed]


_COMPOSED = TypeAdapter(Composed)


def run_config(cfg: Any, typed: Sequence[str] = ()) -> RunConfig:
    """Turn a composed config into typed settings; `typed` is the command line it came from.

    Raises:
        ConfigError: every problem that is found, together.
    """
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(cfg, resolve=True)
    if unbounded := [*check_finite(values)]:
        raise ConfigError("\n".join(unbounded))
    try:
        made: dict[str, Any] = {**_COMPOSED.validate_python(values)}
    except ValidationError as error:
        raise ConfigError("\n".join(problems(error, "", values))) from error
    engines.check_one_engine(made["deepspeed"], made["fsdp"], made["trainer"])
    _check_evaluation(made["data"], made["trainer"])
    sections = ("model", "operator", "data", "trainer", "peft", "deepspeed", "fsdp", "logger")
    run_dir = made["paths"].get("run_dir")
    config = RunConfig(
        **{name: made[name] for name in (*sections, "launcher", "detection", "seed", "dry_run")},
        typed=tuple(typed),
        method=made["method"]["name"],
        output_dir=Path(made["paths"]["output_dir"]),
        run_dir=Path(run_dir) if run_dir else None,
        experiment=made["experiment_name"],
    )
    check_length(config.folder())
    return config
