"""The loss on data kept apart: when it is taken, and the checkpoint that is best by it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wemask.settings.config import RunConfig


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


def best_checkpoint(trainer: Any, say: Callable[[str], None]) -> Path | None:
    """The checkpoint to which `load_best_model_at_end` went back, and say so; None: to none.

    The trainer restores its weights alone.
    """
    best = trainer.state.best_model_checkpoint
    if not (trainer.args.load_best_model_at_end and best):
        return None
    say(f"The best checkpoint is the final model: {best} ({trainer.state.best_metric:g}).")
    return Path(best)
