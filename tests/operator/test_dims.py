"""Which dims a softened layer masks, and what they go towards."""

from dataclasses import replace

import pytest
import torch
from families import (
    DIMS,
    NORMLESS,
    settings,
    shared,
)
from patch_support import unpatched

import wemask
from wemask.decoder.parts import find_decoder
from wemask.errors import ModelError, PatchError
from wemask.operator.dims import choose_dims, choose_fill, random_dims
from wemask.operator.layers import Observation


@pytest.mark.parametrize("family", NORMLESS)
@pytest.mark.parametrize("dims", ["me_norm", "attn_norm", "lowest"])
def test_norms_without_weight_say_so(family, dims):
    case = shared(family)
    with pytest.raises(ModelError, match=r"has no norm weight.*operator\.dims=massive"):
        wemask.soften(case.model, case.report, settings(dims=dims))
    assert unpatched(case.model)


def seen(**totals: list[float]) -> dict[int, Observation]:
    """What layers saw of one token each, by the name `layer_2`."""
    found = {}
    for name, x in totals.items():
        one = found[int(name[-1])] = Observation()
        values = torch.tensor([[x]])
        one.add(values, values, torch.ones(1, 1, dtype=torch.bool))
    return found


def test_random_dims_are_different_dims_of_a_seed():
    drawn = [random_dims(32, 5, seed) for seed in range(200)]
    assert all(len(set(dims)) == 5 and set(dims) <= set(range(32)) for dims in drawn)
    assert {dim for dims in drawn for dim in dims} == set(range(32))  # the massive ones too
    assert random_dims(32, 5, 7) == drawn[7]


def test_observed_dims_are_those_of_the_largest_values_in_each_layer():
    decoder, report = find_decoder(shared().model), shared().report
    config = settings(dims="activation", rate=2 / 32)
    totals = {i: [0.0] * 32 for i in (2, 3)}
    totals[2][5], totals[2][9], totals[2][1] = -7.0, 3.0, 2.0
    observed = seen(layer_2=totals[2], layer_3=totals[3])
    dims = choose_dims(config, report, (2, 3), decoder, lambda: observed)
    assert dims == {2: [5, 9], 3: []}  # all zero where the massive activation is erased


def test_massive_dims_are_those_of_the_layers_own_gate():
    case = shared()
    gates = {**case.report.gates, 3: replace(case.report.gates[3], dims=[11])}
    report = replace(case.report, gates=gates)
    decoder = find_decoder(case.model)
    dims = choose_dims(settings(dims="massive"), report, (2, 3, 4), decoder, seen)
    assert dims[3] == [11] and set(dims[2] or []) == set(DIMS)
    anew = settings(dims="batch_activation")
    assert choose_dims(anew, report, (2, 3), decoder, seen) == {2: None, 3: None}


def test_the_fill_is_the_mean_of_what_was_seen():
    observed = seen(layer_2=[4.0, -2.0, 8.0])
    other = torch.tensor([[[2.0, 0.0, 0.0]]])
    observed[2].tokens += 1
    assert observed[2].total is not None
    observed[2].total += other[0, 0]
    config = settings(fill="mean", dims="massive")
    assert choose_fill(config, {2: [0, 2]}, lambda: observed) == {2: [3.0, 4.0]}
    assert choose_fill(settings(), {2: [0, 2]}, lambda: observed) == {}
    with pytest.raises(PatchError, match=r"nothing to take the mean of in layer 3: .*layers=next"):
        choose_fill(config, {3: [0]}, lambda: {3: Observation()})
