"""The glance at a decode step, and what it must not miss."""

from typing import Any

import pytest
import torch
from families import MASSIVE, logits, planted, sequence, settings
from torch import Tensor

import wemask
from wemask.decoder.parts import find_decoder
from wemask.operator import layers


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The residuals in which massive tokens were sought."""
    seen: list[Tensor] = []
    find = layers.massive_tokens

    def counted(residual: Tensor, *args: Any) -> Tensor:
        seen.append(residual)
        return find(residual, *args)

    monkeypatch.setattr(layers, "massive_tokens", counted)
    return seen


@torch.no_grad()
def decode(model: Any, ids: Tensor, token: Tensor) -> Tensor:
    cache = model(input_ids=ids, use_cache=True).past_key_values
    return model(input_ids=token, past_key_values=cache, use_cache=True).logits


@pytest.mark.parametrize("last", [9, MASSIVE])
def test_an_ordinary_decode_step_is_not_searched_and_a_massive_one_is(searches, last):
    case, ids, token = planted("llama"), sequence(6), torch.tensor([[last]])
    with wemask.soften(case.model, case.report, settings()) as handle:
        searches.clear()
        out = decode(case.model, ids, token)
        steps = [residual for residual in searches if residual.shape[1] == 1]
        assert len(steps) == (len(handle.layers) if last == MASSIVE else 0)
        full = logits(case.model, torch.cat([ids, token], 1))[:, -1:]
        assert torch.allclose(out, full, atol=1e-5 * float(full.abs().max()))


def test_one_massive_row_of_a_batch_is_seen(searches):
    case, ids = planted("llama"), torch.cat([sequence(6, 1), sequence(6, 2)])
    token = torch.tensor([[9], [MASSIVE]])
    with wemask.soften(case.model, case.report, settings()):
        out = decode(case.model, ids, token)
        full = logits(case.model, torch.cat([ids, token], 1))[:, -1:]
        assert torch.allclose(out, full, atol=1e-5 * float(full.abs().max()))


def test_a_broken_row_does_not_hide_a_massive_one(searches):
    case = planted("llama")
    with wemask.soften(case.model, case.report, settings()) as handle, torch.no_grad():
        softening = handle.softenings()[0]
        blocks = find_decoder(case.model).blocks
        residual = torch.zeros(2, 1, 32)
        residual[0] = float("nan")
        residual[1, 0, case.report.dims] = 5000.0
        searches.clear()
        assert not softening.now.glance(residual)
        softening.open(blocks[softening.index].layer, residual, lambda name: None)
        out = softening(torch.ones(2, 1, 32))
        assert len(searches) == 1
        assert (out[1] == 0).sum() == len(handle.dims[softening.index] or [])


def test_a_step_that_is_differentiated_is_always_searched(searches):
    case = planted("llama")
    with wemask.soften(case.model, case.report, settings()) as handle:
        searches.clear()
        case.model(input_ids=torch.tensor([[9]]), use_cache=False)
        assert len(searches) == len(handle.layers)
