import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_support import REPOSITORY
from transformers.integrations import WandbCallback

from wemask.wandb_service import outlive_wandb


class Gone(WandbCallback):
    """W&B's callback after its service process has ended."""

    def __init__(self, error: Exception) -> None:
        self.error, self.calls = error, 0

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        self.calls += 1
        if self.calls == 2:
            raise self.error


def trainer_with(callback: Any) -> Any:
    return SimpleNamespace(
        args=SimpleNamespace(report_to=["wandb"]),
        is_world_process_zero=lambda: True,
        callback_handler=SimpleNamespace(callbacks=[callback]),
    )


def test_a_service_that_has_ended_is_said_once_and_left_alone() -> None:
    callback, said = Gone(ConnectionResetError("Connection lost")), list[str]()
    outlive_wandb(trainer_with(callback), said.append)
    for _ in range(4):
        callback.on_log()
    assert callback.calls == 2
    (line,) = said
    assert "Connection lost" in line
    assert "trainer_state.json" in line


def test_other_errors_are_not_swallowed() -> None:
    callback = Gone(KeyError("ours"))
    outlive_wandb(trainer_with(callback), print)
    callback.on_log()
    with pytest.raises(KeyError):
        callback.on_log()


TRAIN = """
import os, signal, subprocess, sys, time
from transformers import TrainerCallback
from wemask import training
from wemask.composition import compose
from wemask.config import run_config

class KillService(training.SofteningCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            told = subprocess.run(
                ["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True, text=True
            )
            for pid in told.stdout.split():
                os.kill(int(pid), signal.SIGTERM)
            print("killed", len(told.stdout.split()))
            time.sleep(1)

training.SofteningCallback = KillService
words = ["debug=fast", "logger.mode=offline", f"paths.output_dir={sys.argv[1]}"]
training.train(run_config(compose("train", words)))
"""


@pytest.mark.slow
def test_a_training_goes_on_when_the_service_is_killed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    assert "killed 1" in done.stdout
    assert done.stdout.count("service has ended") in (1, 2)  # in a log line, and at the end
    (final,) = tmp_path.glob("default/*/final")
    assert (final / "wemask_config.json").exists()
