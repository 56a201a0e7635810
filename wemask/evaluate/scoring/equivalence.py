"""Is one mathematical answer the same as another? Exact for numbers, math-verify for the rest.

Conventions (those of GSM8K's and MATH's own checkers where they have one):
- plain numbers are exact rationals: 1/2 == 0.5 == 0.50, -0 == 0, 1,234 == 1234, 1e3 == 1000,
  1 1/2 == 3/2, 5 million == 5000000, 7:00 == 7; 1/3 != 0.333 and 0.1 != 0.1000001;
- a percent sign, a currency and degrees are units: 50% == 50, so 50% != 0.5; $18 == 18;
- a unit may be left out, but two different known units differ: 5 cm == 5, 5 cm != 5 m;
- words are compared as words, ignoring case; a single letter keeps its case: (C) == C, x != X;
- the base of a numeral may be left out where the gold has it: 52_8 == 52, 52_8 != 52_9;
- a bare list is a set, as in MATH ("1,-2" == "-2,1"); pairs and intervals are ordered.
"""

import re
from fractions import Fraction
from itertools import accumulate

from wemask.evaluate.scoring.symbolic import NOT_MATHEMATICS, symbolically_equal

MAX_NUMBER = 400  # characters; longer digit strings are compared as text
MAX_SYMBOLIC = 600  # characters given to the symbolic comparison
MAX_LENGTH = 2000  # characters; longer answers are compared as they stand

_UNICODE = str.maketrans(
    dict.fromkeys("−–—‐‑﹣－", "-")
    | dict.fromkeys("\u00a0\u2009\u202f\u200b\u2062\t\r\n", " ")
    | {"×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/"}
    | {"π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "±": r"\pm ", "％": "%"}
    | {"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in "}
    | {"²": "^2", "³": "^3", "½": " 1/2", "¼": " 1/4", "¾": " 3/4", "，": ",", "’": "'"}
)
_SPACING = re.compile(
    r"(?<!\\)\\[!,;:]\s*|\\(?:left|right|[bB]ig+[lr]?|displaystyle|mathstrut)(?![a-zA-Z])"
)
_BLANK = re.compile(r"(?<!\\)\\(?=\s|$)|\\q?quad(?![a-zA-Z])|~|\s+")
_DELIMITERS = [("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`")]
_TEXT = re.compile(
    r"\\(?:text(?:rm|bf|it|sf|tt|normal)?|mbox|mathrm|mathbf|mathit|rm)\s*\{([^{}]*)\}"
)

# Known units; the value is what makes two units the same.
_UNITS = {
    alias: names.split()[0]
    for names in (
        "mm millimeter millimetre", "cm centimeter centimetre", "m meter metre",
        "km kilometer kilometre", "in inch inche", "ft foot feet", "yd yard", "mi mile",
        "mg milligram", "g gram", "kg kilogram", "lb pound", "oz ounce", "ml milliliter millilitre",
        "l liter litre", "gal gallon", "s sec second", "min minute", "h hr hour", "day", "week",
        "month", "yr year", "dollar usd buck", "cent", "euro eur", "mph", "am a.m", "pm p.m",
    )
    for alias in names.split()
}  # fmt: skip
_POWERS = {"2": "2", "3": "3", "sq": "2", "cu": "3"}
_UNIT_FILLERS = {"square", "sq", "cubic", "cu", "per", "unit", "of", "the", "a", "an"}
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_SCALES["trillion"] = 10**12
# After a number these say that the number alone is not the answer.
_NOT_UNITS = frozenset(
    "or and plus minus times not over than less more half halves third thirds fourths squared "
    "cubed factorial pi sqrt sin cos tan log ln inf infinity mod choose is are because so since "
    "if then but except to from only at with equals divided multiplied".split()
)

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)\s?(?:\\?[$€£¥₹]|usd\s|rs\.?\s)?\s?(?P<sign2>[-+]?)
    (?:
      (?P<whole>\d+)?\s?\\[dtc]?frac\s?(?:\{{\s?(?P<tn>[-+]?{_DECIMAL})\s?\}}|(?P<tn1>\d)|\s(?P<tn2>\d+))
        \s?(?:\{{\s?(?P<td>[-+]?{_DECIMAL})\s?\}}|(?P<td1>\d))
    | (?:(?P<whole2>\d+)\s)?(?P<n>{_DECIMAL})\s?/\s?(?P<d>{_DECIMAL})
    | (?P<decimal>{_DECIMAL})(?:e(?P<exponent>[-+]?\d{{1,3}})(?![\w.]))?
    )(?P<rest>.*)""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_TEXT_UNIT = re.compile(r"(?<=[\w})\]])\s*" + _TEXT.pattern + r"(?:\^\{?[23]\}?)?$")
