"""Ways to run a model that must all give the same logits, and an independent oracle."""

from collections.abc import Sequence
from typing import Any

import torch
from families import logits
from torch import Tensor, nn

PAD = 0


def padded(rows: Sequence[Tensor], *, left: bool, extra: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and positions [B, T] of sequences [1, t] in one batch, `extra` more pads each."""
    width = max(row.shape[1] for row in rows) + extra
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - row.shape[1], width) if left else slice(0, row.shape[1])
        ids[i, place], mask[i, place] = row[0], 1
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


def batched_logits(
    model: nn.Module, rows: Sequence[Tensor], *, left: bool, extra: int = 0
) -> list[Tensor]:
    """Logits [t, V] of each sequence, run as one padded batch."""
    ids, mask, positions = padded(rows, left=left, extra=extra)
    out = logits(model, ids, attention_mask=mask, position_ids=positions)
    return [out[i][mask[i].bool()] for i in range(len(rows))]


@torch.no_grad()
def cached_logits(model: Any, ids: Tensor, chunks: Sequence[int]) -> Tensor:
    """Logits [B, T, V] over a cache: chunks of these lengths, the rest token by token."""
    lengths = [*chunks, *[1] * (ids.shape[1] - sum(chunks))]
    cache, outputs, seen = None, [], 0
    for chunk in ids.split(lengths, 1):
        seen += chunk.shape[1]
        mask = torch.ones(len(ids), seen, dtype=torch.int64)
        out = model(input_ids=chunk, attention_mask=mask, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        outputs.append(out.logits.float())
    return torch.cat(outputs, 1)


@torch.no_grad()
def llama_oracle(
    model: Any, ids: Tensor, softened: dict[int, tuple[Tensor, list[int]]], strength: float = 1.0
) -> Tensor:
    """Logits of a softened llama, from its submodules and nothing of ours.

    `softened`: layer -> (bool [B, T] of tokens, dims).
    """
    base = model.model
    h = base.embed_tokens(ids)
    positions = torch.arange(ids.shape[1]).unsqueeze(0)
    rotation = base.rotary_emb(h, positions)
    length = ids.shape[1]
    causal = torch.full((1, 1, length, length), torch.finfo(h.dtype).min).triu(1)
    for index, layer in enumerate(base.layers):
        x = layer.input_layernorm(h)
        if index in softened:
            tokens, dims = softened[index]
            for b, t in tokens.nonzero().tolist():
                x[b, t, dims] = x[b, t, dims] * (1 - strength)
        h = (
            h
            + layer.self_attn(hidden_states=x, position_embeddings=rotation, attention_mask=causal)[
                0
            ]
        )
        h = h + layer.mlp(layer.post_attention_layernorm(h))
    return model.lm_head(base.norm(h)).float()
