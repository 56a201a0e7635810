r"""Is one mathematical answer the same as another? Exact for numbers, math-verify for the rest.

Conventions (those of GSM8K's and MATH's own checkers where they have one):
- plain numbers are exact rationals: 1/2 == 0.5 == 0.50, -0 == 0, 1,234 == 1234, 1e3 == 1000,
  1 1/2 == 3/2, 5 million == 5000000, 7:00 == 7; 1/3 != 0.333 and 0.1 != 0.1000001;
- a percent sign, a currency and degrees are units: 50% == 50, so 50% != 0.5; $18 == 18;
- digits in groups: 1,234,567 == 1 234 567 == 1.234.567 == 12,34,567; but 1.234 is a decimal;
- 1.\overline{3} == 4/3, 0.1666... == 1/6; "about 18" and "18, not 17" are 18;
- a unit may be left out, but two different known units differ: 5 cm == 5, 5 cm != 5 m, 5 cm^2;
- a letter that touches its number is algebra, one behind a blank a unit: 5m != 5, 5 m == 5;
- words are compared as words, ignoring case; letters of algebra keep it: (C) == C, 2a != 2A;
- the base of a numeral may be left out where the gold has it: 52_8 == 52, 52_8 != 52_9;
  but not base 2, for 10 is ten;
- a bare list is a set, as in MATH ("1,-2" == "-2,1"); pairs and intervals are ordered;
- inequalities are the sets of what they hold for: 0 < x < 5 == (0, 5) == ]0, 5[.
"""

import re
import unicodedata
from fractions import Fraction
from itertools import accumulate

from wemask.evaluate.scoring.symbolic import NOT_MATHEMATICS, symbolically_equal
from wemask.evaluate.scoring.units import Unit, read_unit

MAX_NUMBER = 400  # characters; longer digit strings are compared as text
MAX_SYMBOLIC = 600  # characters given to the symbolic comparison
MAX_LENGTH = 2000  # characters; longer answers are compared as they stand

_UNICODE = str.maketrans(  # after NFKC, which knows full-width digits and vulgar fractions
    dict.fromkeys("−–—‐‑﹣", "-")
    | dict.fromkeys("\u200b\u2062\t\r\n", " ")
    | {"×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/", "’": "'"}
    | {"π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "±": r"\pm ", "≈": r"\approx "}
    | {"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in "}
    | {"∅": r"\emptyset "}
)
_RAISED, _LOWERED = re.compile("[⁰¹²³⁴-⁹⁺⁻]+"), re.compile("[₀-₉]+")
_SPACING = re.compile(
    r"(?<!\\)\\[!,;:]\s*|\\(?:left|right|[bB]ig+[lr]?|displaystyle|mathstrut)(?![a-zA-Z])"
)
_BLANK = re.compile(r"(?<!\\)\\(?=\s|$)|\\q?quad(?![a-zA-Z])|~|\s+")
_DELIMITERS = [("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`")]
_TEXT = re.compile(
    r"\\(?:text(?:rm|bf|it|sf|tt|normal)?|mbox|mathrm|mathbf|mathit|rm)\s*\{([^{}]*)\}"
)

_SCALES = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "lakh": 10**5, "million": 10**6}
_SCALES |= {"crore": 10**7, "billion": 10**9, "trillion": 10**12}

