"""Fine-tune: model + operator + PEFT + TRL's SFTTrainer, in a run folder that resumes."""

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from transformers import set_seed

from wemask import distributed
from wemask.checkpoint.manifest import CONFIG_NAME, manifest_values, write_marks
from wemask.checkpoint.save_load import save
from wemask.data import chat
from wemask.data.validation import load_split
from wemask.errors import ConfigError, RunFolderError, WemaskError, judged_by
from wemask.files import saving, say
from wemask.measure.probe import fixed_probe
from wemask.operator.handle import SoftenHandle
from wemask.settings.config import RunConfig
from wemask.settings.engines import engine_arguments
from wemask.settings.lock import locked
from wemask.settings.run_folder import open_run_folder
from wemask.terminal import note, warn
from wemask.train.adapters import peft_config, save_merged
from wemask.train.callbacks import HashCallback, InterruptCallback, SofteningCallback
from wemask.train.engine_check import (
    WAITED,
    EngineCallback,
    check_resumable,
    forget_deepspeed,
    gathered_weights,
    waiting,
    without_theta,
    write_engine,
)
from wemask.train.monitoring import WatchCallback
from wemask.train.prepare import Prepared, prepare
from wemask.train.progress import ProgressCallback
from wemask.train.recalibration import Recalibration, restore_operator
from wemask.train.review import review
from wemask.train.saved_state import (
    is_finished,
    last_checkpoint,
    set_aside,
    tokens_read,
    what_is_wrong,
    write_hashes,
)
from wemask.train.summary import show_summary
from wemask.train.validation import BestCallback, best_checkpoint, evaluation_arguments
from wemask.train.wandb_service import logged


def train(config: RunConfig, console: Console | None = None) -> Path | None:
    """Run one method; returns the run folder, or None when there was nothing to train.

    Running it again resumes from the last whole checkpoint; a finished run says so.

    Raises:
        WemaskError: bad settings, data or model, a run folder of other settings, a full disk, or
            an interruption (after saving).
    """
    asked = config.launcher.world
    distributed.start(
        expected=asked if asked > 1 and not config.dry_run else None,
        timeout=config.trainer_value("ddp_timeout"),
        group_of_one=config.deepspeed is not None,
    )
    console = console or Console(quiet=not distributed.is_main())
    if config.trains and not config.dry_run and _is_finished(config, console):
        return config.folder()
    data: Any = None
    if config.trains:
        with waiting():
            data = distributed.main_first(lambda: load_split(config.data))
    prepared = prepare(config, () if data is None else data[0])
    if data is None:
        show_summary(console, config, prepared, example=None, loss=None)
        console.print(
            f"method={config.method} trains nothing. Compare it: python evaluate.py "
            "(with the same settings), or train with method=wemask or method=sft."
        )
        return None
    loss, data = review(config, prepared, data, console)
    if config.dry_run:
        console.print("dry_run=true: nothing was trained, nothing was written.")
        return None
    with _claimed(config, console) as folder:
        if _is_finished(config, console):  # by the job that we waited for
            return folder
        if distributed.is_main():
            with saving(folder):
                prepared.report.save(folder / "me_layer.json")
                save_merged(config, prepared.model, prepared.tokenizer, folder)
        _fit(config, prepared, data, loss, folder, console)
    say(console, f"Saved: {folder / 'final'}")
    return folder


def _is_finished(config: RunConfig, console: Console) -> bool:
    """Whether there is nothing left to train, and say so; the same on every rank."""
    folder = config.folder()
    if not distributed.on_main(lambda: is_finished(folder)):
        return False
    distributed.on_main(lambda: str(open_run_folder(config)))
    say(console, f"This run is finished: {folder / 'final'}. Change a setting, or delete it.")
    return True


@contextmanager
def _claimed(config: RunConfig, console: Console) -> Iterator[Path]:
    """The run folder, opened and locked by rank 0 for all of them."""
    with ExitStack() as stack:

        def claim() -> str:
            folder = open_run_folder(config)
            with saving(folder):
                stack.enter_context(locked(folder, partial(note, console)))
            return str(folder)

        yield Path(distributed.on_main(claim))


