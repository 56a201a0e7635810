import dataclasses
import itertools
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from run_support import FAST, call, quick, quiet, said, settings

from wemask import arms, statistics
from wemask.arms import Experiment, compare_arms, evaluate
from wemask.composition import compose, normalise, train_overrides
from wemask.config import run_config
from wemask.errors import ConfigError, DetectionError, RunFolderError
from wemask.evaluation import TaskConfig, TaskResult, tasks_from_config
from wemask.me_layer import MELayerReport
from wemask.results import load_results
from wemask.training import train

ARMS = ("base", "training_free", "sft", "wemask_sft")
TASK = TaskConfig(name="synthetic", limit=8, max_new_tokens=12)


def experiment(folder: Path, *overrides: str, **values: Any) -> Experiment:
    config = quick(folder, "trainer.max_steps=2", *overrides)
    values = {"arms": ARMS, "tasks": [TASK], "limit": 8} | values
    return Experiment(config=config, **values)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Path, str]:
    """One comparison of the four arms, end to end: read, do not change."""
    console = quiet()
    asked = experiment(tmp_path_factory.mktemp("compared"))
    return asked, evaluate(asked, console), said(console)


# --- end to end -----------------------------------------------------------------------------------


def test_the_four_arms_are_compared_on_the_same_items(compared: Any) -> None:
    _, folder, _ = compared
    results = load_results(folder / "results.json")
    assert tuple(results["arms"]) == ARMS
    samples = {}
    for arm, tasks in results["arms"].items():
        path = folder / tasks["synthetic"]["samples"]
        samples[arm] = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(samples[arm]) == tasks["synthetic"]["n"] == 8
        assert {sample["arm"] for sample in samples[arm]} == {arm}
    for key in ("id", "prompt", "gold"):
        assert len({tuple(s[key] for s in rows) for rows in samples.values()}) == 1
    shas = {json.loads(path.read_text())["key"]["template_sha256"] for path in metas(compared)}
    assert len(shas) == 1


def metas(compared: Any) -> list[Path]:
    return sorted(compared[1].parent.glob("*/eval/synthetic/meta.json"))


def test_the_operator_is_on_in_its_arms_only(compared: Any) -> None:
    asked, folder, _ = compared
    outputs = {}
    for arm, tasks in load_results(folder / "results.json")["arms"].items():
        path = folder / tasks["synthetic"]["samples"]
        outputs[arm] = [json.loads(line)["output"] for line in path.read_text().splitlines()]
    models = {arm: arms._load_arm(asked, arm)[0] for arm in ARMS}
    on = {arm: bool(getattr(model, "wemask_handle", None)) for arm, model in models.items()}
    assert on == {"base": False, "training_free": True, "sft": False, "wemask_sft": True}
    assert outputs["base"] != outputs["sft"]


def test_the_report_is_there_and_names_every_arm(compared: Any) -> None:
    _, folder, text = compared
    html = (folder / "report.html").read_text()
    markdown = (folder / "report.md").read_text()
    assert list((folder / "figures").iterdir())
    for word in ("training-free", "WeMask-SFT"):
        assert word.lower() in html.lower()
        assert word.lower() in markdown.lower()
    assert f"Report: {folder / 'report.html'}" in text


def test_every_pair_is_the_later_arm_minus_the_earlier(compared: Any) -> None:
    results = load_results(compared[1] / "results.json")
    pairs = [(row["b"], row["a"]) for row in results["comparisons"]]
    assert pairs == list(itertools.combinations(ARMS, 2))
    for row in results["comparisons"]:
        means = {arm: results["arms"][arm]["synthetic"]["mean"] for arm in (row["a"], row["b"])}
        assert row["delta"] == pytest.approx(means[row["a"]] - means[row["b"]])
        assert row["low"] <= row["delta"] <= row["high"]
        assert row["p_holm"] >= row["p_value"]


def test_the_results_hold_the_detection_and_what_the_softening_does(compared: Any) -> None:
    asked, folder, _ = compared
    results = load_results(folder / "results.json")
    softening = results["softening"]
    assert softening is not None
    assert softening["config"] == asked.config.operator.to_dict()
    layer = MELayerReport.from_dict(results["me_layer"]).layer  # pyright: ignore
    assert layer is not None
    assert min(softening["layers"]) == layer + 1
    off, on = (softening["metrics"][key] for key in ("off", "on"))
    assert off[: layer + 1] == on[: layer + 1]  # layers before are untouched
    assert off[layer + 1 :] != on[layer + 1 :]
    assert results["model"]["parameters"] > 1e5


def test_run_folders_are_named_for_trained_arms_only(compared: Any) -> None:
    asked, folder, _ = compared
    scores = load_results(folder / "results.json")["arms"]
    for arm in ARMS:
        run = asked.run(arm)
        expected = str(run.folder()) if run.trains else None
        assert scores[arm]["synthetic"]["run_folder"] == expected


