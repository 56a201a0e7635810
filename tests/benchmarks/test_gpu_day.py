"""`make gpu-day`: parts end when their time is up and leave what they have; what is carried."""

import importlib
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
NAP = "import time; time.sleep(100)"


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, Any]]:
    """The scripts as `python benchmarks/...` sees them."""
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    yield {name: importlib.import_module(name) for name in ("gpu_jobs", "gpu_day", "gpu_pack")}
    sys.path.remove(str(REPOSITORY / "benchmarks"))


@pytest.fixture
def impatient(scripts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(scripts["gpu_jobs"], "GRACE", 2.0)
    return scripts


def job(scripts: dict[str, Any], name: str, code: str) -> Any:
    return scripts["gpu_jobs"].Job(name=name, command=[sys.executable, "-c", code])


def run(scripts: dict[str, Any], jobs: list[Any], folder: Path, *, seconds: float, lanes: int):
    until = time.monotonic() + seconds
    return scripts["gpu_jobs"].run(
        jobs, until=until, lanes=lanes, logs=folder, environment=dict(os.environ)
    )


def test_every_job_says_how_it_ended(impatient: dict[str, Any], tmp_path: Path) -> None:
    jobs = [
        job(impatient, "ends", "print(1)"),
        job(impatient, "fails", "raise SystemExit('no weights')"),
        job(impatient, "naps", NAP),
        job(impatient, "waits", NAP),
    ]
    ended = run(impatient, jobs, tmp_path, seconds=5, lanes=1)
    statuses = {name: outcome["status"] for name, outcome in ended.items()}
    assert statuses == {
        "ends": "finished",
        "fails": "failed",
        "naps": "stopped",
        "waits": "not begun",
    }
    assert ended["fails"]["says"] == "no weights"


def test_a_stopped_job_may_save_and_a_deaf_one_is_killed(
    impatient: dict[str, Any], tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    told = f"lambda *_: (open({str(saved)!r}, 'w').close(), sys.exit(1))"
    start = "import signal, sys, time; signal.signal(signal.SIGTERM, {}); time.sleep(100)"
    jobs = [
        job(impatient, "saves", start.format(told)),
        job(impatient, "deaf", start.format("signal.SIG_IGN")),
    ]
    began = time.monotonic()
    ended = run(impatient, jobs, tmp_path, seconds=5, lanes=2)
    assert time.monotonic() - began < 7
    assert [ended[name]["status"] for name in ("saves", "deaf")] == ["stopped", "stopped"]
    assert saved.exists()


def test_a_part_that_overruns_leaves_what_it_has(
    impatient: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_day = impatient["gpu_day"]
    day = gpu_day.Day(device="cpu", toy=True, out=tmp_path)
    result = {"cases": {"detection": {"S": {}}}}
    writes = f"open({str(tmp_path / 'eager.json')!r}, 'w').write({json.dumps(result)!r})"
    real = gpu_day.PARTS["overhead"]
    part = gpu_day.Part(
        share=1,
        jobs=lambda day: [job(impatient, "eager", f"{writes}; {NAP}")],
        figures=real.figures,
    )
    monkeypatch.setitem(gpu_day.PARTS, "overhead", part)
    left = gpu_day.run_part("overhead", day, dict(os.environ), time.monotonic() + 4)
    assert left["partial"] and left["jobs"]["eager"]["status"] == "stopped"
    assert left["figures"] == {"eager": result}
    # The next call asks for the rest, and of a part that is whole for nothing.
    (eager, _) = real.jobs(day)
    assert "detection" not in eager.command and "prefill" in eager.command
    whole = {"cases": {case: {} for case in gpu_day.CASES["eager"]}}
    for name in ("eager", "compiled"):
        (tmp_path / f"{name}.json").write_text(json.dumps(whole))
    assert real.jobs(day) == []


def test_time_that_a_part_leaves_goes_to_the_next(scripts: dict[str, Any]) -> None:
    deadlines = scripts["gpu_day"].deadlines
    parts = list(scripts["gpu_day"].PARTS)
    ends = deadlines(parts, 540)
    assert list(ends) == parts and sorted(ends.values()) == list(ends.values())
    assert ends["evaluate"] == 540 and deadlines(["sft"], 60) == {"sft": 60}


def test_what_is_carried_has_a_pin(scripts: dict[str, Any]) -> None:
    gpu_pack = scripts["gpu_pack"]
    pins = {
        line.split("==")[0] for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
    }
    assert {*gpu_pack.WHEELS, *gpu_pack.BUILT} <= pins


@pytest.mark.parametrize("arrived", [["1of3", "3of3"], ["2of3"]])
def test_a_part_that_did_not_arrive_is_named(
    scripts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrived: list[str]
) -> None:
    monkeypatch.setattr(scripts["gpu_pack"], "PACK", tmp_path)
    for name in arrived:
        (tmp_path / name).mkdir()
    missing = sorted({"1of3", "2of3", "3of3"} - set(arrived))
    with pytest.raises(SystemExit, match=f"lacks {', '.join(missing)}: carry"):
        scripts["gpu_pack"].unpack()


def test_what_is_unpacked_can_be_imported(
    scripts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_pack, pack, made = scripts["gpu_pack"], tmp_path / "gpu-day", tmp_path / "made"
    monkeypatch.setattr(gpu_pack, "PACK", pack)
    monkeypatch.setattr(gpu_pack, "SITE", pack / "site-packages")
    monkeypatch.setattr(gpu_pack, "convert", lambda gguf: gguf.with_suffix("").mkdir())
    (made / "wheels").mkdir(parents=True)
    about = "Metadata-Version: 2.1\nName: carried\nVersion: 1\n"
    with zipfile.ZipFile(made / "wheels" / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "VALUE = 3")
        wheel.writestr("carried-1.dist-info/METADATA", about)
        wheel.writestr("carried-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("carried-1.dist-info/RECORD", "")
    (pack / "1of1").mkdir(parents=True)
    with tarfile.open(pack / "1of1" / "part", "w:xz") as tar:
        tar.add(made, arcname=".")
    gpu_pack.unpack()
    gpu_pack.unpack()  # what is unpacked already stays
    code = "import carried; from wemask import errors; print(carried.VALUE)"
    environment = {**os.environ, "PYTHONPATH": str(pack / "site-packages")}
    command = [sys.executable, "-P", "-c", code]
    assert subprocess.check_output(command, env=environment, text=True) == "3\n"


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["llama-toy", "llama-30m", "llama3-1b", "llama3-8b"])
def test_the_planted_layer_is_found_at_every_width(
    scripts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    import torch

    shapes = importlib.import_module("shapes")
    narrow = shapes.SHAPES[shape] | {"vocab_size": 512}  # the width is what matters
    monkeypatch.setitem(shapes.SHAPES, shape, narrow)
    shapes.detect(shapes.build(shape, "cpu", torch.bfloat16, layers=3))  # it asserts


def test_a_partial_result_has_its_tables(scripts: dict[str, Any]) -> None:
    tables = importlib.import_module("tables")
    part = {
        "machine": "one GPU",
        "versions": {"torch": "2.11", "transformers": "5.23"},
        "date": "2026-11-27",
        "seconds": 100,
        "jobs": {"sft-s0": {"status": "finished"}, "wemask-s0": {"status": "stopped"}},
        "figures": {"sft-s0": {"step": 3, "max_steps": 4, "loss": 1.5, "seconds_per_step": 0.25}},
    }
    assert tables.gpu_day({}) == ""
    page = tables.gpu_day({"sft": part, "evaluate": {"figures": {}}})
    assert "Partial, not finished: wemask-s0." in page
    assert "| sft-s0 | 3 of 4 | 1.5000 | 0.250 s |" in page


@pytest.mark.slow
def test_a_toy_day_of_the_overhead(tmp_path: Path) -> None:
    (tmp_path / "wemask").symlink_to(REPOSITORY / "wemask")
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    words = ["--toy", "--parts", "overhead", "--minutes", "2", "--runs", tmp_path / "runs"]
    ran = subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks" / "gpu_day.py", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert ran.returncode == 0, ran.stderr
    part = json.loads((tmp_path / "runs" / "gpu_day.json").read_text())["parts"]["overhead"]
    assert not part["partial"], part["jobs"]
    figures = part["figures"]
    assert len(figures["eager"]["cases"]) == 6 and list(figures["compiled"]["cases"]) == ["prefill"]
    assert figures["eager"]["cases"]["detection"]["A/A"]["ratio"] > 0
