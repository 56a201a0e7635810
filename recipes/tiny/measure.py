"""What the recipe prints while it trains: the BOS state by layer, and the sinks on it.

A plain, independent measurement by forward hooks; `wemask.detect` is the real thing.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from transformers import LlamaForCausalLM


@dataclass(frozen=True, kw_only=True)
class Row:
    """One layer's output, over all tokens of the given rows."""

    layer: int
    """-1 is the embedding output."""
    bos: float
    """Largest abs value of the BOS state."""
    dims: list[int]
    """Dims of the BOS state, largest first."""
    values: list[float]
    others: float
    """Largest abs value of any other token."""
    median: float
    """Of abs values over all tokens and dims."""
    margin: float
    """On the BOS state's largest dim: BOS over the largest other token."""
    cosine: float
    """Of the BOS state to that of the layer with the largest jump."""
    sink: float
    """Mean attention to BOS over heads and queries 1..T-1 (nan for the embedding)."""

    @property
    def ratio(self) -> float:
        return self.bos / self.median


@torch.no_grad()
def measure(model: LlamaForCausalLM, ids: Tensor) -> list[Row]:
    """Measure `ids` [B, T] (BOS first, no padding); row 0 is the embedding output."""
    states: list[Tensor] = []  # [B, T, D] each

    def keep(_module: object, _args: object, output: Tensor) -> None:
        states.append(output.detach().float())

    modules = [model.model.embed_tokens, *model.model.layers]
    hooks = [module.register_forward_hook(keep) for module in modules]
    try:
        attentions = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
    finally:
        for hook in hooks:
            hook.remove()
    sizes = [h[:, 0].abs().max().item() for h in states]
    jumps = [after / before for before, after in pairwise(sizes)]
    reference = states[jumps.index(max(jumps)) + 1][:, 0].mean(0)
    return [
        _row(i - 1, h, reference, attentions[i - 1] if i else None) for i, h in enumerate(states)
    ]


def _row(layer: int, h: Tensor, reference: Tensor, attention: Tensor | None) -> Row:
    bos, rest = h[:, 0].mean(0), h[:, 1:]
    top = bos.abs().topk(4)
    dim = int(top.indices[0])
    return Row(
        layer=layer,
        bos=top.values[0].item(),
        dims=top.indices.tolist(),
        values=[round(v, 2) for v in bos[top.indices].tolist()],
        others=rest.abs().max().item(),
        median=h.abs().median().item(),
        margin=(top.values[0] / rest[..., dim].abs().max()).item(),
        cosine=torch.cosine_similarity(bos, reference, dim=0).item(),
        sink=float("nan") if attention is None else attention[:, :, 1:, 0].mean().item(),
    )


def table(rows: list[Row]) -> str:
    """Return the rows as a fixed-width table; `jump` compares with the row above."""
    head = f"{'layer':>5} {'bos':>8} {'jump':>6} {'median':>7} {'ratio':>7} {'others':>7}"
    lines = [f"{head} {'margin':>6} {'cosine':>6} {'sink':>5}  dim:value"]
    before = None
    for r in rows:
        jump = f"{r.bos / before:6.1f}" if before else " " * 6
        top = " ".join(f"{d}:{v}" for d, v in zip(r.dims, r.values, strict=True))
        lines.append(
            f"{r.layer:>5} {r.bos:8.2f} {jump} {r.median:7.3f} {r.ratio:7.1f} {r.others:7.2f} "
            f"{r.margin:6.1f} {r.cosine:6.3f} {r.sink:5.2f}  {top}"
        )
        before = r.bos
    return "\n".join(lines)
