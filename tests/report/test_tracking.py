"""Offline W&B runs are read back from their files, as `wandb sync` would."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_cases import made_up

from wemask.compare.results import validate_results
from wemask.errors import ConfigError
from wemask.report.tracking import log_study

BLOCK = 32768  # LevelDB's log framing, which .wandb files have behind a header of 7 bytes
LOGGER = {"name": "wandb", "project": "wemask-test", "mode": "offline"}


def records(path: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    content, offset, parts = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while offset + 7 <= len(content):
        left = BLOCK - offset % BLOCK
        if left < 7:
            offset += left
            continue
        _, length, kind = struct.unpack("<IHB", content[offset : offset + 7])
        parts += content[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def read(path: Path) -> dict[str, Any]:
    """Name, group, job type, config, history and summary of one run.

    W&B's own process may still be writing the file when `finish` has returned.
    """
    for _ in range(100):
        if any(record.WhichOneof("record_type") == "exit" for record in records(path)):
            break
        time.sleep(0.1)
    run: dict[str, Any] = {"history": [], "summary": {}}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run |= {key: getattr(record.run, key) for key in ("display_name", "run_group")}
            run |= {"job_type": record.run.job_type, "id": record.run.run_id}
            run["config"] = {u.key: json.loads(u.value_json) for u in record.run.config.update}
        elif kind in ("history", "summary"):
            items = record.history.item if kind == "history" else record.summary.update
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            run["history"].append(row) if kind == "history" else run["summary"].update(row)
    return run


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("study")
    (folder / "figures").mkdir()
    # A picture that W&B can open: one pixel.
    from PIL import Image

    Image.new("RGB", (1, 1)).save(folder / "figures" / "forest.png")
    (folder / "report.html").write_text("<p>page</p>")
    results = made_up()
    results["arms"]["sft"]["arith"]["runs"] *= 2  # two seeds
    log_study(validate_results(results), folder, LOGGER)
    runs = [read(path) for path in folder.glob("wandb/offline-run-*/run-*.wandb")]
    return {run["display_name"]: {**run, "folder": folder} for run in runs}


@pytest.fixture
def no_wandb_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B's server on a port where nobody listens; other tests get W&B's service as it was."""
    import wandb

    from wemask.train import wandb_service

    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(wandb_service, "FIRST_ANSWER_SECONDS", 2.0)
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.mark.usefixtures("no_wandb_server")
def test_a_study_seeks_a_server_that_is_not_there_once(tmp_path: Path) -> None:
    said = list[str]()
    log_study(validate_results(made_up()), tmp_path, {**LOGGER, "mode": "online"}, said.append)
    assert [line.partition(" ")[0] for line in said] == ["W&B", "So"]
    assert "W&B cannot be reached" in said[0]
    assert said[1].endswith(f"wandb sync {tmp_path}/wandb/offline-run-*")
    runs = [read(path) for path in tmp_path.glob("wandb/offline-run-*/run-*.wandb")]
    assert len(runs) == 1 + len(made_up()["arms"])


@pytest.mark.parametrize(
    ("variable", "changed", "words"),
    [
        ("odd", {}, "mode Input should be 'online', 'offline'"),
        ("offline", {"project": 5}, "project Input should be a valid string"),
        ("offline", {"project": "a/b"}, "Invalid project name 'a/b'"),
        ("offline", {"mode": "odd"}, "mode Input should be"),
    ],
)
def test_what_wandb_refuses_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, changed: Any, words: str
) -> None:
    import wandb

    wandb.teardown()  # it reads its environment once
    monkeypatch.setenv("WANDB_MODE", variable)
    try:
        with pytest.raises(ConfigError, match=f"W&B refuses this run: .*{words}"):
            log_study(validate_results(made_up()), tmp_path, LOGGER | changed)
    finally:
        wandb.teardown()


