"""Generation with the operator on equals a loop of full forwards without a cache."""

import copy
from typing import Any

import pytest
import torch
from families import (
    MASSIVE,
    Case,
    close,
    logits,
    planted,
    sequence,
    settings,
    shared,
)
from generation_support import BATCHED, METHODS, NEW, generate, massive_at, slow, stacked
from patch_support import batched_logits, cached_logits, padded
from torch import Tensor

import wemask
from wemask import WeMaskWarning

WINDOW = 6  # so small that the massive token falls out of it


def softening_matters(case: Case, ids: Tensor, out: Any) -> bool:
    """The logits of a generation without the softening, along the same tokens, differ."""
    with_it = stacked(out)
    start = ids.shape[1] - 1
    off = logits(case.model, out.sequences[:, :-1])[:, start:]
    return not close(off, with_it, 1e-2)


# --- truth: full forwards, token by token -------------------------------------------------------

KINDS = [  # family, tokens
    *((family, "massive") for family in ("llama", "gpt2", "phi", "gemma2", "cohere2")),
    *((family, "first") for family in ("llama", "gemma2")),
]


def prompt() -> Tensor:
    """A massive token, and a repetition for prompt lookup to find."""
    return torch.cat([sequence(6, 1, massive_at=1), sequence(6, 1, massive_at=1)], 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("family", "tokens"), KINDS)
def test_greedy_decoding_equals_full_forwards(family, method, tokens):
    case, ids, force = shared(family), prompt(), massive_at(14, 17)
    with wemask.soften(case.model, case.report, settings(tokens=tokens)):
        wanted, rows = slow(case.model, ids, force)
        out = generate(case.model, ids, force, **METHODS[method])
    assert torch.equal(out.sequences, wanted)
    assert close(stacked(out), rows)
    assert softening_matters(case, ids, out)


@pytest.mark.parametrize("method", ["dynamic cache", "static cache", "chunked prefill"])
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "cohere2"])
def test_the_massive_token_may_leave_a_sliding_window(family, method):
    window: dict[str, Any] = {"sliding_window": WINDOW}
    if family != "mistral":  # hybrid: some layers see everything
        window["layer_types"] = [*["sliding_attention"] * 3, "full_attention", "sliding_attention"]
    case = planted(family, **window)
    ids, force = prompt(), massive_at(14)
    with wemask.soften(case.model, case.report, settings()):
        wanted, rows = slow(case.model, ids, force, steps=2 * WINDOW)
        options = {**METHODS[method], "max_new_tokens": 2 * WINDOW, "min_new_tokens": 2 * WINDOW}
        out = generate(case.model, ids, force, **options)
    assert torch.equal(out.sequences, wanted)
    assert close(stacked(out), rows)
    assert softening_matters(case, ids, out)


@pytest.mark.parametrize("method", METHODS)
def test_a_generated_token_is_softened_from_the_step_after_it(method):
    case, ids, force = shared(), sequence(7, 3).clamp(min=8), massive_at(9)  # none in the prompt
    plain = generate(case.model, ids, force, **METHODS[method])
    with wemask.soften(case.model, case.report, settings()):
        out = generate(case.model, ids, force, **METHODS[method])
    on, off = stacked(out)[0], stacked(plain)[0]
    assert plain.sequences[0, 9] == out.sequences[0, 9] == MASSIVE
    assert close(on[:3], off[:3], 1e-6)  # up to the step that emits it
    assert not close(on[3], off[3], 1e-4)  # the step that reads it: its own input is softened
    assert not close(on[4], off[4], 1e-2)  # and then what others see of it


@pytest.mark.parametrize("method", ["dynamic cache", "static cache", "chunked prefill"])
def test_sampling_with_a_seed_equals_sampling_from_full_forwards(method):
    case, wanted = shared(), prompt()
    sampling = {"do_sample": True, "top_k": 0, "temperature": 1.5, **METHODS[method]}
    with wemask.soften(case.model, case.report, settings()):
        torch.manual_seed(3)
        out = generate(case.model, wanted, **sampling)
        torch.manual_seed(3)
        for _ in range(NEW):
            scores = logits(case.model, wanted)[:, -1] / 1.5
            scores[:, 2] = -torch.inf
            token = torch.multinomial(scores.softmax(-1), 1)
            wanted = torch.cat([wanted, token], 1)
    assert torch.equal(out.sequences, wanted)
    assert len(set(wanted[0, -NEW:].tolist())) > 2


