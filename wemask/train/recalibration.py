"""Calibrating the gates again: in a training, at its end, and of a run that is finished."""

from collections.abc import Callable
from typing import Any

from rich.console import Console

from wemask.errors import WemaskError
from wemask.files import say
from wemask.operator.handle import SoftenHandle
from wemask.operator.recalibration import Moved, recalibrate
from wemask.settings.config import RunConfig
from wemask.train.callbacks import RecalibrateCallback
from wemask.train.prepare import Prepared, reading
from wemask.train.summary import moved_table


class Recalibration:
    """Of one training: the gates of its operator, read on what detection read at first."""

    def __init__(self, handle: SoftenHandle, tokenizer: Any, read: Any, console: Console) -> None:
        self.handle, self.tokenizer, self.read, self.console = handle, tokenizer, read, console
        self.trainer: Any = None

    @classmethod
    def of(
        cls, config: RunConfig, prepared: Prepared, examples: Any, console: Console
    ) -> "Recalibration | None":
        """None where nothing is to be calibrated again."""
        handle = prepared.handle
        if handle is None or config.operator.recalibrate == "never":
            return None
        read = reading(config, prepared.tokenizer, examples)
        return cls(handle, prepared.tokenizer, read, console)

    def callback(self) -> RecalibrateCallback | None:
        """What does it every so many steps, where that is asked for."""
        every = self.handle.config.recalibrate_every
        return None if every is None else RecalibrateCallback(self._in_training, every)

    def _in_training(self, step: int) -> None:
        if moved := self._calibrate(step):
            say(self.console, f"Calibrated at step {step}. {' '.join(moved.sentences())}")

    def at_end(self) -> None:
        """Once more on the final weights, and say what moved since the beginning."""
        done, step = self.handle.calibrated, self.trainer.state.global_step
        if (done is None or done.step != step) and self._calibrate(step) is None:
            return
        show_moved(self.console, self.handle)

    def _calibrate(self, step: int) -> Moved | None:
        """None: tokens are not told by gates, or it failed, which must not end a training."""
        try:
            return recalibrate(
                self.handle, self.trainer.model, self.tokenizer, step=step, **self.read
            )
        except (WemaskError, RuntimeError) as error:  # such as a full GPU
            said = f"Not calibrated again at step {step}, the gates in force stay: {error}"
            say(self.console, said)
            return None


def show_moved(console: Console, handle: SoftenHandle) -> None:
    """Say what moved from the first calibration to the newest."""
    assert handle.calibrated is not None
    moved = Moved(handle=handle, before=handle.calibrated.first)
    console.print(moved_table(moved))
    for sentence in moved.sentences():
        say(console, sentence)
