"""The contract of the operator (checkpoint/contract.py), on logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import (
    MASSIVE,
    build,
    close,
    logits,
    planted,
    sequence,
    settings,
    shared,
)
from oracle import llama_oracle
from patch_support import blocks, cached_logits, unpatched
from torch import Tensor, nn

import wemask
from wemask import WeMaskConfig
from wemask.errors import ConfigError, DetectionError, ModelError, PatchError

VISIBLE = 1e-2  # a softening moves some logit by at least this share of the largest


# --- the equation in a model --------------------------------------------------------------------


@pytest.mark.parametrize("dims", ["me_norm", "attn_norm", "massive", "random", "lowest"])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_llama_equals_an_independent_oracle(dims, strength):
    case = shared()
    ids = torch.cat([sequence(10, 1, massive_at=0), sequence(10, 2, massive_at=4)])
    config = WeMaskConfig(rate=0.2, dims=dims, strength=strength)
    norm: Any = case.model.model
    me_norm = norm.layers[1].post_attention_layernorm.weight.abs()
    expected = {
        "me_norm": lambda i: me_norm.topk(6).indices.tolist(),
        "lowest": lambda i: (-me_norm).topk(6).indices.tolist(),
        "attn_norm": lambda i: norm.layers[i].input_layernorm.weight.abs().topk(6).indices.tolist(),
        "massive": lambda i: case.report.dims,
        "random": lambda i: torch.randperm(32, generator=torch.Generator().manual_seed(0))[
            :6
        ].tolist(),
    }[dims]
    softened = {i: (ids == MASSIVE, expected(i)) for i in (2, 3, 4)}
    oracle = llama_oracle(case.model, ids, softened, strength).detach()
    with wemask.soften(case.model, case.report, config) as handle:
        assert close(logits(case.model, ids), oracle, 2e-6)
        assert {i: set(d or []) for i, d in handle.dims.items()} == {
            i: set(d) for i, (_, d) in softened.items()
        }
    assert close(logits(case.model, ids), llama_oracle(case.model, ids, {}).detach(), 2e-6)


def test_residual_copy_masks_before_the_norm_and_leaves_the_residual_whole():
    case, ids = shared(), sequence()
    model: Any = case.model
    layer = model.model.layers[2]
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            value = args[0] if args else kwargs["hidden_states"]
            seen[name] = value.detach().clone()

        return hook

    config = settings(site="residual_copy", dims="massive", layers=[2])
    with wemask.soften(model, case.report, config):
        hooks = [
            layer.register_forward_pre_hook(keep("residual"), with_kwargs=True),
            layer.self_attn.q_proj.register_forward_pre_hook(keep("x"), with_kwargs=True),
            layer.post_attention_layernorm.register_forward_pre_hook(keep("h"), with_kwargs=True),
        ]
        logits(model, ids)
        for hook in hooks:
            hook.remove()
    masked = seen["residual"].clone()
    masked[:, 0, case.report.dims] = 0
    assert torch.equal(seen["x"], layer.input_layernorm(masked))
    assert (seen["h"][0, 0, case.report.dims].abs() > 1000).all()


# --- packing, positions, generation -------------------------------------------------------------


# --- training -----------------------------------------------------------------------------------


# --- choices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "tokens", "expected"),
    [
        ("after_me", "massive", [2, 3, 4]),
        ("from_me", "first", [1, 2, 3, 4]),
        ("next", "massive", [2]),
        ("before_me", "first", [0]),
        ([4, 2], "massive", [2, 4]),
    ],
)
def test_layer_choices(layers, tokens, expected):
    case = shared()
    with wemask.soften(case.model, case.report, settings(layers=layers, tokens=tokens)) as handle:
        assert handle.layers == expected


def test_training_mode_is_kept_and_probing_needs_no_gradient():
    case = planted("llama")
    case.model.train()
    with wemask.soften(case.model, case.report, settings()):
        assert case.model.training
        assert all(p.grad is None for p in case.model.parameters())


# --- errors: one each, and the model stays unpatched --------------------------------------------


def _other_report() -> Any:
    return planted("llama", num_hidden_layers=4).report


def _not_found() -> Any:
    from families import detect

    return detect(build("llama"))


ERRORS: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "no report": (
        lambda c: wemask.soften(c.model),
        DetectionError,
        r"need a detected ME Layer.*Call report = wemask\.detect\(model, tokenizer\)",
    ),
    "not found": (
        lambda c: wemask.soften(c.model, _not_found()),
        DetectionError,
        r"No ME Layer: .*nearest miss.*Give layers by number",
    ),
    "report of another model": (
        lambda c: wemask.soften(c.model, _other_report()),
        DetectionError,
        r"of another model: 4 layers of width 32, this one has 5 of 32",
    ),
    "layer out of range": (
        lambda c: wemask.soften(c.model, c.report, settings(layers=[2, 5])),
        ModelError,
        r"Layer 5 does not exist: the model has layers 0 to 4",
    ),
    "nothing touched": (
        lambda c: wemask.soften(c.model, c.report, settings(layers=[0, 1])),
        PatchError,
        r"Layer 0 would touch nothing: no token is massive yet",
    ),
    "a config in the place of the report": (
        lambda c: wemask.soften(c.model, settings()),
        ConfigError,
        r"type soften\(model, config=config\)",
    ),
    "given dims lack a layer": (
        lambda c: wemask.soften(c.model, c.report, settings(), dims={2: [1], 3: [1]}),
        PatchError,
        r"for layer 4 it gives None",
    ),
    "given dims do not exist": (
        lambda c: wemask.soften(c.model, c.report, settings(layers=[2]), dims={2: [32]}),
        PatchError,
        r"from 0 to 31 .* for layer 2 it gives \[32\]",
    ),
    "no dims at this rate": (
        lambda c: wemask.soften(c.model, c.report, settings(dims="batch_activation", rate=0.01)),
        ConfigError,
        r"int\(0\.01 \* 32\) = 0 dims: nothing\. Type rate=0\.03125",
    ),
}


@pytest.mark.filterwarnings("ignore::wemask.WeMaskWarning")
@pytest.mark.parametrize("name", ERRORS)
def test_errors_leave_the_model_unpatched(name):
    call, kind, message = ERRORS[name]
    case = shared()
    before = logits(case.model, sequence())
    with pytest.raises(kind, match=message):
        call(case)
    assert unpatched(case.model)
    assert torch.equal(logits(case.model, sequence()), before)


def test_patching_twice_and_removing_twice():
    case, ids = planted("llama"), sequence()
    handle = wemask.soften(case.model, case.report, settings())
    on = logits(case.model, ids)
    with pytest.raises(PatchError, match=r"softened already\. Call `model\.wemask_handle\.remove"):
        wemask.soften(case.model, case.report, settings())
    assert torch.equal(logits(case.model, ids), on)
    handle.remove()
    for call in (handle.remove, lambda: handle.set_strength(0.5), lambda: handle.strength):
        with pytest.raises(PatchError, match=r"was removed.*Call wemask\.soften again"):
            call()
    with wemask.soften(case.model, case.report, settings()):
        assert torch.equal(logits(case.model, ids), on)
        with pytest.raises(PatchError, match="was removed before"):
            handle.remove()  # not the one in force


def test_the_me_layer_may_be_the_last():
    from dataclasses import replace

    case = shared()
    with pytest.raises(PatchError, match="layers=after_me is empty: the ME Layer is 4 of layers 0"):
        wemask.soften(case.model, replace(case.report, layer=4), settings())
    assert unpatched(case.model)


def test_a_replaced_forward_is_refused():
    case = planted("llama")
    layer = blocks(case.model)[3].layer
    layer.forward = layer.forward  # what unsloth does: it shadows the class
    with pytest.raises(PatchError, match="forward of LlamaDecoderLayer was replaced"):
        wemask.soften(case.model, case.report, settings())
    del layer.forward
    assert unpatched(case.model)


def test_a_model_without_weights_is_refused():
    with torch.device("meta"):
        model = build_meta()
    with pytest.raises(PatchError, match="meta device"):
        wemask.soften(model, shared().report, settings())


def build_meta() -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(shared().model.config)


def test_attention_called_without_its_layer_is_an_error():
    case = planted("llama")
    with (
        wemask.soften(case.model, case.report, settings()),
        pytest.raises(PatchError, match="attention of softened layer 2 was called without its"),
    ):
        blocks(case.model)[2].attention(hidden_states=torch.zeros(1, 1, 32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    case = planted("llama")
    case.model.to(dtype)
    ids = torch.cat([sequence(9, 1, massive_at=3), sequence(9, 2)])
    before = logits(case.model, ids)
    with wemask.soften(case.model, case.report, settings()) as handle:
        on = logits(case.model, ids)
        assert not close(on, before, VISIBLE)
        noise = 0.05  # half precision, and batches of other sizes
        assert close(torch.cat([logits(case.model, row[None]) for row in ids]), on, noise)
        assert close(cached_logits(case.model, ids, [4]), on, noise)
        handle.set_strength(0.0)
        assert torch.equal(logits(case.model, ids), before)
