"""What a GPU has to say, in one sitting that ends by itself: `make gpu-day`.

    python benchmarks/gpu_day.py                                # nine minutes, one GPU, no network
    python benchmarks/gpu_day.py --parts overhead --minutes 4
    python benchmarks/gpu_day.py --toy                          # to see that everything is wired

overhead   operator and detection at the shape of Llama-3-8B, eager; and 8 of its layers, compiled
sft        full fine-tuning of SmolLM2-135M-Instruct on GSM8K, SFT against WeMask-SFT, three seeds;
           and one of the runs once more, which shows what a GPU alone changes
evaluate   GSM8K and IFEval: base (twice: A/A), training_free, sft, wemask_sft, and their comparison

A part may use the time up to its share of the whole; what it leaves goes to the next. When its time
is up it is stopped, and the result says what is partial. Nothing is lost by that: the same command
goes on where it was (missing cases, checkpoints, batches), as long as outputs/ is there.
`benchmarks/gpu_pack.py` brings model, data and packages to a machine without a network.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu_jobs import Job, run

from wemask.compare.results import load_results
from wemask.files import write_whole

REPOSITORY = Path(__file__).resolve().parents[1]
PACK = REPOSITORY / "gpu-day"
RESULT = Path(__file__).parent / "results" / "gpu_day.json"
SEEDS = (0, 1, 2)
CASES = {
    "eager": (
        *("detection", "prefill", "forward", "decode, 64 steps", "forward+backward"),
        "training step (TRL)",
    ),
    "compiled": ("prefill", "decode, 64 steps", "forward+backward"),
}
SHAPE = ("--shape", "llama3-8b", "--rounds", "11")
TOY_SHAPE = ("--shape", "llama-toy", "--rounds", "7", "--length", "80")
# A third of GSM8K, as much as the minutes hold; float32 weights under bf16 autocast.
TRAINING = (
    *("trainer.max_steps=40", "trainer.learning_rate=1e-4", "trainer.max_length=512"),
    *("trainer.per_device_train_batch_size=32", "trainer.gradient_accumulation_steps=2"),
    "trainer.bf16=true",
    "trainer.save_strategy=no",  # a run that is stopped saves all the same
)
# As much as nine minutes hold. Every arm is cut alike; the results say how many outputs were.
ASKING = (
    *("batch_size=272", "tasks.gsm8k.limit=272", "tasks.gsm8k.max_new_tokens=256"),
    "tasks.ifeval.max_new_tokens=256",
)
TOY_ASKING = (
    *("limit=2", "tasks.gsm8k.max_new_tokens=8", "tasks.ifeval.max_new_tokens=8"),
    "batch_size=2",
)
PROBE = (
    "import json, torch; from wemask.settings.run_folder import environment; "
    "print(json.dumps({'cuda': torch.cuda.is_available(), **environment()}))"
)


@dataclass(frozen=True, kw_only=True)
class Day:
    """What is run, and where."""

    device: str
    toy: bool
    out: Path
    """Folder for whatever the parts leave: run folders, logs."""
    lanes: int | None = None
    """Jobs at once where nothing is timed; None: as a GPU of 80 GB bears."""
    pack: Path = PACK

    @property
    def model(self) -> Path | None:
        """The real model; without it, a toy day has the embedded one."""
        folder = self.pack / "smollm2"
        return folder if folder.exists() else None

    @property
    def runs(self) -> Path:
        return self.out / "runs"

    @property
    def compared(self) -> Path:
        return self.out / "compared"

    def settings(self) -> list[str]:
        """Settings that train.py and evaluate.py share."""
        words = ["logger=none", f"paths.output_dir={self.out}", "experiment_name=runs"]
        words += ["debug=fast"] if self.toy else TRAINING
        if self.model is None:
            return [*words, "model=tiny"]
        train = self.pack / "data" / "gsm8k_train.jsonl"
        return [*words, f"model.path={self.model}", "data=gsm8k", f"data.path={train}"]

    def asked(self) -> list[str]:
        """Settings of evaluate.py alone."""
        if self.model is None:
            return ["tasks=[synthetic]", "limit=2", "tasks.synthetic.max_new_tokens=8"]
        data = self.pack / "data"
        files = {"gsm8k": data / "gsm8k_test.jsonl", "ifeval": data / "ifeval.jsonl"}
        paths = [f"tasks.{task}.path={path}" for task, path in files.items()]
        return ["tasks=[gsm8k,ifeval]", *paths, *(TOY_ASKING if self.toy else ASKING)]


# --- overhead -------------------------------------------------------------------------------------


def overhead_jobs(day: Day) -> list[Job]:
    """The cases that are not timed yet."""
    timed = overhead_figures(day)
    jobs = []
    for name, cases in CASES.items():
        if day.toy and name == "compiled":
            cases = cases[:1]  # compiling takes a CPU half a minute each
        missing = [case for case in cases if case not in timed.get(name, {"cases": {}})["cases"]]
        if not missing:
            continue
        words = ["--device", day.device, *(TOY_SHAPE if day.toy else SHAPE)]
        words += ["--output", str(day.out / f"{name}.json"), "--only", *missing]
        if name == "compiled":
            words += ["--compile", "--layers", "3" if day.toy else "8"]
        jobs.append(Job(name=name, command=[sys.executable, "benchmarks/overhead.py", *words]))
    return jobs


def overhead_figures(day: Day) -> dict[str, Any]:
    """What overhead.py has written so far: eager, compiled -> its result."""
    paths = {name: day.out / f"{name}.json" for name in CASES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


# --- sft ------------------------------------------------------------------------------------------


def sft_jobs(day: Day) -> list[Job]:
    """Both methods with every seed, seed by seed; train.py knows what is finished."""
    train = [sys.executable, "train.py", *day.settings()]
    jobs = [
        Job(name=f"{method}-s{seed}", command=[*train, f"method={method}", f"seed={seed}"])
        for seed in SEEDS
        for method in ("sft", "wemask")
    ]
    again = [*train, "method=sft", f"seed={SEEDS[0]}", f"paths.run_dir={day.out / 'sft-again'}"]
    return [*jobs, Job(name="sft-again", command=again)]


def sft_figures(day: Day) -> dict[str, Any]:
    """Job -> how far the training is, with the loss and the speed of its last log line."""
    from wemask.train.progress import Progress

    folders = {
        f"{method}-s{seed}": next(day.runs.glob(f"*__{method}__s{seed}__*"), None)
        for seed in SEEDS
        for method in ("sft", "wemask")
    }
    folders["sft-again"] = day.out / "sft-again"
    found = {name: Progress.read(folder) for name, folder in folders.items() if folder}
    return {name: asdict(progress) for name, progress in found.items() if progress}


# --- evaluate -------------------------------------------------------------------------------------


def evaluate_jobs(day: Day) -> list[Job]:
    """One job per seed, beside those without; an arm that is not trained yet fails and says so."""
    arms = {"untrained": (0, "base,base_again,training_free")}
    arms |= {f"trained-s{seed}": (seed, "sft,wemask_sft") for seed in SEEDS}
    ask = [sys.executable, "evaluate.py", *day.settings(), *day.asked(), "train_missing=false"]
    return [
        Job(name=name, command=[*ask, f"seed={seed}", f"arms=[{some}]"])
        for name, (seed, some) in arms.items()
    ]


def compare_job(day: Day) -> list[Job]:
    """What compares all that is evaluated; none where nothing is."""
    folders = [path for path in sorted(day.runs.glob("*")) if any(path.glob("**/eval/*/meta.json"))]
    command = [sys.executable, "-P", "-m", "wemask.cli", "compare", *map(str, folders)]
    return [Job(name="compare", command=[*command, "--out", str(day.compared)])] if folders else []


def evaluate_figures(day: Day) -> dict[str, Any]:
    """Scores of the arms and their differences, and how many batches of what else are asked."""
    asked = {
        str(path.parent.relative_to(day.runs)): len(path.read_text().splitlines()) - 1
        for path in sorted(day.runs.glob("**/unfinished.jsonl"))
    }
    path = day.compared / "results.json"
    if not path.exists():
        return {"batches_of_unfinished_tasks": asked}
    results = load_results(path)
    keys = ("tasks", "arms", "comparisons", "same", "notes")
    return {"batches_of_unfinished_tasks": asked, **{key: results[key] for key in keys}}


# --- the day --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the day."""

    share: float
    """Of the minutes, where all parts are run."""
    jobs: Callable[[Day], list[Job]]
    figures: Callable[[Day], Any]
    """What is on disk, whole or not."""
    lanes: int = 1
    """Jobs at once. What is timed runs alone."""
    last: Callable[[Day], list[Job]] = lambda day: []
    """Jobs that need what the others left."""
    last_seconds: float = 0.0
    """Kept back for them."""


