"""Which training engine really runs, what it leaves in a checkpoint, and how its weights are saved.

accelerate does not always run what it is asked to: `accelerate launch --cpu` starts one process,
and on CPU ranks FSDP becomes DDP, both without a word. So what runs is looked at before the first
step, and is kept in each checkpoint, which another engine could not read.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils import parse_flag_from_env
from torch import Tensor, distributed, nn
from transformers import TrainerCallback

from wemask.distributed import world
from wemask.errors import ConfigError, RunFolderError, WemaskError
from wemask.settings.composition import shown
from wemask.train.saved_state import ENGINE_NAME, Engine, read_engine

# What gloo, NCCL and torch's store say when another rank does not answer.
WAITED = re.compile(
    r"Timed out waiting \d+ms|timeout caused pair closure|Connection (closed|reset) by peer"
    r"|Connect timeout|Socket Timeout|Broken pipe|remote process exited"
    r"|Watchdog caught collective operation timeout",
    re.IGNORECASE,
)
# Words of a command line that the one which continues has in another form, or not at all.
REPLACED = re.compile(r"\+*(deepspeed|fsdp|launcher\.(processes|processes_per_node|nodes))=")


def asked(trainer: Any) -> Engine:
    """What the settings ask for, or where they ask for nothing, `accelerate launch`."""
    ranks = world()
    state, arguments = trainer.accelerator.state, trainer.args
    if arguments.deepspeed or _flag("ACCELERATE_USE_DEEPSPEED"):
        return Engine(kind="zero", stage=state.deepspeed_plugin.zero_stage, ranks=ranks)
    if arguments.fsdp or _flag("ACCELERATE_USE_FSDP"):
        return Engine(kind="fsdp", ranks=ranks)
    return Engine(kind="ddp" if ranks > 1 else "single", ranks=ranks)


def _flag(name: str) -> bool:
    return bool(os.environ.get(name)) and bool(parse_flag_from_env(name))  # an empty one is unset


def running(trainer: Any) -> Engine:
    """What a trainer that has wrapped its model really runs."""
    started = distributed.is_available() and distributed.is_initialized()
    ranks = distributed.get_world_size() if started else 1
    model: Any = trainer.model_wrapped
    if any(kind.__name__ == "DeepSpeedEngine" for kind in type(model).__mro__):
        return Engine(kind="zero", stage=model.zero_optimization_stage(), ranks=ranks)
    placements = (getattr(p, "placements", ()) for p in trainer.model.parameters())  # a DTensor's
    if any(placement.is_shard() for of_one in placements for placement in of_one):
        return Engine(kind="fsdp", ranks=ranks)
    # One rank under torchrun is wrapped by DDP, too, and is one process all the same.
    is_ddp = isinstance(model, nn.parallel.DistributedDataParallel) and ranks > 1
    return Engine(kind="ddp" if is_ddp else "single", ranks=ranks)


def check_engine(trainer: Any) -> None:
    """Raise ConfigError where something else runs than was asked for."""
    wanted, found = asked(trainer), running(trainer)
    if wanted == found:
        return
    hint = "Start one process per GPU: python train.py launcher.processes=GPUS ..."
    if wanted.kind == "fsdp" and found.kind == "ddp":
        hint = (
            "accelerate turns FSDP into DDP on CPU ranks: it needs a GPU for each; deepspeed=zero3 "
            "runs on CPUs, too."
        )
    raise ConfigError(f"Asked for {wanted}, but {found} runs. {hint}")


class EngineCallback(TrainerCallback):
    """Looks at what runs, when the trainer has wrapped its model and before the first step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        check_engine(self.trainer)


# --- checkpoints ----------------------------------------------------------------------------------


def write_engine(folder: Path, trainer: Any) -> None:
    """Say in a checkpoint which engine wrote it, and how many tokens it had read by then."""
    values = {**asdict(running(trainer)), "tokens": trainer._total_train_tokens}
    (folder / ENGINE_NAME).write_text(json.dumps(values) + "\n")


def check_resumable(checkpoint: Path, trainer: Any, typed: Sequence[str]) -> None:
    """Compare a checkpoint's engine with the one that is to go on by the command `typed`.

    Shards are of one engine and one number of ranks. And with another number of ranks the settings
    of a run mean another global batch, so its steps would be others.

    Raises:
        RunFolderError: they differ; with the command that continues.
    """
    before, now = read_engine(checkpoint), asked(trainer)
    if before == now:
        return
    given = [word for word in typed if not REPLACED.match(word)]
    job = any(re.match(r"\+*launcher=(?!local$)", word) for word in given)
    command = shown("train.py", [*_ranks_words(before.ranks, job), *given, *before.words])
    raise RunFolderError(
        f"{checkpoint} was written by {before}; this is {now}. It continues as it began: "
        f"{command}  (a new run beside it: add experiment_name=NAME)"
    )


def _ranks_words(ranks: int, job: bool) -> list[str]:
    """So many ranks on the command line; of a Slurm job in nodes of as many as it has here."""
    if not job:
        return [f"launcher.processes={ranks}"] if ranks > 1 else []
    nodes, left = divmod(ranks, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if left:
        return ["launcher.nodes=1", f"launcher.processes_per_node={ranks}"]
    return [f"launcher.nodes={nodes}"]


def forget_deepspeed() -> None:
    """Let the next model of this process load whole: under ZeRO-3 transformers would shard it.

    It looks for the settings of a trainer that is still alive. Detection must see whole weights.
    """
    if integration := sys.modules.get("transformers.integrations.deepspeed"):
        integration.unset_hf_deepspeed_config()


@contextmanager
def waiting() -> Iterator[None]:
    """Turn a wait for another rank that ended in vain into a RunFolderError."""
    try:
        yield
    except RuntimeError as error:
        found = WAITED.search(str(error))
        if isinstance(error, WemaskError) or not found:
            raise
        raise RunFolderError(
            f"Rank {os.environ.get('RANK', '0')} waited in vain for another rank ({found[0]}). "
            "That one has ended, hangs or cannot be reached: its own message, if any, is above. "
            "The same command resumes from the last whole checkpoint; trainer.ddp_timeout is how "
            "many seconds a rank waits."
        ) from error


# --- saving ---------------------------------------------------------------------------------------


def gathered_weights(trainer: Any) -> dict[str, Tensor] | None:
    """The weights to save, whole, where the model has shards; all ranks must ask.

    Returns:
        On the first rank the weights, on others what is left of them; None: the model's own are
        whole. Of an adapter under ZeRO-3 only what was trained.
    """
    kind = running(trainer)
    if kind.kind == "fsdp":
        return without_theta(trainer.accelerator.get_state_dict(trainer.model))
    if (kind.kind, kind.stage) != ("zero", 3):
        return None
    frozen = not hasattr(trainer.model, "peft_config")
    state = trainer.deepspeed._zero3_consolidated_16bit_state_dict(
        exclude_frozen_parameters=not frozen
    )
    return without_theta(state or {})


def without_theta(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without learned strengths, which ZeRO-3 takes for weights; wemask_config.json has them."""
    return {key: value for key, value in state.items() if not key.endswith(".softening.theta")}
