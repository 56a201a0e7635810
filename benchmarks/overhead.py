"""What the softening costs, against the same model unpatched in the same process.

    python benchmarks/overhead.py                                  # llama-30m on the CPU, 1 thread
    python benchmarks/overhead.py --threads 2
    python benchmarks/overhead.py --device cuda --shape llama3-8b [--compile [--layers 8]]

Each round runs three arms in turning order: A (unpatched), A/A (unpatched again: the noise) and S
(softened). A and S are one model, the same weights at the same addresses; only the classes of its
layers change. The ratio of a round is S / A; reported are its median and the 95% interval of that
median (order statistics). Results go to benchmarks/results/, case by case, so that a run which is
stopped leaves what it has; `benchmarks/tables.py` makes the table of docs/performance.md from them.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import memory
import shapes
import torch
from rich.progress import track
from scipy.stats import quantile_test
from torch import Tensor, nn

import wemask
from wemask.files import write_whole
from wemask.operator.layers import restore_classes, swap_classes

RESULTS = Path(__file__).parent / "results"
ARMS = ("A", "A/A", "S")
GOALS = {
    "forward": 1.01,
    "forward+backward": 1.01,
    "training step (TRL)": 1.01,
    "prefill": 1.01,
    "decode, 64 steps": 1.02,
    "detection": 1.10,
}
DECODED = 64


class Switch:
    """Puts the softened classes into a model and takes them out, without a probe in between."""

    def __init__(self, handle: wemask.SoftenHandle) -> None:
        self.blocks = list(handle.blocks)
        self.on = True

    def set(self, arm: str) -> None:
        if (arm == "S") == self.on:
            return
        self.on = not self.on
        for block in self.blocks:
            if self.on:
                name = str(block.name_of(block.attention))
                swap_classes(block.layer, block.attention, name)
            else:
                restore_classes(block.layer, block.attention)


Seconds = dict[str, list[float]]


def rounds(count: int, switch: Switch, time_once: Callable[[str], float], what: str) -> Seconds:
    """Seconds per arm and round; the order of the arms turns from round to round."""
    seconds: Seconds = {arm: [] for arm in ARMS}
    for arm in ARMS:  # warm up
        switch.set(arm)
        time_once(arm)
    for i in track(range(count), what):
        for j in range(len(ARMS)):
            arm = ARMS[(i + j) % len(ARMS)]
            switch.set(arm)
            seconds[arm].append(time_once(arm))
    switch.set("S")
    return seconds


def timed(device: str, run: Callable[[], object]) -> float:
    """Seconds of one call, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def summarise(seconds: Seconds, goal: float) -> dict[str, Any]:
    """Medians of the seconds, and of the ratios per round with their 95% intervals."""
    result: dict[str, Any] = {
        "rounds": len(seconds["A"]),
        "goal": goal,
        "seconds": {arm: statistics.median(values) for arm, values in seconds.items()},
    }
    for arm in list(seconds)[1:]:
        ratios = [s / a for s, a in zip(seconds[arm], seconds["A"], strict=True)]
        test: Any = quantile_test(ratios, p=0.5)
        interval = test.confidence_interval()
        result[arm] = {
            "ratio": statistics.median(ratios),
            "low": float(interval.low),
            "high": float(interval.high),
        }
    return result


# --- what is timed ------------------------------------------------------------------------------


def time_forward(run: nn.Module, ids: Tensor, device: str, **inputs: Any) -> Callable[[str], float]:
    def once(arm: str) -> float:
        with torch.no_grad():
            return timed(device, lambda: run(input_ids=ids, **inputs))

    return once


