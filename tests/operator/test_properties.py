"""What must hold for every choice of settings, drawn at random: batches, caches, packings."""

from typing import Any

import pytest
import torch
from families import (
    LAYERS,
    POST_NORM,
    WIDTH,
    close,
    logits,
    planted,
    sequence,
    settings,
    shared,
)
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from packing_support import LENGTHS, SEED, documents, packed
from patch_support import (
    batched_logits,
    cached_logits,
    collected,
    distance,
    gradients,
    language_loss,
    padded,
    sum_of,
    unpatched,
)
from torch import Tensor
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

import wemask
from wemask import WeMaskConfig

CHOICES = st.fixed_dictionaries(
    {
        "rate": st.one_of(
            st.sampled_from([0.001, 0.1, 0.5, 1.0]), st.floats(1e-4, 1.0, allow_nan=False)
        ),
        "dims": st.sampled_from(
            ["me_norm", "attn_norm", "activation", "massive", "random", "lowest"]
        ),
        "site": st.sampled_from(["attention_input", "residual_copy"]),
        "layers": st.sampled_from(["after_me", "next", (2, 4), (3,)]),
        "tokens": st.sampled_from(["massive", "first"]),
        "strength": st.one_of(st.sampled_from([0.0, 0.3, 1.0]), st.floats(0.0, 1.0)),
        "seed": st.integers(0, 99),
    }
)


# --- batches and caches -------------------------------------------------------------------------


@hypothesis_settings(max_examples=15)
@given(choices=CHOICES, lengths=LENGTHS, left=st.booleans(), extra=st.integers(0, 3), seed=SEED)
def test_a_batch_equals_its_rows(choices, lengths, left, extra, seed):
    case, rows = shared(), documents(lengths, seed)
    with wemask.soften(case.model, case.report, WeMaskConfig(**choices)):
        together = batched_logits(case.model, rows, left=left, extra=extra)
        for row, out in zip(rows, together, strict=True):
            assert close(out, logits(case.model, row)[0])


@hypothesis_settings(max_examples=15)
@given(choices=CHOICES, chunks=st.lists(st.integers(1, 6), max_size=3), seed=SEED)
def test_a_cache_changes_nothing(choices, chunks, seed):
    case = shared()
    ids = torch.cat([sequence(20, seed, massive_at=seed % 20), sequence(20, seed + 1)])
    with wemask.soften(case.model, case.report, WeMaskConfig(**choices)):
        assert close(cached_logits(case.model, ids, chunks), logits(case.model, ids))


@hypothesis_settings(max_examples=15)
@given(choices=CHOICES, seed=SEED)
def test_removed_or_strength_zero_is_the_model_bit_for_bit(choices, seed):
    case, ids = shared(), sequence(10, seed)
    before = logits(case.model, ids)
    state = {k: v.clone() for k, v in case.model.state_dict().items()}
    with wemask.soften(case.model, case.report, WeMaskConfig(**choices)) as handle:
        logits(case.model, ids)
        handle.set_strength(0.0)
        assert torch.equal(logits(case.model, ids), before)
    assert torch.equal(logits(case.model, ids), before)
    assert all(torch.equal(v, state[k]) for k, v in case.model.state_dict().items())
    assert unpatched(case.model)


@hypothesis_settings(max_examples=15)
@given(choices=CHOICES)
def test_the_budget_is_spent_on_different_dims_of_softened_layers(choices):
    case, config = shared(), WeMaskConfig(**choices)
    with wemask.soften(case.model, case.report, config) as handle:
        assert set(handle.dims) == set(handle.layers) <= set(range(2, LAYERS))
        k = 2 if config.dims == "massive" else max(1, round(config.rate * WIDTH))
        for dims in handle.dims.values():
            assert dims is not None and len(dims) == len(set(dims)) == k
            assert set(dims) <= set(range(WIDTH))


@hypothesis_settings(max_examples=10)
@given(choices=CHOICES, lengths=LENGTHS, seed=SEED, left=st.booleans())
def test_gradients_of_a_batch_are_the_sum_over_its_rows(choices, lengths, seed, left):
    assume(max(lengths) > 1)
    case = shared()
    rows = [row for row in documents(lengths, seed) if row.shape[1] > 1]
    with wemask.soften(case.model, case.report, WeMaskConfig(**choices)):
        with torch.enable_grad():
            total = sum_of([gradients(case.model, row) for row in rows])
            case.model.zero_grad()
            outs = padded_outputs(case.model, rows, left=left)
            losses = [language_loss(out, row) for out, row in zip(outs, rows, strict=True)]
            torch.stack(losses).sum().backward()
        together = collected(case.model)
    case.model.zero_grad()
    assert distance(together, total) < 2e-3


def padded_outputs(model: Any, rows: list[Tensor], *, left: bool) -> list[Tensor]:
    """Logits [1, t, V] of each row of a padded batch, with gradient."""
    ids, mask, positions = padded(rows, left=left)
    call = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
    out = model(input_ids=ids, **call).logits
    return [out[i][mask[i].bool()].unsqueeze(0) for i in range(len(rows))]


# --- packing ------------------------------------------------------------------------------------


def collated(rows: list[Tensor]) -> dict[str, Any]:
    """What TRL's padding-free collator makes of the rows."""
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    return collator([{"input_ids": row[0].tolist()} for row in rows])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2"])
@hypothesis_settings(max_examples=5)
@given(choices=CHOICES, lengths=LENGTHS, seed=SEED)
def test_packed_documents_equal_each_alone(family, implementation, choices, lengths, seed):
    needs_norm = choices["dims"] in ("me_norm", "attn_norm", "lowest")
    assume(not (needs_norm and family in POST_NORM))
    case, rows = shared(family), documents(lengths, seed)
    case.model.set_attn_implementation(implementation)
    with wemask.soften(case.model, case.report, WeMaskConfig(**choices)):
        inputs = packed(rows)
        out = logits(case.model, inputs.pop("input_ids"), **inputs)
        for part, row in zip(out.split([r.shape[1] for r in rows], 1), rows, strict=True):
            assert close(part, logits(case.model, row))
    case.model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("tokens", ["massive", "first"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("form", [packed, collated])
def test_packed_gradients_are_the_sum_over_documents(form, implementation, tokens):
    case, rows = planted("llama"), documents([5, 7, 4], 1)
    case.model.set_attn_implementation(implementation)
    inputs = {**form(rows), "use_cache": False}
    inputs.pop("labels", None)
    with wemask.soften(case.model, case.report, settings(tokens=tokens)):
        total = sum_of([gradients(case.model, row) for row in rows])
        case.model.zero_grad()
        outs = case.model(**inputs).logits.split([row.shape[1] for row in rows], 1)
        losses = [language_loss(out, row) for out, row in zip(outs, rows, strict=True)]
        torch.stack(losses).sum().backward()
        assert distance(collected(case.model), total) < 2e-4
