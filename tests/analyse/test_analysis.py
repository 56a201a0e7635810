"""`wemask analyse` on a model whose ME Layer and sinks are planted: files, numbers, resuming."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from planted.folder import LAYERS, MAGNITUDE, ME_LAYER, build
from rich.console import Console

from wemask.analyse import analysis
from wemask.analyse.analysis import CHOICES, AnalysisConfig, analyse
from wemask.analyse.conditions import Subject
from wemask.analyse.experiments import EXPERIMENTS
from wemask.analyse.rows import COLUMNS
from wemask.detection.detect import detect
from wemask.detection.me_layer import MELayerReport
from wemask.errors import ConfigError, DetectionError, RunFolderError

SMALL: dict[str, Any] = {"count": 6, "length": 24, "batch_size": 4}


@pytest.fixture(scope="module")
def planted() -> tuple[Any, Any, MELayerReport]:
    model, tokenizer, _ = build()
    return model, tokenizer, detect(model, tokenizer)


def run(planted: Any, folder: Path, *experiments: str, **settings: Any) -> tuple[Path, str]:
    """The page's path and what was printed."""
    console = Console(record=True, width=200, force_terminal=False)
    config = AnalysisConfig(experiments=experiments, **{**SMALL, **settings})
    page = analyse(*planted, config, name="planted", folder=folder, console=console)
    return page, console.export_text()


