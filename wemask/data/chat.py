"""Chat templates and the loss mask: what the model reads of an example, and what it is trained on.

TRL's SFTTrainer tokenizes the examples; this file tells beforehand what it will make of them, by
the same steps (a test holds the two equal), so that a run can show it before it starts. Two masks
are laid over each other, as there: the template's generation marks, which alone leave out what it
writes after the stop token, and where the prompt alone ends, which templates without marks need,
and prompts with earlier answers in them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from rich.style import Style
from rich.text import Text
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import (
    get_training_chat_template,
    has_generation_markers,
    is_chat_template_stop_token_trained,
)
from trl.data_utils import common_prefix_length

from wemask.data.messages import is_trained
from wemask.data.templates import check_answers
from wemask.errors import DataError, ModelError

Example = Mapping[str, Any]

# Set on tokenizers that have none. Nothing follows the assistant's eos token, and the generation
# markers tell TRL exactly which tokens are the assistant's. BOS: see `ensure_chat_template`.
FALLBACK_TEMPLATE = (
    "{% for message in messages %}"
    "{{ ('' if loop.first else '\\n\\n') + message['role'] | capitalize + ':\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:\\n' }}{% endif %}"
)

TRAINED = Style(color="green", bold=True)
CONTEXT = Style(dim=True)
LONGEST_SPAN = 800  # characters of one span on the screen; the middle of longer ones is left out


@dataclass(frozen=True, kw_only=True)
class LossChoice:
    """Which tokens are trained: the two switches of SFTConfig, and why they stand so."""

    completion_only: bool  # SFTConfig.completion_only_loss: nothing of the prompt is trained
    assistant_only: bool
    """SFTConfig.assistant_only_loss: only what the template marks as the assistant's."""
    template: str | None = None
    """The variant of the chat template that TRL puts in place of the tokenizer's own, if any."""
    reason: str = ""  # one or two sentences for the log


