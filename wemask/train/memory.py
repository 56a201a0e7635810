"""Memory of a training's weights, gradients and optimizer states, before anything is started.

Activations are NOT counted: they depend on kernels, batch and length as much as on the model. What
does not fit without them does not fit; what fits may still need a smaller batch.

Sources: the ZeRO paper (arXiv 1910.02054, section 3: K = 12 bytes of optimizer state per parameter
in mixed precision, and what each stage divides by the ranks); DeepSpeed's own estimators
(`deepspeed.runtime.zero.stage3.estimate_zero3_model_states_mem_needs`: the largest layer is whole
for a moment; a factor of 1.5 for the buffers of what is in CPU memory).

    shape = shape_of(on_meta("meta-llama/Llama-3.1-8B"))     # the config only, no weights
    print(estimate(shape, ranks=8, per_node=8, stage=3, masters=True))
"""

import os
import re
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from torch import nn

from wemask.checkpoint.pretrained import located
from wemask.decoder.parts import find_decoder
from wemask.settings.config import RunConfig
from wemask.settings.launcher import LauncherConfig

GIB = 2**30
CPU_FACTOR = 1.5  # DeepSpeed's additional_buffer_factor
OF_DEVICE = 0.92  # what CUDA's context, NCCL's buffers and fragments leave of a GPU


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a model memory depends on; parameters as counts."""

    total: int
    trained: int
    largest_layer: int
    bytes_each: int = 2


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one rank's device by what they are for, and in a node's CPU memory."""

    parameters: float
    gradients: float
    optimizer: float
    gathered: float
    """The largest unit of sharding, whole for a moment, and the one that is fetched ahead."""
    cpu: float
    loading: float
    """CPU memory of a node while each of its ranks holds the whole model, before sharding."""
    ranks_here: int = 1
    """Ranks of one node."""

    @property
    def device(self) -> float:
        """Bytes on one rank's device, without activations."""
        return self.parameters + self.gradients + self.optimizer + self.gathered

    def host(self, *, on_gpu: bool) -> float:
        """Bytes in the CPU memory of one node, at most; without GPUs all of it is there."""
        training = self.cpu + (0.0 if on_gpu else self.device * self.ranks_here)
        return max(training, self.loading)

    def __str__(self) -> str:
        names = ("parameters", "gradients", "optimizer", "gathered")
        parts = ", ".join(f"{name} {_gib(getattr(self, name))}" for name in names)
        return (
            f"about {_gib(self.device)} on each device ({parts}; activations are not counted); "
            f"{_gib(self.host(on_gpu=True))} of a node's CPU memory"
        )


def _gib(size: float) -> str:
    return f"{size / GIB:.3g} GiB"


def shape_of(model: nn.Module, trained: int | None = None) -> Shape:
    """The shape of a causal language model that is not sharded; on the meta device, too."""
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters)
    blocks = [sum(p.numel() for p in b.layer.parameters()) for b in find_decoder(model).blocks]
    embeddings: Any = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    return Shape(
        total=total,
        trained=total if trained is None else trained,
        largest_layer=max([*blocks, embeddings.weight.numel()]),
        bytes_each=max(p.element_size() for p in parameters),
    )


def on_meta(name: str, dtype: str = "bfloat16", **options: Any) -> nn.Module:
    """A model without weights, from its config alone: `tiny`, a folder, a file or ORG/NAME."""
    from transformers import AutoConfig, AutoModelForCausalLM

    place, of_gguf = located(name)
    config = AutoConfig.from_pretrained(place, **of_gguf, **options)
    kind = getattr(torch, dtype) if dtype != "auto" else config.dtype or torch.float32
    trusted = options.get("trust_remote_code", False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=kind, trust_remote_code=trusted)


