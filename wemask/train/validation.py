"""The loss on data kept apart: when it is taken, and the checkpoint that is best by it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wemask.checkpoint.save_load import read_config
from wemask.operator.handle import SoftenHandle
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


def take_best(trainer: Any, handle: SoftenHandle | None, say: Callable[[str], None]) -> None:
    """Say which checkpoint the trainer went back to, and give the operator what it had there.

    The trainer restores the weights alone, with `load_best_model_at_end`.
    """
    best = trainer.state.best_model_checkpoint
    if not (trainer.args.load_best_model_at_end and best):
        return
    say(f"The best checkpoint is the final model: {best} ({trainer.state.best_metric:g}).")
    if handle is None:
        return
    saved = read_config(Path(best))
    if not handle.learned:
        handle.set_strength(saved["strength"])
    elif not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):  # these restore theta
        handle.learned = {int(index): theta for index, theta in saved["learned"].items()}
