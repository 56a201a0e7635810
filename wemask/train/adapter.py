"""The PEFT adapter that the settings ask for, and what it weighs."""

from typing import Any

from torch import nn

from wemask.errors import ConfigError
from wemask.settings.config import RunConfig


def lora_size(config: RunConfig, model: nn.Module) -> int:
    """Parameters that LoRA will add, counted on a copy of the model without weights.

    Raises:
        ConfigError: PEFT refuses the settings on this model.
    """
    import copy

    from peft import get_peft_model

    # The memo puts an empty tensor where deepcopy would copy: no second model in memory.
    tensors = (*model.parameters(), *model.buffers())
    bare = copy.deepcopy(model, {id(t): t.detach().to("meta") for t in tensors})
    try:
        peft = get_peft_model(bare, peft_config(config))  # pyright: ignore[reportArgumentType]
    except (ValueError, TypeError) as error:
        raise ConfigError(f"PEFT refuses these settings: {error}") from error
    return sum(p.numel() for p in peft.parameters() if p.requires_grad)


def peft_config(config: RunConfig) -> Any:
    """The LoraConfig of a run, or None where all parameters are trained.

    Raises:
        ConfigError: values that PEFT refuses.
    """
    if config.peft is None:
        return None
    from peft import LoraConfig

    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM", **config.peft})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"PEFT refuses these settings: {error}") from error