def time_backward(run: nn.Module, ids: Tensor, device: str) -> Callable[[str], float]:
    def both() -> None:
        run(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    def once(arm: str) -> float:
        run.zero_grad()
        return timed(device, both)

    return once


@torch.no_grad()
def time_decode(runs: dict[str, Any], count: int, ids: Tensor, device: str) -> Seconds:
    """Seconds of 64 decode steps; the arms take turns at every step, each with its own cache.

    The tokens are given, ordinary ones and the same in all arms: what a random model would decode
    says nothing, and may be its massive token again. `runs` has a model per arm: changing classes
    at every step costs Python's caches 40 microseconds a layer, which is no cost of the softening.
    """
    seconds: Seconds = {arm: [] for arm in ARMS}
    decoded = ids[:, 1 : DECODED + 1].split(1, dim=1)
    for i in track(range(count + 1), "decode"):
        caches = {
            arm: runs[arm](input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
            for arm in ARMS
        }
        total = dict.fromkeys(ARMS, 0.0)
        for step, token in enumerate(decoded):
            for j in range(len(ARMS)):
                arm = ARMS[(i + step + j) % len(ARMS)]
                call = partial(runs[arm], input_ids=token, past_key_values=caches[arm])
                total[arm] += timed(device, partial(call, use_cache=True))
        for arm in ARMS if i else ():  # the first round warms up
            seconds[arm].append(total[arm])
    return seconds


def time_trl_steps(
    model: nn.Module, switch: Switch, count: int, length: int, batch: int
) -> Seconds:
    """Seconds of whole optimizer steps of one SFTTrainer, whose arm changes from step to step."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    seconds: Seconds = {arm: [] for arm in ARMS}
    device = next(model.parameters()).device.type

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turn, place = divmod(state.global_step, len(ARMS))
            self.arm = ARMS[(turn + place) % len(ARMS)]
            switch.set(self.arm)
            torch.cuda.synchronize() if device == "cuda" else None
            self.start = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            torch.cuda.synchronize() if device == "cuda" else None
            if state.global_step > len(ARMS):  # the first turn warms up
                seconds[self.arm].append(time.perf_counter() - self.start)

    steps = (count + 1) * len(ARMS)
    rows = shapes.ids(model, length, rows=steps * batch).cpu().tolist()
    arguments = SFTConfig(
        output_dir="outputs/benchmark",
        max_steps=steps,
        per_device_train_batch_size=batch,
        max_length=length,
        use_cpu=device == "cpu",
        bf16=device == "cuda",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        dataloader_pin_memory=device == "cuda",
        eos_token=None,
    )
    SFTTrainer(
        model=model,  # pyright: ignore[reportArgumentType]
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        processing_class=_tokenizer(),
        callbacks=[Clock()],
    ).train()
    switch.set("S")
    model.eval()
    return seconds


def _tokenizer() -> Any:
    """TRL wants one; the rows are token ids already."""
    from wemask.checkpoint.pretrained import load_tokenizer

    return load_tokenizer("tiny")


def time_detection(model: nn.Module, device: str) -> Callable[[str], float]:
    ids = shapes.ids(model, 24, rows=16)
    mask = torch.ones_like(ids)

    @torch.no_grad()
    def once(arm: str) -> float:
        if arm == "S":
            return timed(device, lambda: wemask.detect(model, input_ids=ids))
        return timed(device, lambda: model(input_ids=ids, attention_mask=mask, use_cache=False))

    return once


class Nothing:
    """Stands in for a Switch where all arms are unpatched."""

    def set(self, arm: str) -> None:
        """Leave the model as it is."""


# --- the run ------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> Iterator[tuple[nn.Module, str, dict[str, Any]]]:
    """The model, and one case after another with its name; those that compile longest come last."""
    torch.set_num_threads(options.threads)
    # Both arms in prefill, decode and training are ten graphs of one function; past its limit of
    # eight torch would go on uncompiled without a word.
    torch._dynamo.config.recompile_limit = 32
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    device = options.device
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = shapes.build(options.shape, device, dtype, options.layers)
    ids = shapes.ids(model, options.length, rows=options.batch)
    detection: dict[str, Any] = {}
    if "detection" in options.only:
        seconds = rounds(options.rounds, Nothing(), time_detection(model, device), "detection")  # pyright: ignore
        detection = summarise(seconds, GOALS["detection"])
        detection["memory"] = memory.of_detection(model, shapes.ids(model, 24, rows=16))
    twin = shapes.twin(model)
    handle = wemask.soften(model, shapes.detect(model), wemask.WeMaskConfig(rate=options.rate))
    if detection:
        yield model, "detection", detection
    switch = Switch(handle)
    run: Any = torch.compile(model) if options.compile else model
    timings = {
        "prefill": time_forward(run, ids, device, use_cache=True, logits_to_keep=1),
        "forward": time_forward(run, ids, device, use_cache=False),
    }
    for name in [name for name in timings if name in options.only]:
        seconds = rounds(options.rounds, switch, timings[name], name)
        yield model, name, summarise(seconds, GOALS[name])
    name = "decode, 64 steps"
    if name in options.only:
        plain: Any = torch.compile(twin) if options.compile else twin
        runs = {"A": plain, "A/A": plain, "S": run}
        yield model, name, summarise(time_decode(runs, options.rounds, ids, device), GOALS[name])
    name = "forward+backward"
    if name in options.only:
        model.train()
        seconds = rounds(options.rounds, switch, time_backward(run, ids, device), name)
        case = summarise(seconds, GOALS[name])
        case["memory"] = memory.of_backward(model, ids, switch.set)
        yield model, name, case
    name = "training step (TRL)"
    if name in options.only and not options.compile:
        steps = time_trl_steps(model, switch, options.rounds, options.length, options.batch)
        yield model, name, summarise(steps, GOALS[name])


def settings(options: argparse.Namespace, model: nn.Module) -> dict[str, Any]:
    handle: Any = model.wemask_handle
    return {
        "shape": options.shape,
        "layers": options.layers,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "batch": options.batch,
        "length": options.length,
        "compiled": options.compile,
        "rate": options.rate,
        "softened_layers": len(handle.layers),
        "dims": len(next(iter(handle.dims.values())) or []),
    }


def machine(options: argparse.Namespace) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), name)
    return {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else name,
        "threads": options.threads,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        **{name: version(name) for name in ("torch", "transformers", "trl")},
        "wemask": wemask.__version__,  # which need not be installed
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=list(shapes.SHAPES), default="llama-30m")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--rounds", type=int, default=31, help="rounds per case (default 31)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row (default 512)")
    parser.add_argument("--batch", type=int, default=1, help="rows (default 1)")
    parser.add_argument("--rate", type=float, default=0.001, help="share of dims (default 0.001)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument(
        "--layers", type=int, help="only so many layers: compiling takes its time per layer"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(GOALS),
        default=list(GOALS),
        metavar="CASE",
        help=f"time these again and keep the rest of the result file: {'; '.join(GOALS)}",
    )
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/NAME.json")
    options = parser.parse_args()
    if options.length <= DECODED:
        parser.error(f"--length must be above {DECODED}, the tokens that are decoded")
    return options


def main() -> None:
    options = parse()
    compiled = "-compiled" if options.compile else ""
    where = options.device if options.device == "cuda" else f"cpu-{options.threads}thread"
    path = options.output or RESULTS / f"{options.shape}-{where}{compiled}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    some = len(options.only) < len(GOALS) and path.exists()
    cases: dict[str, Any] = json.loads(path.read_text())["cases"] if some else {}
    for model, measured, case in measure(options):
        cases[measured] = case
        result = {
            "machine": machine(options),
            "settings": settings(options, model),
            "cases": {name: cases[name] for name in GOALS if name in cases},
        }
        write_whole(path, json.dumps(result, indent=2) + "\n")
        s, aa = case["S"], case["A/A"]
        print(
            f"{measured:22} {s['ratio']:.4f} [{s['low']:.4f}, {s['high']:.4f}]   "
            f"A/A {aa['ratio']:.4f} [{aa['low']:.4f}, {aa['high']:.4f}]   goal {case['goal']}"
        )
        if "memory" in case:
            print(f"{'':22} memory {case['memory']}")
    print(path)


if __name__ == "__main__":
    main()
