"""analysis.html: one page that loads nothing, escapes what it is told, and holds what was found."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import analysis_cases as cases
import browser_support
import pytest
from browser_support import CONTRASTS, PHONE, SCREEN, SIDEWAYS, WCAG_AA, Opened, unfold
from report_cases import ATTACK, made_up_report

from wemask.analyse.figures import build_analysis_figures
from wemask.analyse.page import AnalysisFacts, condition_summary, render_analysis
from wemask.analyse.rows import change_words

browser, visit = browser_support.browser, browser_support.visit  # fixtures


class Page(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text() -> str:
    given = cases.tables()
    facts = cases.facts(given, notes=["Few texts."])
    figures = build_analysis_figures(given, made_up_report(), facts["findings"])
    return render_analysis(facts, given, figures)


@pytest.fixture(scope="module")
def address(text: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("mail") / "analysis.html"
    path.write_text(text, encoding="utf-8")
    return path.as_uri()


def sections(text: str) -> list[str]:
    return re.findall(r'<h2 id="([^"]+)"', text)


def test_the_page_loads_nothing_and_runs_nothing(text: str) -> None:
    page = Page(text)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "base", "script", "form"), tag
        for name in ("src", "href", "srcset", "action", "style"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "url(" not in text.split("</style>")[0]


def test_every_figure_has_words(text: str) -> None:
    images = Page(text).all("img")
    assert len(images) == 13
    assert all(len(image["alt"]) > 60 for image in images)
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in images)
    assert text.count("<figcaption>") == 13


def test_all_sections_are_there_in_reading_order(text: str) -> None:
    assert sections(text) == [
        *("verdict", "notes", "layers", "metrics", "necessity", "sufficiency", "location"),
        *("specificity", "dose", "quadratic", "cost", "made"),
    ]
    words = " ".join(Page(text).text.split())
    assert "Do the sinks need what the ME Layer writes?" in words
    assert "uniform: There is no norm." in words
    assert "wemask analyse --model tiny" in words
    assert "tables/layers.parquet" in words
    assert "3.0 seconds in all" in words
    for row in cases.facts(cases.tables())["findings"]:
        assert all(row[key] in words for key in ("done", "metric", "over", "reading"))
        assert change_words(row["change"]) in words or row["change"] is None


def test_a_section_without_anything_to_say_is_left_out() -> None:
    given = {"layers": cases.layers(massive=False)}
    facts = cases.facts(given, impossible=[], costs=[])
    figures = build_analysis_figures(given, made_up_report(), facts["findings"])
    page = render_analysis(facts, given, figures)
    assert sections(page) == ["verdict", "layers", "metrics", "experiments", "made"]
    assert "None was run." in page
    facts = cases.facts({})  # a condition that was impossible is said, though there is no table
    assert sections(render_analysis(facts, {}, [])) == [
        *("verdict", "layers", "specificity", "cost", "made")
    ]


def test_hostile_strings_stay_text() -> None:
    attack = dict.fromkeys(("done", "metric", "over", "reading"), ATTACK)
    attack |= dict.fromkeys(("before", "now", "change", "low", "high"), 0.5)
    facts: AnalysisFacts = cases.facts(
        {},
        command=ATTACK,
        machine=ATTACK,
        created=ATTACK,
        wemask_version=ATTACK,
        versions={ATTACK: ATTACK},
        settings={ATTACK: ATTACK},
        notes=[ATTACK],
        files=[ATTACK],
        findings=[attack | {"experiment": name} for name in ("necessity", "metrics", "dose")],
        impossible=[{"experiment": "dose", "condition": ATTACK, "reason": ATTACK}],
        model={"name": ATTACK, "path": ATTACK, "parameters": 1, "dtype": ATTACK},
        texts={"description": ATTACK, "count": 1, "tokens": 2, "massive_tokens": 0},
        costs=[{"part": ATTACK, "seconds": 1.0, "forwards": 1, "peak_memory": 1, "device": ATTACK}],
    )
    table = cases.dose()
    table["group"] = table["group"].replace("wemask", ATTACK)
    page = Page(render_analysis(facts, {"layers": cases.layers(), "dose": table}, []))
    assert page.all("script") == page.all("img") == []
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert page.text.count(ATTACK) >= 15


def test_the_table_of_conditions_holds_the_rows_without_a_layer() -> None:
    summary = condition_summary(cases.necessity(0.8, {2: 0.0}), "c")
    assert summary["head"][:3] == ["condition", "layer", "c"]
    assert "draw" not in summary["head"]  # nothing was drawn
    mass = summary["head"].index("sink mass")
    first = summary["rows"][0]
    assert first[:3] == ["what the FFN reads", "1", "0"]
    assert first[mass] == "0.08"
    assert len(summary["rows"]) == 7


# ------------------------------------------------------------------------------------- a browser


@pytest.mark.parametrize("width", [PHONE, SCREEN])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_it_is_whole_and_readable(
    visit: Callable[..., Opened], address: str, width: int, scheme: Any
) -> None:
    page, messages, requests = visit(width=width, color_scheme=scheme)
    unfold(page)
    page.wait_for_load_state("networkidle")
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [address]
    drawn = page.evaluate("[...document.images].map((i) => [i.complete, i.naturalWidth])")
    assert len(drawn) == 13
    assert all(complete and natural > 0 for complete, natural in drawn)
    assert page.evaluate(SIDEWAYS) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert [found for found in page.evaluate(CONTRASTS) if found[1] < WCAG_AA] == []


def test_it_prints(visit: Callable[..., Opened], tmp_path: Path) -> None:
    page = visit(color_scheme="dark").page
    page.emulate_media(media="print")
    assert page.get_by_text("Folded parts of the page are not printed").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.pdf(path=tmp_path / "analysis.pdf", format="A4")
    assert (tmp_path / "analysis.pdf").read_bytes().startswith(b"%PDF")
