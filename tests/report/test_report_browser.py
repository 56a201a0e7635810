"""report.html as a reader meets it: in headless Chromium, on a screen, a phone and paper.

How it is opened is in browser_support.py.
"""

import re
from collections import Counter
from itertools import permutations
from pathlib import Path

import browser_support
import pytest
from browser_support import CONTRASTS, PHONE, SCREEN, SIDEWAYS, WCAG_AA, unfold
from playwright.sync_api import Page
from report_cases import ARMS, ITEMS, RIGHT, made_up, made_up_report, made_up_samples

from wemask.compare.results import validate_results
from wemask.compare.verdict import arm_words
from wemask.report.report import build_figures, render_html

browser, visit = browser_support.browser, browser_support.visit  # fixtures

FOCUS = """() => {
  const element = document.activeElement, style = getComputedStyle(element);
  const box = element.getBoundingClientRect();
  return {
    tag: element.tagName.toLowerCase(),
    label: element.getAttribute("aria-label") || element.name || element.textContent.trim(),
    outline: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
    seen: box.bottom > 0 && box.top < innerHeight && box.width > 0,
  };
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page as a file, opened as a colleague would who got it by mail."""
    data = made_up()
    text = render_html(
        validate_results(data), build_figures(data, made_up_report()), made_up_samples(data)
    )
    path = tmp_path_factory.mktemp("mail") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path.as_uri()


def shown_ids(page: Page) -> list[str]:
    """The ids of the examples on the screen."""
    return page.evaluate(
        """() => [...document.querySelectorAll(".example > summary")]
          .filter((s) => s.checkVisibility()).map((s) => s.innerText.split(/\\s+/)[1])"""
    )


def disagree(task: str, right: str, wrong: str) -> set[str]:
    """Ids that the one arm gets right and the other wrong, from how the samples are made up."""
    spans = [range(5 * k, 5 * k + RIGHT[task][k]) for k in map(ARMS.index, (right, wrong))]
    return {f"{task}-{i}" for i in range(ITEMS[task]) if i in spans[0] and i not in spans[1]}


# ------------------------------------------------------------------------- what the page loads


@pytest.mark.parametrize("width", [PHONE, SCREEN])
def test_it_loads_nothing_and_complains_about_nothing(visit, address, width):
    page, messages, requests = visit(width=width)
    unfold(page)
    page.wait_for_load_state("networkidle")
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [address]


def test_every_figure_is_drawn_and_has_words(visit):
    page = visit().page
    images = page.evaluate(
        "[...document.images].map((i) => [i.complete, i.naturalWidth, i.clientWidth, i.alt])"
    )
    assert len(images) == len(build_figures(made_up(), made_up_report())) == 7
    for complete, natural, drawn, alt in images:
        assert complete
        assert natural > 0
        assert drawn > 300
        assert len(alt) > 60
    assert page.locator("figure").count() == page.locator("figcaption").count() == 7
    headings = page.locator("h2").all_inner_texts()
    assert headings[0] == "Verdict"
    assert headings[-1] == "How this was made"


# --------------------------------------------------------------------------------- the filter


def test_the_filter_shows_what_was_asked_for(visit):
    page = visit().page
    form, count = page.locator("#filter"), page.locator("#count")
    everything = shown_ids(page)
    assert form.is_visible()
    assert count.inner_text() == f"{len(everything)} of {len(everything)} shown"
    for right, wrong in permutations(ARMS, 2):
        page.locator("select[name=pair]").select_option(
            label=f"{arm_words(right)} right, {arm_words(wrong)} wrong"
        )
        expected = [disagree(task, right, wrong) for task in ITEMS]
        shown = shown_ids(page)
        assert shown == [i for i in everything if i in set().union(*expected)], (right, wrong)
        # The report promises five of every task and pair, where there are as many.
        assert len(shown) >= sum(min(5, len(ids)) for ids in expected)
        assert count.inner_text() == f"{len(shown)} of {len(everything)} shown"
    page.locator("select[name=pair]").select_option(value="")
    page.locator("select[name=task]").select_option(label="gsm8k")
    tasks = Counter(i.partition("-")[0] for i in everything)
    assert len(shown_ids(page)) == tasks["gsm8k"] > 0
    assert all(i.startswith("gsm8k") for i in shown_ids(page))
    page.locator("select[name=task]").select_option(label="all")
    assert shown_ids(page) == everything


