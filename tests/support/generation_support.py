"""Generation without a cache, by full forwards, and with the tokens that a test wants."""

from collections.abc import Callable
from typing import Any

import torch
from families import MASSIVE, logits
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

NEW = 8  # tokens to generate


OPTIONS: dict[str, Any] = {
    "max_new_tokens": NEW,
    "min_new_tokens": NEW,
    "do_sample": False,
    "pad_token_id": 0,
    "output_logits": True,
    "return_dict_in_generate": True,
}


Force = Callable[[int], int | None]  # number of tokens so far -> the token that must come next


class Forced(LogitsProcessor):
    """Makes generation emit chosen tokens."""

    def __init__(self, force: Force) -> None:
        self.force = force

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore
        token = self.force(input_ids.shape[1])
        if token is None:
            return scores
        forced = torch.full_like(scores, -torch.inf)
        forced[:, token] = 0
        return forced


def massive_at(*lengths: int) -> Force:
    """Emit the massive token when the sequence has one of these lengths."""
    return lambda length: MASSIVE if length in lengths else None


def nothing(length: int) -> None:
    """Force no token."""


def slow(model: Any, ids: Tensor, force: Force = nothing, steps: int = NEW) -> Any:
    """Greedy decoding by full forwards: ids [B, T + steps] and logits [B, steps, V]."""
    rows = []
    for _ in range(steps):
        rows.append(logits(model, ids)[:, -1])
        token, allowed = force(ids.shape[1]), rows[-1].clone()
        allowed[:, 2] = -torch.inf  # min_new_tokens: no end of sequence
        best = allowed.argmax(-1, keepdim=True)
        ids = torch.cat([ids, best if token is None else torch.full_like(best, token)], 1)
    return ids, torch.stack(rows, 1)


def generate(model: Any, ids: Tensor, force: Force = nothing, **options: Any) -> Any:
    """`generate` with logits; `attention_mask` of ones unless given."""
    options = {"attention_mask": torch.ones_like(ids), **OPTIONS, **options}
    return model.generate(ids, logits_processor=LogitsProcessorList([Forced(force)]), **options)


def stacked(out: Any) -> Tensor:
    return torch.stack(out.logits, 1).float()


METHODS: dict[str, dict[str, Any]] = {
    "dynamic cache": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "chunked prefill": {"prefill_chunk_size": 4},
    "chunks of a static cache": {"prefill_chunk_size": 3, "cache_implementation": "static"},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


BATCHED = ["dynamic cache", "static cache", "chunked prefill"]
