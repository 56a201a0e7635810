"""Tokenizers of a few hundred tokens, examples, and what SFTTrainer itself makes of them."""

import json
from pathlib import Path

import trl
from datasets import Dataset, Features
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from wemask.data import chat
from wemask.data.features import CHAT_FEATURES, PAIR_FEATURES, STRING, TEXT_FEATURES

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
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
QWEN = (TEMPLATES / "qwen2_5.jinja").read_text()
QWEN3 = (TEMPLATES / "qwen3.jinja").read_text()  # reads reasoning_content, tools and tool_calls

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


def sft_rows(
    examples: list[dict],
    tokenizer,
    loss: chat.LossChoice,
    tmp_path: Path,
    prepare=lambda dataset: dataset,
    **kwargs,
):
    """What SFTTrainer itself makes of the examples: the ground truth for `loss_mask`."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    kinds = {"prompt": PAIR_FEATURES, "messages": CHAT_FEATURES, "text": TEXT_FEATURES}
    features = {**next(kinds[kind] for kind in kinds if kind in examples[0])}
    if "tools" in examples[0]:
        features["tools"] = STRING
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
        train_dataset=prepare(Dataset.from_list(examples, features=Features(features))),
        processing_class=tokenizer,
    ).train_dataset


CALL = {"type": "function", "function": {"name": "weigh", "arguments": {"duck": 2}}}
TOOL = {"type": "function", "function": {"name": "weigh", "description": "d", "parameters": {}}}


def calling() -> dict:
    """A conversation whose first answer is a call, and whose last one has thoughts."""
    messages = [
        {"role": "user", "content": "How heavy?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "12"},
        {"role": "assistant", "reasoning_content": "ducks are heavy", "content": "It is 12."},
    ]
    return {"messages": messages, "tools": json.dumps([TOOL]), "source": "here"}


def half_trained() -> dict:
    """A conversation of three turns, the middle one not to be trained."""
    example = conversation("1+1?", "2", "2+2?", "5", "really?", "4")
    example["messages"][3]["train"] = False
    return example
