"""Parts of a decoder: one rule for all, exactly one match or an error with the override."""

from typing import Any

import pytest
import torch
from families import (
    FAMILIES,
    LAYERS,
    NORMLESS,
    POST_NORM,
    VISION,
    WIDTH,
    build,
    logits,
    shared,
)
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from wemask.decoder.parts import (
    Decoder,
    effective_scale,
    find_decoder,
    layer_index_error,
    unwrap,
)
from wemask.decoder.passage import checking_flow
from wemask.errors import ModelError

PARALLEL = ("phi", "falcon", "cohere2", "gptj")  # one norm feeds attention and FFN
STACKS = {
    "gpt2": "transformer.h",
    "falcon": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "gptj": "transformer.h",
    "bloom": "transformer.h",
    "mpt": "transformer.blocks",
    **dict.fromkeys(VISION, "model.language_model.layers"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_parts(family):
    decoder = find_decoder(shared(family).model)
    assert (len(decoder.blocks), decoder.hidden_size) == (LAYERS, WIDTH)
    assert decoder.layers_name == STACKS.get(family, "model.layers")
    for index, block in enumerate(decoder.blocks):
        assert block.index == index
        mixers = ("Attention", "GatedDeltaNet")  # the latter is Qwen3-Next's linear attention
        assert any(m in c.__name__ for c in type(block.attention).__mro__ for m in mixers)
        if family in POST_NORM:
            assert block.attention_norm is None and block.ffn_norm is None
        else:
            assert "Norm" in type(block.attention_norm).__name__
            assert (block.ffn_norm is block.attention_norm) == (family in PARALLEL)


@torch.no_grad()
@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in POST_NORM])
def test_the_norms_are_those_that_feed_attention_and_ffn(family):
    """What the FFN reads is what its norm returned; the same of attention."""
    model = shared(family).model
    block = find_decoder(model).blocks[2]
    seen: dict[str, Any] = {}
    ffn: Any = block.layer.fc1 if family == "opt" else block.ffn
    hooks = []
    for name, norm, reader in (
        ("attention", block.attention_norm, block.attention),
        ("ffn", block.ffn_norm, ffn),
    ):
        assert norm is not None

        def keep_output(module: nn.Module, args: tuple, out: Any, name: str = name) -> None:
            seen[name + " norm"] = out

        def keep_input(module: nn.Module, args: tuple, kwargs: Any, name: str = name) -> None:
            seen[name] = args[0] if args else kwargs["hidden_states"]

        hooks.append(norm.register_forward_hook(keep_output))
        hooks.append(reader.register_forward_pre_hook(keep_input, with_kwargs=True))
    model(input_ids=torch.arange(8)[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    for name in ("attention", "ffn"):
        assert torch.equal(seen[name].reshape(-1), seen[name + " norm"].reshape(-1))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in POST_NORM + NORMLESS])
