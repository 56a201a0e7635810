"""A PEFT adapter on its base model, read strictly: PEFT would only warn of what is missing."""

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from wemask.checkpoint.model_folder import ADAPTER, ADAPTER_CONFIG, check_folder, tensor_names
from wemask.errors import ModelError, judged_by
from wemask.files import read_json


def is_adapter(folder: Path) -> bool:
    """True for a PEFT adapter, which holds no base model."""
    return (folder / ADAPTER_CONFIG).exists()


def read_adapter(folder: Path) -> dict[str, Any]:
    """What adapter_config.json says; ModelError: it, or the weights beside it, is damaged."""
    check_folder(str(folder), folder)
    return read_json(folder / ADAPTER_CONFIG, ModelError)


def with_adapter(base: nn.Module, folder: Path, settings: dict[str, Any]) -> Any:
    """The PEFT model of `base` and of the adapter in `folder`, for inference.

    Args:
        base: an unsoftened model.
        folder: with adapter_model.safetensors; a pickle is not opened.
        settings: what adapter_config.json says, with a `peft_type` that PEFT knows.

    Raises:
        ModelError: PEFT refuses settings or weights, or they are not those of each other.
    """
    from peft import PeftConfig, PeftModel
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    what = f"the adapter {folder} (peft_type {settings.get('peft_type')!r})"
    with judged_by("PEFT", ModelError, what), warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        config = PeftConfig.from_peft_type(**settings)
        model: Any = PeftModel.from_pretrained(
            base,  # pyright: ignore[reportArgumentType]
            str(folder),
            config=config,
            # No memory before the weights are seen: a rank may be 10**9. PiSSA and OLoRA cannot do
            # without: they begin with a decomposition of the base's weights.
            low_cpu_mem_usage=not isinstance(settings.get("init_lora_weights"), str),
        )
    prefixes: dict[Any, str] = PEFT_TYPE_TO_PREFIX_MAPPING
    prefix = prefixes.get(config.peft_type, "")
    held, placed = (
        sum(prefix in name for name in names)
        for names in (tensor_names(folder / ADAPTER), model.state_dict())
    )
    if prefix and held > placed:  # the rest would be dropped in silence
        raise ModelError(
            f"{folder} holds {held} tensors of an adapter, and by its {ADAPTER_CONFIG} it has "
            f"{placed}: they are not of one adapter. Restore both from one place."
        )
    return model.eval()
