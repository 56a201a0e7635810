r"""Answer checkers: extraction, equivalence, the worker that compares; adversarial by design.

The short LaTeX answers are of the kind that MATH (MIT licence) has; the word problems are our own.
"""

import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wemask import equivalence, symbolic
from wemask.answers import Extraction, extract_answer, is_correct, judge
from wemask.equivalence import equivalent, plain_number
from wemask.errors import ConfigError, DataError


def box(content: str) -> str:
    return f"We add the terms.\nSo the result is $\\boxed{{{content}}}$."


# (response, gold) pairs that are right, by what they try


RIGHT = {
    "boxes": [
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{3} then \boxed{5}", "5"),
        (r"\boxed{5} then \boxed{}", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed{17} #### 18", "18"),
        (r"}}}{{{ \boxed{18}", "18"),
        (r"\boxed{18}}}}", "18"),
        (r"\[\boxed{\frac{\frac{1}{2}}{3}}\]", r"\frac{1}{6}"),
        (r"\boxed{\{1, 2\}} and an open brace {", r"\{2, 1\}"),
    ],
    "thousands": [
        (box("1,234"), "1234"),
        (box("1{,}234"), "1234"),
        (box(r"1\,234"), "1234"),
        (box("11,111,111,100"), r"11,\! 111,\! 111,\! 100"),
        (box("10080"), r"10,\!080"),
        ("#### 1,234.50", "1234.5"),
        ("so we have 58,500 people.", "58500"),
    ],
    "units": [
        (box(r"\$18"), "18"),
        ("#### $18", "18"),
        ("#### 18 dollars", "18"),
        ("She has 5 apples. #### 5 apples left", "5"),
        ("The answer is 18 dollars per day.", "18"),
        (box(r"5\text{ cm}"), "5"),
        (box("5 cm"), "5"),
        (box("5cm"), "5"),
        (box("5 centimeters"), r"5\mbox{ cm}"),
        (box(r"15\text{ cm}^2"), r"15\mbox{ cm}^2"),
        (box("864 square inches"), r"864 \mbox{ inches}^2"),
        (box("32348"), r"\$32,\!348"),
        (box("5.4"), r"5.4 \text{ cents}"),
        (box(r"7\pi\text{ cm}"), r"7\pi"),
        (box("-$5"), "-5"),
        (box("5 million"), "5000000"),
    ],
    "fractions and decimals": [
        (box("1/2"), "0.5"),
        (box(r"\frac{1}{2}"), "0.5"),
        (box(r"\frac12"), "1/2"),
        (box("0.5"), r"\dfrac{1}{2}"),
        (box(r"\frac 59"), r"\frac{5}{9}"),
        (box(r"1 \frac{4}{5}"), "1.8"),
        (box("1 4/5"), r"1\frac{4}{5}"),
        (box("1½"), "1.5"),
        (box("275/2"), r"137 \frac{1}{2}"),
        (box(".0000672"), "0.0000672"),
        (box("2/4"), "1/2"),
        (box("1.0"), "1"),
        (box("1e3"), "1000"),
        (box("-0"), "0"),
        (box("-0.0"), "0"),
        (box("0/5"), "0"),
        (box("\u22125"), "-5"),  # a typographic minus
        (box(r"\frac{-1}{3}"), r"-\frac13"),
    ],
    "percent and degrees": [
        (box(r"50\%"), "50"),
        (box("50"), r"50\%"),
        (r"\boxed{50}\%", "50"),
        ("The answer is 50 percent.", "50"),
        (box(r"90^\circ"), "90"),
        (box("90"), r"90^{\circ}"),
        (box("90°"), "90 degrees"),
        (box(r"\frac{270}{7}"), r"\frac{270}7\text{ degrees}"),
    ],
    "LaTeX": [
        (box(r"\left( 3, \frac{\pi}{2} \right)"), r"(3,\frac{\pi}{2})"),
        (box(r"3\sqrt2"), r"\sqrt{18}"),
        (box("sqrt(18)"), r"3\sqrt{2}"),
        (box("√18"), r"3\sqrt{2}"),
        (box("2π"), r"2\pi"),
        (box("2pi"), r"2\pi"),
        (box("(x+1)^2"), "x^2+2x+1"),
        (box("p(p-q)"), "p^2-pq"),
        (box("-2,1"), "1,-2"),
        (box(r"x \in [-2,7]"), "[-2,7]"),
        (box(r"(-\infty,2)\cup(3,\infty)"), r"(-\infty, 2) \cup (3, \infty)"),
        (box("x=5"), "5"),
        (box("5"), "x=5"),
        (box("2x+3"), "y = 2x + 3"),
        (box(r"\begin{pmatrix}-1&0\\0&-1\end{pmatrix}"), r"\begin{bmatrix} -1 & 0 \\ 0 & -1 \end{bmatrix}"),
        (box(r"1\pm\sqrt{19}"), r"1 \pm \sqrt{19}"),
        (box("6 + 9i"), "6+9i"),
        (box("52"), "52_8"),
        (box("4210_5"), "4210_{5}"),
        (box("5!"), "120"),
        (box("2+3"), "5"),
    ],
    "words": [
        (box(r"\text{Evelyn}"), "Evelyn"),
        (box("evelyn"), r"\text{Evelyn}"),
        (box("C"), r"\text{(C)}"),
        (box(r"\textbf{(C)}"), "C"),
        ("The correct answer choice is (C).", "C"),
        ("the answer is north", "north"),
        (box("3:45"), "3:45"),
        ("It is the capital.\n#### Paris", "Paris"),
    ],
    "no marker": [
        ("The answer is 18.", "18"),
        ("the final answer is: 18", "18"),
        ("Answer: **18**", "18"),
        ("**Answer:** 18", "18"),
        (r"The answer is $\frac{1}{2}$.", "0.5"),
        ("Therefore the answer is\n\n18", "18"),
        ("The answer to the question is 18 because 2 * 9 = 18.", "18"),
        ("Final Answer: The final answer is $18$. I hope it is correct.", "18"),
        ("It costs 3*6 = 18", "18"),
        ("so x = -3", "-3"),
        ("so it is 25 cm^2", "25"),
        (r"so $x = \frac{1}{2}$.", "1/2"),
        (r"\[ x = 18 \]", "18"),
        ("about 10^5", "100000"),
        ("<<16-3=13>>13 left", "13"),
        ("#### Step 3: add\nThe answer is 7.", "7"),
        ("#### 1. Compute\n text \n#### 2. Add\nSo the total is 9", "9"),
    ],
}

WRONG = {
    "empty": [
        ("", "18"),
        ("   \n", "18"),
        ("I do not know.", "18"),
        ("#### ", "18"),
        ("It is 18. #### ", "18"),
        (r"\boxed{}", "5"),
        (r"The sum is 5. \boxed{}", "5"),
        (r"The answer is 5. \boxed{ }", "5"),
        (r"5 \boxed{.}", "5"),
        (r"5 \boxed{$$}", "5"),
    ],
    "boxes": [
        (r"\boxed{5} then \boxed{3}", "5"),
        (r"18 is right but \boxed{17}", "18"),
        ("#### 18\n\\boxed{17}", "18"),
        (r"\boxed{18", "18"),
        (r"It is 18: \boxed{\frac{36}{2}", "18"),
    ],
    "substrings and hedges": [
        ("118", "18"),
        ("18", "8"),
        ("The answer is 180", "18"),
        ("#### 18 or 20", "18"),
        (box("18, 20"), "18"),
        (box("18 and 20"), "18"),
        (box(r"18 \text{ or } 20"), "18"),
        (box("18 20"), "18"),
        (box("not 18"), "18"),
        ("The answer is not 18.", "18"),
        (box("1,234"), "1"),
        (box("1,234"), "234"),
        (box("Eve"), r"\text{Evelyn}"),
        (box("Evelyn or Bob"), r"\text{Evelyn}"),
        ("100 000", "100000"),
        (box("10,00"), "1000"),
        (box("3:45"), "345"),
    ],
    "number forms": [
        (box("0.33"), r"\frac{1}{3}"),
        (box("0.3333333333"), r"\frac13"),
        (box("0.1000000001"), "0.1"),
        (box("-5"), "5"),
        (box("14/5"), r"1\frac45"),
        (box("5 million"), "5"),
        (box("1e999999999"), "5"),
        (box("1/0"), "5"),
        ("16-3", "-3"),
        ("v2", "2"),
        ("It is 1/2", "2"),
        (r"so $x = \frac{1}{2}$.", "2"),
        ("about 10^5", "5"),
    ],
    "percent and units": [
        (box("0.5"), r"50\%"),
        (box(r"50\%"), "0.5"),
        (box("5 m"), "5 cm"),
        (box("5 pm"), "5 am"),
        (box("7.5 feet"), "7.5 inches"),
        (box(r"15\text{ cm}^3"), r"15\mbox{ cm}^2"),
        (box("5x"), "5"),
        (box("5 pi"), "5"),
        (box("5 squared"), "5"),
        (box("5!"), "5"),
    ],
    "LaTeX": [
        (box("(4,3)"), "(3,4)"),
        (box("[0,5]"), "(0,5)"),
        (box("-2,1"), "(-2,1)"),
        (box(r"\{3,4\}"), "(3,4)"),
        (box("52_9"), "52_8"),
        (box("52_8"), "52"),
        (box("x"), "X"),
        (box("x^2"), "x^3"),
        (box(r"\pi"), "3.14"),
        (box(r"\infty"), r"-\infty"),
        (box("y=5"), "x=5"),
        (box(r"\begin{pmatrix}-1&1\\0&-1\end{pmatrix}"), r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}"),
        (box("__import__('os').system('true')"), "5"),
    ],
    "words": [
        (box("seat"), "east"),  # an anagram: e*a*s*t would be commutative
        (box(r"\text{seat}"), r"\text{east}"),
        (box("D"), r"\text{(C)}"),
        ("the answer is north", "south"),
    ],
}  # fmt: skip


def cases(table: dict[str, list[tuple[str, str]]]) -> list[object]:
    return [
        pytest.param(response, gold, id=f"{group}: {response[-40:]!r}")
        for group, pairs in table.items()
        for response, gold in pairs
    ]


@pytest.mark.parametrize(("response", "gold"), cases(RIGHT))
def test_a_right_answer_is_right(response: str, gold: str) -> None:
    assert judge(response, gold).correct, judge(response, gold)


@pytest.mark.parametrize(("response", "gold"), cases(WRONG))
def test_a_wrong_answer_is_wrong(response: str, gold: str) -> None:
    assert not judge(response, gold).correct, judge(response, gold)


GSM8K_STYLE = [
    ("Ann picks 16 - 7 = <<16-7=9>>9 pears.\nShe gets 9 * 2 = $<<9*2=18>>18.\n#### 18", "18"),
    ("Half of 2 is 1, and 2 + 1 = 3 bolts.\n#### 3", "3"),
    ("The profit is 200,000 - 130,000 = $70,000.\n#### 70,000", "70000"),
    ("He runs 3 * 60 = 180 m a day.\n#### 540", "540"),
    ("The discount is .4 * 5 = $2.\n#### 64", "64"),
    ("1.5 * 20 = <<1.5*20=30>>30 and 30 / 60 = .5\n#### 0.5", ".5"),
    ("They lose 12 - 15 = -3 points.\n#### -3", "-3"),
    ("It is 20% of 50, that is 10.\n#### 10", "10"),
    ("5 + 5 = 10 o'clock.\n#### 10", "10"),
]


@pytest.mark.parametrize(("text", "gold"), GSM8K_STYLE)
def test_a_gold_text_is_right_against_itself_and_wrong_against_one_more(
    text: str, gold: str
) -> None:
    assert is_correct(text, gold)
    assert is_correct(text, text)
    number = plain_number(gold)
    assert number is not None
    assert not is_correct(text, str(number + 1))
    assert not is_correct(text, str(-number - 1))


MATH_STYLE = [
    r"\frac{14}{3}", "p - q", "3\\sqrt{13}", "6 - 5i", "70 \\sqrt{2}", "x^5 - x^4 + x^3 - x^2 + x - 1",
    r"-\frac{\pi}{6}", "(6,31,-1)", "x^3+3x-6", "2516_8", r"\cot x", "(-2,1)", r"1 \pm \sqrt{19}",
    "2k+2", r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}", "(a+5)(b+2)", "(3,4]", r"\frac43",
    "1+274i", "204_5", r"\frac{\sqrt{3}}{3}", "5x - 7y + 11z + 4 = 0", r"(2,\infty)", r"288 \pi",
    r"\left( \frac{3}{2}, -13 \right)", r"\left(\frac{3}{5},\frac{8}{3}\right]", r"\frac{11+9a}{20}",
    "6r^2-4r-24", r"11 \sqrt{5} + 11", r"(0,9) \cup (9,36)", r"\frac{20000}{\pi}", r"x \in [-2,7]",
    r"\{1\pm\sqrt{5},-2\}", r"\left[ \frac{\pi^2}{8}, \frac{5 \pi^2}{4} \right]", "3R^2", "-13x+3",
]  # fmt: skip


