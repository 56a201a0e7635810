"""Run one arm (a model, softened or not) over benchmarks and keep every item's result.

    results = evaluate_arm(model, tokenizer, tasks, arm="sft", folder=run_folder, fingerprint=...)
    results["gsm8k"].accuracy

Writes `<folder>/eval/<task>/samples.jsonl` and `meta.json`. A finished task is read back instead of
run again when nothing that could change its result has changed; of an unfinished one (killed) only
what is missing is run. lm_eval is imported on first use.
"""

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wemask.errors import ConfigError, RunFolderError, WemaskError
from wemask.journal import Journal
from wemask.results import write_whole
from wemask.tasks.samples import Sample, read_log
from wemask.tasks.settings import OWN_TASKS, TaskConfig, tasks_from_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from wemask.harness import WemaskLM
    from wemask.tasks.loading import LoadedTask

__all__ = [
    "OWN_TASKS",
    "Sample",
    "TaskConfig",
    "TaskResult",
    "check_tasks",
    "evaluate_arm",
    "tasks_from_config",
]

VERSIONED = ("lm_eval", "transformers", "torch", "math-verify")
# Files that decide what is asked and what counts as right; a change in one makes results stale.
SCORING = ("answers.py", "equivalence.py", "symbolic.py", "tasks/functions.py")


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One arm on one task."""

    name: str
    metric: str
    samples: list[Sample]
    seconds: float
    """Wall time of asking and scoring, when it was really run."""
    source: str
    """Dataset id, local file or generator."""
    template_sha256: str
    """Of the chat template and the first prompt; equal in two arms means equal prompts."""
    fewshot: int
    note: str | None
    """What a reader of the numbers must know, such as prompts that had to be cut."""
    path: Path
    """The samples.jsonl."""
    reused: bool
    """Read back, not run."""

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return sum(sample["correct"] for sample in self.samples) / len(self.samples)

    @property
    def extraction_failures(self) -> int:
        """Outputs in which no answer was found (they count as wrong)."""
        return sum(sample["reason"] is not None for sample in self.samples)


def check_tasks(tasks: Sequence[TaskConfig]) -> None:
    """Load every task once, so that a wrong name or file is known before hours of training.

    Raises:
        ConfigError, DataError: the problems of all tasks, together.
    """
    from wemask.tasks.loading import load_task

    problems = list[WemaskError]()
    for config in tasks:
        try:
            load_task(config, chat=config.chat is not False)
        except WemaskError as error:
            problems.append(error)
    if problems:
        raise type(problems[0])("\n".join(str(problem) for problem in problems))


def evaluate_arm(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Sequence[TaskConfig],
    *,
    arm: str,
    folder: Path,
    fingerprint: str,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, TaskResult]:
    """Run `tasks` on one arm, or read back what is finished.

    Args:
        model: causal language model, on its device, already softened where the arm is.
        tokenizer: its tokenizer.
        tasks: what to run, with different names.
        arm: name of the arm, for the samples and the progress bar.
        folder: run folder; results go to `<folder>/eval/<task>/`.
        fingerprint: text that differs whenever the model's weights or the operator differ.
        limit: use the first so many items of each task; a task's own smaller limit holds.
        batch_size: prompts per forward.
        seed: for few-shot examples that a task draws, and for tasks that sample.
        progress: show progress bars.

    Returns:
        Task name -> result, in the order of `tasks`.

    Raises:
        ConfigError, DataError: see TaskConfig and `load_task`.
        RunFolderError: the results cannot be written.
    """
    from wemask.tracing import evaluating  # torch: not for composing a config

    _check_call(tasks, limit, batch_size, fingerprint)
    results = dict[str, TaskResult]()
    with evaluating(model):
        for config in tasks:
            run = _Run(
                config=config,
                arm=arm,
                folder=folder / "eval" / config.name,
                limit=min((n for n in (limit, config.limit) if n is not None), default=None),
                seed=seed,
                chat=_wants_chat(config, tokenizer),
            )
            lm = run.wrap(model, tokenizer, batch_size=batch_size, progress=progress)
            results[config.name] = _evaluate(run, lm, fingerprint)
    return results


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One arm on one task, decided but not run."""

    config: TaskConfig
    arm: str
    folder: Path
    limit: int | None
    seed: int
    chat: bool

    def wrap(self, model: Any, tokenizer: Any, *, batch_size: int, progress: bool) -> "WemaskLM":
        from wemask.harness import WemaskLM

        label = f"{self.config.name} [{self.arm}]"
        return WemaskLM(
            model,
            tokenizer,
            batch_size=batch_size,
            chat=self.chat,
            progress=progress,
            label=label,
        )


