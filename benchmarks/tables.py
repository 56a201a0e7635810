"""Write the tables of docs/performance.md and docs/scale.md from benchmarks/results/*.json.

python benchmarks/tables.py           # rewrites the parts between the markers
python benchmarks/tables.py --check   # exit 1 where a page is not what the results say
"""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
GIB = 2**30
START, END = "<!-- results -->\n", "<!-- end of results -->\n"
SIZES = ("<!-- sizes -->\n", "<!-- end of sizes -->\n")
WATCHING = ("<!-- watching -->\n", "<!-- end of watching -->\n")
GPU_DAY = ("<!-- gpu day -->\n", "<!-- end of gpu day -->\n")


def section(result: dict[str, Any]) -> str:
    machine, settings = result["machine"], result["settings"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    where = machine["device"] + (f", {threads}" if settings["dtype"] == "float32" else "")
    compiled = ", compiled" if settings["compiled"] else ""
    if layers := settings.get("layers"):
        compiled = f", {layers} of its layers{compiled}"
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
    """What the cases that were measured say of memory."""
    backward = cases.get("forward+backward", {}).get("memory")
    detection = cases.get("detection", {}).get("memory")
    said = []
    if backward:
        said.append(
            f"Peak memory of forward+backward: {backward['ratio']:.5f} of unpatched (A/A "
            f"{backward['ratio_A/A']:.5f}; goal {backward['goal']})."
        )
    if detection:
        said.append(
            f"Detection needs {detection['share_of_weights']:.2%} of the weights above the "
            f"forward pass of its texts (goal {detection['goal']:.0%})."
        )
    return ["", " ".join(said)] if said else []


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


# --- a GPU day ------------------------------------------------------------------------------------


def gpu_day(parts: dict[str, dict[str, Any]]) -> str:
    """What one result of `gpu_day.py` says, part by part; nothing of a part that has no figures."""
    lines = []
    if figures := parts.get("overhead", {}).get("figures"):
        lines += [section(result) for result in figures.values()]
    if "sft" in parts:
        lines += ["### SmolLM2-135M-Instruct on GSM8K", "", said_of(parts["sft"]), ""]
        lines += [*trainings(parts["sft"]["figures"]), ""]
    if "arms" in parts.get("evaluate", {}).get("figures", {}):
        lines += ["### Its four arms, asked", "", said_of(parts["evaluate"]), ""]
        lines += [*scores(parts["evaluate"]["figures"]), ""]
    return "\n".join(lines)


def said_of(part: dict[str, Any]) -> str:
    """Where and when; and what its time did not suffice for."""
    versions = ", ".join(f"{name} {part['versions'][name]}" for name in ("torch", "transformers"))
    missing = [name for name, job in part["jobs"].items() if job["status"] != "finished"]
    partial = f" Partial, not finished: {', '.join(missing)}." if missing else ""
    return f"{part['machine']}; {versions}, {part['date']}, {part['seconds']:.0f} s.{partial}"


def trainings(rows: dict[str, dict[str, Any]]) -> list[str]:
    return [
        "| run | steps | last loss | a step, others beside it |",
        "|---|---:|---:|---:|",
        *(
            f"| {name} | {row['step']} of {row['max_steps']} | {row['loss']:.4f} | "
            f"{row['seconds_per_step']:.3f} s |"
            for name, row in rows.items()
        ),
    ]


def scores(figures: dict[str, Any]) -> list[str]:
    lines = ["| task | arm | runs | items | right [95%] |", "|---|---|---:|---:|---|"]
    for task in figures["tasks"]:
        for arm, found in figures["arms"].items():
            if (score := found.get(task)) is not None:
                right = f"{score['mean']:.1%} [{score['low']:.1%}, {score['high']:.1%}]"
                lines.append(f"| {task} | {arm} | {len(score['runs'])} | {score['n']} | {right} |")
    lines += [
        "",
        "| task | difference | points [95%] | p (Holm) | over |",
        "|---|---|---|---:|---|",
    ]
    for row in figures["comparisons"]:
        points = f"{100 * row['delta']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        lines.append(
            f"| {row['task']} | {row['a']} - {row['b']} | {points} | {row['p_holm']:.2g} | "
            f"{row['units']} {row['unit']} |"
        )
    return lines


