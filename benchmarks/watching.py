"""What watching a training costs, at the settings that every logger has.

    python benchmarks/watching.py                      # llama-30m on the CPU, 1 thread: 4 minutes
    python benchmarks/watching.py --device cuda --shape llama3-8b

One SFTTrainer, whose arm changes from step to step: A (not watched), A/A (not watched either: the
noise) and W (watched, as every tenth step is by default, log line included). A step takes seconds,
in which a shared machine does other things too, so each is held against itself: its whole time over
that until the optimizer has moved the weights. With these quotients, watching every N steps makes
the training's time 1 + (W / A - 1) / N of what it was; reported are the median of that over the
rounds, and its 95% interval. The result goes to benchmarks/results/, `benchmarks/tables.py` makes
the table of docs/performance.md from it.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import overhead
import shapes
import torch

import wemask
from wemask.checkpoint.pretrained import load_tokenizer
from wemask.measure.probe import fixed_probe
from wemask.settings.composition import compose
from wemask.settings.config import run_config
from wemask.train.monitoring import WatchCallback

ARMS = ("A", "A/A", "W")


class Turns(WatchCallback):
    """Watches the steps of arm W alone, and times all of them.

    On a CPU in the process's own time, for the same reason.
    """

    def __init__(self, *args: Any, device: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.now = time.perf_counter if device == "cuda" else time.process_time
        self.seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
        self.quotients: dict[str, list[float]] = {arm: [] for arm in ARMS}
        self.arm, self.start, self.own = "", 0.0, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop(args, state.global_step - 1)
        turn, place = divmod(state.global_step, len(ARMS))
        self.arm = ARMS[(turn + place) % len(ARMS)]
        self.start = self.now()
        super().on_step_begin(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wait(args)
        self.own = self.now() - self.start
        self.interval = 1 if self.arm == "W" else state.global_step + 1
        super().on_step_end(args, state, control, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop(args, state.global_step - 1)

    def stop(self, args: Any, step: int) -> None:
        """End the time of a step, its log line included; the first turn warms up."""
        wait(args)
        if step >= len(ARMS):
            whole = self.now() - self.start
            self.seconds[self.arm].append(whole)
            self.quotients[self.arm].append(whole / self.own)


def wait(args: Any) -> None:
    if args.device.type == "cuda":
        torch.cuda.synchronize()


def train(model: Any, watch: Turns, options: argparse.Namespace, folder: str) -> None:
    """Train for the rounds and one to warm up."""
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    class Trainer(SFTTrainer):
        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            super().log({**logs, **watch.take()}, *args, **kwargs)

    steps = (options.rounds + 1) * len(ARMS)
    rows = shapes.ids(model, options.length, rows=steps * options.batch).cpu().tolist()
    cuda = options.device == "cuda"
    arguments = SFTConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=options.batch,
        max_length=options.length,
        use_cpu=not cuda,
        bf16=cuda,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        dataloader_pin_memory=cuda,
        eos_token=None,
    )
    watch.trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        processing_class=load_tokenizer("tiny"),
        callbacks=[watch],
    )
    watch.trainer.train()


def summarise(watch: Turns, every: int, goal: float) -> dict[str, Any]:
    """Ratios of the whole training's time, from those of single steps."""
    result = overhead.summarise(watch.quotients, goal)
    for arm in ARMS[1:]:
        result[arm] = {name: 1 + (ratio - 1) / every for name, ratio in result[arm].items()}
    return {
        **result,
        "seconds": {arm: statistics.median(values) for arm, values in watch.seconds.items()},
        "seconds_watching": statistics.median(
            whole * (1 - 1 / quotient)
            for whole, quotient in zip(watch.seconds["W"], watch.quotients["W"], strict=True)
        ),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    defaults = run_config(compose("train", [])).logger
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    model = shapes.build(options.shape, options.device, dtype)
    report = shapes.detect(model)
    handle = wemask.soften(model, report, wemask.WeMaskConfig(rate=0.001))
    probe = fixed_probe(model, load_tokenizer("tiny"), report, handle)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        watch = Turns(probe, path, every=1, budget=None, device=options.device)
        train(model, watch, options, folder)
    every = defaults["watch_every"]
    return {
        "settings": {
            "shape": options.shape,
            "parameters": sum(p.numel() for p in model.parameters()),
            "dtype": str(dtype).removeprefix("torch."),
            "batch": options.batch,
            "length": options.length,
            "watch_every": every,
            "probe": [*probe.batch.input_ids.shape],
        },
        "machine": overhead.machine(options),
        "watching": summarise(watch, every, goal=1 + defaults["watch_budget"]),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=list(shapes.SHAPES), default="llama-30m")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--rounds", type=int, default=11, help="rounds (default 11)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row (default 512)")
    parser.add_argument("--batch", type=int, default=4, help="rows of a step (default 4)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/watching-*.json")
    return parser.parse_args()


def main() -> None:
    options = parse()
    result = measure(options)
    where = options.device if options.device == "cuda" else f"cpu-{options.threads}thread"
    path = options.output or overhead.RESULTS / f"watching-{options.shape}-{where}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    case = result["watching"]
    for arm in ARMS[1:]:
        print(f"{arm:4} {case[arm]['ratio']:.4f} [{case[arm]['low']:.4f}, {case[arm]['high']:.4f}]")
    print(f"a step: {case['seconds']['A']:.2f} s, watching {case['seconds_watching']:.2f} s")
    print(path)


if __name__ == "__main__":
    main()
