"""What a run trains: the model, softened, with the report that found its ME Layer."""

import dataclasses
from typing import Any

from torch import nn

from wemask import distributed
from wemask.checkpoint.pretrained import load_both
from wemask.data import chat
from wemask.detection.detect import detect
from wemask.detection.me_layer import MELayerReport
from wemask.errors import ConfigError
from wemask.files import digest
from wemask.operator.handle import SoftenHandle
from wemask.operator.patch import soften
from wemask.settings.config import RunConfig
from wemask.settings.texts import DetectionConfig
from wemask.train.adapters import load_adapted


@dataclasses.dataclass(kw_only=True)
class Prepared:
    """A model ready to be trained or evaluated."""

    model: nn.Module
    tokenizer: Any
    report: MELayerReport
    handle: SoftenHandle | None
    template_note: str | None


def load_base(config: RunConfig) -> tuple[nn.Module, Any, str | None]:
    """The run's model as published, its tokenizer, and what was done about its chat template.

    Raises:
        ConfigError: it is an adapter, and `model.adapter` does not say what to do with that.
        ModelError: there is no such model, or nothing that ends an answer.
    """
    model, tokenizer = load_adapted(config) or load_both(config.model)
    if config.trains and getattr(model, "_hf_peft_config_loaded", False):  # one of the hub
        raise ConfigError(
            f"{config.model.path} is an adapter, which another training would drop. Download it, "
            f"then say what to do with it: hf download {config.model.path} --local-dir FOLDER, "
            "model.path=FOLDER model.adapter=continue (or merge)."
        )
    return model, tokenizer, chat.ensure_chat_template(tokenizer)


def prepare(config: RunConfig, examples: Any = ()) -> Prepared:
    """Load, detect (reading some of `examples`, too), and soften where the method asks for it.

    Raises:
        WemaskError: whatever is wrong, before anything is trained.
    """
    distributed.agree(config.model.path, "the weights that are loaded")  # each asked the hub itself
    model, tokenizer, note = load_base(config)
    report = _detect_together(config, model, tokenizer, examples)
    handle = soften(model, report, config.operator) if config.softens else None
    if handle is not None:
        touched = {"dims": handle.dims, "tokens": handle.tokens_touched}
        distributed.agree(digest(touched), "the dims and tokens that are softened")
    return Prepared(
        model=model, tokenizer=tokenizer, report=report, handle=handle, template_note=note
    )


def detect_run(
    config: RunConfig, model: nn.Module, tokenizer: Any, examples: Any = ()
) -> MELayerReport:
    """Detect as the run's settings say.

    Raises:
        DataError, DetectionError: texts that cannot be read, or nothing to read.
    """
    limit = config.trainer_value("max_length")
    read = reading(config.detection, tokenizer, examples, limit)
    return detect(model, tokenizer, criterion=config.model.criterion, **read)


def reading(
    settings: DetectionConfig, tokenizer: Any, examples: Any, max_length: int | None
) -> dict[str, Any]:
    """What detection reads in a run, as arguments of `detect` and `recalibrate`.

    Raises:
        DataError: texts that cannot be read.
    """
    count = min(settings.examples, len(examples))
    shown = [chat.loss_mask(examples[i], tokenizer, max_length=max_length) for i in range(count)]
    return {
        "texts": settings.read_texts(),
        "chats": settings.chats,
        "examples": [mask.input_ids for mask in shown],
    }


def _detect_together(
    config: RunConfig, model: nn.Module, tokenizer: Any, examples: Any
) -> MELayerReport:
    """Detect once, on rank 0, before anything is sharded; every rank gets the same report."""
    if not distributed.started():
        return detect_run(config, model, tokenizer, examples)
    values = distributed.on_main(lambda: detect_run(config, model, tokenizer, examples).to_dict())
    distributed.agree(digest(values), "the ME Layer")
    return MELayerReport.from_dict(values)
