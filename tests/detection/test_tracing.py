"""What layers leave behind, against hidden states kept by hand."""

from typing import Any

import pytest
import torch
from families import (
    CRITERION,
    FAMILIES,
    LAYERS,
    MASSIVE,
    ME_LAYER,
    build,
    planted,
    sequence,
    shared,
    texts,
)

from wemask.decoder.parts import find_decoder
from wemask.detection.tracing import _median, trace_layers
from wemask.errors import ModelError


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = texts(rows=4), torch.ones(4, 12, dtype=torch.int64)
    mask[1, 7:] = 0
    mask[2, 10:] = 0
    return ids, mask


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "olmo2"])
def test_reductions_equal_those_of_hidden_states(family):
    model: Any = shared(family).model
    ids, mask = batch()
    traces = trace_layers(model, find_decoder(model), ids, mask, CRITERION)
    with torch.no_grad():
        states = model(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        ).hidden_states
    assert [t.layer for t in traces] == list(range(-1, LAYERS))
    # the last of transformers' hidden states has passed the final norm
    for trace, h in zip(traces[:-1], states[:-1], strict=True):
        real = h[mask.bool()].abs()
        token = int(real.amax(-1).argmax())
        assert torch.equal(trace.token_max, real.amax(-1))
        assert trace.median == float(real.flatten().median())
        assert torch.equal(trace.strongest, real[token])
        order = real.amax(0).argsort(descending=True)
        assert torch.equal(real.amax(0)[trace.dims], real.amax(0)[order])
        assert torch.equal(trace.columns, real[:, trace.dims])
    for trace, h, after in zip(traces[:-2], states[:-2], states[1:-1], strict=True):
        real = h[mask.bool()]
        token = int(real.abs().amax(-1).argmax())
        cosine = torch.cosine_similarity(real[token], after[mask.bool()][token], dim=0)
        assert trace.cosine == pytest.approx(float(cosine), abs=1e-6)
    assert traces[-1].cosine is None


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ffn_wrote_what_was_planted_in_it(family):
    model = shared(family).model
    ids, mask = batch()
    trace = trace_layers(model, find_decoder(model), ids, mask, CRITERION)[ME_LAYER + 1]
    assert trace.ffn_share is not None
    place = (trace.dims == int(trace.strongest.argmax())).nonzero()[0, 0]
    assert float(trace.ffn_share[place]) == pytest.approx(1, abs=0.01)


def test_pads_are_in_no_reduction():
    model = shared().model
    ids = sequence(6).repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1] = 0
    ids[1] = MASSIVE
    alone = trace_layers(model, find_decoder(model), ids[:1], mask[:1], CRITERION)
    both = trace_layers(model, find_decoder(model), ids, mask, CRITERION)
    for a, b in zip(alone, both, strict=True):
        assert len(b.token_max) == 6
        assert a.median == pytest.approx(b.median, rel=1e-4)


def test_nothing_is_left_in_the_model():
    model = planted("llama").model
    model.train()
    trace_layers(model, find_decoder(model), *batch(), CRITERION)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_layers_that_do_not_run_are_an_error():
    model: Any = build("llama")
    decoder = find_decoder(model)
    model.model.layers = model.model.layers[:3]
    model.config.num_hidden_layers = 3
    with pytest.raises(ModelError, match=r"3 of 5 layers ran in a forward pass"):
        trace_layers(model, decoder, *batch(), CRITERION)


@pytest.mark.parametrize("count", [1, 2, 4095, 4096, 20_000, 131_072])
@pytest.mark.parametrize("kind", ["drawn", "equal", "sorted", "two values", "by dim"])
def test_the_median_is_that_of_torch(count, kind):
    generator = torch.Generator().manual_seed(count)
    values = torch.randn(count, generator=generator).abs()
    values = {
        "drawn": values,
        "equal": torch.full((count,), 3.0),
        "sorted": values.sort().values,
        "two values": (values > 0.7).float(),
        "by dim": values * torch.arange(count).remainder(64),  # the sample must not be of one dim
    }[kind]
    assert _median(values) == float(values.median())
