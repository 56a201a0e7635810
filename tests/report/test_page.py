"""What every page is filled with, and how text stays text in Markdown."""

import re

import pytest
from jinja2 import DictLoader, UndefinedError
from markdown_it import MarkdownIt
from report_cases import ATTACK, made_up_report

from wemask.report.figures import layer_figures
from wemask.report.page import TEMPLATES, render, trusted


def test_a_misspelt_name_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="headlin"):
        TEMPLATES.from_string("{{ headlin }}").render(headline="x")


@pytest.mark.parametrize("name", ["report.html", "studies.html", "analysis.html", "report.md"])
def test_pages_are_escaped_and_markdown_is_not(name: str) -> None:
    escaped = TEMPLATES.autoescape
    assert callable(escaped) and escaped(name) == name.endswith("html")


def test_html_holds_style_and_figures_and_what_a_model_wrote_is_escaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = made_up_report()
    wanted = "{{ style }}|{{ pictures[0].uri }}|{{ criterion }}|{{ text }}"
    monkeypatch.setattr(TEMPLATES, "loader", DictLoader({"probe.html": wanted}))
    page = render("probe.html", report, layer_figures(report), text=ATTACK)
    style, uri, criterion, text = page.split("|")
    assert style == trusted("report.css")
    assert uri.startswith("data:image/svg+xml;base64,")
    assert criterion and "<script>" not in text


@pytest.mark.parametrize("text", ["a|b", "*x* `y` [z](w)", "_it_ snake_case", "<b>&amp;\nline"])
def test_a_markdown_cell_is_plain_text(text: str) -> None:
    cell = TEMPLATES.filters["cell"](text)
    table = MarkdownIt("gfm-like", {"linkify": False}).parse(f"| a |\n| - |\n| {cell} |\n")
    inline = [token for token in table if token.type == "inline"][-1]
    assert {child.type for child in inline.children or []} <= {"text", "text_special"}
    shown = "".join(child.content for child in inline.children or [])
    assert shown == text.replace("\n", " ")


@pytest.mark.parametrize("text", ["plain", "``` fence", "`````\nlonger", ""])
def test_a_fence_is_longer_than_any_within(text: str) -> None:
    fenced = TEMPLATES.filters["fenced"](text)
    (block,) = MarkdownIt().parse(fenced)
    assert block.type == "fence" and block.content.rstrip("\n") == text
    assert re.match(r"`{3,}text\n", fenced)
