import io
import tempfile
from pathlib import Path

import pytest
from chat_support import (
    CHATML,
    MARKED,
    QWEN,
    QWEN3,
    build_tokenizer,
    calling,
    conversation,
    half_trained,
    pair,
    sft_rows,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from wemask.data import chat
from wemask.embedded import TINY_PATH
from wemask.errors import DataError, ModelError


def trained_text(example: dict, tokenizer, loss: chat.LossChoice | None = None) -> str:
    mask = chat.loss_mask(example, tokenizer, loss)
    return tokenizer.decode([i for i, bit in zip(mask.input_ids, mask.trained, strict=True) if bit])


def tiny_tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(TINY_PATH)


TOKENIZERS = {
    "marked": lambda: build_tokenizer(MARKED),
    "chatml": lambda: build_tokenizer(CHATML),
    "qwen": lambda: build_tokenizer(QWEN),
    "qwen3": lambda: build_tokenizer(QWEN3),
    "tiny": tiny_tokenizer,
}
PAIRS = [
    pair(),
    pair("Ünïcödé \U0001f986?\n\n", "  17\n"),
    {**pair(), "prompt": [{"role": "system", "content": "Be brief."}, *pair()["prompt"]]},
    {**pair(), "prompt": [*conversation("1+1?", "2", "2+2?")["messages"]]},
]
CHATS = [conversation("1+1?", "2", "2+2?", "4"), conversation("Hi", "Hello\n")]
TEXTS = [{"text": text, "source": "here"} for text in ("ducks lay eggs", "12</s>", " 5\n")]


@pytest.mark.parametrize(
    ("name", "examples"),
    [
        *[pytest.param(name, PAIRS, id=f"{name}-pairs") for name in TOKENIZERS],
        # Not chatml: it cannot be trained on every turn, and is refused below.
        *[pytest.param(name, CHATS, id=f"{name}-chats") for name in ("marked", "qwen", "tiny")],
        pytest.param("qwen3", [calling()], id="qwen3-tools"),
    ],
)
def test_the_mask_is_the_one_sft_trainer_computes(name, examples, tmp_path):
    tokenizer = TOKENIZERS[name]()
    loss = chat.choose_loss(examples[0], tokenizer)
    rows = sft_rows(examples, tokenizer, loss, tmp_path)
    assert len(rows) == len(examples)
    for example, row in zip(examples, rows, strict=True):
        mask = chat.loss_mask(example, tokenizer, loss)
        assert mask.input_ids == row["input_ids"]
        assert mask.trained == [label != -100 for label in row["labels"]]
        assert any(mask.trained)
        assert not all(mask.trained)
        assert mask.lost == []


@pytest.mark.parametrize("name", ["chatml", "marked"])
def test_plain_text_is_trained_whole_as_by_sft_trainer(name, tmp_path):
    tokenizer = TOKENIZERS[name]()
    loss = chat.choose_loss(TEXTS[0], tokenizer)
    assert "language modelling" in loss.reason
    rows = sft_rows(TEXTS, tokenizer, loss, tmp_path)
    for example, row in zip(TEXTS, rows, strict=True):
        mask = chat.loss_mask(example, tokenizer, loss)
        assert mask.input_ids == row["input_ids"] == row["labels"]
        assert all(mask.trained)
        assert mask.input_ids[-1] == tokenizer.eos_token_id
        assert mask.input_ids.count(tokenizer.eos_token_id) == 1
    with pytest.raises(DataError, match="assistant_only_loss=true needs prompts and answers"):
        chat.choose_loss(TEXTS[0], tokenizer, assistant_only=True)


def test_calls_and_thoughts_are_trained_where_the_template_shows_them():
    tokenizer = build_tokenizer(QWEN3)
    assert trained_text(calling(), tokenizer) == (
        '<think>\n\n</think>\n\n<tool_call>\n{"name": "weigh", "arguments": {"duck": 2}}\n'
        "</tool_call><|im_end|>\n<think>\nducks are heavy\n</think>\n\nIt is 12.<|im_end|>\n"
    )


@pytest.mark.parametrize("name", ["marked", "qwen", "qwen3", "tiny"])
def test_a_turn_that_says_so_is_not_trained_by_sft_trainer(name, tmp_path):
    tokenizer = TOKENIZERS[name]()
    examples = [half_trained(), conversation("Hi", "Hello", "Ho", "Hoho")]
    loss = chat.choose_loss(examples[1], tokenizer)
    rows = sft_rows(
        examples, tokenizer, loss, tmp_path, lambda data: chat.labelled(data, tokenizer, loss)
    )
    answers = [("2", "4"), ("Hello", "Hoho")]
    for example, row, kept in zip(examples, rows, answers, strict=True):
        text = tokenizer.decode([i for i in row["labels"] if i != -100])
        assert [word in text for word in ("2", "4", "5", "Hello", "Hoho")] == [
            word in kept for word in ("2", "4", "5", "Hello", "Hoho")
        ]
        assert row["input_ids"] == chat.loss_mask({**example}, tokenizer, loss).input_ids


def test_turns_that_cannot_be_left_out_are_refused():
    example = half_trained()
    merged = MARKED.replace("<|im_start|>{{ m['role'] + '\n' }}", "").replace(
        "endgeneration %}\n", "endgeneration %}"
    )
    example["messages"] = [m for m in example["messages"] if m["content"] != "really?"]
    with pytest.raises(DataError, match="does not mark each turn by itself"):
        chat.loss_mask(example, build_tokenizer(merged))
    loss = chat.LossChoice(completion_only=False, assistant_only=False)
    with pytest.raises(DataError, match="assistant_only_loss=true"):
        chat.loss_mask(example, build_tokenizer(MARKED), loss)


@pytest.mark.parametrize("fault", ["{{ 1 / 0 }}", "{{ messages[0]['content'] + 1 }}", "{{ x() }}"])
def test_a_template_that_fails_is_an_error_with_its_place(fault):
    tokenizer = build_tokenizer(CHATML + "{% if messages | length > 2 %}" + fault + "{% endif %}")
    loss = chat.choose_loss(pair(), tokenizer)
    with pytest.raises(DataError, match=r"here: the chat template .* refuses it"):
        chat.loss_mask(PAIRS[2], tokenizer, loss)


@pytest.mark.parametrize("switches", [(True, False), (False, False), (True, True), (False, True)])
def test_the_user_may_set_both_switches(switches, tmp_path):
    tokenizer = build_tokenizer(MARKED)
    loss = chat.choose_loss(
        PAIRS[3], tokenizer, completion_only=switches[0], assistant_only=switches[1]
    )
    assert (loss.completion_only, loss.assistant_only) == switches
    row = sft_rows([PAIRS[3]], tokenizer, loss, tmp_path)[0]
    expected = [label != -100 for label in row["labels"]]
    assert chat.loss_mask(PAIRS[3], tokenizer, loss).trained == expected


def test_a_marked_template_does_not_train_its_trailing_newline():
    tokenizer = build_tokenizer(MARKED)
    loss = chat.choose_loss(pair(), tokenizer)
    assert (loss.completion_only, loss.assistant_only, loss.template) == (True, True, None)
    assert trained_text(pair(), tokenizer) == "12 + 5 = 17<|im_end|>"
    assert trained_text(PAIRS[3], tokenizer) == "12 + 5 = 17<|im_end|>"  # not the earlier "2"
    assert "after the stop token" not in loss.reason


def test_an_unmarked_template_does_and_says_so():
    tokenizer = build_tokenizer(CHATML)
    loss = chat.choose_loss(pair(), tokenizer)
    assert (loss.completion_only, loss.assistant_only) == (True, False)
    assert trained_text(pair(), tokenizer) == "12 + 5 = 17<|im_end|>\n"
    assert r"'\n' after the stop token" in loss.reason


def test_all_turns_are_trained_by_trls_own_variant_of_a_known_template():
    loss = chat.choose_loss(CHATS[0], build_tokenizer(QWEN))
    assert loss.template is not None
    assert (loss.completion_only, loss.assistant_only) == (False, True)
    assert "TRL" in loss.reason
    assert trained_text(CHATS[0], build_tokenizer(QWEN)) == "\n2<|im_end|>\n\n4<|im_end|>\n"


def test_a_template_without_a_stop_token_is_pointed_out():
    tokenizer = build_tokenizer(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert "No stop token is trained" in chat.choose_loss(pair(), tokenizer).reason


def test_turns_that_cannot_be_told_apart_are_refused_with_the_line_to_type():
    with pytest.raises(DataError, match=r"data\.turns=last"):
        chat.choose_loss(CHATS[0], build_tokenizer(CHATML))


def test_a_conversation_in_which_the_template_marks_nothing_is_refused():
    tokenizer = build_tokenizer(MARKED.replace("== 'assistant'", "== 'model'", 1))
    loss = chat.LossChoice(completion_only=False, assistant_only=True, reason="")
    with pytest.raises(DataError, match="marks no token"):
        chat.loss_mask(CHATS[0], tokenizer, loss)


@pytest.mark.parametrize("bos", [True, False])
def test_a_tokenizer_without_a_template_gets_a_plain_one(bos, tmp_path):
    tokenizer = build_tokenizer(None, bos=bos)
    note = chat.ensure_chat_template(tokenizer)
    assert note is not None
    assert "no chat template" in note
    mask = chat.loss_mask(pair(), tokenizer)
    start = "<s>" if bos else ""
    assert tokenizer.decode(mask.input_ids) == (
        f"{start}User:\nHow many eggs?\n\nAssistant:\n12 + 5 = 17</s>"
    )
    assert mask.lost == []
    assert trained_text(pair(), tokenizer) == "12 + 5 = 17</s>"
    assert trained_text(CHATS[0], tokenizer) == "2</s>4</s>"
    loss = chat.choose_loss(pair(), tokenizer)
    row = sft_rows([pair()], tokenizer, loss, tmp_path)[0]
    assert row["input_ids"] == mask.input_ids
    assert chat.ensure_chat_template(tokenizer) is None


def test_without_a_template_nothing_is_rendered():
    with pytest.raises(ModelError, match="ensure_chat_template"):
        chat.choose_loss(pair(), build_tokenizer(None))


def test_no_template_and_no_eos_is_refused():
    tokenizer = build_tokenizer(None)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="eos"):
        chat.ensure_chat_template(tokenizer)


def test_the_picture_shows_all_text_and_colours_what_is_trained():
    tokenizer = build_tokenizer(CHATML)
    text = chat.render_example(pair(), tokenizer)
    whole = tokenizer.decode(chat.loss_mask(pair(), tokenizer).input_ids)
    assert text.plain == whole.replace("\n", "\\n\n")
    coloured = [text.plain[s.start : s.end] for s in text.spans if s.style == chat.TRAINED]
    assert coloured == ["12 + 5 = 17<|im_end|>\\n\n"]
    bracketed = chat.render_example(pair(), tokenizer, brackets=True).plain
    assert bracketed.endswith("[[12 + 5 = 17<|im_end|>\\n\n]]")
    console = Console(width=200, file=io.StringIO())
    console.print(chat.render_example(pair("[red]x[/red]"), tokenizer))
    assert "[red]x[/red]" in console.file.getvalue()  # text is never read as rich markup


def test_long_spans_are_shortened_for_the_screen():
    text = chat.render_example(pair("egg " * 1000), build_tokenizer(CHATML)).plain
    assert len(text) < 1200
    assert "characters]..." in text


def test_the_description_counts_trained_tokens():
    tokenizer = build_tokenizer(CHATML)
    mask = chat.loss_mask(pair(), tokenizer)
    words = chat.describe_example(pair(), tokenizer)
    assert f"{len(mask.input_ids)} tokens, {sum(mask.trained)} trained" in words


@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=10, max_size=20))
@pytest.mark.parametrize("name", ["marked", "chatml"])
def test_any_text_is_masked_as_by_sft_trainer(name, texts):
    tokenizer = TOKENIZERS[name]()
    examples = [pair(question, answer) for question, answer in texts]
    loss = chat.choose_loss(pair(), tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        rows = sft_rows(examples, tokenizer, loss, Path(folder))
    for example, row in zip(examples, rows, strict=True):
        mask = chat.loss_mask(example, tokenizer, loss)
        assert mask.input_ids == row["input_ids"]
        assert mask.trained == [label != -100 for label in row["labels"]]