# On an H200 (2026-11-27) a job needed 35 s to begin, mostly imports, 9 s for 272 outputs of GSM8K
# and 31 s for 541 of IFEval with 400 tokens; five jobs at once trained at 1.1 to 2.4 s a step of 64
# examples. That four lanes fit 80 GB is reckoned.
PARTS = {
    "overhead": Part(share=0.36, jobs=overhead_jobs, figures=overhead_figures),
    "sft": Part(share=0.30, jobs=sft_jobs, figures=sft_figures, lanes=4),
    "evaluate": Part(
        share=0.34,
        jobs=evaluate_jobs,
        figures=evaluate_figures,
        lanes=4,
        last=compare_job,
        last_seconds=30,
    ),
}


def run_part(name: str, day: Day, environment: dict[str, str], until: float) -> dict[str, Any]:
    """Run one part until it is done or its time (time.monotonic) is up; what came out, as it is."""
    part, began = PARTS[name], time.monotonic()
    common: dict[str, Any] = {"logs": day.out / "logs" / name, "environment": environment}
    kept = until - part.last_seconds
    lanes = part.lanes if part.lanes == 1 else day.lanes or part.lanes
    jobs = run(part.jobs(day), until=kept, lanes=lanes, **common)
    jobs |= run(part.last(day), until=until, lanes=1, **common)
    return {
        "partial": any(job["status"] != "finished" for job in jobs.values()),
        "seconds": round(time.monotonic() - began, 1),
        "jobs": jobs,
        "figures": part.figures(day),
    }


