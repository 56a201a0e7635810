"""How the weight of each norm is spread over dims, and where the massive dims stand in it.

The operator takes its dims from the weight of the norm before the ME Layer's FFN (arXiv
2605.08504): these rows say how concentrated that weight is, and in which layers.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from wemask.decoder.parts import Decoder, effective_scale
from wemask.measure import metrics
from wemask.operator.equation import top_dims
from wemask.operator.settings import WeMaskConfig

FEEDS = ("attention", "ffn")


def norm_rows(decoder: Decoder, dims: Sequence[int]) -> list[dict[str, Any]]:
    """One row for each norm that feeds attention or FFN and has a weight; none in post-norm models.

    Columns:
        layer, feeds: which norm; `attention` alone in parallel blocks, where it feeds both.
        weight_kl: KL from uniform of weight_d^2 / |weight|^2, nats.
        top_share: share of |weight|^2 in the dims that `rate=0.001` picks.
        massive_share: share of |weight|^2 in the massive dims.
        massive_rank: rank of the heaviest massive dim by |weight|, 0 the heaviest of all; None
            without massive dims.
    """
    rows = []
    for block in decoder.blocks:
        parallel = block.ffn_norm is block.attention_norm
        for feeds, norm in zip(FEEDS, (block.attention_norm, block.ffn_norm), strict=True):
            if getattr(norm, "weight", None) is None or (parallel and feeds == "ffn"):
                continue
            rows.append({"layer": block.index, "feeds": feeds, **_spread(norm, dims)})
    return rows


def _spread(norm: nn.Module | None, dims: Sequence[int]) -> dict[str, Any]:
    scale = effective_scale(norm, "The norm")
    shares = metrics.energy_shares(scale)
    order = top_dims(scale, len(scale)).tolist()
    most = shares.topk(WeMaskConfig().budget(len(scale))).values
    return {
        "weight_kl": metrics.kl_from_uniform(shares),
        "top_share": float(most.sum()),
        "massive_share": float(shares[list(dims)].sum()),
        "massive_rank": min((order.index(dim) for dim in dims), default=None),
    }