def _check_call(
    tasks: Sequence[TaskConfig], limit: int | None, batch_size: int, fingerprint: str
) -> None:
    problems = list[str]()
    if limit is not None and (type(limit) is not int or limit < 1):
        problems.append(f"limit is a whole number >= 1 or null, got {limit!r}.")
    if type(batch_size) is not int or batch_size < 1:
        problems.append(f"batch_size is a whole number >= 1, got {batch_size!r}.")
    if not fingerprint:
        problems.append("fingerprint is empty: finished results of another model would be reused.")
    names = [config.name for config in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        problems.append(f"Tasks named twice: {', '.join(twice)}.")
    if problems:
        raise ConfigError("\n".join(problems))


def _wants_chat(config: TaskConfig, tokenizer: "PreTrainedTokenizerBase") -> bool:
    has_template = bool(tokenizer.chat_template)
    if config.chat and not has_template:
        raise ConfigError(
            f"tasks.{config.name}.chat is true, but the tokenizer has no chat template. "
            f"Type tasks.{config.name}.chat=false, or give the tokenizer a template."
        )
    return has_template if config.chat is None else config.chat


def _evaluate(run: _Run, lm: "WemaskLM", fingerprint: str) -> TaskResult:
    from wemask.harness import run_task
    from wemask.tasks.loading import load_task

    loaded = load_task(run.config, chat=run.chat)
    key = _key(run, lm, loaded, fingerprint)
    finished = _read_finished(run, key)
    if finished is not None:
        return finished
    lm.journal = Journal(run.folder / "unfinished.jsonl", key)
    start = time.perf_counter()
    logged = run_task(lm, loaded, limit=run.limit, seed=run.seed)
    metric, samples = read_log(logged, run.config, arm=run.arm, own=loaded.own, sent=lm.sent)
    result = {
        "metric": metric,
        "seconds": round(time.perf_counter() - start, 3),
        "source": loaded.source,
        "template_sha256": key["template_sha256"],
        "fewshot": loaded.fewshot,
        "note": _note(lm, loaded),
    }
    path = _write(run.folder, samples, {"key": key, "result": result})
    lm.journal.remove()
    return TaskResult(name=run.config.name, samples=samples, path=path, reused=False, **result)


def _key(run: _Run, lm: "WemaskLM", loaded: "LoadedTask", fingerprint: str) -> dict[str, Any]:
    """Everything that could change the result; the path of a file does not, its items do."""
    from wemask.harness import describe

    about = describe(lm, loaded, limit=run.limit, seed=run.seed)
    settings = {k: v for k, v in asdict(run.config).items() if k not in ("path", "limit")}
    package = Path(__file__).parent
    template = [about["chat_template"], about["prompts"]]
    return {
        "arm": run.arm,
        "fingerprint": fingerprint,
        "task": settings,
        "limit": run.limit,
        "seed": run.seed,
        "n": len(about["items"]),
        "items_sha256": _sha256("\n".join(about["items"])),
        "template_sha256": _sha256(json.dumps(template)),
        "chat_template_sha256": _sha256(about["chat_template"] or ""),
        "generation": json.loads(json.dumps(loaded.decoding(), default=str)),
        "batch_size": lm.batch_size,
        "dtype": str(lm.model.dtype),
        "device": lm.device.type,
        "scoring_sha256": _sha256("".join((package / file).read_text("utf-8") for file in SCORING)),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
    }


def _note(lm: "WemaskLM", loaded: "LoadedTask") -> str | None:
    """Say what limits the numbers: prompts that were cut, outputs that had too little room."""
    notes = list[str]()
    sent = list(lm.sent.values())
    cut = sum(item.cut for item in sent) + lm.shortened
    if cut:
        notes.append(
            f"{cut} prompts did not fit into the model's context of {lm.max_length} tokens and "
            "lost their beginning"
        )
    asked = max(settings.get("max_gen_toks", lm.max_gen_toks) for settings in loaded.decoding())
    tight = sorted({item.budget for item in sent if item.budget < asked})
    if tight:
        count = sum(item.budget < asked for item in sent)
        notes.append(
            f"{count} outputs could have {tight[0]} tokens instead of {asked}: "
            f"the model's context is {lm.max_length}"
        )
    unfinished = sum(not item.finished for item in sent)
    if unfinished:
        notes.append(f"{unfinished} of {len(sent)} outputs ran into their limit")
    return "; ".join(notes) or None


def _write(folder: Path, samples: list[Sample], meta: dict[str, Any]) -> Path:
    """Write samples.jsonl, then meta.json: only a finished task has a meta.json that matches."""
    path = folder / "samples.jsonl"
    text = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
        meta["samples_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        write_whole(folder / "meta.json", json.dumps(meta, indent=2) + "\n")
    except OSError as error:
        raise RunFolderError(f"The results cannot be written to {folder}: {error}.") from error
    return path


def _read_finished(run: _Run, key: dict[str, Any]) -> TaskResult | None:
    """Return the stored result when it is whole and was made under the same `key`."""
    path, meta_path = run.folder / "samples.jsonl", run.folder / "meta.json"
    if not (path.is_file() and meta_path.is_file()):
        return None
    content = path.read_bytes()
    try:
        meta = json.loads(meta_path.read_text("utf-8"))
    except ValueError:  # half written by something else than us: as good as none
        return None
    whole = meta.get("samples_sha256") == hashlib.sha256(content).hexdigest()
    if not whole or meta.get("key") != key:
        return None
    samples = [json.loads(line) for line in content.decode("utf-8").split("\n") if line]
    result = meta["result"]
    return TaskResult(name=run.config.name, samples=samples, path=path, reused=True, **result)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