def test_the_second_time_everything_is_reused(
    compared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, folder, _ = compared
    before = {path: path.read_bytes() for path in metas(compared)}
    assert len(before) == 4

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be trained or asked again")

    monkeypatch.setattr(arms, "train", never)
    monkeypatch.setattr("wemask.harness.run_task", never)
    assert evaluate(asked, quiet()) == folder
    assert {path: path.read_bytes() for path in metas(compared)} == before


def test_another_operator_asks_only_the_arms_that_have_one_again(
    compared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, _, _ = compared
    out = f"paths.output_dir={asked.config.output_dir}"
    other = experiment(Path("x"), out, "operator.rate=0.5", arms=("base", "training_free", "sft"))
    ran: list[str] = []
    original = arms.evaluate_arm

    def spy(*args: Any, arm: str, **kwargs: Any) -> Any:
        results = original(*args, arm=arm, **kwargs)
        ran.extend(arm for result in results.values() if not result.reused)
        return results

    monkeypatch.setattr(arms, "evaluate_arm", spy)
    evaluate(other, quiet())
    assert ran == ["training_free"]


def test_a_run_that_was_trained_again_is_asked_again(compared: Any) -> None:
    import os

    asked, _, _ = compared
    run = asked.run("sft")
    (file,) = (run.folder() / "final").glob("*.safetensors")
    stamp, times = arms._stamp(run), file.stat()
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns + 1_000_000))
    assert arms._stamp(run) != stamp
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert arms._stamp(run) == stamp
    assert arms._stamp(asked.run("base")) == []


def test_sft_then_wemask_is_the_run_of_sft_softened(compared: Any) -> None:
    asked, _, _ = compared
    softened, _ = arms._load_arm(asked, "sft_then_wemask")
    plain, _ = arms._load_arm(asked, "sft")
    state = plain.state_dict()
    assert all((state[name] == value).all() for name, value in softened.state_dict().items())
    assert softened.wemask_handle.layers  # pyright: ignore


def test_lora_runs_are_compared_too(tmp_path: Path) -> None:
    asked = experiment(tmp_path, "peft=lora", arms=("sft", "wemask_sft"), limit=2)
    folder = evaluate(asked, quiet())
    assert set(load_results(folder / "results.json")["arms"]) == {"sft", "wemask_sft"}


# --- what is missing ------------------------------------------------------------------------------


def evaluate_words(*words: str) -> Experiment:
    """What evaluate.py makes of a command line."""
    cfg = compose("evaluate", words)
    tasks: Any = {name: dict(task) for name, task in cfg.tasks.items()}
    return Experiment(
        config=run_config(cfg),
        arms=list(cfg.arms),
        tasks=tasks_from_config(tasks),
        limit=cfg.limit,
        train_missing=cfg.train_missing,
        overrides=train_overrides(normalise(words)),
    )


def test_the_named_commands_train_what_is_missing(tmp_path: Path) -> None:
    words = (
        *(*FAST, f"paths.output_dir={tmp_path / 'a b'}", "trainer.max_steps=1", "limit=2"),
        *("operator.layers=[2,3]", "tasks=[synthetic]", "tasks.synthetic.max_new_tokens=4"),
        *(f"paths.run_dir={tmp_path / 'comparison'}", "train_missing=false"),
    )
    asked = evaluate_words(*words)
    with pytest.raises(RunFolderError, match="Not trained yet") as error:
        evaluate(asked, quiet())
    assert not (tmp_path / "a b").exists()
    commands = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert len(commands) == 2
    for command in commands:
        program, script, *arguments = shlex.split(command)
        assert (program, script) == ("python", "train.py")
        train(settings(*arguments), quiet())
    assert arms._missing(asked) == {}
    assert evaluate(asked, quiet()) == tmp_path / "comparison"
    # The folder is now that of this comparison, and of no other.
    with pytest.raises(RunFolderError, match="limit: 2 there, 3 now"):
        evaluate(dataclasses.replace(asked, limit=3), quiet())


def test_only_the_arms_that_are_asked_for_are_trained(tmp_path: Path) -> None:
    asked = experiment(tmp_path, arms=("base", "training_free"), train_missing=False)
    assert arms._missing(asked) == {}
    assert list(arms._missing(experiment(tmp_path, arms=("base", "wemask_sft")))) == ["wemask"]


def test_a_dry_run_trains_and_writes_nothing(tmp_path: Path) -> None:
    console = quiet()
    evaluate(experiment(tmp_path / "out", "dry_run=true"), console)
    assert said(console).count("trainable") == 2
    assert "nothing was trained or compared, nothing was written" in said(console)
    assert not (tmp_path / "out").exists()


