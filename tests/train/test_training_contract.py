"""Training with the operator on: gradients equal those of the oracle, however one trains."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from families import LAYERS, logits, planted, sequence, settings, shared
from oracle import ORACLES
from patch_support import (
    blocks,
    collected,
    distance,
    gradients,
    language_loss,
    same,
    sum_of,
    unpatched,
)
from torch import Tensor, nn
from training_oracle import SITES, TOLERANCE, batch, expected, soften
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import wemask
from wemask import StrengthSchedule
from wemask.train.callbacks import SofteningCallback


@pytest.fixture(autouse=True)
def _norms_of_full_precision(monkeypatch):
    """Llama's own norm computes in float32, whatever the model's dtype."""

    def forward(norm: Any, x: Tensor) -> Tensor:
        return norm.weight * x * (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


# --- against the oracle -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("family", ORACLES)
def test_logits_and_all_gradients_equal_the_oracles(family, strength, site, dtype):
    case, ids = planted(family), batch()
    case.model.to(dtype)
    out, wanted = expected(family, case, ids, strength, site)
    plain = gradients(case.model, ids)
    with soften(case, strength=strength, site=site):
        with torch.no_grad():
            on = case.model(input_ids=ids, use_cache=False).logits
        assert float((on - out).abs().max() / out.abs().max()) < TOLERANCE[dtype] / 10
        grads = gradients(case.model, ids)
    assert grads.keys() == {name for name, _ in case.model.named_parameters()}
    assert distance(grads, wanted) < TOLERANCE[dtype]
    assert distance(plain, wanted) > 1e-2


def test_a_schedule_midway_trains_with_the_strength_of_its_step():
    case, ids = planted("llama"), batch()
    schedule = StrengthSchedule(start=0.0, end=0.8, steps=10)
    with soften(case, strength=schedule) as handle:
        arguments, control = TrainingArguments(report_to="none"), TrainerControl()
        for step, strength in ((0, 0.0), (5, 0.4), (10, 0.8)):
            state = TrainerState(global_step=step)
            SofteningCallback(handle).on_step_begin(arguments, state, control)
            _, wanted = expected("llama", case, ids, strength)
            assert handle.strength == pytest.approx(strength)
            assert distance(gradients(case.model, ids), wanted) < 2e-4


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ORACLES)
def test_checkpointed_gradients_equal_the_oracles(family, site, reentrant):
    case, ids = planted(family), batch()
    _, wanted = expected(family, case, ids, 0.4, site)
    case.model.train().enable_input_require_grads()
    case.model.activation_checkpointing_enable({"use_reentrant": reentrant})
    with soften(case, strength=0.4, site=site):
        assert distance(gradients(case.model, ids), wanted) < 2e-4


# --- several forwards, several backwards --------------------------------------------------------


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # no_grad
@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_a_forward_between_forward_and_backward_changes_nothing(checkpointing):
    case, ids, other = planted("llama"), sequence(), sequence(7, 5, massive_at=3)
    model: Any = case.model.train()
    if checkpointing is not None:
        model.enable_input_require_grads()
        model.activation_checkpointing_enable({"use_reentrant": checkpointing})
    with wemask.soften(model, case.report, settings()):
        wanted = gradients(model, ids)
        for grad in (True, False):
            model.zero_grad()
            loss = language_loss(model(input_ids=ids, use_cache=False).logits, ids)
            with torch.set_grad_enabled(grad):
                model(input_ids=other, use_cache=False)
            loss.backward()
            assert same(collected(model), wanted)


@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_accumulated_gradients_are_the_sum_of_the_oracles(checkpointing):
    case, parts = planted("llama"), [batch(), sequence(7, 5, massive_at=3), sequence(9, 6)]
    wanted = [expected("llama", case, ids, 0.4)[1] for ids in parts]
    total = sum_of(wanted)
    model: Any = case.model.train()
    if checkpointing is not None:
        model.enable_input_require_grads()
        model.activation_checkpointing_enable({"use_reentrant": checkpointing})
    with soften(case, strength=0.4):
        for ids in parts:
            language_loss(model(input_ids=ids, use_cache=False).logits, ids).backward()
        assert distance(collected(model), total) < 2e-4
        model.zero_grad()  # all forwards first, as two halves of a preference pair do
        outs = [model(input_ids=ids, use_cache=False).logits for ids in parts]
        losses = [language_loss(out, ids) for out, ids in zip(outs, parts, strict=True)]
        torch.stack(losses).sum().backward()
        assert distance(collected(model), total) < 2e-4


def test_the_strength_of_the_forward_is_that_of_its_backward():
    case, ids = planted("llama"), batch()
    _, wanted = expected("llama", case, ids, 0.4)
    with soften(case, strength=0.4) as handle:
        loss = language_loss(case.model(input_ids=ids, use_cache=False).logits, ids)
        handle.set_strength(1.0)
        loss.backward()
    assert distance(collected(case.model), wanted) < 2e-4


def test_inputs_that_others_hold_are_not_written_to():
    case, ids = shared(), sequence()
    embedded = case.model.get_input_embeddings()(ids).detach()
    before = embedded.clone()
    held: list[tuple[Tensor, Tensor]] = []

    def hold(module: nn.Module, args: tuple, output: Tensor) -> None:
        held.append((output, output.detach().clone()))

    model: Any = case.model
    with wemask.soften(model, case.report, settings()):
        hooks = [b.layer.input_layernorm.register_forward_hook(hold) for b in blocks(model)]
        with torch.no_grad():
            model(inputs_embeds=embedded, use_cache=False)
        for hook in hooks:
            hook.remove()
    assert torch.equal(embedded, before)
    assert len(held) == LAYERS
    assert all(torch.equal(now, then) for now, then in held)


# --- what is trained ----------------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES)
def test_frozen_parameters_change_no_other_gradient(site):
    case, ids = planted("llama"), batch()
    with soften(case, strength=0.4, site=site):
        wanted = gradients(case.model, ids)
        frozen = [n for n, _ in case.model.named_parameters() if "norm" in n or "embed" in n]
        for name in frozen:
            case.model.get_parameter(name).requires_grad_(False)
        grads = gradients(case.model, ids)
    assert same(grads, {n: g for n, g in wanted.items() if n not in frozen})


def test_gradients_of_the_input_embeddings_equal_the_oracles():
    case, ids = planted("llama"), batch()
    _, wanted = expected("llama", case, ids, 0.4)
    embedding: Any = case.model.get_input_embeddings()
    leaf = embedding(ids).detach().requires_grad_()
    with soften(case, strength=0.4):
        out = case.model(inputs_embeds=leaf, use_cache=False).logits
        language_loss(out, ids).backward()
    summed = torch.zeros_like(embedding.weight).index_add(0, ids.flatten(), leaf.grad.flatten(0, 1))
    assert distance({"": summed}, {"": wanted["model.embed_tokens.weight"]}) < 2e-4


def test_a_functional_call_with_other_weights_is_softened():
    case, ids = planted("llama"), batch()
    weights = {n: p.detach() * 1.1 for n, p in case.model.named_parameters()}
    other = planted("llama")
    other.model.load_state_dict(weights)
    with soften(case, strength=0.4), soften(other, strength=0.4), torch.no_grad():
        call = {"input_ids": ids, "use_cache": False}
        out = torch.func.functional_call(case.model, weights, (), call)
        assert torch.equal(out.logits, other.model(**call).logits)


# --- copies -------------------------------------------------------------------------------------


def test_a_deep_copy_is_softened_on_its_own():
    case, ids = planted("llama"), sequence()
    before = logits(case.model, ids)
    handle = wemask.soften(case.model, case.report, settings())
    twin = copy.deepcopy(case.model)
    on = logits(case.model, ids)
    assert torch.equal(logits(twin, ids), on)
    handle.remove()
    assert torch.equal(logits(case.model, ids), before)
    assert torch.equal(logits(twin, ids), on)
    twin_handle: Any = twin.wemask_handle
    assert twin_handle is not handle
    twin_handle.remove()
    assert torch.equal(logits(twin, ids), before)
    assert unpatched(twin)


def test_a_removed_handle_holds_nothing_in_the_model():
    case = planted("llama")
    handle = wemask.soften(case.model, case.report, settings())
    softening = weakref.ref(blocks(case.model)[2].attention.softening)
    handle.remove()
    del handle
    gc.collect()
    assert softening() is None
