import pytest
import torch
from run_support import quiet, said, settings

from wemask.checkpoint.pretrained import load_model
from wemask.train import memory, summary
from wemask.train.memory import (
    GIB,
    Shape,
    estimate,
    estimate_run,
    on_meta,
    ranks_of,
    shape_of,
    too_large,
)
from wemask.train.prepare import prepare

# Llama-3.1-8B
LLAMA = Shape(
    total=8_030_000_000,
    trained=8_030_000_000,
    largest_layer=525_000_000,
)


def test_the_shape_is_the_same_without_weights() -> None:
    real, bare = load_model("tiny"), on_meta("tiny", "float32")
    assert all(p.is_meta for p in bare.parameters())
    assert shape_of(bare) == shape_of(real)
    assert shape_of(bare).total == sum(p.numel() for p in real.parameters())
    assert shape_of(real, trained=7).trained == 7


@pytest.mark.parametrize("ranks", [8, 64])
def test_model_states_are_about_those_of_deepspeeds_estimators(ranks: int) -> None:
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    nodes = ranks // 8
    options = {"ranks": ranks, "per_node": 8, "masters": True}
    for offload in (False, True):
        _, theirs, _ = estimate_zero3_model_states_mem_needs(
            LLAMA.total, LLAMA.largest_layer, 8, nodes, offload, offload
        )
        ours = estimate(
            LLAMA, stage=3, offload_optimizer=offload, offload_parameters=offload, **options
        )
        assert ours.device == pytest.approx(theirs, rel=0.12)
    _, theirs = estimate_zero2_model_states_mem_needs(LLAMA.total, 8, nodes, False)
    ours = estimate(LLAMA, stage=2, **options)
    assert ours.device == pytest.approx(theirs, rel=0.12)


def test_each_stage_divides_more_by_the_ranks() -> None:
    # the ZeRO paper's figure 1 has 7.5B, 64 ranks: 120, 31.4, 16.6 and 1.9 GB; there the gradients
    # of fp32 masters are not kept
    paper = Shape(total=7_500_000_000, trained=7_500_000_000, largest_layer=0)
    found = []
    for stage in range(4):
        made = estimate(paper, ranks=64, stage=stage, masters=True)
        fp32_gradients = 4 * paper.trained / (64 if stage else 1)
        found.append((made.device - fp32_gradients) / 1e9)
    assert found == pytest.approx([120, 31.4, 16.6, 1.9], rel=0.02)


def test_lora_needs_no_states_for_what_is_frozen() -> None:
    from dataclasses import replace

    full, lora = estimate(LLAMA), estimate(replace(LLAMA, trained=20_000_000))
    assert lora.parameters == full.parameters
    assert lora.optimizer < full.optimizer / 100


def test_ddp_keeps_a_copy_of_the_gradients() -> None:
    alone, ddp = estimate(LLAMA), estimate(LLAMA, ranks=2, per_node=2)
    assert ddp.device - alone.device == alone.gradients


def test_what_adamw_keeps_is_what_is_estimated() -> None:
    model = load_model("tiny")
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.arange(8).unsqueeze(0)).logits.sum().backward()
    optimizer.step()
    made = estimate(shape_of(model))
    states = [v for state in optimizer.state.values() for v in state.values() if v.dim()]
    assert made.optimizer == sum(v.numel() * v.element_size() for v in states)
    assert made.parameters == made.gradients == sum(p.numel() * 4 for p in model.parameters())


def test_what_does_not_fit_is_said() -> None:
    made = estimate(LLAMA, ranks=8, per_node=8, stage=3, masters=True)
    assert too_large(made, device=80 * GIB, host=2000 * GIB) == []
    (device,) = too_large(made, device=16 * GIB, host=2000 * GIB)
    assert "a device has 16 GiB" in device
    (host,) = too_large(made, device=80 * GIB, host=8 * GIB)
    assert "8 GiB of CPU memory are free" in host
    assert too_large(made, device=80 * GIB, host=8 * GIB, loaded=made.loading) == []
    assert too_large(made, device=None, host=None) == []


def test_a_run_counts_its_preset_and_the_launchers_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    words = ("trainer.bf16=true",)
    alone, zero1, zero3, offload = (
        estimate_run(settings(*words, f"deepspeed={name}"), LLAMA, on_gpu=True)
        for name in ("none", "zero1", "zero3", "zero3_offload")
    )
    assert alone.optimizer == 4 * LLAMA.total  # two moments in the weights' own bfloat16
    assert zero1.optimizer == 12 * LLAMA.total / 16
    assert zero1.parameters == 16 * zero3.parameters
    assert (offload.parameters, offload.optimizer) == (0, 0)
    assert offload.cpu > 0 == zero3.cpu
    assert zero3.loading == 8 * 2 * LLAMA.total
    sharded = estimate_run(settings(*words, "fsdp=full_shard"), LLAMA, on_gpu=True)
    assert sharded.parameters == 4 * LLAMA.total / 16  # FSDP2 makes trained weights fp32


@pytest.mark.parametrize(
    ("environment", "words", "ranks"),
    [
        ({}, [], (1, 1)),
        ({}, ["launcher.processes=8"], (8, 8)),
        ({}, ["launcher=slurm", "launcher.nodes=4", "launcher.gpus_per_node=8"], (32, 8)),
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "4"}, ["launcher.processes=2"], (16, 4)),
        ({"WORLD_SIZE": "2", "LOCAL_SIZE": "2"}, [], (2, 2)),  # the deepspeed command
        ({"WORLD_SIZE": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, [], (4, 2)),
    ],
)
def test_ranks_are_those_that_run_else_those_that_are_to(
    environment: dict[str, str],
    words: list[str],
    ranks: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = settings("deepspeed=zero3", *words)
    assert ranks_of(config.launcher) == ranks
    made = estimate_run(config, LLAMA, on_gpu=False)
    assert made.parameters == 2 * LLAMA.total / ranks[0]
    assert made.loading == ranks[1] * 2 * LLAMA.total


def test_a_job_is_estimated_without_weights_and_without_the_hub() -> None:
    words = ("launcher=slurm", "launcher.nodes=2", "launcher.gpus_per_node=4", "peft=lora")
    config = settings(*words)
    text = summary.expected_memory(config)
    model = load_model("tiny")
    shape = shape_of(model, summary.lora_size(config, model))
    assert text == f"{estimate_run(config, shape, on_gpu=True)} (estimate for 8 ranks)"
    assert "activations are not counted" in text
    text = summary.expected_memory(settings("model=custom", "model.path=nobody/nothing"))
    assert text.startswith("not estimated: the config of nobody/nothing was sought on this machine")


def test_the_summary_has_the_estimate_and_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("deepspeed=zero2")
    prepared = prepare(config)
    console = quiet()
    summary.show_summary(console, config, prepared, None, None)
    text = said(console)
    assert "deepspeed=zero2" in text
    assert "(estimate)" in text
    assert "does not look" not in text
    monkeypatch.setattr(summary, "available", lambda: (1e6, 1e12))
    summary.show_summary(console, config, prepared, None, None)
    assert "This does not look as if it fits: a device has" in said(console)


def test_what_this_machine_has_is_known_or_none() -> None:
    device, host = memory.available()
    assert device is None or device > 0
    assert host > 0
