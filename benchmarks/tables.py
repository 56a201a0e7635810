"""Write the table of docs/performance.md from benchmarks/results/*.json.

python benchmarks/tables.py           # rewrites the part between the markers
python benchmarks/tables.py --check   # exit 1 where the page is not what the results say
"""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
START, END = "<!-- results -->\n", "<!-- end of results -->\n"
WATCHING = ("<!-- watching -->\n", "<!-- end of watching -->\n")


def section(result: dict[str, Any]) -> str:
    machine, settings = result["machine"], result["settings"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    where = machine["device"] + (f", {threads}" if settings["dtype"] == "float32" else "")
    compiled = ", compiled" if settings["compiled"] else ""
    lines = [
        f"### {settings['shape']} on {where}{compiled}",
        "",
        f"{settings['parameters'] / 1e6:.0f}M parameters, {settings['dtype']}, "
        f"{settings['batch']} x {settings['length']} tokens, "
        f"{settings['softened_layers']} softened layers, {settings['dims']} dim(s) each; "
        f"torch {machine['torch']}, transformers {machine['transformers']}, {machine['date']}.",
        "",
        "| | unpatched | softened / unpatched | A/A (noise) | goal | |",
        "|---|---:|---|---|---:|---|",
        *(row(name, case) for name, case in result["cases"].items()),
        *memory(result["cases"]),
    ]
    return "\n".join(lines) + "\n"


def row(name: str, case: dict[str, Any]) -> str:
    seconds, goal = case["seconds"]["A"], case["goal"]
    return (
        f"| {name} | {1000 * seconds:.1f} ms | {interval(case['S'])} | {interval(case['A/A'])} | "
        f"{goal:.2f} | {verdict(case['S'], goal)} |"
    )


def interval(ratio: dict[str, float]) -> str:
    return f"{ratio['ratio']:.4f} [{ratio['low']:.4f}, {ratio['high']:.4f}]"


def verdict(ratio: dict[str, float], goal: float) -> str:
    """Met or missed only where the whole interval says so."""
    if ratio["high"] <= goal:
        return "met"
    if ratio["low"] > goal:
        return "missed"
    return "met, within noise" if ratio["ratio"] <= goal else "open: noise"


def memory(cases: dict[str, Any]) -> list[str]:
    backward = cases["forward+backward"]["memory"]
    detection = cases["detection"]["memory"]
    return [
        "",
        f"Peak memory of forward+backward: {backward['ratio']:.5f} of unpatched (A/A "
        f"{backward['ratio_A/A']:.5f}; goal {backward['goal']}). Detection needs "
        f"{detection['share_of_weights']:.2%} of the weights above the forward pass of its texts "
        f"(goal {detection['goal']:.0%}).",
    ]


def watched(result: dict[str, Any]) -> str:
    """One row of the table of `watching.py`."""
    machine, settings, case = result["machine"], result["settings"], result["watching"]
    texts, length = settings["probe"]
    return (
        f"| {settings['shape']}, {settings['dtype']}, {settings['batch']} x {settings['length']} "
        f"tokens | {machine['device']}, {machine['threads']} thread(s) | "
        f"{case['seconds']['A']:.2f} s | {case['seconds_watching']:.2f} s, {texts} x {length} "
        f"tokens | {interval(case['W'])} | "
        f"{interval(case['A/A'])} | {case['goal']:.2f} | {verdict(case['W'], case['goal'])} |"
    )


def watching(results: list[dict[str, Any]]) -> str:
    return "\n".join(
        [
            "| training | on | a step | probe | watched / not watched | A/A (noise) | goal | |",
            "|---|---|---:|---|---|---|---:|---|",
            *map(watched, results),
        ]
    )


def between(page: str, start: str, end: str, text: str) -> str:
    """The page with what is between two of its markers replaced."""
    before, rest = page.split(start)
    return before + start + "\n" + text + "\n" + end + rest.split(end)[1]


def page() -> str:
    results = [json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))]
    softened = "\n".join(section(result) for result in results if "cases" in result)
    text = between(PAGE.read_text(), START, END, softened)
    rows = watching([result for result in results if "watching" in result])
    return between(text, *WATCHING, rows + "\n")


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text() != page())
    PAGE.write_text(page())
    print(PAGE)
