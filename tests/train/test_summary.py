from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_support import quiet, said, settings
from torch import nn

from wemask.data.examples import load_examples
from wemask.detection.me_layer import MELayerReport
from wemask.errors import ConfigError
from wemask.settings.config import RunConfig
from wemask.train.adapter import lora_size, peft_config
from wemask.train.prepare import Prepared, prepare
from wemask.train.summary import layer_table, operator_words, show_summary


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(settings())


def screen(config: RunConfig, prepared: Any, example: Any = None, loss: Any = None) -> str:
    console = quiet()
    show_summary(console, config, prepared, example, loss)
    return said(console)


def test_the_screen_names_every_choice_of_the_operator(prepared: Prepared) -> None:
    text = screen(settings("operator.rate=0.03"), prepared)
    words = ("rate 0.03", "after_me", "tokens massive", "me_norm", "attention_input", "strength 1")
    assert [word for word in words if word not in text] == []
    assert prepared.handle is not None
    for layer, count in prepared.handle.tokens_touched.items():
        assert f"layer {layer}: {count}" in text


def test_without_the_operator_the_screen_says_off(prepared: Prepared) -> None:
    import dataclasses

    text = screen(settings("method=sft"), dataclasses.replace(prepared, handle=None))
    assert "off" in text
    assert "touched" not in text


def test_a_sample_is_shown_with_what_is_trained_in_brackets(prepared: Prepared) -> None:
    from wemask.data.chat import choose_loss

    config = settings("data.limit=2")
    example: Any = load_examples(config.data)[0]
    text = screen(config, prepared, example, choose_loss(example, prepared.tokenizer))
    inside = text.rpartition("[[")[2].partition("]]")[0]
    assert "####" in inside
    assert example["prompt"][0]["content"].split()[0] not in inside.split()


@pytest.mark.parametrize("strange", ["[/INST]", "[bold]", "[red]x", "a [/] b"])
def test_text_of_the_model_is_never_read_as_markup(prepared: Prepared, strange: str) -> None:
    import dataclasses

    report: Any = SimpleNamespace(verdict=f"ME Layer 1: on {strange!r}.")
    assert strange in screen(settings(), dataclasses.replace(prepared, report=report))


@pytest.mark.parametrize("strange", ["[/INST]", "[bold]", "a [/] b"])
def test_a_token_in_the_table_is_never_read_as_markup(prepared: Prepared, strange: str) -> None:
    import dataclasses

    report = prepared.report
    assert report is not None
    rows = [dataclasses.replace(row, token=strange) for row in report.layers]
    console = quiet()
    console.print(layer_table(dataclasses.replace(report, layers=rows)))
    assert said(console).count(repr(strange)) == len(rows)


def test_the_table_has_a_line_for_the_embeddings_and_every_layer(prepared: Prepared) -> None:
    report: MELayerReport | None = prepared.report
    assert report is not None
    console = quiet()
    console.print(layer_table(report))
    first = [line.split()[1] for line in said(console).splitlines() if line.startswith("│")]
    assert first == [str(row.layer) for row in report.layers]
    assert first[0] == "-1"


# --- LoRA -----------------------------------------------------------------------------------------


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
    with pytest.raises(ConfigError, match="PEFT refuses"):
        lora_size(settings("peft=lora", "peft.target_modules=[nope]"), Two())


def test_the_operator_in_words_has_every_setting_but_the_seed() -> None:
    config = settings("operator.layers=[2,3]", "operator.strength=0.25")
    words = operator_words(config)
    assert "(2, 3)" in words
    assert "0.25" in words
