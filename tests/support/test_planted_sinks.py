"""Planted heads sink on the massive token because it is massive, and for no other reason."""

from typing import Any

import pytest
import torch
from families import (
    DIMS,
    HEADS,
    LAYERS,
    MAGNITUDE,
    MASSIVE,
    ME_LAYER,
    WIDTH,
    build,
    detect,
    logits,
    planted,
    texts,
)
from planted.sinks import SUPPORTED, SUPPORTED_NORMED, PlantedSinks, plant_sinks
from torch import Tensor, nn

import wemask
from wemask import WeMaskConfig
from wemask.decoder.parts import ffn_writer, find_decoder
from wemask.errors import ModelError
from wemask.measure.layer_sums import Batch
from wemask.measure.measurement import measure
from wemask.planted import Planted, plant

LENGTHS = (12, 64)


def with_sinks(family: str, seed: int = 0, **options: Any) -> tuple[Any, PlantedSinks]:
    model = build(family, seed)
    truth = plant(model, layer=ME_LAYER, token_ids=[MASSIVE], dims=DIMS, magnitude=MAGNITUDE)
    return model, plant_sinks(model, truth, **options)


def masses(model: Any, ids: Tensor) -> Tensor:
    """Sink mass [layers, heads] on the tokens that were planted."""
    return masses_on(model, ids, ids == MASSIVE)


def masses_on(model: Any, ids: Tensor, tokens: Tensor) -> Tensor:
    """Sink mass [layers, heads] on the given tokens."""
    batch = Batch(input_ids=ids, attention_mask=torch.ones_like(ids), massive=tokens)
    return torch.tensor([row.sink_mass_by_head for row in measure(model, [batch]).layers])


def equal_share(ids: Tensor) -> float:
    """Sink mass where every query attends alike to itself and to all before."""
    shares = [
        1 / (query + 1)
        for row in ids
        for query in range(ids.shape[1])
        if (row[:query] == MASSIVE).any()
    ]
    return sum(shares) / len(shares)


def without_the_write(model: Any, ids: Tensor, factor: float = 0.0) -> Tensor:
    """Sink mass when what the ME Layer's FFN writes on the massive tokens counts `factor`."""
    scale = torch.where(ids == MASSIVE, factor, 1.0)

    def hook(module: nn.Module, args: tuple, out: Any) -> Any:
        first, *others = out if isinstance(out, tuple) else (out,)
        first = first * scale.reshape(*first.shape[:-1], 1)
        return (first, *others) if others else first

    handle = ffn_writer(find_decoder(model).blocks[ME_LAYER]).register_forward_hook(hook)
    try:
        return masses(model, ids)
    finally:
        handle.remove()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", [*SUPPORTED, *SUPPORTED_NORMED])
def test_the_massive_activation_makes_the_sink(family, length):
    model, sinks = with_sinks(family)
    ids = texts(length=length, seed=5)
    assert sinks.layers == tuple(range(ME_LAYER + 1, LAYERS))
    chosen = (list(sinks.layers), list(sinks.heads))
    there, gone = masses(model, ids), without_the_write(model, ids)
    there, gone = (mass[chosen[0]][:, chosen[1]] for mass in (there, gone))
    assert there.shape == (LAYERS - ME_LAYER - 1, len(sinks.heads))
    assert there.min() > 0.99
    # Its key is zero then; the others' keys are what the neuron leaks, which is not negative.
    assert gone.max() <= equal_share(ids) + 1e-4 < 0.3
    assert gone.max() > 0.5 * equal_share(ids)


@pytest.mark.parametrize("family", [*SUPPORTED, *SUPPORTED_NORMED])
def test_detection_still_finds_the_truth(family):
    for seed in range(3):
        model, sinks = with_sinks(family, seed)
        report = detect(model)
        assert (report.found, report.layer, set(report.dims)) == (True, ME_LAYER, set(DIMS))
        assert {token.token_id for token in report.tokens} == {MASSIVE}
        assert len(report.tokens) == int((texts() == MASSIVE).sum())
        assert report.magnitudes == pytest.approx([MAGNITUDE] * 2, rel=0.02)
        assert sinks.planted == planted(family).truth


