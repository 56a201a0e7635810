"""The same tests for every architecture: exact detection, and the operator's contract."""

from typing import Any

import pytest
import torch
from architecture_contract import (
    LINES,
    SEEDS,
    TOLERANCE,
    checkpointed,
    detection_errors,
    difference,
    identical,
    softened,
    unclean_errors,
)
from architecture_page import PAGE, columns
from families import (
    FAMILIES,
    HIDDEN_MASKS,
    NO_PACKING,
    NORMLESS,
    POST_NORM,
    build,
    logits,
    planted,
    sequence,
    settings,
    shared,
)
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from patch_support import batched_logits, cached_logits, padded
from transformers import __version__

import wemask
from wemask import WeMaskConfig
from wemask.errors import ModelError, PatchError
from wemask.operator.handle import observe


def every_seed(quick: tuple[int, ...]) -> list[Any]:
    """All seeds, those that are not `quick` marked slow."""
    return [s if s in quick else pytest.param(s, marks=pytest.mark.slow) for s in SEEDS]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", every_seed(quick=(0, 1, 2)))  # one of each kind of tokens
def test_detection_is_exact_and_none_on_the_twin(family, seed):
    assert detection_errors(family, seed) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", every_seed(quick=(1,)))
def test_detection_is_exact_in_bfloat16(family, seed):
    assert detection_errors(family, seed, torch.bfloat16) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("seed", every_seed(quick=(4,)))  # a faint primary token among them
def test_layers_and_tokens_are_exact_in_models_as_unclean_as_real_ones(family, seed, dtype):
    assert unclean_errors(family, seed, dtype) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_off_or_removed_is_the_model_bit_for_bit_and_on_fires(family):
    assert identical(shared(family))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("line", LINES)
def test_massive_tokens_in_every_way_to_run_the_model(family, line):
    case = shared(family)
    if line == "packing" and family in NO_PACKING:
        assert LINES[line](case.model) > 0.1  # the model's own doing: else it belongs to the others
        return
    with softened(case) as model:
        assert LINES[line](model) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_first_tokens_in_every_way_to_run_the_model(family):
    case = shared(family)
    rows = [sequence(8, 1), sequence(5, 2, massive_at=2)]
    if family in HIDDEN_MASKS:
        with pytest.raises(PatchError, match="marks what is hidden, not what is visible"):
            wemask.soften(case.model, case.report, settings(tokens="first"))
        return
    with wemask.soften(case.model, case.report, settings(tokens="first")) as handle:
        ids, mask, positions = padded(rows, left=True)
        seen = observe(handle, case.model, ids, attention_mask=mask, position_ids=positions)
        assert all(o.tokens == 2 for o in seen.values())
        for line, measure in LINES.items():
            if line != "packing" or family not in NO_PACKING:
                assert measure(case.model) <= TOLERANCE, line


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("line", LINES)
def test_in_float64_where_nothing_hides_behind_rounding(family, line):
    if line == "packing" and family in NO_PACKING:
        pytest.skip("the model itself mixes packed documents")
    case = planted(family)
    case.model.double()
    case.model.set_experts_implementation("eager")  # grouped_mm knows no float64
    # Norms stay in float32, and all of Qwen3-Next's delta rule.
    limit = TOLERANCE if family == "qwen3_next" else 1e-6
    with softened(case) as model:
        assert LINES[line](model) <= limit


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_gradients_are_equal(family, reentrant):
    assert checkpointed(family, reentrant=reentrant)


CHOICES = st.fixed_dictionaries(
    {
        "rate": st.sampled_from([0.001, 0.1, 0.25, 0.5, 1.0]),
        "dims": st.sampled_from(
            ["me_norm", "attn_norm", "activation", "massive", "random", "lowest"]
        ),
        "site": st.sampled_from(["attention_input", "residual_copy"]),
        "layers": st.sampled_from(["after_me", "next", (2, 4), (3,)]),
        "strength": st.sampled_from([0.3, 1.0]),
    }
)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@hypothesis_settings(max_examples=20)
@given(choices=CHOICES, seed=st.integers(0, 999), left=st.booleans())
def test_contract_over_all_choices(family, choices, seed, left):
    case = shared(family)
    if choices["dims"] in ("me_norm", "attn_norm", "lowest") and family in NORMLESS + POST_NORM:
        with pytest.raises(ModelError, match="no norm weight"):
            wemask.soften(case.model, case.report, WeMaskConfig(**choices))
        return
    rows = [sequence(9, seed, massive_at=seed % 9), sequence(5, seed + 1)]

    def batched_or_cached() -> float:
        alone = [logits(case.model, row)[0] for row in rows]
        batch = batched_logits(case.model, rows, left=left)
        cached = cached_logits(case.model, rows[0], [1 + seed % 5])[0]
        pairs = [*zip(batch, alone, strict=True), (cached, alone[0])]
        return max(difference(out, one) for out, one in pairs)

    rounding = batched_or_cached()  # OPT's own reaches 1e-5 at some seeds
    with softened(case, **choices):
        assert batched_or_cached() <= max(TOLERANCE, 2 * rounding)


def test_the_page_is_of_these_families_and_this_transformers():
    text = PAGE.read_text()
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    expected = [[f"`{family}`", *columns(build(family))] for family in FAMILIES]
    assert [row[:4] for row in lines] == expected, "run `make architectures`"
    assert f"transformers {__version__}," in text, "run `make architectures`"
    for row in lines:
        assert row[4:8] == ["20/20 · 20/20", "20/20 · 20/20", "0/20 · 0/20", "yes"]
        assert all(x == "model mixes" or float(x) <= TOLERANCE for x in row[8:11])
        assert row[-1] == "yes"