@pytest.mark.parametrize("answer", MATH_STYLE)
def test_spellings_agree_and_a_changed_digit_does_not(answer: str) -> None:
    spellings = [
        answer.replace(r"\frac", r"\dfrac").replace(" ", ""),
        f"${answer}$.",
        rf"\displaystyle {answer}",
        answer.replace("(", r"\left(").replace(")", r"\right)"),
    ]
    for spelling in spellings:
        assert is_correct(f"So \\boxed{{{spelling}}}", answer), spelling
    digit = next((c for c in answer if c.isdigit()), None)
    if digit is not None:
        changed = answer.replace(digit, str((int(digit) + 1) % 10 or 2), 1)
        assert not is_correct(f"So \\boxed{{{changed}}}", answer), changed


def test_the_reason_says_where_the_value_stood() -> None:
    found = {
        r"\boxed{5}": ("5", "boxed"),
        "#### 5": ("5", "after ####"),
        "The answer is 5.": ("5", "stated as the answer"),
        "2 + 3 gives 5": ("5", "last number"),
        "so $y = 5x$": ("5x", "last formula"),
        "": (None, "empty response"),
        r"5 \boxed{}": (None, "empty box"),
        r"\boxed{5": (None, "unclosed box"),
        "5 ####": (None, "nothing after ####"),
        "no idea": (None, "no number found"),
    }
    for response, (value, reason) in found.items():
        assert extract_answer(response) == Extraction(value=value, reason=reason)


