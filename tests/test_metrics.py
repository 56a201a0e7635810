"""Sinks and magnitudes, against numbers worked out by hand."""

import json
import math
from typing import Any

import pytest
import torch
from families import DIMS, LAYERS, MASSIVE, ME_LAYER, logits, planted, settings, shared, texts
from torch import Tensor

import wemask
from wemask.errors import DetectionError
from wemask.metrics import LayerMetrics, layer_metrics, sink_mass_by_head


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    ids = texts(rows=4)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    return ids, mask, ids == MASSIVE


def sink_mass(weights: Tensor, mask: Tensor, massive: Tensor) -> float:
    return float(sink_mass_by_head(weights, mask, massive).mean())


def test_sink_mass_by_hand():
    # one head; queries are rows, keys are columns
    weights = torch.tensor(
        [
            [1.0, 0.0, 0.0, 0.0],
            [0.9, 0.1, 0.0, 0.0],
            [0.5, 0.3, 0.2, 0.0],
            [0.4, 0.3, 0.2, 0.1],
        ]
    )[None, None]
    mask, massive = torch.ones(1, 4), torch.tensor([[True, False, False, False]])
    # its own row is left out: (0.9 + 0.5 + 0.4) / 3
    assert sink_mass(weights, mask, massive) == pytest.approx(0.6)
    # the last token is a pad: (0.9 + 0.5) / 2
    mask[0, 3] = 0
    assert sink_mass(weights, mask, massive) == pytest.approx(0.7)
    # two massive tokens: query 1 sees one (0.9), query 2 both (0.5 + 0.3)
    massive[0, 1] = True
    assert sink_mass(weights, mask, massive) == pytest.approx((0.9 + 0.8) / 2)
    # a massive pad counts for nothing
    assert sink_mass(weights, mask, massive | (mask == 0)) == pytest.approx((0.9 + 0.8) / 2)
    # two heads average; two rows pool their queries
    heads = torch.cat([weights, torch.zeros_like(weights)], 1)
    assert sink_mass(heads, mask, massive) == pytest.approx((0.9 + 0.8) / 4)
    assert sink_mass_by_head(heads, mask, massive).tolist() == pytest.approx([0.85, 0])
    rows = torch.cat([weights, torch.zeros_like(weights)])
    both = sink_mass(rows, mask.repeat(2, 1), massive.repeat(2, 1))
    assert both == pytest.approx((0.9 + 0.8) / 4)
    # no later query at all
    last = torch.tensor([[False, False, False, True]])
    assert sink_mass(weights, torch.ones(1, 4), last) == 0


def test_uniform_attention_has_the_mass_of_a_uniform_row():
    length = 6
    weights = torch.ones(length, length).tril()
    weights = (weights / weights.sum(-1, keepdim=True))[None, None]
    first = torch.arange(length)[None] == 0
    expected = sum(1 / n for n in range(2, length + 1)) / (length - 1)
    assert sink_mass(weights, torch.ones(1, length), first) == pytest.approx(expected)


@torch.no_grad()
def test_layers_against_the_models_own_attention_and_values():
    model: Any = shared().model
    ids, mask, massive = inputs()
    rows = layer_metrics(model, ids, mask, massive)
    assert [row.layer for row in rows] == list(range(LAYERS))
    values: list[Tensor] = []
    hooks = [
        layer.self_attn.v_proj.register_forward_hook(lambda m, a, out: values.append(out))
        for layer in model.model.layers
    ]
    model.set_attn_implementation("eager")
    out = model(
        input_ids=ids,
        attention_mask=mask,
        output_attentions=True,
        output_hidden_states=True,
        use_cache=False,
    )
    model.set_attn_implementation("sdpa")
    for hook in hooks:
        hook.remove()
    real = mask.bool()
    for row, attention, value, h in zip(
        rows[:-1], out.attentions, values, out.hidden_states[1:-1], strict=False
    ):
        seen = (real[:, :, None] & massive[:, None, :]).nonzero().tolist()
        later = torch.stack([attention[b, :, q, k] for b, q, k in seen if q > k])  # [pairs, heads]
        expected = later.mean(0).tolist()
        assert row.sink_mass_by_head == pytest.approx(expected, rel=1e-4)
        assert row.sink_mass == pytest.approx(sum(expected) / len(expected), rel=1e-4)
        assert len(set(expected)) == len(expected) > 1  # heads differ: a mix-up would be seen
        norms = value.norm(dim=-1)
        ratio = norms[massive & real].mean() / norms[real & ~massive].mean()
        assert row.value_norm_ratio == pytest.approx(float(ratio), rel=1e-4)
        assert row.massive_max == pytest.approx(float(h[real].abs().max()), rel=1e-4)
        assert row.massive_ratio == pytest.approx(
            float(h[real].abs().max() / h[real].abs().flatten().median()), rel=1e-3
        )
    assert rows[ME_LAYER].massive_ratio > 1000 > rows[ME_LAYER - 1].massive_ratio


def test_the_softened_model_is_measured_softened():
    case, (ids, mask, massive) = shared(), inputs()
    off = layer_metrics(case.model, ids, mask, massive)
    with wemask.soften(case.model, case.report, settings(dims="massive")):
        on = layer_metrics(case.model, ids, mask, massive)
    assert [a == b for a, b in zip(on, off, strict=True)] == [True, True, False, False, False]
    # without its massive dims a massive token has almost no value vector
    assert all(row.value_norm_ratio < 0.1 for row in on[2:])
    assert off[2].value_norm_ratio > 0.3
    assert set(case.report.dims) == set(DIMS)


def test_nothing_is_left_behind():
    case, (ids, mask, massive) = planted("llama"), inputs()
    model: Any = case.model
    model.train()
    before = logits(model, ids)
    layer_metrics(model, ids, mask, massive)
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(logits(model, ids), before)
    # transformers leaves hooks of its own on layers and attention
    assert not any(layer.self_attn.v_proj._forward_hooks for layer in model.model.layers)


@pytest.mark.parametrize("family", ["gpt2", "phi3", "gpt_neox", "falcon"])
def test_fused_projections_have_no_value_norms(family):
    rows = layer_metrics(shared(family).model, *inputs())
    assert all(math.isnan(row.value_norm_ratio) and 0 <= row.sink_mass <= 1 for row in rows)
    assert json.loads(json.dumps(rows[0].to_dict(), allow_nan=False))["value_norm_ratio"] is None


def test_plain_values():
    row = LayerMetrics(
        layer=1,
        massive_max=2.0,
        massive_ratio=3.0,
        sink_mass=0.5,
        sink_mass_by_head=[0.25, 0.75],
        value_norm_ratio=0.1,
    )
    assert row.to_dict() == {
        "layer": 1,
        "massive_max": 2.0,
        "massive_ratio": 3.0,
        "sink_mass": 0.5,
        "sink_mass_by_head": [0.25, 0.75],
        "value_norm_ratio": 0.1,
    }


def test_no_massive_token_is_an_error():
    ids, mask, massive = inputs()
    for none in (torch.zeros_like(massive), mask == 0):
        with pytest.raises(DetectionError, match="No massive token among the given texts"):
            layer_metrics(shared().model, ids, mask, none)
