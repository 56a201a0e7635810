import dataclasses
import itertools
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from run_support import FAST, quick, quiet, said, settings

from wemask import study
from wemask.compare.results import load_results
from wemask.detection.me_layer import MELayerReport
from wemask.errors import ConfigError, DataError, DetectionError, PatchError, RunFolderError
from wemask.evaluate.evaluation import TaskConfig, tasks_from_config
from wemask.settings.composition import compose, normalise, train_overrides
from wemask.settings.config import run_config
from wemask.study import Study, compare_runs, evaluate, finish_sweep
from wemask.train.training import train

ARMS = ("base", "training_free", "sft", "wemask_sft")
TASK = TaskConfig(name="synthetic", limit=8, max_new_tokens=12)


def experiment(folder: Path, *overrides: str, **values: Any) -> Study:
    config = quick(folder, "trainer.max_steps=2", *overrides)
    values = {"arms": ARMS, "tasks": [TASK], "limit": 8} | values
    return Study(config=config, **values)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path, str]:
    """One comparison of the four arms, end to end: read, do not change."""
    console = quiet()
    asked = experiment(tmp_path_factory.mktemp("compared"))
    return asked, evaluate(asked, console), said(console)


# --- end to end -----------------------------------------------------------------------------------


def test_the_page_says_where_training_took_the_massive_activation_away(tmp_path: Path) -> None:
    words = ("trainer.learning_rate=0.02", "trainer.max_steps=6")
    arms = ("sft", "wemask_sft", "sft_then_wemask")
    folder = evaluate(experiment(tmp_path, *words, arms=arms, limit=2), quiet())
    results = load_results(folder / "results.json")
    finding = (
        "wemask_sft, seed 0: SFT has removed the massive activation: the softening touches nothing "
        "in 3 of 3 layers."
    )
    assert finding in results["notes"]
    assert results["arm_info"]["wemask_sft"].get("softened") == [{"layers": 3, "silent": [2, 3, 4]}]
    assert list(results["arms"]) == ["sft", "wemask_sft"]
    assert "need a detected ME Layer" in results["absent"]["sft_then_wemask"]
    for page in ("report.html", "report.md"):
        text = (folder / page).read_text()
        assert "SFT has removed the massive activation" in text
        assert "sft_then_wemask is not possible here" in text


def test_the_four_arms_are_compared_on_the_same_items(compared: Any) -> None:
    _, folder, _ = compared
    results = load_results(folder / "results.json")
    assert tuple(results["arms"]) == ARMS
    samples = {}
    for arm, tasks in results["arms"].items():
        path = folder / tasks["synthetic"]["runs"][0]["samples"]
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
        path = folder / tasks["synthetic"]["runs"][0]["samples"]
        outputs[arm] = [json.loads(line)["output"] for line in path.read_text().splitlines()]
    models = {arm: asked.run(arm).load()[0] for arm in ARMS}
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
        expected = str(run.config.folder()) if run.config.trains else None
        assert scores[arm]["synthetic"]["runs"][0]["run_folder"] == expected


def test_the_second_time_everything_is_reused(
    compared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, folder, _ = compared
    before = {path: path.read_bytes() for path in metas(compared)}
    assert len(before) == 4

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be trained or asked again")

    monkeypatch.setattr(study, "train", never)
    monkeypatch.setattr("wemask.evaluate.harness.run_task", never)
    assert evaluate(asked, quiet()) == folder
    assert {path: path.read_bytes() for path in metas(compared)} == before


def test_another_operator_asks_only_the_arms_that_have_one_again(
    compared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, _, _ = compared
    out = f"paths.output_dir={asked.config.output_dir}"
    other = experiment(Path("x"), out, "operator.rate=0.5", arms=("base", "training_free", "sft"))
    ran: list[str] = []
    original = study.evaluate_arm

    def spy(*args: Any, arm: str, **kwargs: Any) -> Any:
        results = original(*args, arm=arm, **kwargs)
        ran.extend(arm for result in results.values() if not result.reused)
        return results

    monkeypatch.setattr(study, "evaluate_arm", spy)
    evaluate(other, quiet())
    assert ran == ["training_free"]


def test_a_run_that_was_trained_again_is_asked_again(compared: Any) -> None:
    import os

    asked, _, _ = compared
    run = asked.run("sft")
    (file,) = run.final.glob("*.safetensors")
    before, times = run.fingerprint(), file.stat()
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns + 1_000_000))
    assert run.fingerprint() != before
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert run.fingerprint() == before


