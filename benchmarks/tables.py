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


def page() -> str:
    results = [json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))]
    before, rest = PAGE.read_text().split(START)
    after = rest.split(END)[1]
    return before + START + "\n" + "\n".join(map(section, results)) + "\n" + END + after


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text() != page())
    PAGE.write_text(page())
    print(PAGE)
