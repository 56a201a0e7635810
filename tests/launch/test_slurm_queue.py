"""What squeue's answers mean, and what is known of a run. No Slurm needed."""

import json
from pathlib import Path

import pytest
from slurm_support import programs

from wemask.cli import main
from wemask.errors import ConfigError
from wemask.launch.slurm_queue import ask_queue, duration, parse, status

# Recorded on Slurm 22.05: squeue -h -r --states=all --format=%i|%T|%M|%L|%N|%S|%r
SQUEUE = """\
3_0|COMPLETED|0:03|59:57|n1|2026-11-24T18:39:35|None
4|FAILED|0:00|1:00:00|n2|2026-11-24T18:39:35|NonZeroExitCode
2|PENDING|0:00|1:00:00||N/A|Dependency
3_1|PENDING|0:00|1:00:00||N/A|JobArrayTaskLimit
6|PENDING|0:00|1:00:00||2026-11-24T19:39:35|Resources
1|RUNNING|0:03|9:57|n[1-2]|2026-11-24T18:39:35|None
"""


def test_lines_of_squeue_are_read() -> None:
    words = {row.job: row.words() for row in parse(SQUEUE)}
    assert words == {
        "3_0": "COMPLETED",
        "4": "FAILED (NonZeroExitCode)",
        "2": "PENDING (Dependency)",
        "3_1": "PENDING (JobArrayTaskLimit)",
        "6": "PENDING (Resources), expected to start 2026-11-24T19:39:35",
        "1": "RUNNING on n[1-2], 0:03 used, 9:57 left",
    }
    assert [row.job for row in parse(SQUEUE) if row.active] == ["2", "3_1", "6", "1"]
    assert parse("") == []


def test_a_queue_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"  # recorded
    programs(tmp_path, monkeypatch, squeue=f"echo '{said}' >&2; exit 1")
    with pytest.raises(ConfigError, match="Unable to contact"):
        ask_queue("12")


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05")]
)
def test_durations(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def run_folder(folder: Path) -> Path:
    (folder / "config.resolved.yaml").write_text("{}")
    (folder / "slurm").mkdir()
    about = {"job": "1", "evaluate": "2", "script": "x"}
    (folder / "slurm" / "job.json").write_text(json.dumps(about))
    progress = {"step": 40, "max_steps": 100, "loss": 1.23456, "seconds_per_step": 2.0}
    (folder / "progress.json").write_text(json.dumps(progress))
    return folder


def test_status_tells_queue_step_loss_and_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = 'case "$*" in *jobs=1*) grep ^1 <<<"$A" ;; *) grep ^2 <<<"$A" ;; esac'
    programs(tmp_path, monkeypatch, squeue=answers)
    monkeypatch.setenv("A", SQUEUE)
    folder = tmp_path / "run"
    folder.mkdir()
    (run_folder(folder) / "checkpoints" / "checkpoint-30").mkdir(parents=True)
    assert status(folder) == [
        ("run", str(folder)),
        ("job", "1: RUNNING on n[1-2], 0:03 used, 9:57 left"),
        ("evaluation", "2: PENDING (Dependency)"),
        ("step", "40 of 100"),
        ("loss", "1.2346"),
        ("time left", "0:02:00 at 2.00 s per step"),
        ("checkpoint", "none yet"),
        ("half-written", "checkpoint-30"),
    ]


def test_status_without_slurm_and_of_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    folder = tmp_path / "run"
    folder.mkdir()
    assert dict(status(run_folder(folder)))["job"] == "1: not in the queue (any more)"
    with pytest.raises(SystemExit) as end:
        main(["status", str(tmp_path)])
    assert end.value.code == 2
    assert "is no run folder" in capsys.readouterr().err
