"""Chat templates whose clock runs, that never end, fill the memory, or lose what is said."""

import datetime
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import trl
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils import chat_template_utils

from wemask.checkpoint.pretrained import load_tokenizer
from wemask.data import templates
from wemask.data.chat import ensure_chat_template
from wemask.data.templates import frozen, rendered, settle
from wemask.embedded import TINY_PATH
from wemask.errors import ModelError

KNOWN = {
    path.stem: path.read_text()
    for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
}
PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
TURNS = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]


def with_template(folder: Path, template: str) -> Path:
    shutil.copytree(TINY_PATH, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


# --- the clock ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_no_published_template_asks_the_clock_any_more(name: str) -> None:
    still = frozen(KNOWN[name])
    assert not re.search(r"strftime_now\s*\(", still)
    assert frozen(still) == still
    assert (still == KNOWN[name]) == ("strftime_now" not in KNOWN[name])


@pytest.mark.parametrize(
    ("template", "still"),
    [
        ('{{ strftime_now("%d %b %Y") }}', '{{ "26 Jul 2024" }}'),
        ("{{ strftime_now( format='%-d.%m.%Y %H:%M' ) }}", '{{ "26.07.2024 00:00" }}'),
        (
            '{% set d = strftime_now("%Y-%m-%d") %}{% if x %}{% set d = "2025-01-29" %}{% endif %}',
            '{% set d = "2025-01-29" %}{% if x %}{% set d = "2025-01-29" %}{% endif %}',
        ),
        (
            "{%- set d = strftime_now('%Y') -%}{% set d = d + '1' %}",
            "{%- set d = \"2024\" -%}{% set d = d + '1' %}",
        ),
        (PLAIN, PLAIN),
        (
            "{% if strftime_now is defined %}a{% endif %}",
            "{% if strftime_now is defined %}a{% endif %}",
        ),
    ],
)
def test_a_date_stands_in_place_of_the_clock(template: str, still: str) -> None:
    assert frozen(template) == still


@pytest.mark.parametrize(
    "call", ["'%Y' * 10**8", "'%1000000000d'", "fmt", "'%Y' + '%m'", "'" + "%Y" * 99 + "'"]
)
def test_a_clock_that_is_asked_otherwise_is_refused_unasked(call: str) -> None:
    began = time.monotonic()
    with pytest.raises(ModelError, match="asks the clock"):
        frozen(f"{{{{ strftime_now({call}) }}}}")
    assert time.monotonic() - began < 1


@given(st.text(st.sampled_from("strftime_now('%Y d)\" {}set=-"), max_size=120))
def test_what_has_no_clock_stays_as_it_is(text: str) -> None:
    if "strftime_now" not in text:
        assert frozen(text) == text


def test_two_days_are_one_text_in_training_evaluation_and_what_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = "{{ 'Today is ' + strftime_now('%d %B %Y') }}"
    folder = with_template(tmp_path / "clock", clock + PLAIN)

    def text(path: Path, day: int) -> str:
        class Day(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return cls(2026, 1, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Day)
        tokenizer = load_tokenizer(str(path))
        tokenizer.save_pretrained(tmp_path / f"saved-{day}")
        return str(tokenizer.apply_chat_template(TURNS, tokenize=False))

    templates._say_frozen.cache_clear()
    assert text(folder, 1) == text(folder, 2) == "Today is 26 July 2024user: ?</s>assistant: !</s>"
    assert text(tmp_path / "saved-1", 3) == text(folder, 4)
    assert "strftime_now" not in (tmp_path / "saved-1" / "chat_template.jinja").read_text()
    said = [record.message for record in caplog.records if "prints today's date" in record.message]
    assert len(said) == 1 and str(folder) in said[0]


# --- bad programs ---------------------------------------------------------------------------------

LOOP = "{% for i in range(99999) %}"
BAD = {
    "a range without end": ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
    "a loop in a loop": (LOOP + LOOP + "{% endfor %}{% endfor %}", "takes more than"),
    "one large text": ("{% set x = 'a' * 10**10 %}", "MemoryError"),
    "a text that doubles": (
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x * 2 %}{% endfor %}",
        "MemoryError",
    ),
    "much text": (LOOP + "{{ 'a' * 100 }}{% endfor %}", r"writes 9,999,\d+ characters"),
    "division by zero": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "recursion": ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "RecursionError"),
    "deep nesting": ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "RecursionError"),
    "a filter's own error": ("{{ messages | sum }}", "TypeError"),
}


@pytest.mark.parametrize(("template", "said"), BAD.values(), ids=BAD)
def test_a_bad_template_is_one_message_in_bounded_time_and_memory(
    template: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "SECONDS", 1)
    began = time.monotonic()
    with pytest.raises(ModelError, match=said) as error:
        load_tokenizer(str(with_template(tmp_path / "bad", template + PLAIN)))
    assert "Mend the template" in str(error.value)
    assert time.monotonic() - began < 20  # seconds on a busy machine; one of computing


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (" ", "leaves out all that is said"),
        ("hello", "writes 'hello'"),
        ("{{ messages[0]['content'] }}", "leaves out what the assistant says"),
        ("{{ messages[1]['content'] }}", "leaves out what the user says"),
    ],
)
def test_a_template_that_loses_what_is_said_is_not_trained_with(template: str, said: str) -> None:
    tokenizer = load_tokenizer("tiny")
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=said):
        ensure_chat_template(tokenizer)


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('the roles must alternate') }}", "{{ nothing.at.all }}", "{% for %}"],
)
def test_a_template_that_refuses_is_heard_where_it_is_needed(template: str) -> None:
    tokenizer = load_tokenizer("tiny")
    tokenizer.chat_template = template
    settle(tokenizer)
    assert rendered(tokenizer) is None
    assert ensure_chat_template(tokenizer) is None


@pytest.mark.parametrize("name", [name for name in KNOWN if "training" not in name])
def test_published_templates_are_within_the_bounds(name: str) -> None:
    tokenizer = load_tokenizer("tiny")
    tokenizer.chat_template = frozen(KNOWN[name])
    texts = rendered(tokenizer)
    of_parts = name in ("idefics3", "smolvlm")  # they print no content that is a text
    assert texts is None or len(set(texts)) == (1 if of_parts else 3)


def test_named_variants_are_all_frozen() -> None:
    tokenizer = load_tokenizer("tiny")
    clock = "{{ strftime_now('%Y') }}" + PLAIN
    tokenizer.chat_template = {"default": clock, "tool_use": clock}
    settle(tokenizer)
    assert {*tokenizer.chat_template.values()} == {'{{ "2024" }}' + PLAIN}