@pytest.mark.parametrize("family", SUPPORTED)
def test_other_heads_and_the_layers_up_to_it_keep_their_weights(family):
    model, sinks = with_sinks(family, key_value_heads=[1])
    twin = build(family)
    assert sinks.heads == (2, 3) and sinks.dim == WIDTH - 3
    size = WIDTH // HEADS
    for block, before in zip(find_decoder(model).blocks, find_decoder(twin).blocks, strict=True):
        ours: Any = block.attention
        theirs: Any = before.attention
        assert torch.equal(ours.v_proj.weight, theirs.v_proj.weight)
        for name, kept in (("q_proj", slice(2 * size)), ("k_proj", slice(size))):
            new, old = getattr(ours, name).weight, getattr(theirs, name).weight
            assert torch.equal(new[kept], old[kept])
            assert torch.equal(new, old) == (block.index <= ME_LAYER)
    ids = texts(length=64, seed=5)
    mass = masses(model, ids)
    assert mass[ME_LAYER + 1 :, 2:].min() > 0.99
    assert mass[: ME_LAYER + 1].max() < 0.5  # nothing to sink on yet


def test_the_reserved_dim_is_the_same_in_every_token_and_layer():
    model, sinks = with_sinks("qwen2")
    kept: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda module, args, out: kept.append(out))
        for layer in model.model.layers
    ]
    logits(model, texts())
    for hook in hooks:
        hook.remove()
    values = torch.stack(kept)[..., sinks.dim]  # [layers, B, T]
    assert len(kept) == LAYERS
    assert values.min() == values.max() > 1


@pytest.mark.parametrize("factor", [0.25, 0.5, 0.75])
def test_a_norm_keeps_the_sink_while_the_token_is_massive_at_all(factor):
    """A quarter of 5000 still outweighs all else in the token: the norm makes it as long."""
    model, sinks = with_sinks("llama")
    ids = texts(length=32, seed=5)
    mass = without_the_write(model, ids, factor)
    assert mass[list(sinks.layers)][:, list(sinks.heads)].min() > 0.95


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_softening_the_massive_dims_ends_the_sink_and_that_of_others_does_not(family):
    model, sinks = with_sinks(family)
    ids, report = texts(length=32, seed=5), detect(model)
    for dims, ends in (("massive", True), ("lowest", False)):
        config = WeMaskConfig(rate=2 / WIDTH, dims=dims)
        with wemask.soften(model, report, config) as handle:
            assert (set(handle.dims[ME_LAYER + 1]) == set(DIMS)) == ends
            mass = masses(model, ids)[list(sinks.layers)][:, list(sinks.heads)]
        assert (mass.max() <= equal_share(ids) + 1e-4) if ends else (mass.min() > 0.95)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_other_widths_dims_tokens_and_dtypes(family):
    model = build(family, 1, hidden_size=64, head_dim=16, intermediate_size=96)
    truth = plant(model, layer=2, token_ids=[MASSIVE, 9], dims=[63, 5, 20], magnitude=900.0)
    sinks = plant_sinks(model, truth)
    assert sinks.planted == truth and sinks.layers == (3, 4)
    assert sinks.dim == 60  # 63 is massive, 62 and 61 are the planted tokens' own
    model = model.to(torch.bfloat16)
    for token in truth.token_ids:
        ids = torch.where(texts(seed=4) == MASSIVE, token, texts(seed=4))
        mass = masses_on(model, ids, torch.isin(ids, torch.tensor([7, 9])))
        assert mass[3:][:, list(sinks.heads)].min() > 0.95


TRUTH = Planted(layer=ME_LAYER, token_ids=(MASSIVE,), dims=DIMS, magnitude=MAGNITUDE)


@pytest.mark.parametrize("family", ["phi3", "gemma2", "olmo2", "cohere2", "gpt2"])
def test_attention_of_another_layout_is_refused_before_anything_is_changed(family):
    model = build(family)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ModelError, match=f"Sinks cannot be planted in {family}: .*llama, mistral"):
        plant_sinks(model, TRUTH)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("heads", [[], [2], [-1, 0]])
def test_heads_that_do_not_exist(heads):
    with pytest.raises(ModelError, match=r"key_value_heads are among 0 to 1; got \["):
        plant_sinks(build("llama"), TRUTH, key_value_heads=heads)


def test_a_norm_that_all_heads_share_allows_no_choice():
    with pytest.raises(ModelError, match="one norm weight serves all heads: choose all"):
        plant_sinks(build("qwen3"), TRUTH, key_value_heads=[0])


def test_there_must_be_a_layer_after_it():
    truth = Planted(**{**vars(TRUTH), "layer": LAYERS - 1})
    with pytest.raises(ModelError, match="No layer follows the ME Layer 4"):
        plant_sinks(build("llama"), truth)