# Groups of digits: 1,234,567; 1 234 567; 1'234'567; 12,34,567; 1.234.567 (1.234 is a decimal).
DECIMAL = (
    r"(?:\d{1,3}(?:\.\d{3}){2,}(?!\.?\d)|\.\d+|(?:\d{1,3}(?:(?:,\d{3})+|(?:[ ]\d{3})+|(?:'\d{3})+)"
    r"|\d{1,2}(?:,\d{2})+,\d{3}|\d+)(?!\d)(?:\.\d*)?)"
)
_NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)\s?(?P<money>\\?[$€£¥₹]|usd\s|rs\.?\s)?\s?(?P<sign2>[-+]?)
    (?:
      (?P<whole>\d+)?\s?\\[dtc]?frac
        \s?(?:\{{\s?(?P<tn>[-+]?{DECIMAL})\s?\}}|(?P<tn1>\d)|\s(?P<tn2>\d+))
        \s?(?:\{{\s?(?P<td>[-+]?{DECIMAL})\s?\}}|(?P<td1>\d))
    | (?:(?P<whole2>\d+)\s)?(?P<n>{DECIMAL})\s?/\s?(?P<d>{DECIMAL})
    | (?P<decimal>{DECIMAL})(?:e(?P<exponent>[-+]?\d{{1,3}})(?![\w.]))?
        (?:\s?(?:\\times|\\cdot|[x*])\s?10\s?\^\s?\{{?\s?(?P<ten>[-+]?\d{{1,3}})\s?\}}?)?
    )(?P<rest>.*)""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_REPEATING = re.compile(  # 1.\overline{3}, 0.(3), 0.1666...
    r"(?<![\d.])(\d*)\.(\d{0,40}?)(?:\\(?:overline|bar|dot)\s?\{?\s?(\d{1,40})\s?\}?"
    r"|(?<=\.)\((\d{1,40})\)|(\d{1,9}?)\5\5+\s?(?:\.{2,3}|\\[lc]?dots))"
)
_CLOCK = re.compile(r"0?(\d{1,2}:\d\d)(?:\s?([ap])\.?m\.?)?", re.IGNORECASE)
_HEDGE = re.compile(
    r"^(?:(?:about|around|approx(?:\.|imately)?|roughly|exactly|precisely|just|only)\s|\\approx)\s*"
    r"|,?\s\(?(?:not|rather than|instead of)\s\S*\d\S*$",
    re.IGNORECASE,
)
_SEVERAL = re.compile(r"(?<!frac )(?<!frac)(?<![\d_])\d+\s+\d|\d\.\d+\.")  # 1 2 is not 1 + 2
_FRENCH = re.compile(r"([\[\]])([^][(),;]+)[,;]([^][(),;]+)([\[\]])")
_TEXT_UNIT = re.compile(r"(?<=[\w})\]])\s*" + _TEXT.pattern + r"((?:\^\{?[23]\}?)?)$")
_DEGREES = re.compile(r"\^\s?(?:\{\s?\\circ\s?\}|\\circ)|\\degree(?![a-zA-Z])")
_ROOT = re.compile(r"(?:√|(?<![\\a-zA-Z])sqrt)\s?(?:\(([^()]*)\)|(\d+|[a-z](?![a-z])))")
_BASE = re.compile(r"(-?(?=[^_]*\d)[0-9A-Za-z.]+)\s?_\s?(?:\{\s?(\d+)\s?\}|(\d+))")
_FUNCTIONS = "arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|log|ln|exp|pi|infinity|infty"
_BARE_FUNCTION = re.compile(rf"(?<![\\a-zA-Z])({_FUNCTIONS})(?![a-zA-Z])")
_COMMAND = re.compile(r"\\(?:begin|end|operatorname|math[a-z]+)\s*\{[a-zA-Z*]+\}|\\[a-zA-Z]+")


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
        return a == b and _agree(unit_a, unit_b), ""
    if _text_key(gold) == _text_key(value):
        return True, ""
    if all(plain_number(text.strip("()")) is not None for text in (gold, value)):
        return False, ""  # (18) is -18 in a balance sheet
    for compare in (_compare_bases, _compare_clocks):
        told = compare(gold, value)
        if told is not None:
            return told, ""
    return _symbolic(gold, value)


def _agree(unit: Unit, other: Unit) -> bool:
    """Whether one may stand for the other: what one side leaves out cannot contradict."""
    return not unit or not other or unit == other


def plain_number(text: str) -> Fraction | None:
    """Return the exact value of a plain number with an optional unit, or None if it is not one."""
    parsed = _number_and_unit(clean(text)) if len(text) <= MAX_LENGTH else None
    return None if parsed is None else parsed[0]


def clean(text: str) -> str:
    """Remove what has no meaning: delimiters, spacing commands, emphasis, a trailing period."""
    text = _LOWERED.sub(r"_{\g<0>}", _RAISED.sub(_as_power, text))
    text = unicodedata.normalize("NFKC", re.sub("(?<=\\d)(?=[¼-¾⅐-⅞])", " ", text))
    text = _ROOT.sub(r"\\sqrt{\1\2}", text).translate(_UNICODE)
    text = _SPACING.sub("", text).replace("{,}", ",").replace(r"\%", "%").replace(r"\$", "$")
    text = _BLANK.sub(" ", text.replace(r"\varnothing", r"\emptyset")).strip()
    text = _REPEATING.sub(_as_fraction, text)
    before = None
    while before != text:
        before = text
        text = _HEDGE.sub("", text.rstrip(" .,;:").lstrip(" ,;:="))
        for left, right in _DELIMITERS:
            inner = text[len(left) : len(text) - len(right)]
            if text.startswith(left) and text.endswith(right) and left not in inner and inner:
                text = inner.strip()
    return text


