"""The loss on data kept apart: when it is taken, and the checkpoint that is best by it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from wemask import distributed
from wemask.errors import RunFolderError
from wemask.settings.config import RunConfig
from wemask.train.saved_state import what_is_wrong


def evaluation_arguments(config: RunConfig) -> dict[str, Any]:
    """Defaults of SFTConfig where there are validation data: their loss at each checkpoint."""
    if config.data.validation is None:
        return {}
    when = config.trainer_value("save_strategy")
    return {
        "eval_strategy": when if when in ("steps", "epoch") else "epoch",
        "eval_steps": config.trainer_value("save_steps") if when == "steps" else None,
        "per_device_eval_batch_size": config.trainer_value("per_device_train_batch_size"),
    }


class BestCallback(TrainerCallback):
    """Where the best checkpoint is now: it was named from the folder where the run began."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if best := state.best_model_checkpoint:
            state.best_model_checkpoint = str(self.folder / "checkpoints" / Path(best).name)


def best_checkpoint(trainer: Any, folder: Path, say: Callable[[str], None]) -> Path | None:
    """The checkpoint to which `load_best_model_at_end` went back, and say so; None: to none.

    The trainer restores its weights alone. Where it does not find them it only says so in its log,
    and what it reads it does not check.

    Raises:
        RunFolderError: that checkpoint is not there, or damaged.
    """
    best, metric = trainer.state.best_model_checkpoint, trainer.state.best_metric
    if not (trainer.args.load_best_model_at_end and best):
        return None
    there = folder / "checkpoints" / Path(best).name
    problem = distributed.on_main(lambda: what_is_wrong(there))
    if problem is not None:
        raise RunFolderError(
            f"{there} is the best checkpoint ({metric:g}) and cannot be used: {problem}. To end "
            "with the last one, type trainer.load_best_model_at_end=false and another paths.run_dir"
        )
    say(f"The best checkpoint is the final model: {there} ({metric:g}).")
    return there
