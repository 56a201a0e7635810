"""A run whose model is an adapter, and adapters that cannot be made."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from run_support import fit, quick, settings, trained, weights
from safetensors.torch import load_file, save_file
from torch import Tensor

import wemask
from wemask.checkpoint.adapter import read_adapter, with_adapter
from wemask.checkpoint.pretrained import load_model
from wemask.errors import ConfigError, ModelError
from wemask.evaluate.arm_run import ArmRun
from wemask.train import adapters
from wemask.train import prepare as prepare_module
from wemask.train.adapters import MERGED, lora_size, peft_config
from wemask.train.prepare import load_base, prepare

SOFT = ("method=wemask", "peft=lora", "trainer.learning_rate=0.01")
PLAIN = ("method=sft", "peft=lora", "trainer.learning_rate=0.01")


def of(run: Path, *words: str) -> list[str]:
    """The overrides of a run on what `run` left, with `tiny`'s own rate."""
    return [f"model.path={run / 'final'}", "operator.rate=0.03", *words]


@torch.no_grad()
def logits(model: Any, tokenizer: Any) -> Tensor:
    ids = torch.tensor([tokenizer("Tom has 5 apples and eats 2. How many?")["input_ids"]])
    return model.eval()(input_ids=ids, use_cache=False).logits


def first(words: tuple[str, ...]) -> tuple[Path, Tensor]:
    """A finished LoRA run and its logits, which are not those of its base."""
    run, _ = trained(*words)
    if words == SOFT:
        found = logits(*wemask.load(run / "final"))
    else:
        model, tokenizer, _ = load_base(settings(*of(run), "method=base"))
        found = logits(model, tokenizer)
    assert (found - logits(*load_base(settings("method=base"))[:2])).abs().max() > 0.1
    return run, found


@pytest.mark.parametrize("words", [SOFT, PLAIN], ids=["softened", "stock"])
@pytest.mark.parametrize("more", [(), ("peft=lora",)], ids=["all", "lora"])
def test_an_adapter_is_never_dropped_without_a_word(
    words: tuple[str, ...], more: tuple[str, ...]
) -> None:
    run, _ = trained(*words)
    with pytest.raises(ConfigError, match=r"model\.adapter=continue .*model\.adapter=merge"):
        prepare(settings(*of(run, words[0], *more)))


@pytest.mark.parametrize("words", [SOFT, PLAIN], ids=["softened", "stock"])
@pytest.mark.parametrize("more", ["continue", "merge", "merge peft=lora"])
def test_the_new_run_starts_from_the_first_ones_logits(
    words: tuple[str, ...], more: str, tmp_path: Path
) -> None:
    run, expected = first(words)
    config = settings(
        f"paths.output_dir={tmp_path}", words[0], *of(run, *f"model.adapter={more}".split())
    )
    made = prepare(config)
    assert torch.allclose(logits(made.model, made.tokenizer), expected, atol=2e-4)
    trainable = {n for n, p in made.model.named_parameters() if p.requires_grad}
    assert (more == "continue") == all("lora_" in name for name in trainable)
    assert (more == "continue") == (lora_size(config, made.model) is not None) or "lora" in more


def test_a_continued_adapter_trains_saves_and_loads(tmp_path: Path) -> None:
    run, _ = first(SOFT)
    folder, text = fit(quick(tmp_path, *of(run, "method=wemask", "model.adapter=continue")))
    assert "the adapter that" in text and folder != run
    before, after = weights(run / "final"), weights(folder / "final")
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before if "lora_B" in name)
    model, _ = wemask.load(folder / "final")
    assert json.loads((folder / "final" / "adapter_config.json").read_text())["r"] == 16
    assert model.get_base_model().config._name_or_path == "tiny"  # pyright: ignore


@pytest.mark.parametrize("more", ["continue", "merge peft=lora"])
def test_the_arm_of_such_a_run_answers_with_what_was_trained(more: str, tmp_path: Path) -> None:
    run, before = first(PLAIN)
    config = quick(tmp_path, *of(run, "method=sft", *f"model.adapter={more}".split()))
    folder, _ = fit(config)
    found = logits(*ArmRun.of("sft", config).load())
    words = (f"model.path={folder / 'final'}", "method=sft", "model.adapter=continue")
    expected = prepare(settings(*words))  # on the base that its adapter_config.json names
    assert torch.allclose(found, logits(expected.model, expected.tokenizer), atol=2e-4)
    assert (found - before).abs().max() > 0.01


