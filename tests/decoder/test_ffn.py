"""The weights that are found are those that the FFN multiplies with, and they are views."""

from typing import Any

import pytest
import torch
from families import FAMILIES, WIDTH, build, sequence
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from wemask.decoder.ffn import FFNWeights, ffn_modules, ffn_reader, ffn_weights, shared_experts
from wemask.decoder.parts import Block, ffn_writer, find_decoder, unwrap
from wemask.errors import ModelError

# families whose FFN in layer 1 is one module with a gate, and the attribute that ends its layer
GATED = "llama mistral qwen2 qwen3 phi3 gemma2 gemma3_text olmo olmo2 olmo3 granite cohere2".split()
GATED += "smollm3 glm4 stablelm exaone4 gemma3 qwen2_5_vl qwen3_vl".split()
PLAIN = "phi gpt_neox gpt2 gptj bloom mpt opt falcon starcoder2 nemotron apertus".split()
SHARED = {"qwen2_moe": 1, "qwen3_next": 1, "deepseek_v3": 1, "llama4_text": 1}
# experts in layer 1; a shared one is another
EXPERTS = dict.fromkeys(["qwen3_moe", "mixtral", "gpt_oss", "granitemoe", "olmoe"], 4)
EXPERTS |= dict.fromkeys(SHARED, 5)
POST_NORMS = dict.fromkeys(
    "gemma2 gemma3 gemma3_text olmo2 olmo3 exaone4".split(), "post_feedforward_layernorm"
) | {"glm4": "post_mlp_layernorm"}


def layer_one(family: str) -> Block:
    return find_decoder(build(family)).blocks[1]


def test_every_family_has_a_known_form():
    assert {*GATED, *PLAIN, *EXPERTS} == set(FAMILIES)


@torch.no_grad()
def by_hand(weights: FFNWeights, x: Tensor) -> Tensor:
    assert weights.activation is not None
    zero = torch.zeros(())
    inner = x @ weights.up.T + (zero if weights.up_bias is None else weights.up_bias)
    if weights.gate is None:
        inner = weights.activation(inner)
    else:
        gate = x @ weights.gate.T + (zero if weights.gate_bias is None else weights.gate_bias)
        inner = weights.activation(gate) * inner
    return inner @ weights.down.T + (zero if weights.down_bias is None else weights.down_bias)


@pytest.mark.parametrize("family", [*GATED, *PLAIN, *SHARED])
@torch.no_grad()
def test_the_formula_with_these_weights_is_what_the_module_computes(family):
    block = layer_one(family)
    found = shared_experts(block, WIDTH) if family in SHARED else ffn_weights(block, WIDTH)
    assert len(found) == SHARED.get(family, 1)
    (weights,) = found
    assert (weights.gate is None) == (family in PLAIN)
    assert weights.up.shape == weights.down.T.shape and weights.down.shape[0] == WIDTH
    x = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    if family == "opt":  # no module computes it: the layer does
        layer = block.layer
        expected = layer.fc2(layer.activation_fn(layer.fc1(x)))  # pyright: ignore
        assert weights.module is layer
    elif family in ("bloom", "mpt"):  # they add the residual themselves
        expected = weights.module(x, torch.zeros_like(x))
    else:
        expected = weights.module(x)
    torch.testing.assert_close(by_hand(weights, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", EXPERTS)
@torch.no_grad()
def test_every_expert_of_a_mixture(family):
    block = layer_one(family)
    found = ffn_weights(block, WIDTH)
    assert len(found) == EXPERTS[family]
    assert [w.expert for w in found if w.expert is not None] == [0, 1, 2, 3]
    shared = shared_experts(block, WIDTH)
    assert len(shared) == SHARED.get(family, 0) and all(w.expert is None for w in shared)
    for weights in found:
        assert weights.gate is not None and weights.gate.shape == weights.up.shape
        assert weights.down.shape == weights.up.T.shape and weights.up.shape[1] == WIDTH
    stacked = {w.module for w in found if w.expert is not None}
    x = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0))
    (experts,) = stacked
    if family == "gpt_oss":  # more than act(gate) * up: its own formula, from the paper's clamp on
        assert all(w.activation is None for w in found)
        return
    if family == "llama4_text":  # every expert gets its part of the rows
        expected = experts(x.repeat(4, 1)).reshape(4, 6, WIDTH)
    else:
        chosen = [torch.full((6, 1), e) for e in range(4)]
        expected = torch.stack([experts(x, e, torch.ones(6, 1)) for e in chosen])
    ours = torch.stack([by_hand(w, x) for w in found if w.expert is not None])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_gpt_oss_interleaves_gate_and_up():
    """Its formula: (up + 1) * gate * sigmoid(1.702 gate), both within +-7 (their reference)."""
    block = layer_one("gpt_oss")
    found = ffn_weights(block, WIDTH)
    x = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0))
    for weights in found:
        assert weights.gate is not None and weights.gate_bias is not None
        assert weights.up_bias is not None and weights.down_bias is not None
        gate = (x @ weights.gate.T + weights.gate_bias).clamp(max=7)
        up = (x @ weights.up.T + weights.up_bias).clamp(-7, 7)
        ours = ((up + 1) * gate * torch.sigmoid(1.702 * gate)) @ weights.down.T + weights.down_bias
        expert = torch.full((6, 1), weights.expert)
        expected = weights.module(x, expert, torch.ones(6, 1))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_writing_into_them_changes_the_model(family):
    model = build(family)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    block = find_decoder(model).blocks[1]
    kinds = ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")
    for weights in ffn_weights(block, WIDTH):
        views = [v for kind in kinds if (v := getattr(weights, kind)) is not None]
        assert all(v.requires_grad is False for v in views)
        for view in views:
            view += 1
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    layer = f"{find_decoder(model).layers_name}.1."
    assert changed and all(k.startswith(layer) for k in changed)
    for key in changed:  # every value of it, once
        torch.testing.assert_close(model.state_dict()[key], before[key] + 1)
    expected = {k for k in before if any(p in k for p in FFN_PARTS) and k.startswith(layer)}
    assert changed == {k for k in expected if not any(p in k for p in NOT_FFN)}


