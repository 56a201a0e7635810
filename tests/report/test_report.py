import base64
import copy
import hashlib
import io
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from figure_cases import dosed, studied
from markdown_it import MarkdownIt
from report_cases import ATTACK, made_up, made_up_report, made_up_samples
from rich.console import Console

from wemask.compare.results import Results, validate_results
from wemask.compare.verdict import headline, specificity
from wemask.errors import DataError
from wemask.files import write_whole
from wemask.report.report import (
    ReportFigure,
    build_figures,
    render_html,
    render_markdown,
    terminal_table,
    write_report,
)


@pytest.fixture(scope="module")
def results() -> Results:
    return validate_results(made_up())


@pytest.fixture(scope="module")
def figures(results: Results) -> list[ReportFigure]:
    return build_figures(results, made_up_report())


@pytest.fixture(scope="module")
def page(results: Results, figures: list[ReportFigure]) -> str:
    return render_html(results, figures, made_up_samples(results))


class Page(HTMLParser):
    """Records elements, and fails on tags that are not closed in order."""

    VOID = ("meta", "img", "br", "input", "link", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.content: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)
            self.content.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            self.content[tag][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_loads_nothing(page: str) -> None:
    parsed = Page(page)
    for tag, attributes in parsed.elements:
        assert tag not in ("link", "iframe", "object", "base"), tag
        for name in ("src", "href", "srcset", "action", "style"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    assert "url(" not in parsed.content["style"][0]
    assert "@import" not in parsed.content["style"][0]
    policy = next(m["content"] for m in parsed.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'")


def test_the_only_script_is_ours_and_the_policy_names_it(page: str) -> None:
    (script,) = Page(page).content["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page


def test_what_a_model_wrote_is_text(page: str) -> None:
    parsed = Page(page)
    assert any(ATTACK in text for text in parsed.content["pre"])
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in parsed.all("img"))
    assert not any(key.startswith("on") for _, attributes in parsed.elements for key in attributes)


def test_every_string_of_the_results_is_escaped() -> None:
    data = made_up()
    data["notes"] = [ATTACK]
    data["command"] = data["machine"] = data["model"]["path"] = data["model"]["name"] = ATTACK
    data["versions"][ATTACK] = ATTACK
    for key in ("arms", "arm_info", "settings"):
        data[key][ATTACK] = data[key].pop("training_free")
    data["arm_info"][ATTACK]["arm"] = ATTACK
    data["comparisons"][0]["a"] = ATTACK
    data["tasks"]["arith"].update(note=ATTACK, source=ATTACK, metric=ATTACK, template_sha256=ATTACK)
    data["me_layer"]["layers"][0]["token"] = ATTACK
    data["softening"]["config"][ATTACK] = ATTACK
    checked = validate_results(data)
    parsed = Page(render_html(checked, build_figures(checked, None)))
    assert len(parsed.all("script")) == 1
    assert ATTACK in parsed.content["title"][0]
    assert not any("onerror" in attributes for _, attributes in parsed.elements)


def test_whitespace_of_prompts_is_kept(page: str) -> None:
    # The parser of HTML drops one line break after <pre>, so the page must hold one more.
    prompt = f"\n  Q 0:\t{ATTACK}\n\n    indented"
    assert any(text == f"\n{prompt}" for text in Page(page).content["pre"])
    assert "white-space: pre-wrap" in page


def test_figures_have_words_for_those_who_cannot_see_them(page: str) -> None:
    images = Page(page).all("img")
    assert len(images) == 7  # two tasks, forest, layers, relief, softening, sink maps
    assert all(len(image["alt"]) > 60 for image in images)
    assert "base 23.0%, interval" in images[0]["alt"]
    for image in images:
        assert b"<svg" in base64.b64decode(image["src"].partition(",")[2])


def test_the_page_has_one_outline(page: str) -> None:
    parsed = Page(page)
    assert ("html", {"lang": "en"}) in parsed.elements
    assert len(parsed.all("h1")) == 1
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = {a["aria-labelledby"] for a in parsed.all("section")}
    assert labels <= set(ids)
    assert any(m.get("name") == "viewport" for m in parsed.all("meta"))
    # Wide tables scroll by themselves, with keys as well.
    assert page.count('class="scroll"') == len(parsed.all("table"))
    assert parsed.content["h2"][0] == "Verdict"


def test_examples_carry_what_the_filter_reads(page: str) -> None:
    examples = [a for a in Page(page).all("details") if "data-task" in a]
    assert examples
    for example in examples:
        right, wrong = example["data-right"].split(), example["data-wrong"].split()
        assert right
        assert wrong
        assert {*right, *wrong} == {"0", "1", "2", "3"}


def test_results_without_comparisons_softening_or_examples_still_make_a_page() -> None:
    data = made_up()
    data.update(comparisons=[], softening=None, notes=[])
    checked = validate_results(data)
    text = render_html(checked, [])
    for words in ("No two arms were compared.", "Nothing was softened.", "There are none:"):
        assert words in text
    assert 'id="filter"' not in text


def test_the_settings_of_every_arm_are_shown(results: Results) -> None:
    settings = {"model": {"name": "tiny"}, "note": f"\u202e{ATTACK}", "trainer": {"lr": 1e-3}}
    folded = Page(render_html({**results, "settings": settings}, [])).content["pre"][-2]
    assert yaml.safe_load(folded.replace("\\u202e", "")) == {**settings, "note": ATTACK}
    assert folded.index("model:") < folded.index("trainer:")  # in the order of the configs


def luminance(colour: str) -> float:
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.03928 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def schemes(page: str) -> Iterator[dict[str, str]]:
    for block in re.findall(r":root \{(.*?)\}", page, re.DOTALL):
        yield dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block))


def test_colours_meet_wcag_aa(page: str) -> None:
    """WCAG 2.2, 1.4.3: contrast of at least 4.5 between text and what lies behind it."""
    light, dark, _print = list(schemes(page.replace("#fff;", "#ffffff;")))
    assert light["page"] != dark["page"]
    for scheme in (light, dark):
        pairs = [("ink", "page"), ("ink", "panel"), ("quiet", "page"), ("accent", "page")]
        pairs += [("right", "page"), ("wrong", "page"), ("warn-ink", "warn")]
        for text, behind in pairs:
            high, low = sorted((luminance(scheme[text]), luminance(scheme[behind])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, behind, scheme)


# ------------------------------------------------------------------------ Markdown and terminal


def test_markdown_says_the_same_and_links_the_figures(
    results: Results, figures: list[ReportFigure]
) -> None:
    text = render_markdown(results, figures, made_up_samples(results))
    lines = text.splitlines()
    assert lines[0] == "# WeMask on tiny"
    assert "On arith, WeMask-SFT scored 7.0 points higher than SFT" in text
    for figure in figures:
        assert f"(figures/{figure.name}.png)" in text
    assert "| base | 23.0% (18.9% to 27.1%) | 0.0% (0.0% to 0.6%) |" in lines


def test_markdown_shows_first_what_divides_the_arms_in_question(results: Results) -> None:
    text = render_markdown(results, [], made_up_samples(results))
    # sft is right on [10, 294), wemask_sft on [15, 327): 10 is the first item between them.
    shown = re.findall(r"^### arith, (\S+)$", text, re.MULTILINE)
    assert shown == ["arith-10", "arith-11"]


def test_markdown_survives_hostile_text() -> None:
    data = made_up()
    data["tasks"] = {"a|b*c_d_`": data["tasks"]["arith"]}
    data["arms"] = {arm: {"a|b*c_d_`": scores["arith"]} for arm, scores in data["arms"].items()}
    data["comparisons"] = [{**c, "task": "a|b*c_d_`"} for c in data["comparisons"][:2]]
    data["notes"] = [f"{ATTACK}\n# not a heading", "see wemask_sft and __init__"]
    samples = {
        (arm, "a|b*c_d_`"): [
            {**s, "output": "````\n</pre> # no heading" + s["output"]} for s in run
        ]
        for (arm, task), run in made_up_samples(data).items()
        if task == "arith"
    }
    checked = validate_results(data)
    text = render_markdown(checked, [], samples)
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    inline = [t.content for t in tokens if t.type == "inline"]
    headings = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    assert not any("no heading" in h or "not a heading" in h for h in headings)
    children = [child for t in tokens for child in t.children or []]
    assert not [c for c in children if c.type == "html_inline"]
    assert not [t for t in tokens if t.type == "html_block"]
    fences = [t.content for t in tokens if t.type == "fence"]
    assert any("````\n</pre> # no heading" in content for content in fences)
    assert data["command"] + "\n" in fences
    rows = [line for line in text.splitlines() if line.startswith("| base |")]
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 3
    assert any("wemask_sft" in content for content in inline)


def test_the_terminal_table_takes_names_literally(results: Results) -> None:
    data: Any = copy.deepcopy(results)
    data["arms"]["[red]x[/red]"] = data["arms"].pop("training_free")
    data["comparisons"][0]["a"] = "[red]x[/red]"
    out = io.StringIO()
    Console(file=out, width=120).print(terminal_table(data))
    text = out.getvalue()
    assert "[red]x[/red]" in text
    assert "78.0 [73.9, 82.1]" in text
    assert re.search(r"WeMask-SFT - SFT .*\+7\.0 \[\+2\.8, \+11\.2\], p = 0\.008", text)


# --------------------------------------------------------------------------------- the folder


def test_write_report_writes_everything_it_names(results: Results, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    written = write_report(results, folder, made_up_report(), made_up_samples(results))
    names = sorted(str(path.relative_to(folder)) for path in written)
    figures = ["arms_arith", "arms_gsm8k", "forest", "magnitude_by_layer", "relief"]
    figures += ["sink_maps", "softening_effect"]
    expected = [f"figures/{n}.{s}" for n in figures for s in ("png", "svg")]
    expected += ["relief.npy", "report.html", "report.md", "results.json"]
    assert names == sorted(expected)
    assert all(path.stat().st_size > 0 for path in written)
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(written)
    linked = re.findall(r"\]\((figures/.*?)\)", (folder / "report.md").read_text())
    assert linked
    assert all((folder / link).is_file() for link in linked)


def test_write_report_without_the_detection_leaves_only_the_relief_out(
    results: Results, tmp_path: Path
) -> None:
    names = {path.name for path in write_report(results, tmp_path, None, {})}
    assert "magnitude_by_layer.png" in names
    assert "relief.png" not in names


def test_write_report_of_broken_results_writes_nothing(tmp_path: Path) -> None:
    broken = made_up()
    broken["arms"]["sft"]["arith"]["mean"] = math.nan
    with pytest.raises(
        DataError, match=r"results.arms.sft.arith.mean must be a finite number, got nan"
    ):
        write_report(broken, tmp_path / "out", None, {})
    assert not (tmp_path / "out").exists()


def test_a_model_that_wrote_half_a_character_does_not_stop_the_report(
    results: Results, tmp_path: Path
) -> None:
    samples = made_up_samples(results)
    for run in samples.values():
        run[5]["id"] = "\udcff"
        for sample in run:
            sample["output"] = "\ud83d\x00\x1b"
    for name, render in (("report.html", render_html), ("report.md", render_markdown)):
        write_whole(tmp_path / name, render(results, [], samples))
        assert "\\ud83d\\x00\\x1b" in (tmp_path / name).read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------- studies


@pytest.mark.parametrize(
    ("results", "words"),
    [
        (studied(), "the gain is specific: every one of 2 controls is below it"),
        (
            studied(control=0.18),
            "the gain is not shown to be specific: random dims is not below it (1 of 2 are)",
        ),
        (studied(gain=0.0, p=1.0), "there is no gain that could be specific"),
    ],
    ids=["specific", "random dims do as well", "no gain"],
)
def test_the_verdict_says_whether_a_gain_is_specific(results: Results, words: str) -> None:
    del results["comparisons"][2:3]  # the control's own gain plays no part in it
    assert words in specificity(results, "training_free").replace("\n", " ")


def test_without_controls_nothing_is_said_of_specificity() -> None:
    results = validate_results(made_up())
    assert specificity(results, "training_free") == ""
    assert "specific" not in " ".join(headline(results))


@pytest.mark.parametrize("results", [studied(), dosed()], ids=["controls", "dose"])
def test_the_page_and_the_markdown_show_the_study(results: Results, tmp_path: Path) -> None:
    figures = build_figures(results, None)
    assert all(item.alt for item in figures)
    page, text = render_html(results, figures, {}), render_markdown(results, figures, {})
    if "random_dims" in results["arms"]:
        for content in (page, text):
            assert "Is it specific?" in content and "random dims" in content and "25.0%" in content
    else:
        assert "How much softening" in page
        assert any(item.section == "dose" for item in figures)


def test_aa_pairs_are_counted_and_shown() -> None:
    data = made_up()
    pair = {"task": "arith", "arm": "sft", "seed_a": 1, "seed_b": 0, "delta": 0.1}
    data["same"] = [
        {**pair, "low": 0.05, "high": 0.15, "p_value": 0.001},
        {**pair, "seed_a": 2, "seed_b": 1, "low": -0.05, "high": 0.15, "p_value": 0.4},
    ]
    page = render_html(validate_results(data), [], {})
    assert "A/A: 1 of 2 pairs of runs" in page