def test_a_pair_shows_only_its_two_arms(visit):
    page = visit().page
    pair = f"{arm_words('wemask_sft')} right, {arm_words('base')} wrong"
    page.locator("select[name=pair]").select_option(label=pair)
    unfold(page)
    heads = {h.inner_text() for h in page.locator(".output h3").all() if h.is_visible()}
    assert heads == {"base: wrong", "WeMask-SFT: right"}
    badges = {b.inner_text() for b in page.locator(".badge").all() if b.is_visible()}
    assert badges == heads


def test_a_pair_that_never_disagrees_shows_nothing_and_says_so(visit):
    page = visit().page
    page.locator("select[name=task]").select_option(label="gsm8k")
    page.locator("select[name=pair]").select_option(label="base right, SFT wrong")
    assert shown_ids(page) == []
    assert page.locator("#count").inner_text().startswith("0 of ")


def test_without_scripts_everything_is_shown_and_the_filter_is_not(visit):
    everything = shown_ids(visit().page)
    page, messages, _ = visit(java_script_enabled=False)
    assert not page.locator("#filter").is_visible()
    assert shown_ids(page) == everything
    assert page.locator("img").count() == 7
    assert [m for m in messages if "script" not in m] == []
    page.locator(".example > summary").nth(1).click()  # folding needs no script
    assert page.locator(".example").nth(1).locator("pre").first.is_visible()


# ------------------------------------------------------------------ phones, colours, keys, paper


@pytest.mark.parametrize("width", [320, PHONE, 600, SCREEN])
def test_nothing_but_tables_scrolls_sideways(visit, width):
    page = visit(width=width).page
    unfold(page)
    assert page.evaluate(SIDEWAYS) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    texts = page.evaluate("parseFloat(getComputedStyle(document.querySelector('td')).fontSize)")
    assert texts >= 13  # px


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(visit, scheme):
    page = visit(color_scheme=scheme).page
    unfold(page)
    found = page.evaluate(CONTRASTS)
    assert [f for f in found if f[1] < WCAG_AA] == []
    assert len({colours for _, _, colours in found}) >= 6  # quiet, right, wrong, notes, ...
    page_colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (page_colour == "rgb(255, 255, 255)") == (scheme == "light")


def test_keys_reach_everything_and_the_focus_is_seen(visit):
    page = visit().page
    stops = []
    for _ in range(14):
        page.keyboard.press("Tab")
        stops.append(page.evaluate(FOCUS))
    assert all(stop["outline"] >= 2 and stop["seen"] for stop in stops), stops
    labels = [stop["label"] for stop in stops]
    assert labels[0] == "Accuracy by arm"
    order = ["Differences between arms", "Every layer in numbers", "task", "pair"]
    assert [label for label in labels if label in order] == order
    page.locator("summary", has_text="Every layer in numbers").focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("region", name="Every layer in numbers").is_visible()


def test_it_prints(visit, tmp_path: Path):
    """On paper: no form, light colours whatever the screen's scheme, several A4 pages."""
    page = visit(color_scheme="dark").page
    page.emulate_media(media="print")
    assert not page.locator("#filter").is_visible()
    assert page.locator(".example").first.is_visible()
    assert not page.locator(".example").nth(1).is_visible()  # folded
    assert page.get_by_text("Folded parts of the page are not printed").is_visible()
    assert [f for f in page.evaluate(CONTRASTS) if f[1] < WCAG_AA] == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    paper = (tmp_path / "report.pdf").read_bytes()
    assert paper.startswith(b"%PDF")
    assert 1 < len(re.findall(rb"/Type\s*/Page\b", paper)) < 12
