"""Command line -> Hydra -> typed settings. Below this file there are only plain arguments.

Composition errors name the nearest key or value; all others are checked by the dataclasses that
they become. Run folders come from the settings, never from the clock.
"""

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from wemask.data import DataConfig
from wemask.errors import ConfigError, WemaskError, nearest
from wemask.me_layer import Criterion
from wemask.operator import WeMaskConfig

METHODS = ("base", "training_free", "sft", "wemask")
PASSED_THROUGH = ("trainer", "peft")  # fields of SFTConfig and LoraConfig, by their own names


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how it is loaded."""

    name: str
    """Short name, for folders and tables."""
    path: str
    """`tiny`, a folder, or ORG/NAME."""
    revision: str | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False
    parts: dict[str, str] = dataclasses.field(default_factory=dict)
    """Names of architecture parts that are not recognised: model.wemask_parts."""
    criterion: Criterion = dataclasses.field(default_factory=Criterion)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "ModelConfig":
        """Build from the `model` section of a config.

        Raises:
            ConfigError: no path, an unknown key, or a criterion that makes no sense.
        """
        if not values.get("path"):
            raise ConfigError("model.path is empty. Type model=tiny, or model.path=ORG/NAME.")
        criterion = _strict(Criterion, values.get("criterion") or {}, "model.criterion")
        name = values.get("name") or Path(values["path"]).name
        parts = values.get("parts") or {}
        return _strict(
            cls, {**values, "name": name, "criterion": criterion, "parts": parts}, "model"
        )

    def load_options(self) -> dict[str, Any]:
        """Arguments of `wemask.loading.load_model`."""
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

    @property
    def trains(self) -> bool:
        """Whether the method has anything to train."""
        return self.method in ("sft", "wemask")

    @property
    def softens(self) -> bool:
        """Whether the method has the operator on."""
        return self.method in ("training_free", "wemask")

    def identity(self) -> dict[str, Any]:
        """Every setting that can change the result, as plain values."""
        values: dict[str, Any] = {
            "model": dataclasses.asdict(self.model),
            "method": self.method,
            "seed": self.seed,
        }
        if self.softens:
            values["operator"] = self.operator.to_dict()
        if self.trains:
            values |= {
                "data": dataclasses.asdict(self.data),
                "trainer": self.trainer,
                "peft": self.peft,
            }
        return values

    def folder(self) -> Path:
        """The run folder: the same for every rank and every requeued job of these settings."""
        if self.run_dir is not None:
            return self.run_dir
        name = f"{self.model.name}__{self.method}__s{self.seed}__{digest(self.identity())}"
        return self.output_dir / self.experiment / name

    def with_method(self, method: str) -> "RunConfig":
        """The same run with another method, in its own folder."""
        return dataclasses.replace(self, method=method, run_dir=None)


def digest(values: Any) -> str:
    """Eight hex digits of the settings, in any order of their keys."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def conf_dir() -> Path:
    """The folder of the configs: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / "train.yaml").exists():
            return folder
    raise ConfigError(f"The configs were sought in {package.parent / 'conf'} and not found.")


# --- command line ---------------------------------------------------------------------------------


def command(name: str, run: Callable[[Any], None]) -> None:
    """Run a Hydra application: `conf/<name>.yaml`, our errors, exit code 2 for the user's.

    Args:
        name: `train` or `evaluate`.
        run: gets the composed config.
    """
    import hydra

    sys.argv[1:] = normalise(sys.argv[1:])

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)
    def main(cfg: Any) -> None:
        with exit_on_error():
            run(cfg)

    with exit_on_error():
        if not any(word.startswith("-") for word in sys.argv[1:]):  # --help, --multirun, --cfg
            compose(name, sys.argv[1:])
    main()


class exit_on_error:  # noqa: N801  (reads as a statement)
    """One message and exit code 2 instead of a traceback, for errors that are the input's."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, WemaskError):
            print(f"\nError: {error}", file=sys.stderr)
            raise SystemExit(error.exit_code) from None
        if isinstance(error, KeyboardInterrupt):
            print("\nInterrupted. The same command resumes.", file=sys.stderr)
            raise SystemExit(2) from None


def normalise(arguments: Sequence[str]) -> list[str]:
    """Let fields of SFTConfig and LoraConfig be set though the YAML does not list them all.

    `trainer.max_steps=20` becomes `++trainer.max_steps=20`; names are checked later against the
    classes themselves. `tasks=[arc_easy]`, a task of lm-eval that has no YAML here, is added.
    `model.path=ORG/NAME` alone means another model than `tiny`, without the settings of `tiny`.
    """
    pattern = re.compile(rf"({'|'.join(PASSED_THROUGH)})\.\w")
    words = [
        word
        for argument in arguments
        for word in _split_tasks(f"++{argument}" if pattern.match(argument) else argument)
    ]
    chosen = any(word.startswith("model=") for word in words)
    another = any(word.startswith("model.path=") for word in words)
    return ["model=custom", *words] if another and not chosen else words