_DEGREES = re.compile(r"\^\s?(?:\{\s?\\circ\s?\}|\\circ)\s?(?:[CF]\b)?|\\degree(?![a-zA-Z])")
_ROOT = re.compile(r"(?:√|(?<![\\a-zA-Z])sqrt)\s?(?:\(([^()]*)\)|(\d+|[a-z](?![a-z])))")
_BASE = re.compile(r"(-?(?=[^_]*\d)[0-9A-Za-z.]+)\s?_\s?(?:\{\s?(\d+)\s?\}|(\d+))")
_FUNCTIONS = "arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|log|ln|exp|pi|infinity|infty"
_BARE_FUNCTION = re.compile(rf"(?<![\\a-zA-Z])({_FUNCTIONS})(?![a-zA-Z])")
_COMMAND = re.compile(r"\\(?:begin|end|operatorname|math[a-z]+)\s*\{[a-zA-Z*]+\}|\\[a-zA-Z]+")

_Unit = tuple[str | None, str | None]  # canonical name and power, each None where not known


def equivalent(gold: str, value: str) -> tuple[bool, str]:
    """Return (same answer?, note); the note says why an undecidable pair counts as different.

    `gold` and `value` are answers, not whole responses. Never raises on any two strings.
    """
    if max(len(gold), len(value)) > MAX_LENGTH:
        return gold.strip() == value.strip(), f"longer than {MAX_LENGTH} characters"
    gold, value = clean(gold), clean(value)
    if not gold or not value:
        return False, "empty answer"
    number, other = _number_and_unit(gold), _number_and_unit(value)
    if number is not None and other is not None:
        (a, unit_a), (b, unit_b) = number, other
        # Of (name, power), what one side leaves out cannot contradict the other.
        clash = any(x and y and x != y for x, y in zip(unit_a, unit_b, strict=True))
        return a == b and not clash, ""
    if _text_key(gold) == _text_key(value):
        return True, ""
    based = _compare_bases(gold, value)
    if based is not None:
        return based, ""
    return _symbolic(gold, value)


def plain_number(text: str) -> Fraction | None:
    """Return the exact value of a plain number with an optional unit, or None if it is not one."""
    parsed = _number_and_unit(clean(text)) if len(text) <= MAX_LENGTH else None
    return None if parsed is None else parsed[0]


def clean(text: str) -> str:
    """Remove what has no meaning: delimiters, spacing commands, emphasis, a trailing period."""
    text = _ROOT.sub(r"\\sqrt{\1\2}", text).translate(_UNICODE)
    text = _SPACING.sub("", text).replace("{,}", ",").replace(r"\%", "%").replace(r"\$", "$")
    text = _BLANK.sub(" ", text).strip()
    before = None
    while before != text:
        before = text
        text = text.rstrip(" .,;:").lstrip(" ,;:=")
        for left, right in _DELIMITERS:
            inner = text[len(left) : len(text) - len(right)]
            if text.startswith(left) and text.endswith(right) and left not in inner and inner:
                text = inner.strip()
    return text


