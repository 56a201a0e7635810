"""Chat templates are programs of strangers: their clock is stopped, and they are tried in bounds.

A template that prints today's date would make another text, and another hash, of arms that are
trained and evaluated on different days. One that never ends, or fills the memory, would stop us
wherever it is first rendered.
"""

import functools
import json
import logging
import multiprocessing
import re
import resource
import signal
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from wemask.distributed import is_main
from wemask.errors import ModelError

logger = logging.getLogger(__name__)

# The day that Llama 3's own template names where it has no clock.
DAY = datetime(2024, 7, 26)
# A call with a plain format: `%100000000d`, which strftime takes, would run for minutes.
CLOCK = re.compile(
    r"""strftime_now\s*\(\s*(?:format\s*=\s*)?(['"])((?:%-?[A-Za-z%]|[^%'"\\]){1,80})\1\s*\)"""
)
SECONDS = 5  # of computing, for three conversations of two turns: real templates take 0.01
PATIENCE = 60  # seconds by the clock: the child may have to wait for a processor
MEMORY = 2**28  # bytes more than the process has
LONGEST = 10**6  # characters of such a conversation
USER, ANSWERS = ("Name a city.", "Name a river."), ("Paris.", "Rome it is.")
WAY_OUT = (
    "Mend the template (chat_template.jinja or tokenizer_config.json), or take it away: a plain "
    "one is used then."
)


def settle(tokenizer: Any) -> None:
    """Stop the clock of a tokenizer's chat template, and see that it ends; nothing if it has none.

    Raises:
        ModelError: its clock cannot be stopped, or see `rendered`.
    """
    own = getattr(tokenizer, "chat_template", None)
    if not own:
        return
    name = str(tokenizer.name_or_path or type(tokenizer).__name__)
    if isinstance(own, dict):  # named variants
        tokenizer.chat_template = {key: frozen(text, name) for key, text in own.items()}
    else:
        tokenizer.chat_template = frozen(own, name)
    if tokenizer.chat_template != own and is_main():
        _say_frozen(name)
    rendered(tokenizer)


def frozen(template: str, name: str = "this model") -> str:
    """A template with dates in place of its clock: its own default, else `DAY` in its format.

    Raises:
        ModelError: it asks the clock in a way that is not understood.
    """

    def literal(call: re.Match[str]) -> str:
        variable = re.search(r"set\s+(\w+)\s*=\s*$", template[: call.start()])
        if variable:  # {% set date = strftime_now(...) %} here, {% set date = "1 Jan 2025" %} there
            default = rf"""set\s+{variable[1]}\s*=\s*((['"])[^'"\\]*\d[^'"\\]*\2)\s*-?%}}"""
            if found := re.search(default, template):
                return found[1]
        return f'"{DAY.strftime(call[2])}"'

    still = CLOCK.sub(literal, template)
    if left := re.search(r"strftime_now\s*\([^\n)]{,60}\)?", still):
        raise ModelError(
            f"The chat template of {name} asks the clock by {left[0]!r}, which cannot be stopped: "
            "each day would have another text. Write a date in its place."
        )
    return still


def rendered(tokenizer: Any) -> list[str] | None:
    """Two questions with one answer, then the first with another, as the template writes them.

    Made in a process of bounded time and memory, so that a bad template ends there. None: it takes
    no such conversation; where it is needed, it is asked again.

    Raises:
        ModelError: it takes too long, too much memory or too much room, or fails.
    """
    name = tokenizer.name_or_path or type(tokenizer).__name__
    made = _in_bounds(functools.partial(_render, tokenizer))
    if isinstance(made, str):
        raise ModelError(f"The chat template of {name} {made}. {WAY_OUT}")
    return made


def check_answers(tokenizer: Any) -> None:
    """Raise ModelError where the template makes the same of different conversations."""
    texts = rendered(tokenizer)
    if texts is None or len(set(texts)) == len(texts):
        return
    lost = "what the assistant says" if texts[0] != texts[1] else "what the user says"
    if len(set(texts)) == 1:
        lost = f"all that is said, and writes {texts[0][:60]!r}"
    name = tokenizer.name_or_path or type(tokenizer).__name__
    raise ModelError(f"The chat template of {name} leaves out {lost}. {WAY_OUT}")


@functools.cache
def _say_frozen(name: str) -> None:
    logger.warning(
        "The chat template of %s prints today's date. It is frozen to a fixed one, in training and "
        "evaluation alike and in what is saved: else each day would have another text.",
        name,
    )


def _render(tokenizer: Any) -> list[str] | str | None:
    """The conversations, or what is wrong."""
    texts = list[str]()
    for user, answer in ((USER[0], ANSWERS[0]), (USER[1], ANSWERS[0]), (USER[0], ANSWERS[1])):
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        try:
            texts.append(tokenizer.apply_chat_template(turns, tokenize=False))
        except TemplateError:
            return None
        except Exception as error:  # a template is a program: what it raises is its own
            said = " ".join(f"{type(error).__name__} {error}".split())[:200]
            return f"fails on a conversation of two turns ({said})"
        if len(texts[-1]) > LONGEST:
            return f"writes {len(texts[-1]):,} characters for a conversation of two turns"
    return texts


def _in_bounds(render: Callable[[], Any]) -> Any:
    """What `render` returns (plain values) in a child of this process; a text if it did not end."""
    fork = multiprocessing.get_context("fork")  # a new interpreter would import for seconds
    here, there = fork.Pipe(duplex=False)
    child = fork.Process(target=_child, args=(render, there), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads (Python 3.12): the child uses none of them
        child.start()
    there.close()
    try:
        if here.poll(PATIENCE):
            return json.loads(here.recv_bytes())
    except EOFError:  # it was ended
        child.join()
        if child.exitcode != -signal.SIGXCPU:
            return f"ends the process that renders it (exit code {child.exitcode})"
    finally:
        child.kill()
        child.join()
        here.close()
    return f"takes more than {SECONDS} s for a conversation of two turns"


def _child(render: Callable[[], Any], there: Any) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    for kind, most in (
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, hard))
    there.send_bytes(json.dumps(render()).encode())
