"""The one screen before a run: what will happen, on which model, and one sample of the data."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from torch import nn

from wemask.data import chat
from wemask.detection.me_layer import Gate, MELayerReport, layers_by_reason, plain_size
from wemask.distributed import is_rank
from wemask.errors import WemaskError
from wemask.files import say
from wemask.operator.recalibration import Moved, is_lost
from wemask.operator.settings import LearnableStrength, StrengthSchedule
from wemask.settings.config import RunConfig
from wemask.train.adapters import lora_size
from wemask.train.memory import (
    Memory,
    available,
    estimate_run,
    on_meta,
    ranks_of,
    shape_of,
    too_large,
)
from wemask.train.prepare import Prepared


def show_summary(
    console: Console,
    config: RunConfig,
    prepared: Prepared,
    example: Any | None,
    loss: chat.LossChoice | None,
) -> None:
    """Print the summary screen; `example` is None where nothing is trained."""
    table = Table.grid(padding=(0, 2))
    for name, value in _lines(config, prepared, loss):
        table.add_row(f"[bold]{name}[/bold]", escape(value))  # tokens such as [/INST] are no markup
    if config.trains:
        for problem in _memory_lines(config, prepared.model, table):
            console.print(problem, style="yellow", soft_wrap=True, highlight=False)
    title = escape(f"wemask: {config.model.name}, method={config.method}")
    console.print(Panel(table, title=title))
    if example is not None:
        text = chat.render_example(
            example,
            prepared.tokenizer,
            loss,
            max_length=config.trainer_value("max_length"),
            brackets=not console.is_terminal or console.no_color,
        )
        about = chat.describe_example(example, prepared.tokenizer, loss)
        console.print(Panel(text, title="one sample; green (or [[ ]]) is trained"))
        say(console, about)


def _lines(
    config: RunConfig, prepared: Prepared, loss: chat.LossChoice | None
) -> list[tuple[str, str]]:
    model = prepared.model
    total = sum(p.numel() for p in model.parameters())
    merged = ", merged into its base model" if config.model.adapter == "merge" else ""
    lines = [
        ("model", f"{config.model.source}{merged} ({type(model).__name__}, {total:,} parameters)"),
        ("ME Layer", prepared.report.verdict),
    ]
    if prepared.handle is not None:
        touched = ", ".join(f"layer {i}: {n}" for i, n in prepared.handle.tokens_touched.items())
        lines += [("operator", operator_words(config)), ("touched on the probe", touched)]
        if alone := prepared.handle.left_alone:
            lines.append(("left alone", layers_by_reason(alone)))
    else:
        lines.append(("operator", "off"))
    if config.trains:
        trainable = f"all {total:,} parameters"
        if config.peft is not None:
            rank, targets = config.peft.get("r"), config.peft.get("target_modules")
            trainable = f"LoRA of rank {rank} on {targets} ({lora_size(config, model):,})"
        elif (size := lora_size(config, model)) is not None:
            trainable = f"the adapter that {config.model.path} is ({size:,})"
        lines.append(("trainable", trainable))
        lines.append(("data", f"{config.data.name} {config.data.path or ''}".strip()))
        if config.data.validation is not None:
            lines.append(("validation", f"{config.data.validation} (data.validation)"))
    if loss is not None:
        lines.append(("loss", loss.reason))
    if prepared.template_note:
        lines.append(("chat template", prepared.template_note))
    lines.append(("run folder", str(config.folder())))
    return lines


def _memory_lines(config: RunConfig, model: nn.Module, table: Table) -> list[str]:
    """Add engine and memory to the table; what does not fit, as lines for the user."""
    device, host = available()
    shape = shape_of(model, lora_size(config, model))
    memory = estimate_run(config, shape, on_gpu=device is not None)
    for group, engine in (("deepspeed", config.deepspeed), ("fsdp", config.fsdp)):
        if engine:
            table.add_row("[bold]engine[/bold]", escape(f"{group}={engine['name']}"))
    table.add_row("[bold]memory[/bold]", escape(_memory_words(config, memory)))
    loaded = memory.loading / (1 if is_rank() else memory.ranks_here)  # the others are to come
    return [
        f"This does not look as if it fits: {problem} (estimate, without activations; "
        "docs/distributed.md). More ranks, deepspeed=zero3_offload or peft=lora need less."
        for problem in too_large(memory, device=device, host=host, loaded=loaded)
    ]


def _memory_words(config: RunConfig, memory: Memory) -> str:
    ranks, _ = ranks_of(config.launcher)
    return f"{memory} (estimate{f' for {ranks} ranks' if ranks > 1 else ''})"


def expected_memory(config: RunConfig) -> str:
    """The estimate for a job, of a model that is not loaded here: from its config alone.

    Only where the config is on this machine: a submission does not wait for the hub.
    """
    model = config.model
    try:
        bare = on_meta(
            *(model.path, model.dtype),
            revision=model.revision or "main",
            trust_remote_code=model.trust_remote_code,
            local_files_only=True,
        )
        if model.parts:
            bare.wemask_parts = dict(model.parts)  # pyright: ignore[reportArgumentType]
        shape = shape_of(bare, lora_size(config, bare))
    except (OSError, ValueError, WemaskError) as error:
        why = str(error).partition("\n")[0]
        return f"not estimated: the config of {model.path} was sought on this machine: {why}"
    on_gpu = config.launcher.gpus_per_node > 0
    return _memory_words(config, estimate_run(config, shape, on_gpu=on_gpu))


def operator_words(config: RunConfig) -> str:
    """The operator's settings in one line."""
    op = config.operator
    fill = "" if op.fill == "zero" else f"fill {op.fill}, "
    every = op.recalibrate_every
    again = f", calibrated every {every} steps" if every else ""
    again = ", never calibrated again" if op.recalibrate == "never" else again
    return (
        f"rate {op.rate:g}, layers {op.layers}, tokens {op.tokens}, dims {op.dims}, "
        f"site {op.site}, {fill}strength {_strength_words(op.strength)}{again}"
    )