def _number_and_unit(text: str) -> tuple[Fraction, _Unit] | None:
    """Parse cleaned `text` as one number and its unit; None when it is anything else."""
    if len(text) > MAX_NUMBER:
        return None
    text = _BLANK.sub(" ", _TEXT.sub(r" \1 ", _DEGREES.sub(" degrees", text))).strip()
    match = _NUMBER.fullmatch(re.sub(r"^(\d{1,2}):00(?!\d)", r"\1", text))  # 7:00 is 7 o'clock
    if match is None:
        return None
    suffix = _read_suffix(match["rest"])
    number = _fraction(match)
    if suffix is None or number is None:
        return None
    scale, unit = suffix
    return number * scale, unit


def _fraction(match: re.Match[str]) -> Fraction | None:
    """Build the number from the groups of _NUMBER; None for a zero denominator or two signs."""
    part = match.groupdict()
    if part["sign"] and part["sign2"]:
        return None
    sign = -1 if "-" in (part["sign"] + part["sign2"]) else 1
    if part["decimal"]:
        exponent = int(part["exponent"] or 0)
        return sign * _decimal(part["decimal"]) * Fraction(10) ** exponent
    top = part["tn"] or part["tn1"] or part["tn2"] or part["n"]
    bottom = part["td"] or part["td1"] or part["d"]
    whole = part["whole"] or part["whole2"]
    denominator = _decimal(bottom)
    if denominator == 0 or (whole and not (top + bottom).isdigit()):
        return None  # "1 0.5/2" is not a mixed number
    return sign * ((int(whole) if whole else 0) + _decimal(top) / denominator)


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").rstrip("."))


def _read_suffix(rest: str) -> tuple[int, _Unit] | None:
    """Read what follows a number: (scale, unit), or None if the number is not all of it."""
    power = re.search(r"\^\s?\{?([23])\}?", rest) or re.search(r"(?i)\b(sq|cu)", rest)
    rest_words = re.sub(r"\^\s?\{?[23]\}?|[%$€£(),]|\.(?=\s|$)", " ", rest).replace("-", " ")
    words = rest_words.lower().split()
    scale = _SCALES.get(words[0], 1) if words else 1
    words = words[1:] if scale != 1 else words
    if len(words) > 6 or any(word in _NOT_UNITS or not _unit_like(word) for word in words):
        return None
    names = [_UNITS.get(_singular(word)) for word in words if word not in _UNIT_FILLERS]
    if rest[:1].isalpha() and scale == 1 and not any(names[:1]):
        return None  # "5x" is algebra, "5cm" is a length
    return scale, (names[0] if names else None, _POWERS[power[1].lower()] if power else None)


def _unit_like(word: str) -> bool:
    """Whether `word` may be a unit: a known one, or a word that is no product of variables."""
    known = word in _UNIT_FILLERS or word == "degrees" or _singular(word) in _UNITS
    return known or re.fullmatch(r"(?=.*[aeiouy])[a-z][a-z./']{2,}", word) is not None


def _singular(word: str) -> str:
    return word if word in _UNITS else word.removesuffix("s")


def _text_key(text: str) -> str:
    """A form in which two spellings of one answer are equal and two answers are not."""
    key = _TEXT.sub(r" \1 ", text)
    key = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", key)
    key = re.sub(r"\s*([^\w\s])\s*", r"\1", _BLANK.sub(" ", key).strip())
    key = re.sub(r"([_^])\{(\w)\}", r"\1\2", key)
    single = re.fullmatch(r"\(?([A-Za-z])\)?", key)
    if single:
        return single[1]
    # Words ignore case; letters of algebra do not.
    return re.sub(r"(?<![\\A-Za-z])[A-Za-z]{2,}", lambda m: m[0].lower(), key)


