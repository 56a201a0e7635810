"""Responses and golds for the answer checkers; all written for this project.

The LaTeX answers of `MATH_ANSWERS` are of the kind that MATH (MIT licence) has.
"""


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
        (
            box(r"\begin{pmatrix}-1&0\\0&-1\end{pmatrix}"),
            r"\begin{bmatrix} -1 & 0 \\ 0 & -1 \end{bmatrix}",
        ),
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
        (box(r"\begin{pmatrix}1&1\\0&1\end{pmatrix}"), r"\begin{pmatrix}1&0\\0&1\end{pmatrix}"),
        (box("__import__('os').system('true')"), "5"),
    ],
    "words": [
        (box("seat"), "east"),  # an anagram: e*a*s*t would be commutative
        (box(r"\text{seat}"), r"\text{east}"),
        (box("D"), r"\text{(C)}"),
        ("the answer is north", "south"),
    ],
}  # fmt: skip


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


MATH_STYLE = r"""
\frac{14}{3} | p - q | 3\sqrt{13} | 6 - 5i | 70 \sqrt{2} | x^5 - x^4 + x^3 - x^2 + x - 1 | 3R^2
-\frac{\pi}{6} | (6,31,-1) | x^3+3x-6 | 2516_8 | \cot x | (-2,1) | 1 \pm \sqrt{19} | 2k+2 | -13x+3
\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix} | (a+5)(b+2) | (3,4] | \frac43 | 1+274i | 204_5
\frac{\sqrt{3}}{3} | 5x - 7y + 11z + 4 = 0 | (2,\infty) | 288 \pi | \left( \frac{3}{2}, -13 \right)
\left(\frac{3}{5},\frac{8}{3}\right] | \frac{11+9a}{20} | 6r^2-4r-24 | 11 \sqrt{5} + 11
(0,9) \cup (9,36) | \frac{20000}{\pi} | x \in [-2,7] | \{1\pm\sqrt{5},-2\}
\left[ \frac{\pi^2}{8}, \frac{5 \pi^2}{4} \right]
"""
MATH_ANSWERS = [
    part.strip() for line in MATH_STYLE.splitlines() for part in line.split("|") if part
]

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