def _fit(
    config: RunConfig,
    prepared: Prepared,
    data: tuple[Any, Any],
    loss: chat.LossChoice,
    folder: Path,
    console: Console,
) -> None:
    interrupt = InterruptCallback()
    watch = _watch(config, prepared, folder, console)
    examples, validation = data
    again = Recalibration.of(config, prepared, examples, console)
    checkpoint = distributed.on_main(lambda: _whole_checkpoint(folder, console))
    trainer = build_trainer(
        config,
        prepared,
        examples,
        loss,
        folder,
        interrupt,
        watch,
        validation=validation,
        again=again,
    )
    distributed.check_world(trainer.args.world_size)
    if checkpoint is not None:
        check_resumable(Path(checkpoint), trainer, config.typed)
        note(console, f"Resuming from {checkpoint}.")
        trainer._total_train_tokens = tokens_read(Path(checkpoint)) or 0
        if prepared.handle is not None:
            restore_operator(prepared.handle, Path(checkpoint))
    elif watch is not None:
        watch.measure_untrained()
    with ExitStack() as stack:
        stack.callback(forget_deepspeed)
        with saving(folder), waiting():
            stack.enter_context(logged(config, trainer, folder, partial(note, console)))
            stack.callback(interrupt.restore)
            with _setting_up(interrupt, checkpoint):
                trainer.train(resume_from_checkpoint=checkpoint)
    if interrupt.interrupted and trainer.state.global_step < trainer.state.max_steps:
        distributed.on_main(lambda: _stop(folder, trainer.state))
    best = best_checkpoint(trainer, folder, partial(say, console))
    if best is not None and prepared.handle is not None:
        # DeepSpeed restores theta
        restore_operator(prepared.handle, best, theta=not trainer.is_deepspeed_enabled)
    if again is not None:
        again.at_end()
    with saving(folder):
        _save_final(trainer, prepared, folder)


@contextmanager
def _setting_up(interrupt: InterruptCallback, checkpoint: str | None) -> Iterator[None]:
    """Turn what TRL raises before a training has begun into one error: optimizer and schedule are
    made only then, and a checkpoint is read.
    """
    try:
        yield
    except (OSError, torch.OutOfMemoryError, WemaskError):  # a full disk, a full GPU, or ours
        raise
    except Exception as error:
        if interrupt.began or WAITED.search(str(error)):
            raise
        kind, what = ConfigError, "these settings"
        if checkpoint is not None and not isinstance(error, ImportError):  # of a package
            kind = RunFolderError
            what = f"to go on from {checkpoint} (move it away, and the one before is used)"
        with judged_by("TRL", kind, what):
            raise


def trainer_class(handle: SoftenHandle | None, watch: WatchCallback | None) -> Any:
    """SFTTrainer with what a softened and watched training adds to its log and checkpoints."""
    with redirect_stdout(io.StringIO()):  # transformers says where W&B is offline
        from trl.trainer.sft_trainer import SFTTrainer

    class Trainer(SFTTrainer):
        """SFTTrainer with the `wemask/*` keys in its log and the operator in its checkpoints."""

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            if watch is not None and "loss" in logs:
                logs = {**logs, **watch.take()}
            super().log(logs, *args, **kwargs)

        def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
            # Here and not in on_save, which comes after the trainer state: a checkpoint that
            # looks whole then has its operator.
            super().save_model(output_dir, _internal_call)
            model: Any = self.model
            values = None if handle is None else manifest_values(handle, model)
            if self.is_world_process_zero():
                path = Path(output_dir or str(self.args.output_dir))
                write_engine(path, self)
                if values is not None:
                    write_marks(path, values)

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            super()._save(output_dir, state_dict and without_theta(state_dict))

    return Trainer


def build_trainer(
    config: RunConfig,
    prepared: Prepared,
    examples: Any,
    loss: chat.LossChoice,
    folder: Path,
    interrupt: InterruptCallback,
    watch: WatchCallback | None = None,
    *,
    validation: Any = None,
    again: Recalibration | None = None,
) -> Any:
    """TRL's SFTTrainer with our callbacks, its model wrapped by PEFT where that is asked for.

    Raises:
        ConfigError: settings that TRL, PEFT or the engine refuse.
    """
    from trl.trainer.sft_config import SFTConfig

    handle = prepared.handle
    set_seed(config.seed)  # SFTTrainer draws the adapter's weights before its own set_seed
    with judged_by("TRL"):
        trainer = trainer_class(handle, watch)(
            model=prepared.model,  # pyright: ignore[reportArgumentType]
            args=SFTConfig(**arguments_of(config, prepared.model, loss, folder)),
            train_dataset=examples,
            eval_dataset=validation,
            processing_class=prepared.tokenizer,
            peft_config=peft_config(config),
            callbacks=[interrupt, ProgressCallback(folder), HashCallback(), BestCallback(folder)],
        )
        trainer.add_callback(EngineCallback(trainer))
        if handle is not None:
            softening = SofteningCallback(handle)
            softening.move(0)  # watched before the first step is what that step trains
            trainer.add_callback(softening)
            for module in handle.softenings():
                module.requires_grad_(True)  # PEFT froze a learned strength with the base
        if again is not None:
            again.trainer = trainer
            if (callback := again.callback()) is not None:
                trainer.add_callback(callback)
        if watch is not None:
            watch.trainer = trainer
            trainer.add_callback(watch)
        return trainer


