"""Each launcher's real command line: two CPU ranks, nothing started twice, a whole `final/`."""

import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import SHARD_ALL, environment
from run_support import FAST, REPOSITORY, trained
from torch import Tensor

import wemask
from wemask.train.engine_check import Engine, read_engine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
BIN = Path(sys.executable).parent
TRAIN = str(REPOSITORY / "train.py")
WORDS = ("method=wemask", "trainer.max_steps=2")
ZERO3 = ("deepspeed=zero3", SHARD_ALL)
ENGINES = {"zero3": Engine(kind="zero", ranks=2, stage=3), "ddp": Engine(kind="ddp", ranks=2)}
TWO = ("--num_processes", "2")
PORT = ("--main_process_port", "0")  # one that is free
# Without a GPU --multi_gpu and --use_deepspeed start their ranks on the CPU.
LAUNCHERS = {
    "python": (("python",), ZERO3),
    "torchrun": (("torchrun", "--standalone", "--nproc_per_node", "2"), ZERO3),
    "accelerate": (("accelerate", "launch", "--multi_gpu", *TWO, *PORT), ZERO3),
    "accelerate_ddp": (("accelerate", "launch", "--multi_gpu", *TWO, *PORT), ()),
    "accelerate_zero3": (
        ("accelerate", "launch", "--use_deepspeed", "--zero_stage", "3", *TWO, *PORT),
        (),  # accelerate's own settings of DeepSpeed
    ),
    "deepspeed": (("deepspeed", "--num_gpus", "2", "--master_port", "FREE"), ZERO3),
}
IDS = torch.arange(5, 45).reshape(2, 20)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run(command: tuple[str, ...], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # The programs by this interpreter: DeepSpeed builds its kernels again for another prefix.
    program = [str(BIN / command[0])] if command[0] != "python" else []
    options = [free_port() if word == "FREE" else word for word in command[1:]]
    mine = ["launcher.processes=2", f"paths.run_dir={folder}"]
    return subprocess.run(
        [sys.executable, *program, *options, TRAIN, *FAST, *WORDS, *mine, *words],
        env=environment("zero3"),
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )


def logits(folder: Path) -> tuple[Any, Tensor]:
    model, _ = wemask.load(folder / "final")
    with torch.no_grad():
        return model, model(input_ids=IDS).logits


@cache
def alone() -> Tensor:
    """Of the same global batch, trained in one process."""
    return logits(trained(*WORDS, "trainer.per_device_train_batch_size=4")[0])[1]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_ranks_train_one_softened_model(launcher: str, tmp_path: Path) -> None:
    command, words = LAUNCHERS[launcher]
    if "ddp" not in launcher:
        pytest.importorskip("deepspeed")
    done = run(command, tmp_path / "run", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("wemask: tiny") == done.stdout.count("Saved: ") == 1, done.stdout
    found = read_engine(tmp_path / "run" / "checkpoints" / "checkpoint-2")
    assert found == ENGINES["ddp" if "ddp" in launcher else "zero3"]
    model, ours = logits(tmp_path / "run")
    assert model.wemask_handle.layers
    assert (ours - alone()).abs().max() < 1e-5 * alone().abs().max()


MULTI_CPU = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
use_cpu: true
num_machines: 1
num_processes: 2
"""


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="accelerate would start two ranks")
@pytest.mark.parametrize("how", [("--cpu", *TWO), TWO, ("--config_file", "multi_cpu.yaml")])
def test_accelerate_that_starts_one_of_two_is_refused(how: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "multi_cpu.yaml").write_text(MULTI_CPU)
    done = run(("accelerate", "launch", *how), tmp_path / "run")
    assert done.returncode != 0
    assert done.stderr.count("Error: accelerate launch was asked for several processes") == 1
    assert "Type: python train.py launcher.processes=2, or use torchrun" in done.stderr
    assert not (tmp_path / "run").exists()
