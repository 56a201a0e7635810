"""A planted model is what it says, in every architecture."""

import pytest
import torch
from families import DIMS, FAMILIES, LAYERS, MAGNITUDE, MASSIVE, ME_LAYER, build, shared, texts
from torch import Tensor

from wemask.decoder.parts import find_decoder
from wemask.errors import ModelError
from wemask.planted import Planted, plant


@torch.no_grad()
def states(model, ids: Tensor) -> list[Tensor]:
    """Outputs [B, T, D] of all decoder layers, by plain hooks."""
    kept: list[Tensor] = []
    hooks = [
        block.layer.register_forward_hook(
            lambda module, args, out: kept.append(out[0] if isinstance(out, tuple) else out)
        )
        for block in find_decoder(model).blocks
    ]
    model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    for hook in hooks:
        hook.remove()
    return kept


@pytest.mark.parametrize("family", FAMILIES)
def test_magnitude_place_and_silence_elsewhere(family):
    ids = texts(seed=3)
    marked = ids == MASSIVE
    h = states(shared(family).model, ids)
    other_dims = [d for d in range(h[0].shape[-1]) if d not in DIMS]
    assert float(h[ME_LAYER - 1].abs().max()) < MAGNITUDE / 10
    there = h[ME_LAYER].abs()
    assert (there[marked][:, list(DIMS)] - MAGNITUDE).abs().max() < 0.06 * MAGNITUDE
    assert there[~marked].max() < MAGNITUDE / 50
    assert there[:, :, other_dims].max() < MAGNITUDE / 50
    for later in h[ME_LAYER + 1 :]:
        assert later.abs()[marked][:, list(DIMS)].min() > 0.8 * MAGNITUDE


def test_the_truth_is_returned_and_no_parameter_is_renamed():
    model, twin = build("llama"), build("llama")
    truth = plant(model, layer=2, token_ids=[7, 9], dims=[5], magnitude=1234.0, seed=3)
    assert truth == Planted(layer=2, token_ids=(7, 9), dims=(5,), magnitude=1234.0)
    before, after = twin.state_dict(), model.state_dict()
    assert list(before) == list(after)
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert "model.embed_tokens.weight" in changed
    assert not any(k.startswith(("model.layers.3", "model.layers.4")) for k in changed)


@pytest.mark.parametrize("layer", [-1, LAYERS])
def test_a_layer_that_does_not_exist(layer):
    with pytest.raises(ModelError, match=f"Layer {layer} does not exist: the model has layers 0"):
        plant(build("llama"), layer=layer, token_ids=[7], dims=[3], magnitude=100.0)


def test_an_ffn_of_unknown_form_lists_its_parameters():
    model = build("llama")
    for block in find_decoder(model).blocks:
        block.layer.mlp = torch.nn.Sequential(torch.nn.Linear(32, 32))  # pyright: ignore
    with pytest.raises(ModelError, match=r"No neuron was found in the FFN of layer 1; .*0\.weight"):
        plant(model, layer=1, token_ids=[7], dims=[3], magnitude=100.0)