def test_effective_scale_is_the_weight_in_whatever_form(family):
    norm: Any = find_decoder(shared(family).model).blocks[1].attention_norm
    weight = norm.weight.detach().float()
    one_plus = ("gemma2", "gemma3", "gemma3_text", "qwen3_next", "nemotron")
    expected = (1 + weight) if family in one_plus else weight
    torch.testing.assert_close(effective_scale(norm, "it"), expected.abs(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", [None, nn.Identity()])
def test_no_norm_weight_says_what_to_type(norm):
    with pytest.raises(ModelError, match=r"Layer 3 has no norm weight.*Type operator\.dims=mass"):
        effective_scale(norm, "Layer 3")


def test_wrappers_are_taken_off():
    model = build("llama")
    assert unwrap(model) is model
    assert unwrap(torch.compile(model)) is model  # pyright: ignore[reportArgumentType]
    assert unwrap(nn.DataParallel(model)) is model
    assert unwrap(get_peft_model(model, LoraConfig(target_modules=["q_proj"]))) is model


def test_the_text_decoder_of_a_vlm():
    from transformers import AutoModelForImageTextToText, LlavaConfig

    text = {**shared("llama").model.config.to_dict()}
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": LAYERS,  # as many as the text model
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    config = LlavaConfig(text_config=text, vision_config=vision)  # pyright: ignore
    decoder = find_decoder(AutoModelForImageTextToText.from_config(config))
    assert decoder.layers_name == "model.language_model.layers"
    assert decoder.hidden_size == WIDTH


class Strange(nn.Module):
    """A layer with names that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer, self.channel = nn.Linear(4, 4), nn.Linear(4, 4)


def strange(attention: str = "self_attn") -> Any:
    model: Any = build("llama", num_hidden_layers=2)
    layers = nn.ModuleList([Strange(), Strange()])
    for layer in layers:
        setattr(layer, attention, nn.Linear(4, 4))
    model.model.layers = layers
    return model


def test_a_missing_part_names_the_override():
    with pytest.raises(ModelError) as raised:
        find_decoder(strange())
    said = str(raised.value)
    assert "Layer 0 (Strange) has no ffn: sought mlp," in said
    assert 'found mixer, channel, self_attn. Name it: model.wemask_parts = {"ffn": "NAME"}' in said
    model = strange()
    model.wemask_parts = {"ffn": "channel"}
    assert find_decoder(model).blocks[1].ffn is model.model.layers[1].channel
    model.wemask_parts = {"ffn": "chanel"}
    with pytest.raises(ModelError, match="has no ffn: sought chanel, found mixer, channel"):
        find_decoder(model)


def test_no_stack_or_two_name_the_override():
    with pytest.raises(ModelError, match=r"stack of 2 decoder layers .*found none\. Name it"):
        find_decoder(strange("mystery"))
    model: Any = build("llama")
    model.model.twins = nn.ModuleList(list(build("llama").model.layers))  # pyright: ignore
    with pytest.raises(ModelError, match=r"found model\.layers, model\.twins\. Name it"):
        find_decoder(model)
    model.wemask_parts = {"layers": "model.twins"}
    assert find_decoder(model).blocks[0].layer is model.model.twins[0]


def test_an_override_that_does_not_exist():
    model: Any = build("llama")
    model.wemask_parts = {"layer": "model.layers"}
    with pytest.raises(ModelError, match=r"has the key 'layer'.*Did you mean 'layers'"):
        find_decoder(model)
    model.wemask_parts = {"layers": "model.blocks"}
    with pytest.raises(ModelError, match=r"model\.blocks"):
        find_decoder(model)
    model.wemask_parts = {"layers": "model.norm"}
    with pytest.raises(ModelError, match=r"model\.norm"):
        find_decoder(model)


def test_what_is_no_transformers_model():
    with pytest.raises(ModelError, match=r"transformers model was expected.*got Linear"):
        find_decoder(nn.Linear(2, 2))
    assert str(layer_index_error(7, 5)).startswith("Layer 7 does not exist: the model has layers 0")


def test_a_norm_of_unknown_place_is_asked_for_not_guessed():
    model: Any = build("llama")
    for layer in model.model.layers:
        layer.norm_for_something = nn.LayerNorm(WIDTH)
    with pytest.raises(ModelError, match=r"unknown place: norm_for_something\. Say which"):
        find_decoder(model)
    model.wemask_parts = {"attention_norm": "norm_for_something", "ffn_norm": None}
    block = find_decoder(model).blocks[0]
    assert block.attention_norm is block.layer.norm_for_something and block.ffn_norm is None


def test_layers_of_two_kinds_take_two_names():
    model: Any = build("qwen3_next")
    kinds = [type(b.attention).__name__ for b in find_decoder(model).blocks]
    assert len(set(kinds)) == 2
    del model.wemask_parts
    with pytest.raises(ModelError) as raised:
        find_decoder(model)
    said = str(raised.value)
    assert "has no attention: sought self_attn," in said and "found linear_attn, mlp," in said
    assert said.endswith('{"attention": "NAME"}, or ["NAME", "OTHER"] where layers differ.')


SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "n_embd": WIDTH,
    "n_layer": 2,
    "n_head": 4,
    "hidden_size": WIDTH,
    "d_model": WIDTH,
    "word_embed_proj_dim": WIDTH,
    "n_positions": 64,
    "num_hidden_layers": LAYERS,
    "num_layers": LAYERS,
    "decoder_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "decoder_attention_heads": 4,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "is_decoder": True,
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
def test_no_causal_model_of_transformers_gets_the_wrong_norms():
    """Each is found right or refused with a ModelError; wrong is a norm that feeds another part."""
    right, refused, wrong = [], [], []
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        model = tiny_model(model_type)
        if model is None:
            continue
        try:
            decoder = find_decoder(model)
            with checking_flow(decoder):
                logits(model, torch.arange(8, 12)[None])
        except ModelError:
            refused.append(model_type)
            continue
        (right if norms_feed(model, decoder) else wrong).append(model_type)
    print(f"right: {right}\nrefused: {refused}\nwrong: {wrong}")
    assert wrong == []
    assert len(right) >= 85  # 88 with transformers 5.23


def tiny_model(model_type: str) -> Any:
    """A small model that runs, or None: sizes that this config does not take, or a whole VLM."""
    try:
        config = AutoConfig.for_model(model_type)
        aliases = config.attribute_map
        known = {k: v for k, v in SIZES.items() if k in config.to_dict() or k in aliases}
        known = {k: v for k, v in known.items() if aliases.get(k) not in known}
        config = AutoConfig.for_model(model_type, **known)
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > 2e7:
            return None
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            model(input_ids=torch.arange(8, 12)[None], use_cache=False)
    except Exception:
        return None
    return model


@torch.no_grad()
def norms_feed(model: Any, decoder: Decoder) -> bool:
    """Attention and FFN read what their norms returned; without a norm, attention the residual."""
    read: dict[nn.Module, Any] = {}
    made: dict[nn.Module, Any] = {}

    def keep_input(module: nn.Module, args: tuple, kwargs: Any) -> None:
        read[module] = (args[0] if args else kwargs["hidden_states"]).clone()

    def keep_output(module: nn.Module, args: tuple, out: Any) -> None:
        made[module] = out.clone()

    hooks, pairs = [], []
    for block in decoder.blocks:
        layer: Any = block.layer
        ffn = layer.fc1 if isinstance(block.ffn, nn.Linear) else block.ffn
        pairs += [(block.attention_norm, block.attention, layer), (block.ffn_norm, ffn, None)]
        readers = (layer, block.attention, ffn)
        norms = {n for n in (block.attention_norm, block.ffn_norm) if n is not None}
        hooks += [m.register_forward_pre_hook(keep_input, with_kwargs=True) for m in readers]
        hooks += [norm.register_forward_hook(keep_output) for norm in norms]
    model(input_ids=torch.arange(8, 12)[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    sources = [(made[n] if n is not None else read.get(layer), read[r]) for n, r, layer in pairs]
    return all(a is None or torch.equal(a.flatten(), b.flatten()) for a, b in sources)