def _compare_bases(gold: str, value: str) -> bool | None:
    """Compare numerals with a base subscript; None when neither side is one."""
    sides = [_BASE.fullmatch(_TEXT.sub(r"\1", text)) for text in (gold, value)]
    if sides == [None, None]:
        return None
    a, b = sides
    if a is not None and b is not None:
        return a[1].lower() == b[1].lower() and (a[2] or a[3]) == (b[2] or b[3])
    if a is not None:  # "in base 8" is in the question: the subscript may be left out
        return a[1].lower() == value.lower()
    assert b is not None
    number = plain_number(b[1])
    return (b[2] or b[3]) == "10" and number is not None and number == plain_number(gold)


def _is_words(text: str) -> bool:
    """Whether `text` says something in words, so that its letters are not factors."""
    if any(re.search(r"\w", content) for content in _TEXT.findall(text)):
        return True
    bare = _BARE_FUNCTION.sub(" ", _COMMAND.sub(" ", text))
    return re.search(r"[A-Za-z]{4}", bare) is not None


def _symbolic(gold: str, value: str) -> tuple[bool, str]:
    """Give both sides to math-verify, once what it would misread is out of the way."""
    pair = [_prepare(text) for text in (gold, value)]
    dropped = ("'", r"\ldots", r"\dots", r"\cdots")  # by math-verify: f' would equal f
    if any((mark in pair[0]) != (mark in pair[1]) for mark in dropped):
        return False, ""
    if {_grouping(text) for text in pair} in ({"ordered", "list"}, {"ordered", "set"}):
        return False, ""  # math-verify takes the roots -2, 1 for the interval (-2, 1)
    letters = all(len(text) == 1 and text.isalpha() for text in pair)  # x and X: sympy's are one
    if letters or any(_is_words(text) for text in pair):
        return _text_key(pair[0]) == _text_key(pair[1]), ""
    if any(len(text) > MAX_SYMBOLIC for text in pair):
        return False, f"longer than {MAX_SYMBOLIC} characters"
    if not all(_balanced(text) for text in pair):  # the grammar needs minutes to reject some
        return False, NOT_MATHEMATICS
    return symbolically_equal(pair[0], pair[1])


def _grouping(text: str) -> str:
    """Tell (a, b) and [a, b) from {a, b} from a bare list a, b; "" for anything else."""
    depth, bare = 0, False
    for token in re.findall(r"\\?[{}()\[\],]", text):
        depth += 1 if token[-1] in "{([" else -1 if token[-1] in "})]" else 0
        bare = bare or (token == "," and depth == 0)
    if bare:
        return "list"
    if "," not in text or not text:
        return ""
    return {"(": "ordered", "[": "ordered", "\\": "set"}.get(text[0], "")


def _prepare(text: str) -> str:
    """Rewrite cleaned `text` for the LaTeX grammar: units off, 'and' and 'or' as commas."""
    text = re.sub(r"^[a-zA-Z]\s*\\in(?![a-zA-Z])\s*", "", _DEGREES.sub("", text))
    text = re.sub(r",?\s*\\text\s*\{\s*(?:and|or)\s*\}\s*", ",", text)
    if not _TEXT.search(text):
        text = re.sub(r",?\s*\b(?:and|or)\b\s*", ",", text)
    unit = _TEXT_UNIT.search(text)
    words = unit[1].lower().split() if unit else []
    if unit and all(word in _UNIT_FILLERS or _singular(word) in _UNITS for word in words):
        text = text[: unit.start()]
    text = text.replace("%", "").replace("$", "").replace("**", "^")
    return _BARE_FUNCTION.sub(r"\\\1 ", text.replace("infinity", "infty")).strip()


def _balanced(text: str) -> bool:
    steps = ({"{": 1, "}": -1}.get(brace, 0) for brace in re.findall(r"\\.|[{}]", text))
    depths = list(accumulate(steps, initial=0))
    return min(depths) == depths[-1] == 0