@dataclass(frozen=True, kw_only=True)
class LossMask:
    """One example as the trainer sees it."""

    input_ids: list[int]
    trained: list[bool]
    """Same length: whether the token is a target of the loss (SFTTrainer's label is not -100)."""
    lost: list[int]
    """End of the prompt alone that the whole sequence does not have (templates that render the
    two differently): context that exists at inference but was not trained on. Normally empty."""


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Set `FALLBACK_TEMPLATE` on a tokenizer without one; return what was done, or None.

    Raises:
        ModelError: there is no template and no eos token, so no end of an answer to be learned; or
            a template that leaves out what is said.
    """
    if tokenizer.chat_template:
        check_answers(tokenizer)
        return None
    if tokenizer.eos_token is None:
        raise ModelError(
            f"Tokenizer {name_of(tokenizer)} has neither a chat template nor an eos token, so a "
            "model cannot learn where an answer ends. Set tokenizer.eos_token, or choose another."
        )
    # Massive activations often sit on BOS: the template must not add or lose one.
    first = tokenizer.bos_token_id
    bos = first is not None and tokenizer.encode("a")[0] == first
    tokenizer.chat_template = ("{{ bos_token }}" if bos else "") + FALLBACK_TEMPLATE
    return (
        f"Tokenizer {name_of(tokenizer)} has no chat template; a plain one is used "
        f"(User:/Assistant: lines, {tokenizer.eos_token} after each answer, "
        f"{'with' if bos else 'no'} BOS)."
    )


def choose_loss(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    *,
    completion_only: bool | None = None,
    assistant_only: bool | None = None,
) -> LossChoice:
    """Choose SFTConfig's two loss switches for a dataset from one of its examples.

    Args:
        example: an item of `load_examples`; all others have the same layout.
        tokenizer: must have a chat template.
        completion_only: what the user asks for; None leaves it to us.
        assistant_only: likewise.

    Raises:
        DataError: several turns are to be trained, and neither the tokenizer's template nor TRL
            knows which tokens are the assistant's; or the user's switches need turns, and the
            examples are plain text.
        ModelError: the tokenizer has no chat template.
    """
    if "text" in example:
        return _loss_of_text(completion_only, assistant_only)
    template = _template(tokenizer)
    pair = "prompt" in example
    marked = has_generation_markers(template) and is_chat_template_stop_token_trained(tokenizer)
    if assistant_only is None:
        assistant_only = marked if pair else True
    completion_only = pair if completion_only is None else completion_only
    unmarked = assistant_only and not has_generation_markers(template)
    choice = LossChoice(
        completion_only=completion_only,
        assistant_only=assistant_only,
        template=_training_template(tokenizer) if unmarked else None,
    )
    return replace(choice, reason=_reason(example, tokenizer, choice))


def _loss_of_text(completion_only: bool | None, assistant_only: bool | None) -> LossChoice:
    asked = {"completion_only_loss": completion_only, "assistant_only_loss": assistant_only}
    if wrong := [name for name, value in asked.items() if value]:
        raise DataError(
            f"trainer.{wrong[0]}=true needs prompts and answers, and these records are plain text "
            f"(data.columns.text). Type trainer.{wrong[0]}=false."
        )
    reason = "Trained: every token. The records are plain text (language modelling): no chat "
    reason += "template, an eos token after each."
    return LossChoice(completion_only=False, assistant_only=False, reason=reason)


def loss_mask(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    loss: LossChoice | None = None,
    *,
    max_length: int | None = None,
) -> LossMask:
    """Tokenize one example and say which tokens are trained, as SFTTrainer will.

    Args:
        example: an item of `load_examples`.
        tokenizer: must have a chat template.
        loss: from `choose_loss`, which is asked when None.
        max_length: SFTConfig's; what is beyond is cut off (truncation_mode="keep_start").

    Raises:
        DataError: the chat template refuses the example.
        ModelError: the tokenizer has no chat template.
    """
    loss = loss or choose_loss(example, tokenizer)
    ids, trained = tokenized(example, tokenizer, loss)
    lost: list[int] = []
    if "prompt" in example:
        prompt_ids, _ = _render(example, example["prompt"], tokenizer, loss, prompt_only=True)
        start = common_prefix_length(prompt_ids, ids)
        lost = prompt_ids[start:]
        if loss.completion_only:
            trained = [bit and i >= start for i, bit in enumerate(trained)]
    return LossMask(input_ids=ids[:max_length], trained=trained[:max_length], lost=lost)


def labelled(examples: Any, tokenizer: PreTrainedTokenizerBase, loss: LossChoice) -> Any:
    """The dataset with `input_ids` and `labels`: where some turns of a conversation are trained
    and others not, which TRL's own masks cannot say. It takes such columns as they are.
    """
    return examples.map(_with_labels, fn_kwargs={"tokenizer": tokenizer, "loss": loss})


def _with_labels(
    example: Example, tokenizer: PreTrainedTokenizerBase, loss: LossChoice
) -> dict[str, list[int]]:
    mask = loss_mask(example, tokenizer, loss)
    pairs = zip(mask.input_ids, mask.trained, strict=True)
    return {"input_ids": mask.input_ids, "labels": [i if bit else -100 for i, bit in pairs]}


def describe_example(
    example: Example, tokenizer: PreTrainedTokenizerBase, loss: LossChoice | None = None
) -> str:
    """Return one sentence: where it is from, how many tokens, how many are trained."""
    mask = loss_mask(example, tokenizer, loss)
    n, trained = len(mask.input_ids), sum(mask.trained)
    share = f" ({trained / n:.0%})" if n else ""
    return f"{example.get('source', 'one example')}: {n} tokens, {trained} trained{share}."


def render_example(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    loss: LossChoice | None = None,
    *,
    max_length: int | None = None,
    brackets: bool = False,
) -> Text:
    """Decode one example with its loss mask coloured: trained green and bold, the rest dim.

    Every newline is also written as a visible backslash-n, so that a trained trailing newline can
    be seen. `brackets` puts trained spans in `[[ ]]` as well, for output without colour.
    """
    mask = loss_mask(example, tokenizer, loss, max_length=max_length)
    text = Text()
    end, before = 0, ""
    for trained, run in groupby(mask.trained):
        end += len(list(run))
        # As differences of prefixes: a run decoded alone would lose the space before its first
        # word in SentencePiece tokenizers.
        until = str(tokenizer.decode(mask.input_ids[:end], clean_up_tokenization_spaces=False))
        span, before = until[len(before) :], until
        if (more := len(span) - LONGEST_SPAN) > 0:
            half = LONGEST_SPAN // 2
            span = f"{span[:half]} ...[{more} characters]... {span[-half:]}"
        shown = span.replace("\n", "\\n\n")
        shown = f"[[{shown}]]" if trained and brackets else shown
        text.append(shown, style=TRAINED if trained else CONTEXT)
    return text


def tokenized(
    example: Example, tokenizer: PreTrainedTokenizerBase, loss: LossChoice
) -> tuple[list[int], list[bool]]:
    """Token ids of prompt and completion, and what is trained as far as the template tells.

    Raises:
        DataError: the chat template refuses the example, or does not mark what is to be trained.
    """
    if "text" in example:  # as SFTTrainer does
        eos = str(tokenizer.eos_token or "")
        text = example["text"] if example["text"].endswith(eos) else example["text"] + eos
        ids = list(tokenizer(text)["input_ids"])
        return ids, [True] * len(ids)
    pair, messages = "prompt" in example, messages_of(example)
    ids, assistant = _render(example, messages, tokenizer, loss)
    if not loss.assistant_only:
        if not pair and any("train" in message for message in messages):
            raise DataError(
                f"{example.get('source', 'An example')} has turns that are not to be trained. Type "
                "trainer.assistant_only_loss=true."
            )
        return ids, [True] * len(ids)
    if not any(assistant):  # SFTTrainer stops there, too, but does not say where
        raise DataError(
            f"{example.get('source', 'An example')}: the chat template of {name_of(tokenizer)} "
            "marks no token of it as the assistant's. Type data.turns=last."
        )
    trained = [bool(bit) for bit in assistant]
    return ids, trained if pair else _without_untrained(trained, example, tokenizer)


def _without_untrained(
    marked: list[bool], example: Example, tokenizer: PreTrainedTokenizerBase
) -> list[bool]:
    """Take the turns with `train: False` out of what the template marks, one span for each turn."""
    turns = [is_trained(m) for m in example["messages"] if m["role"] == "assistant"]
    if all(turns):
        return marked
    spans = [(bit, len(list(run))) for bit, run in groupby(marked)]
    if sum(bit for bit, _ in spans) != len(turns):
        raise DataError(
            f"{example.get('source', 'An example')} has turns that are not to be trained, and the "
            f"chat template of {name_of(tokenizer)} does not mark each turn by itself. Type "
            "data.turns=last."
        )
    left = iter(turns)
    return [kept for bit, n in spans for kept in [bit and next(left)] * n]


def _render(
    example: Example,
    messages: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    loss: LossChoice,
    *,
    prompt_only: bool = False,
) -> tuple[list[int], list[int]]:
    """Token ids and the assistant mask (empty unless it is asked for)."""
    _template(tokenizer)
    try:
        result = tokenizer.apply_chat_template(
            messages,
            tools=tools_of(example),
            tokenize=True,
            return_dict=True,
            add_generation_prompt=prompt_only,
            return_assistant_tokens_mask=loss.assistant_only and not prompt_only,
            chat_template=loss.template,
        )
    except Exception as error:  # a template is a program of the model's: it may do anything
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"{example.get('source', 'An example')}: the chat template of {name_of(tokenizer)} "
            f"refuses it ({error or type(error).__name__}); its roles are: {roles}."
        ) from error
    assert isinstance(result, Mapping)  # return_dict=True
    return list(result["input_ids"]), list(result.get("assistant_masks", []))


def messages_of(example: Example) -> list[dict[str, Any]]:
    """The whole conversation of an example that is no plain text."""
    if "prompt" in example:
        return [*example["prompt"], *example["completion"]]
    return example["messages"]


def tools_of(example: Example) -> list[Any] | None:
    """The schemas that the template is given."""
    return json.loads(example["tools"]) if example.get("tools") else None


def _reason(example: Example, tokenizer: PreTrainedTokenizerBase, loss: LossChoice) -> str:
    """What the two switches mean on this very template, including what cannot be avoided."""
    what = "the completion" if loss.completion_only else "every token, prompts included"
    if loss.assistant_only:
        what = "the last assistant turn" if loss.completion_only else "every assistant turn"
    text = f"Trained: {what}"
    text += ", by the template's generation markers." if loss.assistant_only else "."
    if loss.template is not None:
        text += " They are TRL's: it trains with its own variant of this model's template."
    mask = loss_mask(example, tokenizer, loss)
    targets = [i for i, bit in zip(mask.input_ids, mask.trained, strict=True) if bit]
    tail = _after_stop(targets, tokenizer)
    if tail is None:
        text += " No stop token is trained: the model may not learn to end its answer."
    elif tail:
        text += f" The template's {tail!r} after the stop token is trained too."
    return text


def _after_stop(targets: list[int], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Whitespace trained after the stop token; None when the targets do not end with one."""
    stops = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    last = max((i for i, token in enumerate(targets) if token in stops), default=None)
    if last is None:
        return None
    tail = str(tokenizer.decode(targets[last + 1 :]))
    return None if tail.strip() else tail


def _training_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    try:
        return get_training_chat_template(tokenizer)
    except ValueError as error:
        raise DataError(
            f"The chat template of {name_of(tokenizer)} does not mark which tokens are the "
            "assistant's ({% generation %}), nor does TRL know a variant that does, so every "
            "assistant turn cannot be trained. Type data.turns=last to train the final turn of "
            "each conversation, which every template allows."
        ) from error


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    template: object = tokenizer.chat_template
    if isinstance(template, dict):  # named variants; TRL and apply_chat_template take this one
        template = template.get("default")
    if not isinstance(template, str) or not template:
        raise ModelError(
            f"Tokenizer {name_of(tokenizer)} has no chat template: call "
            "wemask.data.chat.ensure_chat_template(tokenizer) first."
        )
    return template


def name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a message calls it."""
    return str(tokenizer.name_or_path or type(tokenizer).__name__)
