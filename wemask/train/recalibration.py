"""Calibrating the gates again: in a training, at its end, and of a run that is finished."""

import json
import logging
from pathlib import Path
from typing import Any

from rich.console import Console

from wemask import distributed
from wemask.checkpoint.export import final_folder
from wemask.checkpoint.manifest import (
    CONFIG_NAME,
    handle_of,
    manifest_values,
    read_config,
    read_manifest,
)
from wemask.checkpoint.save_load import load
from wemask.data.examples import DataConfig
from wemask.data.validation import load_split
from wemask.errors import PatchError, WemaskError
from wemask.files import say, write_whole
from wemask.operator.handle import SoftenHandle
from wemask.operator.recalibration import Moved, recalibrate
from wemask.settings.config import RunConfig
from wemask.settings.run_folder import read_settings
from wemask.settings.texts import DetectionConfig
from wemask.terminal import note
from wemask.train.callbacks import RecalibrateCallback
from wemask.train.prepare import Prepared, reading
from wemask.train.saved_state import HASHES_NAME, write_hashes
from wemask.train.summary import moved_table

logger = logging.getLogger(__name__)


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
        limit = config.trainer_value("max_length")
        read = reading(config.detection, prepared.tokenizer, examples, limit)
        return cls(handle, prepared.tokenizer, read, console)

    def callback(self) -> RecalibrateCallback | None:
        """What does it every so many steps, where that is asked for."""
        every = self.handle.config.recalibrate_every
        return None if every is None else RecalibrateCallback(self._in_training, every)

    def _in_training(self, step: int) -> None:
        if moved := self._calibrate(step):
            note(self.console, f"Calibrated at step {step}. {' '.join(moved.sentences())}")

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
            if distributed.is_main():
                said = "Not calibrated again at step %s, the gates in force stay: %s"
                logger.warning(said, step, error)
            return None


def show_moved(console: Console, handle: SoftenHandle) -> None:
    """Say what moved from the first calibration to the newest."""
    assert handle.calibrated is not None
    moved = Moved(handle=handle, before=handle.calibrated.first)
    console.print(moved_table(moved))
    for sentence in moved.sentences():
        say(console, sentence)


# --- of a run that is finished --------------------------------------------------------------------

MOVED = ("tokens_touched", "touched_first", "report", "calibrated")  # keys of wemask_config.json


def recalibrate_run(folder: Path, console: Console) -> None:
    """Calibrate a saved model's gates on its weights, and write its wemask_config.json anew.

    Also of a run that does not load because its softening touches nothing. What the file said
    before is kept in it (`calibrated_before`).

    Args:
        folder: a run folder, or what `wemask.save` or `wemask.export` wrote.
        console: for what moved.

    Raises:
        PatchError: its tokens are not told by gates.
        WemaskError: it cannot be loaded, or nothing can be detected in it.
    """
    final = final_folder(folder)
    old = read_config(final)
    model, tokenizer = load(final, may_touch_nothing=True)
    handle = handle_of(model)
    run = final.parent if final.name == "final" else None
    read = {} if run is None else _read_again(run, tokenizer, console)
    if recalibrate(handle, model, tokenizer, **read) is None:
        raise PatchError(
            f"{final}: tokens={handle.config.tokens} are not told by gates, so there is nothing to "
            "calibrate."
        )
    now = manifest_values(handle, model)
    new = {**old, "schema_version": now["schema_version"], **{key: now[key] for key in MOVED}}
    new["calibrated_before"] = {key: old[key] for key in MOVED if key in old}
    text = json.dumps(new, indent=2, allow_nan=False) + "\n"
    write_whole(final / CONFIG_NAME, text)
    if run is None and (final / HASHES_NAME).exists():  # a checkpoint, which stays whole
        write_hashes(final)
    if run is not None and (run / CONFIG_NAME).exists():  # train.py keeps a copy there
        write_whole(run / CONFIG_NAME, text)
    show_moved(console, handle)
    say(console, f"Written: {final / CONFIG_NAME}")


def _read_again(run: Path, tokenizer: Any, console: Console) -> dict[str, Any]:
    """What detection read when the run was trained; {} where that cannot be had any more."""
    path = run / "config.resolved.yaml"
    try:
        values = read_settings(path)
        detection = DetectionConfig(**values.get("detection", {}))
        examples, _ = load_split(DataConfig(**values["data"]))
        return reading(detection, tokenizer, examples, values["trainer"].get("max_length"))
    except (WemaskError, AttributeError, KeyError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        say(console, f"Only the built-in texts are read; what the run read is not there: {why}")
        return {}


def restore_operator(handle: SoftenHandle, checkpoint: Path, *, theta: bool = True) -> None:
    """Give the operator what the trainer does not restore: theta, and gates calibrated again."""
    saved = read_manifest(checkpoint)
    if not handle.learned:
        handle.set_strength(saved.strength)
    elif theta:
        handle.learned = saved.learned
    if saved.calibrated is not None and saved.report is not None:
        handle.use_gates(saved.report, saved.calibrated)
    elif handle.calibrated is not None:  # on later weights
        handle.use_gates(handle.calibrated.first, None)
