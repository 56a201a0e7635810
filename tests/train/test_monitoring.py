"""When a training is watched, what that may cost, and what it leaves."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_support import crash, fit, log_of, quick, settings, trained, weights
from torch import nn
from transformers import TrainerControl, TrainerState

from wemask.errors import ConfigError, DetectionError, ModelError
from wemask.measure.probe import Probe, fixed_probe
from wemask.train import monitoring
from wemask.train.monitoring import WatchCallback, keep_lines
from wemask.train.prepare import Prepared, prepare


def lines_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def watched(line: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in line.items() if key.startswith("wemask/")}


# --- a training -----------------------------------------------------------------------------------


def test_a_run_leaves_a_line_per_watched_step_and_the_same_in_its_log() -> None:
    folder, _ = trained("method=wemask")
    lines = lines_of(folder)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["epoch"] for line in lines] == sorted(line["epoch"] for line in lines)
    assert ["loss" in line for line in lines] == [False, True, True, True, True]
    for line in lines[1:]:
        logged = log_of(folder, line["step"])
        assert line == {key: logged[key] for key in line}
    perplexities = [line["wemask/probe_perplexity"] for line in lines]
    assert perplexities[0] == perplexities[1]  # the first step has a learning rate of 0
    assert len(set(perplexities)) == 4
    assert all(math.isfinite(value) for line in lines for value in watched(line).values())


def test_before_training_the_model_is_the_detected_one() -> None:
    folder, _ = trained("method=wemask")
    prepared = prepare(settings("debug=fast", "method=wemask"))
    arguments = (prepared.model, prepared.tokenizer, prepared.report, prepared.handle)
    values = fixed_probe(*arguments).measure(prepared.model)
    assert watched(lines_of(folder)[0]) == pytest.approx(values)


def test_a_schedule_is_told_from_its_start() -> None:
    folder, _ = trained("method=wemask", "operator.strength={start: 0.0, end: 0.5, steps: 3}")
    seen = [line["wemask/strength"] for line in lines_of(folder)]
    # That of step 0 is what the first step trains with.
    assert seen == pytest.approx([0.0, 0.0, 0.5 / 3, 1 / 3, 0.5])


@pytest.mark.parametrize("words", [(), ("peft=lora",)], ids=str)
def test_a_watched_training_is_the_unwatched_one(words: tuple[str, ...]) -> None:
    seen = trained("method=wemask", *words)[0]
    blind = trained("method=wemask", *words, "logger.watch_every=0")[0]
    assert (seen / "metrics.jsonl").exists()
    assert not (blind / "metrics.jsonl").exists()
    assert not watched(log_of(blind, 4))
    one, other = weights(seen / "final"), weights(blind / "final")
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert log_of(seen, 3)["loss"] == log_of(blind, 3)["loss"]


def test_a_watched_step_is_a_log_line_with_its_loss() -> None:
    folder, _ = trained("method=sft", "trainer.logging_steps=100", "logger.watch_every=2")
    assert [line["step"] for line in lines_of(folder)] == [0, 2, 4]
    assert all("loss" in line for line in lines_of(folder)[1:])


def test_a_resumed_run_goes_on_without_repeating_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(tmp_path, "method=wemask")
    folder = crash(config, monkeypatch)  # at step 3, after the checkpoint of step 2
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 0}\n{"step": 4, "lo')
    fit(config)
    resumed, whole = lines_of(folder), lines_of(trained("method=wemask")[0])
    assert [line["step"] for line in resumed] == [0, 1, 2, 3, 4]
    for line in (*resumed, *whole):
        line.pop("num_tokens", None)  # TRL counts a resumed run's from its checkpoint's on
    assert resumed == [pytest.approx(line) for line in whole]


def test_a_run_that_begins_again_begins_its_file_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    keep_lines(path, until=0)
    assert not path.exists()
    path.write_text('{"step": 0}\n{"step": 5}\n')
    keep_lines(path, until=0)
    assert path.read_text() == ""


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("logger.watch_evry=5", "'logger.watch_every'"),
        ("+logger.watch_evry=5", "'watch_every'"),
        ("logger.watch_every=-1", "logger.watch_every must be at least 0"),
        ("logger.watch_every=true", "logger.watch_every must be a whole number"),
        ("logger.watch_every=null", "logger.watch_every must be a whole number"),
        ("logger.watch_budget=0", "logger.watch_budget must be above 0"),
        ("logger.watch_budget=much", "logger.watch_budget must be a number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(word: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        settings(word)


def test_monitoring_does_not_make_another_run() -> None:
    words = ("logger.watch_every=3", "logger.watch_budget=null")
    assert settings(*words).folder() == settings().folder()


@pytest.mark.parametrize("logger", ["none", "wandb"])
def test_every_logger_watches_within_one_percent(logger: str) -> None:
    values = settings(f"logger={logger}").logger
    assert (values["watch_every"], values["watch_budget"]) == (10, 0.01)


# --- cost -----------------------------------------------------------------------------------------


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class FakeTrainer:
    """What the callback asks of a trainer."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self.model = model
        self.args = SimpleNamespace(device=torch.device("cpu"))
        self.accelerator = SimpleNamespace(autocast=lambda: torch.autocast("cpu", enabled=False))
        self.logged: list[dict[str, float]] = []

    def is_world_process_zero(self) -> bool:
        return True

    def log(self, logs: dict[str, float]) -> None:
        self.logged.append(logs)


