"""The controls: their presets, what they touch, and how they are saved."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import (
    CRITERION,
    DIMS,
    MASSIVE,
    ME_LAYER,
    Case,
    close,
    logits,
    planted,
    sequence,
    shared,
    texts,
)
from oracle import ORACLES
from oracle import soften as masked
from patch_support import language_loss
from torch import Tensor, nn

import wemask
from wemask import WeMaskConfig
from wemask.decoder.parts import find_decoder
from wemask.detection.tracing import trace_layers
from wemask.errors import ModelError, PatchError
from wemask.operator.handle import observe
from wemask.settings.composition import compose, section

PRESETS = {
    "random_dims": {"dims": "random"},
    "lowest_dims": {"dims": "lowest"},
    "uniform": {"dims": "uniform"},
    "wrong_layers": {"layers": "before_me", "tokens": "first"},
    "wrong_token": {"tokens": "wrong"},
    "set_zero": {"layers": "next", "dims": "massive", "site": "residual_stream"},
}
PRESETS["set_mean"] = {**PRESETS["set_zero"], "fill": "mean"}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_differs_from_the_papers_in_what_it_controls_for(name):
    def read(*overrides: str) -> WeMaskConfig:
        return WeMaskConfig.from_dict(section(compose("train", overrides), "operator"))

    assert read(f"operator={name}") == replace(read("operator=paper"), **PRESETS[name])
    assert read(f"operator={name}", "operator.rate=0.5", "operator.seed=3").rate == 0.5


# --- in a model: what is touched, and nothing else ----------------------------------------------


def two_rows() -> Tensor:
    ids = torch.cat([sequence(10, 1, massive_at=0), sequence(10, 2, massive_at=3)])
    ids[1, 8] = MASSIVE
    return ids


def uniformly(x: Tensor, tokens: Tensor, dims: Sequence[int], strength: Tensor) -> Tensor:
    """The oracle's x'' of dims=uniform."""
    kept = masked(x, tokens, dims, strength).pow(2).sum(-1) / x.pow(2).sum(-1)
    return torch.where(tokens.unsqueeze(-1), x * kept.sqrt().unsqueeze(-1), x)


def towards(
    values: Sequence[float], x: Tensor, tokens: Tensor, dims: Sequence[int], strength: Tensor
) -> Tensor:
    """The oracle's x' of fill=mean."""
    m = torch.zeros_like(x)
    m[..., list(dims)] = strength
    v = torch.zeros_like(x)
    v[..., list(dims)] = torch.tensor(values, dtype=x.dtype)
    return torch.where(tokens.unsqueeze(-1), x * (1 - m) + m * v, x)


CASES: dict[str, dict[str, Any]] = {
    "uniform": {"dims": "uniform"},
    "wrong": {"tokens": "wrong", "seed": 4, "dims": "me_norm"},
    "set_zero": {"site": "residual_stream", "dims": "massive", "layers": "next"},
    "set_zero_first": {"site": "residual_stream", "dims": "massive", "tokens": "first"},
    "set_mean": {"site": "residual_stream", "dims": "random", "fill": "mean"},
    "mean_input": {"dims": "random", "fill": "mean"},
    "mean_copy": {"site": "residual_copy", "dims": "massive", "fill": "mean"},
}


def touched(ids: Tensor, config: WeMaskConfig) -> Tensor:
    if config.tokens == "massive":
        return ids == MASSIVE
    at = torch.arange(ids.shape[1]) == config.position
    return at & (ids != MASSIVE) if config.tokens == "wrong" else at.expand(ids.shape)


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("family", ORACLES)
@pytest.mark.parametrize("name", CASES)
def test_a_control_equals_an_independent_oracle_in_logits_and_gradients(name, family, strength):
    case, ids = planted(family), two_rows()
    config = WeMaskConfig(rate=0.2, strength=strength, **CASES[name])
    plain = copy.deepcopy(case.model)
    with wemask.soften(case.model, case.report, config) as handle:
        out: Tensor = case.model(input_ids=ids, use_cache=False).logits
        language_loss(out, ids).backward()
        dims, fill = handle.dims, handle.fill
    assert (fill != {}) == (config.fill == "mean")
    want = ids_oracle(plain, family, ids, config, dims, fill)
    language_loss(want, ids).backward()
    assert close(out.detach(), want.detach(), 2e-5)
    other = dict(plain.named_parameters())
    for key, parameter in case.model.named_parameters():
        wanted = other[key].grad
        assert parameter.grad is not None and wanted is not None
        assert close(parameter.grad, wanted, 5e-4), key


def ids_oracle(
    model: Any, family: str, ids: Tensor, config: WeMaskConfig, dims: Any, fill: Any
) -> Tensor:
    """The oracle of a control; `fill` values differ by layer, which the equation finds by dims."""
    softened = {i: (touched(ids, config), (i, *d)) for i, d in dims.items()}

    def equation(x: Tensor, tokens: Tensor, layer_dims: Sequence[int], s: Tensor) -> Tensor:
        layer, *chosen = layer_dims
        if config.site == "residual_stream" and config.tokens == "massive":
            # by content, as the operator looks: after set-zero there may be none left
            tokens = tokens & (x[..., list(DIMS)].abs() > 1000).any(-1)
        if config.fill == "mean":
            return towards(fill[layer], x, tokens, chosen, s)
        return (uniformly if config.dims == "uniform" else masked)(x, tokens, chosen, s)

    return ORACLES[family](model, ids, softened, config.final_strength, config.site, equation)