def _as_power(raised: re.Match[str]) -> str:
    r"""Without braces where none are needed: \text{cm²} holds none."""
    return f"^{raised[0]}" if len(raised[0]) == 1 else f"^{{{raised[0]}}}"


def _as_fraction(decimal: re.Match[str]) -> str:
    """Rewrite a repeating decimal: 0.1666... is 15/90."""
    whole, fixed, *blocks = decimal.groups(default="")
    block = "".join(blocks)
    value = int(whole + fixed + block) - int(whole + fixed or 0)
    return rf"\frac{{{value}}}{{{'9' * len(block) + '0' * len(fixed)}}}"


def _number_and_unit(text: str) -> tuple[Fraction, Unit] | None:
    """Parse cleaned `text` as one number and its unit; None when it is anything else."""
    if len(text) > MAX_NUMBER:
        return None
    text = _BLANK.sub(" ", _TEXT.sub(r" \1 ", _DEGREES.sub("°", text))).strip()
    match = _NUMBER.fullmatch(re.sub(r"^(\d{1,2}):00(?!\d)", r"\1", text))  # 7:00 is 7 o'clock
    number = _fraction(match) if match else None
    if match is None or number is None:
        return None
    rest = match["rest"]
    while word := re.match(r"[\s-]*([a-z]+)", rest, re.IGNORECASE):  # "5 hundred thousand"
        scale = _SCALES.get(word[1].lower().removesuffix("s"))
        if scale is None:
            break
        number, rest = number * scale, rest[word.end() :]
    unit = read_unit(rest.rstrip(" ."), match["money"] or "")
    return None if unit is None else (number, unit)


def _fraction(match: re.Match[str]) -> Fraction | None:
    """Build the number from the groups of _NUMBER; None for a zero denominator or two signs."""
    part = match.groupdict()
    if part["sign"] and part["sign2"]:
        return None
    sign = -1 if "-" in (part["sign"] + part["sign2"]) else 1
    if part["decimal"]:
        exponent = int(part["exponent"] or part["ten"] or 0)
        return sign * _decimal(part["decimal"]) * Fraction(10) ** exponent
    top = part["tn"] or part["tn1"] or part["tn2"] or part["n"]
    bottom = part["td"] or part["td1"] or part["d"]
    whole = part["whole"] or part["whole2"]
    denominator = _decimal(bottom)
    if denominator == 0 or (whole and not (top + bottom).isdigit()):
        return None  # "1 0.5/2" is not a mixed number
    return sign * ((int(whole) if whole else 0) + _decimal(top) / denominator)


def _decimal(text: str) -> Fraction:
    dots = text.count(".") > 1
    return Fraction(re.sub("[,' .]" if dots else "[,' ]", "", text).rstrip("."))


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
    return re.sub(r"(?<![\\A-Za-z])(?:[A-Za-z]{3,}|N[oO]\b)", lambda m: m[0].lower(), key)


def _compare_bases(gold: str, value: str) -> bool | None:
    """Compare numerals with a base subscript; None when neither side is one."""
    sides = [_BASE.fullmatch(_TEXT.sub(r"\1", text)) for text in (gold, value)]
    if sides == [None, None]:
        return None
    a, b = sides
    if a is not None and b is not None:
        return a[1].lower() == b[1].lower() and (a[2] or a[3]) == (b[2] or b[3])
    if a is not None:  # "in base 8" is in the question; but 10 is ten, unless it is said of 10_2
        return a[1].lower() == value.lower() and (a[2] or a[3]) != "2"
    assert b is not None
    number = plain_number(b[1])
    return (b[2] or b[3]) == "10" and number is not None and number == plain_number(gold)