def test_each_arm_is_a_run_and_all_are_one_group(logged: Any) -> None:
    assert set(logged) == {"base", "training_free", "sft", "wemask_sft", "comparison"}
    for name, run in logged.items():
        assert run["run_group"] == run["folder"].name
        assert run["job_type"] == ("compare" if name == "comparison" else "evaluate")
    assert len({run["id"] for run in logged.values()}) == len(logged)


def test_the_keys_of_the_design_are_there_with_the_numbers(logged: Any) -> None:
    results = made_up()
    for arm, scores in results["arms"].items():
        summary = logged[arm]["summary"]
        for task, score in scores.items():
            for name, value in score["metrics"].items():
                assert summary[f"bench/{task}/{name}"] == pytest.approx(value)
            assert summary[f"bench/{task}/low"] == pytest.approx(score["low"])
    row = results["comparisons"][1]
    summary = logged["wemask_sft"]["summary"]
    for key, name in (("delta", "delta"), ("lo", "low"), ("hi", "high"), ("p", "p_value")):
        assert summary[f"compare/arith/{key}"] == pytest.approx(row[name])
    assert not any(key.startswith("compare/") for key in logged["base"]["summary"])


def test_each_seed_is_a_step(logged: Any) -> None:
    steps = [row for row in logged["sft"]["history"] if "bench/arith/accuracy" in row]
    assert len(steps) == 2
    assert {row["seed"] for row in steps} == {0}


def test_tables_figures_page_and_verdict_are_logged(logged: Any) -> None:
    (row,) = logged["comparison"]["history"]
    kinds = {key.removesuffix("/_type"): v for key, v in row.items() if key.endswith("/_type")}
    assert kinds["arms"] == kinds["comparisons"] == "table-file"
    assert kinds["report"] == kinds["verdict"] == "html-file"
    assert kinds["figures/forest"] == "image-file"


def test_the_same_study_has_the_same_runs_and_no_logger_writes_nothing(
    logged: Any, tmp_path: Path
) -> None:
    from wemask.report.tracking import run_id

    folder = logged["base"]["folder"]
    assert logged["base"]["id"] == run_id(folder, "base") != run_id(folder, "sft")
    log_study(validate_results(made_up()), tmp_path, {"name": "none"})
    assert list(tmp_path.iterdir()) == []


# --- an analysis ----------------------------------------------------------------------------------


def test_an_analysis_is_one_run_with_tables_figures_page_and_means(tmp_path: Path) -> None:
    import pandas as pd
    from PIL import Image

    from wemask.report.tracking import log_analysis

    (tmp_path / "figures").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "figures" / "necessity.png")
    (tmp_path / "analysis.html").write_text("<p>page</p>")
    layers = pd.DataFrame(
        {
            "state": ["off"] * 3,
            "layer": [0, 1, 2],
            "sink_mass": [9.0, 0.2, 0.4],
            "sink_mass_by_head": [[9.0], [0.2], [0.4]],
            "value_norm_ratio": [None, None, None],
        }
    )
    facts: Any = {
        "command": "wemask analyse --model m",
        "model": {"name": "m"},
        "settings": {"count": 3},
        "texts": {"count": 3},
        "versions": {"wemask": "0"},
        "findings": [{"experiment": "necessity", "change": -0.5, "low": None, "reading": "<&>"}],
        "me_layer": {"layer": 0},
    }
    log_analysis(facts, {"layers": layers}, tmp_path, {"name": "none"})
    assert not (tmp_path / "wandb").exists()
    log_analysis(facts, {"layers": layers}, tmp_path, LOGGER)
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    run = read(path)
    assert (run["display_name"], run["job_type"]) == ("m", "analyse")
    assert run["summary"]["analysis/off/sink_mass"] == pytest.approx(0.3)
    keys = {key.split("/path")[0] for row in run["history"] for key in row}
    assert {"tables/layers", "figures/necessity", "findings", "analysis"} <= keys
    assert run["config"]["settings"] == {"count": 3}
