"""Training under bfloat16 autocast: same tokens, same dtypes, gradients close to float32."""

from statistics import fmean
from typing import Any

import pytest
import torch
from families import logits, planted, settings
from patch_support import collected, gradients, language_loss, same
from torch import Tensor, nn
from training_oracle import SITES, batch, expected, soften

import wemask
from wemask.operator.handle import observe

FAMILIES = ["llama", "phi", "gemma2", "olmo2"]


def autocast() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def autocast_gradients(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """As a trainer does: forward under autocast, backward outside."""
    model.zero_grad()
    with autocast():
        out = model(input_ids=ids, use_cache=False).logits
        loss = language_loss(out.float(), ids)
    loss.backward()
    return collected(model)


def cosines(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[float]:
    assert a.keys() == b.keys()
    return [float(torch.cosine_similarity(a[n].flatten(), b[n].flatten(), 0)) for n in b]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_are_those_of_float32(family, site):
    case, ids = planted(family), batch()
    with wemask.soften(case.model, case.report, settings(site=site)) as handle:
        wanted = {i: o.tokens for i, o in observe(handle, case.model, ids).items()}
        with autocast():
            seen = {i: o.tokens for i, o in observe(handle, case.model, ids).items()}
    assert seen == wanted == dict.fromkeys(handle.layers, 3)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_strength_zero_is_the_unpatched_model_bit_for_bit(family, site):
    case, ids = planted(family), batch()
    with autocast():
        before = logits(case.model, ids)
    grads = autocast_gradients(case.model, ids)
    with wemask.soften(case.model, case.report, settings(site=site, strength=0.0)):
        with autocast():
            assert torch.equal(logits(case.model, ids), before)
        again = autocast_gradients(case.model, ids)
    # a copy of the residual is one more branch, whose gradient is added in another order
    assert same(again, grads) if site == "attention_input" else min(cosines(again, grads)) > 0.999


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ["llama", "phi"])
def test_gradients_are_close_to_the_oracles_in_float32(family, site):
    case, ids = planted(family), batch()
    _, wanted = expected(family, case, ids, 1.0, site)
    off = cosines(gradients(case.model, ids), wanted)
    with soften(case, strength=1.0, site=site):
        on = cosines(autocast_gradients(case.model, ids), wanted)
    assert min(on) > 0.98
    assert fmean(on) > 0.999
    assert fmean(off) < 0.95  # exact gradients without the softening are further away


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_dtype_changes(family, site):
    case = planted(family)
    before = dtypes(case.model)
    with wemask.soften(case.model, case.report, settings(site=site)):
        assert dtypes(case.model) == before
    assert torch.bfloat16 in before.values()


def dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    """The dtype of what every module returns, under autocast, by its name."""
    seen: dict[str, torch.dtype] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                seen[name] = first.dtype

        return hook

    own = [(n, m) for n, m in model.named_modules() if "softening" not in n]
    hooks = [module.register_forward_hook(keep(name)) for name, module in own]
    with autocast():
        logits(model, batch())
    for hook in hooks:
        hook.remove()
    return seen
