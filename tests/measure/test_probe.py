"""What is watched of a model: fixed texts, fixed massive tokens, one forward."""

import copy
from typing import Any

import pytest
import torch
from families import DIMS, LAYERS, MASSIVE, ME_LAYER, VOCABULARY, build, detect, planted
from families import settings as gate_settings
from run_support import settings

import wemask
from wemask.measure.measurement import entering, measure
from wemask.measure.probe import LENGTH, Probe, fixed_probe, probe_texts
from wemask.operator.handle import observe
from wemask.train.prepare import Prepared, prepare

OPERATOR = {
    *("me_layer", "massive_max", "massive_ratio", "massive_magnitude", "sink_mass", "sink_rate"),
    *("effective_rank", "anisotropy", "probe_perplexity", "strength", "tokens_touched"),
    *("separation", "gates"),
}


def named(values: dict[str, float]) -> set[str]:
    assert all(key.startswith("wemask/") for key in values)
    return {key.removeprefix("wemask/") for key in values}


def probe_of(prepared: Prepared) -> Probe:
    assert prepared.report is not None
    return fixed_probe(prepared.model, prepared.tokenizer, prepared.report, prepared.handle)


@pytest.fixture(scope="module")
def softened() -> Prepared:
    return prepare(settings("logger=none", "operator.rate=0.1"))


# --- the texts ------------------------------------------------------------------------------------


def test_the_probe_prompt_comes_first_and_no_text_is_long_or_twice(softened: Prepared) -> None:
    report = copy.copy(softened.report)
    assert report is not None
    ids, mask = probe_texts(softened.tokenizer, report)
    rows = [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]
    assert rows[0] == report.probe_ids[:LENGTH]
    assert len({tuple(row) for row in rows}) == len(rows) <= 5
    report.probe_ids = list(range(3, 3 + 2 * LENGTH))
    ids, mask = probe_texts(softened.tokenizer, report)
    assert ids.shape == mask.shape == (5, LENGTH)


def test_massive_tokens_are_found_by_content_whatever_the_strength(softened: Prepared) -> None:
    report, batch = softened.report, probe_of(softened).batch
    assert report is not None
    massive = {token.token_id for token in report.tokens}
    assert batch.massive.any(1).all()
    assert set(batch.input_ids[batch.massive].tolist()) <= massive


# --- the keys -------------------------------------------------------------------------------------


def test_a_softened_model_has_all_keys(softened: Prepared) -> None:
    report, handle = softened.report, softened.handle
    assert report is not None and handle is not None
    values = probe_of(softened).measure(softened.model)
    assert named(values) == OPERATOR
    assert values["wemask/me_layer"] == report.layer
    assert values["wemask/strength"] == 1.0
    # The texts are among those of the detection, so their largest cannot be larger.
    assert 0 < values["wemask/massive_magnitude"] <= values["wemask/massive_max"]
    assert values["wemask/massive_max"] <= report.magnitudes[0] * 1.0001
    assert values["wemask/massive_ratio"] > report.criterion.min_ratio


def test_tokens_touched_are_those_of_each_text_alone(softened: Prepared) -> None:
    probe, handle = probe_of(softened), softened.handle
    assert handle is not None
    count = 0
    for row, mask in zip(probe.batch.input_ids, probe.batch.attention_mask, strict=True):
        alone = observe(handle, softened.model, row[mask.bool()].unsqueeze(0))
        count += sum(o.tokens for o in alone.values())
    assert probe.measure(softened.model)["wemask/tokens_touched"] == count > 0
    assert all(s.observed is None for s in handle.softenings())


def test_without_the_operator_its_keys_are_left_out() -> None:
    plain = prepare(settings("logger=none", "method=sft"))
    values = probe_of(plain).measure(plain.model)
    assert named(values) == OPERATOR - {"strength", "tokens_touched", "separation", "gates"}


