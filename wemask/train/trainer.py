"""TRL's SFTTrainer as a run needs it: its arguments, its callbacks, what it logs and saves."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from wemask.checkpoint.save_load import describe, write_marks
from wemask.data import chat
from wemask.errors import ConfigError, WemaskError
from wemask.operator.handle import SoftenHandle
from wemask.settings.config import RunConfig
from wemask.settings.engines import engine_arguments
from wemask.train.adapter import peft_config
from wemask.train.callbacks import InterruptCallback, SofteningCallback
from wemask.train.engine_check import EngineCallback, without_theta, write_engine
from wemask.train.prepare import Prepared
from wemask.train.progress import ProgressCallback
from wemask.train.watching import WatchCallback

HALF_DTYPES = (torch.float16, torch.bfloat16)


def trainer_class(handle: SoftenHandle | None, watch: WatchCallback | None) -> Any:
    """SFTTrainer with what a softened and watched training adds to its log and checkpoints."""
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


def build_trainer(
    config: RunConfig,
    prepared: "Prepared",
    examples: Any,
    loss: chat.LossChoice,
    folder: Path,
    interrupt: InterruptCallback,
    watch: WatchCallback | None = None,
) -> Any:
    """TRL's SFTTrainer with our callbacks, its model wrapped by PEFT where that is asked for.

    Raises:
        ConfigError: settings that TRL, PEFT or the engine refuse.
    """
    from trl.trainer.sft_config import SFTConfig

    handle = prepared.handle
    # SFTTrainer draws the adapter's weights before its own set_seed.
    set_seed(config.seed)
    engine = EngineCallback()
    callbacks: list[Any] = [engine, interrupt, ProgressCallback(folder)]
    if handle is not None:
        callbacks.append(SofteningCallback(handle))
        callbacks[-1].move(0)  # watched before the first step is what that step trains
    if watch is not None:
        callbacks.append(watch)
    try:
        arguments = SFTConfig(**arguments_of(config, prepared.model, loss, folder))
        trainer = trainer_class(handle, watch)(
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


def arguments_of(
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
