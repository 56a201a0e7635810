"""Weights computed again from q and k, against those of the model's own eager attention."""

from typing import Any

import pytest
import torch
from families import FAMILIES, LAYERS, build, logits, shared, texts
from torch import Tensor

from wemask.decoder.parts import find_decoder
from wemask.errors import ModelError
from wemask.measure.attention_weights import AttentionBlock, reading_attention

TOLERANCE = 2e-5  # float32, five layers deep
LINEAR = {"qwen3_next": (0, 2, 4)}  # layers without attention weights


def padded() -> tuple[Tensor, Tensor]:
    """Three texts: one whole, one padded on the right, one on the left."""
    ids = texts(rows=3)
    mask = torch.ones_like(ids)
    mask[1, 9:], mask[2, :3] = 0, 0
    return ids, mask


@torch.no_grad()
def read(model: Any, ids: Tensor, mask: Tensor, block: int) -> tuple[dict[int, Tensor], list[Any]]:
    found: dict[int, list[Tensor]] = {}
    values: list[Tensor] = []

    def seen(part: AttentionBlock) -> None:
        rows = found.setdefault(part.layer, [])
        assert sum(w.shape[2] for w in rows) == part.first_query
        rows.append(part.weights)

    def seen_values(layer: int, v: Tensor) -> None:
        values.append(v)

    with reading_attention(model, find_decoder(model), mask, seen, seen_values, block) as more:
        out = model(input_ids=ids, attention_mask=mask, use_cache=False, **more)
    whole = {layer: torch.cat(rows, 2) for layer, rows in found.items()}
    return whole, [out.logits, values, max(len(rows) for rows in found.values())]


@torch.no_grad()
def eager(model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        out = model(input_ids=ids, attention_mask=mask, use_cache=False, output_attentions=True)
    finally:
        model.set_attn_implementation(before)
    return out.attentions


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_the_models_own_in_every_family(family):
    model: Any = shared(family).model
    ids, mask = padded()
    weights, (out, values, blocks) = read(model, ids, mask, block=100)
    own = dict(
        zip((i for i in range(LAYERS) if i in weights), eager(model, ids, mask), strict=True)
    )
    assert set(weights) == set(range(LAYERS)) - set(LINEAR.get(family, ()))
    real = mask.bool()[:, None, :, None]
    for layer, expected in own.items():
        assert float(((weights[layer] - expected) * real).abs().max()) < TOLERANCE
    # GPT-J, BLOOM, MPT and Falcon form their weights themselves
    by_kernel = family not in ("gptj", "bloom", "mpt", "falcon")
    assert (blocks > 1) == by_kernel == bool(values)
    if by_kernel:  # and the model ran as it always does
        assert torch.equal(out, logits(model, ids, attention_mask=mask))


def test_a_sliding_window_and_its_mask():
    model = build("mistral", sliding_window=4)
    ids = texts(rows=2)
    mask = torch.ones_like(ids)
    weights, _ = read(model, ids, mask, block=10**6)
    for layer, own in enumerate(eager(model, ids, mask)):
        assert float((weights[layer] - own).abs().max()) < TOLERANCE
        assert not weights[layer].tril(-4).any()


def test_without_a_mask_padding_and_window_are_ours():
    """Flash attention gives its kernel no mask: causality, window and pads are added here."""
    from wemask.measure.attention_weights import _Reader

    ids, mask = padded()
    model: Any = build("mistral", sliding_window=4)
    own = eager(model, ids, mask)
    found: list[Tensor] = []
    reader = _Reader({}, mask, lambda part: found.append(part.weights), None, 10**6)
    original = reader._read

    def without_mask(layer: int, q: Tensor, k: Tensor, given: Any, kwargs: Any) -> None:
        assert given is not None
        original(layer, q, k, None, kwargs)

    reader._read = without_mask  # pyright: ignore
    reader.layers = {b.attention: b.index for b in find_decoder(model).blocks}
    with reader.in_place_of_kernels(), torch.no_grad():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    real = mask.bool()[:, None, :, None]
    assert len(found) == LAYERS
    for weights, expected in zip(found, own, strict=True):
        assert float(((weights - expected) * real).abs().max()) < TOLERANCE


def test_the_kernels_come_back_also_after_an_error():
    from transformers.modeling_utils import AttentionInterface

    before = AttentionInterface.get_interface
    model, (ids, mask) = shared().model, padded()

    def fail(part: AttentionBlock) -> None:
        raise RuntimeError("stop")

    with (
        pytest.raises(RuntimeError, match="stop"),
        reading_attention(model, find_decoder(model), mask, fail),
    ):
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    assert AttentionInterface.get_interface is before


def test_a_forward_over_a_cache_is_refused():
    model: Any = shared().model
    ids, mask = padded()
    cache = model(input_ids=ids[:, :4], use_cache=True).past_key_values
    with (
        pytest.raises(ModelError, match="cannot be read"),
        reading_attention(model, find_decoder(model), mask[:, 4:], lambda part: None),
    ):
        model(input_ids=ids[:, 4:], past_key_values=cache, use_cache=True)


@torch.no_grad()
def test_under_autocast_the_weights_are_still_computed_in_float32():
    model: Any = shared("llama").model
    ids, mask = padded()
    inside: list[bool] = []

    def seen(part: AttentionBlock) -> None:
        inside.append(torch.is_autocast_enabled("cpu"))
        assert (part.weights.sum(-1) - 1).abs().max() < 1e-6

    reading = reading_attention(model, find_decoder(model), mask, seen)
    with torch.autocast("cpu", torch.bfloat16), reading:
        out = model(input_ids=ids, attention_mask=mask, use_cache=False)
    assert out.logits.dtype == torch.bfloat16
    assert inside == [False] * LAYERS