@pytest.mark.parametrize("gold", ["", "  ", "####", "#### ", "5\n####", r"\boxed{}", ".", float("nan")])
def test_an_empty_gold_is_an_error(gold: str | float) -> None:
    with pytest.raises(DataError, match="gold answer is empty"):
        is_correct("5", gold)


def test_a_gold_may_be_a_number_or_a_whole_solution() -> None:
    assert is_correct("#### 18", 18)
    assert is_correct("#### 0.5", 0.5)
    assert is_correct("#### 18", "9 * 2 = 18\n#### 18")
    assert is_correct(r"\boxed{\frac12}", r"Half of it is $\boxed{\frac{1}{2}}$, as expected of 7.")


@pytest.mark.parametrize("bad", [None, 5, b"5", ["5"]])
def test_what_is_not_text_is_an_error(bad: object) -> None:
    with pytest.raises(DataError, match="must be a str"):
        extract_answer(bad)  # type: ignore[arg-type]
    if not isinstance(bad, int):
        with pytest.raises(DataError, match="gold answer must be"):
            is_correct("5", bad)  # type: ignore[arg-type]


HUGE = {
    "digits": "5" * 100_000,
    "open boxes": r"\boxed{" * 14_000,
    "nested boxes": r"\boxed{" * 7_000 + "5" + "}" * 7_000,
    "hashes": "#### " * 20_000,
    "stated": "the answer is " * 7_000,
    "braces": "{" * 100_000,
    "dollars": "$" * 100_000,
    "list": "1,1" * 33_000,
    "blanks": "answer" + " " * 100_000,
    "fractions": "1/" * 50_000,
    "open fractions": r"\frac{" * 16_000,
    "annotations": "<<" * 50_000,
    "emphasis": "**" * 50_000,
    "lines": "\n" * 99_999 + "5",
    "answer to": "answer to " * 10_000,
    "math spans": r"\(1" * 33_000,
    "long box": r"\boxed{" + "x+" * 50_000 + "1}",
    "dollars in a box": r"\boxed{" + "$" * 99_000 + "}",
    "words after hashes": "#### 5 " + "a " * 50_000,
}


