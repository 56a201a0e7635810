"""What a training run logs, saves and survives."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from wemask import distributed
from wemask.architectures import find_decoder, unwrap
from wemask.dims import observe, probe_ids
from wemask.handle import SoftenHandle
from wemask.measurement import Batch, measure
from wemask.strength import StrengthSchedule
from wemask.tracing import Trace, trace_layers


class SofteningCallback(TrainerCallback):
    """Moves the strength along its schedule."""

    def __init__(self, handle: SoftenHandle) -> None:
        self.handle = handle

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        strength = self.handle.config.strength
        if isinstance(strength, StrengthSchedule):
            self.handle.set_strength(strength.at(state.global_step))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if isinstance(self.handle.config.strength, StrengthSchedule):
            self.handle.set_strength(self.handle.config.final_strength)


class InterruptCallback(TrainerCallback):
    """On Ctrl-C or TERM: finish the step, save, stop; all ranks after the same step.

    A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._before: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():  # signals go nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask_to_stop)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Not print: a signal may come in the middle of another print, which is an error then.
        if distributed.is_main():
            os.write(2, b"\nStopping after this step and saving; Ctrl-C again stops at once.\n")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # The signal may have reached one rank only, or this one a step earlier than the others.
        self.interrupted = distributed.any_rank(self.interrupted)
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def watch(model: nn.Module, handle: SoftenHandle) -> dict[str, float]:
    """The `wemask/*` keys of one log line, measured on the probe prompt of the report.

    `wemask/sink_mass` is the mean over the layers after the ME Layer; it is left out where no
    token of the prompt is massive any more.
    """
    base = unwrap(model)
    observed = observe(handle, base)
    values = {
        "wemask/strength": handle.strength,
        "wemask/tokens_touched": float(sum(o.tokens for o in observed.values())),
    }
    if handle.learned:
        values |= {f"wemask/strength/layer_{i}": s for i, s in handle.strengths.items()}
    report = handle.report
    if report is None or report.layer is None:
        return values
    ids = probe_ids(base, report)
    mask = torch.ones_like(ids)
    traces = trace_layers(base, find_decoder(base), ids, mask)
    born = traces[report.layer + 1]
    values["wemask/me_layer"] = float(report.layer)
    values["wemask/massive_max"] = float(born.token_max.max())
    values["wemask/massive_ratio"] = float(born.token_max.max()) / max(born.median, 1e-12)
    massive = _massive(born, report.thresholds).unsqueeze(0)
    later = report.layer + 1
    if massive.any() and later < report.num_layers:
        batch = Batch(input_ids=ids, attention_mask=mask, massive=massive)
        values["wemask/sink_mass"] = measure(base, [batch]).later("sink_mass", report.layer)
    return values


def _massive(trace: Trace, thresholds: dict[int, float]) -> torch.Tensor:
    """Tokens of a trace that are massive by content, bool [N]."""
    taus = torch.tensor([thresholds.get(int(dim), float("inf")) for dim in trace.dims])
    return (trace.columns > taus).any(-1)
