"""Which model the options of a `wemask` command mean, and by which criterion it is detected."""

import argparse
import dataclasses
from typing import Any

from wemask.settings.composition import compose, conf_dir, section
from wemask.settings.config import ModelConfig
from wemask.settings.texts import DetectionConfig


def model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a model and a criterion."""
    names = ", ".join(sorted(p.stem for p in (conf_dir() / "model").glob("*.yaml")))
    parser.add_argument(
        "--model",
        required=True,
        help=f"a name of conf/model ({names}), ORG/NAME of the hub, a folder, or a GGUF file",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument("--dtype", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--device-map", help="auto spreads a model that does not fit one device")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own code")
    reading = parser.add_argument_group("what detection reads")
    reading.add_argument(
        "--calibration", metavar="FILE", help=".txt or data file of texts [38 built-in texts]"
    )
    reading.add_argument(
        "--no-chats", action="store_true", help="not through the chat template as well"
    )
    criterion = parser.add_argument_group("criterion, default as in conf/model")
    criterion.add_argument("--criterion", choices=("sun2024", "relative"))
    criterion.add_argument("--min-magnitude", type=float, help="smallest |h|")
    criterion.add_argument("--min-ratio", type=float, help="smallest |h| over the median")
    criterion.add_argument("--min-jump", type=float, help="smallest growth over the layer before")


_PLACEHOLDER = "another"


def model_overrides(name: str) -> list[str]:
    """The Hydra words that choose the model `name`; a folder is put in afterwards."""
    known = {p.stem for p in (conf_dir() / "model").glob("*.yaml")} - {"custom"}
    return [f"model={name}"] if name in known else ["model=custom", f"model.path={_PLACEHOLDER}"]


def model_config(options: argparse.Namespace) -> ModelConfig:
    """The model that the options name, with the settings of conf/model where it has a file.

    Raises:
        ConfigError: a setting that makes no sense.
    """
    values = section(compose("train", model_overrides(options.model)), "model")
    if values["path"] == _PLACEHOLDER:  # any folder name will do: it is not parsed by Hydra
        values["path"] = options.model
    for key in ("revision", "dtype", "device_map"):
        if getattr(options, key) is not None:
            values[key] = getattr(options, key)
    values["trust_remote_code"] |= options.trust_remote_code
    return ModelConfig.from_values(values)


def detection_arguments(options: argparse.Namespace, config: ModelConfig) -> dict[str, Any]:
    """The arguments of `detect` that the options mean.

    Raises:
        DetectionError: a threshold that makes no sense.
        DataError: calibration texts that cannot be read.
    """
    settings = DetectionConfig(texts=options.calibration, chats=not options.no_chats)
    texts = settings.read_texts()
    return {"texts": texts, "chats": settings.chats, **_criterion_arguments(options, config)}


def _criterion_arguments(options: argparse.Namespace, config: ModelConfig) -> dict[str, Any]:
    """None means the model's own criterion."""
    names = ("min_magnitude", "min_ratio", "min_jump")
    given = {key: getattr(options, key) for key in names if getattr(options, key) is not None}
    own = config.criterion
    if options.criterion is not None and (own is None or own.name != options.criterion):
        return {"criterion": options.criterion, **given}
    return given if own is None else {"criterion": dataclasses.replace(own, **given)}


def load(options: argparse.Namespace) -> tuple[ModelConfig, Any, Any]:
    """The settings, the model and its tokenizer.

    Raises:
        ConfigError, ModelError: a setting that makes no sense, or no such model.
    """
    from wemask.checkpoint.pretrained import load_model, load_tokenizer

    config = model_config(options)
    model = load_model(config.path, **config.load_options())
    tokenizer = load_tokenizer(
        config.path, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    return config, model, tokenizer
