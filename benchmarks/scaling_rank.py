"""One rank of `scaling.py`: one training, written with wemask and written by hand with TRL.

    torchrun --nproc-per-node 2 benchmarks/scaling_rank.py SPEC.json

The file holds {"runs": [{"how": "trl" | "wemask", "words": [...]}, ...], "data": FILE, "output":
FILE, "in_turns": false}. `words` are those of train.py; by hand the same fields of SFTConfig are
used. The runs follow one another in this process, or make their steps in turns, each measured by
the same callback. Rank 0 writes the output.
"""

import ctypes
import gc
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from transformers import TrainerCallback, trainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from wemask.data.chat import LossChoice
from wemask.settings.composition import compose
from wemask.settings.config import RunConfig, run_config
from wemask.train.adapters import peft_config
from wemask.train.training import arguments_of, train

WARM_UP = 2  # steps that are not counted: they allocate, and DeepSpeed learns the order of modules


class Meter(TrainerCallback):
    """Seconds from the begin of each step to that of the next, callbacks and logs included."""

    def __init__(self, pause: Callable[[], object]) -> None:
        self.pause = pause
        self.created, self.ended = time.perf_counter(), 0.0
        self.before_training = self.peak = 0.0
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.began: tuple[float, float] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what loading and DeepSpeed's start have given back
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close_step()
        self.pause()
        self.began = clocks()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close_step()
        self.ended = time.perf_counter()
        self.peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory_now()

    def close_step(self) -> None:
        now = clocks()
        if self.began is None:
            self.before_training = now[0] - self.created
            return
        self.wall.append(now[0] - self.began[0])
        self.cpu.append(now[1] - self.began[1])


def clocks() -> tuple[float, float]:
    """Now, and the CPU time of this process, when the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


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


def measure(
    run: dict[str, Any], data: Path, before: int, pause: Callable[[], object]
) -> dict[str, Any]:
    """Train once; seconds of the steps after the warm-up, and memory above that of the imports."""
    meter = Meter(pause)
    trainer.DEFAULT_CALLBACKS[1:] = [meter]  # pyright: ignore
    config = run_config(compose("train", run["words"]))
    by_hand(config, data) if run["how"] == "trl" else train(config)
    return {
        "wall": meter.wall[WARM_UP:],
        "cpu": meter.cpu[WARM_UP:],
        "start": meter.before_training,
        "end": time.perf_counter() - meter.ended,
        "peak": meter.peak if torch.cuda.is_available() else meter.peak - before,
    }


def in_turns(runs: list[dict[str, Any]], data: Path, before: int) -> list[dict[str, Any]]:
    """All runs at once, of which one at a time makes one step: a machine's moods meet them all."""
    from greenlet import getcurrent, greenlet

    hub: Any = getcurrent()
    lets = [greenlet(measure) for _ in runs]
    results: list[Any] = [
        let.switch(run, data, before, hub.switch) for let, run in zip(lets, runs, strict=True)
    ]
    turn = 0
    while any(lets):
        for place in range(len(lets)):
            index = (turn + place) % len(lets)
            if lets[index]:
                results[index] = lets[index].switch()
        turn += 1
    return results


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    data, before = Path(spec["data"]), memory_now("VmRSS")
    if spec["in_turns"]:
        results = in_turns(spec["runs"], data, before)
    else:
        results = [measure(run, data, before, lambda: None) for run in spec["runs"]]
    ranks: list[Any] = [results]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        ranks = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(ranks, results)
    if os.environ.get("RANK", "0") == "0":
        Path(spec["output"]).write_text(json.dumps(ranks))


if __name__ == "__main__":
    main()
