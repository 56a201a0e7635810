import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_support import REPOSITORY
from transformers.integrations import WandbCallback

from wemask.errors import ConfigError
from wemask.wandb_service import close_run, open_run, outlive_wandb


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


# --- a server that cannot be reached --------------------------------------------------------------


@pytest.mark.usefixtures("no_wandb_server")
def test_without_its_server_a_run_goes_on_offline(tmp_path: Path) -> None:
    said = list[str]()
    run = open_run(said.append, dir=tmp_path, mode="online", id="same1234", resume="allow")
    run.log({"loss": 1.0})
    close_run(run, said.append)
    (line,) = said
    assert run.offline
    assert "W&B cannot be reached (" in line
    assert "Nothing is lost" in line
    folder = Path(line.partition("wandb sync ")[2])
    assert folder.name.startswith("offline-run-")
    assert (folder / "run-same1234.wandb").stat().st_size > 0


def test_a_missing_key_is_an_error_with_what_to_type(
    tmp_path: Path, no_wandb_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("HOME", str(tmp_path))  # its .netrc may have a key
    monkeypatch.delenv("NETRC", raising=False)
    with pytest.raises(ConfigError, match=r"W&B refuses this run: .*Type wandb login, or logger"):
        open_run(print, dir=tmp_path, mode="online")


def test_what_is_not_taken_at_the_end_is_left_and_said(tmp_path: Path) -> None:
    def finish() -> None:
        raise TimeoutError("timed out")

    said = list[str]()
    folder = tmp_path / "wandb" / "run-1"
    close_run(SimpleNamespace(dir=str(folder / "files"), finish=finish), said.append)  # pyright: ignore
    assert said[0].endswith(f"wandb sync {folder}")


# --- the end of W&B's service ---------------------------------------------------------------------

TRAIN = """
import os, signal, subprocess, sys, time
from transformers import TrainerCallback
from wemask import trainer, training
from wemask.composition import compose
from wemask.config import run_config

class KillService(trainer.SofteningCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            told = subprocess.run(
                ["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True, text=True
            )
            for pid in told.stdout.split():
                os.kill(int(pid), signal.SIGTERM)
            print("killed", len(told.stdout.split()))
            time.sleep(1)

trainer.SofteningCallback = KillService
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
