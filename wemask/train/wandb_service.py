"""A run outlives W&B: a server that cannot be reached, and the end of W&B's service process.

Slurm sends TERM to every process of a step, so to wandb-core too, which ends at once. What a rank
logs after that raises ConnectionResetError, in the step after which it should save.
"""

import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wemask import distributed
from wemask.errors import ConfigError
from wemask.files import write_whole
from wemask.settings.config import RunConfig

if TYPE_CHECKING:
    import wandb

EVENTS = ("on_log", "on_save", "on_evaluate", "on_predict", "on_train_end")
FIRST_ANSWER_SECONDS = 30.0  # seconds for the server's first answer; W&B's own 90 look like a hang
FINISH = 120.0  # seconds for what is left to upload at the end; W&B's own are without end
# What a server that was reached says to a key, a team or a project: to try later is of no use.
REFUSED = re.compile(r"error 40[0134]\b|permission denied|unauthori[sz]ed", re.IGNORECASE)

Say = Callable[[str], None]


@contextmanager
def logged(config: RunConfig, trainer: Any, folder: Path, say: Say) -> Iterator[None]:
    """Keep a W&B run open for a training whose settings ask for one; others log nothing here.

    Its id is kept in the run folder, so that a resumed run stays one run. Opened here and not by
    the trainer: W&B reads its environment once per process, and a process may train several runs.

    Raises:
        ConfigError: as `open_run`, on every rank.
    """
    if "wandb" not in trainer.args.report_to:
        yield
        return
    opened: list[wandb.Run] = []

    def begin() -> None:
        path = folder / "wandb_run_id"
        if not path.exists():
            write_whole(path, uuid.uuid4().hex[:8])
        run = open_run(
            say,
            dir=folder,
            mode=config.logger.get("mode"),
            project=config.logger.get("project"),
            group=config.experiment,
            name=trainer.args.run_name,
            id=path.read_text().strip(),
            resume="allow",
        )
        opened.append(run)
        outlive_wandb(trainer, say)

    # On all ranks together: the others would wait for a rank 0 that W&B refuses.
    distributed.on_main(begin)
    try:
        yield
    finally:
        for run in opened:
            close_run(run, say)


def open_run(
    say: Say, *, dir: Path, mode: str | None, settings: dict[str, Any] | None = None, **given: Any
) -> "wandb.Run":
    """Open a W&B run; offline, and said so, where the server cannot be reached.

    Args:
        say: for the one line about it, with the command that uploads the run later.
        dir: the folder whose wandb/ the run is kept in.
        mode: online | offline | disabled.
        settings: more of wandb.Settings.
        given: what else wandb.init takes.

    Raises:
        ConfigError: there is no API key, or the server refuses it.
    """
    import wandb
    from wandb.errors import AuthenticationError, CommError

    limits: dict[str, Any] = {
        "init_timeout": FIRST_ANSWER_SECONDS,
        "finish_timeout": FINISH,
        "finish_timeout_raises": True,
    }
    kept = wandb.Settings(silent=True, **limits, **(settings or {}))
    given |= {"dir": dir, "settings": kept}
    try:
        return wandb.init(mode=mode, **given)  # pyright: ignore[reportArgumentType]
    except (wandb.Error, ValueError) as error:  # ValueError: settings, such as WANDB_MODE=odd
        reason = " ".join(str(error).split()).rstrip(".")
        unreachable = isinstance(error, CommError) and not isinstance(error, AuthenticationError)
        if not unreachable or REFUSED.search(reason):
            raise ConfigError(
                f"W&B refuses this run: {reason}. Type wandb login, or logger.mode=offline "
                "(WANDB_MODE=offline) and upload it later with wandb sync."
            ) from error
    wandb.teardown()  # else its service still holds the run's id; so may that of our parent
    os.environ.pop("WANDB_SERVICE", None)
    run = wandb.init(mode="offline", **given)
    say(
        f"W&B cannot be reached ({reason}). Nothing is lost: this run goes on offline. When W&B is "
        f"back, type: wandb sync {_place(run)}"
    )
    return run


def close_run(run: "wandb.Run", say: Say) -> None:
    """Close a W&B run; what cannot be uploaded now is left in its folder, and said."""
    place = _place(run)
    with wandb_may_end(say):
        try:
            run.finish()
        except TimeoutError:
            say(
                f"W&B did not take the rest of this run in {FINISH:.0f} s. Nothing is lost: when "
                f"W&B is back, type: wandb sync {place}"
            )


def _place(run: "wandb.Run") -> Path:
    """What `wandb sync` wants."""
    return Path(run.dir).parent


@contextmanager
def wandb_may_end(say: Say) -> Iterator[None]:
    """Say that W&B's service is gone, and go on."""
    import wandb

    try:
        yield
    except (ConnectionError, wandb.Error) as error:
        say(
            f"W&B's service has ended ({error}): the run goes on without it. What is not in W&B is "
            "in trainer_state.json of the checkpoints."
        )


def outlive_wandb(trainer: Any, say: Say) -> None:
    """Let the trainer's W&B callback fail once, and do nothing from then on."""
    from transformers.integrations.integration_utils import WandbCallback

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, WandbCallback):
            _guard(callback, say)


def _guard(callback: Any, say: Say) -> None:
    def guarded(act: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> None:
            with wandb_may_end(say):
                act(*args, **kwargs)
                return
            for name in EVENTS:  # it has ended
                setattr(callback, name, lambda *_, **__: None)

        return call

    for name in EVENTS:
        setattr(callback, name, guarded(getattr(callback, name)))
