"""Gates calibrated again on planted models whose massive activation was moved: what is known."""

import copy
from typing import Any

import pytest
import torch
from families import CRITERION, DIMS, LAYERS, ME_LAYER, detect, logits, planted, sequence, settings
from families import texts as calibration

import wemask
from wemask import Criterion
from wemask.errors import DetectionError, ModelError, PatchError
from wemask.operator.recalibration import NEVER, is_lost, recalibrate

LOOSE = Criterion(name="relative", min_ratio=60.0, min_jump=1.5)
SOFTENED = [2, 3, 4]


@torch.no_grad()
def grow(model: Any, factor: float, layer: int = ME_LAYER) -> None:
    """Make the massive activation `factor` times as large, as training might."""
    model.model.layers[layer].mlp.down_proj.weight[list(DIMS)] *= factor


def softened(criterion: Criterion = CRITERION, **changes: Any) -> tuple[Any, wemask.SoftenHandle]:
    case = planted("llama")
    report = detect(case.model, criterion=criterion)
    return case.model, wemask.soften(case.model, report, settings(**changes))


def again(handle: Any, model: Any) -> list[str]:
    moved = recalibrate(handle, model, input_ids=calibration(), step=7)
    assert moved is not None
    return moved.sentences()


def test_on_the_weights_of_the_first_calibration_nothing_moves() -> None:
    model, handle = softened(strength="learnable")
    before, first, touched = logits(model, sequence()), handle.report, handle.tokens_touched
    said = again(handle, model)
    assert handle.report is not None and first is not None
    assert handle.report.gates == first.gates
    assert handle.tokens_touched == touched
    assert torch.equal(logits(model, sequence()), before)
    assert said == ["ME Layer 1, as before.", "Layers 2 to 4: thresholds as before."]


@pytest.mark.parametrize("factor", [0.02, 0.3, 3.0])
def test_gates_are_those_of_a_detection_on_the_moved_weights(factor: float) -> None:
    model, handle = softened(LOOSE)
    grow(model, factor)
    handle.look()
    fell = factor == 0.02  # to 100, where the first thresholds are about 170
    assert any(handle.tokens_touched.values()) != fell
    dims = copy.deepcopy(handle.dims)
    said = again(handle, model)
    twin = planted("llama")
    grow(twin.model, factor)
    fresh = detect(twin.model, criterion=LOOSE)
    assert handle.report is not None and handle.calibrated is not None
    assert handle.report.gates == fresh.gates
    assert handle.tokens_touched == {2: 1, 3: 1, 4: 1}
    assert (handle.silent, handle.dims, handle.layers) == ([], dims, SOFTENED)
    assert said == ["ME Layer 1, as before.", "Layers 2 to 4: new thresholds."]
    assert handle.calibrated.step == 7
    assert handle.calibrated.first.gates != handle.report.gates
    # The softening itself is the one of these gates.
    on = logits(model, sequence())
    with wemask.soften(twin.model, fresh, settings(), dims={i: dims[i] or [] for i in dims}):
        assert torch.equal(logits(twin.model, sequence()), on)


def test_an_activation_below_the_criterion_that_the_old_gate_still_tells_stays_softened() -> None:
    model, handle = softened()
    grow(model, 0.05)  # 250: 230 times the median, where 1000 are asked for
    before = logits(model, sequence())
    said = again(handle, model)
    assert said[0].startswith("No ME Layer")
    assert said[1:] == ["Layers 2 to 4: the old thresholds, which still tell."]
    assert torch.equal(logits(model, sequence()), before)


def test_where_it_is_gone_the_layers_touch_nothing_and_that_is_said() -> None:
    model, handle = softened()
    grow(model, 0.0)
    said = again(handle, model)
    assert handle.silent == SOFTENED
    assert said[-1] == (
        "SFT has removed the massive activation: the softening touches nothing in 3 of 3 layers."
    )
    assert "Gates lost: layer 2 to 4 (no massive activation emerges any more)." in said
    on = logits(model, sequence())
    with handle.at_strength(0.0):
        assert torch.equal(logits(model, sequence()), on)
    handle.remove()
    with pytest.raises(DetectionError, match="need a detected ME Layer"):
        wemask.soften(model, detect(model), settings())  # a fresh one stays an error
    first = planted("llama").report
    with pytest.raises(PatchError, match="The softening touches nothing"):
        wemask.soften(model, first, settings())


