"""Parameters that ZeRO-3 or FSDP2 keep in shards, one part on each rank: how to read them whole."""

import sys
from typing import Any

from torch import Tensor


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
