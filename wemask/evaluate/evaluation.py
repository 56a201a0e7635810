"""Run one arm (a model, softened or not) over benchmarks and keep every item's result.

    results = evaluate_arm(model, tokenizer, tasks, arm="sft", folder=run_folder, fingerprint=...)
    results["gsm8k"].accuracy

Writes `<folder>/eval/<task>/samples.jsonl` and `meta.json`. A finished task is read back instead of
run again when nothing that could change its result has changed; of an unfinished one (killed) only
what is missing is run. lm_eval is imported on first use.
"""

import functools
import hashlib
import importlib.metadata
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wemask.errors import ConfigError, DataError, WemaskError
from wemask.evaluate.journal import Journal
from wemask.evaluate.tasks.samples import Sample, Sent, read_log
from wemask.evaluate.tasks.stored import (
    DAMAGED,
    META,
    SAMPLES,
    TaskResult,
    read_result,
    set_aside,
    write_result,
)
from wemask.evaluate.tasks.task_config import OWN_TASKS, TaskConfig, tasks_from_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from wemask.evaluate.harness import WemaskLM
    from wemask.evaluate.tasks.loading import LoadedTask

Load = Callable[..., "LoadedTask"]
"""From a TaskConfig and `chat` to the task with its data."""

__all__ = [
    "OWN_TASKS",
    "Sample",
    "TaskConfig",
    "TaskResult",
    "check_tasks",
    "evaluate_arm",
    "read_result",
    "tasks_from_config",
]

VERSIONED = ("lm_eval", "transformers", "torch", "math-verify")
# Files that decide what is asked and what counts as right; a change in one makes results stale.
SCORING = (
    "scoring/answers.py",
    "scoring/equivalence.py",
    "scoring/refusal_words.txt",
    "scoring/refusals.py",
    "scoring/symbolic.py",
    "scoring/thoughts.py",
    "scoring/units.py",
    "tasks/functions.py",
    "tasks/judging.py",
    "tasks/local.py",
    "tasks/samples.py",
    "tasks/xstest.py",
)


def check_tasks(tasks: Sequence[TaskConfig]) -> "Load":
    """Load every task, so that a wrong name or file is known before hours of training.

    Returns:
        `load_task` that remembers what it has loaded: for every arm that is asked these tasks.

    Raises:
        ConfigError, DataError: the problems of all tasks, together.
    """
    from wemask.evaluate.tasks.loading import load_task

    load, problems = functools.cache(load_task), list[WemaskError]()
    for config in tasks:
        try:
            load(config, chat=config.chat is not False)
            if config.judge is not None:
                from wemask.evaluate.tasks.judging import check_judge

                check_judge(config.judge)
        except WemaskError as error:
            problems.append(error)
    if problems:
        raise type(problems[0])("\n".join(str(problem) for problem in problems))
    return load


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
    about: Mapping[str, Any] | None = None,
    load: "Load | None" = None,
    say: Callable[[str], None] = print,
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
        about: what else to say of the arm; kept as it is in every meta.json, and without influence
            on what is run. A finished result keeps what it has, unless it has nothing.
        load: what `check_tasks` returned, so that no task is loaded twice.
        say: for a line about a generation_config, or damaged results, that are set aside.

    Returns:
        Task name -> result, in the order of `tasks`.

    Raises:
        ConfigError, DataError: see TaskConfig and `load_task`.
        RunFolderError: the results cannot be written.
    """
    from wemask.decoder.passage import evaluating  # torch: not for composing a config
    from wemask.evaluate.harness import WemaskLM, set_aside_words
    from wemask.evaluate.tasks.loading import load_task

    _check_call(tasks, limit, batch_size, fingerprint, about)
    if aside := set_aside_words(model):
        say(f"{arm}: {aside}.")
    results = dict[str, TaskResult]()
    with evaluating(model):
        for config in tasks:
            chat = _wants_chat(config, tokenizer)
            run = _Run(
                config=config,
                arm=arm,
                fingerprint=fingerprint,
                folder=folder / "eval" / config.name,
                limit=min((n for n in (limit, config.limit) if n is not None), default=None),
                seed=seed,
                about=dict(about or {}),
                lm=WemaskLM(model, tokenizer, batch_size=batch_size, chat=chat, progress=progress),
                loaded=(load or load_task)(config, chat=chat),
                say=say,
            )
            results[config.name] = _evaluate(run)
    return results


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One arm on one task, ready to be asked."""

    config: TaskConfig
    arm: str
    fingerprint: str
    folder: Path
    limit: int | None
    seed: int
    about: dict[str, Any]
    lm: "WemaskLM"
    loaded: "LoadedTask"
    say: Callable[[str], None]


def _check_call(
    tasks: Sequence[TaskConfig], limit: Any, batch_size: Any, fingerprint: str, about: Any
) -> None:
    problems = list[str]()
    if limit is not None and (type(limit) is not int or limit < 1):
        problems.append(f"limit is a whole number >= 1 or null, got {limit!r}.")
    if type(batch_size) is not int or batch_size < 1:
        problems.append(f"batch_size is a whole number >= 1, got {batch_size!r}.")
    if not fingerprint:
        problems.append("fingerprint is empty: finished results of another model would be reused.")
    twice = [name for name, n in Counter(config.name for config in tasks).items() if n > 1]
    if twice:
        problems.append(f"Tasks named twice: {', '.join(sorted(twice))}.")
    try:
        json.dumps(about)
    except (TypeError, ValueError) as error:  # known now, not after hours
        problems.append(f"about holds something that JSON cannot: {error}.")
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


