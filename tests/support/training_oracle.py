"""What training with the operator on must give, by the oracle: logits and gradients."""

import copy
from typing import Any

import torch
from families import MASSIVE, Case, sequence
from oracle import ORACLES, Softened
from patch_support import collected, language_loss, unpatched
from torch import Tensor

import wemask
from wemask import WeMaskConfig

SITES = ("attention_input", "residual_copy")


DIMS = [3, 17, 5, 8, 30]  # the massive ones and some that are not


GIVEN = {2: DIMS, 3: DIMS, 4: DIMS}


TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-10}  # of gradients; logits are a tenth of it


def batch() -> Tensor:
    ids = torch.cat([sequence(10, 1), sequence(10, 2, massive_at=4)])
    ids[1, 8] = MASSIVE
    return ids


def truth(ids: Tensor) -> Softened:
    return {layer: (ids == MASSIVE, dims) for layer, dims in GIVEN.items()}


def expected(
    family: str, case: Case, ids: Tensor, strength: float, site: str = "attention_input"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients of the oracle, on a copy without softening."""
    model = copy.deepcopy(case.model)
    if not unpatched(model):
        model.wemask_handle.remove()  # pyright: ignore
    model.zero_grad()
    out = ORACLES[family](model, ids, truth(ids), strength, site)
    language_loss(out, ids).backward()
    return out.detach(), collected(model)


def soften(case: Case, **changes: Any) -> wemask.SoftenHandle:
    return wemask.soften(case.model, case.report, WeMaskConfig(**changes), dims=GIVEN)
