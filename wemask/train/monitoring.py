"""Watching a training: when the probe is measured, what that may cost, and where it is written.

Every rank measures, since under ZeRO-3 a forward gathers parameters from all of them; the first one
writes. A watched step is a log line too, so that its loss stands beside the `wemask/*` keys in W&B,
in the progress output, in trainer_state.json and in metrics.jsonl.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from wemask import distributed
from wemask.errors import DetectionError, WemaskError
from wemask.files import write_whole
from wemask.measure.probe import Probe

# What a model whose weights are not finite any more ends in.
DIVERGED = (DetectionError, OverflowError, torch.linalg.LinAlgError)  # pyright: ignore


class WatchCallback(TrainerCallback):
    """Measures a probe before training and every `every` optimizer steps.

    Attributes:
        interval: steps from one measurement to the next. It doubles after each one that took more
            than `budget` of the time of so many steps: both times are the slowest rank's, so that
            all ranks measure at the same steps.
    """

    def __init__(
        self,
        probe: Probe,
        path: Path,
        *,
        every: int,
        budget: float | None,
        say: Callable[[str], None] = print,
    ) -> None:
        """Args:
        probe: what to measure, chosen before training.
        path: metrics.jsonl.
        every: steps, at least 1.
        budget: share of the training time, e.g. 0.01; None: whatever it takes.
        say: gets a line for the user, on the first rank.
        """
        self.probe, self.path, self.say = probe, path, say
        self.interval, self.budget = every, budget
        self.trainer: Any = None
        self._pending: dict[str, float] = {}
        self._began = 0.0
        self._steps: list[float] = []  # seconds, without what lies between steps: saving, logging
        self._said: set[str] = set()

    def take(self) -> dict[str, float]:
        """What was measured and is not in the log yet."""
        values, self._pending = self._pending, {}
        return values

    # --- when -------------------------------------------------------------------------------------

    def measure_untrained(self) -> None:
        """Measure the model that a new run begins with, before `trainer.train`.

        Not in `on_train_begin`: there ZeRO-3 has sharded the parameters, and where its first
        forward is not training's own, the first backward fails on a parameter that is not gathered
        (deepspeed 0.19.8, trl 1.16: "The size of tensor a (0) must match ...").

        Raises:
            WemaskError: as `Probe.measure`, with what to type.
        """
        try:
            self._pending = self._measure()
        except WemaskError as error:
            raise type(error)(f"{error} logger.watch_every=0 trains without watching.") from error

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            keep_lines(self.path, until=state.global_step)
        if self._pending:
            self.trainer.log(self.take())

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        due = state.global_step % self.interval == 0
        if due and args.device.type == "cuda":
            torch.cuda.synchronize(args.device)  # the steps' own work is not the measurement's
        self._steps.append(time.perf_counter() - self._began)
        if not due:
            return
        began = time.perf_counter()
        try:
            self._pending = self._measure()
        except DIVERGED as error:
            self._say_once("diverged", f"Not watched at step {state.global_step}: {error}")
        control.should_log = True
        self._adapt(time.perf_counter() - began, mean(self._steps))
        self._steps.clear()

    # --- what it costs ----------------------------------------------------------------------------

    def _measure(self) -> dict[str, float]:
        """The model as training runs it: under its autocast, the random state left alone."""
        device = self.trainer.args.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), self.trainer.accelerator.autocast():
            return self.probe.measure(self.trainer.model)

    def _adapt(self, seconds: float, step: float) -> None:
        seconds, step = distributed.largest(seconds, step)
        if self.budget is None or seconds <= self.budget * self.interval * step:
            return
        self._say_once(
            "cost",
            f"Watching took {seconds:.2g} s, more than {self.budget:.2%} of {self.interval} steps "
            f"of {step:.2g} s (logger.watch_budget): it is done less often from here on, first "
            f"every {2 * self.interval} steps.",
        )
        self.interval *= 2

    def _say_once(self, what: str, text: str) -> None:
        if what not in self._said and self.trainer.is_world_process_zero():
            self.say(text)
        self._said.add(what)

    # --- where it is written ----------------------------------------------------------------------

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any
    ) -> None:
        watched = any(key.startswith("wemask/") for key in logs or {})
        if watched and state.is_world_process_zero:
            line = {"step": state.global_step, **logs}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({k: _plain(v) for k, v in line.items()}) + "\n")


def keep_lines(path: Path, *, until: int) -> None:
    """Drop the lines of steps after `until`, which a resumed run takes again; 0 drops all.

    So is a damaged line, such as the last one of a killed run.
    """
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        write_whole(path, "".join(f"{line}\n" for line in lines if _is_kept(line, until)))


def _is_kept(line: str, until: int) -> bool:
    try:
        return bool(until) and json.loads(line)["step"] <= until
    except (ValueError, TypeError, KeyError, RecursionError):  # whatever a damaged line may hold
        return False


def _plain(value: Any) -> Any:
    """For JSON, which has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
