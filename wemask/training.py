"""Fine-tune: model + operator + PEFT + TRL's SFTTrainer, in a run folder that resumes."""

import dataclasses
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from transformers import set_seed

import wemask
from wemask import chat
from wemask.callbacks import InterruptCallback, SofteningCallback
from wemask.checkpoint import CONFIG_NAME, describe, read_config, write_marks
from wemask.config import RunConfig
from wemask.data import load_examples
from wemask.detection import detect
from wemask.engines import engine_arguments
from wemask.errors import ConfigError, DataError, RunFolderError, WemaskError
from wemask.handle import SoftenHandle
from wemask.loading import load_model, load_tokenizer
from wemask.me_layer import MELayerReport
from wemask.patch import soften
from wemask.probe import fixed_probe
from wemask.results import write_whole
from wemask.running import (
    EngineCallback,
    check_resumable,
    forget_deepspeed,
    gathered_weights,
    waiting,
    without_theta,
    write_engine,
)
from wemask.runs import last_checkpoint, open_run_folder, saving
from wemask.summary import peft_config, show_summary
from wemask.watching import WatchCallback
from wemask.whole import what_is_wrong

HALF_DTYPES = (torch.float16, torch.bfloat16)


@dataclasses.dataclass(kw_only=True)
class Prepared:
    """A model ready to be trained or evaluated."""

    model: nn.Module
    tokenizer: Any
    report: MELayerReport | None
    handle: SoftenHandle | None
    template_note: str | None


def load_base(config: RunConfig) -> tuple[nn.Module, Any, str | None]:
    """The run's model as published, its tokenizer, and what was done about its chat template.

    Raises:
        ModelError: there is no such model, or nothing that ends an answer.
    """
    model = load_model(config.model.path, **config.model.load_options())
    tokenizer = load_tokenizer(
        config.model.path,
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
    )
    return model, tokenizer, chat.ensure_chat_template(tokenizer)


def prepare(config: RunConfig) -> Prepared:
    """Load, detect, and soften where the method asks for it.

    Raises:
        WemaskError: whatever is wrong, before anything is trained.
    """
    model, tokenizer, note = load_base(config)
    report = detect(model, tokenizer, criterion=config.model.criterion)
    handle = soften(model, report, config.operator) if config.softens else None
    return Prepared(
        model=model, tokenizer=tokenizer, report=report, handle=handle, template_note=note
    )


def train(config: RunConfig, console: Console | None = None) -> Path | None:
    """Run one method; returns the run folder, or None when there was nothing to train.

    Running it again resumes from the last whole checkpoint; a finished run says so.

    Raises:
        WemaskError: bad settings, data or model, a run folder of other settings, a full disk, or
            an interruption (after saving).
    """
    console = console or Console()
    folder = config.folder()
    if config.trains and not config.dry_run and (folder / "final").exists():
        open_run_folder(config)
        _say(console, f"This run is finished: {folder / 'final'}. Change a setting, or delete it.")
        return folder
    examples: Any = load_examples(config.data) if config.trains else None
    prepared = prepare(config)
    if examples is None:
        show_summary(console, config, prepared, example=None, loss=None)
        console.print(
            f"method={config.method} trains nothing. Compare it: python evaluate.py "
            "(with the same settings), or train with method=wemask or method=sft."
        )
        return None
    loss = chat.choose_loss(
        examples[0],
        prepared.tokenizer,
        completion_only=config.trainer.get("completion_only_loss"),
        assistant_only=config.trainer.get("assistant_only_loss"),
    )
    show_summary(console, config, prepared, example=examples[0], loss=loss)
    limit = config.trainer.get("max_length", 1024)  # SFTConfig's own default
    audit = chat.audit_lengths(examples, prepared.tokenizer, loss, max_length=limit)
    console.print(str(audit), style="yellow" if audit.truncated or audit.untrained else "")
    if len(audit.untrained) == len(examples):
        raise DataError(
            f"trainer.max_length={limit} leaves nothing to train in any example: the answers begin "
            f"later. The longest example has {audit.longest} tokens."
        )
    if config.dry_run:
        console.print("dry_run=true: nothing was trained, nothing was written.")
        return None
    folder = open_run_folder(config)
    if prepared.report is not None:
        with saving(folder):
            prepared.report.save(folder / "me_layer.json")
    _fit(config, prepared, examples, loss, folder, console)
    _say(console, f"Saved: {folder / 'final'}")
    return folder


