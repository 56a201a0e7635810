"""The self-test passes where the contract holds, and fails where it does not."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, HIDDEN_MASKS, logits, planted, sequence, settings, shared
from torch import Tensor

from wemask import WeMaskConfig, WeMaskWarning, detect, soften
from wemask.checkpoint import contract as validate_module
from wemask.checkpoint.contract import Check, gates_hold, validate
from wemask.detection.calibration import CALIBRATION_TEXTS, HELD_OUT_TEXTS, LONGER_TEXTS
from wemask.operator import layers

NAMES = [
    (7, "it fires"),
    (1, "strength 0 is the unpatched model, bit for bit"),
    (1, "state_dict keys do not change"),
    (2, "left padding"),
    (2, "right padding"),
    (3, "prefill + cached decode, token by token"),
    (3, "chunked prefill"),
    (6, "save, load in a fresh process: bit for bit"),
    (6, "stock from_pretrained does not drop the operator silently"),
    (1, "removed is the unpatched model, bit for bit"),
]


def without_a_process(*args: Any) -> Check:
    """In place of the check that starts an interpreter; test_every_check_passes runs it."""
    return Check(number=6, name=NAMES[7][1], passed=True, detail="not run here")


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


def test_every_check_passes_and_leaves_the_model_as_it_was():
    case, ids = planted("llama"), sequence()
    before = logits(case.model, ids)
    case.model.train()
    checks = list(validate(case.model, None, case.report, settings()))
    assert [(check.number, check.name) for check in checks] == NAMES
    assert failed(checks) == set(), checks
    assert "tokens touched: {2: 1, 3: 1, 4: 1}" in checks[0].detail
    assert case.model.training
    assert torch.equal(logits(case.model.eval(), ids), before)


@pytest.mark.parametrize(
    "family",
    [f if f in ("gpt2", "olmo2") else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES],
)
def test_in_every_architecture(family, monkeypatch):
    monkeypatch.setattr(validate_module, "_saved", without_a_process)
    case = shared(family)
    for tokens in ("massive", "first"):
        checks = list(validate(case.model, None, case.report, settings(tokens=tokens)))
        refused = tokens == "first" and family in HIDDEN_MASKS
        assert failed(checks) == ({"it fires"} if refused else set()), checks


def test_dropout_in_training_mode_is_no_failure(monkeypatch):
    monkeypatch.setattr(validate_module, "_saved", without_a_process)
    case = planted("gpt2", resid_pdrop=0.5)
    case.model.train()
    checks = list(validate(case.model, None, case.report, settings()))
    assert failed(checks) == set()
    assert case.model.training


def test_position0_fails_padding_and_cache(monkeypatch):
    monkeypatch.setattr(validate_module, "_saved", without_a_process)
    case = shared()
    config = settings(tokens="position0")
    with pytest.warns(WeMaskWarning):
        checks = list(validate(case.model, None, case.report, config))
    assert {"left padding", "prefill + cached decode, token by token"} <= failed(checks)
    assert "removed is the unpatched model, bit for bit" not in failed(checks)


def test_a_broken_operator_is_caught(monkeypatch):
    def broken(x: Tensor, gate: Tensor, dims: Tensor, strength: float) -> Tensor:
        return x * 1.001  # not the identity at strength 0

    monkeypatch.setattr(validate_module, "_saved", without_a_process)
    monkeypatch.setattr(layers, "soften_dims", broken)
    case = shared()
    checks = list(validate(case.model, None, case.report, settings()))
    assert failed(checks) == {"strength 0 is the unpatched model, bit for bit"}


def test_a_softening_that_touches_nothing_fails_to_fire():
    case = shared()
    checks = list(validate(case.model, None, case.report, settings(layers=[0])))
    assert [(c.number, c.passed) for c in checks] == [(7, False)]
    assert "would touch nothing" in checks[0].detail
    (check,) = validate(case.model, None, None, WeMaskConfig())
    assert not check.passed and "need a detected ME Layer" in check.detail


def test_a_save_that_drops_the_operator_is_caught(monkeypatch):
    def plain(model: Any, tokenizer: Any, folder: Path) -> None:
        model.save_pretrained(folder)

    monkeypatch.setattr(validate_module, "_saved", without_a_process)
    monkeypatch.setattr(validate_module, "save", plain)
    case = shared()
    checks = list(validate(case.model, None, case.report, settings()))
    assert failed(checks) == {"stock from_pretrained does not drop the operator silently"}


def test_stopping_half_way_unpatches():
    case = shared()
    checks = validate(case.model, None, case.report, settings())
    assert next(checks).passed
    assert hasattr(case.model, "wemask_handle")
    checks.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(case.model, "wemask_handle")


def tiny_checks(report: Any, tiny: Any) -> Check:
    model, tokenizer = tiny
    config = WeMaskConfig(rate=0.03)
    with soften(model, report, config) as handle, handle.at_strength(0.0):
        return gates_hold(model, tokenizer, handle)


def test_gates_hold_on_texts_that_calibration_never_saw(tiny: Any) -> None:
    report = detect(*tiny)
    check = tiny_checks(report, tiny)
    assert check.passed and "0 missed" in check.detail
    assert not {*HELD_OUT_TEXTS} & {*CALIBRATION_TEXTS, *LONGER_TEXTS}


@pytest.mark.parametrize(
    ("factor", "detail"), [(3.0, r"[1-9]\d* missed"), (0.05, r"smallest gap (0|1\.[01])")]
)
def test_a_gate_that_is_off_in_one_layer_fails(factor: float, detail: str, tiny: Any) -> None:
    report = detect(*tiny)
    gate = report.gates[3]
    moved = {dim: factor * tau for dim, tau in gate.thresholds.items()}
    report.gates[3] = replace(gate, thresholds=moved)
    check = tiny_checks(report, tiny)
    assert not check.passed and re.search(detail, check.detail), check.detail
