"""Which model the options of a `wemask` command mean, and by which criterion it is detected."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from wemask.settings.composition import compose, conf_dir, section

if TYPE_CHECKING:  # `wemask --help` waits for no torch
    from wemask.settings.config import ModelConfig

NAMES = sorted({path.stem for path in (conf_dir() / "model").glob("*.yaml")} - {"custom"})
MODEL = f"name of conf/model ({', '.join(NAMES)}), ORG/NAME of the hub, folder, or GGUF file"
CALIBRATION = ".txt or data file of texts that detection reads [38 built-in texts]"
RESIZE = "add rows to the embedding for tokens beyond it"
CRITERION = "what is massive [as in conf/model]"
_PLACEHOLDER = "another"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The options that choose a model, what its detection reads, and the criterion."""

    model: Annotated[str, Option(help=MODEL, autocompletion=lambda: NAMES)]
    revision: Annotated[str | None, Option(help="branch, tag or commit of a hub model")] = None
    dtype: Annotated[str | None, Option(help="auto, float32, bfloat16 or float16")] = None
    device_map: Annotated[str | None, Option(help="auto spreads one that fits no device")] = None
    trust_remote_code: Annotated[bool, Option("--trust-remote-code", help="run its code")] = False
    resize: Annotated[bool, Option("--resize", help=RESIZE)] = False
    calibration: Annotated[Path | None, Option(help=CALIBRATION)] = None
    no_chats: Annotated[bool, Option("--no-chats", help="detect on no chats as well")] = False
    criterion: Annotated[Literal["sun2024", "relative"] | None, Option(help=CRITERION)] = None
    min_magnitude: Annotated[float | None, Option(help="of the criterion: smallest |h|")] = None
    min_ratio: Annotated[float | None, Option(help="smallest |h| over the median")] = None
    min_jump: Annotated[float | None, Option(help="smallest growth over the layer before")] = None

    def config(self) -> "ModelConfig":
        """The model, with the settings of conf/model where it has a file.

        Raises:
            ConfigError: a setting that makes no sense.
        """
        from wemask.settings.config import ModelConfig

        values = section(compose("train", model_overrides(self.model)), "model")
        if values["path"] == _PLACEHOLDER:  # any folder name will do: it is not parsed by Hydra
            values["path"] = self.model
        for key in ("revision", "dtype", "device_map"):
            if getattr(self, key) is not None:
                values[key] = getattr(self, key)
        values["trust_remote_code"] |= self.trust_remote_code
        values["resize"] = values.get("resize", False) or self.resize
        return ModelConfig.from_values(values)

    def detection_arguments(self, config: "ModelConfig") -> dict[str, Any]:
        """The arguments of `detect` that the options mean.

        Raises:
            DetectionError: a threshold that makes no sense.
            DataError: calibration texts that cannot be read.
        """
        from wemask.settings.texts import DetectionConfig

        texts = str(self.calibration) if self.calibration else None
        settings = DetectionConfig(texts=texts, chats=not self.no_chats)
        criterion = self._criterion_arguments(config)
        return {"texts": settings.read_texts(), "chats": settings.chats, **criterion}

    def _criterion_arguments(self, config: "ModelConfig") -> dict[str, Any]:
        """None means the model's own criterion."""
        names = ("min_magnitude", "min_ratio", "min_jump")
        given = {key: getattr(self, key) for key in names if getattr(self, key) is not None}
        own = config.criterion
        if self.criterion is not None and (own is None or own.name != self.criterion):
            return {"criterion": self.criterion, **given}
        return given if own is None else {"criterion": dataclasses.replace(own, **given)}


def model_overrides(name: str) -> list[str]:
    """The Hydra words that choose the model `name`; a folder is put in afterwards."""
    return [f"model={name}"] if name in NAMES else ["model=custom", f"model.path={_PLACEHOLDER}"]


def takes_model(command: Callable[..., None]) -> Callable[..., None]:
    """Show typer each field of `ModelOptions` in place of a command's parameter `chosen`."""
    fields = inspect.signature(ModelOptions).parameters
    others = dict(inspect.signature(command).parameters)
    del others["chosen"]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        chosen = ModelOptions(**{name: given.pop(name) for name in fields})
        command(chosen=chosen, **given)

    shown = [p.replace(kind=p.KEYWORD_ONLY) for p in (*fields.values(), *others.values())]
    run.__signature__ = inspect.Signature(shown)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run
