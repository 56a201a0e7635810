"""The PEFT adapter that the settings ask for, and what it weighs."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from wemask.errors import ConfigError, WemaskError
from wemask.settings.config import RunConfig


@contextmanager
def judged_by(library: str) -> Iterator[None]:
    """Turn what PEFT or TRL says to settings into a ConfigError."""
    try:
        yield
    except WemaskError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"{library} refuses these settings: {error}") from error


def lora_size(config: RunConfig, model: nn.Module) -> int:
    """Parameters that LoRA will add, counted on a copy of the model without weights.

    Raises:
        ConfigError: PEFT refuses the settings on this model.
    """
    from peft import get_peft_model

    # The memo puts an empty tensor where deepcopy would copy: no second model in memory.
    tensors = (*model.parameters(), *model.buffers())
    bare = copy.deepcopy(model, {id(t): t.detach().to("meta") for t in tensors})
    with judged_by("PEFT"):
        peft = get_peft_model(bare, peft_config(config))  # pyright: ignore[reportArgumentType]
    return sum(p.numel() for p in peft.parameters() if p.requires_grad)


def peft_config(config: RunConfig) -> Any:
    """The LoraConfig of a run, or None where all parameters are trained.

    Raises:
        ConfigError: values that PEFT refuses.
    """
    if config.peft is None:
        return None
    from peft import LoraConfig

    with judged_by("PEFT"):
        return LoraConfig(**{"task_type": "CAUSAL_LM", **config.peft})