@pytest.mark.parametrize("name", HUGE)
def test_a_huge_output_takes_less_than_a_second(name: str) -> None:
    is_correct(r"\boxed{x+1}", "1+x")  # the worker starts here, not inside the measurement
    start = time.process_time()
    verdict = judge(HUGE[name], "18")
    assert time.process_time() - start < 1.0
    assert not verdict.correct


def test_a_long_derivation_with_one_box_is_read() -> None:
    filler = "We add 3 and 4 to get 7, then {carry} on. " * 2_500
    assert is_correct(filler + r"\boxed{42}" + " done." * 100, "42")
    assert not is_correct(filler + r"\boxed{41}" + " 42." * 100, "42")


TOKENS = st.sampled_from(
    [r"\boxed{", "}", "{", "####", "\n", "$", "The answer is ", "5", "1,234", "/", "-", "%", ".",
     r"\frac", r"\text{", "^", "_", "(", ")", " ", "or", "x", "=", r"\left(", r"\\", "&", "½", "٣",
     "\ud800", "\x00", "e9", "∞", r"\begin{pmatrix}", "[", "]", ",", "!", "\\"]
)  # fmt: skip


@given(st.one_of(st.text(max_size=200), st.lists(TOKENS, max_size=25).map("".join)))
def test_extraction_and_numbers_never_raise(text: str) -> None:
    found = extract_answer(text)
    assert found.reason
    assert found.value is None or found.value.strip() == found.value != ""
    plain_number(text)
    equivalence.clean(text)