def arguments_of(
    config: RunConfig, model: nn.Module, loss: chat.LossChoice, folder: Path
) -> dict[str, Any]:
    """Fields of SFTConfig: the user's verbatim, and what follows from the machine and the model."""
    on_gpu = torch.cuda.is_available()
    half = next(model.parameters()).dtype in (torch.float16, torch.bfloat16)
    kernel = str(getattr(model.config, "_attn_implementation", ""))
    defaults = {
        # TRL turns bf16 on by default, also where the machine has none.
        "bf16": on_gpu and half and torch.cuda.is_bf16_supported(),
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "completion_only_loss": loss.completion_only,
        "assistant_only_loss": loss.assistant_only,
        "disable_tqdm": False,  # by itself it follows the level of transformers' log
        "report_to": "wandb" if config.logger["name"] == "wandb" else "none",
        "run_name": folder.name,
    }
    defaults |= evaluation_arguments(config)
    ours = {"output_dir": str(folder / "checkpoints"), "seed": config.seed}
    ours |= engine_arguments(config.deepspeed, config.fsdp)
    if config.trainer.get("packing") and "flash" not in kernel:
        raise ConfigError(
            "trainer.packing=true needs model.attn_implementation=flash_attention_2 (or 3): with "
            "other kernels packed documents can see each other (trl#3910). Type "
            "trainer.packing=false."
        )
    return {**defaults, **config.trainer, **ours}


def _watch(
    config: RunConfig, prepared: Prepared, folder: Path, console: Console
) -> WatchCallback | None:
    """What watches the training; chosen before PEFT, a checkpoint or ZeRO-3 changes the model."""
    every = config.logger["watch_every"]
    if not every:
        return None
    return WatchCallback(
        fixed_probe(prepared.model, prepared.tokenizer, prepared.report, prepared.handle),
        folder / "metrics.jsonl",
        every=every,
        budget=config.logger["watch_budget"],
        say=partial(warn, console),
    )


def _whole_checkpoint(folder: Path, console: Console) -> str | None:
    """The checkpoint to go on from; newer ones that are damaged are named and set aside."""
    checkpoint, broken = last_checkpoint(folder)
    for name in broken:
        path = folder / "checkpoints" / name
        wrong = what_is_wrong(path)
        done = set_aside(path)
        warn(console, f"{name} is half-written or damaged and is not used: {wrong}. {done}")
    return str(checkpoint) if checkpoint else None


def _stop(folder: Path, state: Any) -> None:
    """End an interrupted run; a job script sees the file that it named, and requeues the job.

    The exit code could not tell it: torchrun makes 1 of any.
    """
    if (please_requeue := os.environ.get("WEMASK_REQUEUE_FILE")) is not None:
        Path(please_requeue).touch()
    raise RunFolderError(
        f"Interrupted at step {state.global_step} of {state.max_steps}; the checkpoint is in "
        f"{folder / 'checkpoints'}. The same command resumes."
    )


def _save_final(trainer: Any, prepared: Prepared, folder: Path) -> None:
    """Write final/ whole or not at all: its existence means that the run is finished.

    All ranks come here: where the weights are in shards, they are gathered from all of them.
    """
    half, model, first = folder / "final.partial", trainer.model, trainer.is_world_process_zero()
    if prepared.handle is not None:
        prepared.handle.look(model)
    weights = gathered_weights(trainer)
    if first:
        shutil.rmtree(half, ignore_errors=True)
    if prepared.handle is not None:
        save(model, prepared.tokenizer, half, state_dict=weights, write=first)
    elif first:
        model.save_pretrained(half, state_dict=weights)
        prepared.tokenizer.save_pretrained(half)
    if first:
        if prepared.handle is not None:
            shutil.copy(half / CONFIG_NAME, folder / CONFIG_NAME)
        write_hashes(half, "*.safetensors")
        half.rename(folder / "final")
