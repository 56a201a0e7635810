"""Models that accelerate spreads over devices: some weights are not there until a layer runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import LAYERS, Case, detect, logits, planted, sequence
from transformers import AutoModelForCausalLM

import wemask
from wemask import WeMaskConfig

ON_DISK = (1, 3)  # the ME Layer, and a softened one
PARTS = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")


@pytest.fixture
def case() -> Case:
    return planted("llama")


@pytest.fixture
def spread(case: Case, tmp_path: Path) -> Any:
    """The same model with two of its layers on disk."""
    case.model.save_pretrained(tmp_path / "model")
    layers = {f"model.layers.{i}": "disk" if i in ON_DISK else "cpu" for i in range(LAYERS)}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model",
        device_map={**dict.fromkeys(PARTS, "cpu"), **layers},
        offload_folder=str(tmp_path / "offloaded"),
    )
    for index, layer in enumerate(model.model.layers):
        assert layer.mlp.up_proj.weight.is_meta == (index in ON_DISK)
    return model


def test_detection_finds_the_same(case, spread):
    report = detect(spread)
    assert report.norm == case.report.norm and report.norm is not None
    assert (report.layer, report.dims) == (case.report.layer, case.report.dims)
    assert report.magnitudes == case.report.magnitudes


@pytest.mark.parametrize("dims", ["me_norm", "attn_norm", "activation", "massive"])
def test_softening_gives_the_same_bits_and_leaves_them(case, spread, dims):
    ids, config = sequence(), WeMaskConfig(rate=0.25, dims=dims)
    off = logits(case.model, ids)
    with wemask.soften(case.model, case.report, config) as handle:
        on, chosen = logits(case.model, ids), handle.dims
    with wemask.soften(spread, detect(spread), config) as handle:
        assert handle.dims == chosen
        assert torch.equal(logits(spread, ids), on) and not torch.equal(on, off)
    assert torch.equal(logits(spread, ids), off)


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
def test_it_is_saved_whole(spread, tmp_path):
    wemask.soften(spread, detect(spread))
    wemask.save(spread, None, tmp_path / "softened")
    loaded, _ = wemask.load(tmp_path / "softened")
    assert not any(p.is_meta for p in loaded.parameters())
    assert torch.equal(logits(loaded, sequence()), logits(spread, sequence()))


def test_metrics_and_experiments_are_the_same(case, spread):
    from families import MASSIVE, texts

    from wemask.analyse.conditions import Subject
    from wemask.analyse.experiments import Necessity, run_experiment
    from wemask.measure.layer_sums import Batch
    from wemask.measure.measurement import measure

    ids = texts(rows=3)
    batches = [Batch(input_ids=ids, attention_mask=torch.ones_like(ids), massive=ids == MASSIVE)]
    assert measure(spread, batches) == measure(case.model, batches)
    tables = [
        run_experiment(
            Necessity(scales=(0.0, 0.5)),
            Subject(model=model, report=detect(model), batches=batches),
        )
        for model in (spread, case.model)
    ]
    assert tables[0].equals(tables[1])