@pytest.mark.parametrize("method", ["dynamic cache", "no cache", "static cache"])
def test_beams_have_the_probability_that_a_full_forward_gives(method):
    case, ids = shared(), prompt()
    options = {"num_beams": 3, "num_return_sequences": 3, "output_scores": True, **METHODS[method]}
    with wemask.soften(case.model, case.report, settings()):
        reference = generate(case.model, ids, num_beams=3, num_return_sequences=3, use_cache=False)
        out = generate(case.model, ids, **options)
        log_p = logits(case.model, out.sequences).log_softmax(-1)
    chosen = log_p[:, :-1].gather(-1, out.sequences[:, 1:, None])[:, -NEW:, 0]
    assert torch.equal(out.sequences, reference.sequences)
    assert close(out.sequences_scores, chosen.mean(-1), 1e-4)
    off = logits(case.model, out.sequences).log_softmax(-1)
    assert not close(off, log_p, 1e-2)


# --- two models, two calls, several rows --------------------------------------------------------


@pytest.mark.parametrize("softened", [True, False])
def test_assisted_decoding_gives_what_the_softened_model_alone_gives(softened):
    case, ids, force = shared(), prompt(), massive_at(14)
    assistant = planted("llama", num_hidden_layers=3)
    with wemask.soften(case.model, case.report, settings()):
        wanted, rows = slow(case.model, ids, force)
        if softened:
            wemask.soften(assistant.model, assistant.report, settings())
        for helper in (assistant.model, copy.deepcopy(case.model)):  # the twin guesses all right
            out = generate(case.model, ids, force, assistant_model=helper)
            assert torch.equal(out.sequences, wanted)
            assert close(stacked(out), rows)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_generation_goes_on_from_the_cache_of_an_earlier_one(family):
    window: dict[str, Any] = {"sliding_window": WINDOW} if family == "mistral" else {}
    case, ids, force = planted(family, **window), prompt(), massive_at(13, 17)
    with wemask.soften(case.model, case.report, settings()):
        wanted, rows = slow(case.model, ids, force)
        half = {"max_new_tokens": NEW // 2, "min_new_tokens": NEW // 2}
        first = generate(case.model, ids, force, **half)
        cache = first.past_key_values
        second = generate(case.model, first.sequences, force, past_key_values=cache, **half)
    assert torch.equal(second.sequences, wanted)
    assert close(torch.cat([stacked(first), stacked(second)], 1), rows)


@pytest.mark.parametrize("method", BATCHED)
@pytest.mark.parametrize(("family", "tokens"), [*KINDS, ("opt", "first"), ("falcon", "massive")])
def test_a_left_padded_batch_generates_what_its_rows_do_one_by_one(family, tokens, method):
    case, rows = shared(family), [sequence(9, 1), sequence(5, 2, massive_at=3), sequence(7, 3)]
    ids, mask, _ = padded(rows, left=True)
    with wemask.soften(case.model, case.report, settings(tokens=tokens)):
        together = generate(case.model, ids, attention_mask=mask, **METHODS[method])
        for i, row in enumerate(rows):
            wanted, values = slow(case.model, row)
            assert close(stacked(together)[i], values[0])
            assert torch.equal(together.sequences[i, -NEW:], wanted[0, -NEW:])


@pytest.mark.parametrize("beams", [1, 3])
def test_padding_changes_no_beam(beams):
    case, rows = shared(), [sequence(9, 1), sequence(5, 2, massive_at=3)]
    ids, mask, _ = padded(rows, left=True)
    with wemask.soften(case.model, case.report, settings()):
        together = generate(case.model, ids, attention_mask=mask, num_beams=beams)
        for i, row in enumerate(rows):
            alone = generate(case.model, row, num_beams=beams)
            assert torch.equal(together.sequences[i, -NEW:], alone.sequences[0, -NEW:])


def test_position0_is_the_literal_index_and_warns():
    case = shared()
    config = settings(tokens="position0", dims="massive")
    with pytest.warns(WeMaskWarning, match="tokens=position0 is index 0 of the tensor"):
        handle = wemask.soften(case.model, case.report, config)
    with handle:
        rows = [sequence(8, 1), sequence(5, 2)]
        out = batched_logits(case.model, rows, left=True)  # row 1 has pads in front
        assert not close(out[1], logits(case.model, rows[1])[0], 1e-2)
        # the decode artefact: every generated token is index 0 of its own forward
        assert not close(cached_logits(case.model, rows[0], [3]), logits(case.model, rows[0]), 1e-3)
