"""What the tests of runs share: the real configs, shrunk, and trained runs, made only once."""

import io
import itertools
import os
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from wemask.errors import ConfigError
from wemask.settings.composition import compose
from wemask.settings.config import RunConfig, run_config
from wemask.train import training
from wemask.train.callbacks import SofteningCallback
from wemask.train.saved_state import last_checkpoint
from wemask.train.training import train

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf"
FAST = ("debug=fast", "logger=none")
_runs = tempfile.TemporaryDirectory(prefix="wemask-runs-")
_number = itertools.count()


def settings(*overrides: str, app: str = "train") -> RunConfig:
    """The real configs, with overrides as on the command line."""
    return run_config(compose(app, overrides))


def options(group: str) -> list[str]:
    """Names of a group of conf/."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def refused(*overrides: str, app: str = "train") -> str:
    """What is said to settings that are refused."""
    with pytest.raises(ConfigError) as error:
        settings(*overrides, app=app)
    return str(error.value)


def quick(folder: Path | str, *overrides: str) -> RunConfig:
    """A run of four steps, below `folder`."""
    return settings(*FAST, f"paths.output_dir={folder}", *overrides)


def quiet() -> Console:
    """A console whose text a test can read: `console.file.getvalue()`."""
    return Console(file=io.StringIO(), width=300)


def said(console: Console) -> str:
    file: Any = console.file
    return file.getvalue()


def fit(config: RunConfig) -> tuple[Path, str]:
    """Train; return the run folder and what was printed."""
    console = quiet()
    folder = train(config, console)
    assert folder is not None
    return folder, said(console)


@cache
def trained(*overrides: str) -> tuple[Path, str]:
    """A finished run of these overrides, made once: read, do not change."""
    return fit(quick(Path(_runs.name) / str(next(_number)), *overrides))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


class PowerCut(Exception):
    """Nothing that our code knows."""


class StopAfter(SofteningCallback):
    """A crash after the step, in place of a power cut."""

    steps = 3

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.steps:
            raise PowerCut


def crash(config: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as context:
        context.setattr(training, "SofteningCallback", StopAfter)
        with pytest.raises(PowerCut):
            fit(config)
    newest, _ = last_checkpoint(config.folder())
    assert newest is not None
    assert newest.name == "checkpoint-2"
    return config.folder()


def log_of(run: Path, step: int) -> dict[str, float]:
    """The log line of one step, from the newest checkpoint."""
    import json

    newest = max((run / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
    history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    (line,) = [line for line in history if line["step"] == step and "loss" in line]
    return line


def start(script: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start train.py or evaluate.py as a user does."""
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def call(script: str, *arguments: str, **options: Any) -> tuple[int, str, str]:
    """Run a script to its end: exit code, stdout, stderr."""
    process = start(script, *arguments, **options)
    out, err = process.communicate(timeout=110)
    return process.returncode, out, err


def interrupt(process: subprocess.Popen[str]) -> None:
    """What Ctrl-C in a terminal does: SIGINT to the whole process group."""
    os.killpg(process.pid, signal.SIGINT)
