"""What a run trains: loaded, detected and softened."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_support import settings
from torch import nn

import wemask
from wemask.checkpoint.pretrained import load_tokenizer
from wemask.data.chat import loss_mask
from wemask.data.examples import load_examples
from wemask.detection.me_layer import MELayerReport
from wemask.errors import ConfigError
from wemask.train import prepare as prepare_module
from wemask.train.adapters import lora_size, peft_config


def test_detection_reads_some_of_the_training_examples_as_they_are_trained(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}

    def spy(model: Any, tokenizer: Any, **options: Any) -> MELayerReport:
        seen.update(options)
        return wemask.detect(model, tokenizer, **options)

    monkeypatch.setattr(prepare_module, "detect", spy)
    (tmp_path / "texts.txt").write_text("Tom has 5 apples.\n\nHow many?\n")
    config = settings(
        "detection.examples=2", f"detection.texts={tmp_path / 'texts.txt'}", "detection.chats=false"
    )
    examples = load_examples(config.data)
    report = prepare_module.detect_run(config, *tiny, examples)
    assert seen["texts"] == ["Tom has 5 apples.", "How many?"] and seen["chats"] is False
    expected = [loss_mask(examples[i], tiny[1], max_length=1024).input_ids for i in range(2)]
    assert seen["examples"] == expected and report.layer == 1
    prepare_module.detect_run(config, *tiny)
    assert seen["examples"] == []


def test_the_method_says_what_is_softened_and_detection_is_of_the_plain_model() -> None:
    soft = prepare_module.prepare(settings("operator.rate=0.1"))
    plain = prepare_module.prepare(settings("method=sft"))
    assert soft.report.to_dict() == plain.report.to_dict()
    assert plain.handle is None and soft.handle is not None
    assert min(soft.handle.layers) == soft.report.layer + 1  # pyright: ignore
    ids = torch.tensor([soft.tokenizer("Tom has 5 apples and eats 2.")["input_ids"]])
    with torch.no_grad():
        on, off = (made.model(ids).logits for made in (soft, plain))
        with soft.handle:
            pass  # leaving it removes it
        assert not torch.equal(on, off)
        assert torch.equal(soft.model(ids).logits, off)


def test_a_tokenizer_without_a_chat_template_gets_one_and_the_note_says_so() -> None:
    _, tokenizer, note = prepare_module.load_base(settings())
    assert tokenizer.chat_template
    assert (note is None) == (load_tokenizer("tiny").chat_template is not None)


class Two(nn.Module):
    """Two linear layers and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)
        self.register_buffer("scale", torch.ones(3))
        self.config = SimpleNamespace(model_type="two", to_dict=dict)
        self.prepare_inputs_for_generation = lambda *args, **kwargs: {}


def test_the_size_of_lora_is_counted_without_touching_the_model() -> None:
    model = Two()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = settings("peft=lora", "peft.r=2", "peft.target_modules=[up,down]")
    assert lora_size(config, model) == 2 * (6 + 10) + 2 * (10 + 6)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(value.device.type == "cpu" for value in after.values())


def test_the_task_type_may_be_given() -> None:
    assert peft_config(settings("peft=lora", "peft.task_type=CAUSAL_LM")).task_type == "CAUSAL_LM"
    assert peft_config(settings("peft=lora")).task_type == "CAUSAL_LM"
    assert peft_config(settings()) is None


def test_values_that_peft_refuses_are_one_message() -> None:
    with pytest.raises(ConfigError, match=r"peft\.target_modules: no module is called 'nope'"):
        lora_size(settings("peft=lora", "peft.target_modules=[nope]"), Two())
