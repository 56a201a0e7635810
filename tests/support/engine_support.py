"""What the tests of engines share: runs on two CPU ranks, and the same runs in one process."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from run_support import FAST, REPOSITORY, trained

# Small norms and thetas stay whole under ZeRO-3's own threshold, which would hide a mistake.
SHARD_ALL = "deepspeed.zero_optimization.stage3_param_persistence_threshold=0"
BUILD_SECONDS = 600  # more than a build of DeepSpeed's kernels takes
ENGINES = {
    "ddp": (),
    "zero1": ("deepspeed=zero1",),
    "zero2": ("deepspeed=zero2",),
    "zero2_offload": ("deepspeed=zero2_offload",),
    "zero3": ("deepspeed=zero3", SHARD_ALL),
    "zero3_offload": ("deepspeed=zero3_offload", SHARD_ALL),
    "fsdp": ("fsdp=full_shard", "trainer.use_cpu=false"),
    "fsdp_grad_op": ("fsdp=grad_op", "trainer.use_cpu=false"),
}
# Sixteen examples, a global batch of four: four steps, with checkpoints after two and four.
COMMON = ("method=wemask", "trainer.gradient_accumulation_steps=2", "trainer.learning_rate=3e-4")
# Betas whose powers are exact however they are computed: DeepSpeed's CPU Adam multiplies them up in
# each step, and takes a power after a resume. Others flip bits of bfloat16 weights there.
EXACT = ("trainer.adam_beta1=0.5", "trainer.adam_beta2=0.75")
RUNS = {
    "full": (*COMMON, "operator.strength=learnable", "trainer.activation_checkpointing=false"),
    "lora": (*COMMON, "peft=lora", "trainer.activation_checkpointing=true"),
    "bf16": (*COMMON, "trainer.bf16=true", "trainer.activation_checkpointing=true", *EXACT),
}


def is_fsdp(engine: str) -> bool:
    return engine.startswith("fsdp")


def environment(engine: str) -> dict[str, str]:
    # The first run builds DeepSpeed's kernels (shm_comm 85 s, cpu_adam 180 s), and keeps them.
    extensions = Path.home() / ".cache" / "wemask" / "torch_extensions"
    values = {"TORCH_EXTENSIONS_DIR": str(extensions), **os.environ}
    if not os.environ.get("TORCH_EXTENSIONS_DIR"):
        for lock in extensions.glob("*/lock"):
            if time.time() - lock.stat().st_mtime > BUILD_SECONDS:
                lock.unlink()  # of a build that was killed: it would be waited for for ever
    return values | ({"WEMASK_TEST_FSDP_ON_CPU": "1"} if is_fsdp(engine) else {})


def words(engine: str, run: str, folder: Path) -> list[str]:
    batch = "trainer.per_device_train_batch_size=1"
    here = f"paths.run_dir={folder / run}"
    return [*FAST, *RUNS[run], batch, *ENGINES[engine], here]


def on_two_ranks(
    engine: str, runs: Sequence[list[str]], *, timeout: float = 600, hang_at_step: int = 0
) -> subprocess.CompletedProcess[str]:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    return subprocess.run(
        [sys.executable, *torchrun, "tests/support/engine_worker.py", json.dumps(list(runs))],
        env={**environment(engine), "WEMASK_TEST_HANG_AT_STEP": str(hang_at_step)},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )


@cache
def alone(run: str) -> Path:
    """The same global batch in one process."""
    return trained(*RUNS[run], "trainer.per_device_train_batch_size=2")[0]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