# Division by a name that sympy must solve for, or a tower of powers, may take the time limit.
@given(st.lists(TOKENS.filter(lambda t: t not in {"^", "!"}), max_size=12).map("".join))
def test_judging_never_raises(text: str) -> None:
    for gold in ("5", r"\frac{x}{2}"):
        assert judge(text, gold).correct in (True, False)


numbers = st.fractions(max_denominator=1000).filter(lambda f: abs(f) < 10**9)


@given(numbers, numbers)
def test_plain_numbers_are_equal_exactly_when_they_are(a: object, b: object) -> None:
    assert equivalent(str(a), str(b))[0] == (a == b)
    assert equivalent(str(a), str(a))[0]


@given(st.integers(-(10**12), 10**12))
def test_integers_survive_every_spelling(n: int) -> None:
    for spelling in (f"{n:,}", f"{n}.0", f"{n}.", f"${n}$", f"{n}\\%", f"{n} apples", f"{n}/1"):
        assert plain_number(spelling) == n, spelling


# The worker


@pytest.fixture
def quick_worker(monkeypatch: pytest.MonkeyPatch):
    """A worker that gives up after a second; gone afterwards, with the verdicts it left."""
    symbolic._shut_down()
    symbolic.symbolically_equal.cache_clear()
    monkeypatch.setattr(symbolic, "TIME_LIMIT", 1.0)
    yield
    symbolic._shut_down()
    symbolic.symbolically_equal.cache_clear()


def test_a_comparison_that_hangs_is_stopped_in_any_thread(quick_worker: None) -> None:
    tower = r"\boxed{9^{9^{9^{9}}}}"  # one multiplication in C, which no signal interrupts
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(judge(tower, "5")))
    start = time.monotonic()
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert time.monotonic() - start < 30
    assert not verdicts[0].correct
    assert verdicts[0].reason == f"boxed; {symbolic.TIMED_OUT}"
    assert is_correct(r"\boxed{1+x}", "x+1")  # by a new worker


def test_threads_share_the_worker(quick_worker: None) -> None:
    wrong = []

    def work(k: int) -> None:
        if not is_correct(rf"\boxed{{x+{k}}}", f"{k}+x") or is_correct(rf"\boxed{{x+{k}}}", "x-1"):
            wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert wrong == []


def test_a_worker_that_died_is_replaced(quick_worker: None) -> None:
    assert is_correct(r"\boxed{x+1}", "1+x")
    assert symbolic._worker is not None
    symbolic._worker.process.kill()
    assert is_correct(r"\boxed{x+2}", "2+x")


def test_a_fork_does_not_use_its_parents_worker(quick_worker: None) -> None:
    assert is_correct(r"\boxed{x+1}", "1+x")
    parents = symbolic._worker
    symbolic._forget()  # what runs in the child after os.fork()
    try:
        assert symbolic._worker is None
        assert is_correct(r"\boxed{x+2}", "2+x")
        assert symbolic._worker is not None
        assert symbolic._worker.process.pid != parents.process.pid  # type: ignore[union-attr]
    finally:
        symbolic._inherited.remove(parents)  # type: ignore[arg-type]
        parents.close()  # type: ignore[union-attr]


def test_an_interrupted_comparison_leaves_no_stale_reply(
    quick_worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_correct(r"\boxed{x+1}", "1+x")

    def interrupted(self: object, request: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(symbolic._Worker, "ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            is_correct(r"\boxed{x+2}", "3+x")
    assert symbolic._worker is None
    assert is_correct(r"\boxed{x+2}", "2+x")


def test_a_worker_that_cannot_start_says_what_to_install(
    quick_worker: None, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    blocker = os.path.join(str(tmp_path), "math_verify")
    os.mkdir(blocker)
    with open(os.path.join(blocker, "__init__.py"), "w") as file:
        file.write("raise ImportError('No module named math_verify')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    with pytest.raises(ConfigError, match=r"pip install 'math-verify\[antlr4_9_3\]'"):
        is_correct(r"\boxed{x+1}", "1+x")


def test_response_code_is_never_run(tmp_path: object) -> None:
    target = os.path.join(str(tmp_path), "pwned")
    for code in (
        f"__import__('os').system('touch {target}')",
        rf"\text{{__import__('os').system('touch {target}')}}",
        f"exec(open('{target}','w'))",
        rf"\input{{{target}}}",
        rf"\write18{{touch {target}}}",
    ):
        assert not is_correct(rf"\boxed{{{code}}}", "5")
        assert not is_correct(rf"\boxed{{{code}}}", "x+5")
    assert not os.path.exists(target)
