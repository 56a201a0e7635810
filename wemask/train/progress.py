"""How far a run is, in a small file of its folder: for `wemask status`, on any node."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from transformers import TrainerCallback, TrainerState

from wemask.data.schema import Whole
from wemask.errors import DataError
from wemask.files import read_json, write_whole

NAME = "progress.json"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One look at a training."""

    step: Whole
    max_steps: Whole
    loss: float | None
    """Of the last log line."""
    seconds_per_step: Annotated[float, Field(ge=0, le=1e9)] | None
    """Mean since this start of the training; None before its second step."""

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far."""
        if self.seconds_per_step is None:
            return None
        return (self.max_steps - self.step) * self.seconds_per_step

    @classmethod
    def read(cls, folder: Path) -> "Progress | None":
        """What the run last said; None when it has not trained yet."""
        try:
            return _PROGRESS.validate_python(read_json(folder / NAME))
        except (DataError, ValidationError):  # missing, damaged, or an older wemask's
            return None


_PROGRESS = TypeAdapter(Progress)


class ProgressCallback(TrainerCallback):
    """Writes `progress.json` at every log line, on rank 0."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._began: tuple[int, float] | None = None

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self._began is None:  # after the first step, which compiles and allocates
            self._began = (state.global_step, time.monotonic())

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        step, since = self._began or (state.global_step, 0.0)
        done = state.global_step - step
        seconds = (time.monotonic() - since) / done if done > 0 else None
        progress = Progress(
            step=state.global_step,
            max_steps=state.max_steps,
            loss=float(logs["loss"]),
            seconds_per_step=seconds,
        )
        write_whole(self.folder / NAME, json.dumps(asdict(progress)) + "\n")