def deadlines(parts: Sequence[str], seconds: float) -> dict[str, float]:
    """Part -> seconds from the start until it must have ended; one that ends early leaves its rest.

    >>> deadlines(["sft", "evaluate"], 310)
    {'sft': 135.0, 'evaluate': 310.0}
    """
    whole, so_far, ends = sum(PARTS[name].share for name in parts), 0.0, {}
    for name in parts:
        so_far += PARTS[name].share
        ends[name] = round(seconds * so_far / whole, 1)
    return ends


def environment_of(pack: Path) -> dict[str, str]:
    """The environment of all jobs: no network."""
    return {
        **os.environ,
        **{f"{name}_OFFLINE": "1" for name in ("HF_HUB", "HF_DATASETS", "TRANSFORMERS")},
        "NLTK_DATA": str(pack / "nltk_data"),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=9, help="for all parts (default 9)")
    parser.add_argument("--lanes", type=int, help="jobs at once where nothing is timed (default 4)")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, on a CPU as well")
    parser.add_argument("--pack", type=Path, default=PACK, help="what gpu_pack.py unpacked")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu_day.json")
    parser.add_argument("--runs", type=Path, help="folder for run folders and logs; outputs/...")
    options = parser.parse_args()
    name = "gpu-day-toy" if options.toy else "gpu-day"
    options.runs = (options.runs or REPOSITORY / "outputs" / name).absolute()
    options.output = options.output or (options.runs / "gpu_day.json" if options.toy else RESULT)
    if not options.toy and not (options.pack / "smollm2").exists():
        parser.error(f"{options.pack} has no smollm2: run benchmarks/gpu_pack.py, or give --toy")
    return options


def main() -> None:
    began, options = time.monotonic(), parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and the jobs with us
    os.chdir(REPOSITORY)
    environment = environment_of(options.pack.absolute())
    # Asked of another process: this one must not hold GPU memory.
    probe = [sys.executable, "-P", "-c", PROBE]
    machine = json.loads(subprocess.check_output(probe, env=environment, text=True))
    if not (machine["cuda"] or options.toy):
        sys.exit("There is no CUDA device here. --toy tries everything at a tiny size.")
    day = Day(
        device="cuda" if machine["cuda"] else "cpu",
        toy=options.toy,
        out=options.runs,
        lanes=options.lanes,
        pack=options.pack.absolute(),
    )
    result = json.loads(options.output.read_text()) if options.output.exists() else {"parts": {}}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    about = {**machine, "date": time.strftime("%Y-%m-%d"), "toy": options.toy}
    parts = [name for name in PARTS if name in options.parts]
    for name, end in deadlines(parts, 60 * options.minutes).items():
        part = run_part(name, day, environment, began + end)
        result["parts"][name] = {**about, **part}
        write_whole(options.output, json.dumps(result, indent=2) + "\n")
        print(f"{name}: {'partial' if part['partial'] else 'whole'}, {part['seconds']:.0f} s")
        for job, outcome in part["jobs"].items():
            says = f": {outcome['says']}" if "says" in outcome else ""
            print(f"  {job:18} {outcome['status']}, {outcome['seconds']:.0f} s{says}")
    print(options.output)


if __name__ == "__main__":
    main()
