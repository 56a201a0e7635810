"""A finished study whose files were damaged: one message with the file, and nothing half made."""

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_support import quick, quiet

from wemask.cli import main
from wemask.errors import WemaskError
from wemask.evaluate.evaluation import TaskConfig
from wemask.study import Study, compare_runs, evaluate

DEEP = b"[" * 100_000
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small comparison, its runs beside it: copy before a change."""
    folder = tmp_path_factory.mktemp("finished")
    task = TaskConfig(name="synthetic", limit=4, max_new_tokens=8)
    study = Study(config=quick(folder / "out"), arms=("base", "training_free"), tasks=[task])
    return evaluate(study, quiet())


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished.parent, tmp_path / "out")
    return tmp_path / "out" / finished.name


def write(content: bytes) -> Damage:
    return lambda path: path.write_bytes(content)


def put(place: str, value: Any) -> Damage:
    """Another value at a place of a JSON file, such as `arms.base.synthetic.runs`."""

    def damage(path: Path) -> None:
        values = inner = json.loads(path.read_text())
        *way, last = (int(key) if key.isdigit() else key for key in place.split("."))
        for key in way:
            inner = inner[key]
        inner[last] = value
        path.write_text(json.dumps(values))

    return damage


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link(to: str) -> Damage:
    def damage(path: Path) -> None:
        path.unlink()
        path.symlink_to(path if to == "itself" else to)

    return damage


def array(values: Any, **allowed: Any) -> Damage:
    return lambda path: np.save(path, values, **allowed)


def header_of(shape: str) -> Damage:
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return write(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode())


def sample(**values: Any) -> Damage:
    """Other values in the first line of a samples.jsonl, and the hash in meta.json made to fit."""

    def damage(path: Path) -> None:
        first, *others = path.read_text().splitlines()
        kept = {k: v for k, v in (json.loads(first) | values).items() if v != "gone"}
        path.write_text("\n".join([json.dumps(kept), *others, ""]))
        put("samples_sha256", hashlib.sha256(path.read_bytes()).hexdigest())(
            path.with_name("meta.json")
        )

    return damage


BOTH = (
    ("results.json", write(DEEP), "no JSON that can be read"),
    ("results.json", write(b"\x80"), "cannot be read as text in UTF-8"),
    ("results.json", write(b"5"), "results must be a mapping"),
    ("results.json", put("arms.base.synthetic.runs", []), "runs must be .* at least 1 item"),
    ("results.json", put("arms.base.synthetic.low", -3.0), "low must be at least -1"),
    ("results.json", put("arms.base.synthetic.n", 0), "n must be at least 1"),
    ("results.json", put("comparisons.0.delta", 1e308), "delta must be at most 1"),
    ("results.json", put("softening.metrics.on", []), "on must be .* at least 1 item"),
    ("results.json", put("softening.metrics.on.0.layer", 7), "off and on must be of the same"),
    ("results.json", put("softening.dims", {"x": []}), "must be like"),
    ("results.json", put("settings", {}), "settings.base is missing"),
    ("results.json", put("me_layer.layers.0.max", "x"), "me_layer"),
    ("results.json", put("me_layer.num_layers", "4"), "me_layer"),
    ("results.json", put("me_layer.layer", 99), "me_layer"),
    ("results.json", put("me_layer", [10**6]), "me_layer"),
    ("results.json", put("me_layer.magnitudes", []), "me_layer"),
    ("results.json", put("me_layer.found", "yes"), "me_layer"),
    ("relief.npy", array(np.ones((2, 2), np.float32)), "must hold .* float32, found"),
    ("relief.npy", array(np.array(["text"])), "must hold .* found .* <U4"),
    ("relief.npy", array(np.array([{}]), allow_pickle=True), "no array .*[Oo]bject"),
    ("relief.npy", write(pickle.dumps({})), "no array"),
    ("relief.npy", write(b""), "no array"),
    ("relief.npy", header_of("(1000000000000,)"), "no array"),
    ("relief.npy", a_folder, "a folder; a regular file"),
)
OF_REPORT = (
    ("results.json", a_folder, "a folder; a regular file was sought"),
    ("results.json", a_pipe, "a pipe or a device"),
    ("results.json", a_link("/dev/zero"), "a pipe or a device"),
    ("results.json", a_link("itself"), "[Ss]ymbolic links"),
    ("results.json", put("arms.base.synthetic.runs.0.samples", "."), "is a folder"),
    ("results.json", put("arms.base.synthetic.runs.0.samples", ""), "is a folder"),
    ("samples.jsonl", write(DEEP), "line 1 is no JSON"),
    ("samples.jsonl", write(b"\x80"), "cannot be read as text in UTF-8"),
    ("samples.jsonl", write(b"5\n"), "line 1 must hold an object"),
    ("samples.jsonl", write(b"null\n"), "line 1 must hold an object"),
    ("samples.jsonl", write(b"{}\n"), "id is missing"),
    ("samples.jsonl", write(b""), "is empty"),
    ("samples.jsonl", sample(correct="gone"), "correct is missing"),
    ("samples.jsonl", sample(correct=[True]), "correct must be true or false"),
)
OF_COMPARE = (
    ("meta.json", write(DEEP), "no JSON that can be read"),
    ("meta.json", put("key", 5), "key must be a mapping"),
    ("meta.json", put("key", {"task": {"name": "synthetic"}}), "items_sha256 is missing"),
    ("meta.json", put("result.seconds", "long"), "seconds must be a number"),
    ("meta.json", put("about", {"settings": {}}), "about.arm is missing|arm is missing"),
    ("meta.json", put("about.arm", "bogus"), "must be an arm"),
    ("meta.json", put("about.budget", {"layers": "many"}), "layers must be a whole number"),
    ("samples.jsonl", write(b"{}\n"), "Its hash is not the one in meta.json"),
    ("samples.jsonl", sample(metrics="gone"), "metrics is missing"),
    ("samples.jsonl", sample(metrics={"exact_match": "x"}), "must be a number"),
    ("samples.jsonl", a_folder, "is a folder"),
)


def damaged(folder: Path, name: str, damage: Damage) -> Path:
    """Damage a file of the comparison, or one of the results of its first arm."""
    path = folder / name
    if not path.exists():
        (path,) = folder.parent.glob(f"*__base__*/eval/synthetic/{name}")
    damage(path)
    return path


def written(folder: Path) -> dict[Path, int]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize(("name", "damage", "words"), [*BOTH, *OF_REPORT])
def test_a_report_of_what_is_damaged(
    copied: Path, name: str, damage: Damage, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged(copied, name, damage)
    before = written(copied)
    with pytest.raises(SystemExit) as end:
        main(["report", str(copied / "results.json")])
    assert end.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(words, said), said
    assert written(copied) == before


@pytest.mark.parametrize(("name", "damage", "words"), [*BOTH, *OF_COMPARE])
def test_a_comparison_of_what_is_damaged(
    copied: Path, name: str, damage: Damage, words: str, tmp_path: Path
) -> None:
    damaged(copied, name, damage)
    with pytest.raises(WemaskError, match=words):
        compare_runs(
            [copied], tmp_path / "c", command="c", logger={"name": "none"}, console=quiet()
        )
    assert not (tmp_path / "c").exists()


def test_a_loop_of_links_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(SystemExit) as end:
        main(["compare", str(loop)])
    assert end.value.code == 2
    assert "has neither" in capsys.readouterr().err


def test_what_is_whole_is_reported_again(copied: Path) -> None:
    with pytest.raises(SystemExit) as end:
        main(["report", str(copied / "results.json")])
    assert end.value.code == 0
