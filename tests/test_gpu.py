"""What only a CUDA device shows: `make test-gpu`. The rest of the suite holds on the CPU."""

from typing import Any

import pytest
import torch
from families import LAYERS, Case, close, detect, planted, sequence, settings
from torch import Tensor
from transformers import AutoModelForCausalLM

import wemask

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
DEVICE = "cuda"
FAMILIES = ["llama", "qwen3_moe", "gemma2", "phi", "olmo2"]
DTYPES = {torch.float32: 2e-4, torch.bfloat16: 5e-2}  # tolerance of logits, of the largest


def on_device(family: str, dtype: torch.dtype) -> Case:
    case = planted(family)
    case.model.to(DEVICE, dtype)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return Case(case.model, case.truth, detect(case.model))


@torch.no_grad()
def run(model: Any, ids: Tensor, **inputs: Any) -> Tensor:
    """Logits, float32, where the model is."""
    return model(input_ids=ids.to(DEVICE), **{"use_cache": False, **inputs}).logits.float()


def decoded(model: Any, ids: Tensor) -> Tensor:
    """Logits of a prefill of five tokens and single steps."""
    cache, outputs = None, []
    for chunk in ids.split([5, *[1] * (ids.shape[1] - 5)], 1):
        with torch.no_grad():
            out = model(input_ids=chunk.to(DEVICE), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        outputs.append(out.logits.float())
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_found_softened_decoded_and_put_back(family, dtype):
    case, ids = on_device(family, dtype), sequence()
    assert (case.report.layer, set(case.report.dims)) == (case.truth.layer, set(case.truth.dims))
    off = run(case.model, ids)
    with wemask.soften(case.model, case.report, settings()) as handle:
        on = run(case.model, ids)
        assert not close(on, off, 1e-2)
        assert close(decoded(case.model, ids), on, DTYPES[dtype])
        handle.set_strength(0.0)
        assert torch.equal(run(case.model, ids), off)
    assert torch.equal(run(case.model, ids), off)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])  # the latter: CUDA graphs
def test_compiled(mode):
    case, ids = on_device("llama", torch.float32), sequence()
    with wemask.soften(case.model, case.report, settings()):
        on = run(case.model, ids)
        model = torch.compile(case.model, mode=mode)
        for _ in range(3):
            assert close(run(model, ids), on)


def test_layers_that_stay_on_the_cpu_are_softened_where_they_run(tmp_path):
    case, ids = on_device("llama", torch.float32), sequence()
    with wemask.soften(case.model, case.report, settings()):
        on = run(case.model, ids)
    case.model.save_pretrained(tmp_path)
    parts = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")
    layers = {f"model.layers.{i}": "cpu" if i > 1 else 0 for i in range(LAYERS)}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, device_map={**dict.fromkeys(parts, 0), **layers}
    )
    with wemask.soften(model, detect(model), settings()):
        assert close(run(model, ids), on)
