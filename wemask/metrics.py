"""Massive activations and attention sinks of a model, layer by layer.

Sink mass (arXiv 2410.10781): mean attention that later queries pay to a token,
alpha_k = mean over queries i > k of A[i, k], for every head by itself and averaged over heads. The
attention of a token to itself is left out, so that the first token's own row (always 1) does not
count.
"""

from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wemask.architectures import find_decoder, unwrap
from wemask.errors import DetectionError
from wemask.tracing import Trace, evaluating, trace_layers


@dataclass(frozen=True, kw_only=True)
class LayerMetrics:
    """One layer, over the given texts."""

    layer: int
    massive_max: float
    """Largest |h| at the layer's output."""
    massive_ratio: float
    """That over the layer's median |h|."""
    sink_mass: float
    """Mean attention to the massive tokens in this layer, 0 to 1: the mean over its heads."""
    sink_mass_by_head: list[float]
    """The same for every query head of the layer."""
    value_norm_ratio: float
    """Norm of the attention output's source, v, of massive tokens over that of the others."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no NaN."""
        return {k: None if v != v else v for k, v in asdict(self).items()}


@torch.no_grad()
def layer_metrics(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    massive: Tensor,
    traces: list[Trace] | None = None,
) -> list[LayerMetrics]:
    """Measure every layer in two forward passes, softened or not, as the model stands.

    Args:
        model: a transformers causal language model.
        input_ids: [B, T].
        attention_mask: [B, T], 1 for real tokens.
        massive: bool [B, T], the tokens that sinks are looked for on.
        traces: what `trace_layers` gave on the same input, if it is there: saves one of the passes.

    Raises:
        DetectionError: no massive token among the real ones, or the model returns no attention.
    """
    base = unwrap(model)
    device = base.get_input_embeddings().weight.device  # pyright: ignore
    ids, mask, massive = (t.to(device) for t in (input_ids, attention_mask, massive))
    if not (massive & mask.bool()).any():
        raise DetectionError("No massive token among the given texts: there is no sink to measure.")
    if traces is None:
        traces = trace_layers(base, find_decoder(base), ids, mask)
    sinks, values = _attention(base, ids, mask, massive)
    return [
        LayerMetrics(
            layer=trace.layer,
            massive_max=float(trace.token_max.max()),
            massive_ratio=float(trace.token_max.max()) / max(trace.median, 1e-12),
            sink_mass=float(heads.mean()),
            sink_mass_by_head=heads.tolist(),
            value_norm_ratio=value,
        )
        for trace, heads, value in zip(traces[1:], sinks, values, strict=True)
    ]


def _attention(
    model: nn.Module, ids: Tensor, mask: Tensor, massive: Tensor
) -> tuple[list[Tensor], list[float]]:
    """Sink mass ([heads]) and value norm ratio per layer."""
    norms: list[float] = []
    hooks = []
    for block in find_decoder(model).blocks:
        projection = getattr(block.attention, "v_proj", None)
        if isinstance(projection, nn.Module):
            hooks.append(
                projection.register_forward_hook(
                    lambda module, args, out: norms.append(_norm_ratio(out, mask, massive))
                )
            )
    try:
        with _eager(model):
            outputs = model(
                input_ids=ids, attention_mask=mask, output_attentions=True, use_cache=False
            )
    finally:
        for hook in hooks:
            hook.remove()
    if not outputs.attentions or outputs.attentions[0] is None:
        raise DetectionError(f"{type(model).__name__} returns no attention weights.")
    sinks = [sink_mass_by_head(weights, mask, massive) for weights in outputs.attentions]
    return sinks, norms if len(norms) == len(sinks) else [float("nan")] * len(sinks)


def sink_mass_by_head(weights: Tensor, mask: Tensor, massive: Tensor) -> Tensor:
    """Mean attention to massive tokens over later real queries, for every head.

    Args:
        weights: attention [B, heads, T, T], rows sum to 1.
        mask: [B, T], 1 for real tokens.
        massive: bool [B, T].

    Returns:
        [heads] on the CPU, 0 to 1; zeros where no query comes after a massive token.
    """
    length = mask.shape[1]
    later = torch.ones(length, length, device=mask.device).tril(-1).bool()  # query i > key k
    pairs = later & mask.bool()[:, :, None] & (massive & mask.bool())[:, None, :]
    pairs = pairs.to(weights.device)  # a layer may be elsewhere (device_map)
    # A query may follow several massive tokens: their mass adds up.
    queries = pairs.any(-1).sum().clamp(min=1)
    return (torch.einsum("bhqk,bqk->h", weights.float(), pairs.float()) / queries).cpu()


def _norm_ratio(values: Tensor, mask: Tensor, massive: Tensor) -> float:
    norms = values.float().norm(dim=-1).to(mask.device)
    ordinary = mask.bool() & ~massive
    return float(norms[massive & mask.bool()].mean() / norms[ordinary].mean().clamp(min=1e-12))


@contextmanager
def _eager(model: nn.Module):
    """Attention weights exist only in the eager implementation; set it and put it back."""
    config: Any = model.config
    before = config._attn_implementation
    model.set_attn_implementation("eager")  # pyright: ignore[reportCallIssue]
    try:
        with evaluating(model):
            yield
    finally:
        model.set_attn_implementation(before)  # pyright: ignore[reportCallIssue]