# --- docs/scale.md --------------------------------------------------------------------------------


def scaled(result: dict[str, Any]) -> str:
    """What one result of `scaling.py` says."""
    parts = [result[name] for name in ("engines", "cost") if name in result]
    lines = [f"### {parts[0]['settings']['shape']} on {parts[0]['machine']['device']}"]
    for part in parts:
        table = engines(part["rows"]) if "rows" in part else costs(part)
        lines += ["", measured(part), "", *table]
    return "\n".join(lines) + "\n"


def measured(part: dict[str, Any]) -> str:
    machine, settings = part["machine"], part["settings"]
    cpu = settings["dtype"] == "float32"
    threads = f", {machine['threads']} thread(s) a rank" if cpu else ""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "trl"))
    return (
        f"{settings['dtype']}, {settings['batch']} x {settings['length']} tokens a rank{threads}; "
        f"{versions}, {machine['date']}."
    )


def engines(rows: list[dict[str, Any]]) -> list[str]:
    return [
        "| PEFT | deepspeed= | ranks | method | tokens/s | peak memory of a rank | estimated |",
        "|---|---|---:|---|---:|---:|---:|",
        *(
            f"| {row['peft']} | {row['preset']} | {row['ranks']} | {row['method']} | "
            f"{row['tokens_per_second']:.0f} | {row['peak'] / GIB:.2f} GiB | "
            f"{row['estimate'] / GIB:.2f} GiB |"
            for row in rows
        ),
    ]


def costs(case: dict[str, Any]) -> list[str]:
    names = {
        "A": "written by hand with TRL",
        "A/A": "the same again (noise)",
        "P": "`train.py method=sft`",
        "S": "`train.py method=wemask`",
    }
    lines = [
        f"| the same run ({case['rounds']} rounds) | a step | over TRL | goal | before the first "
        "step | after the last |",
        "|---|---:|---|---|---:|---:|",
    ]
    for arm, name in names.items():
        ratio = "" if arm == "A" else interval(case[arm])
        judged = verdict(case[arm], case["goal"]) if arm in ("P", "S") else ""
        goal = f"{case['goal']:.2f}: {judged}" if judged else ""
        lines.append(
            f"| {name} | {case['seconds'][arm]:.3f} s | {ratio} | {goal} | "
            f"{case['start'][arm]:.1f} s | {case['end'][arm]:.1f} s |"
        )
    return lines


# --- the pages ------------------------------------------------------------------------------------


def performance(text: str, results: list[dict[str, Any]]) -> str:
    softened = "\n".join(section(result) for result in results if "cases" in result)
    rows = watching([result for result in results if "watching" in result])
    text = between(between(text, START, END, softened), *WATCHING, rows + "\n")
    days = [gpu_day(result["parts"]) for result in results if "parts" in result]
    return between(text, *GPU_DAY, "\n".join(days))


def scale(text: str, results: list[dict[str, Any]]) -> str:
    import sizing

    measured = [r for r in results if "engines" in r or "cost" in r]
    text = between(text, START, END, "\n".join(map(scaled, measured)))
    return between(text, *SIZES, sizing.table() + "\n")


PAGES = {DOCS / "performance.md": performance, DOCS / "scale.md": scale}


def main() -> None:
    results = [json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))]
    stale = {}
    for path, write in PAGES.items():
        before = path.read_text()
        if (after := write(before, results)) != before:
            stale[path] = after
    if "--check" in sys.argv:
        sys.exit(f"not what the results say: {', '.join(map(str, stale))}" if stale else 0)
    for path, text in stale.items():
        path.write_text(text)
        print(path)


if __name__ == "__main__":
    main()
