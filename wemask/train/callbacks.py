"""What a training run changes from step to step, and survives; monitoring.py: what it logs."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from wemask import distributed
from wemask.operator.handle import SoftenHandle
from wemask.operator.settings import StrengthSchedule
from wemask.train.saved_state import write_hashes


class SofteningCallback(TrainerCallback):
    """Moves the strength along its schedule."""

    def __init__(self, handle: SoftenHandle) -> None:
        self.handle = handle

    def move(self, step: int) -> None:
        """Set the strength that a step trains with, where there is a schedule."""
        strength = self.handle.config.strength
        if isinstance(strength, StrengthSchedule):
            self.handle.set_strength(strength.at(step))

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.move(state.global_step)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if isinstance(self.handle.config.strength, StrengthSchedule):
            self.handle.set_strength(self.handle.config.final_strength)


class RecalibrateCallback(TrainerCallback):
    """Calibrates the gates again every `every` steps; before the step is watched and saved."""

    def __init__(self, calibrate: Callable[[int], None], every: int) -> None:
        self.calibrate, self.every = calibrate, every

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self.calibrate(state.global_step)


class InterruptCallback(TrainerCallback):
    """On Ctrl-C or TERM: finish the step, save, stop; all ranks after the same step.

    A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self.began = False
        """Whether all that a training needs was set up, and it has begun."""
        self._before: dict[int, Any] = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = True
        if threading.current_thread() is threading.main_thread():  # signals go nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask_to_stop)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Not print: a signal may come in the middle of another print, which is an error then.
        if distributed.is_main():
            os.write(2, b"\nStopping after this step and saving; Ctrl-C again stops at once.\n")

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        # The signal may have reached one rank only, or this one a step earlier than the others.
        self.interrupted = distributed.any_rank(self.interrupted or _told_to_stop())
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class HashCallback(TrainerCallback):
    """Keeps a hash of every file of a checkpoint, when all ranks have written theirs."""

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        distributed.any_rank(False)  # every rank is here
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.exists():
            write_hashes(folder)


def _told_to_stop() -> bool:
    """Whether a job script has left the file by which it asks rank 0 to save and stop.

    No signal: one would end the data loader's workers as well. The script runs on rank 0's node,
    so that no file server's cache is in between.
    """
    path = os.environ.get("WEMASK_STOP_FILE")
    return path is not None and distributed.is_main() and Path(path).exists()