def _compare_clocks(gold: str, value: str) -> bool | None:
    """Compare times of day, of which am or pm may be left out; None when they are not two."""
    a, b = (_CLOCK.fullmatch(_TEXT.sub(r"\1", text)) for text in (gold, value))
    if a is None or b is None:
        return None
    return a[1] == b[1] and (a[2] or b[2] or "").lower() == (b[2] or a[2] or "").lower()


def _is_words(text: str) -> bool:
    """Whether `text` says something in words, so that its letters are not factors."""
    if any(re.search(r"\w", content) for content in _TEXT.findall(text)):
        return True
    bare = _BARE_FUNCTION.sub(" ", _COMMAND.sub(" ", text))
    return re.search(r"[A-Za-z]{4}", bare) is not None


def _symbolic(gold: str, value: str) -> tuple[bool, str]:
    """Give both sides to math-verify, once what it would misread is out of the way."""
    (gold, unit), (value, other) = _split_unit(gold), _split_unit(value)
    if not _agree(unit, other):
        return False, ""
    pair = [_prepare(text) for text in (gold, value)]
    dropped = ("'", r"\ldots", r"\dots", r"\cdots", ":")  # by math-verify: f' would equal f
    if any((mark in pair[0]) != (mark in pair[1]) for mark in dropped):
        return False, ""
    if any(text.count(":") > 1 for text in pair):  # 1:2:3 is no quotient
        return _text_key(pair[0]) == _text_key(pair[1]), ""
    if any(_SEVERAL.search(text) for text in pair):
        return False, NOT_MATHEMATICS
    if {_grouping(text) for text in pair} in ({"ordered", "list"}, {"ordered", "set"}):
        return False, ""  # math-verify takes the roots -2, 1 for the interval (-2, 1)
    names = all(re.fullmatch(r"[a-zA-Z]|\\[a-zA-Z]+", text) for text in pair)  # \Delta, \delta
    if names or any(_is_words(text) for text in pair):
        return _text_key(pair[0]) == _text_key(pair[1]), ""
    if any(len(text) > MAX_SYMBOLIC for text in pair):
        return False, f"longer than {MAX_SYMBOLIC} characters"
    if not all(_balanced(text) for text in pair):  # the grammar needs minutes to reject some
        return False, NOT_MATHEMATICS
    return symbolically_equal(pair[0], pair[1])


def _split_unit(text: str) -> tuple[str, Unit]:
    r"""Split `36\pi\text{ cm}^2` into formula and unit, where it ends in a unit."""
    found = _TEXT_UNIT.search(text)
    unit = read_unit(f" {found[1]}{found[2]}") if found else None
    if found and (unit or (unit is not None and re.search(r"\bunits?\b", found[1]))):
        return text[: found.start()], unit
    return text, frozenset()


def _grouping(text: str) -> str:
    """Tell (a, b) and [a, b) from {a, b} from a bare list a, b; "" for anything else."""
    if re.search(r"[<>]|\\(?:[lg]eq?|ne)(?![a-z])", text):
        return ""  # "x < 1 or x > 3" may be held against a union of intervals
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
    """Rewrite cleaned `text` for the LaTeX grammar: 'and' and 'or' as commas, ]a, b[ as (a, b)."""
    text = re.sub(r"^[a-zA-Z]\s*\\in(?![a-zA-Z])\s*", "", _DEGREES.sub("", text))
    text = re.sub(r",?\s*\\(?:text\s*\{\s*(?:and|or)\s*\}|lor(?![a-z])|vee(?![a-z]))\s*", ",", text)
    if not _TEXT.search(text):
        text = re.sub(r",?\s*\b(?:and|or)\b\s*", ",", text)
    text = _FRENCH.sub(_as_interval, text.replace("%", "").replace("$", "").replace("**", "^"))
    return _BARE_FUNCTION.sub(r"\\\1 ", text.replace("infinity", "infty")).strip()


def _as_interval(found: re.Match[str]) -> str:
    """Rewrite an interval whose open end is a bracket turned outwards."""
    left, low, high, right = found.groups()
    return f"{'(' if left == ']' else left}{low},{high}{')' if right == '[' else right}"


def _balanced(text: str) -> bool:
    steps = ({"{": 1, "}": -1}.get(brace, 0) for brace in re.findall(r"\\.|[{}]", text))
    depths = list(accumulate(steps, initial=0))
    return min(depths) == depths[-1] == 0
