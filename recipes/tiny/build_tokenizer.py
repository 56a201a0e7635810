"""Build tiny's tokenizer: byte-level BPE, single digits, `<s>` always first, chat template.

    python -m recipes.tiny.build_tokenizer --out FOLDER

All 256 bytes are in the alphabet, so any text round-trips and there is no unknown token. A token
holds one digit at most (with the space before it), so numbers are read digit by digit.
"""

import argparse
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from wemask.embedded.problems import generate

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2  # their places in SPECIAL
BACK_OFFSETS = (1, 2, 3, 4, 6, 8)
RECALL = "<|recall|>"
BACK = tuple(f"<|back_{k}|>" for k in BACK_OFFSETS)
SPECIAL = (PAD, BOS, EOS, *ROLES, RECALL, *BACK)
VOCAB_SIZE = 768

# One digit, a run of letters or of other signs (each with at most one space before it), or space.
PIECES = r" ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s"

# The assistant's turn ends with </s> and nothing after it, so no trailing newline is ever trained;
# <s> is written by the template, so a rendered chat is tokenized without special tokens.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' }}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% elif message['role'] in ['user', 'system'] %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% else %}"
    "{{ raise_exception('Unknown role: ' + message['role']) }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build(vocab_size: int = VOCAB_SIZE, *, seed: int = 0) -> PreTrainedTokenizerFast:
    """Train the tokenizer on both families of problems and return it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, BOS_ID)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def _corpus(seed: int) -> list[str]:
    problems = [*generate(3000, family="sft", seed=seed)]
    problems += generate(3000, family="pretrain", seed=seed)
    return [f"{p['question']}\n{p['answer']}\nProblem: Solution:" for p in problems]


def main() -> None:
    """Build the tokenizer and write it into a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write the files into")
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the training text (%(default)s)")
    args = parser.parse_args()
    tokenizer = build(args.vocab_size, seed=args.seed)
    tokenizer.save_pretrained(args.out)
    print(f"{len(tokenizer)} tokens -> {args.out}")


if __name__ == "__main__":
    main()
