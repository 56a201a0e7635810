"""The importable names that issue 2 fixes, used as a reader of the README would."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from families import DIMS, MASSIVE, ME_LAYER, logits, planted, sequence, settings, shared, texts
from oracle import llama_oracle
from torch import Tensor

import wemask
from wemask import WeMaskConfig, WeMaskWarning


def test_names():
    for name in wemask.__all__:
        assert getattr(wemask, name) is not None
        assert name in dir(wemask)
    assert wemask.answers.is_correct("so 3 + 4 = 7\n#### 7", "7") is True
    assert wemask.answers.is_refusal("I'm sorry, but I can't help with that.") is True
    comparison = wemask.statistics.compare_paired([1, 1, 1, 0] * 10, [0, 1, 0, 0] * 10)
    assert comparison.delta == 0.5
    assert comparison.low <= 0.5 <= comparison.high
    assert 0 <= comparison.p_value < 0.01
    with pytest.raises(AttributeError, match="module 'wemask' has no attribute 'sofen'"):
        wemask.sofen  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_the_package_imports_no_torch():
    code = "import sys, wemask; assert 'torch' not in sys.modules; wemask.WeMaskConfig"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_five_lines(tmp_path):
    model: Any = planted("llama").model
    ids = texts()
    report = wemask.detect(model, input_ids=ids, attention_mask=torch.ones_like(ids))
    assert (report.layer, set(report.dims), report.found) == (ME_LAYER, set(DIMS), True)
    assert {t.token_id for t in report.tokens} == {MASSIVE}
    config = WeMaskConfig(rate=0.001)
    prompt = sequence()
    with wemask.soften(model, report, config) as handle:
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=3, pad_token_id=0
        )
        assert out.shape[1] <= 15
        wemask.save(model, None, tmp_path)
        on = logits(model, prompt)
    assert handle.dims[2] is not None and len(handle.dims[2]) == 1
    loaded, tokenizer = wemask.load(tmp_path)
    assert tokenizer is None
    assert torch.equal(logits(loaded, prompt), on)


def test_detect_reads_texts_with_a_tokenizer(tiny):
    report = wemask.detect(tiny.model, tiny.tokenizer)
    assert report.num_layers == tiny.model.config.num_hidden_layers
    assert isinstance(report.found, bool) and report.verdict


def test_the_authors_formula_needs_no_report_and_warns():
    """x = attention input after the norm; top int(rate * D) dims of x[:, 0].abs().mean(0); 0."""
    model: Any = shared().model
    ids = torch.cat([sequence(9, 1), sequence(9, 2), sequence(9, 3, massive_at=4)])
    config = WeMaskConfig(layers=[2, 3], tokens="position0", dims="batch_activation", rate=0.1)
    with pytest.warns(WeMaskWarning) as caught:
        handle = wemask.soften(model, config=config)
    assert len(caught) == 1
    said = str(caught[0].message)
    assert "tokens=position0 is index 0" in said and "depends" not in said.split(";")[0]
    assert "depend on its batch mates" in said and "no ME Layer was detected" in said
    assert caught[0].filename == __file__
    assert handle.layers == [2, 3] and handle.dims == {2: None, 3: None}
    assert handle.tokens_touched == {2: 1, 3: 1}
    with handle:
        actual = logits(model, ids)
    torch.testing.assert_close(actual, authors(model, ids, (2, 3), 0.1), rtol=0, atol=1e-5)
    assert (actual - logits(model, ids)).abs().max() > 0.05


def authors(model: Any, ids: Tensor, layers: tuple[int, ...], rate: float) -> Tensor:
    """The few lines of their file, by hooks on the norm: an independent reference."""

    def mask(module: Any, args: tuple, x: Tensor) -> Tensor:
        act = x[:, 0, :].abs().mean(0)
        idx = act.topk(int(rate * x.shape[-1])).indices
        x = x.clone()
        x[:, 0, idx] = 0
        return x

    hooks = [model.model.layers[i].input_layernorm.register_forward_hook(mask) for i in layers]
    out = logits(model, ids)
    for hook in hooks:
        hook.remove()
    return out


def test_the_oracle_and_the_authors_reference_agree_on_doing_nothing():
    model, ids = shared().model, sequence()
    assert torch.equal(authors(model, ids, (), 0.1), logits(model, ids))
    torch.testing.assert_close(llama_oracle(model, ids, {}).detach(), logits(model, ids))


def test_soften_takes_the_config_by_position_and_by_name():
    case, ids = shared(), sequence()
    with wemask.soften(case.model, case.report, settings()):
        by_position = logits(case.model, ids)
    with wemask.soften(case.model, config=settings(), report=case.report):
        assert torch.equal(logits(case.model, ids), by_position)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w, m, r: w.detect(None, None), "loaded transformers model was sought, got None"),
        (lambda w, m, r: w.detect("gpt2"), "got 'gpt2'. Load it first: AutoModelForCausalLM"),
        (lambda w, m, r: w.soften(None, None), "loaded transformers model was sought, got None"),
        (lambda w, m, r: w.soften(m, {"layer": 1}), r"Type MELayerReport\.load\(FILE\)"),
        (lambda w, m, r: w.soften(m, "FILE"), r"Type MELayerReport\.load\(FILE\)"),
        (lambda w, m, r: w.soften(m, r, {"rate": 0.1}), r"Type WeMaskConfig\.from_dict\(VALUES\)"),
        (lambda w, m, r: w.soften(m, r, dims=[1]), r"dims must be \{layer: ...\}, got \[1\]"),
        (lambda w, m, r: w.save(None, None, "never"), "loaded transformers model was sought"),
        (lambda w, m, r: w.save(m, None, None), "folder must be a path, got None"),
        (lambda w, m, r: w.load(None), "folder must be a path, got None"),
        (lambda w, m, r: w.load("n" * 5000), "was sought and not found"),
        (lambda w, m, r: w.load("a\0b"), "was sought and not found"),
        (lambda w, m, r: w.export(None, "never"), "folder must be a path, got None"),
        (lambda w, m, r: w.merge("nowhere", 3), "folder must be a path, got 3"),
    ],
)
def test_arguments_of_another_kind_are_one_error_that_says_what_to_type(call, message):
    case = planted("llama")
    with pytest.raises(wemask.WemaskError, match=message):
        call(wemask, case.model, case.report)


def test_what_cannot_be_saved(tmp_path):
    case = planted("llama")
    with wemask.soften(case.model, case.report, settings()):
        with pytest.raises(wemask.WemaskError, match="/proc/x cannot be written"):
            wemask.save(case.model, None, "/proc/x")
        with pytest.raises(wemask.WemaskError, match="A tokenizer was sought, got 'tiny'"):
            wemask.save(case.model, "tiny", tmp_path / "never")
    assert not [*tmp_path.iterdir()]
