"""evaluate.py as a user starts it: whole processes."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_support import FAST, REPOSITORY, call

from wemask.compare.results import load_results
from wemask.errors import ConfigError
from wemask.settings.composition import compose


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["arms=5"], "arms must be .*, got 5"),
        (["arms=[base,5]"], r"arms\[1\] must be a text, got 5"),
        (["tasks=[]"], "No tasks. Choose some"),
        (["eval_seed=1099511627776"], "eval_seed must be at most 4294967295"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused_at_once(
    words: list[str], refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = runpy.run_path(str(REPOSITORY / "evaluate.py"))
    hydra = SimpleNamespace(runtime=SimpleNamespace(choices={}), mode=None)
    monkeypatch.setattr("hydra.core.hydra_config.HydraConfig.get", lambda: hydra)
    with pytest.raises(ConfigError, match=refusal):
        script["run"](compose("evaluate", [*FAST, *words]), words)


@pytest.mark.slow
def test_evaluate_py_end_to_end_without_deepspeed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['evaluate.py', *sys.argv[1:]]; import runpy;"
        "runpy.run_path('evaluate.py', run_name='__main__');"
        "print('deepspeed' in sys.modules)"
    )
    words = (*FAST, f"paths.output_dir={tmp_path}", "trainer.max_steps=2", "limit=4")
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    (file,) = tmp_path.glob("default/*/results.json")
    assert load_results(file)["command"].startswith("python evaluate.py debug=fast")


@pytest.mark.slow
def test_real_data_goes_the_whole_way_and_the_report_says_near_zero(tmp_path: Path) -> None:
    rows = [
        {"question": f"Tom has {n} apples and gets {n}. How many?", "answer": f"#### {2 * n}"}
        for n in range(1, 30)
    ]
    file = tmp_path / "gsm8k.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = (
        *(*FAST, f"paths.output_dir={tmp_path / 'out'}", "trainer.max_steps=2", "limit=5"),
        *("data=gsm8k", f"data.path={file}", "tasks=[gsm8k]", f"tasks.gsm8k.path={file}"),
        "tasks.gsm8k.max_new_tokens=8",
    )
    code, out, err = call("evaluate.py", *words)
    assert code == 0, err
    assert "near zero on every arm" in out


@pytest.mark.slow
def test_a_study_is_one_command_that_ends_in_one_report(tmp_path: Path) -> None:
    words = (
        *("experiment=seeds", "seed=0,1", *FAST, f"paths.output_dir={tmp_path}", "limit=4"),
        *("trainer.max_steps=1", "tasks.synthetic.max_new_tokens=4"),
    )
    code, out, err = call("evaluate.py", *words)
    assert code == 0, err
    (file,) = tmp_path.glob("default/tiny__seeds__*/results.json")
    results = load_results(file)
    assert results["command"].startswith("python evaluate.py experiment=seeds seed=0,1")
    assert "trainer.max_steps=1" in results["command"].split()  # as it was typed
    assert results["arm_info"]["wemask_sft"]["seeds"] == [0, 1]
    assert str(file.with_name("report.html")) in out
    jobs = list(tmp_path.glob("default/tiny__compare__*"))
    assert len(jobs) == 2

    out_folder = tmp_path / "again"
    done = subprocess.run(
        [sys.executable, "-m", "wemask.cli", "compare", *map(str, jobs), "--out", str(out_folder)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    again = load_results(out_folder / "results.json")
    assert again["same"] == results["same"]
    key = {(c["a"], c["b"]): c["p_value"] for c in results["comparisons"]}
    assert {(c["a"], c["b"]): c["p_value"] for c in again["comparisons"]} == key
