"""What flows through a decoder layer, and that the parts run in the order of their names."""

from typing import Any

import pytest
import torch
from families import (
    FAMILIES,
    LAYERS,
    WIDTH,
    build,
    detect,
    logits,
    planted,
    settings,
    shared,
    texts,
)
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import wemask
from wemask.decoder.parts import find_decoder
from wemask.decoder.passage import Passage, checking_flow, evaluating, hooked, rows_of, watching
from wemask.errors import ModelError

OPENAI_GPT = {"vocab_size": 64, "n_embd": WIDTH, "n_layer": 2, "n_head": 4}


@torch.no_grad()
def watched(model: Any, ids: Tensor, *, inputs: bool = False) -> tuple[list[Tensor], list[Passage]]:
    started: list[Tensor] = []
    passed: list[Passage] = []
    with watching(find_decoder(model), passed.append, started.append, inputs=inputs):
        model(input_ids=ids, use_cache=False)
    return started, passed


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_hands_over_what_entered_and_left(family):
    model: Any = shared(family).model
    started, passed = watched(model, texts(rows=2))
    assert [passage.block.index for passage in passed] == list(range(LAYERS))
    for before, passage in zip([*started, *(p.left for p in passed)], passed, strict=False):
        assert torch.equal(passage.entered, before)
        assert passage.attention_input is None
    again = watched(model, texts(rows=2))[1]  # nothing is kept from one forward to the next
    assert all(torch.equal(a.left, b.left) for a, b in zip(passed, again, strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi", "gptj", "olmo2"])
def test_attention_and_ffn_write_what_the_layer_adds(family):
    places = torch.tensor([0, 5, 13])
    for passage in watched(shared(family).model, texts(rows=2))[1]:
        writes = passage.writes(places)
        assert writes is not None
        added = rows_of(passage.left, places) - rows_of(passage.entered, places)
        torch.testing.assert_close(writes[0] + writes[1], added, rtol=1e-4, atol=1e-3)
        assert (writes[0] != 0).any() and (writes[1] != 0).any()
        attended = rows_of(passage.attended, places)  # pyright: ignore[reportArgumentType]
        if family in ("llama", "gpt2"):
            torch.testing.assert_close(writes[0], attended, rtol=1e-3, atol=1e-2)


def test_what_attention_reads_is_softened_where_the_layer_is():
    case = planted("llama")
    ids = case.report.probe_ids
    plain = watched(case.model, torch.tensor([ids]), inputs=True)[1]
    with wemask.soften(case.model, case.report, settings()) as handle:
        soft = watched(case.model, torch.tensor([ids]), inputs=True)[1]
    for before, after in zip(plain, soft, strict=True):
        index = before.block.index
        assert before.attention_input is not None and after.attention_input is not None
        gone = (before.attention_input != 0) & (after.attention_input == 0)
        assert gone.any() == (index in handle.layers)
        if index == handle.layers[0]:
            assert set(gone.nonzero()[:, 2].tolist()) == set(handle.dims[index] or ())


def test_hooks_are_gone_at_the_end_also_after_an_error():
    model: Any = build("llama")
    with pytest.raises(ZeroDivisionError), hooked(_failing(model)):
        pytest.fail("it is not entered")
    watch = watching(find_decoder(model), lambda passage: None, inputs=True)
    with pytest.raises(RuntimeError, match="stop"), watch:
        raise RuntimeError("stop")
    hooks = [(m._forward_hooks, m._forward_pre_hooks) for m in model.modules()]
    assert not any(after or before for after, before in hooks)


def _failing(model: Any) -> Any:
    yield model.register_forward_hook(lambda module, args, output: None)
    raise ZeroDivisionError


def test_evaluating_gives_every_module_back_its_own_mode():
    model = build("llama").train()
    part: nn.Module = model.get_submodule("model.layers.1").eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert model.training and not part.training


# --- the order of the parts -----------------------------------------------------------------------


def test_post_norm_under_pre_norm_names_is_noticed_when_it_runs():
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("openai-gpt", **OPENAI_GPT))
    with pytest.raises(ModelError, match=r"Layer 0 \(Block\) runs LayerNorm after its attention"):
        detect(model)
    model.wemask_parts = {"attention_norm": None, "ffn_norm": None}
    with checking_flow(find_decoder(model)):
        logits(model, texts()[:1])


def test_a_residual_of_several_streams_is_refused():
    model: Any = build("llama")
    hook = model.model.layers[0].register_forward_pre_hook(
        lambda module, args: (args[0].unsqueeze(2), *args[1:])
    )
    with pytest.raises(ModelError, match=r"a residual of shape \[8, 12, 1, 32\]; \[batch,"):
        detect(model)
    hook.remove()
