"""Command line -> Hydra -> one composed config, and errors that name the nearest key or value.

`config.py` turns what comes out of here into typed settings.
"""

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from wemask import distributed, terminal
from wemask.distributed import adopt_environment
from wemask.errors import ConfigError, WemaskError, nearest

# Fields of SFTConfig, LoraConfig, DeepSpeed's JSON and fsdp_config, by their own names; options of
# sbatch, and variables; what the file of a model need not say.
PASSED_THROUGH = re.compile(
    r"(trainer|peft|deepspeed|fsdp)\.\w|launcher\.(options|env)[.=]|model\.(adapter|resize)="
)
SLURM = "launcher/slurm.yaml"
MULTIRUN = ("-m", "--multirun")
OPTIONAL_GROUPS = ("experiment", "debug")  # Hydra ignores an unknown name of these: we do not


def conf_dir() -> Path:
    """The folder of the configs: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / "train.yaml").exists():
            return folder
    raise ConfigError(f"The configs were sought in {package.parent / 'conf'} and not found.")


def command(name: str, run: Callable[[Any, list[str]], None]) -> list[str]:
    """Run a Hydra application: `conf/<name>.yaml`, our errors, exit code 2 for the user's.

    `run` gets the composed config of each job, and the words of the command line as typed, which
    are returned.
    """
    import hydra

    # Python puts the folder of the script first on the path, where our evaluate.py would shadow the
    # `evaluate` package that lm-eval imports. Last is early enough for the script itself.
    sys.path.append(sys.path.pop(0))
    with exit_on_error():
        terminal.take_flags(sys.argv)
        adopt_environment()
    typed = sys.argv[1:]
    sys.argv[1:] = normalise(typed)
    begun: list[Any] = []

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)
    def main(cfg: Any) -> None:
        begun.append(cfg)
        with exit_on_error():
            run(cfg, typed)

    with exit_on_error():
        flags = {word for word in sys.argv[1:] if word.startswith("-")}
        if flags <= set(MULTIRUN):  # not --help, --cfg and the like
            words = [word for word in sys.argv[1:] if word not in flags]
            sweep = flags or any(_is_sweep(word) for word in words)
            compose(name, [_first_of_sweep(word) for word in words] if sweep else words)
        _start(main, begun)
    return typed


def _start(main: Callable[[], None], begun: Sequence[Any]) -> None:
    """Let Hydra run the application; what it refuses before a job has `begun` is one of ours."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else it prints lines of its own, and exits with 1
    try:
        main()
    except Exception as error:
        if begun:
            raise
        said = " ".join(str(error).split())[:600]
        raise ConfigError(f"Hydra refuses this command line: {said}") from error


def _is_sweep(word: str) -> bool:
    """Whether a word chooses an experiment that is a multirun by itself."""
    group, _, name = word.partition("=")
    path = conf_dir() / "experiment" / f"{name}.yaml"
    if group != "experiment" or not path.exists():
        return False
    return (yaml.safe_load(path.read_text()).get("hydra") or {}).get("mode") == "MULTIRUN"


def _first_of_sweep(word: str) -> str:
    """`seed=0,1` -> `seed=0`; lists, quoted values and sweep functions are left alone."""
    key, _, value = word.partition("=")
    return word if re.search(r"[\[({'\"]", value) else f"{key}={value.split(',')[0]}"


@contextmanager
def exit_on_error() -> Iterator[None]:
    """One message and exit code 2 instead of a traceback, for errors that are the input's."""
    try:
        yield
    except WemaskError as error:
        distributed.say_once(error)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("\nInterrupted. The same command resumes.", file=sys.stderr)
        raise SystemExit(2) from None


def normalise(arguments: Sequence[str]) -> list[str]:
    """Let fields of SFTConfig, LoraConfig and the like be set though the YAML does not list all.

    `trainer.max_steps=20` becomes `++trainer.max_steps=20`; names are checked later against the
    classes themselves. `tasks=[arc_easy]`, a task of lm-eval that has no YAML here, is added.
    `model.path=ORG/NAME` alone means another model than `tiny`, without the settings of `tiny`.
    """
    words = [
        word
        for argument in arguments
        for word in _split_tasks(f"++{argument}" if PASSED_THROUGH.match(argument) else argument)
    ]
    chosen = any(word.startswith("model=") for word in words)
    another = any(word.startswith("model.path=") for word in words)
    # argparse, which Hydra uses, gives up on words on both sides of a flag.
    sweep = [word for word in words if word in MULTIRUN]
    custom = ["model=custom"] if another and not chosen else []
    return [*sweep, *custom, *(word for word in words if word not in MULTIRUN)]