def test_a_new_adapter_of_a_merged_base_trains_and_loads(tmp_path: Path) -> None:
    run, expected = first(SOFT)
    words = of(run, "method=wemask", "model.adapter=merge", "peft=lora", "trainer.max_steps=1")
    folder, text = fit(quick(tmp_path, *words))
    assert "merged into its base model" in text
    kept = load_model(str(folder / MERGED))
    assert not hasattr(kept, "peft_config")
    loaded, tokenizer = wemask.load(folder / "final")
    with loaded.disable_adapter():  # pyright: ignore
        assert torch.allclose(logits(loaded, tokenizer), expected, atol=2e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("method=sft", "model.adapter=merge"), "method=sft would drop its operator"),
        (("method=wemask", "model.adapter=continue", "peft=lora"), "Leave peft out"),
        (("method=wemask", "model.adapter=twice"), "'refuse', 'continue' or 'merge'"),
        (("method=training_free",), "model.adapter=continue"),
    ],
)
def test_what_contradicts_is_refused(words: tuple[str, ...], said: str) -> None:
    run, _ = trained(*SOFT)
    with pytest.raises(ConfigError, match=said):
        prepare(settings(*of(run, *words)))


def test_a_choice_without_an_adapter_and_a_run_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no adapter"):
        prepare(settings("model.adapter=merge"))
    run, _ = trained(*SOFT)
    with pytest.raises(ModelError, match=f"is a run folder. Its model: model.path={run}/final"):
        prepare(settings(f"model.path={run}"))


def test_an_adapter_of_the_hub_is_not_dropped_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no folder to look into: transformers has put it into its base."""
    run, _ = trained(*PLAIN)
    monkeypatch.setattr(prepare_module, "load_adapted", lambda config: None)
    with pytest.raises(ConfigError, match="hf download"):
        prepare(settings(*of(run, "method=sft", "peft=lora")))


def test_the_default_leaves_the_names_of_run_folders() -> None:
    assert "adapter" not in settings().identity()["model"]
    merged = settings("model.adapter=merge")
    assert merged.identity()["model"]["adapter"] == "merge"
    assert merged.folder() != settings().folder()


# --- an adapter that cannot be made ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("peft.modules_to_save=[nosuch]", r"no module is called 'nosuch', but .*lm_head"),
        ("peft.rank_pattern={nosuch:4}", "no module of this model matches"),
        ("peft.target_modules='(('", "PEFT refuses"),
        ("peft.bias=bogus", "PEFT refuses"),
        ("peft.init_lora_weights=pissa_niter_4", "would load as another model"),
        ("peft.r=100000000", r"this machine has .* GiB\. Give a smaller peft\.r"),
        ("peft.target_modules='^(.*a.*|.*b.*|.*)*$x'", "took more than 1 s"),
    ],
)
def test_settings_that_no_adapter_can_have(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, words: str, said: str
) -> None:
    monkeypatch.setattr(adapters, "REGEX_SECONDS", 1)
    with pytest.raises(ConfigError, match=said):
        lora_size(settings("peft=lora", words), tiny.model)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_changes_its_base_loads_as_it_was_trained(
    fresh_tiny: Any, tmp_path: Path, init: str
) -> None:
    """PEFT changes the base in the same way again; with pissa_niter_4 it draws other numbers."""
    from peft import get_peft_model

    made, tokenizer = fresh_tiny()
    before = logits(made, tokenizer)
    config = peft_config(settings("peft=lora", f"peft.init_lora_weights={init}"))
    model = get_peft_model(made, config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.add_(torch.randn_like(value) * 0.01)
    expected = logits(model, tokenizer)
    assert (expected - before).abs().max() > 0.01
    model.save_pretrained(tmp_path)
    loaded = with_adapter(fresh_tiny().model, tmp_path, read_adapter(tmp_path))
    assert torch.allclose(logits(loaded, tokenizer), expected, atol=1e-4)


def test_half_of_a_stock_adapter_is_not_trained_further(tmp_path: Path) -> None:
    run, _ = trained(*PLAIN)
    half = tmp_path / "half"
    shutil.copytree(run / "final", half)
    tensors = load_file(half / "adapter_model.safetensors")
    save_file(dict([*tensors.items()][::2]), half / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="PEFT refuses the adapter"):
        prepare(settings("method=sft", f"model.path={half}", "model.adapter=continue"))


@pytest.mark.parametrize("init", ["pissa", "olora", "gaussian"])
def test_the_size_does_not_depend_on_how_an_adapter_begins(tiny: Any, init: str) -> None:
    plain = lora_size(settings("peft=lora"), tiny.model)
    assert lora_size(settings("peft=lora", f"peft.init_lora_weights={init}"), tiny.model) == plain


def test_a_softened_adapter_is_no_plain_model() -> None:
    run, _ = trained(*SOFT)
    with pytest.raises(ModelError, match=r"is a softened model\. Load it with wemask\.load"):
        load_model(str(run / "final"))
