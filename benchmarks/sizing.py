"""What to type for a model and a number of GPUs, and what it needs: estimated, not measured.

    python benchmarks/sizing.py        # the table of docs/scale.md

Memory is `wemask.train.memory`'s, without activations, for which `ACTIVATIONS` are left free. Time
counts floating-point operations: per token and parameter 2 forward, 2 when activations are computed
again, 2 for the gradients of activations, and 2 for those of trained weights; attention by its own
count. `UTILISED` of the GPU's peak is an assumption.
"""

from typing import Any

import shapes
import torch

from wemask.settings.composition import compose
from wemask.settings.config import run_config
from wemask.train import memory
from wemask.train.adapters import lora_size

MODELS = {"1.2B": "llama3-1b", "8B": "llama3-8b", "70B": "llama3-70b"}
GPUS = (1, 8, 16, 32, 64)
PER_NODE = 8
LENGTH = 4096
GPU, HOST = 80 * memory.GIB, 2000 * memory.GIB  # H100; what nodes of eight of them have
# Left free: what one sequence of LENGTH needs at 70B with checkpointing, 34 bytes per token and
# width of one layer, 2 of the others (arXiv 2205.05198, equation 1), 10 per token and logit.
ACTIVATIONS = 12 * memory.GIB
PEAK = 989e12  # an H100's operations per second in bf16, without sparsity
UTILISED = 0.40  # of it: what Llama 3 had on these GPUs (38 to 43%, arXiv 2407.21783, table 4)
TOKENS = 100e6
# Cheapest first. DDP in bf16 has no fp32 masters, so full training begins with ZeRO-1.
CHOICES: dict[str, dict[str, Any]] = {
    "none": {"stage": 0},
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3": {"stage": 3},
    "zero2_offload": {"stage": 2, "offload_optimizer": True},
    "zero3_offload": {"stage": 3, "offload_optimizer": True, "offload_parameters": True},
}


def choose(shape: memory.Shape, gpus: int) -> tuple[str, memory.Memory] | None:
    """The first preset that fits, and what it needs."""
    full = shape.trained == shape.total
    for preset, settings in CHOICES.items():
        if full and preset == "none":
            continue
        needed = memory.estimate(
            shape,
            ranks=gpus,
            per_node=min(gpus, PER_NODE),
            masters=preset != "none",
            **settings,
        )
        if not memory.too_large(needed, device=GPU - ACTIVATIONS, host=HOST):
            return preset, needed
    return None


def hours(model: str, shape: memory.Shape, gpus: int) -> float:
    """Hours for `TOKENS` with activation checkpointing; nothing waits for CPU or network."""
    full = shape.trained == shape.total
    passes = 4 if full else 3  # LoRA has no gradients of the weights that are frozen
    values = shapes.SHAPES[MODELS[model]]
    # Scores and values, each 2 operations per token, earlier token and width; half are masked.
    attention = 2 * 2 * values["num_hidden_layers"] * values["hidden_size"] * LENGTH / 2
    per_token = passes * (2 * shape.total + attention)
    return TOKENS * per_token / (gpus * PEAK * UTILISED) / 3600


def shape_of(name: str, lora: bool) -> memory.Shape:
    """A shape on the meta device; with LoRA as conf/peft/lora.yaml has it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(shapes.SHAPES[name])
    architecture = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(architecture, dtype=torch.bfloat16)
    config = run_config(compose("train", ["peft=lora"]))
    return memory.shape_of(model, lora_size(config, model) if lora else None)


def words(preset: str, gpus: int, lora: bool) -> str:
    typed = ["peft=lora"] if lora else []
    typed += [f"deepspeed={preset}"] if preset != "none" else []
    if gpus <= PER_NODE:
        typed += [f"launcher.processes={gpus}"] if gpus > 1 else []
    else:
        nodes = f"launcher.nodes={gpus // PER_NODE}"
        typed += ["launcher=slurm", nodes, f"launcher.gpus_per_node={PER_NODE}"]
    return f"`{' '.join(typed)}`" if typed else ""


def row(model: str, lora: bool, shape: memory.Shape, gpus: int) -> str:
    training = "LoRA" if lora else "full"
    fits = choose(shape, gpus)
    if fits is None:
        return f"| {model} | {training} | {gpus} | does not fit | | | |"
    preset, needed = fits
    time = "measure" if "offload" in preset else f"{hours(model, shape, gpus):.2g}"
    host = needed.host(on_gpu=True) / memory.GIB
    return (
        f"| {model} | {training} | {gpus} | {words(preset, gpus, lora)} | "
        f"{needed.device / memory.GIB:.0f} | {host:.0f} | {time} |"
    )


def table() -> str:
    """Markdown."""
    lines = [
        "| parameters | training | GPUs | type | GiB per GPU, without activations | "
        "GiB of a node's CPU memory | hours per 100M tokens |",
        "|---|---|---:|---|---:|---:|---:|",
    ]
    for model, name in MODELS.items():
        for lora in (False, True):
            shape = shape_of(name, lora)
            lines += [row(model, lora, shape, gpus) for gpus in GPUS]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
