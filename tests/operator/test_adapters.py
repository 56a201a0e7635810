"""PEFT and the operator: before or after patching, merged, switched off, several, saved modules."""

from typing import Any

import pytest
import torch
from families import Case, close, logits, planted, sequence, settings
from oracle import llama_oracle
from patch_support import collected, distance, gradients, language_loss, same, unpatched
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from training_oracle import GIVEN, batch, truth

import wemask
from wemask import WeMaskConfig

VISIBLE = 1e-2
LORA: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 1,  # else an adapter of the FFN makes ordinary tokens massive
    "target_modules": ["q_proj", "v_proj"],
    "init_lora_weights": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "dora": {**LORA, "use_dora": True},
    "all-linear": {**LORA, "target_modules": "all-linear"},
    "saved head": {**LORA, "modules_to_save": ["lm_head"]},
    "saved norms": {**LORA, "modules_to_save": ["input_layernorm", "post_attention_layernorm"]},
}


def adapt(model: Any, **changes: Any) -> Any:
    """The same adapter weights at every call, and saved modules unlike the original."""
    torch.manual_seed(1)
    model = get_peft_model(model, LoraConfig(**{**LORA, **changes}))
    shake(model)
    return model.eval()


@torch.no_grad()
def shake(model: nn.Module) -> None:
    """Move saved modules away from the original that they were copied from, as training does."""
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.mul_(1.5)


def soften(case: Case, model: Any, **changes: Any) -> wemask.SoftenHandle:
    return wemask.soften(model, case.report, WeMaskConfig(**changes), dims=GIVEN)


@pytest.fixture(params=[True, False], ids=["adapter first", "softened first"])
def adapter_first(request: pytest.FixtureRequest) -> bool:
    return request.param


def adapted(kind: str, adapter_first: bool, **changes: Any) -> tuple[Any, wemask.SoftenHandle]:
    case = planted("llama")
    if adapter_first:
        model = adapt(case.model, **KINDS[kind])
        return model, soften(case, model, **changes)
    handle = soften(case, case.model, **changes)
    return adapt(case.model, **KINDS[kind]), handle


def truth_of(kind: str, ids: Tensor, site: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients of the oracle on an adapted model that was never softened."""
    model = adapt(planted("llama").model, **KINDS[kind])
    out = llama_oracle(model.get_base_model(), ids, truth(ids), 0.4, site)
    language_loss(out, ids).backward()
    return out.detach(), collected(model)


@pytest.mark.parametrize("site", ["attention_input", "residual_copy"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapted_model_equals_the_adapted_oracle(kind, site, adapter_first):
    ids = batch()
    out, wanted = truth_of(kind, ids, site)
    model, _ = adapted(kind, adapter_first, strength=0.4, site=site)
    assert close(logits(model, ids), out, 2e-6)
    grads = gradients(model, ids)
    assert wanted and all("lora" in name or "modules_to_save" in name for name in wanted)
    assert distance(grads, wanted) < 2e-4


def test_peft_refuses_a_pattern_that_names_the_softening():
    case = planted("llama")
    soften(case, case.model)
    with pytest.raises(ValueError, match=r"Target module Softening.* is not supported"):
        adapt(case.model, target_modules=r".*layers\.[2-4]\.self_attn\..*")


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_models_own_modules_are_adapted(kind, adapter_first):
    model, _ = adapted(kind, adapter_first)
    touched = [name for name, _ in model.named_parameters() if "softening" in name]
    assert not touched
    bare = adapt(planted("llama").model, **KINDS[kind])
    assert model.targeted_module_names == bare.targeted_module_names
    assert list(model.state_dict()) == list(bare.state_dict())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leave", ["merge_and_unload", "unload"])
def test_leaving_peft_keeps_the_softening(kind, leave, adapter_first):
    ids = batch()
    model, handle = adapted(kind, adapter_first, strength=0.4)
    on = logits(model, ids)
    left: Any = getattr(model, leave)()
    bare = adapt(planted("llama").model, **KINDS[kind])
    bare = getattr(bare, leave)()
    with torch.no_grad():
        assert close(logits(left, ids), llama_oracle(bare, ids, truth(ids), 0.4), 1e-5)
    assert close(logits(left, ids), on, 1e-5) is (leave == "merge_and_unload")
    assert left.wemask_handle is handle
    handle.remove()
    assert unpatched(left)
    assert torch.equal(logits(left, ids), logits(bare, ids))


@pytest.mark.parametrize("kind", KINDS)
def test_a_disabled_adapter_leaves_the_softened_base(kind, adapter_first):
    ids, case = batch(), planted("llama")
    oracle = llama_oracle(case.model, ids, truth(ids)).detach()
    model, handle = adapted(kind, adapter_first)
    on = logits(model, ids)
    with model.disable_adapter():
        assert close(logits(model, ids), oracle, 2e-6)
        handle.set_strength(0.0)
        assert torch.equal(logits(model, ids), logits(case.model, ids))
        handle.set_strength(1.0)
    assert torch.equal(logits(model, ids), on)
    assert not close(on, oracle, VISIBLE)


def test_every_adapter_of_several_is_softened(adapter_first):
    ids, outs = batch(), {}
    model, _ = adapted("lora", adapter_first)
    torch.manual_seed(2)
    model.add_adapter("other", LoraConfig(**{**LORA, "target_modules": ["k_proj", "down_proj"]}))
    bare = adapt(planted("llama").model)
    torch.manual_seed(2)
    bare.add_adapter("other", LoraConfig(**{**LORA, "target_modules": ["k_proj", "down_proj"]}))
    for name in ("default", "other", "default"):
        model.set_adapter(name)
        bare.set_adapter(name)
        outs[name] = logits(model, ids)
        with torch.no_grad():
            oracle = llama_oracle(bare.get_base_model(), ids, truth(ids))
        assert close(outs[name], oracle, 2e-6)
    assert not close(outs["default"], outs["other"], VISIBLE)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_no_adapter_gradient(kind, reentrant):
    ids = sequence()
    model, _ = adapted(kind, adapter_first=True, site="residual_copy")
    plain = gradients(model.train(), ids)
    model.enable_input_require_grads()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    assert distance(gradients(model, ids), plain) < 1e-6


@pytest.mark.parametrize("dims", ["me_norm", "attn_norm", "activation", "massive"])
@pytest.mark.parametrize("kind", ["lora", "all-linear", "saved norms"])
def test_what_is_masked_does_not_depend_on_the_order(kind, dims):
    config, chosen = settings(dims=dims), []
    for first in (True, False):
        case = planted("llama")
        torch.manual_seed(1)
        peft = LoraConfig(**{**KINDS[kind], "init_lora_weights": True})  # an adapter of no effect
        model = get_peft_model(case.model, peft) if first else case.model
        handle = wemask.soften(model, case.report, config)
        chosen.append(handle.dims)
        if not first:
            get_peft_model(case.model, peft)
    assert chosen[0] == chosen[1]


def test_lora_first_or_last_is_the_same_bit_for_bit():
    ids, results = sequence(), []
    for first in (True, False):
        model, _ = adapted("lora", first)
        results.append((logits(model, ids), gradients(model, ids)))
    assert torch.equal(results[0][0], results[1][0])
    assert same(results[0][1], results[1][1])
