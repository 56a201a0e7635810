"""Read the answer out of a response and judge it: mathematics, and refusals.

Only the response and the gold are looked at; a gold is never searched for in a response, so a
wrong answer cannot pass because it contains the right one. The response must be the model's own
text alone: cut the prompt off, and cut at the stop sequences, before judging.
"""

import re
from collections import deque
from dataclasses import dataclass

from wemask.errors import DataError
from wemask.evaluate.scoring.equivalence import (
    DECIMAL,
    MAX_LENGTH,
    clean,
    equivalent,
    plain_number,
)
from wemask.evaluate.scoring.refusals import is_refusal
from wemask.evaluate.scoring.thoughts import spoken

__all__ = [
    "Extraction",
    "Verdict",
    "extract_answer",
    "is_correct",
    "is_refusal",
    "judge",
    "matches",
]

_BOX = re.compile(r"\\(?:f?boxed|fbox)\s*\{")
_BRACES = re.compile(r"\\(?:f?boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"####+[ \t]*([^\n]*)")
_STARTS_AS_NUMBER = re.compile(r"[\s$\\({\[*+-]*(?:\d|\.\d|\\(?![bf]box)[a-zA-Z(]|[€£¥₹]|[-(\[{])")
_HEADING = re.compile(r"\s*\d+[.):]\s+[A-Za-z*]")
_STATED = re.compile(
    r"\banswer(?: choice| option)?(?: to (?:the|this|your) (?:question|problem))?"
    r"[ \t]{0,3}(?:\s?(?:is|are|equals)\b[ \t]{0,3}:?|[:=])",
    re.IGNORECASE,
)
SHORT = 40  # characters of a response that is an answer and no more
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_CLAUSE = re.compile(r",? (?:because|since|as|so|which|where|that is|thus|therefore|for)\b")
_NEGATED = re.compile(r"\b(?:not|never|neither|isn't|cannot)\b|n't\b", re.IGNORECASE)
_CHANGED = re.compile(
    r"\b(?:half|third|quarter|twice|square|root|cube|negative|minus|at (?:least|most)"
    r"|(?:more|less|greater|fewer) than)\b",
    re.IGNORECASE,
)
_ANNOTATION = re.compile(r"<<[^<>\n]{0,200}>>")  # GSM8K's calculator marks
_LAST_NUMBER = re.compile(
    rf"(?<![\w.,^{{])(?:[-+−]?\\?[$€£]?|\\?[$€£]?[-−])(?:{DECIMAL}\s?[¼-¾⅐-⅞]?|[¼-¾⅐-⅞])"
    rf"(?:\s?/\s?(?:{DECIMAL})|e[-+]?\d+|(?:\s?(?:\\times|[x×*])\s?10)?\^(?:\{{-?\d+\}}|-?\d+))?%?"
    r"(?:\s?(?:hundred|thousand|lakh|million|crore|billion|trillion)s?\b)*"
    r"|-?\\[dtc]?frac\s?(?:\{[^{}]{0,40}\}|\d)\s?(?:\{[^{}]{0,40}\}|\d)",
    re.ASCII,
)
_WIDE = str.maketrans("０１２３４５６７８９．，", "0123456789.,")
# What may stand between two boxes that are one answer: \boxed{2} and $x=\boxed{-3}$
_NEXT_BOX = re.compile(
    r"\}[\s$]*(?:\\[)\]]\s*)?"
    r"(?:[,;]|[,;]?\s*(?:\\text\s*\{\s*)?(?:and|or)\b\s*\}?)"
    r"(?:[\s$]|\\q?quad|\\[,;:])*(?:\\[(\[]\s*)?(?:[A-Za-z](?:_\{?\w\}?)?\s*=\s*)?\\f?box(?:ed)?\s*\{"
)
_MATH_SPAN = re.compile(
    r"\$\$([^$]{1,400})\$\$|\$([^$\n]{1,400})\$|\\\((.{1,400}?)\\\)|\\\[(.{1,400}?)\\\]"
)


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """The answer that a response gives."""

    value: str | None  # as written, without markers and delimiters; None when there is none
    reason: str  # where the value stood, or why there is none


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """An extraction held against the gold."""

    correct: bool
    value: str | None  # Extraction.value
    reason: str  # Extraction.reason, and why the comparison gave up when it did


def extract_answer(response: str) -> Extraction:
    r"""Return the answer of `response`, from the first of these that it has.

    1. the last non-empty `\boxed{...}` or `#### ...`, whichever comes later;
    2. the last "the answer is ..." or "Answer: ...";
    3. all of it, where that is a few words that begin with a number: "60 F";
    4. the last number, with the whole formula when it stands in one.
    Boxes that a comma, "and" or "or" joins are one answer, a list. Thoughts are not looked at.
    A response whose boxes are all empty or never closed, or whose `####` is followed by nothing,
    has no answer: nothing else is tried. Any string is accepted; raises DataError on another type.
    """
    if not isinstance(response, str):
        raise DataError(
            f"A response must be a str, found {type(response).__name__}. "
            "An item without output is the empty string ''."
        )
    if not response.strip():
        return Extraction(value=None, reason="empty response")
    response = spoken(response).translate(_WIDE)
    if not response.strip():
        return Extraction(value=None, reason="unfinished thought")
    marked = _marked(response)
    if marked is not None:
        return marked
    text = _ANNOTATION.sub("", response).replace("**", "")
    return _stated(text) or _alone(text) or _last_number(text)


def judge(response: str, gold: str | int | float) -> Verdict:
    r"""Compare the answer of `response` with `gold`; conventions in equivalence.py.

    `gold` is an answer ("18", r"\frac{1}{2}", 18) or a text that ends in one after `####` or in
    a box. Raises DataError when it is empty or not such a value; never on any response string.
    """
    target = _gold_answer(gold)
    found = extract_answer(response)
    if found.value is None:
        return Verdict(correct=False, value=None, reason=found.reason)
    same, note = equivalent(target, found.value)
    reason = f"{found.reason}; {note}" if note else found.reason
    return Verdict(correct=same, value=found.value, reason=reason)


def is_correct(response: str, gold: str | int | float) -> bool:
    """Return whether `response` gives the answer `gold`; see `judge`, which also says why."""
    return judge(response, gold).correct


def matches(value: str | None, gold: str | int | float) -> bool:
    """Return whether `value`, an extracted answer, is `gold`; see `judge`."""
    target = _gold_answer(gold)
    return value is not None and equivalent(target, value)[0]


def _gold_answer(gold: str | int | float) -> str:
    if isinstance(gold, bool) or not isinstance(gold, (str, int, float)):
        raise DataError(f"A gold answer must be a str or a number, found {type(gold).__name__}.")
    text = str(gold)
    if "####" in text:
        answer = text.rpartition("####")[2]
    else:
        closed = [span for span in _boxes(text) if span[1] is not None]
        answer = text[slice(*max(closed))] if closed else text
    if not clean(answer) or text in ("nan", "inf", "-inf"):
        raise DataError(
            f"The gold answer is empty or not a number: {text[:80]!r}. Give the answer itself, "
            "or a text that ends in '#### ANSWER' or \\boxed{ANSWER}."
        )
    return answer


def _marked(response: str) -> Extraction | None:
    """Look for boxes and #### marks; None when there is no mark at all."""
    boxes, hashes = _boxes(response), _hash_marks(response)
    marks = [(*span, "boxed") for span in boxes] + [(*span, "after ####") for span in hashes]
    for begin, end, reason in sorted(marks, key=lambda mark: mark[0], reverse=True):
        text = response[begin:end]
        if end is None or not (len(text) > MAX_LENGTH or clean(text)):
            continue
        if reason == "after ####":
            text = _tidy(_ANNOTATION.sub("", text).replace("**", ""))
        if reason == "boxed":
            text = _joined(response, boxes, (begin, end))
        return Extraction(value=text.strip(), reason=reason)
    if any(end is None for _, end in boxes):
        return Extraction(value=None, reason="unclosed box")
    if boxes:
        return Extraction(value=None, reason="empty box")
    return Extraction(value=None, reason="nothing after ####") if hashes else None


def _boxes(text: str) -> list[tuple[int, int | None]]:
    """Return (begin, end) of what every box holds, end None for one never closed.

    One pass over the braces, whatever their number and depth.
    """
    if not _BOX.search(text):
        return []
    stack: list[int | None] = []  # where the content of an open box begins; None: another brace
    boxes: list[tuple[int, int | None]] = []
    for token in _BRACES.finditer(text):
        if _BOX.fullmatch(token[0]):
            stack.append(token.end())
        elif token[0] == "{":
            stack.append(None)
        elif token[0] == "}" and stack and (begin := stack.pop()) is not None:
            boxes.append((begin, token.start()))
    return boxes + [(begin, None) for begin in stack if begin is not None]


def _joined(text: str, boxes: list[tuple[int, int | None]], last: tuple[int, int]) -> str:
    r"""Return what `last` holds, behind the boxes it ends the list of: \boxed{2} or \boxed{-3}."""
    parts = [text[slice(*last)]]
    for begin, end in sorted(boxes, reverse=True):
        if end is not None and _NEXT_BOX.fullmatch(text, end, last[0]):
            last = (begin, end)
            parts.append(text[begin:end])
    return ", ".join(dict.fromkeys(reversed(parts)))


def _hash_marks(response: str) -> list[tuple[int, int]]:
    """Return (begin, end) of the line after every #### that marks an answer, not a heading."""
    last = len(response.rstrip())
    return [
        match.span(1)
        for match in _HASHES.finditer(response)
        if match.end() >= last
        or (_STARTS_AS_NUMBER.match(match[1]) and not _HEADING.match(match[1]))
    ]


def _stated(text: str) -> Extraction | None:
    """Read "the answer is X"; None when nothing that looks like an answer is stated."""
    last = _last_match(_STATED, text)
    if last is None:
        return None
    tail = text[last.end() : last.end() + 400].lstrip()
    end = _SENTENCE_END.search(tail)
    value = _tidy(tail[: end.start()] if end else tail)
    if not clean(value) or (len(value.split()) > 3 and not re.search(r"[\d\\]", value)):
        return None
    return Extraction(value=value, reason="stated as the answer")


def _alone(text: str) -> Extraction | None:
    """Read a response that is an answer and no more; the last number of it would lose its unit."""
    value = text.strip()
    if len(value) > SHORT or "\n" in value or not _STARTS_AS_NUMBER.match(value):
        return None
    told = len(_LAST_NUMBER.findall(value)) > 1 and re.search(r"[A-Za-z]{2,}", value)
    if told and not _NEGATED.search(value):  # "3 weeks is 21 days": a sentence, with a result
        return None
    return Extraction(value=_tidy(value.rstrip(".!")), reason="all of the response")


def _tidy(value: str) -> str:
    """Reduce a phrase to the answer in it: "$9 a day, because ..." -> "$9 a day"."""
    value = _CLAUSE.split(value.strip(), maxsplit=1)[0].strip()
    span = _MATH_SPAN.match(value)
    formula = _formula(span) if span else None
    if span and formula and not re.search(r"[\d\\]|\bor\b", value[span.end() :]):
        return formula  # else there is more to the answer than its first formula
    if plain_number(value) is not None or "\\" in value or _NEGATED.search(value):
        return value
    if _CHANGED.search(value):  # "half of 18" is not 18
        return value
    numbers = [match[0] for match in _LAST_NUMBER.finditer(value)]
    is_prose = len(re.findall(r"[A-Za-z]{2,}", value)) >= 2
    return numbers[0] if is_prose and len(numbers) == 1 else value


def _formula(span: re.Match[str]) -> str | None:
    """Return what is between the delimiters; None for prose between two dollar amounts."""
    inner = next(group for group in span.groups() if group is not None).strip()
    return None if re.search(r"(?<![\\a-zA-Z{])[a-z]{2,}(?![a-zA-Z(}])", inner) else inner


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = deque(pattern.finditer(text), maxlen=1)
    return last[0] if last else None


def _last_number(text: str) -> Extraction:
    """Read the last number, or the right-hand side of the formula that it stands in."""
    last = _last_match(_LAST_NUMBER, text)
    if last is None:
        return Extraction(value=None, reason="no number found")
    window = max(0, last.start() - 400)
    for span in _MATH_SPAN.finditer(text, window, last.end() + 400):
        formula = _formula(span)
        if formula and span.start() <= last.start() and last.end() <= span.end():
            return Extraction(value=formula.rpartition("=")[2].strip(), reason="last formula")
    return Extraction(value=last[0].strip().rstrip("."), reason="last number")
