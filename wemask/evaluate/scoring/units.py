"""What a number counts or measures: the words behind it.

The table has the units of school problems; with SI prefixes, powers and quotients "km/h" is
"kilometers per hour". Other words ("apples", "students each") say nothing of the unit.
"""

import re

Unit = frozenset[tuple[str, int]]
"""Canonical names with exponents, {("km", 1), ("h", -1)}; empty where no unit is known."""

_PREFIXES = {"kilo": "k", "mega": "M", "giga": "G", "tera": "T", "centi": "c", "deci": "d"}
_PREFIXES |= {"milli": "m", "micro": "μ", "nano": "n"}
_METRIC = (
    "m meter metre, g gram gramme, L l liter litre, s second, W watt, J joule, N newton, V volt, "
    "A amp ampere, Hz hertz, Pa pascal, cal calorie, mol mole, Ω ohm, B byte, bit"
)
_OTHERS = (
    "s sec, in inch inche, ft foot feet, yd yard, mi mile, lb pound £ gbp, oz ounce, gal gallon, "
    "qt quart, pint, cup, tsp teaspoon, tbsp tablespoon, acre, ha hectare, t ton tonne, "
    "min minute, h hr hour, day, wk week, month, yr year, centurie century, $ dollar usd buck, "
    "¢ cent, € euro eur, ¥ yen yuan, ₹ rupee inr rs, % percent, ° degree, rad radian, C celsius, "
    "F fahrenheit, kelvin, rpm, am a.m, pm p.m, psi"
)
_LONG = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h", "mpg": "mi/gal"}
_LONG |= {f"{prefix}Wh": f"{prefix}W h" for prefix in ("", "k", "M", "G", "T")}
_ALONE = {"$", "¢", "€", "¥", "₹", "%"}  # "$18 an hour" is $18
_RAISED = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
# After a number these say that the number alone is not the answer.
_NOT_WORDS = frozenset(
    "or and plus minus times not over than less more half halves third thirds fourths factorial "
    "quarters fifths sixths sevenths eighths ninths tenths hundredths thousandths below under "
    "fewer negative pairs "
    "sqrt sin cos tan log inf infinity mod choose is are because so since if then but except to "
    "from only at with equals divided multiplied mil mio".split()
)


def _table() -> dict[str, str]:
    names = {word: group.split()[0] for group in _OTHERS.split(", ") for word in group.split()}
    for group in _METRIC.split(", "):
        symbol, *words = group.split()
        names |= dict.fromkeys((symbol, *words), symbol)
        for long, short in _PREFIXES.items():
            names |= {short + one: short + symbol for one in (symbol, *words) if len(one) < 4}
            names |= {long + word: short + symbol for word in (symbol, *words) if len(word) > 2}
    del names["B"]  # of a number it is a billion; so are m and t of money
    return names


_UNITS = _table()
_FACTOR = re.compile(
    r"[\s(),*-]*+(?P<per>/|\b(?:per|an?|each|every)\s)?"
    r"[\s(-]*+(?:(?P<square>square|sq|cubic|cu)\b\.?)?"
    r"[\s(*-]*+(?P<word>[%$€£¥₹¢°]|[^\W\d_]+(?:['.][^\W\d_]+)*)\.?"
    r"(?:\s*\^\s?\{?\s?(?P<power>-?[1-9])\s?\}?|\s+(?P<raised>squared|cubed)\b)?(?:[\s),]|\\cdot)*",
    re.IGNORECASE,
)


def read_unit(text: str, money: str = "") -> Unit | None:
    r"""Return the unit that `text`, what follows a number, says; None when the number is not all.

    A letter that touches its number is a factor: "5m" is algebra; "5 m" and "5cm" are lengths.
    `money` is the sign before the number.
    """
    text = re.sub(r"(?i)(?:°|\bdegrees?)\s*(?=[CF]\b|celsius|fahrenheit)", " ", text)
    text = re.sub(r"\bin\s+(?=[a-z]{3})(?!squared|cubed|per)", " ", text)  # "in all": no inches
    text = re.sub("[A-Za-z]+", lambda word: _LONG.get(word[0], word[0]), text)
    sign = _name(money.strip("\\ ."))
    found, at = {sign: 1} if sign else dict[str, int](), 0
    while at < len(text):
        part = _FACTOR.match(text, at)
        if part is None or (sign and part["word"] in ("m", "t")):
            return None
        word, at = part["word"], part.end()
        name, power = _name(word), part["power"] or part["raised"]
        if part.start("word") == 0 and word.isalpha() and (len(word) == 1 or not name):
            return None
        if name:
            raised = int(part["power"] or _RAISED.get(part["raised"] or part["square"], 1))
            found[name] = -raised if part["per"] else raised
        elif not _says_nothing(word.lower()) or (power and not word.startswith("unit")):
            return None
    alone = found.keys() & _ALONE
    return frozenset((name, 1) for name in alone) or frozenset(found.items())


def _name(word: str) -> str | None:
    """Look `word` up as it is, then in lower case; a single letter only as it is."""
    forms = (word, word.lower()) if len(word) > 1 else (word,)
    found = (_UNITS.get(one) for form in forms for one in (form, form.removesuffix("s")))
    return next(filter(None, found), None)


def _says_nothing(word: str) -> bool:
    """Whether `word` is a word of prose, no product of variables, that leaves the number whole."""
    if word in _NOT_WORDS | _RAISED.keys():
        return False
    return re.fullmatch(r"of|the|pts|pcs|(?=.*[aeiouy])[a-z][a-z.']{2,}", word) is not None
