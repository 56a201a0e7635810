"""Interventions change the chosen tokens at one place, and nothing else."""

from typing import Any

import pytest
import torch
from families import DIMS, FAMILIES, LAYERS, MASSIVE, ME_LAYER, settings, shared, texts
from torch import Tensor

import wemask
from wemask.analyse.interventions import (
    massive,
    ordinary,
    scale_ffn,
    soften_input,
    together,
    write_state,
)
from wemask.decoder.parts import find_decoder
from wemask.decoder.passage import first_output
from wemask.errors import ConfigError, ModelError
from wemask.measure.layer_sums import Batch
from wemask.measure.measurement import Around


def batch(rows: int = 4) -> Batch:
    ids = texts(rows=rows)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    return Batch(input_ids=ids, attention_mask=mask, massive=ids == MASSIVE)


@torch.no_grad()
def states(model: Any, around: Around | None = None) -> list[Tensor]:
    """h[0] ... h[last], each [B, T, D], of one forward."""
    kept: list[Tensor] = []
    one = batch()
    if around is not None:
        context = around(one)
        context.__enter__()
    hooks = [  # after the intervention's own hooks
        block.layer.register_forward_hook(lambda m, a, out: kept.append(first_output(out)))
        for block in find_decoder(model).blocks
    ]
    model(input_ids=one.input_ids, attention_mask=one.attention_mask, use_cache=False)
    for hook in hooks:
        hook.remove()
    if around is not None:
        context.__exit__(None, None, None)
    return kept


def changed(before: list[Tensor], after: list[Tensor], layer: int) -> Tensor:
    """bool [B, T]: tokens whose state at the layer's output is another."""
    return (before[layer] != after[layer]).any(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_massive_tokens_of_one_layer_are_touched(family):
    model = shared(family).model
    decoder, one = find_decoder(model), batch()
    before = states(model)
    real = one.massive & one.attention_mask.bool()
    for site in ("input", "output"):
        after = states(model, scale_ffn(decoder, ME_LAYER, 0.0, site))
        assert not changed(before, after, ME_LAYER - 1).any()
        touched = changed(before, after, ME_LAYER)
        assert torch.equal(touched, real), site
        # without the neuron's write nothing is massive
        assert float(after[ME_LAYER][real].abs().max()) < 0.05 * float(before[ME_LAYER].abs().max())
    same = states(model, scale_ffn(decoder, ME_LAYER, 1.0, "output"))
    assert all(torch.equal(a, b) for a, b in zip(before, same, strict=True))
    # and the model is what it was
    assert all(torch.equal(a, b) for a, b in zip(before, states(model), strict=True))


def test_a_written_state_is_there_and_nothing_else():
    model = shared().model
    before = states(model)
    values = torch.tensor([11.0, -13.0])
    after = states(model, write_state(find_decoder(model), 2, [4, 9], values, ordinary))
    chosen = ordinary(batch())
    assert torch.equal(changed(before, after, 2), chosen)
    assert torch.equal(after[2][chosen][:, [4, 9]], values.expand(int(chosen.sum()), 2))
    rest = [d for d in range(before[2].shape[-1]) if d not in (4, 9)]
    assert torch.equal(after[2][..., rest], before[2][..., rest])
    assert not changed(before, after, 1).any()


def test_a_softened_input_is_the_operators():
    case = shared()
    model, report = case.model, case.report
    layers = range(ME_LAYER + 1, LAYERS)
    by_hook = states(model, soften_input(find_decoder(model), layers, DIMS, 0.6))
    with wemask.soften(model, report, settings(dims="massive", strength=0.6)):
        by_class = states(model)
    real = batch().attention_mask.bool()
    for a, b in zip(by_hook, by_class, strict=True):
        assert torch.equal(a[real], b[real])


def test_several_at_once():
    model = shared().model
    decoder = find_decoder(model)
    one, two = (scale_ffn(decoder, layer, 0.0, "output") for layer in (0, 3))
    before, both = states(model), states(model, together(one, two))
    assert torch.equal(states(model, one)[0], both[0])
    assert changed(before, both, 3).any()


def test_which_tokens():
    one = batch()
    assert torch.equal(massive(one), one.massive)
    chosen = ordinary(one)
    assert chosen.sum(-1).tolist() == [1] * 4
    assert not (chosen & (one.massive | one.first)).any()
    mask = torch.tensor([[0, 0, 1, 1]])
    short = Batch(input_ids=mask, attention_mask=mask, massive=torch.tensor([[0, 0, 0, 1]]).bool())
    assert not ordinary(short).any()  # a first token and a massive one: none is ordinary


def test_errors():
    decoder = find_decoder(shared().model)
    with pytest.raises(ConfigError, match="site is one of input, output; got 'outputs'"):
        scale_ffn(decoder, 0, 0.0, "outputs")
    with pytest.raises(ModelError, match="Layer 9 does not exist"):
        scale_ffn(decoder, 9, 0.0, "output")


def test_hooks_go_also_after_an_error():
    model = shared().model
    around = scale_ffn(find_decoder(model), 1, 0.0, "output")
    with pytest.raises(RuntimeError, match="stop"), around(batch()):
        raise RuntimeError("stop")
    before = states(model)
    assert all(torch.equal(a, b) for a, b in zip(before, states(model), strict=True))
