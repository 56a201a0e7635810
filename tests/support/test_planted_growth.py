"""Unclean models are what they say, in every architecture, on texts that did not fit them."""

from typing import Any

import pytest
import torch
from architecture_contract import SEEDS, layer_outputs
from families import FAMILIES, build
from planted.growth import Course, plant_courses
from torch import Tensor
from unclean_trials import LAYERS, NEWLINE, TURN, Unclean, planted_unclean, unclean

from wemask.decoder.parts import find_decoder
from wemask.errors import ModelError


def every_family_and_seed() -> list[Any]:
    """One seed of each family; the others are slow."""
    slow = pytest.mark.slow
    return [
        pytest.param(family, seed, marks=() if seed == n % len(SEEDS) else slow)
        for n, family in enumerate(FAMILIES)
        for seed in SEEDS
    ]


def sizes(h: Tensor, ids: Tensor, token: int) -> Tensor:
    """Largest |h| of each place where a token stands."""
    return h[ids == token].abs().amax(-1)


def check(drawn: Unclean, h: list[Tensor], within: float) -> None:
    ids = drawn.others
    for layer in range(LAYERS):
        massive = torch.isin(ids, torch.tensor(sorted(drawn.massive(layer))))
        largest = float(h[layer][~massive].abs().max())
        for course in drawn.courses:
            size = sizes(h[layer], ids, course.token_id)
            if layer == course.born and not (drawn.faint and course.born == drawn.layer):
                assert size.min() > max(100, 1000 * float(h[layer].abs().median()))  # sun2024
            if layer < course.born:
                assert size.max() < 0.2 * course.size(course.born)  # born by a jump
                continue
            assert (size / course.size(layer) - 1).abs().max() < within
            assert size.min() > 5 * largest  # ordinary tokens, among them those not born yet
            grown = size / sizes(h[layer - 1], ids, course.token_id)
            if course.born < layer <= drawn.layer + 4:
                assert grown.min() > 1.2 and grown.max() < 2.5


@pytest.mark.parametrize(("family", "seed"), every_family_and_seed())
def test_sizes_growth_and_silence_elsewhere(family, seed):
    drawn, model = unclean(seed), planted_unclean(family, seed)
    assert len(find_decoder(model).blocks) == LAYERS
    with torch.no_grad():
        check(drawn, layer_outputs(model, drawn.others), within=0.1)
        halved: Any = build(family, seed, num_hidden_layers=LAYERS)
        halved.load_state_dict(model.state_dict())
        outputs = layer_outputs(halved.to(torch.bfloat16), drawn.others)
        check(drawn, [h.float() for h in outputs], within=0.15)  # a LayerNorm rounds


def test_what_the_draws_hold():
    drawn = [unclean(seed) for seed in SEEDS]
    for one in drawn:
        sizes = [c.size(one.layer) for c in one.courses if c.born == one.layer]
        assert round(max(sizes) / min(sizes)) == (8 if one.faint else 5)
        late = [c for c in one.courses if c.born > one.layer]
        assert NEWLINE in {c.token_id for c in late}
        assert all(2 <= c.born - one.layer <= 4 for c in late)
        assert all(0.08 < c.size(c.born) / one.courses[0].size(c.born) < 0.16 for c in late)
        assert all((row == NEWLINE).sum() >= 2 for row in one.others[12:])
        states = [one.courses[0].at(layer) for layer in (one.layer, LAYERS - 1)]
        assert len({max(state, key=lambda d: abs(state[d])) for state in states}) == 2
    assert sum(TURN in one.massive(one.layer) for one in drawn) == 7
    assert {one.layer for one in drawn} == {0, 1, 2}
    assert sum(one.faint for one in drawn) == 4


def test_a_course_is_empty_before_birth_and_holds_after_its_last_state():
    course = Course(token_id=7, born=1, states=({3: 5e3}, {3: -9e3, 20: 4.0}))
    assert [course.size(layer) for layer in range(5)] == [0.0, 5e3, 9e3, 9e3, 9e3]
    assert course.at(0) == {}


@pytest.mark.parametrize("layer", [-1, 5])
def test_a_layer_that_does_not_exist(layer):
    course = Course(token_id=7, born=layer, states=({3: 5e3},))
    with pytest.raises(ModelError, match=f"Layer {layer} does not exist: the model has layers 0"):
        plant_courses(build("llama"), [course])