def test_a_model_without_massive_activation_is_refused_before_the_training(tmp_path: Path) -> None:
    strict = ("model.criterion.min_ratio=1e9",)
    with pytest.raises(DetectionError, match="nearest miss"):
        evaluate(experiment(tmp_path / "out", *strict), quiet())
    assert not (tmp_path / "out").exists()


def test_without_massive_activation_the_plain_arms_still_compare(tmp_path: Path) -> None:
    strict = ("model.criterion.min_ratio=1e9",)
    folder = evaluate(experiment(tmp_path, *strict, arms=("base",), limit=2), quiet())
    results = load_results(folder / "results.json")
    assert results["softening"] is None
    assert results["comparisons"] == []
    assert any("nearest miss" in note for note in results["notes"])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"arms": ["bse"]}, "Did you mean 'base'"),
        ({"arms": ["base", "base"]}, "different"),
        ({"arms": []}, "at least one"),
        ({"tasks": []}, "tasks is empty"),
        ({"limit": 0}, "limit is a whole number"),
        ({"limit": "ten"}, "limit is a whole number"),
        ({"batch_size": 0}, "batch_size"),
        ({"train_missing": "perhaps"}, "train_missing"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused_at_once(
    values: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=expected):
        experiment(tmp_path, **values)


def test_the_folder_depends_on_arms_tasks_and_limit(tmp_path: Path) -> None:
    one = experiment(tmp_path).folder()
    assert one == experiment(tmp_path, batch_size=4, train_missing=False).folder()
    others = [
        experiment(tmp_path, limit=7),
        experiment(tmp_path, arms=("base", "sft")),
        experiment(tmp_path, tasks=[dataclasses.replace(TASK, fewshot=2)]),
        experiment(tmp_path, "seed=1"),
        experiment(tmp_path, "operator.rate=0.5"),
    ]
    assert len({one, *(other.folder() for other in others)}) == len(others) + 1


# --- numbers --------------------------------------------------------------------------------------


def result(correct: list[bool], name: str = "t", sha: str = "s") -> TaskResult:
    samples: Any = [
        {"id": str(i), "correct": right, "reason": None} for i, right in enumerate(correct)
    ]
    return TaskResult(
        name=name,
        metric="exact_match",
        samples=samples,
        seconds=1.0,
        source="here",
        template_sha256=sha,
        fewshot=0,
        note=None,
        path=Path("run/eval/t/samples.jsonl"),
        reused=False,
    )


def test_differences_are_those_of_the_paired_items() -> None:
    earlier, later = [True, False, False, False] * 10, [True, True, True, False] * 10
    (row,) = compare_arms({"base": {"t": result(earlier)}, "sft": {"t": result(later)}})
    assert (row["a"], row["b"], row["n"]) == ("sft", "base", 40)
    assert row["delta"] == pytest.approx(0.5)
    assert (row["a_only"], row["b_only"]) == (20, 0)
    assert row["p_holm"] == row["p_value"] < 0.001


def test_holm_is_over_all_pairs_and_tasks() -> None:
    wins = [[True] * k + [False] * (40 - k) for k in (5, 15, 30)]
    results = {
        arm: {"t": result(wins[i]), "u": result(wins[-i - 1], "u")}
        for i, arm in enumerate(("base", "training_free", "sft"))
    }
    rows = compare_arms(results)
    assert len(rows) == 6
    expected = statistics.holm([row["p_value"] for row in rows])
    assert [row["p_holm"] for row in rows] == pytest.approx(list(expected))


def test_different_items_or_templates_are_no_comparison() -> None:
    good = result([True, False])
    with pytest.raises(RunFolderError, match="different items"):
        arms._check_same_items({"base": {"t": good}, "sft": {"t": result([True])}})
    with pytest.raises(RunFolderError, match="different chat templates"):
        arms._check_same_items(
            {"base": {"t": good}, "sft": {"t": result([True, False], sha="other")}}
        )
    arms._check_same_items({"base": {"t": good}, "sft": {"t": result([False, False])}})


def test_near_zero_everywhere_is_said_and_otherwise_not(compared: Any) -> None:
    report = MELayerReport.from_dict(
        load_results(compared[1] / "results.json")["me_layer"]  # pyright: ignore
    )
    none, some = result([False] * 100), result([True] * 40 + [False] * 60)
    (note,) = arms._notes(report, {"base": {"t": none}, "sft": {"t": none}})
    assert "near zero on every arm" in note
    assert "says nothing about the method" in note
    assert arms._notes(report, {"base": {"t": none}, "sft": {"t": some}}) == []


# --- whole processes ------------------------------------------------------------------------------


@pytest.mark.slow
def test_evaluate_py_end_to_end_without_deepspeed(tmp_path: Path) -> None:
    import subprocess
    import sys

    from run_support import REPOSITORY

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
