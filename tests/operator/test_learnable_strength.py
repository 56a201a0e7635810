"""A learnable strength: one number per softened layer, whose gradient is that of the equation."""

from typing import Any

import pytest
import torch
from families import close, logits, planted, sequence
from oracle import ORACLES
from patch_support import collected, distance, gradients, language_loss, same, unpatched
from peft import LoraConfig, get_peft_model
from torch import Tensor
from training_oracle import GIVEN, SITES, batch, soften, truth

import wemask
from wemask import WeMaskConfig
from wemask.operator.settings import LearnableStrength

MILD = LearnableStrength(initial=0.6, scale=3.0)
KEYS = {f"model.layers.{i}.self_attn.softening.theta" for i in GIVEN}
LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": False}


def thetas(model: Any) -> dict[str, Tensor]:
    return {n: p for n, p in model.named_parameters() if n.endswith("softening.theta")}


def oracle_gradients(
    family: str, model: Any, ids: Tensor, site: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients of theta [L] and of the model's own parameters, by autograd through the oracle."""
    dtype = next(model.parameters()).dtype
    theta = torch.full((5,), MILD.theta(), dtype=dtype, requires_grad=True)
    out = ORACLES[family](model, ids, truth(ids), torch.sigmoid(MILD.scale * theta), site)
    language_loss(out, ids).backward()
    assert theta.grad is not None
    own = collected(model)
    model.zero_grad()
    return theta.grad, own


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ORACLES)
def test_gradients_of_theta_and_of_all_else_equal_the_oracles(family, site, dtype):
    case, ids = planted(family), batch()
    case.model.to(dtype)
    wanted, own = oracle_gradients(family, case.model, ids, site)
    with soften(case, strength=MILD, site=site):
        case.model.to(dtype)
        grads = gradients(case.model, ids)
        mine = torch.cat([grads.pop(name) for name in thetas(case.model)])
    # llama's own norms compute in float32, phi's in the dtype of the model
    tolerance = 1e-8 if dtype == torch.float64 and family == "phi" else 2e-4
    assert distance(grads, own) < tolerance
    assert distance({"theta": mine}, {"theta": wanted[2:]}) < tolerance
    assert not wanted[:2].any() and wanted[2:].abs().min() > 0


def test_the_gradient_of_theta_is_the_slope_of_the_loss():
    case, ids, step = planted("phi"), batch(), 1e-5
    with soften(case, strength=MILD):
        model: Any = case.model.double()
        grads = gradients(model, ids)
        for name, theta in thetas(model).items():
            losses = []
            for shift in (step, -2 * step):
                theta.data += shift
                losses.append(float(language_loss(logits64(model, ids), ids)))
            theta.data += step
            slope = (losses[0] - losses[1]) / (2 * step)
            assert float(grads[name]) == pytest.approx(slope, rel=1e-5)


@torch.no_grad()
def logits64(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def test_it_begins_as_the_fixed_strength_of_its_initial_value():
    case, ids = planted("llama"), batch()
    with soften(case, strength=0.6):
        fixed = logits(case.model, ids)
    with soften(case, strength=MILD) as handle:
        assert close(logits(case.model, ids), fixed, 1e-6)
        assert handle.strength == pytest.approx(0.6, abs=1e-6)
        assert set(thetas(case.model)) == KEYS
        assert all(theta.shape == (1,) for theta in thetas(case.model).values())


def test_it_is_not_in_the_state_dict_and_leaves_with_the_softening():
    case, ids = planted("llama"), batch()
    before, keys = logits(case.model, ids), list(case.model.state_dict())
    handle = soften(case, strength=MILD)
    assert list(case.model.state_dict()) == keys
    assert not case.model.load_state_dict(case.model.state_dict()).missing_keys
    handle.remove()
    assert unpatched(case.model) and not thetas(case.model)
    assert torch.equal(logits(case.model, ids), before)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("site", SITES)
def test_checkpointing_changes_no_gradient(site, reentrant):
    case, ids = planted("llama"), batch()
    with soften(case, strength=MILD, site=site):
        plain = gradients(case.model.train(), ids)
        case.model.enable_input_require_grads()
        case.model.activation_checkpointing_enable({"use_reentrant": reentrant})
        recomputed = gradients(case.model, ids)
    assert plain.keys() >= KEYS
    assert distance(recomputed, plain) < 1e-6


def test_a_step_without_a_massive_token_gives_a_gradient_of_zero():
    case = planted("llama")
    with soften(case, strength=MILD):
        grads = gradients(case.model, sequence(8, 3).clamp(min=8))
    assert all(torch.equal(grads[name], torch.zeros(1)) for name in KEYS)


def test_it_can_be_trained_while_the_model_is_frozen():
    case, ids = planted("llama"), batch()
    with soften(case, strength=MILD) as handle:
        wanted = {n: g for n, g in gradients(case.model, ids).items() if n in KEYS}
        for name, parameter in case.model.named_parameters():
            parameter.requires_grad_(name in KEYS)
        assert same(gradients(case.model, ids), wanted)
        optimizer = torch.optim.SGD([*thetas(case.model).values()], lr=0.05)
        losses = []
        for _ in range(5):
            gradients(case.model, ids)
            optimizer.step()
            losses.append(float(language_loss(logits(case.model, ids), ids)))
        assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1]
        assert len({round(s, 6) for s in handle.strengths.values()}) == 3


@pytest.mark.parametrize("first", [True, False], ids=["adapter first", "softened first"])
def test_its_gradient_beside_an_adapter_is_the_oracles(first):
    ids, config = batch(), WeMaskConfig(strength=MILD)
    bare, case = planted("llama").model, planted("llama")
    torch.manual_seed(1)
    bare = get_peft_model(bare, LoraConfig(**LORA))  # pyright: ignore[reportArgumentType]
    wanted, own = oracle_gradients("llama", bare.get_base_model(), ids, "attention_input")
    torch.manual_seed(1)
    model: Any = get_peft_model(case.model, LoraConfig(**LORA)) if first else case.model
    handle = wemask.soften(model, case.report, config, dims=GIVEN)
    if not first:
        model = get_peft_model(case.model, LoraConfig(**LORA))
    for softening in handle.softenings():  # PEFT freezes all that is not its own
        assert softening.theta is not None
        softening.theta.requires_grad_(True)
    grads = gradients(model, ids)
    mine = torch.cat([grads.pop(name) for name in thetas(model)])
    assert distance({"theta": mine}, {"theta": wanted[2:]}) < 2e-4
    assert distance({n.split(".", 2)[2]: g for n, g in grads.items()}, own) < 2e-4
