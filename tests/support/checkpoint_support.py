"""Softened models and adapters in folders, and ways to damage them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from families import Case, logits, planted, sequence, settings
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import wemask
from wemask.checkpoint.pretrained import load_model
from wemask.checkpoint.save_load import CONFIG_NAME

WEIGHTS = "model.wemask.safetensors"


def softened(tmp_path: Path, family: str = "llama", **changes: Any) -> tuple[Case, torch.Tensor]:
    """A softened model saved to tmp_path / "model", and its logits."""
    case = planted(family)
    wemask.soften(case.model, case.report, settings(**changes))
    wemask.save(case.model, None, tmp_path / "model")
    return case, logits(case.model, sequence())


def adapter(
    tmp_path: Path, modules_to_save: list[str] | None = None, **changes: Any
) -> tuple[Any, torch.Tensor]:
    """A softened LoRA of a base that lies in tmp_path / "base", saved to tmp_path / "model"."""
    planted("llama").model.save_pretrained(tmp_path / "base")
    base = load_model(str(tmp_path / "base"))
    torch.manual_seed(0)
    lora = LoraConfig(
        r=4,
        target_modules=["q_proj"],
        init_lora_weights=False,
        modules_to_save=modules_to_save,
    )
    model: Any = get_peft_model(base, lora)  # pyright: ignore[reportArgumentType]
    wemask.soften(model, planted("llama").report, settings(**changes))
    model.eval()
    wemask.save(model, None, tmp_path / "model")
    return model, logits(model, sequence())


def change(key: str, value: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / CONFIG_NAME).read_text())
        values[key] = value
        (folder / CONFIG_NAME).write_text(json.dumps(values))

    return apply


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None  # pyright: ignore


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def not_a_number(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["model.layers.3.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def truncate(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return apply


def change_report(key: str, value: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        report = json.loads((folder / CONFIG_NAME).read_text())["report"]
        change("report", {**report, key: value})(folder)

    return apply
