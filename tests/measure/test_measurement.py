"""A whole model measured in a stream, against the same numbers from its hidden states at once."""

import json
import math
from typing import Any

import pytest
import torch
from families import DIMS, LAYERS, MASSIVE, ME_LAYER, logits, planted, settings, shared, texts
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

import wemask
from wemask.errors import DetectionError
from wemask.measure import metrics
from wemask.measure.layer_sums import Batch
from wemask.measure.measurement import Measurement, measure, primary_tokens, probe_batches


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    ids = texts(rows=4)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    return ids, mask, ids == MASSIVE


def batch(rows: slice = slice(None)) -> Batch:
    ids, mask, massive = (t[rows] for t in inputs())
    return Batch(input_ids=ids, attention_mask=mask, massive=massive)


@torch.no_grad()
def test_layers_against_the_models_own_states():
    model: Any = shared().model
    ids, mask, massive = inputs()
    rows = measure(model, [batch()]).layers
    assert [row.layer for row in rows] == list(range(LAYERS))
    values: list[Tensor] = []
    read: list[Tensor] = []
    hooks = [
        layer.self_attn.v_proj.register_forward_hook(lambda m, a, out: values.append(out))
        for layer in model.model.layers
    ]
    hooks += [
        layer.input_layernorm.register_forward_hook(lambda m, a, out: read.append(out))
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
    marked = massive & real
    for row, attention, value, x, before, h in zip(
        rows[:-1],
        out.attentions,
        values,
        read,
        out.hidden_states,
        out.hidden_states[1:-1],
        strict=False,
    ):
        seen = (real[:, :, None] & massive[:, None, :]).nonzero().tolist()
        later = torch.stack([attention[b, :, q, k] for b, q, k in seen if q > k])  # [pairs, heads]
        expected = later.mean(0).tolist()
        assert row.sink_mass_by_head == pytest.approx(expected, rel=1e-4)
        assert row.sink_mass == pytest.approx(sum(expected) / len(expected), rel=1e-4)
        assert len(set(expected)) == len(expected) > 1  # heads differ: a mix-up would be seen
        norms = value.norm(dim=-1)
        ratio = norms[marked].mean() / norms[real & ~massive].mean()
        assert row.value_norm_ratio == pytest.approx(float(ratio), rel=1e-4)
        assert row.massive_max == pytest.approx(float(h[real].abs().max()), rel=1e-4)
        assert row.massive_magnitude == pytest.approx(float(h[marked].abs().amax(-1).mean()))
        median = float(h[real].abs().flatten().median())
        assert row.massive_ratio == pytest.approx(row.massive_max / median, rel=5e-3)
        turned = cosine_similarity(before[marked], h[marked], dim=-1).mean()
        assert row.rigidity_layers == pytest.approx(float(turned), rel=1e-4)
        assert row.rigidity_inputs == pytest.approx(pairwise(h[marked]), rel=1e-4)
        assert row.attention_input_rigidity == pytest.approx(pairwise(x[marked]), rel=1e-4)
        ordinary = pairwise(x[real & ~massive])
        assert row.attention_input_rigidity_ordinary == pytest.approx(ordinary, abs=1e-5)
        spectra = [metrics.spectrum(text[own]) for text, own in zip(x, real, strict=True)]
        for name in ("matrix_entropy", "effective_rank", "anisotropy"):
            one = [getattr(metrics, name)(p) for p in spectra]
            assert getattr(row, name) == pytest.approx(sum(one) / len(one))
        cosines = [pairwise(text[own]) for text, own in zip(x, real, strict=True)]
        assert row.mean_cosine == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
        energies = [metrics.energy_shares(state) for state in before[marked]]
        kl = [metrics.kl_from_uniform(energy) for energy in energies]
        assert row.energy_kl_before_norm == pytest.approx(sum(kl) / len(kl), rel=1e-4)
        assert row.attention_share + row.ffn_share == pytest.approx(1)
    assert rows[ME_LAYER].massive_ratio > 1000 > rows[ME_LAYER - 1].massive_ratio
    assert rows[ME_LAYER].ffn_share > 0.99
    # the massive token is rigid after the ME Layer, and ordinary ones are not
    assert rows[ME_LAYER + 1].attention_input_rigidity > 0.99
    assert rows[ME_LAYER + 1].attention_input_rigidity_ordinary < 0.5


def pairwise(x: Tensor) -> float:
    units = x / x.norm(dim=-1, keepdim=True)
    cosines = units @ units.T
    upper = torch.ones_like(cosines).triu(1).bool()
    return float(cosines[upper].mean())


def test_perplexity_is_that_of_the_real_next_tokens():
    model, (ids, mask, _) = shared().model, inputs()
    out = logits(model, ids, attention_mask=mask)
    losses = torch.cat(
        [
            cross_entropy(row[own][:-1], text[own][1:], reduction="none")
            for row, text, own in zip(out, ids, mask.bool(), strict=True)
        ]
    )
    found = measure(model, [batch()])
    assert found.perplexity == pytest.approx(math.exp(float(losses.mean())), rel=1e-5)
    assert (found.texts, found.tokens) == (4, 45)
    assert found.massive_tokens == int((inputs()[2] & mask.bool()).sum())


def test_batches_and_padding_change_nothing():
    """One pass over four texts == four passes over one: a stream, whatever its pieces."""
    model = shared().model
    whole = measure(model, [batch()])
    parts = measure(model, (batch(slice(i, i + 1)) for i in range(4)))
    assert parts.perplexity == pytest.approx(whole.perplexity, rel=1e-5)
    for a, b in zip(whole.layers, parts.layers, strict=True):
        for name, value in a.to_dict().items():
            assert b.to_dict()[name] == pytest.approx(value, rel=2e-3, abs=1e-5), name
    assert parts.later("sink_mass", ME_LAYER) == pytest.approx(
        sum(row.sink_mass for row in whole.layers[ME_LAYER + 1 :]) / (LAYERS - ME_LAYER - 1)
    )


def test_only_one_batch_is_held_at_a_time():
    asked: list[int] = []

    def stream():
        for i in range(3):
            asked.append(i)
            yield batch(slice(i, i + 1))

    ran: list[int] = []
    measure(shared().model, stream(), done=lambda: ran.append(len(asked)))
    assert ran == [1, 2, 3]


def test_the_softened_model_is_measured_softened():
    case = shared()
    off = measure(case.model, [batch()]).layers
    with wemask.soften(case.model, case.report, settings(dims="massive")):
        on = measure(case.model, [batch()]).layers
    assert [a == b for a, b in zip(on, off, strict=True)] == [True, True, False, False, False]
    # without its massive dims a massive token has almost no value vector
    assert all(row.value_norm_ratio < 0.1 for row in on[2:])
    assert off[2].value_norm_ratio > 0.3
    # the softened input of attention is what is measured, not what the norm returned
    for before, after in zip(off[2:], on[2:], strict=True):
        assert before.energy_kl_after_norm > after.energy_kl_after_norm
        assert after.effective_rank != before.effective_rank
    assert set(case.report.dims) == set(DIMS)


@pytest.mark.parametrize("site", ["residual_copy", "residual_stream"])
def test_other_sites_are_measured_too(site):
    case = shared()
    with wemask.soften(case.model, case.report, settings(dims="massive", site=site)):
        on = measure(case.model, [batch()]).layers
    assert on[2].value_norm_ratio != measure(case.model, [batch()]).layers[2].value_norm_ratio
    assert (
        on[2].energy_kl_after_norm < measure(case.model, [batch()]).layers[2].energy_kl_after_norm
    )


def test_nothing_is_left_behind():
    case = planted("llama")
    model: Any = case.model
    model.train()
    before = logits(model, inputs()[0])
    measure(model, [batch()])
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(logits(model, inputs()[0]), before)
    ours = [m for m in model.modules() if any("wemask" in h.__module__ for h in _hooks(m))]
    assert not ours


def _hooks(module: Any) -> list[Any]:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]


