from types import SimpleNamespace
from typing import Any

import pytest
from run_support import quiet, said, settings

from wemask.data.examples import load_examples
from wemask.settings.config import RunConfig
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
    rows = [dataclasses.replace(row, token=strange) for row in report.layers]
    console = quiet()
    console.print(layer_table(dataclasses.replace(report, layers=rows)))
    assert said(console).count(repr(strange)) == len(rows)


def test_the_table_has_a_line_for_the_embeddings_and_every_layer(prepared: Prepared) -> None:
    report = prepared.report
    console = quiet()
    console.print(layer_table(report))
    first = [line.split()[1] for line in said(console).splitlines() if line.startswith("│")]
    assert first == [str(row.layer) for row in report.layers]
    assert first[0] == "-1"


def test_the_operator_in_words_has_every_setting_but_the_seed() -> None:
    config = settings("operator.layers=[2,3]", "operator.strength=0.25")
    words = operator_words(config)
    assert "(2, 3)" in words
    assert "0.25" in words
