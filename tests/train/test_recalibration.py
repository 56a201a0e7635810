"""Trainings that move the massive activation: their runs load, merge, export and answer."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from run_support import crash, fit, log_of, quick, trained, weights

import wemask
from wemask.checkpoint.manifest import read_manifest
from wemask.checkpoint.save_load import CONFIG_NAME, read_config
from wemask.cli import main
from wemask.errors import PatchError
from wemask.evaluate.arm_run import ArmRun
from wemask.evaluate.evaluation import TaskConfig, evaluate_arm
from wemask.operator.recalibration import is_lost

FINDING = "SFT has removed the massive activation: the softening touches nothing in 3 of 3 layers."
HIGH = ("method=wemask", "trainer.max_steps=6")
WAYS = {
    "full 0.02": ("trainer.learning_rate=0.02",),
    "full 0.05": ("trainer.learning_rate=0.05",),
    "lora 0.05": ("trainer.learning_rate=0.05", "peft=lora"),
    "learned": ("trainer.learning_rate=0.02", "operator.strength=learnable"),
}


def answers(model: Any, tokenizer: Any, folder: Path) -> float:
    task = TaskConfig(name="synthetic", limit=2, max_new_tokens=4)
    options: Any = {"arm": "wemask_sft", "folder": folder, "fingerprint": "f", "progress": False}
    return evaluate_arm(model, tokenizer, [task], **options)["synthetic"].accuracy


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_lost_its_massive_activation_is_as_good_as_any_other(
    way: str, tmp_path: Path
) -> None:
    folder, text = trained(*HIGH, *WAYS[way])
    assert FINDING in text
    model, tokenizer = wemask.load(folder / "final")
    handle = wemask.decoder.parts.unwrap(model).wemask_handle  # pyright: ignore
    assert (handle.silent, handle.tokens_touched) == ([2, 3, 4], {2: 0, 3: 0, 4: 0})
    answers(model, tokenizer, tmp_path)
    ids = torch.arange(5, 45).reshape(2, 20)
    out = tmp_path / "out"
    if "lora" in way:
        wemask.merge(folder / "final", out)
    else:
        wemask.export(folder, out)
    again, _ = wemask.load(out)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("recalibrate", ["never", "at_end"])
def test_every_checkpoint_of_such_a_run_loads(recalibrate: str) -> None:
    words = ("trainer.learning_rate=0.02", "trainer.save_steps=2", "trainer.save_total_limit=9")
    folder, text = trained(*HIGH, *words, f"operator.recalibrate={recalibrate}")
    touched = {}
    for name in ("checkpoint-2", "checkpoint-4", "checkpoint-6"):
        model: Any = wemask.load(folder / "checkpoints" / name)[0]
        touched[name] = sum(model.wemask_handle.tokens_touched.values())
    assert touched["checkpoint-2"] == 0
    wemask.load(folder / "final")
    assert (read_config(folder / "final")["calibrated"] is None) == (recalibrate == "never")
    assert ("gates: before training -> now" in text) == (recalibrate == "at_end")


def test_the_file_holds_both_calibrations_and_an_ordinary_run_is_told_as_before() -> None:
    folder, text = trained("method=wemask")
    saved = read_manifest(folder / "final")
    first = wemask.MELayerReport.load(folder / "me_layer.json")
    assert saved.calibrated is not None and saved.report is not None
    assert saved.calibrated.first == first
    assert (saved.calibrated.step, saved.calibrated.found.layer) == (4, first.layer)
    assert {i: saved.calibrated.found.gates[i] for i in saved.layers} == saved.report.gates
    assert (saved.tokens_touched, saved.touched_first) == ({2: 1, 3: 1, 4: 1},) * 2
    assert not any(is_lost(gate) for gate in saved.report.gates.values())
    assert "ME Layer 1, as before." in text and "Layers 2 to 4: new thresholds." in text
    assert "removed" not in text


def test_the_gate_is_watched_and_its_loss_is_told_once_with_the_step() -> None:
    folder, text = trained(*HIGH, "trainer.learning_rate=0.02")
    for layer in (2, 3, 4):
        assert text.count(f"Step 2: layer {layer} has lost its gate") == 1
    before, after = log_of(folder, 1), log_of(folder, 2)
    assert before["wemask/separation"] > 1.2 and before["wemask/gates"] == 3
    assert after["wemask/gates"] == after["wemask/tokens_touched"] == 0


# --- every so many steps --------------------------------------------------------------------------

EVERY = ("method=wemask", "operator.recalibrate=1", "trainer.learning_rate=3e-3")


def test_calibrated_in_training_the_gates_follow_and_the_checkpoint_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, text = trained(*EVERY)
    assert [f"Calibrated at step {step}." in text for step in (1, 2, 3, 4)] == [True] * 4
    config = quick(tmp_path, *EVERY)
    folder = crash(config, monkeypatch)
    saved = read_manifest(folder / "checkpoints" / "checkpoint-2")
    assert saved.calibrated is not None and saved.calibrated.step == 2
    assert saved.report != saved.calibrated.first
    fit(config)
    one, other = weights(folder / "final"), weights(whole / "final")
    assert all(torch.equal(one[name], other[name]) for name in other)
    ends = [read_config(run / "final") for run in (folder, whole)]
    assert ends[0]["report"] == ends[1]["report"]
    assert ends[0]["calibrated"] == ends[1]["calibrated"]


def test_a_calibration_that_fails_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from wemask.operator import recalibration

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(recalibration, "detect", full)
    folder, _ = fit(quick(tmp_path, "method=wemask", "trainer.max_steps=1"))
    said = "Not calibrated again at step 1, the gates in force stay: CUDA out of memory."
    assert said in caplog.text
    saved = read_manifest(folder / "final")
    assert saved.calibrated is None
    assert saved.report == wemask.MELayerReport.load(folder / "me_layer.json")


# --- wemask recalibrate ---------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path: Path) -> Path:
    """A run as version 0.1 left it, which it then refused to load."""
    folder, _ = trained(*HIGH, "trainer.learning_rate=0.02", "operator.recalibrate=never")
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    for path in (run / CONFIG_NAME, run / "final" / CONFIG_NAME):
        values = json.loads(path.read_text())
        for key in ("tokens_touched", "touched_first", "calibrated"):
            del values[key]
        del values["operator"]["recalibrate"]
        # The gates that it had at first, too high for what is left.
        for gate in values["report"]["gates"].values():
            gate["thresholds"] = gate["primary"] = dict.fromkeys(gate["thresholds"], 1e6)
        path.write_text(json.dumps(values))
    return run


def run_cli(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert isinstance(end.value.code, int)
    return end.value.code


def test_what_was_refused_is_opened_and_keeps_what_it_said(
    refused: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PatchError, match=rf"type: wemask recalibrate {refused}/final"):
        wemask.load(refused / "final")
    old = read_config(refused / "final")
    assert run_cli("recalibrate", str(refused)) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert FINDING in out and "No ME Layer" in out and "built-in" not in out
    model: Any = wemask.load(refused / "final")[0]
    assert model.wemask_handle.silent == [2, 3, 4]
    new = read_config(refused / "final")
    assert new == read_config(refused)
    assert new["calibrated_before"] == {"report": old["report"]}
    assert new["calibrated"]["first"] == old["report"]
    assert {k: new[k] for k in ("base_model", "weights_sample", "dims", "operator")} == {
        k: old[k] for k in ("base_model", "weights_sample", "dims", "operator")
    }
    (refused / "config.resolved.yaml").write_text("data: [")
    assert run_cli("recalibrate", str(refused / "final")) == 0
    assert "Only the built-in texts are read" in capsys.readouterr().out
    assert read_config(refused)["calibrated_before"]["calibrated"] == new["calibrated"]


def test_recalibrated_at_once_a_run_is_as_it_ended(tmp_path: Path) -> None:
    """The command reads what the training read, so it finds the same."""
    folder, _ = trained("method=wemask")
    shutil.copytree(folder, tmp_path / "run")
    assert run_cli("recalibrate", str(tmp_path / "run")) == 0
    ended, now = (read_config(run / "final") for run in (folder, tmp_path / "run"))
    assert now["report"] == ended["report"]
    assert now["calibrated"]["step"] is None
    assert now["calibrated"]["first"] == ended["calibrated"]["first"]
    assert now["calibrated"]["found"]["gates"] == ended["calibrated"]["found"]["gates"]


def test_its_results_are_stale_then(refused: Path) -> None:
    config = quick(refused.parent, *HIGH, f"paths.run_dir={refused}")
    run = ArmRun(name="wemask_sft", config=config)
    before = run.fingerprint()
    assert run_cli("recalibrate", str(refused)) == 0
    assert run.fingerprint() != before


def test_a_run_without_gates_has_nothing_to_calibrate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, text = trained("method=wemask", "operator.tokens=first", "trainer.max_steps=1")
    assert "gates:" not in text
    assert run_cli("recalibrate", str(folder)) == 2
    assert "tokens=first are not told by gates" in " ".join(capsys.readouterr().err.split())