class FakeProbe:
    """A measurement that takes `seconds`, or raises."""

    def __init__(self, clock: Clock, seconds: float, error: Exception | None = None) -> None:
        self.clock, self.seconds, self.error, self.count = clock, seconds, error, 0
        self.lost: set[int] = set()

    def measure(self, model: Any) -> dict[str, float]:
        self.clock.now += self.seconds
        self.count += 1
        if self.error is not None:
            raise self.error
        return {"wemask/sink_mass": 0.5}


class Training:
    """Steps of a second each, as a trainer would call the callback."""

    def __init__(self, monkeypatch: Any, tmp_path: Path, **options: Any) -> None:
        clock = Clock()
        monkeypatch.setattr(monitoring, "time", clock)
        self.clock, self.said = clock, []
        self.probe = FakeProbe(clock, options.pop("seconds", 0.5), options.pop("error", None))
        options = {"every": 10, "budget": 0.01, **options}
        probe: Any = self.probe
        path = tmp_path / "metrics.jsonl"
        self.callback = WatchCallback(probe, path, say=self.said.append, **options)
        self.callback.trainer = FakeTrainer()

    def run(self, steps: int) -> list[int]:
        """The steps that were watched."""
        arguments: Any = self.callback.trainer.args
        due = []
        for step in range(1, steps + 1):
            control, state = TrainerControl(), TrainerState(global_step=step)
            self.callback.on_step_begin(arguments, state, control)
            self.clock.now += 1.0
            before = self.probe.count
            self.callback.on_step_end(arguments, state, control)
            self.clock.now += 100.0  # saving, between the steps, is no time of theirs
            assert control.should_log == (self.probe.count > before)
            due += [step] if control.should_log else []
        return due


def test_too_dear_a_measurement_doubles_the_interval_until_it_is_within_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(monkeypatch, tmp_path, seconds=0.5)
    # 0.5 s are 5% of 10 steps, 2.5% of 20, 1.25% of 40 and 0.6% of 80.
    assert training.run(330) == [10, 20, 40, 80, 160, 240, 320]
    (said,) = training.said
    assert "0.5 s, more than 1.00% of 10 steps of 1 s" in said
    assert "every 20 steps" in said