def test_every_arm_is_asked_with_one_chat_template(compared: Any) -> None:
    asked, _, _ = compared
    templates = {asked.run(arm).chat_template() for arm in ARMS}
    assert templates == {asked.run(arm).load()[1].chat_template for arm in ARMS}
    assert len(templates) == 1


def test_another_template_is_seen_before_anything_is_asked(
    compared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, _, _ = compared
    file = asked.run("sft").final / "chat_template.jinja"
    original = file.read_text()
    monkeypatch.setattr(study, "evaluate_arm", None)
    try:
        file.write_text(original + "{# of another day #}")
        with pytest.raises(DataError, match="chat template of sft is not that of base"):
            evaluate(asked, quiet())
    finally:
        file.write_text(original)


def test_sft_then_wemask_is_the_run_of_sft_softened(compared: Any) -> None:
    asked, _, _ = compared
    softened, _ = asked.run("sft_then_wemask").load()
    plain, _ = asked.run("sft").load()
    state = plain.state_dict()
    assert all((state[name] == value).all() for name, value in softened.state_dict().items())
    assert softened.wemask_handle.layers  # pyright: ignore


def test_lora_runs_are_compared_too(tmp_path: Path) -> None:
    asked = experiment(tmp_path, "peft=lora", arms=("sft", "wemask_sft"), limit=2)
    folder = evaluate(asked, quiet())
    assert set(load_results(folder / "results.json")["arms"]) == {"sft", "wemask_sft"}


# --- what is missing ------------------------------------------------------------------------------


def evaluate_words(*words: str) -> Study:
    """What evaluate.py makes of a command line."""
    cfg = compose("evaluate", words)
    tasks: Any = {name: dict(task) for name, task in cfg.tasks.items()}
    return Study(
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
    assert study._missing(asked) == []
    assert evaluate(asked, quiet()) == tmp_path / "comparison"
    # The folder is now that of this comparison, and of no other.
    with pytest.raises(RunFolderError, match="limit: 2 there, 3 now"):
        evaluate(dataclasses.replace(asked, limit=3), quiet())


def test_only_the_arms_that_are_asked_for_are_trained(tmp_path: Path) -> None:
    asked = experiment(tmp_path, arms=("base", "training_free"), train_missing=False)
    assert study._missing(asked) == []
    (missing,) = study._missing(experiment(tmp_path, arms=("base", "wemask_sft")))
    assert missing.config.method == "wemask"


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
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"limit": "ten"}, "limit must be a whole number, got 'ten'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"eval_seed": -1}, "eval_seed must be at least 0"),
        ({"eval_seed": 2**40}, "eval_seed must be at most 4294967295"),
        ({"arms": 5}, "arms must be .*, got 5"),
        ({"arms": None}, "at least one"),
        ({"train_missing": "perhaps"}, "train_missing must be true or false"),
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


# --- several studies ------------------------------------------------------------------------------


def test_a_sweep_ends_in_one_report_with_the_runs_of_each_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = ("base", "base_again", "training_free", "random_dims", "wrong_layers", "sft")
    jobs = [
        experiment(tmp_path, f"seed={seed}", "trainer.max_steps=1", arms=arms, sweep="controls")
        for seed in (0, 1)
    ]
    for job in jobs:
        evaluate(job, quiet())
    finish_sweep(jobs, quiet())
    (folder,) = tmp_path.glob("default/tiny__controls__*")
    results = load_results(folder / "results.json")
    assert tuple(results["arms"]) == arms
    seeds = {arm: info["seeds"] for arm, info in results["arm_info"].items()}
    assert seeds["random_dims"] == seeds["sft"] == [0, 1]
    assert seeds["base"] == seeds["training_free"] == seeds["wrong_layers"] == []
    assert len(list(tmp_path.glob("default/tiny__base__*"))) == 1  # untrained: the same for all
    (same,) = results["same"]
    assert (same["arm"], same["seed_a"], same["seed_b"]) == ("sft", 1, 0)
    kinds = {(row["a"], row["b"]): row["kind"] for row in results["comparisons"]}
    assert kinds["base_again", "base"] == "same"
    assert kinds["training_free", "random_dims"] == kinds["random_dims", "base"] == "control"
    assert kinds["sft", "base"] == "main"
    page = (folder / "report.html").read_text()
    assert "Is it specific?" in page and "Another seed" in page

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be trained or asked again")

    monkeypatch.setattr(study, "train", never)
    monkeypatch.setattr("wemask.evaluate.harness.run_task", never)
    evaluate(jobs[0], quiet())


def test_a_control_has_the_real_budget(tmp_path: Path) -> None:
    arms = ("base", "training_free", "random_dims", "lowest_dims")
    folder = evaluate(experiment(tmp_path, arms=arms, limit=2), quiet())
    info = load_results(folder / "results.json")["arm_info"]
    budgets = {arm: info[arm]["budget"] for arm in arms}
    assert budgets["base"] is None
    for key in ("layers", "dims", "tokens"):
        assert len({budgets[arm][key] for arm in arms[1:]}) == 1  # pyright: ignore
    removed = [budgets[arm]["removed_energy"] for arm in arms[1:]]  # pyright: ignore
    assert all(0 < share < 1 for share in removed)
    assert len(set(removed)) == 3


def test_a_control_that_a_model_cannot_have_is_left_out_and_named(tmp_path: Path) -> None:
    # As in a model whose ME Layer is 0: no layer lies before it.
    asked = experiment(tmp_path, arms=("base", "training_free", "wrong_layers"), limit=2)
    original = study.soften

    def soften(model: Any, report: Any, operator: Any) -> Any:
        if operator.layers == "before_me":
            raise PatchError("layers=before_me is empty")
        return original(model, report, operator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "soften", soften)
        folder = evaluate(asked, quiet())
    results = load_results(folder / "results.json")
    assert list(results["arms"]) == ["base", "training_free"]
    assert results["absent"] == {"wrong_layers": "layers=before_me is empty"}
    assert results["notes"][0].startswith("wrong_layers is not possible here")


def test_compare_makes_the_same_numbers_of_finished_runs(compared: Any, tmp_path: Path) -> None:
    asked, folder, _ = compared
    logger = {"name": "none"}
    compare_runs([folder], tmp_path / "again", command="c", logger=logger, console=quiet())
    first, again = (load_results(p / "results.json") for p in (folder, tmp_path / "again"))
    for key in ("comparisons", "arm_info", "tasks", "me_layer", "softening", "conditions"):
        assert again[key] == first[key]
    runs = [asked.run(arm).config.folder() for arm in ("sft", "wemask_sft")]
    compare_runs(runs, tmp_path / "two", command="c", logger=logger, console=quiet())
    two = load_results(tmp_path / "two" / "results.json")
    (row,) = two["comparisons"]
    expected = first["comparisons"][-1]
    assert (row["a"], row["b"]) == (expected["a"], expected["b"]) == ("wemask_sft", "sft")
    assert row["delta"] == expected["delta"]
    assert two["model"] == first["model"]


def test_compare_refuses_other_items_engines_and_folders(compared: Any, tmp_path: Path) -> None:
    asked, folder, _ = compared
    console, logger = quiet(), {"name": "none"}
    other = dataclasses.replace(asked, limit=4, arms=("base",), batch_size=2)
    other = dataclasses.replace(
        other, config=dataclasses.replace(asked.config, output_dir=tmp_path / "other")
    )
    shorter = evaluate(other, console)
    with pytest.raises(DataError, match=r"same arm \(base\)"):
        compare_runs([folder, shorter], tmp_path / "x", command="", logger=logger, console=console)
    run = asked.run("sft").config.folder()
    with pytest.raises(DataError) as error:
        compare_runs([shorter, run], tmp_path / "x", command="", logger=logger, console=console)
    for words in ("batch_size is 2 in base, 32 in sft", "items_sha256", "n is 4 in base, 8 in sft"):
        assert words in str(error.value)
    with pytest.raises(DataError, match=r"sought for results.json or eval"):
        compare_runs([tmp_path], tmp_path / "x", command="", logger=logger, console=console)
    assert not (tmp_path / "x").exists()