def train_overrides(arguments: Sequence[str]) -> list[str]:
    """Those of evaluate.py's command-line settings that train.py has as well."""
    ours = re.compile(r"\+*(tasks|arms|limit|batch_size|train_missing|method)\b")
    return [argument.lstrip("+") for argument in arguments if not ours.match(argument)]


def _split_tasks(argument: str) -> Iterable[str]:
    match = re.fullmatch(r"tasks=\[?([\w,\-. ]*)\]?", argument)
    if not match:
        return [argument]
    names = [name.strip() for name in match[1].split(",") if name.strip()]
    known = {path.stem for path in (conf_dir() / "tasks").glob("*.yaml")}
    ours = [name for name in names if name in known]
    theirs = [f"++tasks.{name}.path=null" for name in names if name not in known]
    return [f"tasks=[{','.join(ours)}]", *theirs]


def compose(name: str, overrides: Sequence[str]) -> Any:
    """Compose `conf/<name>.yaml` with command-line overrides.

    Raises:
        ConfigError: an unknown key, group or value; the nearest is named.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            cfg = hydra_compose(name, overrides=normalise(overrides))
            OmegaConf.resolve(cfg)
            return cfg
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_explain(error, hydra_compose(name))) from error


def _explain(error: Exception, default: Any) -> str:
    text = str(error)
    if match := re.search(r"Could not override '([\w./@]+)'", text):
        return _unknown_key(match[1], default)
    if match := re.search(r"Could not find '([\w]+)/(.+?)'", text):
        group, value = match[1], match[2]
        options = sorted(p.stem for p in (conf_dir() / group).glob("*.yaml"))
        hint = " Any other model: model.path=ORG/NAME or a folder." if group == "model" else ""
        return (
            f"{group}={value} does not exist; {group} is one of {', '.join(options)}."
            f"{nearest(value, options)}{hint}"
        )
    return text


def _unknown_key(key: str, default: Any) -> str:
    known = _keys(default)
    groups = [path.name for path in conf_dir().iterdir() if path.is_dir()]
    options = [*known, *groups]
    message = f"There is no setting {key!r}."
    if hint := nearest(key, options):
        return message + hint
    section = key.split(".")[0]
    inside = [k for k in known if k.startswith(section + ".")] or sorted(set(options))
    return f"{message} There are: {', '.join(k for k in inside if k.count('.') < 2)}."


def _keys(node: Any, prefix: str = "") -> list[str]:
    from omegaconf import DictConfig

    keys = []
    for key, value in node.items_ex(resolve=False):
        keys.append(f"{prefix}{key}")
        if isinstance(value, DictConfig) and not value._is_none():
            keys += _keys(value, f"{prefix}{key}.")
    return keys


# --- DictConfig -> dataclasses --------------------------------------------------------------------


def run_config(cfg: Any) -> RunConfig:
    """Turn a composed config into typed settings.

    Raises:
        ConfigError: every problem that is found, together.
    """
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(cfg, resolve=True)
    problems: list[str] = []

    def checked(build: Callable[[], Any]) -> Any:
        try:
            return build()
        except WemaskError as error:
            problems.append(str(error))
            return None

    method = values["method"]["name"]
    if method not in METHODS:
        problems.append(f"method is one of {', '.join(METHODS)}; got {method!r}.")
    parts: dict[str, Any] = {
        "model": checked(lambda: ModelConfig.from_values(values["model"])),
        "operator": checked(lambda: WeMaskConfig.from_dict(values["operator"])),
        "data": checked(lambda: _strict(DataConfig, values["data"], "data")),
        "trainer": checked(lambda: _trainer(values["trainer"])),
        "peft": checked(lambda: _peft(values["peft"])),
    }
    if type(values["seed"]) is not int:
        problems.append(f"seed must be a whole number, got {values['seed']!r}.")
    if problems:
        raise ConfigError("\n".join(problems))
    run_dir = values["paths"]["run_dir"]
    return RunConfig(
        **parts,
        method=method,
        logger=values["logger"],
        output_dir=Path(values["paths"]["output_dir"]),
        run_dir=Path(run_dir) if run_dir else None,
        experiment=values["experiment_name"],
        seed=values["seed"],
        dry_run=bool(values.get("dry_run", False)),
    )


def section(cfg: Any, name: str) -> dict[str, Any]:
    """One section of a composed config, as plain values."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(cfg[name], resolve=True)
    return values


def _strict(kind: Any, values: dict[str, Any], section: str) -> Any:
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
    from trl import SFTConfig

    return _known_fields(SFTConfig, values, "trainer", ("output_dir", "seed"))


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