def estimate(
    shape: Shape,
    *,
    ranks: int = 1,
    per_node: int = 1,
    stage: int = 0,
    offload_optimizer: bool = False,
    offload_parameters: bool = False,
    masters: bool = False,
    upcast: bool = False,
) -> Memory:
    """Estimate the memory of AdamW training, without activations.

    Args:
        shape: of the model.
        ranks: in all.
        per_node: ranks that share a CPU memory.
        stage: of ZeRO; FSDP's full_shard is 3, its grad_op 2, DDP and one process 0.
        offload_optimizer: optimizer states, masters and gradients in CPU memory.
        offload_parameters: parameters in CPU memory, too (stage 3).
        masters: fp32 masters and gradients beside the weights, as DeepSpeed has them, also of fp32
            weights; else the optimizer works on the weights as they are.
        upcast: trained weights become fp32 (FSDP2 in bf16 or fp16).
    """
    of_optimizer, of_gradients, of_parameters = (ranks if stage >= at else 1 for at in (1, 2, 3))
    each = 4 if upcast else shape.bytes_each
    states = 12 if masters else 2 * each  # fp32 master and two moments, or the moments
    weights = each * shape.trained + shape.bytes_each * (shape.total - shape.trained)
    parameters = weights / of_parameters
    gradients = each * shape.trained / of_gradients
    gradients += 4 * shape.trained / of_optimizer if masters else 0
    if stage == 0 and ranks > 1 and not masters:
        gradients *= 2  # DDP's buckets are a copy
    optimizer = states * shape.trained / of_optimizer
    nodes, cpu = max(1, ranks // per_node), 0.0
    if offload_optimizer:
        cpu += CPU_FACTOR * (states + 4) * shape.trained / nodes
        optimizer, gradients = 0.0, 0.0 if stage == 3 else gradients
    if offload_parameters and stage == 3:
        cpu += CPU_FACTOR * weights / nodes
        parameters = 0.0
    return Memory(
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        gathered=2.0 * shape.bytes_each * shape.largest_layer if stage == 3 and ranks > 1 else 0.0,
        cpu=cpu,
        loading=float(shape.bytes_each * shape.total * min(per_node, ranks)),
        ranks_here=min(per_node, ranks),
    )


def estimate_run(config: RunConfig, shape: Shape, *, on_gpu: bool) -> Memory:
    """The estimate for a run on the ranks that run, or where none do yet, those it is to have."""
    ranks, per_node = ranks_of(config.launcher)
    zero, trainer = (config.deepspeed or {}).get("zero_optimization", {}), config.trainer
    stage = zero.get("stage", 0)
    if config.fsdp:
        stage = 3 if config.fsdp.get("reshard_after_forward", True) else 2
    # as training.py has it: half precision where the model is in it and the machine can
    half = bool(trainer.get("bf16", on_gpu and shape.bytes_each == 2) or trainer.get("fp16"))
    of_optimizer, of_parameters = (
        (zero.get(what) or {}).get("device", "none") != "none"
        for what in ("offload_optimizer", "offload_param")
    )
    return estimate(
        replace(shape, bytes_each=2) if half and config.deepspeed else shape,
        ranks=ranks,
        per_node=per_node,
        stage=stage,
        offload_optimizer=of_optimizer,
        offload_parameters=of_parameters,
        masters=config.deepspeed is not None,
        upcast=half and config.fsdp is not None,
    )


def ranks_of(launcher: LauncherConfig) -> tuple[int, int]:
    """Ranks in all, and of one node: of the launcher that started us, else of the settings.

    torchrun and accelerate say LOCAL_WORLD_SIZE, deepspeed LOCAL_SIZE, srun a node's tasks.
    """
    if "WORLD_SIZE" not in os.environ:
        per_node = launcher.processes if launcher.name == "local" else launcher.ranks_per_node
        return launcher.world, per_node
    ranks = os.environ["WORLD_SIZE"]
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE")
    here = next((os.environ[name] for name in names if name in os.environ), ranks)
    return int(ranks), int(re.split(r"\D", here)[0])  # srun says 2(x3) for three nodes


def too_large(
    memory: Memory, *, device: float | None, host: float | None, loaded: float = 0.0
) -> list[str]:
    """What does not fit, in sentences; empty: it fits, or what is there is not known.

    Args:
        memory: the estimate.
        device: bytes of one GPU; None: there is none, and all is in CPU memory.
        host: bytes of this node's CPU memory that are free.
        loaded: bytes of models that are in it already.
    """
    problems = []
    if device is not None and memory.device > OF_DEVICE * device:
        problems.append(f"a device has {_gib(device)}, and about {_gib(memory.device)} are needed")
    needed = memory.host(on_gpu=device is not None) - loaded
    if host is not None and needed > host:
        problems.append(f"{_gib(host)} of CPU memory are free, and about {_gib(needed)} are needed")
    return problems


def available() -> tuple[float | None, float]:
    """Bytes of the smallest GPU of this machine (None: it has none), and of its free CPU memory."""
    gpus = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return min((gpu.total_memory for gpu in gpus), default=None), psutil.virtual_memory().available
