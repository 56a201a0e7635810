"""Ways to run a model that must all give the same logits, and gradients to compare."""

from collections.abc import Sequence
from typing import Any

import torch
from families import logits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from wemask.decoder.parts import find_decoder

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


def unpatched(model: nn.Module) -> bool:
    """Nothing of ours is left in the model."""
    names = [name for name, _ in model.named_modules() if "softening" in name]
    names += [name for name, m in model.named_modules() if "wemask_now" in vars(m)]
    mixed = [m for m in model.modules() if any("Soften" in c.__name__ for c in type(m).__mro__)]
    return not names and not mixed and not hasattr(model, "wemask_handle")


def blocks(model: nn.Module) -> list[Any]:
    """The parts of each decoder layer."""
    return list(find_decoder(model).blocks)


def language_loss(out: Tensor, ids: Tensor) -> Tensor:
    """Mean next-token loss in the dtype of the logits [B, T, V] (transformers' own is float32)."""
    return cross_entropy(out[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def collected(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the gradients by the name of the parameter, without those that have none."""
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def gradients(model: Any, ids: Tensor, **inputs: Any) -> dict[str, Tensor]:
    """Gradients of the language loss."""
    model.zero_grad()
    language_loss(model(input_ids=ids, use_cache=False, **inputs).logits, ids).backward()
    return collected(model)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def sum_of(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The sum of several sets of gradients."""
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of two sets of gradients, each in units of its largest value in b."""
    assert a.keys() == b.keys()
    floor = max(float(value.abs().max()) for value in b.values()) * 1e-6
    return max(float((a[k] - b[k]).abs().max() / b[k].abs().max().clamp(min=floor)) for k in b)
