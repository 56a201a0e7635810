"""What our pages have in common: templates, their filters, the style, figures that need no file."""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from wemask.compare import verdict
from wemask.detection.me_layer import MELayerReport
from wemask.report.disagreements import visible
from wemask.report.figures import ReportFigure
from wemask.report.style import svg_text

FOLDER = Path(__file__).parent / "templates"


def render(
    template: str, detected: MELayerReport, figures: Sequence[ReportFigure], **facts: Any
) -> str:
    """Fill a template. An HTML page loads nothing: style and figures are inside.

    There, whatever comes from a model or a dataset is escaped; the style is ours.
    """
    if template.endswith(".html"):
        facts |= {
            "style": trusted("report.css"),
            "pictures": [{"figure": item, "uri": _address(item)} for item in figures],
        }
    facts |= {"told": detected.told, "others": detected.others}
    facts |= {"criterion": detected.criterion.describe(), "figures": figures}
    return TEMPLATES.get_template(template).render(facts)


def trusted(name: str) -> Markup:
    """A file of ours that goes into a page as it is."""
    return Markup((FOLDER / name).read_text(encoding="utf-8"))


def _address(item: ReportFigure) -> str:
    """A figure as the address of an image that needs no file."""
    encoded = base64.b64encode(svg_text(item.figure).encode()).decode()
    return f"data:image/svg+xml;base64,{encoded}"


def _yaml(settings: dict[str, Any]) -> str:
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _markdown_cell(value: object) -> str:
    """Text that stays text inside a Markdown table or sentence."""
    text = html.escape(visible(str(value)).replace("\n", " "), quote=False)
    text = re.sub(r"([\\`*|\[\]])", r"\\\1", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\_", text)


def _markdown_fence(text: str) -> str:
    """A code block that its own content cannot close."""
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{visible(text)}\n{fence}"


TEMPLATES = Environment(
    loader=FileSystemLoader(FOLDER),
    autoescape=select_autoescape(),
    undefined=StrictUndefined,  # a misspelt name is an error, not a hole in the page
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters |= {
    "arm": verdict.arm_words,
    "percent": verdict.percent,
    "points": verdict.points,
    "p": verdict.p_value_words,
    "unit": verdict.unit_words,
    "reading": lambda finding: verdict.OUTCOME_WORDS[finding.outcome],
    "visible": visible,
    "yaml": _yaml,
    "cell": _markdown_cell,
    "fenced": _markdown_fence,
}
