import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_support import quick, settings
from transformers import TrainerControl, TrainerState

from wemask.operator.handle import SoftenHandle
from wemask.operator.patch import soften
from wemask.train import training
from wemask.train.callbacks import InterruptCallback, SofteningCallback
from wemask.train.prepare import prepare


class Arguments:
    """The one field of TrainingArguments that a callback reads."""

    def __init__(self, output_dir: Path | None = None) -> None:
        self.output_dir = str(output_dir)


def call(callback: Any, event: str, step: int = 0, output_dir: Path | None = None) -> Any:
    control, state = TrainerControl(), TrainerState(global_step=step)
    getattr(callback, event)(Arguments(output_dir), state, control)
    return control


@pytest.fixture(scope="module")
def softened() -> Any:
    return prepare(settings("logger=none", "operator.rate=0.1"))


@pytest.fixture
def scheduled(softened: Any) -> Iterator[SoftenHandle]:
    words = ("operator.strength={start: 0.2, end: 0.8, steps: 4}", "operator.rate=0.1")
    with softened.handle:
        pass  # leaving it removes it
    with soften(softened.model, softened.report, settings(*words).operator) as handle:
        yield handle
    softened.handle = soften(softened.model, softened.report, settings(words[1]).operator)


# --- strength -------------------------------------------------------------------------------------


def test_the_strength_follows_its_schedule_and_ends_at_its_end(scheduled: SoftenHandle) -> None:
    callback = SofteningCallback(scheduled)
    seen = []
    for step in (0, 1, 2, 4, 9):
        call(callback, "on_step_begin", step)
        seen.append(scheduled.strength)
    assert seen == pytest.approx([0.2, 0.35, 0.5, 0.8, 0.8])
    call(callback, "on_step_begin", 0)
    call(callback, "on_train_end", 4)
    assert scheduled.strength == pytest.approx(0.8)


def test_a_constant_strength_is_left_alone(softened: Any) -> None:
    callback = SofteningCallback(softened.handle)
    for step in (0, 3):
        call(callback, "on_step_begin", step)
        assert softened.handle.strength == 1.0


# --- signals --------------------------------------------------------------------------------------


@pytest.fixture
def interrupt() -> Iterator[InterruptCallback]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    callback = InterruptCallback()
    call(callback, "on_train_begin")
    yield callback
    callback.restore()
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_after_the_step(
    interrupt: InterruptCallback, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not call(interrupt, "on_step_end").should_training_stop
    os.kill(os.getpid(), number)
    control = call(interrupt, "on_step_end")
    assert control.should_save
    assert control.should_training_stop
    assert capfd.readouterr().err.count("Stopping after this step and saving") == 1


def test_the_file_of_a_job_script_stops_like_a_signal(
    interrupt: InterruptCallback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEMASK_STOP_FILE", str(tmp_path / "stop"))
    assert not call(interrupt, "on_step_end").should_training_stop
    (tmp_path / "stop").touch()
    control = call(interrupt, "on_step_end")
    assert control.should_save
    assert control.should_training_stop
    assert interrupt.interrupted


def test_a_second_ctrl_c_stops_at_once(interrupt: InterruptCallback) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: call(InterruptCallback(), "on_train_begin"))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before


def test_the_callbacks_are_those_of_a_training(tmp_path: Path, monkeypatch: Any) -> None:
    from wemask.data.chat import choose_loss
    from wemask.data.examples import load_examples

    config = quick(tmp_path)
    prepared = prepare(config)
    examples = load_examples(config.data)
    loss = choose_loss(examples[0], prepared.tokenizer)
    own = InterruptCallback()
    built = training.build_trainer(config, prepared, examples, loss, tmp_path, own)
    kinds = [type(callback) for callback in built.callback_handler.callbacks]
    assert kinds.count(SofteningCallback) == 1
    assert own in built.callback_handler.callbacks