def _say(console: Console, text: str) -> None:
    """Print a line with a path in it: never wrapped, never read as markup."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def _fit(
    config: RunConfig,
    prepared: Prepared,
    examples: Any,
    loss: chat.LossChoice,
    folder: Path,
    console: Console,
) -> None:
    interrupt = InterruptCallback()
    watch = _watch(config, prepared, folder, console)
    trainer = _trainer(config, prepared, examples, loss, folder, interrupt, watch)
    checkpoint = _whole_checkpoint(trainer, folder, console)
    if checkpoint is not None:
        check_resumable(checkpoint, trainer)
        _say(console, f"Resuming from {checkpoint}.")
        if prepared.handle is not None and prepared.handle.learned:
            # The trainer restores weights and optimizer; theta is in no state_dict.
            saved = read_config(checkpoint)["learned"]
            prepared.handle.learned = {int(index): theta for index, theta in saved.items()}
    elif watch is not None:
        watch.measure_untrained()
    try:
        with saving(folder), waiting():
            _start_logger(config, trainer, folder)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        forget_deepspeed()
        interrupt.restore()
        _finish_logger(trainer)
    if interrupt.interrupted and trainer.state.global_step < trainer.state.max_steps:
        raise RunFolderError(
            f"Interrupted at step {trainer.state.global_step} of {trainer.state.max_steps}; the "
            f"checkpoint is in {folder / 'checkpoints'}. The same command resumes."
        )
    with saving(folder):
        _save_final(trainer, prepared, folder)


def _whole_checkpoint(trainer: Any, folder: Path, console: Console) -> Path | None:
    """The checkpoint to resume from, which the first rank looks for; what is broken goes."""
    found: list[Any] = [None]
    if trainer.is_world_process_zero():
        found[0], broken = last_checkpoint(folder)
        for path in (folder / "checkpoints" / name for name in broken):
            _say(
                console,
                f"{path.name} is half-written or damaged and is not used: {what_is_wrong(path)}.",
            )
            shutil.rmtree(path)
    if trainer.accelerator.num_processes > 1:
        torch.distributed.broadcast_object_list(found, src=0)
    return found[0]


def _watch(
    config: RunConfig, prepared: Prepared, folder: Path, console: Console
) -> WatchCallback | None:
    """What watches the training; chosen before PEFT, a checkpoint or ZeRO-3 changes the model."""
    every = config.logger["watch_every"]
    if not every or prepared.report is None:
        return None
    return WatchCallback(
        fixed_probe(prepared.model, prepared.tokenizer, prepared.report, prepared.handle),
        folder / "metrics.jsonl",
        every=every,
        budget=config.logger["watch_budget"],
        say=lambda text: _say(console, text),
    )


def _trainer_class(handle: SoftenHandle | None, watch: WatchCallback | None) -> Any:
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
            values = None if handle is None else describe(handle)
            if self.is_world_process_zero():
                path = Path(output_dir or str(self.args.output_dir))
                write_engine(path, self)
                if values is not None:
                    write_marks(path, values)

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            super()._save(output_dir, state_dict and without_theta(state_dict))

    return Trainer


def _trainer(
    config: RunConfig,
    prepared: Prepared,
    examples: Any,
    loss: chat.LossChoice,
    folder: Path,
    interrupt: InterruptCallback,
    watch: WatchCallback | None = None,
) -> Any:
    from trl.trainer.sft_config import SFTConfig

    handle = prepared.handle
    # SFTTrainer draws the adapter's weights before its own set_seed.
    set_seed(config.seed)
    engine = EngineCallback()
    callbacks: list[Any] = [engine, interrupt]
    if handle is not None:
        callbacks.append(SofteningCallback(handle))
        callbacks[-1].move(0)  # watched before the first step is what that step trains
    if watch is not None:
        callbacks.append(watch)
    try:
        arguments = SFTConfig(**_arguments(config, prepared.model, loss, folder))
        trainer = _trainer_class(handle, watch)(
            model=prepared.model,  # pyright: ignore[reportArgumentType]
            args=arguments,
            train_dataset=examples,
            processing_class=prepared.tokenizer,
            peft_config=peft_config(config),
            callbacks=callbacks,
        )
        engine.trainer = trainer
        if watch is not None:
            watch.trainer = trainer
        if handle is not None:
            for softening in handle.softenings():
                softening.requires_grad_(True)  # PEFT froze a learned strength with the base
        return trainer
    except WemaskError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"TRL refuses these settings: {error}") from error


def _arguments(
    config: RunConfig, model: nn.Module, loss: chat.LossChoice, folder: Path
) -> dict[str, Any]:
    """Fields of SFTConfig: the user's verbatim, and what follows from the machine and the model."""
    values = dict(config.trainer)
    on_gpu = torch.cuda.is_available()
    half = next(model.parameters()).dtype in HALF_DTYPES
    defaults = {
        # TRL turns bf16 on by default, also where the machine has none.
        "bf16": on_gpu and half and torch.cuda.is_bf16_supported(),
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "completion_only_loss": loss.completion_only,
        "assistant_only_loss": loss.assistant_only,
        "report_to": "wandb" if config.logger["name"] == "wandb" else "none",
        "run_name": folder.name,
    }
    values |= engine_arguments(config.deepspeed, config.fsdp)
    values |= {"output_dir": str(folder / "checkpoints"), "seed": config.seed}
    if values.get("packing") and not _is_flash(model):
        raise ConfigError(
            "trainer.packing=true needs model.attn_implementation=flash_attention_2 (or 3): with "
            "other kernels packed documents can see each other (trl#3910). Type "
            "trainer.packing=false."
        )
    return {**defaults, **values}


