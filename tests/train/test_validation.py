"""A training that is watched on data kept apart, and ends with its best checkpoint."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_support import refused, settings, trained, weights

from wemask.checkpoint.save_load import read_config
from wemask.errors import RunFolderError
from wemask.train.prepare import prepare
from wemask.train.recalibration import restore_operator
from wemask.train.training import arguments_of
from wemask.train.validation import BestCallback, best_checkpoint

BEST = (
    "method=wemask",
    "operator.strength={start: 0.0, end: 1.0, steps: 4}",
    "data.validation=0.25",
    "trainer.learning_rate=0.01",  # far too much: the loss of unseen problems rises
    "trainer.lr_scheduler_type=constant",
    "trainer.warmup_steps=0",
    "trainer.save_steps=1",
    "trainer.load_best_model_at_end=true",
)


def test_the_best_checkpoint_by_validation_is_the_final_model() -> None:
    folder, text = trained(*BEST)
    newest = max((folder / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
    state = json.loads((newest / "trainer_state.json").read_text())
    losses = {e["step"]: e["eval_loss"] for e in state["log_history"] if "eval_loss" in e}
    assert list(losses) == [1, 2, 3, 4]
    best = min(losses, key=lambda step: losses[step])
    assert best < 4, "the test could not tell the best from the last"
    checkpoint = folder / "checkpoints" / f"checkpoint-{best}"
    assert state["best_metric"] == losses[best]
    assert f"The best checkpoint is the final model: {checkpoint}" in text
    there, final = weights(checkpoint), weights(folder / "final")
    assert all((final[name] == there[name]).all() for name in there)
    assert not all((weights(newest)[name] == there[name]).all() for name in there)
    strengths = [read_config(path)["strength"] for path in (folder / "final", checkpoint)]
    assert strengths[0] == strengths[1] < 1.0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {e["step"]: e["eval_loss"] for e in lines if "eval_loss" in e} == losses
    assert "12 examples" in text and "For validation, not trained:" in text
    assert text.count("4 examples, the longest") == 1


def test_a_learned_strength_is_that_of_the_best_checkpoint(tmp_path: Path) -> None:
    folder, _ = trained("method=wemask", "operator.strength=learnable")
    checkpoint = folder / "checkpoints" / "checkpoint-2"
    prepared = prepare(settings("operator.strength=learnable"))
    assert prepared.handle is not None
    saved = {int(i): theta for i, theta in read_config(checkpoint)["learned"].items()}
    assert prepared.handle.learned != saved
    trainer = SimpleNamespace(
        state=SimpleNamespace(best_model_checkpoint=str(checkpoint), best_metric=1.0),
        args=SimpleNamespace(load_best_model_at_end=True),
    )
    best = best_checkpoint(trainer, folder, print)
    assert best == checkpoint
    restore_operator(prepared.handle, checkpoint)
    assert prepared.handle.learned == pytest.approx(saved)


def test_a_best_checkpoint_that_moved_is_found_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    run, _ = trained("method=wemask", "operator.strength=learnable")
    folder = tmp_path / "moved"
    shutil.copytree(run, folder)
    state: Any = SimpleNamespace(
        best_model_checkpoint="outputs/before/checkpoints/checkpoint-2", best_metric=1.0
    )
    BestCallback(folder).on_train_begin(None, state, None)
    trainer = SimpleNamespace(state=state, args=SimpleNamespace(load_best_model_at_end=True))
    place = folder / "checkpoints" / "checkpoint-2"
    assert best_checkpoint(trainer, folder, print) == place
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(RunFolderError, match=r"best checkpoint .* is damaged"):
        best_checkpoint(trainer, folder, print)


def test_evaluation_comes_with_the_checkpoints_unless_it_is_set(tiny: Any, tmp_path: Path) -> None:
    loss: Any = SimpleNamespace(completion_only=True, assistant_only=False)

    def made(*words: str) -> tuple[Any, ...]:
        values = arguments_of(settings(*words), tiny.model, loss, tmp_path)
        return tuple(values.get(f"eval_{name}") for name in ("strategy", "steps"))

    assert made() == (None, None)
    assert made("data.validation=0.1") == ("steps", 0.25)
    assert made("data.validation=0.1", "trainer.save_strategy=epoch")[0] == "epoch"
    assert made("data.validation=0.1", "trainer.save_strategy=no")[0] == "epoch"
    own = ("trainer.eval_strategy=steps", "trainer.eval_steps=7")
    assert made("data.validation=0.1", *own) == ("steps", 7)


@pytest.mark.parametrize(
    "word", ["eval_strategy=epoch", "eval_on_start=true", "load_best_model_at_end=true"]
)
def test_evaluation_of_nothing_is_refused_with_what_to_type(word: str) -> None:
    assert "data.validation=0.05" in refused(f"trainer.{word}")
    settings(f"trainer.{word}", "data.validation=0.5")
