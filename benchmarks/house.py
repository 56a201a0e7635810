"""The house in numbers: `make house`.

    python benchmarks/house.py            # rooms, lines, imports
    python benchmarks/house.py --walk     # and how far a setting and an item walk (a minute)

A walk counts files of ours on the call stack, from the script to the function that uses the value:
for a setting, from train.py to the call that makes the operator's layer; for an item, those of all
functions that are given its question or give it back, and those that compute its p-value.
"""

import argparse
import ast
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import grimp
import networkx

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "wemask"
# Put before a script: says what of ours is on the stack where a softened layer gets its settings.
SETTING = """
import atexit, sys, traceback
from wemask.operator.layers import Softening
made = Softening.__init__
def told(self, **settings):
    files = dict.fromkeys(f.filename for f in traceback.extract_stack())
    print("WALK", *[f for f in files if f.startswith(ROOT)], flush=True)
    Softening.__init__ = made
    return made(self, **settings)
Softening.__init__ = told
"""
# Says which functions of ours were given, or gave back, something that holds the item's question,
# or the comparison of its scores.
ITEM = """
import atexit, sys, types
from pathlib import Path
seen, MARK = {}, "Ninety-nine baskets"
def holds(value, depth=6):
    if isinstance(value, str):
        return MARK in value
    if depth == 0 or isinstance(value, (types.ModuleType, type, Path)) or callable(value):
        return False
    if isinstance(value, dict):
        return any(holds(v, depth - 1) for v in list(value.values())[:50])
    if isinstance(value, (list, tuple)):
        return any(holds(v, depth - 1) for v in value[:50])
    if type(value).__module__.startswith("wemask"):
        return holds(dict(getattr(value, "__dict__", {})), depth - 1)
    if type(value).__name__ == "Dataset":
        return holds(value.to_list(), depth - 1)
    return type(value).__name__ == "Instance" and holds([value.doc, value.arguments], depth - 1)
def note(frame, event, value):
    code = frame.f_code
    place = (code.co_filename, code.co_qualname)
    if event not in ("call", "return") or place in seen or not place[0].startswith(ROOT):
        return
    if event == "call":
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        value = {name: frame.f_locals.get(name) for name in names if name != "self"}
    if holds(value) or type(value).__name__ == "PairedComparison":
        seen[place] = True
sys.setprofile(note)
atexit.register(lambda: print("WALK", *[f"{file}:{name}" for file, name in seen]))
"""


def lines_of(folder: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in folder.rglob("*.py"))


def functions(folder: Path) -> list[int]:
    """Lines of every function, in order of size."""
    return sorted(
        node.end_lineno - node.lineno + 1  # pyright: ignore[reportOptionalOperand]
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )


def imports() -> networkx.DiGraph:
    """Module -> what it imports, lazy and type-only imports too; without the package's own face."""
    graph = grimp.build_graph("wemask", cache_dir=None)
    return networkx.DiGraph(
        (module, imported)
        for module in graph.modules - {"wemask"}
        for imported in graph.find_modules_directly_imported_by(module) - {"wemask"}
    )


def at_rest() -> dict[str, object]:
    """What the files say without being run."""
    graph = imports()
    circles = [c for c in networkx.strongly_connected_components(graph) if len(c) > 1]
    chain = networkx.dag_longest_path(networkx.condensation(graph))
    sizes = functions(PACKAGE)
    rooms = [path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    results = REPOSITORY / "docs" / "results"
    return {
        "modules directly in wemask/": len(list(PACKAGE.glob("*.py"))),
        "rooms": len(rooms),
        "lines of the package": lines_of(PACKAGE),
        "lines of the tests": lines_of(REPOSITORY / "tests"),
        "files above 400 lines": sum(
            len(path.read_text().splitlines()) > 400 for path in PACKAGE.rglob("*.py")
        ),
        "lines of a function: median, 90%, most": [
            sizes[len(sizes) // 2],
            sizes[len(sizes) * 9 // 10],
            sizes[-1],
        ],
        "import circles": len(circles),
        "longest import chain": len(chain),
        "lines of operator/equation.py": len(
            (PACKAGE / "operator" / "equation.py").read_text().splitlines()
        ),
        "docs/results, MB": round(
            sum(path.stat().st_size for path in results.rglob("*") if path.is_file()) / 1e6, 1
        ),
    }


def walked(script: str, before: str, *words: str) -> list[str]:
    """What a script that runs with `before` in front of it prints after WALK."""
    with tempfile.TemporaryDirectory() as folder:
        code = f"ROOT = {str(REPOSITORY)!r}\n{before}\nimport runpy, sys\n"
        code += f"sys.path.insert(0, ROOT); sys.argv = [{script!r}, *sys.argv[1:]]\n"
        code += f"runpy.run_path({script!r}, run_name='__main__')"
        settings = (*words, "debug=fast", "logger=none", f"paths.output_dir={folder}")
        done = subprocess.run(
            [sys.executable, "-c", code, *settings],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("WALK")]
    if not lines:
        sys.exit(done.stderr)
    return [word.removeprefix(f"{REPOSITORY}/") for word in lines[0].split()[1:]]


def walks() -> dict[str, object]:
    """Through how many files a setting and an item go."""
    setting = walked("train.py", SETTING)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "items.jsonl"
        question = "Ninety-nine baskets hold {} eggs each. How many eggs are there?"
        rows = [{"question": question.format(n), "answer": f"#### {99 * n}"} for n in (2, 3)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        item = walked(
            "evaluate.py",
            ITEM,
            *("arms=[base,base_again]", "tasks=[gsm8k]", f"tasks.gsm8k.path={data}"),
            "tasks.gsm8k.max_new_tokens=4",
        )
    item = [place for place in item if place.startswith("wemask/")]
    files = list(dict.fromkeys(place.split(":")[0] for place in item))
    return {
        "files from train.py to a softened layer": [len(setting), setting],
        "files, functions that handle an item": [len(files), len(item)],
        "these files": files,
        "these functions": item,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--walk", action="store_true", help="also run train.py and evaluate.py")
    found = at_rest() | (walks() if parser.parse_args().walk else {})
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
