"""What our pages have in common: templates, their filters, the style, figures that need no file."""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from wemask.compare.verdict import (
    OUTCOME_WORDS,
    arm_words,
    p_value_words,
    percent,
    points,
    unit_words,
)
from wemask.report.disagreements import visible
from wemask.report.figures import ReportFigure
from wemask.report.style import svg_text

TEMPLATES = Path(__file__).parent / "templates"


def style() -> Markup:
    """The style sheet of every page. Trusted: the file is ours."""
    return Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))


def pictures(figures: Sequence[ReportFigure]) -> list[dict[str, Any]]:
    """What the macro `pictures_of` reads: every figure with its address."""
    return [{"figure": figure, "uri": svg_uri(figure.figure)} for figure in figures]


def svg_uri(figure: Figure) -> str:
    """A figure as the address of an image that needs no file."""
    encoded = base64.b64encode(svg_text(figure).encode()).decode()
    return f"data:image/svg+xml;base64,{encoded}"


def template_environment(*, autoescape: bool) -> Environment:
    """Templates of this package, with the filters that they share."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,  # a misspelt name is an error, not a hole in the page
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {
        "arm": arm_words,
        "percent": percent,
        "points": points,
        "p": p_value_words,
        "unit": unit_words,
        "reading": lambda finding: OUTCOME_WORDS[finding.outcome],
        "visible": visible,
        "yaml": _yaml,
        "cell": _markdown_cell,
        "fenced": _markdown_fence,
    }
    return templates


def _yaml(settings: dict[str, Any]) -> str:
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _markdown_cell(value: object) -> str:
    """Text that stays text inside a Markdown table or sentence."""
    text = html.escape(visible(str(value)).replace("\n", " "), quote=False)
    text = re.sub(r"([\\`*|\[\]])", r"\\\1", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\_", text)


def _markdown_fence(text: str) -> str:
    """A code block that its own content cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{visible(text)}\n{fence}"