FFN_PARTS = (".mlp.", ".ffn.", ".feed_forward.", ".block_sparse_moe.", ".fc1.", ".fc2.")
NOT_FFN = ("shared_expert_gate", ".router.", ".mlp.gate.", ".act", "block_sparse_moe.gate.")


def test_the_writer_is_the_last_module_before_the_residual_add():
    inside = {"bloom": "dense_4h_to_h", "mpt": "down_proj"}  # their FFNs add the residual
    for family in FAMILIES:
        block = layer_one(family)
        expected = getattr(block.layer, POST_NORMS[family]) if family in POST_NORMS else block.ffn
        expected = getattr(expected, inside[family]) if family in inside else expected
        assert ffn_writer(block) is expected, family
    opt = layer_one("opt")
    assert ffn_writer(opt) is opt.layer.fc2 and ffn_reader(opt) is opt.layer.fc1
    assert ffn_modules(opt) == [opt.layer]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_the_writer_returns_is_what_is_added(family):
    """The layer's output is less by just that when it is set to zero."""
    model, ids = build(family), sequence()
    block = find_decoder(model).blocks[1]
    factor = 0.9 if family == "granite" else 1.0  # its residual_multiplier
    whole, written = _run(model, block, ids, 1.0)
    without, _ = _run(model, block, ids, 0.0)
    assert float(written.abs().max()) > 1e-2
    torch.testing.assert_close(whole - without, written * factor, rtol=1e-4, atol=1e-5)


def _run(model: nn.Module, block: Block, ids: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """The layer's output [1, T, D], and what its writer returned, which goes on times `factor`."""
    kept: dict[str, Tensor] = {}

    def scale(module: nn.Module, args: tuple, out: Any) -> Any:
        first, *others = out if isinstance(out, tuple) else (out,)
        kept["written"] = first
        return (first * factor, *others) if others else first * factor

    def leave(module: nn.Module, args: tuple, out: Any) -> None:
        kept["whole"] = out[0] if isinstance(out, tuple) else out

    hooks = [
        ffn_writer(block).register_forward_hook(scale),
        block.layer.register_forward_hook(leave),
    ]
    try:
        model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return kept["whole"], kept["written"].reshape(kept["whole"].shape)


def test_an_adapter_is_not_overlooked():
    config = LoraConfig(target_modules=["up_proj"], r=2)
    block = find_decoder(unwrap(get_peft_model(build("llama"), config))).blocks[1]
    with pytest.raises(
        ModelError, match=r"up_proj is Linear: an adapter [^\n]* `model = model\.merge_and_"
    ):
        ffn_weights(block, WIDTH)


def test_packed_weights_are_not_taken_for_a_matrix():
    block = layer_one("llama")
    packed = torch.zeros(8, 1, dtype=torch.uint8)
    block.ffn.up_proj.weight = nn.Parameter(packed, requires_grad=False)  # pyright: ignore
    with pytest.raises(ModelError, match=r"up_proj \(Linear\) has no weight .* it is quantised"):
        ffn_weights(block, WIDTH)


def test_an_unknown_form_lists_its_parameters():
    block = layer_one("llama")
    odd = Block(**{**vars(block), "ffn": nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, WIDTH))})
    with pytest.raises(ModelError, match=r"No neuron .* FFN of layer 1; it has 1\.weight, 1\.bias"):
        ffn_weights(odd, WIDTH)
    assert shared_experts(odd, WIDTH) == []
