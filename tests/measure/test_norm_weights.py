"""Norm weights whose spread is known."""

import math

import pytest
import torch
from families import LAYERS, WIDTH, build, shared

from wemask.decoder.parts import find_decoder
from wemask.measure.norm_weights import norm_rows


def test_by_hand():
    model = build("llama")
    decoder = find_decoder(model)
    with torch.no_grad():
        for block in decoder.blocks:
            block.attention_norm.weight.fill_(2.0)  # pyright: ignore
            block.ffn_norm.weight.zero_()  # pyright: ignore
            block.ffn_norm.weight[[5, 9]] = torch.tensor([3.0, -4.0])  # pyright: ignore
    rows = norm_rows(decoder, [5, 1])
    assert [(row["layer"], row["feeds"]) for row in rows] == [
        (layer, feeds) for layer in range(LAYERS) for feeds in ("attention", "ffn")
    ]
    flat, peaked = rows[:2]
    assert flat["weight_kl"] == pytest.approx(0, abs=1e-6)
    assert flat["top_share"] == pytest.approx(1 / WIDTH)
    assert flat["massive_share"] == pytest.approx(2 / WIDTH)
    assert (flat["massive_rank"], peaked["massive_rank"]) == (1, 1)  # ties: the lower dim first
    kl = sum(p * math.log(p * WIDTH) for p in (0.36, 0.64))
    assert peaked["weight_kl"] == pytest.approx(kl, rel=1e-4)
    assert peaked["top_share"] == pytest.approx(0.64)
    assert peaked["massive_share"] == pytest.approx(0.36)


def test_gemma_scales_by_one_plus_weight():
    model = build("gemma2")
    decoder = find_decoder(model)
    with torch.no_grad():
        decoder.blocks[0].attention_norm.weight.zero_()  # pyright: ignore
    assert norm_rows(decoder, [])[0]["weight_kl"] == pytest.approx(0, abs=1e-6)
    assert norm_rows(decoder, [])[0]["massive_rank"] is None


@pytest.mark.parametrize(("family", "count"), [("olmo", 0), ("olmo2", 0), ("falcon", LAYERS)])
def test_norms_without_weight_and_parallel_blocks(family, count):
    rows = norm_rows(find_decoder(shared(family).model), [3])
    assert len(rows) == count
    assert {row["feeds"] for row in rows} <= {"attention"}