def _is_flash(model: nn.Module) -> bool:
    return "flash" in str(getattr(model.config, "_attn_implementation", ""))


def _start_logger(config: RunConfig, trainer: Any, folder: Path) -> None:
    """Open the W&B run; its id is kept in the folder, so that a resumed run stays one run.

    Opened here and not by the trainer: W&B reads its environment once per process, and a process
    may train more than one run.
    """
    if "wandb" not in trainer.args.report_to or not trainer.is_world_process_zero():
        return
    import wandb

    path = folder / "wandb_run_id"
    if not path.exists():
        write_whole(path, uuid.uuid4().hex[:8])
    wandb.init(
        project=config.logger["project"],
        mode=config.logger["mode"],
        group=config.experiment,
        name=trainer.args.run_name,
        dir=folder,
        id=path.read_text().strip(),
        resume="allow",
        settings=wandb.Settings(silent=True),
    )


def _finish_logger(trainer: Any) -> None:
    """Close the W&B run: the next training of this process (evaluate.py has two) is another."""
    if "wandb" in trainer.args.report_to:
        import wandb

        wandb.finish()


def _save_final(trainer: Any, prepared: Prepared, folder: Path) -> None:
    """Write final/ whole or not at all: its existence means that the run is finished.

    All ranks come here: where the weights are in shards, they are gathered from all of them.
    """
    partial, model, first = folder / "final.partial", trainer.model, trainer.is_world_process_zero()
    weights = gathered_weights(trainer)
    if first:
        shutil.rmtree(partial, ignore_errors=True)
    if prepared.handle is not None:
        wemask.save(model, prepared.tokenizer, partial, state_dict=weights, write=first)
    elif first:
        model.save_pretrained(partial, **({} if weights is None else {"state_dict": weights}))
        prepared.tokenizer.save_pretrained(partial)
    if first:
        if prepared.handle is not None:
            shutil.copy(partial / CONFIG_NAME, folder / CONFIG_NAME)
        partial.rename(folder / "final")
