"""Tokens per second and memory per rank of each engine, and what train.py costs over plain TRL.

    python benchmarks/scaling.py                       # llama-30m on CPU ranks: half an hour
    python benchmarks/scaling.py --only cost --rounds 9
    python benchmarks/scaling.py --device cuda --shape llama3-8b --ranks 1 8 --presets zero3 \
        zero3_offload --peft none lora --only engines
    wemask submit ...                                  # on several nodes: docs/scale.md

*engines*: each preset on each number of ranks trains a few steps in processes of its own, softened
(`wemask`) and plain (`sft`). Memory is the caching allocator's peak on a GPU; on a CPU the resident
memory of a rank at its highest during training, above that after the imports.

*cost*: one process trains the same run four times at once: written by hand with TRL (A), once more
(A/A, the noise), by train.py with method=sft (P) and method=wemask (S). They take turns at every
step. A step's time is from its begin to the next one's, so that logs, callbacks and watching count;
on a CPU it is the process's own time, since the machine is shared. A round is ten steps of each
arm, with one log line and one look at the wemask/* keys; reported is the median of the rounds'
ratios, with its 95% interval.

The result goes to benchmarks/results/scaling-*.json, `benchmarks/tables.py` makes the tables of
docs/scale.md from it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import overhead
import scaling_rank
import shapes
import torch
from rich.progress import track

from wemask.checkpoint.pretrained import load_tokenizer
from wemask.errors import nearest
from wemask.settings.composition import compose
from wemask.settings.config import run_config
from wemask.train import memory
from wemask.train.adapters import lora_size

PRESETS = ("none", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")
METHODS = ("sft", "wemask")
ARMS = {
    "A": ("trl", "sft"),
    "A/A": ("trl", "sft"),
    "P": ("wemask", "sft"),
    "S": ("wemask", "wemask"),
}
GOAL = 1.02
ROUND = 10  # steps: trainer.logging_steps and logger.watch_every
RANK = Path(__file__).with_name("scaling_rank.py")


class Bench:
    """A model of the shape, data that fill every row, and a place for what the runs write."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.model, self.data = folder / "model", folder / "data.jsonl"
        self.number = 0
        cuda = options.device == "cuda"
        tokenizer = load_tokenizer("tiny")
        assert tokenizer.bos_token_id == shapes.BOS  # the token that is massive
        model: Any = shapes.build(
            options.shape, options.device, torch.bfloat16 if cuda else torch.float32
        )
        model.config.bos_token_id = model.generation_config.bos_token_id = shapes.BOS
        model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(self.model)
        tokenizer.save_pretrained(self.model)
        # More words than max_length has tokens: rows are cut, and no step has a pad.
        answer = " ".join(f"{i} and" for i in range(options.length))
        row = {
            "prompt": [{"role": "user", "content": "Count."}],
            "completion": [{"role": "assistant", "content": answer}],
        }
        self.data.write_text((json.dumps(row) + "\n") * 64)

    def words(self, method: str, steps: int, preset: str = "none", peft: str = "none") -> list[str]:
        """The run on train.py's command line, with a folder of its own."""
        self.number += 1
        o = self.options
        return [
            *(f"method={method}", f"deepspeed={preset}", f"peft={peft}", "logger=none"),
            *(f"model.path={self.model}", "data=jsonl", f"data.path={self.data}"),
            *(f"trainer.max_steps={steps}", f"trainer.max_length={o.length}"),
            f"trainer.per_device_train_batch_size={o.batch}",
            *("trainer.gradient_accumulation_steps=1", "trainer.save_strategy='no'"),
            f"paths.run_dir={self.folder / f'run-{self.number}'}",
        ]

    def launch(
        self, ranks: int, runs: Sequence[dict[str, Any]], *, in_turns: bool = False
    ) -> list[list[dict[str, Any]]]:
        """Results by rank and run."""
        output = self.folder / "output.json"
        output.unlink(missing_ok=True)
        spec = self.folder / "spec.json"
        files = {"data": str(self.data), "output": str(output)}
        spec.write_text(json.dumps({"runs": runs, "in_turns": in_turns, **files}))
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [sys.executable, *(torchrun if ranks > 1 else []), str(RANK), str(spec)]
        caches = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(self.folder / "datasets")}
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.options.threads), **caches}
        if (log := self.options.log) is not None:
            print(f"{' '.join(command)}: see {log}", file=sys.stderr)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if log is not None:
            log.write_text(done.stdout + done.stderr)
        if done.returncode or not output.exists():
            raise SystemExit(f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}\nfailed: {command}")
        return json.loads(output.read_text())


# --- engines --------------------------------------------------------------------------------------