def _evaluate(run: _Run) -> TaskResult:
    key = _key(run)
    finished = _read_finished(run, key)
    if finished is not None:
        return finished
    run.lm.journal = journal = Journal(run.folder / "unfinished.jsonl", key, run.say)
    start = time.perf_counter()
    metric, samples, notes = _ask(run)
    if run.config.judge is not None:
        from wemask.evaluate.tasks.judging import judge_samples

        questions = run.loaded.questions()
        samples, unread = judge_samples(samples, questions, run.config.judge, like=run.lm)
        notes += unread
    result = TaskResult(
        name=run.config.name,
        metric=metric,
        samples=samples,
        seconds=round(journal.seconds + time.perf_counter() - start, 3),
        source=run.loaded.source,
        template_sha256=key["template_sha256"],
        fewshot=run.loaded.fewshot,
        note="; ".join([*filter(None, [run.loaded.note]), *notes]) or None,
        path=run.folder / SAMPLES,
        reused=False,
        conditions=key,
        about=run.about,
    )
    write_result(result)
    journal.remove()
    return result


def _ask(run: _Run) -> tuple[str, list[Sample], list[str]]:
    """Ask every item `n_samples` times; return the metric, the samples and notes on the outputs."""
    from wemask.evaluate.harness import run_task

    metric, passes, sent = "", list[list[Sample]](), list[Sent]()
    lm, loaded, config, n = run.lm, run.loaded, run.config, run.config.n_samples
    for draw in range(n):
        lm.label = f"{config.name} [{run.arm}]" + (f" {draw + 1}/{n}" if n > 1 else "")
        logged = run_task(lm, loaded, limit=run.limit, seed=run.seed, draw=draw)
        metric, samples = read_log(
            logged, config, arm=run.arm, own=loaded.own, sent=lm.sent, draw=draw
        )
        passes.append(samples)
        sent += lm.sent.values()
    by_item = [sample for draws in zip(*passes, strict=True) for sample in draws]
    return metric, by_item, _notes(lm, loaded, sent)


def _key(run: _Run) -> dict[str, Any]:
    """Everything that could change the result; the path of a file does not, its items do."""
    from wemask.evaluate.harness import prompts_and_items

    about = prompts_and_items(run.lm, run.loaded, limit=run.limit, seed=run.seed)
    package = Path(__file__).parent
    return {
        "arm": run.arm,
        "fingerprint": run.fingerprint,
        "task": {k: v for k, v in asdict(run.config).items() if k not in ("path", "limit")},
        "limit": run.limit,
        "seed": run.seed,
        "n": len(about["items"]),
        "items_sha256": _sha256("\n".join(about["items"])),
        "template_sha256": _sha256(json.dumps([about["chat_template"], about["prompts"]])),
        "chat_template_sha256": _sha256(about["chat_template"] or ""),
        "generation": json.loads(json.dumps(run.loaded.decoding(), default=str)),
        "batch_size": run.lm.batch_size,
        "dtype": str(run.lm.model.dtype),
        "device": run.lm.device.type,
        "scoring_sha256": _sha256("".join((package / file).read_text("utf-8") for file in SCORING)),
        **_judge_key(run.config),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
    }


def _judge_key(config: TaskConfig) -> dict[str, Any]:
    """Weights of a judge in a folder: training it again makes its verdicts stale."""
    if config.judge is None or not Path(config.judge).is_dir():
        return {}
    files = sorted(Path(config.judge).glob("*.safetensors"))
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return {"judge_sha256": _sha256(json.dumps(stats))}


def _notes(lm: "WemaskLM", loaded: "LoadedTask", sent: Sequence[Sent]) -> list[str]:
    """Say what limits the numbers: prompts that were cut, outputs that had too little room."""
    from wemask.evaluate.harness import set_aside_words

    aside = set_aside_words(lm.model)
    notes = [aside] if aside and sent else []
    cut = sum(item.cut for item in lm.sent.values()) + lm.shortened
    if cut:
        notes.append(
            f"{cut} prompts did not fit into the model's context of {lm.max_length} tokens and "
            "lost their beginning"
        )
    asked = max(settings.get("max_gen_toks", lm.max_gen_toks) for settings in loaded.decoding())
    tight = [item.budget for item in sent if item.budget < asked]
    if tight:
        notes.append(
            f"{len(tight)} outputs could have {min(tight)} tokens instead of {asked}: "
            f"the model's context is {lm.max_length}"
        )
    unfinished = sum(not item.finished for item in sent)
    if unfinished:
        notes.append(f"{unfinished} of {len(sent)} outputs ran into their limit")
    return notes


def _read_finished(run: _Run, key: dict[str, Any]) -> TaskResult | None:
    """Return the stored result when it is whole and was made under the same `key`."""
    if not (run.folder / META).exists():  # written last
        return None
    try:
        result = read_result(run.folder)
    except DataError as error:
        run.say(f"{error} What is there is kept as *{DAMAGED}.")
        set_aside(run.folder)
        return None
    if result.conditions != key:
        return None
    if run.about and not result.about:
        result = replace(result, about=run.about)
        write_result(result)
    return result


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
