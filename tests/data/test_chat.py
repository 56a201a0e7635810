import io
import tempfile
from pathlib import Path

import pytest
import trl
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from wemask.data import chat
from wemask.data.examples import CHAT_FEATURES, PAIR_FEATURES
from wemask.embedded import TINY_PATH
from wemask.errors import DataError, ModelError

# Three kinds of template: marked, without a trailing newline; ChatML, unmarked, with one;
# and Qwen's, for which TRL has a marked variant of its own.
MARKED = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
QWEN = Path(trl.__file__).parent.joinpath("chat_templates/qwen2_5.jinja").read_text()

TEXT = ["user assistant system You are Qwen, helpful: 12 + 5 makes 17 in all, ducks lay eggs"] * 3


def build_tokenizer(template: str | None, *, bos: bool = True) -> PreTrainedTokenizerFast:
    specials = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def pair(question: str = "How many eggs?", answer: str = "12 + 5 = 17") -> dict:
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
        "source": "here",
    }


def conversation(*texts: str) -> dict:
    roles = ["user", "assistant"] * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return {"messages": messages, "source": "here"}


def trained_text(example: dict, tokenizer, loss: chat.LossChoice | None = None) -> str:
    mask = chat.loss_mask(example, tokenizer, loss)
    return tokenizer.decode([i for i, bit in zip(mask.input_ids, mask.trained, strict=True) if bit])


def sft_rows(examples: list[dict], tokenizer, loss: chat.LossChoice, tmp_path: Path, **kwargs):
    """What SFTTrainer itself makes of the examples: the ground truth for `loss_mask`."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    features = PAIR_FEATURES if "prompt" in examples[0] else CHAT_FEATURES
    arguments = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=None,
        completion_only_loss=loss.completion_only, assistant_only_loss=loss.assistant_only,
        shuffle_dataset=False, disable_tqdm=True, activation_checkpointing=False,
    )  # fmt: skip
    for key, value in kwargs.items():
        setattr(arguments, key, value)
    return SFTTrainer(
        model=LlamaForCausalLM(config),
        args=arguments,
        train_dataset=Dataset.from_list(examples, features=features),
        processing_class=tokenizer,
    ).train_dataset


def tiny_tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(TINY_PATH)


TOKENIZERS = {
    "marked": lambda: build_tokenizer(MARKED),
    "chatml": lambda: build_tokenizer(CHATML),
    "qwen": lambda: build_tokenizer(QWEN),
    "tiny": tiny_tokenizer,
}
PAIRS = [
    pair(),
    pair("Ünïcödé \U0001f986?\n\n", "  17\n"),
    {**pair(), "prompt": [{"role": "system", "content": "Be brief."}, *pair()["prompt"]]},
    {**pair(), "prompt": [*conversation("1+1?", "2", "2+2?")["messages"]]},
]
CHATS = [conversation("1+1?", "2", "2+2?", "4"), conversation("Hi", "Hello\n")]


@pytest.mark.parametrize(
    ("name", "examples"),
    [
        *[pytest.param(name, PAIRS, id=f"{name}-pairs") for name in TOKENIZERS],
        # Not chatml: it cannot be trained on every turn, and is refused below.
        *[pytest.param(name, CHATS, id=f"{name}-chats") for name in ("marked", "qwen", "tiny")],
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


def test_truncation_and_what_it_drops_are_those_of_sft_trainer(tmp_path):
    tokenizer = build_tokenizer(MARKED)
    examples = [pair(), pair("eggs " * 40, "17"), pair("eggs", "17 " * 40)]
    loss = chat.choose_loss(examples[0], tokenizer)
    rows = sft_rows(examples, tokenizer, loss, tmp_path, max_length=30)
    audit = made_audit(examples, tokenizer, loss, max_length=30)
    assert (audit.n, audit.truncated, audit.untrained) == (3, 2, ["here"])
    assert len(rows) == 2
    assert audit.longest == max(len(chat.loss_mask(e, tokenizer).input_ids) for e in examples)
    cut = chat.loss_mask(examples[2], tokenizer, loss, max_length=30)
    assert cut.input_ids == rows[1]["input_ids"]
    assert cut.trained == [label != -100 for label in rows[1]["labels"]]
    assert "1 are DROPPED" in str(audit)
    assert "none is truncated" in str(chat.audit_lengths(PAIRS, tokenizer, loss, max_length=None))


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


def test_a_generation_prompt_that_training_never_sees_is_pointed_out():
    tokenizer = build_tokenizer(CHATML.replace("assistant\n{% endif", "assistant\n12 + {% endif"))
    example = pair(answer="ducks")
    assert tokenizer.decode(chat.loss_mask(example, tokenizer).lost) == "12 + "
    assert "'12 + '" in chat.describe_example(example, tokenizer)


def test_turns_that_cannot_be_told_apart_are_refused_with_the_line_to_type():
    with pytest.raises(DataError, match=r"data\.turns=last"):
        chat.choose_loss(CHATS[0], build_tokenizer(CHATML))


def test_a_template_that_refuses_an_example_is_an_error_with_its_place():
    tokenizer = build_tokenizer(STRICT + CHATML)
    loss = chat.choose_loss(pair(), tokenizer)
    with pytest.raises(DataError, match=r"here: the chat template.*no system.*system, user"):
        chat.audit_lengths([PAIRS[2]], tokenizer, loss, max_length=None)


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