def engines(bench: Bench) -> list[dict[str, Any]]:
    """Tokens per second and peak memory of every engine, number of ranks, PEFT and method."""
    o = bench.options
    cases = [
        (peft, preset, ranks, method)
        for peft in o.peft
        for preset in o.presets
        for ranks in o.ranks
        for method in o.methods
    ]
    rows = []
    for peft, preset, ranks, method in track(cases, "engines"):
        words = bench.words(method, o.steps, preset, peft)
        by_rank = bench.launch(ranks, [{"how": "wemask", "words": words}])
        slowest = max(statistics.mean(result["wall"]) for (result,) in by_rank)
        rows.append(
            {
                "peft": peft,
                "preset": preset,
                "ranks": ranks,
                "method": method,
                "tokens_per_second": ranks * o.batch * o.length / slowest,
                "peak": max(result["peak"] for (result,) in by_rank),
                "estimate": estimated(bench, words, ranks),
            }
        )
    return rows


def estimated(bench: Bench, words: Sequence[str], ranks: int) -> float:
    """Bytes of one rank by `train/memory.py`; on a CPU what is offloaded is in the same memory."""
    config = run_config(compose("train", [*words, f"launcher.processes={ranks}"]))
    model = memory.on_meta(str(bench.model), dtype_of(bench.options.device))
    trained = None if config.peft is None else lora_size(config, model)
    cuda = bench.options.device == "cuda"
    found = memory.estimate_run(config, memory.shape_of(model, trained), on_gpu=cuda)
    return found.device if cuda else found.device + found.cpu / ranks


def dtype_of(device: str) -> str:
    return "bfloat16" if device == "cuda" else "float32"


# --- cost -----------------------------------------------------------------------------------------


def cost(bench: Bench) -> dict[str, Any]:
    """The same run by train.py and by hand, in one process."""
    o = bench.options
    steps = scaling_rank.WARM_UP + o.rounds * ROUND
    runs = [{"how": how, "words": bench.words(method, steps)} for how, method in ARMS.values()]
    (results,) = bench.launch(1, runs, in_turns=True)
    found = dict(zip(ARMS, results, strict=True))
    key = "wall" if o.device == "cuda" else "cpu"
    seconds = {
        arm: [
            statistics.mean(result[key][i : i + ROUND]) for i in range(0, o.rounds * ROUND, ROUND)
        ]
        for arm, result in found.items()
    }
    outside = {part: {arm: found[arm][part] for arm in ARMS} for part in ("start", "end")}
    return {**overhead.summarise(seconds, GOAL), **outside}


# --- the run --------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The parts asked for; each says how it was measured, since `--only` keeps the other."""
    about = {
        "settings": {
            "shape": options.shape,
            "dtype": dtype_of(options.device),
            "batch": options.batch,
            "length": options.length,
            "steps": options.steps,
        },
        "machine": overhead.machine(options),
    }
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="wemask-scaling-") as folder:
        bench = Bench(options, Path(folder))
        if "engines" in options.only:
            result["engines"] = {**about, "rows": engines(bench)}
        if "cost" in options.only:
            result["cost"] = {**about, **cost(bench)}
    return result


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=list(shapes.SHAPES), default="llama-30m")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="default 1 2")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), help=" ".join(PRESETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["wemask"])
    parser.add_argument("--peft", nargs="+", choices=["none", "lora"], default=["none"])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a rank (default 1)")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row (default 256)")
    parser.add_argument("--batch", type=int, default=1, help="rows of a rank's step (default 1)")
    parser.add_argument("--steps", type=int, default=12, help="of an engine (default 12)")
    parser.add_argument("--rounds", type=int, default=15, help="of ten steps, of cost (default 15)")
    parser.add_argument(
        "--only", nargs="+", choices=["engines", "cost"], default=["engines", "cost"]
    )
    parser.add_argument("--log", type=Path, help="keep what the ranks of the last launch said")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/scaling-*.json")
    options = parser.parse_args()
    for preset in options.presets:
        if preset not in PRESETS:
            parser.error(f"there is no preset {preset!r}.{nearest(preset, PRESETS)}")
    return options


def main() -> None:
    options = parse()
    result = measure(options)
    path = options.output or overhead.RESULTS / f"scaling-{options.shape}-{options.device}.json"
    if path.exists():  # --only keeps the other part
        result = {**json.loads(path.read_text()), **result}
    path.write_text(json.dumps(result, indent=2) + "\n")
    for row in result["engines"]["rows"] if "engines" in result else ():
        print(
            f"{row['peft']:5} {row['preset']:14} {row['ranks']} ranks  {row['method']:7}"
            f"{row['tokens_per_second']:10.0f} tokens/s  {row['peak'] / memory.GIB:.2f} GiB"
        )
    for arm in list(ARMS)[1:] if "cost" in result else ():
        ratio = result["cost"][arm]
        print(f"{arm:4} {ratio['ratio']:.4f} [{ratio['low']:.4f}, {ratio['high']:.4f}]")
    print(path)


if __name__ == "__main__":
    main()