@pytest.fixture(scope="module")
def finished(planted: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return run(planted, tmp_path_factory.mktemp("analysis") / "run", "all")


def test_everything_is_there(finished):
    page, said = finished
    folder = page.parent
    tables = {path.stem for path in (folder / "tables").glob("*.parquet")}
    assert tables == {"layers", "norms", "quadratic_dims", *CHOICES}
    for name in tables:
        parquet = pd.read_parquet(folder / "tables" / f"{name}.parquet")
        assert len(parquet) == len(pd.read_csv(folder / "tables" / f"{name}.csv")) > 0
    pictures = {path.name for path in (folder / "figures").iterdir()}
    assert {"necessity.png", "necessity.svg", "dose.png", "specificity.svg"} <= pictures
    assert len(pictures) == 2 * len({Path(name).stem for name in pictures})  # PNG and SVG of each
    assert page.name == "analysis.html" and page.stat().st_size > 10**4
    assert (folder / "config.resolved.yaml").exists() and (folder / "env.json").exists()
    assert MELayerReport.load(folder / "me_layer.json").layer == ME_LAYER
    assert "measurements; the first took" in said  # the time estimate


def test_the_planted_answer_comes_out(finished):
    frame = pd.read_parquet(finished[0].parent / "tables" / "necessity.parquet")
    mean = frame[frame.layer.isna()].set_index(["group", "at", "amount", "metric"]).value
    with_it = mean["ffn_output", ME_LAYER, 1.0, "massive_magnitude"]
    without = mean["ffn_output", ME_LAYER, 0.0, "massive_magnitude"]
    assert with_it == pytest.approx(MAGNITUDE, rel=0.1) and without < 0.02 * with_it
    sinks = [mean["ffn_output", ME_LAYER, amount, "sink_rate"] for amount in (0.0, 1.0)]
    assert sinks[1] >= 0.25 > sinks[0]  # one of four heads was planted in each later layer
    layers = pd.read_parquet(finished[0].parent / "tables" / "layers.parquet")
    assert sorted(set(layers.state)) == ["off", "on"]
    assert len(layers) == 2 * LAYERS


def test_the_facts_say_what_it_cost_and_what_was_found(finished):
    facts = json.loads((finished[0].parent / "analysis.json").read_text())
    assert facts["texts"]["count"] == facts["texts"]["massive_tokens"] == 6
    assert [cost["part"] for cost in facts["costs"]] == ["metrics", *CHOICES]
    assert all(c["seconds"] > 0 and c["peak_memory"] > 2**20 for c in facts["costs"])
    batches = 2
    conditions = sum(
        len(frame.drop_duplicates(list(COLUMNS[:6])))
        for name, frame in frames(finished[0].parent).items()
        if name in EXPERIMENTS
    )
    forwards = sum(cost["forwards"] for cost in facts["costs"])
    assert forwards == (conditions + 2) * batches + 1  # layers off and on, quadratic
    read = {row["experiment"]: row["reading"] for row in reversed(facts["findings"])}
    assert read["necessity"].startswith("told apart from every control")
    assert facts["impossible"] == [] and facts["notes"] == []


def frames(folder: Path) -> dict[str, pd.DataFrame]:
    return {path.stem: pd.read_parquet(path) for path in (folder / "tables").glob("*.parquet")}


def test_a_killed_analysis_goes_on_with_the_same_result(planted, finished, tmp_path, monkeypatch):
    real, ran = Subject.measure, []

    def killed(self: Subject, condition: Any, done: Any = None) -> Any:
        if len(ran) == 7:
            raise KeyboardInterrupt
        ran.append(condition.key)
        return real(self, condition, done)

    monkeypatch.setattr(Subject, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        run(planted, tmp_path / "run", "all")
    assert not (tmp_path / "run" / "analysis.html").exists()
    again: list[str] = []
    monkeypatch.setattr(
        Subject, "measure", lambda s, c, d=None: (again.append(c.key), real(s, c, d))[1]
    )
    _, said = run(planted, tmp_path / "run", "all")
    assert "8 of" in said and "were made before" in said  # layers twice, five conditions; norms
    assert not set(again) & set(ran)
    whole, resumed = frames(finished[0].parent), frames(tmp_path / "run")
    assert whole.keys() == resumed.keys()
    for name, frame in whole.items():
        pd.testing.assert_frame_equal(resumed[name], frame)


def test_experiments_add_up_in_a_folder_and_nothing_runs_twice(planted, tmp_path, monkeypatch):
    page, _ = run(planted, tmp_path / "run", "location")
    assert set(frames(page.parent)) == {"layers", "norms", "location"}
    real, ran = Subject.measure, set()

    def counted(self: Subject, condition: Any, done: Any = None) -> Any:
        ran.add(condition.experiment)
        return real(self, condition, done)

    monkeypatch.setattr(Subject, "measure", counted)
    page, said = run(planted, tmp_path / "run", "location", "sufficiency")
    assert ran == {"sufficiency"}
    assert {"location", "sufficiency"} <= set(frames(page.parent))
    assert "were made before" in said


def test_a_folder_of_other_settings_is_refused(planted, tmp_path):
    run(planted, tmp_path / "run", "none")
    with pytest.raises(RunFolderError, match="count: 6 there, 5 now"):
        run(planted, tmp_path / "run", "none", count=5)


def test_without_an_me_layer_the_metrics_remain(planted, tmp_path):
    from transformers import LlamaForCausalLM

    model, tokenizer, _ = planted
    plain = LlamaForCausalLM(model.config).eval()
    report = detect(plain, tokenizer)
    assert not report.found
    page, _ = run((plain, tokenizer, report), tmp_path / "run", "all")
    facts = json.loads((page.parent / "analysis.json").read_text())
    assert "No ME Layer" in facts["notes"][0]
    layers = frames(page.parent)["layers"]
    assert set(layers.state) == {"off"} and layers.sink_mass_first.notna().all()
    with pytest.raises(DetectionError, match="need an ME Layer"):
        run((plain, tokenizer, report), tmp_path / "other", "necessity")


def test_impossible_conditions_are_told(planted, tmp_path):
    from wemask import WeMaskConfig

    # residual_copy with uniform damping would do nothing, and says so
    page, _ = run(planted, tmp_path / "run", "specificity", operator=WeMaskConfig(layers=(4,)))
    facts = json.loads((page.parent / "analysis.json").read_text())
    assert "specificity" in {row["experiment"] for row in facts["findings"]}
    assert all(set(row) == {"experiment", "condition", "reason"} for row in facts["impossible"])


def test_settings_are_checked_together():
    with pytest.raises(ConfigError) as error:
        AnalysisConfig(experiments=("neccessity",), count=0, length=1)
    text = str(error.value)
    assert "Did you mean 'necessity'?" in text
    assert "--count must be 1 to 100,000, got 0" in text and "--length must be 2 to" in text
    with pytest.raises(ConfigError, match="--count must be 1 to 100,000, got 1,000,000,000,000"):
        AnalysisConfig(count=10**12)
    with pytest.raises(ConfigError, match="stand alone"):
        AnalysisConfig(experiments=("all", "dose"))
    assert AnalysisConfig(experiments=("dose", "necessity", "dose")).chosen == ("necessity", "dose")
    assert AnalysisConfig(experiments=("none",)).chosen == ()
    assert AnalysisConfig().chosen == CHOICES


def test_no_text_is_longer_than_the_positions_of_the_model(planted, tmp_path):
    texts = tmp_path / "long.txt"
    texts.write_text("a b c d " * 10_000)
    settings = {"texts": texts, "count": 1, "length": 10**6}
    page, said = run(planted, tmp_path / "run", "none", **settings)
    positions = planted[0].config.max_position_embeddings
    assert f"--length 1000000: the model has {positions} positions" in said
    facts = json.loads((page.parent / "analysis.json").read_text())
    assert facts["texts"]["tokens"] == facts["settings"]["length"] == positions


def test_durations():
    assert [analysis._duration(s) for s in (1.6, 90, 7000)] == ["2 s", "1 min 30 s", "1 h 56 min"]
