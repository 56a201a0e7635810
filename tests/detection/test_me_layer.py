"""The report as a file: what is written is read back, what is damaged is said."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from families import ME_LAYER, build, detect, settings, shared
from hypothesis import given
from hypothesis import strategies as st

import wemask
from wemask import Criterion, MELayerReport
from wemask.errors import DetectionError, PatchError


@pytest.mark.parametrize("family", ["llama", "olmo2", "gpt2"])
def test_round_trip(family, tmp_path):
    report = shared(family).report
    report.save(tmp_path / "me_layer.json")
    loaded = MELayerReport.load(tmp_path / "me_layer.json")
    assert loaded == report
    assert loaded.relief is None
    assert loaded.to_dict() == report.to_dict()
    values = json.loads((tmp_path / "me_layer.json").read_text())
    assert values["schema_version"] == 2
    assert values["verdict"] == report.verdict
    assert "relief" not in values


def test_round_trip_where_nothing_was_found(tmp_path):
    report = detect(build("llama"))
    report.save(tmp_path / "r.json")
    assert MELayerReport.load(tmp_path / "r.json") == report
    assert report.verdict.startswith("No ME Layer: no massive activation emerges. The nearest")


def test_infinite_ratios_survive_json(tmp_path):
    report = shared().report
    rows = [replace(row, ratio=math.inf) for row in report.layers]
    replace(report, layers=rows).save(tmp_path / "r.json")
    assert "Infinity" not in (tmp_path / "r.json").read_text()
    assert MELayerReport.load(tmp_path / "r.json").layers == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "An ME Layer report was sought at"),
        ("{", "An ME Layer report was sought at"),
        ("[]", "schema version 1 or 2 was expected, found None"),
        ("3", "schema version 1 or 2 was expected, found None"),
        ("{}", "schema version 1 or 2 was expected, found None"),
        ('{"schema_version": 3}', "schema version 1 or 2 was expected, found 3"),
        ('{"schema_version": 1}', "report is damaged"),
        ('{"schema_version": 2}', "report is damaged"),
    ],
)
def test_damaged_files(tmp_path, text, message):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DetectionError, match=rf"{message}.*Run `wemask detect`"):
        MELayerReport.load(tmp_path / "r.json")


def test_a_missing_file(tmp_path):
    with pytest.raises(DetectionError, match=r"sought at .*r\.json: .*No such file"):
        MELayerReport.load(tmp_path / "r.json")


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "r.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DetectionError, match=r"sought at"):
        MELayerReport.load(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema_version", True, "version 1 or 2 was expected, found True"),
        ("found", "true", r"report\.found must be true or false, got 'true'"),
        ("num_layers", "5", r"report\.num_layers must be a whole number, got '5'"),
        ("layer", None, "its layer is no layer"),
        ("layer", 9, "there may be gates of 10 to 4"),
        ("dims", [], "its dims are none"),
        ("dims", [3, 3], "its dims are not different ones of 32"),
        ("dims", [3, 99], "its dims are not different ones of 32"),
        ("dims", [3.0, 17], r"report\.dims\[0\] must be a whole number, got 3\.0"),
        ("magnitudes", [1.0], "its magnitudes are not one for each of dims"),
        ("probe_ids", [7], "its probe_ids are one token alone"),
        ("probe_ids", [7] * 10**6, "its probe_ids are more than 65,536"),
        ("probe_ids", [7, -1], "its probe_ids are no tokens"),
        ("tokens", [{"text": 0}], r"report\.tokens\[0\] must have position, token_id"),
        ("criterion", {"name": "sun2024", "bogus": 1}, "criterion must not have bogus"),
        ("relief", [[1.0]], r"report\.relief must be"),
    ],
)
def test_values_that_do_not_go_together(key, value, message):
    values = json.loads(json.dumps(shared().report.to_dict()))
    with pytest.raises(DetectionError, match=message):
        MELayerReport.from_dict({**values, key: value})


KEYS = sorted(shared().report.to_dict())


@given(
    key=st.sampled_from(KEYS),
    value=st.sampled_from([None, 3, "x", [3], {"a": 1}, [{}], True]),
)
def test_any_damaged_value_is_one_error_or_harmless(key, value):
    values = json.loads(json.dumps(shared().report.to_dict()))
    values[key] = value
    outcome = attempt(values)
    assert isinstance(outcome, MELayerReport) or "Run `wemask detect` again." in str(outcome)


def attempt(values: dict[str, Any]) -> MELayerReport | DetectionError:
    try:
        return MELayerReport.from_dict(values)
    except DetectionError as error:
        return error


def test_unknown_and_missing_keys_are_damage():
    values = shared().report.to_dict()
    with pytest.raises(DetectionError, match=r"damaged .*surplus"):
        MELayerReport.from_dict({**values, "surplus": 1})
    values.pop("gates")
    with pytest.raises(DetectionError, match=r"damaged .*gates"):
        MELayerReport.from_dict(values)


def test_criterion_defaults_and_words():
    sun = Criterion()
    assert (sun.min_magnitude, sun.min_ratio, sun.min_jump) == (100, 1000, 5)
    words = "above 100 and at least 1000 times the median and 5 times the layer before"
    assert sun.describe() == words
    relative = Criterion(name="relative", min_ratio=30)
    assert (relative.min_magnitude, relative.min_ratio, relative.min_jump) == (0, 30, 5)
    assert relative.describe() == "at least 30 times the median and 5 times the layer before"


@pytest.mark.parametrize("value", ["3", True, float("nan"), float("inf"), -3])
def test_criterion_values_that_make_no_sense(value):
    with pytest.raises(DetectionError, match="min_ratio must be a number >= 0, got"):
        Criterion(min_ratio=value)


def of_version_1() -> dict[str, Any]:
    """A report as version 0.1 wrote it: one threshold per dim, layer numbers for emergences."""
    values = json.loads(json.dumps(shared().report.to_dict()))
    values.pop("gates")
    old = {"separation": 400.0, "separation_note": "", "thresholds": {"3": 20.0, "17": 30.0}}
    return {**values, **old, "schema_version": 1, "emergences": [ME_LAYER]}


def test_a_report_of_version_1_is_read_as_what_it_meant():
    report = MELayerReport.from_dict(of_version_1())
    assert set(report.gates) == {2, 3, 4}
    assert all(gate.thresholds == {3: 20.0, 17: 30.0} for gate in report.gates.values())
    assert all(gate.primary == gate.thresholds for gate in report.gates.values())
    assert [e.layer for e in report.emergences] == [ME_LAYER]
    with wemask.soften(shared().model, report, settings()) as handle:
        assert handle.layers == [2, 3, 4] and handle.left_alone == {}
        assert all(handle.tokens_touched.values())
    with pytest.raises(DetectionError, match="num_layers is 1,000,000,000"):
        MELayerReport.from_dict({**of_version_1(), "num_layers": 10**9})
    none = {**of_version_1(), "thresholds": {}, "separation_note": "no gap."}
    with pytest.raises(PatchError, match=r"told by content .*\(no gap\.\).*tokens=first"):
        wemask.soften(shared().model, MELayerReport.from_dict(none), settings())


@pytest.mark.parametrize(
    ("layer", "thresholds", "message"),
    [
        ("5", {"3": 1.0}, "gates of layer 5: there may be gates of 2 to 4"),
        ("2", {"99": 1.0}, "gates of layer 2: dim 99 of a width of 32"),
        ("2", {"3": float("nan")}, "a threshold must be a number > 0, got nan"),
        ("2", {"3": 0.0}, "a threshold must be a number > 0, got 0.0"),
        ("2", {"3": "x"}, r"gates\.2\.thresholds\.3 must be a number, got 'x'"),
        ("1", {}, "gates of layer 1: there may be gates of 2 to 4"),
        ("two", {}, "invalid literal"),
    ],
)
def test_gates_that_cannot_be(layer, thresholds, message):
    values = json.loads(json.dumps(shared().report.to_dict()))
    values["gates"][layer] = {**values["gates"]["2"], "thresholds": thresholds}
    with pytest.raises(DetectionError, match=rf"damaged .*{message}.*Run `wemask detect`"):
        MELayerReport.from_dict(values)
