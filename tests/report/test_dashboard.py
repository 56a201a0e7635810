import json

import pytest
from report_cases import made_up

from wemask.cli import main
from wemask.report.dashboard import SOFTENING, sections, workspace


def keys_of(tasks: list[str]) -> set[str]:
    content = sections(tasks).values()
    return {key for panels in content for keys in panels.values() for key in keys}


def test_every_panel_reads_a_key_that_is_logged() -> None:
    """The keys of a study are those of tracking; those of training are transformers' and ours."""
    from wemask.compare.results import validate_results
    from wemask.report.tracking import _summary

    results = validate_results(made_up())
    logged = {name for arm in results["arms"] for name, _ in _summary(results, arm)}
    shown = {key for key in keys_of(["arith"]) if key.startswith(("bench/", "compare/"))}
    assert shown <= logged
    assert {f"compare/arith/{key}" for key in ("delta", "lo", "hi", "p")} <= shown


def test_the_keys_of_the_softening_are_those_that_training_logs() -> None:
    from run_support import log_of, trained

    folder, _ = trained("method=wemask")
    shown = {key for keys in SOFTENING.values() for key in keys}
    logged = {f"train/{key}" for key in log_of(folder, 4) if key.startswith("wemask/")}
    # The layer is a constant; a model without one has the sink of its first token instead.
    first = {f"train/wemask/{key}_first" for key in ("sink_mass", "sink_rate")}
    assert shown - first == logged - {"train/wemask/me_layer"}


def test_the_workspace_has_a_panel_for_every_key() -> None:
    pytest.importorskip("wandb_workspaces")
    built = workspace("p", "team", ["arith", "gsm8k"])
    text = json.dumps(built._to_model().model_dump(mode="json"), default=str)
    for key in keys_of(["arith", "gsm8k"]):
        assert json.dumps(key) in text


def test_a_dry_run_lists_the_panels_and_sends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["dashboard", "--entity", "team", "--tasks", "arith", "gsm8k", "--dry-run"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for task in ("arith", "gsm8k"):
        assert f"Benchmarks | {task}: accuracy: bench/{task}/accuracy" in said