@pytest.mark.parametrize("family", ["gpt2", "phi3", "gpt_neox", "falcon", "qwen3_next", "opt"])
def test_other_architectures(family):
    rows = measure(shared(family).model, [batch()]).layers
    for row in rows:
        plain = json.loads(json.dumps(row.to_dict(), allow_nan=False))
        assert plain["effective_rank"] >= 1
        if row.sink_mass_by_head:
            assert 0 <= row.sink_mass <= 1
    assert any(row.sink_mass_by_head for row in rows)


def test_massive_tokens_are_those_of_the_thresholds():
    case, (ids, mask, massive) = shared(), inputs()
    assert torch.equal(primary_tokens(case.model, case.report, ids, mask), massive & mask.bool())
    cut = probe_batches(case.model, case.report, ids[1:2], mask[1:2])
    assert cut[0].input_ids.shape == (1, 9)  # pads on the right are cut off
    assert torch.equal(cut[0].massive, massive[1:2, :9])


def test_without_massive_tokens_the_first_token_is_still_measured():
    none = Batch(input_ids=inputs()[0], attention_mask=inputs()[1], massive=inputs()[2] & False)
    row = measure(shared().model, [none]).layers[2]
    assert math.isnan(row.sink_mass) and row.sink_mass_by_head == []
    assert 0 <= row.sink_mass_first <= 1 and 0 <= row.sink_rate_first <= 1
    assert math.isnan(row.massive_magnitude) and row.massive_max > 0


def test_no_text_is_an_error():
    with pytest.raises(DetectionError, match="no text to measure"):
        measure(shared().model, [])


def test_later_leaves_out_layers_without_the_metric():
    rows = measure(shared().model, [batch()]).layers
    rows[3].sink_mass = math.nan
    found = Measurement(layers=rows, perplexity=1.0, texts=1, tokens=1, massive_tokens=1)
    assert found.later("sink_mass", 2) == rows[4].sink_mass
    assert math.isnan(found.later("sink_mass", 4))


def test_what_is_kept_does_not_grow_with_the_texts():
    """Numbers, vectors of D and of heads, and the median's bins: nothing per text or token."""
    from wemask.decoder.parts import find_decoder
    from wemask.measure.measurement import _Gathered

    model: Any = shared().model
    one = [batch(slice(i, i + 1)) for i in range(4)]

    def kept(count: int) -> int:
        gathered: list[_Gathered] = []
        real = _Gathered.result

        def result(self: _Gathered) -> Any:
            gathered.append(self)
            return real(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_Gathered, "result", result)
            measure(model, one * count)
        assert not gathered[0].received  # attention of the last batch is gone
        return sum(t.numel() for sums in gathered[0].layers for t in _tensors(vars(sums)))

    assert kept(1) == kept(5)
    assert len(find_decoder(model).blocks) == LAYERS


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for one in value.values() for t in _tensors(one)]
    return _tensors(vars(value)) if hasattr(value, "__dict__") else []
