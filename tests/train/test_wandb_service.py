import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_support import REPOSITORY, settings
from transformers.integrations import WandbCallback

from wemask.errors import ConfigError
from wemask.train import wandb_service
from wemask.train.wandb_service import close_run, outlive_wandb


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


# --- the run of a training ------------------------------------------------------------------------


def test_a_run_is_open_while_it_trains_and_keeps_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, closed = list[Any](), list[Any]()
    monkeypatch.setattr(wandb_service, "open_run", lambda say, **given: opened.append(given))
    monkeypatch.setattr(wandb_service, "close_run", lambda run, say: closed.append(run))
    config, trainer = settings("logger=wandb", "experiment_name=e"), trainer_with(None)
    trainer.args.run_name = "n"
    with wandb_service.logged(config, trainer, tmp_path, print):
        assert (len(opened), len(closed)) == (1, 0)
    again = wandb_service.logged(config, trainer, tmp_path, print)
    with pytest.raises(ZeroDivisionError), again:
        raise ZeroDivisionError
    assert len(closed) == 2
    assert opened[0] == opened[1]
    assert opened[0]["id"] == (tmp_path / "wandb_run_id").read_text()
    assert (opened[0]["group"], opened[0]["name"], opened[0]["dir"]) == ("e", "n", tmp_path)


def test_without_wandb_nothing_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_service, "open_run", None)
    trainer = trainer_with(None)
    trainer.args.report_to = []
    with wandb_service.logged(settings("logger=none"), trainer, tmp_path, print):
        assert list(tmp_path.iterdir()) == []


# --- a server that cannot be reached --------------------------------------------------------------

# A server that answers each request with a status, or a port at which nobody listens.
OPEN = """
import http.server, os, sys, threading
from pathlib import Path
from wemask.train import wandb_service
from wemask.errors import ConfigError

class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(int(sys.argv[1]))
        self.end_headers()
    do_GET = do_POST

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
os.environ["WANDB_BASE_URL"] = f"http://127.0.0.1:{server.server_port}"
if sys.argv[1] == "closed":
    server.server_close()
else:
    threading.Thread(target=server.serve_forever, daemon=True).start()
wandb_service.FIRST_ANSWER_SECONDS = 4
try:
    run = wandb_service.open_run(
        print, dir=Path(sys.argv[2]), mode="online", project="p", id="abc12345", resume="allow"
    )
except ConfigError as error:
    print("refused:", error)
else:
    run.log({"loss": 1.0})
    wandb_service.close_run(run, print)
"""


def opened(answer: str, folder: Path, key: str) -> str:
    # Not the W&B service that another test has started here: it would know the id of each run.
    ours = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    done = subprocess.run(
        [sys.executable, "-c", OPEN, answer, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        env={**ours, "WANDB_API_KEY": key, "NETRC": str(folder / "netrc")},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_mode_that_w_and_b_does_not_have_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"W&B refuses this run: .*'online', 'offline'"):
        wandb_service.open_run(print, dir=tmp_path, mode="odd")


@pytest.mark.parametrize("answer", ["closed", "500"])
def test_a_server_that_cannot_be_reached_costs_no_run(answer: str, tmp_path: Path) -> None:
    said = opened(answer, tmp_path, "a" * 40)
    (offline,) = (tmp_path / "wandb").glob("offline-run-*-abc12345")
    assert said.count("W&B cannot be reached") == 1
    assert f"wandb sync {offline}\n" in said
    assert (offline / "run-abc12345.wandb").stat().st_size > 0


@pytest.mark.parametrize(("answer", "key"), [("401", "a" * 40), ("closed", ""), ("closed", "abc")])
def test_no_key_or_a_wrong_one_is_an_error_at_once(answer: str, key: str, tmp_path: Path) -> None:
    said = opened(answer, tmp_path, key)
    assert said.startswith("refused: W&B refuses this run")
    assert ".." not in said
    assert "wandb login" in said
    assert not list((tmp_path / "wandb").glob("offline-run-*"))


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
from wemask.train import training
from wemask.settings.composition import compose
from wemask.settings.config import run_config

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
    assert done.stderr.count("service has ended") in (1, 2)  # in a log line, and at the end
    (final,) = tmp_path.glob("default/*/final")
    assert (final / "wemask_config.json").exists()
