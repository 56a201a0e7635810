"""Parameters that ZeRO-3 or FSDP2 keep in shards, one part on each rank: how to read them whole."""

import sys
from typing import Any

from torch import Tensor, nn


def runnable(model: nn.Module, base: nn.Module) -> nn.Module:
    """What a forward has to be of, where `base` is the transformers model inside `model`.

    FSDP2 gathers parameters from the outermost module on.
    """
    return model if hasattr(model, "unshard") else base


def is_sharded(parameter: Any) -> bool:
    """Whether a rank holds only a part of it, or none."""
    return hasattr(parameter, "full_tensor") or hasattr(parameter, "ds_id")


def shape(parameter: Any) -> tuple[int, ...]:
    """The shape of the whole parameter."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def size(parameter: Any) -> int:
    """Numbers of the whole parameter."""
    return getattr(parameter, "ds_numel", None) or parameter.numel()


def whole(parameter: Any) -> Tensor:
    """The whole parameter, detached; a copy where it is sharded, and then all ranks must ask."""
    if hasattr(parameter, "full_tensor"):
        return parameter.detach().full_tensor()
    if not hasattr(parameter, "ds_id"):
        return parameter.detach()
    # Not imported: an exported model holds this file, and its loaders ask for all that it imports.
    with sys.modules["deepspeed"].zero.GatheredParameters([parameter]):
        return parameter.detach().clone()