@pytest.mark.parametrize(("seconds", "budget"), [(0.09, 0.01), (50.0, None)])
def test_within_budget_or_without_one_the_interval_stays(
    seconds: float, budget: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(monkeypatch, tmp_path, seconds=seconds, budget=budget)
    assert training.run(40) == [10, 20, 30, 40]
    assert training.said == []


def test_the_slowest_rank_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(monkeypatch, tmp_path, seconds=0.001)

    def of_all_ranks(*seconds: float) -> list[float]:
        return [max(own, other) for own, other in zip(seconds, (0.5, 0.0), strict=True)]

    monkeypatch.setattr(monitoring.distributed, "largest", of_all_ranks)
    assert training.run(160) == [10, 20, 40, 80, 160]


# --- nothing is disturbed -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def softened() -> Prepared:
    return prepare(settings("logger=none", "operator.rate=0.1"))


def watch_of(prepared: Prepared, tmp_path: Path) -> WatchCallback:
    arguments = (prepared.model, prepared.tokenizer, prepared.report, prepared.handle)
    callback = WatchCallback(fixed_probe(*arguments), tmp_path / "m.jsonl", every=1, budget=None)
    callback.trainer = FakeTrainer(prepared.model)
    return callback


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_neither_modes_nor_hooks_nor_the_random_state_change(
    softened: Prepared, tmp_path: Path
) -> None:
    callback, model = watch_of(softened, tmp_path), softened.model

    def draw(*_: Any) -> None:
        torch.rand(3)

    draws = model.get_input_embeddings().register_forward_hook(draw)  # pyright: ignore
    ids = torch.arange(1, 9).unsqueeze(0)
    modes = []
    for number, module in enumerate(model.modules()):
        module.training = number % 3 > 0
        modes.append(module.training)
    hooks, state = hooks_of(model), torch.get_rng_state()
    callback._measure()
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert hooks_of(model) == hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    draws.remove()
    model.eval()
    assert torch.isfinite(model(ids).logits).all()


def test_under_autocast_the_model_rounds_and_the_sums_do_not(
    softened: Prepared, tmp_path: Path
) -> None:
    callback = watch_of(softened, tmp_path)
    exact = callback._measure()
    callback.trainer.accelerator.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    rounded = callback._measure()
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_model_that_diverges_is_told_once_and_trains_on(
    softened: Prepared, tmp_path: Path
) -> None:
    callback, said = watch_of(softened, tmp_path), []
    callback.say = said.append
    embedding: Any = softened.model.get_input_embeddings()
    before = embedding.weight.detach().clone()
    try:
        with torch.no_grad():
            embedding.weight.fill_(math.nan)
        for step in (1, 2):
            control = TrainerControl()
            callback.on_step_begin(callback.trainer.args, TrainerState(), control)
            callback.on_step_end(callback.trainer.args, TrainerState(global_step=step), control)
            assert callback.take() == {}
    finally:
        with torch.no_grad():
            embedding.weight.copy_(before)
    assert len(said) == 1
    assert "Not watched at step 1" in said[0]


@pytest.mark.parametrize("kind", [ModelError, DetectionError])
def test_what_cannot_be_measured_ends_a_run_before_it_trains(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(monkeypatch, tmp_path, error=kind("Attention cannot be read."))
    with pytest.raises(kind, match=r"cannot be read\. logger\.watch_every=0 trains"):
        training.callback.measure_untrained()


def test_numbers_that_json_lacks_are_null(tmp_path: Path) -> None:
    probe: Any = Probe
    callback = WatchCallback(probe, tmp_path / "m.jsonl", every=1, budget=None)
    state: Any = TrainerState(global_step=7, is_world_process_zero=True)
    args: Any = None
    callback.on_log(args, state, TrainerControl(), {"loss": math.nan, "wemask/strength": 1.0})
    callback.on_log(args, state, TrainerControl(), {"loss": 1.0})  # no watched step
    state.is_world_process_zero = False
    callback.on_log(args, state, TrainerControl(), {"wemask/strength": 1.0})  # another rank
    (line,) = (tmp_path / "m.jsonl").read_text().splitlines()
    assert line == '{"step": 7, "loss": null, "wemask/strength": 1.0}'
