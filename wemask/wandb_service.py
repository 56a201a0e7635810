"""A training outlives W&B's service process.

Slurm sends TERM to every process of a step, so to wandb-core too, which ends at once. What a rank
logs after that raises ConnectionResetError, in the step after which it should save.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

EVENTS = ("on_log", "on_save", "on_evaluate", "on_predict", "on_train_end")


@contextmanager
def wandb_may_end(say: Callable[[str], None]) -> Iterator[None]:
    """Say that W&B's service is gone, and go on."""
    import wandb

    try:
        yield
    except (ConnectionError, wandb.Error) as error:
        say(
            f"W&B's service has ended ({error}): the run goes on without it. What is not in W&B is "
            "in trainer_state.json of the checkpoints."
        )


def outlive_wandb(trainer: Any, say: Callable[[str], None]) -> None:
    """Let the trainer's W&B callback fail once, and do nothing from then on."""
    if "wandb" not in trainer.args.report_to or not trainer.is_world_process_zero():
        return
    from transformers.integrations.integration_utils import WandbCallback

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, WandbCallback):
            _guard(callback, say)


def _guard(callback: Any, say: Callable[[str], None]) -> None:
    gone = False

    def guarded(act: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(act)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal gone
            if gone:
                return None
            gone = True  # unless it comes back
            with wandb_may_end(say):
                result = act(*args, **kwargs)
                gone = False
                return result

        return call

    for name in EVENTS:
        setattr(callback, name, guarded(getattr(callback, name)))