def _strength_words(strength: object) -> str:
    if isinstance(strength, StrengthSchedule):
        return f"{strength.start:g} to {strength.end:g} in {strength.steps} steps"
    if isinstance(strength, LearnableStrength):
        return f"learned, one per layer, from {strength.initial:g}"
    return f"{strength}"


def layer_table(report: MELayerReport) -> Table:
    """The per-layer table of a detection; -1 is the embedding output.

    The last column is of the gate that reads this output, that of the next layer: how many times
    the smallest massive value is larger than the largest ordinary one.
    """
    table = Table(title="residual stream at each layer's output")
    columns = ("layer", "max |h|", "median", "ratio", "jump", "token", "pos", "dim", "cos", "told")
    for name in columns:
        table.add_column(name, justify="left" if name == "token" else "right")
    births = {e.layer for e in report.emergences}
    for row in report.layers:
        born = "yellow" if row.layer in births else ""
        table.add_row(
            str(row.layer),
            plain_size(row.max),
            f"{row.median:.3g}",
            f"{row.ratio:.0f}",
            "" if row.jump is None else f"{row.jump:.1f}x",
            escape(repr(row.token)),
            str(row.position),
            str(row.dim),
            "" if row.cosine_next is None else f"{row.cosine_next:.3f}",
            _told(report, row.layer + 1),
            style="bold green" if row.layer == report.layer else born,
        )
    return table


def moved_table(moved: Moved) -> Table:
    """The gates of the softened layers before training and now."""
    table = Table(title="gates: before training -> now")
    for name in ("layer", "dims", "threshold", "separation", "tokens touched"):
        table.add_column(name, justify="right")
    first, now = moved.handle.touched_first, moved.handle.tokens_touched
    for layer, old, new in moved.rows():
        lost = is_lost(new)
        values = [
            (", ".join(map(str, old.dims)), "-" if lost else ", ".join(map(str, new.dims))),
            (_threshold(old), "-" if lost else _threshold(new)),
            (_separation(old), "lost" if lost else _separation(new)),
            (str(first.get(layer, "?")), str(now.get(layer, "?"))),
        ]
        cells = [a if a == b else f"{a} -> {b}" for a, b in values]
        table.add_row(str(layer), *cells, style="yellow" if lost else "")
    return table


def _threshold(gate: Gate) -> str:
    taus = [*gate.thresholds.values()] or [*gate.primary.values()]
    return plain_size(min(taus)) if taus else "-"


def _separation(gate: Gate) -> str:
    return "all" if gate.separation is None else f"{gate.separation:.3g}x"


def _told(report: MELayerReport, layer: int) -> str:
    """The separation of a layer's gate; "no" where it tells no massive tokens."""
    gate = report.gates.get(layer)
    if gate is None:
        return ""
    if not gate.thresholds:
        return "no" if gate.separation is None else f"no ({gate.separation:.2f}x)"
    return _separation(gate)
