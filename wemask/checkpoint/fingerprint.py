"""Is this the model that the operator was calibrated on? A few of its weights tell.

A hub commit names a revision, a local folder has none. So some values are kept beside the operator:
of the embeddings and of the norms of the blocks, evenly spaced. They are compared to the rounding
of float16 and bfloat16, because a model may be loaded in another dtype than it was saved in.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from wemask.decoder.parts import find_decoder, unwrap
from wemask.decoder.sharded import size, whole

WeightSample = dict[str, list[float]]
SIZE = 32  # values of each kind
ROUNDING = 2.0**-6  # bfloat16 has 8 bits; two roundings, and a margin


@torch.no_grad()
def sample_weights(model: nn.Module) -> WeightSample | None:
    """Some values of the embeddings and block norms, or None where they cannot be read.

    They cannot on the meta device (offloaded), where they are quantised to whole numbers, or are no
    numbers at all. Where FSDP or ZeRO-3 keep them in shards, all ranks must ask.
    """
    blocks = find_decoder(model).blocks
    parts = {
        "embeddings": [unwrap(model).get_input_embeddings()],  # pyright: ignore
        "norms": [norm for b in blocks for norm in (b.attention_norm, b.ffn_norm)],
    }
    weights: dict[str, list[Any]] = {}
    for name, modules in parts.items():
        # under PEFT's modules_to_save the original's weight, not the trained copy's
        own = [getattr(getattr(m, "original_module", m), "weight", None) for m in modules]
        weights[name] = [weight for weight in own if weight is not None]
    for weight in (w for group in weights.values() for w in group):
        if not size(weight) or weight.is_meta or not weight.is_floating_point():
            return None
    sample = {name: _spaced(group) for name, group in weights.items()}
    finite = all(math.isfinite(value) for values in sample.values() for value in values)
    return sample if finite else None  # a model that diverged; JSON has no NaN


def _spaced(weights: list[Tensor]) -> list[float]:
    """SIZE values, evenly spaced over all of `weights`, as they are in float32."""
    if not weights:
        return []
    total = sum(size(w) for w in weights)
    places = [i * (total - 1) // (SIZE - 1) for i in range(SIZE)]
    values, start = [], 0
    for weight in weights:
        inside = [p - start for p in places if start <= p < start + size(weight)]
        if inside:
            values += whole(weight).flatten()[inside].float().tolist()
        start += size(weight)
    return values


def same_weights(saved: WeightSample | None, found: WeightSample | None) -> bool:
    """False where both are known and differ by more than the rounding of a dtype.

    Raises:
        TypeError, ValueError: `saved` is no sample (edited by hand).
    """
    if saved is None or found is None:
        return True
    if set(saved) != set(found):
        raise ValueError(f"weights_sample has {sorted(saved)}, expected {sorted(found)}.")
    pairs = [(torch.tensor(saved[name]), torch.tensor(found[name])) for name in found]
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=ROUNDING, atol=1e-6) for a, b in pairs
    )
