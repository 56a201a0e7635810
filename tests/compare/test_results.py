import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_cases import made_up

from wemask.compare.results import load_results, save_results, validate_results
from wemask.errors import DataError
from wemask.files import write_whole


def test_whole_results_are_valid() -> None:
    assert validate_results(json.loads(json.dumps(made_up()))) == made_up()


def at(path: str) -> Callable[[Any], tuple[Any, Any]]:
    """Follow "arms.sft.arith.mean" to its container and last key."""

    def follow(data: Any) -> tuple[Any, Any]:
        *way, last = (int(key) if key.isdigit() else key for key in path.split("."))
        for key in way:
            data = data[key]
        return data, last

    return follow


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema_version", 1, "schema_version is 1, this wemask reads 2"),
        ("schema_version", None, "schema_version is None"),
        ("created", "yesterday", "results.created must be an ISO 8601 time, got 'yesterday'"),
        ("model.parameters", 1.5, "results.model.parameters must be a whole number"),
        ("model.parameters", True, "results.model.parameters must be a whole number"),
        ("model.name", None, "results.model.name must be a text, got None"),
        ("arms.sft.arith.mean", "0.7", "results.arms.sft.arith.mean must be a number"),
        ("arms.sft.arith.mean", math.nan, "results.arms.sft.arith.mean must be a finite"),
        ("arms.sft.arith.mean", 71.0, "results.arms.sft.arith.mean must be at most 1, got 71.0"),
        ("arms.sft.arith.low", 0.99, "results.arms.sft.arith: the interval's low end is above"),
        ("arms.sft.arithm", None, "results.arms.sft.arithm must be a mapping"),
        ("arms", [], "results.arms must be a mapping {key: value}, got []"),
        ("comparisons.1.p_holm", 1.2, "results.comparisons[1].p_holm must be at most 1, got 1.2"),
        ("comparisons.1.delta", math.inf, "results.comparisons[1].delta must be a finite"),
        ("comparisons.0.a", "nobody", "arm 'nobody' has no score on 'arith'"),
        ("comparisons.0.low", 0.5, "results.comparisons[0]: the interval's low end is above"),
        ("me_layer.separation", math.inf, "results.me_layer.separation must be a finite"),
        ("me_layer.layers", [{"x": {1, 2}}], "layers[0].x must be something JSON can hold"),
        ("softening.config.rate", math.nan, "results.softening.config.rate must be a finite"),
        ("softening.metrics.on", {}, "results.softening.metrics.on must be a list"),
        (
            "softening.metrics.on.1.sink_mass_by_head.0",
            None,
            "by_head[0] must be a number",
        ),
        ("notes", "one", "results.notes must be a list, got 'one'"),
        ("tasks.arith.nots", None, "results.tasks.arith.nots does not exist. Did you mean 'note'?"),
    ],
)
def test_a_broken_value_is_named_with_its_place(path: str, value: Any, message: str) -> None:
    broken = made_up()
    container, key = at(path)(broken)
    container[key] = value
    with pytest.raises(DataError, match=re.escape(message)):
        validate_results(broken)


def test_every_missing_key_is_reported_at_once() -> None:
    broken = made_up()
    del broken["command"], broken["tasks"]["gsm8k"]["metric"]
    with pytest.raises(DataError) as caught:
        validate_results(broken)
    assert "results.command is missing" in str(caught.value)
    assert "results.tasks.gsm8k.metric is missing" in str(caught.value)


@pytest.mark.parametrize("thing", [None, [], "text", 3])
def test_results_that_are_no_object_are_refused(thing: object) -> None:
    with pytest.raises(DataError, match="results must be a mapping"):
        validate_results(thing)


def test_null_is_legal_only_where_the_schema_says_so() -> None:
    fine = made_up()
    fine["softening"] = None
    fine["comparisons"][0].update(odds_ratio=None, effect_size=None, minimum_detectable=None)
    assert validate_results(fine)["softening"] is None


def test_an_interval_of_version_0_1_may_end_a_little_outside() -> None:
    older = made_up()
    older["arms"]["base"]["gsm8k"]["low"] = -0.0041  # docs/results/real/smollm2_lora
    assert validate_results(older)


def test_results_survive_the_disk(tmp_path: Path) -> None:
    results = validate_results(made_up())
    save_results(results, tmp_path / "results.json")
    assert load_results(tmp_path / "results.json") == results
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_file_that_is_not_there_or_no_json_says_what_writes_one(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for text in (None, b"", b"{", b"\x00", b"\x80", b"[" * 100_000):
        if text is not None:
            path.write_bytes(text)
        with pytest.raises(DataError, match=r"results\.json.*`python evaluate.py` writes"):
            load_results(path)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.md"
    write_whole(target, "old")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as half:
            half.write(data[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(target, "new text")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