def train_overrides(arguments: Sequence[str]) -> list[str]:
    """Those of evaluate.py's command-line settings that choose the runs it compares.

    `paths.run_dir` is not one of them: there it is the folder of the comparison.
    """
    own = r"tasks|arms|limit|batch_size|train_missing|eval_seed|method|dry_run|paths\.run_dir"
    return [word.lstrip("+") for word in arguments if not re.match(rf"\+*({own})\b", word)]


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

    words = normalise(overrides)
    for word in words:
        _refuse(word)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            for word in words:
                group, _, option = word.lstrip("+").partition("=")
                if group in OPTIONAL_GROUPS and option != "null" and not _chooses(word.lstrip("+")):
                    raise ConfigError(_unknown_option(group, option))
            cfg = hydra_compose(name, overrides=words)
            OmegaConf.resolve(cfg)
        except (HydraException, OmegaConfBaseException) as error:
            near = hydra_compose(name, overrides=[word for word in words if _chooses(word)])
            raise ConfigError(_explain(error, near)) from error
        except ValueError as error:
            # Hydra's own checks of a group choice: trainer=null, =3
            raise ConfigError(
                f"{error}. A group is chosen by name, such as method=sft or peft=none."
            ) from error
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise ConfigError(f"{missing[0]} has no value yet. Type {missing[0]}=VALUE.")
    return cfg


def _refuse(word: str) -> None:
    """Raise ConfigError for what Hydra would do, and a run cannot be without or cannot have."""
    if section := re.fullmatch(r"~(\w+)(=.*)?", word):
        name = section[1]
        options = ", ".join(sorted(path.stem for path in (conf_dir() / name).glob("*.yaml")))
        choose = f" Choose {name}= one of {options}." if options else ""
        raise ConfigError(f"{word} leaves out {name}, which a run needs.{choose}")
    if re.match(r"\+*hydra\.(run|sweep)\.(sub)?dir=", word):
        raise ConfigError(
            f"{word}: a run's folder comes from its settings. Give paths.output_dir, or "
            "paths.run_dir."
        )


def _chooses(word: str) -> bool:
    """Whether a word is GROUP=OPTION with an option that exists."""
    group, _, option = word.partition("=")
    return bool(re.fullmatch(r"\w+", group)) and (conf_dir() / group / f"{option}.yaml").exists()


def _explain(error: Exception, default: Any) -> str:
    text = str(error)
    if match := re.search(r"Could not override '([\w./@]+)'", text):
        return _unknown_key(match[1], default)
    if match := re.search(r"Could not find '([\w]+)/(.+?)'", text):
        return _unknown_option(match[1], match[2])
    return text


def _unknown_option(group: str, value: str) -> str:
    options = sorted(p.stem for p in (conf_dir() / group).glob("*.yaml"))
    hint = " Any other model: model.path=ORG/NAME or a folder." if group == "model" else ""
    return (
        f"{group}={value} does not exist; {group} is one of {', '.join(options)}."
        f"{nearest(value, options)}{hint}"
    )


def _unknown_key(key: str, default: Any) -> str:
    from omegaconf import OmegaConf

    known = [*_keys(OmegaConf.to_container(default, resolve=False))]
    groups = [path.name for path in conf_dir().iterdir() if path.is_dir()]
    options = [*known, *groups]
    message = f"There is no setting {key!r}."
    section, _, name = key.partition(".")
    if section == "launcher" and name in yaml.safe_load((conf_dir() / SLURM).read_text()):
        return f"{message} It is one of launcher=slurm: type that, too."
    if hint := nearest(key, options):
        return message + hint
    inside = [k for k in known if k.startswith(section + ".")] or sorted(set(options))
    return f"{message} There are: {', '.join(k for k in inside if k.count('.') < 2)}."


def _keys(values: Any, prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def section(cfg: Any, name: str) -> dict[str, Any]:
    """One section of a composed config, as plain values."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(cfg[name], resolve=True)
    return values


def job_words() -> list[str]:
    """The settings of this job: the command line's, of a sweep only this job's."""
    from hydra.core.hydra_config import HydraConfig

    return [str(word) for word in HydraConfig.get().overrides.task]


def script_path(name: str) -> Path:
    """Where train.py or evaluate.py is.

    Raises:
        ConfigError: not beside the package (an installation from a wheel has none).
    """
    path = Path(__file__).resolve().parents[2] / name
    if not path.exists():
        raise ConfigError(f"{path} was sought and not found. Work in a checkout of wemask.")
    return path


def shown(script: str, words: Sequence[str]) -> str:
    """A command as one would type it."""
    return shlex.join(["python", script, *words])
