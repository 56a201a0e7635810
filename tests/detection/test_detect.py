"""Detection against the truth of planted models, and none on their twins."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import (
    DIMS,
    FAMILIES,
    LAYERS,
    MAGNITUDE,
    MASSIVE,
    ME_LAYER,
    VOCABULARY,
    WIDTH,
    build,
    detect,
    logits,
    planted,
    sequence,
    settings,
    shared,
    texts,
)
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import wemask
from wemask import Criterion, MELayerReport
from wemask.decoder.parts import find_decoder
from wemask.detection.calibration import CALIBRATION_TEXTS, LONGER_TEXTS, calibration_inputs
from wemask.detection.me_layer import Gate
from wemask.errors import DetectionError, ModelError, PatchError
from wemask.operator.handle import observe
from wemask.planted import plant


def check_exact(report: Any, *, layer: int, dims: tuple[int, ...], tokens: set[int]) -> None:
    assert report.found and report.layer == layer
    assert [e.layer for e in report.emergences] == [layer]
    assert set(report.dims) == set(dims) and len(report.dims) == len(dims)
    assert {t.token_id for t in report.tokens} == tokens
    assert all(abs(m - MAGNITUDE) < 0.04 * MAGNITUDE for m in report.magnitudes)


@pytest.mark.parametrize("family", FAMILIES)
def test_planted_exactly_and_none_on_the_twin(family):
    report = shared(family).report
    check_exact(report, layer=ME_LAYER, dims=DIMS, tokens={MASSIVE})
    ids = texts()
    places = {(t.text, t.position) for t in report.tokens}
    assert places == {tuple(place) for place in (ids == MASSIVE).nonzero().tolist()}
    assert report.erased_at is None
    assert list(report.gates) == [2, 3, 4]
    for gate in report.gates.values():
        assert gate.separation is not None and gate.separation > 10
        assert set(gate.thresholds) == set(gate.dims) == set(DIMS)
        assert gate.primary == gate.thresholds
        assert (gate.massive, gate.ordinary) == (8, 88)
    assert report.written_by is not None and report.written_by["ffn"] > 0.99
    assert report.model["architecture"] == type(shared(family).model).__name__
    twin = detect(build(family))
    assert not twin.found and twin.layer is None and twin.dims == [] and twin.tokens == []
    assert twin.nearest_miss is not None and "nearest miss is" in twin.nearest_miss


@hypothesis_settings(max_examples=12)
@given(
    seed=st.integers(0, 10_000),
    layer=st.integers(0, LAYERS - 2),
    dims=st.lists(st.integers(0, WIDTH - 3), min_size=1, max_size=4, unique=True),
    tokens=st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=2, unique=True),
)
def test_exact_over_seeds_layers_dims_and_tokens(seed, layer, dims, tokens):
    model = build("llama", seed)
    ids = torch.randint(3, VOCABULARY, (8, 12), generator=torch.Generator().manual_seed(seed))
    for row in range(8):
        ids[row, row % 7] = tokens[row % len(tokens)]
    assert not detect(model, input_ids=ids).found
    plant(model, layer=layer, token_ids=tokens, dims=dims, magnitude=MAGNITUDE, seed=seed)
    report = detect(model, input_ids=ids)
    check_exact(report, layer=layer, dims=tuple(dims), tokens=set(tokens))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(1, 6))
def test_exact_over_seeds_in_every_architecture(family, seed):
    for layer in range(LAYERS - 1):
        report = planted(family, seed, layer=layer).report
        check_exact(report, layer=layer, dims=DIMS, tokens={MASSIVE})
    assert not detect(build(family, seed)).found


def test_a_second_emergence_is_reported():
    model = build("llama")
    plant(model, layer=3, token_ids=[20], dims=[5], magnitude=MAGNITUDE)
    weight: Any = model.get_input_embeddings().weight
    own = weight[20].clone()
    plant(model, layer=1, token_ids=[7], dims=[30, 31], magnitude=MAGNITUDE)  # own dims: 28, 29
    with torch.no_grad():
        weight[20] = own
        weight[20, 28:30] = 0
    ids = texts()
    ids[:, 8] = 20
    report = detect(model, input_ids=ids)
    assert report.found and report.layer == 1
    first, second = report.emergences
    assert (first.layer, second.layer) == (1, 3)
    assert [t.token_id for t in second.tokens] == [20] and second.dims == [5]
    assert second.count == int((ids == 20).sum())
    assert abs(second.magnitude - MAGNITUDE) < 0.04 * MAGNITUDE and second.erased_at is None
    assert first.alignment == pytest.approx(1) and abs(second.alignment or 1) < 0.1
    assert "Others emerge at layers 3." in report.verdict
    assert "'20'" in second.describe()


@torch.no_grad()
def test_erasure_is_found():
    case = planted("llama")
    block: Any = find_decoder(case.model).blocks[3].layer

    def erase(module: Any, args: tuple, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[..., list(DIMS)] *= 0.001
        return out

    hook = block.register_forward_hook(erase)
    report = detect(case.model)
    assert report.layer == ME_LAYER and report.erased_at == 3
    assert report.verdict.endswith("and is erased at layer 3.")
    with wemask.soften(case.model, report, settings()) as handle:
        assert handle.tokens_touched == {2: 1, 3: 1}
        assert handle.left_alone == {4: "erased at layer 3"}
    hook.remove()


def test_what_does_not_persist_is_a_miss():
    last = planted("llama", layer=LAYERS - 1).report
    assert not last.found
    assert last.nearest_miss == "Layer 4, the last, has massive activations, which act on nothing."


def test_what_attention_wrote_is_a_miss():
    model: Any = build("llama")
    attention = model.model.layers[1].self_attn

    def write(module: Any, args: tuple, out: tuple) -> tuple:
        moved = out[0].clone()
        moved[:, 0, 3] += MAGNITUDE
        return moved, *out[1:]

    hook = attention.register_forward_hook(write)
    report = detect(model)
    hook.remove()
    assert not report.found
    assert report.nearest_miss is not None
    assert report.nearest_miss.startswith("Layer 1 has massive activations, but its FFN wrote only")


def test_massive_embeddings_are_no_me_layer():
    model = build("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[MASSIVE, 3] = MAGNITUDE  # pyright: ignore
    report = detect(model)
    assert not report.found
    assert report.nearest_miss == (
        "The embedding output is massive already; no decoder layer creates it."
    )


def test_two_massive_tokens_and_a_later_delimiter():
    model = build("llama")
    plant(model, layer=1, token_ids=[7, 30], dims=DIMS, magnitude=MAGNITUDE)
    ids = texts()
    ids[2, 9] = 30  # a delimiter, late in one text
    report = detect(model, input_ids=ids)
    check_exact(report, layer=1, dims=DIMS, tokens={7, 30})
    assert (2, 9) in {(t.text, t.position) for t in report.tokens}
    both = sequence(10, 4)
    both[0, 7] = 30
    with wemask.soften(model, report, settings()) as handle:
        observed = observe(handle, model, both)
    assert {o.tokens for o in observed.values()} == {2}


def test_weaker_relatives_count_as_massive_not_as_ordinary():
    """Token 8 misses the criterion: a threshold between them would be fragile."""
    model = build("llama")
    plant(model, layer=1, token_ids=[7], dims=DIMS, magnitude=MAGNITUDE)
    weight: Any = model.get_input_embeddings().weight
    with torch.no_grad():
        weight[8] = 0.05 * weight[7] + weight[8]
    ids = texts()
    ids[:, 8] = 8
    report = detect(model, input_ids=ids)
    strengths = {t.token_id: t.magnitude for t in report.tokens}
    assert set(strengths) == {7, 8}
    assert strengths[8] < 1000 * report.layers[ME_LAYER + 1].median < strengths[7]
    assert max(report.gates[2].thresholds.values()) < strengths[8]


def test_thresholds_split_massive_from_ordinary_in_every_layer():
    case = shared()
    ids = texts(seed=9)
    with torch.no_grad():
        states = case.model(input_ids=ids, output_hidden_states=True, use_cache=False)[
            "hidden_states"
        ]
    for layer, gate in case.report.gates.items():
        units = gate.units(states[layer])
        assert torch.equal(units > 1, ids == MASSIVE)


def test_when_every_token_is_massive_the_threshold_stays_below_all():
    case = shared()
    report = detect(case.model, input_ids=torch.full((2, 3), MASSIVE))
    assert report.found
    for gate in report.gates.values():
        assert gate.separation is None and gate.ordinary == 0
        assert all(0 < tau < MAGNITUDE for tau in gate.thresholds.values())
    with wemask.soften(case.model, report, settings()) as handle:
        assert handle.tokens_touched == {2: 3, 3: 3, 4: 3}


def test_without_a_threshold_massive_tokens_are_refused():
    case = shared()
    bad = Gate(dims=[3], note="no gap")
    report = replace(case.report, gates={**case.report.gates, 3: bad})
    with wemask.soften(case.model, report, settings()) as handle:
        assert handle.layers == [2, 4] and handle.left_alone == {3: "no gap"}
        assert "left_alone=[3]" in repr(handle)
    report = replace(case.report, gates=dict.fromkeys((2, 3, 4), bad))
    with pytest.raises(PatchError, match=r"told .*layer 2 to 4 \(no gap\)\. Type tokens=first"):
        wemask.soften(case.model, report, settings())


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe", "olmo2"])
def test_bfloat16(family):
    report = detect(planted(family).model.to(torch.bfloat16))
    check_exact(report, layer=ME_LAYER, dims=DIMS, tokens={MASSIVE})
    assert report.model["dtype"] == "bfloat16"


def test_an_overflow_is_said_not_read_as_an_answer():
    model: Any = shared().model

    def overflow(module: Any, args: tuple, out: torch.Tensor) -> torch.Tensor:
        return out / 0

    hook = model.model.layers[2].mlp.register_forward_hook(overflow)
    try:
        with pytest.raises(ModelError, match=r"NaN or infinite values in the output of layer 2"):
            detect(model)
    finally:
        hook.remove()


def test_padding_changes_nothing():
    model, ids = shared().model, texts()
    padded = torch.cat([ids, torch.full((8, 5), MASSIVE)], 1)
    mask = torch.ones_like(padded)
    mask[:, 12:] = 0
    report = detect(model, input_ids=padded, attention_mask=mask)
    reference = detect(model)
    assert report.tokens[0].position == reference.tokens[0].position
    assert len(report.tokens) == 8
    for a, b in zip(report.layers, reference.layers, strict=True):
        assert a.max == pytest.approx(b.max, rel=1e-4)
        assert a.median == pytest.approx(b.median, rel=1e-4)
    assert report.probe_ids == ids[reference.tokens[0].text].tolist()


def test_the_table_and_the_relief():
    report = shared().report
    assert [row.layer for row in report.layers] == list(range(-1, LAYERS))
    born = report.layers[ME_LAYER + 1]
    assert born.dim in DIMS and set(born.top_dims[:2]) == set(DIMS)
    assert born.max == pytest.approx(max(report.magnitudes))
    assert born.ratio == pytest.approx(born.max / born.median)
    assert born.jump == pytest.approx(born.max / report.layers[ME_LAYER].max)
    assert born.cosine_next is not None and born.cosine_next > 0.99
    assert report.layers[0].jump is None and report.layers[-1].cosine_next is None
    assert report.relief is not None and report.relief.shape == (LAYERS + 1, WIDTH)
    assert float(report.relief[ME_LAYER + 1].max()) == pytest.approx(born.max)


def test_the_norm_says_how_it_weighs_the_massive_dims():
    model: Any = build("llama")
    norm = model.model.layers[ME_LAYER].post_attention_layernorm
    with torch.no_grad():
        norm.weight[DIMS[0]], norm.weight[DIMS[1]] = 9.0, -7.0
    plant(model, layer=ME_LAYER, token_ids=[MASSIVE], dims=DIMS, magnitude=MAGNITUDE)
    report = detect(model)
    assert report.norm is not None
    assert report.norm["ranks_of_massive_dims"] == {str(DIMS[0]): 0, str(DIMS[1]): 1}
    # two equal dims hold all the energy: KL from uniform is log(D / 2)
    before = report.norm["kl_from_uniform_before_norm"]
    assert before == pytest.approx(math.log(WIDTH / 2), abs=0.01)
    assert report.norm["kl_from_uniform_after_norm"] > before


def test_a_norm_without_weight_is_no_obstacle():
    assert shared("olmo").report.norm is None
    assert shared("olmo2").report.norm is None


def test_criteria():
    model = shared().model
    relative = detect(model, criterion="relative", min_ratio=150.0)
    check_exact(relative, layer=ME_LAYER, dims=DIMS, tokens={MASSIVE})
    assert relative.criterion == Criterion(name="relative", min_ratio=150.0)
    assert relative.other_criterion == (
        "sun2024 (above 100 and at least 1000 times the median and 5 times the layer before): "
        "ME Layer 1"
    )
    strict = detect(model, criterion="sun2024", min_magnitude=1e6)
    assert not strict.found and "above 1e+06" in (strict.nearest_miss or "")
    assert strict.other_criterion.endswith("ME Layer 1")


def test_detection_leaves_no_trace_and_needs_no_gradient():
    case = planted("llama")
    case.model.train()
    before = logits(case.model, sequence())
    detect(case.model)
    assert case.model.training
    assert torch.equal(logits(case.model, sequence()), before)
    assert all(p.grad is None for p in case.model.parameters())


def test_bad_input():
    model: Any = shared().model
    ids = texts()
    for call, message in (
        (lambda: wemask.detect(model), r"needs something to read: detect\(model, tokenizer\)"),
        (lambda: wemask.detect(model, input_ids=ids[0]), r"must be \[batch, tokens\]"),
        (
            lambda: wemask.detect(model, input_ids=ids, attention_mask=ids[:, 1:]),
            r"got \(8, 12\) and \(8, 11\)",
        ),
        (
            lambda: wemask.detect(model, input_ids=ids, attention_mask=torch.zeros_like(ids)),
            "at least one real",
        ),
        (lambda: wemask.detect(model, input_ids=ids.float()), r"got torch\.float32.*ids\.long"),
        (lambda: wemask.detect(model, input_ids=ids[:, :1]), "A text of one token shows nothing"),
        (
            lambda: wemask.detect(model, input_ids=ids, attention_mask=[1]),  # pyright: ignore
            r"attention_mask must be a tensor .*got \[1\]",
        ),
        (lambda: wemask.detect(model, "NAME"), "needs something to read"),
        (lambda: wemask.detect(model, list, texts=[3]), r"list of texts, got \[3\]"),  # pyright: ignore
        (lambda: detect(model, criterion=3), "or has settings of its own, .*; got 3"),
        (
            lambda: detect(model, criterion={"name": "sun2024", "bogus": 1}),
            r"settings of its own, name, min_.*'bogus'",
        ),
        (lambda: detect(model, criterion="sun"), r"criterion is one of .*Did you mean 'sun2024'"),
        (
            lambda: wemask.detect(model, input_ids=ids, min_ration=3.0),
            r"no argument 'min_ration'.*'min_ratio'",
        ),
        (
            lambda: detect(model, criterion=Criterion(), min_ratio=3.0),
            r"thresholds inside Criterion",
        ),
        (lambda: wemask.detect(model, lambda text: {"input_ids": []}), "texts are empty"),
    ):
        with pytest.raises(DetectionError, match=message):
            call()
    with pytest.raises(ModelError, match="transformers model was expected"):
        wemask.detect(torch.nn.Linear(2, 2), input_ids=ids)


def test_the_probe_has_two_tokens_where_a_text_has():
    """A report with a probe of one is damaged: what detection writes must be readable."""
    ids = torch.cat([torch.full((1, 12), MASSIVE), sequence()])
    mask = torch.ones_like(ids)
    mask[0, 1:] = 0
    report = wemask.detect(shared().model, input_ids=ids, attention_mask=mask)
    assert report.probe_ids == sequence()[0].tolist()
    assert MELayerReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_a_softened_model_is_refused():
    case = shared()
    with (
        wemask.soften(case.model, case.report, settings()),
        pytest.raises(DetectionError, match="The model is softened"),
    ):
        detect(case.model)


def test_calibration_texts_are_padded_by_hand():
    def tokenizer(text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % 50 for c in text]}

    ids, mask = calibration_inputs(tokenizer, texts=["abc", "", "z"])
    assert ids.tolist() == [[47, 48, 49], [22, 22, 22]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert len(calibration_inputs(tokenizer)[0]) == len(CALIBRATION_TEXTS) + len(LONGER_TEXTS) == 38
