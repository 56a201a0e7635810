"""On planted models the form's leading direction, its magnitude and its tokens are known."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import (
    DIMS,
    LAYERS,
    MAGNITUDE,
    MASSIVE,
    ME_LAYER,
    WIDTH,
    Case,
    build,
    detect,
    logits,
    planted,
    sequence,
    shared,
    texts,
)
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM

from wemask.analyse.quadratic import QuadraticForm, quadratic_form
from wemask.decoder.ffn import ffn_weights, shared_experts
from wemask.decoder.parts import find_decoder
from wemask.detection.me_layer import Gate, MELayerReport
from wemask.errors import DetectionError, ModelError

DENSE_FFN = "llama mistral qwen2 qwen3 phi3 gemma2 gemma3_text olmo olmo2 olmo3 granite".split()
DENSE_FFN += "cohere2 smollm3 glm4 stablelm exaone4 gemma3 qwen2_5_vl qwen3_vl".split()
SHARED = "qwen2_moe qwen3_next deepseek_v3 llama4_text".split()
ROUTED = "qwen3_moe mixtral gpt_oss olmoe granitemoe".split()
PLAIN = "phi gpt_neox gpt2 gptj bloom mpt opt falcon starcoder2 nemotron apertus".split()
POST_NORM = {
    "gemma2": "post_feedforward_layernorm",
    "olmo2": "post_feedforward_layernorm",
    "glm4": "post_mlp_layernorm",
}


def form_of(case: Case, **options: Any) -> QuadraticForm:
    return quadratic_form(case.model, case.report, texts(seed=3), **options)


@pytest.mark.parametrize("family", [*DENSE_FFN, *SHARED])
def test_it_is_what_was_planted(family):
    case = shared(family)
    form = form_of(case)
    block = find_decoder(case.model).blocks[ME_LAYER]
    parts = shared_experts(block, WIDTH) or ffn_weights(block, WIDTH)
    assert form.layer == ME_LAYER and form.experts == (family in SHARED)
    assert [d.dim for d in form.dims] == case.report.dims and set(case.report.dims) == set(DIMS)
    for dim in form.dims:
        neuron = parts[0].gate[-1]  # pyright: ignore  (gate and up read along one direction)
        assert abs(float(cosine_similarity(dim.direction, neuron, dim=0))) > 0.999
        # its own two eigenvalues are d |g||u| and 0: one direction is all there is
        own = float(parts[0].down[dim.dim, -1] * neuron.norm() * parts[0].up[-1].norm())
        assert dim.eigenvalue == pytest.approx(own, rel=0.01)
        assert dim.share > 0.99
        assert dim.massive_alignment > 0.9
        assert dim.ordinary_alignment is not None and dim.ordinary_alignment_max is not None
        assert dim.ordinary_alignment <= dim.ordinary_alignment_max < 0.05
        assert (dim.massive_tokens, dim.ordinary_tokens) == (8, 8 * 11)
        # observed / predicted is act(z) / z at z = 8 +- 1: silu(7) / 7 = 1 - e^-7 = 0.9991, and
        # the other neurons write less than 0.1% of it
        assert dim.leading_over_observed == pytest.approx(1, abs=2e-3)
        assert dim.whole_over_observed == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("family", [*DENSE_FFN, *SHARED])
def test_every_token_of_every_dim(family):
    case, ids = shared(family), texts(seed=3)
    form = form_of(case)
    places = {(i, j) for i, j in (ids == MASSIVE).nonzero().tolist()}
    for dim in case.report.dims:
        assert {(t.text, t.position) for t in form.tokens if t.dim == dim} == places
    assert len(form.tokens) == 2 * len(places)
    for token in form.tokens:
        assert token.token_id == MASSIVE
        assert token.alignment > 0.9
        assert token.exact == pytest.approx(token.observed, rel=2e-6)  # float32: 16 roundings
        assert token.whole == pytest.approx(token.observed, rel=2e-3)
        assert token.leading == pytest.approx(token.observed, rel=2e-3)


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen2"])
def test_what_is_observed_is_what_makes_it_massive(family):
    """Without a norm or a factor after the FFN, it writes the planted magnitude."""
    for token in form_of(shared(family)).tokens:
        assert token.observed == pytest.approx(MAGNITUDE, rel=0.06)


@pytest.mark.parametrize("family", POST_NORM)
def test_a_norm_after_the_ffn_is_named_and_what_is_observed_is_before_it(family):
    case, kept = shared(family), []
    layer: Any = find_decoder(case.model).blocks[ME_LAYER].layer
    ids = texts(seed=3)
    hook = getattr(layer, POST_NORM[family]).register_forward_pre_hook(
        lambda module, args: kept.append(args[0])
    )
    form = form_of(case)
    hook.remove()
    assert form.post_norm == POST_NORM[family]
    for token in form.tokens:
        assert token.observed == float(kept[0][token.text, token.position, token.dim])
    assert ids.shape == kept[0].shape[:2]
    assert form_of(shared("llama")).post_norm is None


@torch.no_grad()
def test_a_gate_that_is_half_open_shows():
    """At z = 1, silu(z) = 0.731 z: the form says 1 / 0.731 of what the FFN writes."""
    case = planted("llama")
    (weights,) = ffn_weights(find_decoder(case.model).blocks[ME_LAYER], WIDTH)
    assert weights.gate is not None
    weights.gate[-1] /= 8
    weights.down[list(DIMS), -1] *= 8
    form = form_of(case)
    for dim in form.dims:
        assert dim.whole_over_observed == pytest.approx(1 / 0.731, rel=0.03)
        assert dim.share > 0.99
    assert all(t.exact == pytest.approx(t.observed, rel=2e-6) for t in form.tokens)


def test_biases_are_said_and_only_the_exact_prediction_has_them():
    case = planted("llama", mlp_bias=True)
    form = form_of(case)
    assert form.biases and not form_of(shared("llama")).biases
    for token in form.tokens:
        assert token.exact == pytest.approx(token.observed, rel=2e-6)
        assert token.whole != pytest.approx(token.observed, rel=2e-6)


def test_padding_counts_for_nothing():
    case, ids = shared("llama"), texts(rows=3, seed=3)
    plain = quadratic_form(case.model, case.report, ids)
    pads = torch.full((3, 4), MASSIVE)  # a massive token that is masked out
    mask = torch.cat([torch.zeros_like(pads), torch.ones_like(ids)], 1)
    padded = quadratic_form(case.model, case.report, torch.cat([pads, ids], 1), mask)
    assert len(padded.tokens) == len(plain.tokens) == 6
    for ours, theirs in zip(padded.tokens, plain.tokens, strict=True):
        assert (ours.text, ours.position, ours.dim) == (
            theirs.text,
            theirs.position + 4,
            theirs.dim,
        )
        assert ours.observed == pytest.approx(theirs.observed, rel=1e-4)
        assert ours.alignment == pytest.approx(theirs.alignment, rel=1e-4)
    for ours, theirs in zip(padded.dims, plain.dims, strict=True):
        assert ours.eigenvalue == theirs.eigenvalue and ours.ordinary_tokens == 33
        assert ours.ordinary_alignment == pytest.approx(theirs.ordinary_alignment, rel=1e-3)


def test_bfloat16():
    case = planted("llama")
    exact = form_of(case)
    model = case.model.to(torch.bfloat16)
    form = quadratic_form(model, case.report, texts(seed=3))
    for ours, theirs in zip(form.dims, exact.dims, strict=True):
        assert ours.eigenvalue == pytest.approx(theirs.eigenvalue, rel=0.01)
        assert float(ours.direction @ theirs.direction) > 0.999
    for token in form.tokens:  # the model rounds to 8 bits: 2^-8 at every step
        assert token.exact == pytest.approx(token.observed, rel=0.02)


def test_the_same_where_accelerate_keeps_the_layer_on_disk(tmp_path: Path):
    case = planted("llama")
    here = form_of(case)
    case.model.save_pretrained(tmp_path / "model")
    parts = dict.fromkeys(
        ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"], "cpu"
    )
    layers = {f"model.layers.{i}": "disk" if i == ME_LAYER else "cpu" for i in range(LAYERS)}
    spread: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model",
        device_map={**parts, **layers},
        offload_folder=str(tmp_path / "offloaded"),
    )
    assert spread.model.layers[ME_LAYER].mlp.up_proj.weight.is_meta
    there = quadratic_form(spread, case.report, texts(seed=3))
    assert spread.model.layers[ME_LAYER].mlp.up_proj.weight.is_meta
    assert there.dim_rows() == here.dim_rows() and there.rows() == here.rows()


def test_rows_are_plain_and_tidy():
    form = form_of(shared("llama"))
    rows, dims = form.rows(), form.dim_rows()
    assert json.loads(json.dumps([rows, dims], allow_nan=False)) == [rows, dims]
    names = "dim text position token_id alignment observed whole leading exact"
    assert list(rows[0]) == names.split() and len(rows) == 16
    assert len(dims) == 2 and "direction" not in dims[0] and dims[0]["dim"] in DIMS


def test_the_model_is_left_as_it_was():
    case = planted("llama")
    before = {k: v.clone() for k, v in case.model.state_dict().items()}
    case.model.train()
    expected = logits(case.model, sequence())
    form_of(case)
    assert case.model.training and torch.equal(logits(case.model, sequence()), expected)
    assert all(torch.equal(v, before[k]) for k, v in case.model.state_dict().items())
    modules = list(case.model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


@pytest.mark.parametrize("family", PLAIN)
def test_a_plain_ffn_has_no_quadratic_form(family):
    name = type(shared(family).model).__name__
    with pytest.raises(ModelError, match=f"Layer 1 of {name} has a plain FFN: without a gate"):
        form_of(shared(family))


@pytest.mark.parametrize("family", ROUTED)
def test_it_is_not_defined_for_routed_experts(family):
    name = type(shared(family).model).__name__
    with pytest.raises(ModelError, match=f"Layer 1 of {name} is a mixture of 4 routed experts"):
        form_of(shared(family))


def test_what_a_report_must_have():
    case = shared("llama")
    none = detect(build("llama"))
    assert not none.found
    with pytest.raises(DetectionError, match="The report names no ME Layer"):
        quadratic_form(case.model, none, texts())
    gates = {2: Gate(dims=[3], note="they overlap")}
    values = {**vars(case.report), "gates": gates}
    with pytest.raises(DetectionError, match=r"No layer has a gate, .*layer 2: they overlap"):
        quadratic_form(case.model, MELayerReport(**values), texts())
    with pytest.raises(
        DetectionError, match="of 5 layers, 32 wide; this one has 3 layers and is 32"
    ):
        quadratic_form(build("llama", num_hidden_layers=3), case.report, texts())


def test_texts_without_a_massive_token():
    case = shared("llama")
    ids = torch.where(texts() == MASSIVE, 9, texts())
    with pytest.raises(DetectionError, match=r"massive after layer 1\. .*probe_ids"):
        quadratic_form(case.model, case.report, ids)
    mask = (texts() != MASSIVE).long()
    with pytest.raises(DetectionError, match="massive after layer 1"):
        quadratic_form(case.model, case.report, texts(), mask)
    with pytest.raises(DetectionError, match="at least one real token"):
        quadratic_form(case.model, case.report, texts()[0])


def test_weights_that_are_not_there():
    with pytest.raises(ModelError, match="on the meta device"):
        quadratic_form(build("llama").to("meta"), shared("llama").report, texts())
