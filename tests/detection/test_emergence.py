"""The rule that names the ME Layer, on published numbers of real models and on made-up ones."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wemask import Criterion
from wemask.detection.emergence import erased_at, find_births, growth

PUBLISHED = json.loads(
    (Path(__file__).parents[1] / "support" / "max_activations.json").read_text()
)["checkpoints"]
# What the rule must say of the 27 checkpoints of arXiv 2605.15572.
ME_LAYERS = {
    "Qwen2.5-1.5B": 1,
    "Qwen2.5-1.5B-Instruct": 1,
    "Qwen2.5-7B": 3,
    "Qwen2.5-7B-Instruct": 3,
    "Qwen2.5-32B": 4,
    "Qwen2.5-32B-Instruct": 4,
    "Qwen2.5-VL-3B": 2,
    "Qwen2.5-VL-7B": 3,
    "Qwen2.5-VL-32B": 4,
    "Qwen3-1.7B": 2,
    "Qwen3-8B": 6,
    "Qwen3-32B": 6,
    "Qwen3-30B-A3B": 2,
    "gpt-oss-20b": 6,
    **{f"Ling-mini-{size}T": 1 for size in (5, 10, 15, 20)},
    "gemma-2-27b": 0,
    "gemma-3-4b-it": 0,
    "gemma-3-27b-it": 0,
    **dict.fromkeys(("Qwen3.5-0.8B", "Qwen3.5-9B", "Qwen3.5-27B", "Qwen3.5-35B-A3B")),
    **dict.fromkeys(("gemma-2-9b", "gemma-2b")),
}
GROWN = {"gemma-2-9b", "gemma-2b", "Qwen3.5-27B"}  # to a thousand medians without a jump
EARLIER = {"Qwen3-30B-A3B": (1, 2), "Qwen2.5-VL-7B": (1, 3)}


def published(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = PUBLISHED[name]
    return torch.tensor(numbers["max"])[:, None], torch.tensor(numbers["median"])


def test_there_are_27():
    assert set(PUBLISHED) == set(ME_LAYERS) and len(ME_LAYERS) == 27


@pytest.mark.parametrize("name", sorted(ME_LAYERS))
def test_published_checkpoints(name):
    maxima, medians = published(name)
    births = find_births(maxima, medians, Criterion())
    assert births.me_layer == ME_LAYERS[name]
    assert births.layers == EARLIER.get(name, () if births.me_layer is None else (births.me_layer,))
    if births.me_layer is None:
        assert (growth(maxima, medians, Criterion()) is not None) == (name in GROWN)


def path(*values: float) -> torch.Tensor:
    """Largest |h| of one token, the embedding output first, [L + 1, 1]."""
    return torch.tensor(values)[:, None]


ONES = torch.full((9,), 0.5)


def me_layer(maxima: torch.Tensor, **options) -> int | None:
    return find_births(maxima, ONES[: len(maxima)], Criterion(), **options).me_layer


def test_growth_is_no_birth_and_a_small_first_one_is_not_the_me_layer():
    assert me_layer(path(1, 5, 24, 110, 540, 2600, 9000)) is None  # 4.9 times a layer at most
    assert me_layer(path(1, 600, 600, 24000, 24000, 24000, 9000)) == 2
    assert me_layer(path(1, 3000, 5000, 9000, 30000, 80000, 100000)) == 0  # it grows to the plateau
    births = find_births(path(1, 600, 600, 24000, 24000, 20000), ONES[:6], Criterion())
    assert births.layers == (0, 2) and births.plateau == 600  # lower median of layers 0 to 3


def test_what_acts_on_nothing_or_does_not_persist_is_no_birth():
    assert me_layer(path(1, 1, 1, 9000)) is None  # the last layer
    assert me_layer(path(1, 9000, 1, 1)) is None
    assert me_layer(path(1, 9000, 9000, 9000), allowed=torch.tensor([False, True, True])) is None


def test_each_token_is_followed_on_its_own():
    maxima = torch.tensor(
        [[1.0, 1, 1], [600, 1, 1], [600, 20000, 1], [600, 20000, 2000], [1, 1, 1]]
    )
    maxima = torch.cat([maxima, torch.tensor([[600.0, 20000, 2000]])])
    maxima[4] = maxima[3]
    births = find_births(maxima, ONES[:6], Criterion())
    assert births.layers == (0, 1, 2) and births.me_layer == 1
    assert births.born.nonzero().tolist() == [[0, 0], [1, 1], [2, 2]]


@given(
    scale=st.floats(1.0, 1e4),
    layer=st.integers(0, 4),
    rise=st.lists(st.floats(1.0, 4.5), min_size=7, max_size=7),
)
def test_a_jump_names_its_layer_at_any_scale_and_growth(scale, layer, rise):
    values = [1.0]
    for i, factor in enumerate(rise):
        values.append(1.0 if i < layer else 2000 * scale if i == layer else values[-1] * factor)
    assert me_layer(path(*values)) == layer


def test_erased():
    values = torch.tensor([[1.0, 1], [900, 500], [900, 500], [800, 100], [200, 100]])
    assert erased_at(values, 0) == 2  # half of the tokens: one of two, at layer 2
    assert erased_at(values[:, :1], 0) == 3
    assert erased_at(values[:3], 0) is None
