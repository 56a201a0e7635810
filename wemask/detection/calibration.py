"""What a model reads while massive tokens are looked for: texts like those that it will meet.

The built-in texts (`texts.json`) as they are and, where the tokenizer has a chat template, as
chats, for tokens of a template may be massive themselves (`<|im_start|>` in Qwen2.5). B texts, T
tokens.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wemask.errors import DetectionError

LONGEST = 128  # tokens of a text; every text is padded to the longest
_TEXTS = json.loads(Path(__file__).with_name("texts.json").read_text(encoding="utf-8"))
CALIBRATION_TEXTS: tuple[str, ...] = tuple(_TEXTS["calibration"])
LONGER_TEXTS: tuple[str, ...] = tuple(_TEXTS["longer"])
"""For weaker massive tokens, which are rare: in Gemma 3, one in some 500 tokens."""
HELD_OUT_TEXTS: tuple[str, ...] = tuple(_TEXTS["held_out"])
"""For `wemask validate`: detection never reads them."""


def calibration_inputs(
    tokenizer: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    texts: Sequence[str] | str | None = None,
    *,
    chats: bool = True,
    examples: Iterable[Sequence[int]] = (),
) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, T] that `wemask.detect` with the same arguments reads.

    Raises:
        DetectionError: nothing to read, wrong kinds or shapes, texts of less than two tokens in
            all, or a chat template that fails.
    """
    if input_ids is None and attention_mask is not None:
        raise DetectionError("attention_mask was given without input_ids. Give both.")
    if input_ids is not None:
        return _given(input_ids, attention_mask)
    if not callable(tokenizer):  # None, its name, ids given in its place
        raise DetectionError(
            "Detection needs something to read: detect(model, tokenizer) or "
            "detect(model, input_ids=ids, attention_mask=mask)."
        )
    texts = [texts] if isinstance(texts, str) else texts
    if texts is not None and not all(isinstance(text, str) for text in texts):
        raise DetectionError(f"texts must be a list of texts, got {texts!r:.80}.")
    rows = [*_rows(tokenizer, texts, chats), *examples]
    rows = [list(row)[:LONGEST] for row in rows if len(row)]
    if max(map(len, rows), default=0) < 2:
        raise DetectionError(
            "The calibration texts are empty, or none has two tokens. Give texts of a sentence or "
            "more: texts=['...'], detection.texts=FILE, or for `wemask`: --calibration FILE."
        )
    return padded(rows)


def _given(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    for name, given in {"input_ids": input_ids, "attention_mask": attention_mask}.items():
        if given is not None and not isinstance(given, Tensor):
            raise DetectionError(f"{name} must be a tensor [batch, tokens], got {given!r:.80}.")
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise DetectionError(
            f"input_ids are the numbers of tokens, of dtype int64, got {input_ids.dtype}. Type "
            "input_ids.long() if that is what they are."
        )
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if input_ids.ndim != 2 or mask.shape != input_ids.shape or not mask.any():
        raise DetectionError(
            "input_ids and attention_mask must be [batch, tokens] with at least one real "
            f"token; got {tuple(input_ids.shape)} and {tuple(mask.shape)}."
        )
    if mask.bool().sum(1).max() < 2:
        raise DetectionError("A text of one token shows nothing. Give input_ids of two or more.")
    return input_ids, mask


def _rows(tokenizer: Any, texts: Sequence[str] | None, chats: bool) -> list[list[int]]:
    """Token ids of each text, and behind it those of the same text as a chat."""
    as_chats = chats and getattr(tokenizer, "chat_template", None) is not None
    rows = []
    for text in CALIBRATION_TEXTS if texts is None else texts:
        if not text.strip():
            continue
        rows.append(tokenizer(text)["input_ids"])
        if as_chats:
            rows.append(chat_ids(tokenizer, text))
    longer = LONGER_TEXTS if texts is None else ()
    return [*rows, *(tokenizer(text)["input_ids"] for text in longer)]


def chat_ids(tokenizer: Any, text: str) -> list[int]:
    """A text as a user's turn, up to where the assistant would begin.

    Raises:
        DetectionError: the template takes neither a lone user turn nor one behind a system turn.
    """
    turn, said = {"role": "user", "content": text}, ""
    for turns in ([turn], [{"role": "system", "content": "Be helpful."}, turn]):
        try:
            encoded = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_dict=True
            )
            return list(encoded["input_ids"])
        except Exception as error:  # a template is a program: what it raises is its own
            said = said or " ".join(str(error).split())[:200]
    raise DetectionError(
        "The chat template was tried with a user turn, and with a system and a user turn, and "
        f"fails on both ({said}). Mend it, or calibrate on plain texts: detection.chats=false, or "
        "--no-chats of the wemask command."
    )


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, T] of texts, padded on the right.

    By hand: no pad token is needed, and what is there is masked out.
    """
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [row[0]] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def halves(texts: Tensor) -> Tensor:
    """In which half of the calibration texts a text is, bool, by its number.

    Two by two: a text and its chat are neighbours, and one would say little about the other.
    """
    step = 2 if int(texts.max()) > 2 else 1  # of two or three texts, each second one
    return texts // step % 2 == 0
