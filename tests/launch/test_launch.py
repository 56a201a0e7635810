"""Where a command runs: here, in ranks of its own, or as a job."""

import sys
from typing import Any

import pytest
from rank_support import no_ranks

from wemask import distributed
from wemask.errors import ConfigError
from wemask.launch import launch, slurm
from wemask.settings.composition import compose

bare = pytest.fixture(no_ranks)


def test_ranks_of_torchrun_and_deepspeed_start_nothing(bare: pytest.MonkeyPatch) -> None:
    given = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in given.items():
        bare.setenv(name, value)
    bare.setattr(sys, "argv", ["train.py", "--local_rank=1", "seed=1"])  # deepspeed adds it
    distributed.adopt_environment()
    assert sys.argv[1:] == ["seed=1"]
    assert distributed.is_rank()
    for words in (["launcher.processes=2"], ["launcher=slurm"]):
        assert launch.elsewhere(compose("train", words), "train.py") is None


def test_a_process_alone_is_no_rank(bare: pytest.MonkeyPatch) -> None:
    distributed.adopt_environment()
    assert not distributed.is_rank()
    assert launch.elsewhere(compose("train", []), "train.py") is None
    assert distributed.is_main()
    assert not distributed.started()


def test_evaluate_says_that_it_is_one_process(bare: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.py runs in one process"):
        launch.elsewhere(compose("evaluate", ["launcher.processes=2"]), "evaluate.py")


def test_what_is_planned_is_submitted_together_and_what_is_done_here_is_returned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three jobs of a sweep, of which Slurm is to have the first and the last."""
    words, submitted = ["-m", "seed=0,1,2"], list[Any]()

    def jobs(name: str, run: Any) -> list[str]:
        for seed in range(3):
            run({"name": name, "seed": seed}, words)
        return words

    def elsewhere(cfg: Any, script: str) -> list[str] | None:
        return None if cfg["seed"] == 1 else [f"{script} seed={cfg['seed']}"]

    monkeypatch.setattr(launch.composition, "command", jobs)
    monkeypatch.setattr(launch, "elsewhere", elsewhere)
    monkeypatch.setattr(slurm, "submit_planned", lambda *given: submitted.append(given))
    done = launch.command("train", lambda cfg, typed: (cfg["name"], cfg["seed"], typed))
    assert done == [("train", 1, words)]
    assert submitted == [(["train.py seed=0", "train.py seed=2"], words)]


def test_ranks_that_were_started_leave_nothing_to_submit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.composition, "command", lambda name, run: run(None, []) or [])
    monkeypatch.setattr(launch, "elsewhere", lambda cfg, script: [])
    monkeypatch.setattr(slurm, "submit_planned", None)
    assert launch.command("train", lambda cfg, typed: cfg) == []