def test_a_gate_that_takes_every_token_is_lost() -> None:
    model, handle = softened()
    with torch.no_grad():
        model.model.embed_tokens.weight[:, list(DIMS)] = 900.0
    handle.look()
    assert set(handle.tokens_touched.values()) == {12}
    again(handle, model)
    assert handle.silent == SOFTENED


def test_a_lost_gate_comes_back_with_the_activation() -> None:
    model, handle = softened()
    grow(model, 1e-3)
    again(handle, model)
    assert handle.silent == SOFTENED
    grow(model, 1e3)
    assert "Layers 2 to 4: a gate again." in again(handle, model)
    assert (handle.silent, handle.tokens_touched) == ([], {2: 1, 3: 1, 4: 1})


def test_a_moved_me_layer_is_said_and_the_softened_layers_stay() -> None:
    from wemask.planted import plant

    model, handle = softened()
    grow(model, 0.0)
    plant(model, layer=3, token_ids=[7], dims=DIMS, magnitude=5000.0)
    said = again(handle, model)
    assert said[0] == "ME Layer 3; it was 1. The softened layers stay."
    assert handle.layers == SOFTENED
    assert handle.silent == [2, 3]
    assert said[-1].endswith("touches nothing in 2 of 3 layers.")
    assert handle.report is not None
    assert handle.report.layer == 1
    assert [is_lost(handle.report.gates[i]) for i in SOFTENED] == [True, True, False]


def test_a_layer_that_was_left_alone_stays_so() -> None:
    case = planted("llama")
    report = case.report
    doubtful = wemask.detection.me_layer.Gate(dims=[3], note="cannot be told")
    report.gates[3] = doubtful
    handle = wemask.soften(case.model, report, settings())
    said = again(handle, case.model)
    assert (handle.layers, sorted(handle.left_alone)) == ([2, 4], [3])
    assert "Layer 3: a gate that would tell, but left alone as in training." in said
    assert handle.report is not None
    assert handle.report.gates[3] == doubtful


def test_a_save_holds_both_calibrations_and_loads_as_it_was(tmp_path: Any) -> None:
    model, handle = softened(LOOSE)
    grow(model, 0.02)
    again(handle, model)
    wemask.save(model, None, tmp_path)
    loaded: Any = wemask.load(tmp_path)[0]
    restored = loaded.wemask_handle
    assert restored.calibrated == handle.calibrated
    assert (restored.report, restored.touched_first) == (handle.report, handle.touched_first)
    assert torch.equal(logits(loaded, sequence()), logits(model, sequence()))


def test_a_model_trained_by_hand_until_it_is_gone_is_saved_and_loads(tmp_path: Any) -> None:
    model, handle = softened()
    grow(model, 0.0)
    wemask.save(model, None, tmp_path)
    assert wemask.load(tmp_path)[0].wemask_handle.silent == handle.silent == SOFTENED  # pyright: ignore


def test_tokens_by_place_have_no_gates_to_calibrate() -> None:
    model, handle = softened(tokens="first")
    assert recalibrate(handle, model, input_ids=calibration()) is None
    assert handle.calibrated is None


def test_the_control_of_a_wrong_token_avoids_massive_ones_by_the_new_gates() -> None:
    model, handle = softened(LOOSE, tokens="wrong", seed=3)
    grow(model, 0.02)
    ids = sequence(massive_at=4)
    assert any(o.tokens for o in wemask.operator.handle.observe(handle, model, ids).values())
    again(handle, model)
    assert not any(o.tokens for o in wemask.operator.handle.observe(handle, model, ids).values())


def test_weights_that_are_not_finite_leave_the_gates_as_they_are() -> None:
    model, handle = softened()
    report = handle.report
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN or infinite"):
        again(handle, model)
    assert handle.report is report
    assert handle.strength == 1.0
    assert all(softening.observed is None for softening in handle.softenings())


def test_detection_reads_a_softened_model_only_at_strength_0() -> None:
    model, handle = softened()
    with pytest.raises(DetectionError, match="is softened"):
        detect(model)
    with handle.at_strength(0.0):
        assert detect(model) == planted("llama").report


def test_a_lost_gate_is_a_threshold_that_json_holds_and_nothing_passes() -> None:
    import json

    assert json.loads(json.dumps(NEVER)) == NEVER
    largest = torch.tensor(NEVER, dtype=torch.float32)
    assert torch.isfinite(largest) and not (torch.tensor(3e38) > largest)
    assert len(SOFTENED) == LAYERS - ME_LAYER - 1
