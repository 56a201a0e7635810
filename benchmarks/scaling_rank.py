"""One rank of `scaling.py`: one training, written with wemask and written by hand with TRL.

    torchrun --nproc-per-node 2 benchmarks/scaling_rank.py SPEC.json

The file holds {"runs": [{"how": "trl" | "wemask", "words": [...]}, ...], "data": FILE, "output":
FILE}. `words` are those of train.py; by hand the same fields of SFTConfig are used. The runs follow
one another in this process, each timed and measured by the same callback. Rank 0 writes the output.
"""

import gc
import json
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from transformers import TrainerCallback, trainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from wemask.chat import LossChoice
from wemask.composition import compose
from wemask.config import RunConfig, run_config
from wemask.summary import peft_config
from wemask.trainer import arguments_of
from wemask.training import train

WARM_UP = 2  # steps that are not counted: they allocate, and DeepSpeed learns the order of modules


class Meter(TrainerCallback):
    """Seconds from the begin of each step to that of the next, callbacks and logs included."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.peak = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall.append(time.perf_counter())
        self.cpu.append(own_seconds())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step_begin(args, state, control)
        self.peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory_now()


def own_seconds() -> float:
    """CPU time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory_now(name: str = "VmHWM") -> int:
    """Bytes in memory (VmRSS), or the most there were (VmHWM)."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def by_hand(config: RunConfig, data: Path) -> None:
    """What somebody without wemask writes for the same run."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype="auto")
    loss = LossChoice(completion_only=True, assistant_only=False, reason="prompt and completion")
    folder = Path(str(config.run_dir))
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments_of(config, model, loss, folder)),
        train_dataset=Dataset.from_list([json.loads(line) for line in data.open()]),
        processing_class=AutoTokenizer.from_pretrained(config.model.path),
        peft_config=peft_config(config),
    )
    trainer.train()
    trainer.save_model(str(folder / "final"))


def measure(run: dict[str, Any], data: Path, before: int) -> dict[str, Any]:
    """Train once; times of the steps after the warm-up, and memory above that of the imports."""
    meter = Meter()
    trainer.DEFAULT_CALLBACKS[1:] = [meter]  # pyright: ignore
    config = run_config(compose("train", run["words"]))
    start = time.perf_counter()
    by_hand(config, data) if run["how"] == "trl" else train(config)
    whole = time.perf_counter() - start
    wall, cpu = (
        [b - a for a, b in zip(times[WARM_UP:], times[WARM_UP + 1 :], strict=False)]
        for times in (meter.wall, meter.cpu)
    )
    return {
        "step": sum(wall) / len(wall),
        "step_cpu": sum(cpu) / len(cpu),
        "start": meter.wall[0] - start,
        "end": whole - (meter.wall[-1] - start),
        "peak": meter.peak if torch.cuda.is_available() else meter.peak - before,
    }


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    data, before = Path(spec["data"]), memory_now("VmRSS")
    results = [measure(run, data, before) for run in spec["runs"]]
    ranks: list[Any] = [results]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        ranks = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(ranks, results)
    if os.environ.get("RANK", "0") == "0":
        Path(spec["output"]).write_text(json.dumps(ranks))


if __name__ == "__main__":
    main()
