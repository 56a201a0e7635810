"""The contract of the operator (DESIGN section 2), on logits."""

import copy
import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from families import (
    FAMILIES,
    LAYERS,
    MASSIVE,
    NORMLESS,
    build,
    close,
    logits,
    planted,
    sequence,
    settings,
    shared,
)
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from patch_support import batched_logits, cached_logits, llama_oracle, padded
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import wemask
from wemask import StrengthSchedule, WeMaskConfig, WeMaskWarning
from wemask.architectures import find_decoder
from wemask.dims import observe, probe_ids
from wemask.errors import ConfigError, DetectionError, ModelError, PatchError

VISIBLE = 1e-2  # a softening moves some logit by at least this share of the largest

CHOICES = st.fixed_dictionaries(
    {
        "rate": st.sampled_from([0.001, 0.1, 0.25, 0.5, 1.0]),
        "dims": st.sampled_from(
            ["me_norm", "attn_norm", "activation", "massive", "random", "lowest"]
        ),
        "site": st.sampled_from(["attention_input", "residual_copy"]),
        "layers": st.sampled_from(["after_me", "next", (2, 4), (3,)]),
        "tokens": st.sampled_from(["massive", "first"]),
        "strength": st.sampled_from([0.3, 1.0]),
    }
)


def unpatched(model: nn.Module) -> bool:
    """Nothing of ours is left in the model."""
    names = [name for name, _ in model.named_modules() if "softening" in name]
    mixed = [m for m in model.modules() if any("Soften" in c.__name__ for c in type(m).__mro__)]
    return not names and not mixed and not hasattr(model, "wemask_handle")


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
    oracle = llama_oracle(case.model, ids, softened, strength)
    with wemask.soften(case.model, case.report, config) as handle:
        assert close(logits(case.model, ids), oracle, 2e-6)
        assert {i: set(d or []) for i, d in handle.dims.items()} == {
            i: set(d) for i, (_, d) in softened.items()
        }
    assert close(logits(case.model, ids), llama_oracle(case.model, ids, {}), 2e-6)


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


@pytest.mark.parametrize("family", FAMILIES)
def test_contract_in_every_architecture(family):
    case = planted(family)
    model, rows = case.model, [sequence(9, 1, massive_at=2), sequence(6, 2), sequence(9, 3)]
    before = [logits(model, row) for row in rows]
    keys, names = list(model.state_dict()), [n for n, _ in model.named_parameters()]
    handle = wemask.soften(model, case.report, settings())
    assert handle.layers == [2, 3, 4]
    assert all(handle.tokens_touched[i] >= 1 for i in handle.layers)
    assert list(model.state_dict()) == keys
    assert [n for n, _ in model.named_parameters()] == names
    alone = [logits(model, row) for row in rows]
    for off, on in zip(before, alone, strict=True):
        assert not close(on, off, VISIBLE)
    # tokens before the massive one do not see it
    assert torch.equal(alone[0][:, :2], before[0][:, :2])
    for left in (True, False):
        for out, on in zip(batched_logits(model, rows, left=left), alone, strict=True):
            assert close(out, on[0])
    assert close(cached_logits(model, rows[0], [1]), alone[0])
    assert close(cached_logits(model, rows[0], [4, 3]), alone[0])
    handle.set_strength(0.0)
    assert all(torch.equal(logits(model, r), b) for r, b in zip(rows, before, strict=True))
    handle.set_strength(1.0)
    assert torch.equal(logits(model, rows[0]), alone[0])
    handle.remove()
    assert all(torch.equal(logits(model, r), b) for r, b in zip(rows, before, strict=True))
    assert unpatched(model)


@hypothesis_settings(max_examples=15)
@given(
    choices=CHOICES,
    lengths=st.lists(st.integers(1, 14), min_size=1, max_size=4),
    left=st.booleans(),
    extra=st.integers(0, 3),
    seed=st.integers(0, 999),
)
def test_a_batch_equals_its_rows(choices, lengths, left, extra, seed):
    case = shared()
    rows = [sequence(n, seed + i, massive_at=(seed + i) % n) for i, n in enumerate(lengths)]
    with wemask.soften(case.model, case.report, WeMaskConfig(**choices)):
        together = batched_logits(case.model, rows, left=left, extra=extra)
        for row, out in zip(rows, together, strict=True):
            assert close(out, logits(case.model, row)[0])


@hypothesis_settings(max_examples=15)
@given(choices=CHOICES, chunks=st.lists(st.integers(1, 6), max_size=3), seed=st.integers(0, 999))
def test_a_cache_changes_nothing(choices, chunks, seed):
    case = shared()
    ids = torch.cat([sequence(20, seed, massive_at=seed % 20), sequence(20, seed + 1)])
    with wemask.soften(case.model, case.report, WeMaskConfig(**choices)):
        assert close(cached_logits(case.model, ids, chunks), logits(case.model, ids))