def test_the_wrong_token_is_one_ordinary_token_of_each_document():
    case = shared()
    config = WeMaskConfig(tokens="wrong", seed=4, rate=0.25)
    with wemask.soften(case.model, case.report, config) as handle:
        assert handle.tokens_touched == {2: 1, 3: 1, 4: 1}
        ids = torch.cat([sequence(8, 1), sequence(8, 2, massive_at=5)])  # row 1: massive there
        assert {o.tokens for o in observe(handle, case.model, ids).values()} == {1}
        short = observe(handle, case.model, sequence(5))
        assert {o.tokens for o in short.values()} == {0}
        positions = torch.cat([torch.arange(n) for n in (6, 2, 8)]).unsqueeze(0)
        packed = observe(handle, case.model, sequence(16), position_ids=positions)
        assert {o.tokens for o in packed.values()} == {2}


def test_a_wrong_token_that_the_probe_lacks_says_which_seed_there_is():
    case = shared()
    length = len(case.report.probe_ids)
    for seed in (length - 1, 2**63 - 1):
        with pytest.raises(PatchError, match=rf"has {length} tokens\. Type operator\.seed=10 or"):
            wemask.soften(case.model, case.report, WeMaskConfig(tokens="wrong", seed=seed))
    probe = sequence(12, massive_at=4)[0].tolist()
    report = replace(case.report, probe_ids=probe)
    with pytest.raises(PatchError, match=r"That at place 4 is massive\. Type another operator\.se"):
        wemask.soften(case.model, report, WeMaskConfig(tokens="wrong", seed=3))
    assert length == 12


def massive_layers(model: nn.Module) -> list[int]:
    """Layers in whose output some value is massive on the calibration texts."""
    ids = texts()
    traces = trace_layers(model, find_decoder(model), ids, torch.ones_like(ids), CRITERION)
    return [t.layer for t in traces if CRITERION.is_massive(t.token_max, t.median).any()]


def test_set_zero_removes_the_massive_activation_from_later_layers():
    case, ids = shared(), sequence()
    config = WeMaskConfig(**CASES["set_zero"])
    with wemask.soften(case.model, case.report, config) as handle:
        assert handle.dims == {ME_LAYER + 1: case.report.dims}
        assert massive_layers(case.model) == [ME_LAYER]
        off = logits(case.model, ids)
    assert massive_layers(case.model) == [1, 2, 3, 4]
    with wemask.soften(case.model, case.report, replace(config, layers="after_me")) as handle:
        assert handle.tokens_touched == {2: 1, 3: 0, 4: 0}  # later layers find none
        assert torch.equal(logits(case.model, ids), off)


def constant(case: Case) -> wemask.MELayerReport:
    """The report with a probe whose massive token is the first: it sees only itself."""
    return replace(case.report, probe_ids=sequence(12, 5)[0].tolist())


def test_set_mean_changes_nothing_where_the_massive_value_is_constant():
    case, ids = shared(), sequence(14, 3)
    before = logits(case.model, ids)
    with wemask.soften(case.model, constant(case), WeMaskConfig(**CASES["set_zero"])):
        assert not close(logits(case.model, ids), before, 1e-2)
    config = WeMaskConfig(**{**CASES["set_zero"], "fill": "mean"})
    with wemask.soften(case.model, constant(case), config) as handle:
        assert close(logits(case.model, ids), before, 1e-5)
        (values,) = handle.fill.values()
        assert [abs(v) for v in values] == pytest.approx(case.report.magnitudes, rel=0.2)


# --- saved and exported -------------------------------------------------------------------------


def saved(folder: Path, name: str, family: str = "llama") -> tuple[Any, Tensor]:
    """A model with a control whose weights moved after it was put in, saved."""
    case = planted(family)
    config = WeMaskConfig(rate=0.25, **CASES[name])
    wemask.soften(case.model, case.report, config)
    with torch.no_grad():
        embeddings: Any = case.model.get_input_embeddings()
        embeddings.weight.mul_(1.1)
    wemask.save(case.model, None, folder)
    return case.model, logits(case.model, sequence())


@pytest.mark.parametrize("family", ORACLES)
@pytest.mark.parametrize("name", CASES)
def test_a_control_comes_back_with_the_values_that_were_saved(name, family, tmp_path):
    model, on = saved(tmp_path, name, family)
    loaded: Any = wemask.load(tmp_path)[0]
    assert torch.equal(logits(loaded, sequence()), on)
    handle, original = loaded.wemask_handle, model.wemask_handle
    assert (handle.config, handle.dims) == (original.config, original.dims)
    assert handle.fill == original.fill


DAMAGE: list[tuple[Any, str]] = [
    ({}, "fill=mean, but fill values of 0 layers"),
    ({"2": ["x"]}, "fill of layer 2 must be a list of numbers"),
    ({"2": [1.0]}, "fill must give a value for each softened dim"),
]


@pytest.mark.parametrize(("fill", "message"), DAMAGE)
def test_damaged_values_are_refused(fill, message, tmp_path):
    from checkpoint_support import change

    saved(tmp_path, "set_mean")
    change("fill", fill)(tmp_path)
    kind: Callable[..., Any] = PatchError if "each softened" in message else ModelError
    with pytest.raises(kind, match=message):  # pyright: ignore
        wemask.load(tmp_path)


def test_another_process_without_wemask_computes_the_same_bits(tmp_path):
    from export_support import check, expected, without_wemask

    names = ("set_mean", "uniform", "wrong")
    wanted = {}
    for name in names:
        model, _ = saved(tmp_path / f"{name}-saved", name)
        wemask.export(tmp_path / f"{name}-saved", tmp_path / name)
        wanted[name] = expected(model)
        assert "make it a control" in (tmp_path / name / "README.md").read_text()
    found, _ = without_wemask(*(tmp_path / name for name in names))
    for name in names:
        check(found, name, wanted[name])