def test_a_learned_strength_is_told_by_layer() -> None:
    learned = prepare(settings("logger=none", "operator.strength=learnable"))
    handle = learned.handle
    assert handle is not None
    handle.learned = {index: 0.1 * index for index in handle.learned}
    values = probe_of(learned).measure(learned.model)
    told = {k: v for k, v in values.items() if k.startswith("wemask/strength/")}
    assert told == {f"wemask/strength/layer_{i}": s for i, s in handle.strengths.items()}
    assert values["wemask/strength"] == pytest.approx(sum(told.values()) / len(told))


# --- models with a known massive activation -------------------------------------------------------


class Letters:
    """A tokenizer of texts that are never massive: their letters as ids, from 8 on."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [8 + ord(letter) % (VOCABULARY - 8) for letter in text]}


def test_the_sink_of_the_same_tokens_is_told_where_the_massive_activation_is_gone() -> None:
    case = planted("llama")
    model: Any = case.model
    probe = fixed_probe(model, Letters(), case.report, None)
    assert torch.equal(probe.batch.massive, probe.batch.input_ids == MASSIVE)
    before = probe.measure(model)
    with torch.no_grad():
        model.model.layers[ME_LAYER].mlp.down_proj.weight[list(DIMS)] = 0.0
    after = probe.measure(model)
    assert after["wemask/massive_magnitude"] < before["wemask/massive_magnitude"] / 10
    assert 0 < after["wemask/sink_mass"] < 1
    assert named(after) == named(before)
    again = fixed_probe(model, Letters(), case.report, None)
    assert not again.batch.massive.any()  # found anew, they would be none


def test_the_gates_are_told_from_all_to_none_as_the_massive_activation_goes() -> None:
    case = planted("llama")
    model: Any = case.model
    handle = wemask.soften(model, case.report, gate_settings())
    probe = fixed_probe(model, Letters(), case.report, handle)
    massive, mask = probe.batch.massive, probe.batch.attention_mask
    ask = {i: case.report.gates[i].units for i in handle.layers}
    down = model.model.layers[ME_LAYER].mlp.down_proj.weight
    seen = []
    for factor in (1.0, 0.1, 0.1):  # at 5000, 500 and 50, with thresholds of about 170
        with torch.no_grad():
            down[list(DIMS)] *= factor
        values = probe.measure(model)
        seen.append((values["wemask/gates"], values["wemask/tokens_touched"], sorted(probe.lost)))
        units = entering(model, ask, probe.batch.input_ids, mask).values()
        ratios = [u[massive].min() / u[mask.bool() & ~massive].max() for u in units]
        assert values["wemask/separation"] == pytest.approx(float(min(ratios)))
    assert seen[:2] == [(3.0, 3.0 * int(massive.sum()), [])] * 2
    assert seen[2] == (0.0, 0.0, [2, 3, 4])


def test_layers_that_an_earlier_one_leaves_nothing_have_no_gate_to_lose() -> None:
    case = planted("llama")
    control = gate_settings(site="residual_stream", dims="massive")
    handle = wemask.soften(case.model, case.report, control)
    assert handle.tokens_touched == {2: 1, 3: 0, 4: 0}
    probe = fixed_probe(case.model, Letters(), case.report, handle)
    assert probe.measure(case.model)["wemask/gates"] == 1.0
    assert not probe.lost


def test_without_an_me_layer_the_first_token_and_all_layers_are_told() -> None:
    model = build("llama")
    report = detect(model)
    assert not report.found
    probe = fixed_probe(model, Letters(), report, None)
    values = probe.measure(model)
    assert named(values) == {
        *("massive_max", "massive_ratio", "sink_mass_first", "sink_rate_first"),
        *("effective_rank", "anisotropy", "probe_perplexity"),
    }
    rows = measure(model, [probe.batch]).layers
    assert values["wemask/effective_rank"] == pytest.approx(
        sum(row.effective_rank for row in rows) / LAYERS
    )
    assert values["wemask/massive_max"] == max(row.massive_max for row in rows)