@hypothesis_settings(max_examples=15)
@given(choices=CHOICES, seed=st.integers(0, 999))
def test_removed_or_strength_zero_is_the_model_bit_for_bit(choices, seed):
    case, ids = shared(), sequence(10, seed)
    before = logits(case.model, ids)
    state = {k: v.clone() for k, v in case.model.state_dict().items()}
    with wemask.soften(case.model, case.report, WeMaskConfig(**choices)) as handle:
        logits(case.model, ids)
        handle.set_strength(0.0)
        assert torch.equal(logits(case.model, ids), before)
    assert torch.equal(logits(case.model, ids), before)
    assert all(torch.equal(v, state[k]) for k, v in case.model.state_dict().items())
    assert unpatched(case.model)


# --- packing, positions, generation -------------------------------------------------------------


def documents() -> tuple[list[Tensor], Tensor, Tensor]:
    rows = [sequence(5, 1), sequence(7, 2, massive_at=3), sequence(4, 3)]
    packed = torch.cat(rows, 1)
    positions = torch.cat([torch.arange(row.shape[1]) for row in rows]).unsqueeze(0)
    return rows, packed, positions


@pytest.mark.parametrize("tokens", ["massive", "first"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2"])
def test_packed_documents_equal_each_alone(family, implementation, tokens):
    case, (rows, packed, positions) = planted(family), documents()
    case.model.set_attn_implementation(implementation)
    with wemask.soften(case.model, case.report, settings(tokens=tokens)):
        out = logits(case.model, packed, position_ids=positions)
        for part, row in zip(out.split([r.shape[1] for r in rows], 1), rows, strict=True):
            assert close(part, logits(case.model, row))


@pytest.mark.parametrize("family", FAMILIES)
def test_first_tokens_under_padding_and_cache(family):
    case = shared(family)
    rows = [sequence(8, 1), sequence(5, 2, massive_at=2)]
    with wemask.soften(case.model, case.report, settings(tokens="first")) as handle:
        ids, mask, positions = padded(rows, left=True)
        seen = observe(handle, case.model, ids, attention_mask=mask, position_ids=positions)
        assert all(o.tokens == 2 for o in seen.values())
        for left in (True, False):
            for out, row in zip(batched_logits(case.model, rows, left=left), rows, strict=True):
                assert close(out, logits(case.model, row)[0])
        assert close(cached_logits(case.model, rows[0], [3, 2]), logits(case.model, rows[0]))


@pytest.mark.parametrize("tokens", ["massive", "first"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2", "falcon"])
def test_generation_of_a_left_padded_batch_equals_one_by_one(family, tokens):
    case, rows = shared(family), [sequence(9, 1), sequence(5, 2), sequence(7, 3)]
    model: Any = case.model
    options: dict[str, Any] = {
        "max_new_tokens": 6,
        "min_new_tokens": 6,
        "do_sample": False,
        "pad_token_id": 0,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    with wemask.soften(model, case.report, settings(tokens=tokens)):
        ids, mask, _ = padded(rows, left=True)
        together = model.generate(ids, attention_mask=mask, **options)
        for i, row in enumerate(rows):
            alone = model.generate(row, attention_mask=torch.ones_like(row), **options)
            assert close(torch.stack(together.logits, 1)[i], torch.stack(alone.logits, 1)[0])
            assert torch.equal(together.sequences[i, -6:], alone.sequences[0, -6:])


def test_position0_is_the_literal_index_and_warns():
    case = shared()
    config = settings(tokens="position0", dims="massive")
    with pytest.warns(WeMaskWarning, match="tokens=position0 is index 0 of the tensor"):
        handle = wemask.soften(case.model, case.report, config)
    with handle:
        rows = [sequence(8, 1), sequence(5, 2)]
        out = batched_logits(case.model, rows, left=True)  # row 1 has pads in front
        assert not close(out[1], logits(case.model, rows[1])[0], VISIBLE)
        # the decode artefact: every generated token is index 0 of its own forward
        assert not close(cached_logits(case.model, rows[0], [3]), logits(case.model, rows[0]), 1e-3)


# --- training -----------------------------------------------------------------------------------


def gradients(model: Any, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_gradients_are_equal(family, reentrant):
    case, ids = planted(family), sequence()
    case.model.train()
    with wemask.soften(case.model, case.report, settings(site="residual_copy")):
        plain = gradients(case.model, ids)
        case.model.enable_input_require_grads()
        case.model.activation_checkpointing_enable({"use_reentrant": reentrant})
        recomputed = gradients(case.model, ids)
        assert plain.keys() == recomputed.keys()
        for name, gradient in plain.items():
            assert close(recomputed[name], gradient, 1e-6), name
    case.model.activation_checkpointing_disable()
    assert not same(gradients(case.model, ids), plain)


@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_a_forward_between_forward_and_backward_changes_nothing(checkpointing):
    case, ids, other = planted("llama"), sequence(), sequence(7, 5, massive_at=3)
    model: Any = case.model
    model.train()
    if checkpointing is not None:
        model.enable_input_require_grads()
        model.activation_checkpointing_enable({"use_reentrant": checkpointing})
    with wemask.soften(model, case.report, settings()):
        expected = gradients(model, ids)
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        model(input_ids=other, use_cache=False)
        loss.backward()
        actual = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert same(actual, expected)


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


def blocks(model: nn.Module) -> list[Any]:
    return list(find_decoder(model).blocks)


LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}


def test_lora_before_and_after_patching_is_the_same_and_merges():
    ids, results = sequence(), []
    config = settings(dims="massive")  # dims that no adapter can change
    for lora_first in (True, False):
        case = planted("llama")
        torch.manual_seed(1)
        if lora_first:
            model = get_peft_model(case.model, LoraConfig(**LORA))
            handle = wemask.soften(model, case.report, config)
        else:
            handle = wemask.soften(case.model, case.report, config)
            model = get_peft_model(case.model, LoraConfig(**LORA))
        model.eval()
        on = logits(model, ids)
        model.train()
        grads = gradients(model, ids)
        model.eval()
        results.append((on, grads))
        merged: Any = model.merge_and_unload()
        assert close(logits(merged, ids), on, 1e-5)
        assert merged.wemask_handle is handle
        handle.remove()
        assert unpatched(merged)
        assert not close(logits(merged, ids), on, VISIBLE)
    assert torch.equal(results[0][0], results[1][0])
    assert same(results[0][1], results[1][1])


def test_compiled_model_gives_the_same_logits():
    case, ids = planted("llama"), sequence()
    with wemask.soften(case.model, case.report, settings()):
        expected = logits(case.model, ids)
        compiled: Any = torch.compile(case.model, backend="eager")
        assert close(logits(compiled, ids), expected, 1e-5)
        with pytest.raises(PatchError, match="softened already"):
            wemask.soften(compiled, case.report, settings())


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


# --- the handle ---------------------------------------------------------------------------------


def test_the_handle_says_what_was_touched():
    case = shared()
    with wemask.soften(case.model, case.report, settings()) as handle:
        assert handle.layers == [2, 3, 4]
        assert handle.tokens_touched == {2: 1, 3: 1, 4: 1}
        assert {len(d or []) for d in handle.dims.values()} == {8}
        assert handle.strength == 1.0 and handle.report is case.report
        assert repr(handle) == ("SoftenHandle(layers=[2, 3, 4], tokens_touched={2: 1, 3: 1, 4: 1})")
        ids = torch.cat([sequence(8, 1), sequence(8, 2, massive_at=5)])
        ids[1, 7] = MASSIVE
        assert {o.tokens for o in observe(handle, case.model, ids).values()} == {3}
        handle.set_strength(0.25)
        assert handle.strength == 0.25
        with pytest.raises(ConfigError, match="strength must be a number from 0 to 1"):
            handle.set_strength(1.5)


def test_a_schedule_starts_from_its_end_value():
    case = shared()
    schedule = StrengthSchedule(start=0.1, end=0.75, steps=10)
    with wemask.soften(case.model, case.report, settings(strength=schedule)) as handle:
        assert handle.strength == 0.75


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


def test_the_with_block_cleans_up_after_an_error():
    case = planted("llama")

    def body() -> None:
        with wemask.soften(case.model, case.report, settings()):
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        body()
    assert unpatched(case.model)


def test_probe_ids_without_a_report_stay_in_the_vocabulary():
    assert probe_ids(build("llama", vocab_size=5), None).tolist() == [[0, 1, 2, 3, 4]]


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


def test_removing_inside_the_block_is_no_error_and_hides_none():
    c = shared("llama", 0)

    def fail() -> None:
        with wemask.soften(c.model, c.report, settings()) as handle:
            handle.remove()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()


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


@pytest.mark.parametrize("family", NORMLESS)
@pytest.mark.parametrize("dims", ["me_norm", "attn_norm", "lowest"])
def test_norms_without_weight_say_so(family, dims):
    case = shared(family)
    with pytest.raises(ModelError, match=r"has no norm weight.*operator\.dims=massive"):
        wemask.soften(case.model, case.report, settings(dims=dims))
    assert unpatched(case.model)


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


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@hypothesis_settings(max_examples=20)
@given(choices=CHOICES, seed=st.integers(0, 999), left=st.booleans())
def test_contract_deeply_in_every_architecture(family, choices, seed, left):
    case = shared(family)
    needs_norm = choices["dims"] in ("me_norm", "attn_norm", "lowest")
    missing = needs_norm and (family in NORMLESS or family == "olmo2")
    rows = [sequence(9, seed, massive_at=seed % 9), sequence(5, seed + 1)]
    refused = pytest.raises(ModelError, match="no norm weight") if missing else nullcontext()
    with refused, wemask.soften(case.model, case.report, WeMaskConfig(**choices)):
        alone = [logits(case.model, row) for row in rows]
        for out, on in zip(batched_logits(case.model, rows, left=left), alone, strict=True):
            assert close(out, on[0])
        assert close(cached_logits(case.model, rows[0], [1 + seed % 5]), alone[0])
    assert unpatched(case.model)
